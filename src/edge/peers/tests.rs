//! What a node answers about its connections, and what is made of the others' answers.

use std::time::Duration;

use parking_lot::Mutex;
use sha2::Digest as _;

use super::*;
use crate::{
    auth::{self, ApiKey, Authenticator, Scope, Service},
    edge::{
        entry::Refused,
        fakes::{auth_config, shared, stream},
        sessions::Holder,
    },
    event::unix_millis_now,
    fakes::user,
    store::sessions::{MemorySessions, Started, StartedSessions as _},
};

const KEY: &str = "support";

/// Says what it was told to say, for one node each, and writes down what it was asked.
#[derive(Default)]
struct Others {
    answers: Mutex<Vec<Option<Answer>>>,
    asked: Mutex<Vec<Question>>,
}

impl Others {
    fn say(&self, answers: impl IntoIterator<Item = Option<Answer>>) {
        *self.answers.lock() = answers.into_iter().collect();
    }
}

impl Peers for Others {
    fn me(&self) -> String {
        "n0".into()
    }

    fn ask(&self, question: Question) -> Pin<Box<dyn Future<Output = Vec<Heard>> + Send + '_>> {
        self.asked.lock().push(question);
        let answers = self.answers.lock().clone();
        Box::pin(async move { answers.into_iter().zip(1..).map(|(answer, n)| (format!("n{n}"), answer)).collect() })
    }
}

/// A node among others, which has no connections.
fn node() -> (Arc<Shared>, Arc<Others>, Arc<MemorySessions>) {
    let (others, started) = (Arc::new(Others::default()), Arc::new(MemorySessions::default()));
    let mut shared = Arc::into_inner(shared()).expect("nobody else has it");
    let service = Arc::new(Service { name: KEY.into(), scopes: vec![Scope::Sessions] });
    let api_keys = vec![ApiKey { sha256: sha2::Sha256::digest(KEY).into(), service }];
    shared.authenticator = Arc::new(Authenticator::new(&auth::Config { api_keys, ..auth_config() }));
    shared.peers = Some(others.clone());
    shared.started = started.clone();
    (Arc::new(shared), others, started)
}

fn is_unknown(result: Result<(), Refused>) -> bool {
    matches!(result, Err(Refused::Unknown))
}

fn silent(result: Result<(), Refused>) -> Vec<String> {
    match result {
        Err(Refused::Silent(nodes)) => nodes,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_node_answers_for_its_own_connections() {
    let shared = shared();
    let (session, stranger) = (SessionId::random(), UserId::new("stranger").unwrap());
    let relay = stream(&shared, &user(), session);
    let registered = shared.registry.register(&relay);
    assert_eq!(Connections(shared.clone()).count(), 1);
    let Answer::Sessions(sessions) = shared.answer(&Question::Sessions(user())) else { panic!("sessions") };
    assert_eq!((sessions.len(), sessions[0].session, &*sessions[0].protocol), (1, session, "grpc"));
    assert_eq!(shared.answer(&Question::Sessions(stranger.clone())), Answer::Sessions(vec![]));
    assert_eq!(shared.answer(&Question::Find(session)), Answer::Found(Some(user())));
    assert_eq!(shared.answer(&Question::Find(SessionId::random())), Answer::Found(None));

    let acknowledge = |session, seq, user| shared.answer(&Question::Acknowledge(session, seq, user));
    let became = |became| Answer::Acknowledged(became);
    assert_eq!(acknowledge(SessionId::random(), 0, None), became(Acknowledged::Unknown));
    assert_eq!(acknowledge(session, 0, Some(stranger.clone())), became(Acknowledged::NotYours));
    assert_eq!(acknowledge(session, 0, Some(user())), became(Acknowledged::Taken));
    assert!(relay.close_reason().is_none());
    assert_eq!(acknowledge(session, 1, None), became(Acknowledged::NeverSent));
    assert_eq!(relay.close_reason().unwrap().code, CloseCode::BadFrame);
    drop(registered);

    let relays = [SessionId::random(), SessionId::random()].map(|session| stream(&shared, &user(), session));
    let _registered = relays.each_ref().map(|relay| shared.registry.register(relay));
    let closed = || relays.each_ref().map(|relay| relay.close_reason().map(|close| close.code));
    assert_eq!(shared.answer(&Question::End(stranger, Some(relays[0].client.session))), Answer::Ended(0));
    assert_eq!(shared.answer(&Question::End(user(), Some(relays[0].client.session))), Answer::Ended(1));
    assert_eq!(closed(), [Some(CloseCode::Replaced), None]);
    assert_eq!(shared.answer(&Question::End(user(), None)), Answer::Ended(2));
    assert_eq!(closed(), [Some(CloseCode::Replaced); 2]);
}

#[tokio::test]
async fn sessions_of_all_nodes_are_listed_once_and_who_is_silent_is_named() {
    let (shared, others, started) = node();
    let [here, there, waiting] = [(); 3].map(|()| SessionId::random());
    let relay = stream(&shared, &user(), here);
    let _registered = shared.registry.register(&relay);
    for session in [there, waiting] {
        let expires_at = unix_millis_now() + 60_000;
        started.start(Started { session, user: user(), expires_at }).await.unwrap();
    }
    let connected = Connected { session: there, protocol: "sse".into(), device: None, expires_at: 7 };
    others.say([Some(Answer::Sessions(vec![connected])), None]);
    let (listed, silent) = shared.list_sessions(KEY, "101").await.unwrap();
    let json = serde_json::to_value(&listed).unwrap();
    let seen = |at: usize| (json[at]["session"].clone(), json[at]["connected"].clone(), json[at]["node"].clone());
    let told =
        |session: SessionId, node: Option<&str>| (session.to_string().into(), node.is_some().into(), node.into());
    assert_eq!(listed.len(), 3, "{json}");
    assert_eq!([seen(0), seen(1)], [told(here, Some("n0")), told(there, Some("n1"))]);
    assert_eq!((&json[2]["session"], &json[2]["connected"]), (&waiting.to_string().into(), &false.into()));
    assert_eq!(silent, ["n2"]);
}

/// Looks into the store when it is asked, for the session that it was made for.
struct Looks {
    started: Arc<MemorySessions>,
    session: SessionId,
    was_there: Mutex<Option<bool>>,
}

impl Peers for Looks {
    fn me(&self) -> String {
        "n0".into()
    }

    fn ask(&self, _: Question) -> Pin<Box<dyn Future<Output = Vec<Heard>> + Send + '_>> {
        Box::pin(async {
            let found = self.started.find(self.session).await.unwrap();
            *self.was_there.lock() = Some(found.is_some());
            vec![("n1".into(), Some(Answer::Ended(0)))]
        })
    }
}

/// A connection that comes meanwhile looks into the store once its node can find it: one of the two sees the other.
#[tokio::test]
async fn a_session_is_ended_in_the_store_before_any_node_is_asked() {
    let (shared, _, started) = node();
    let session = SessionId::random();
    let expires_at = unix_millis_now() + 60_000;
    started.start(Started { session, user: user(), expires_at }).await.unwrap();
    let looks = Arc::new(Looks { started, session, was_there: Mutex::default() });
    let mut shared = Arc::into_inner(shared).expect("nobody else has it");
    shared.peers = Some(looks.clone());
    shared.end_sessions(KEY, "101", Some(&session.to_string())).await.unwrap();
    assert_eq!(*looks.was_there.lock(), Some(false));
}

#[tokio::test]
async fn an_end_is_certain_or_says_who_did_not_answer() {
    let (shared, others, started) = node();
    let session = SessionId::random();
    let text = session.to_string();
    let one = async || shared.end_sessions(KEY, "101", Some(&text)).await;
    let all = async || shared.end_sessions(KEY, "101", None).await;
    let ended = |count| Some(Answer::Ended(count));
    others.say([ended(0), ended(0)]);
    assert!(is_unknown(one().await));
    all().await.unwrap();
    others.say([ended(0), None]);
    assert_eq!(silent(one().await), ["n2"], "it may be there");
    assert_eq!(silent(all().await), ["n2"]);
    others.say([None, ended(1)]);
    one().await.unwrap();
    assert_eq!(silent(all().await), ["n1"], "there may be more");
    assert_eq!(others.asked.lock().last(), Some(&Question::End(user(), None)));

    // Started, and connected to nobody who has answered.
    let expires_at = unix_millis_now() + 60_000;
    for (answers, certain) in [([ended(0), None], false), ([ended(0), ended(0)], true)] {
        others.say(answers);
        started.start(Started { session, user: user(), expires_at }).await.unwrap();
        let answer = one().await;
        assert_eq!(answer.is_ok(), certain, "{answer:?}");
        assert!(started.find(session).await.unwrap().is_none(), "of no use any more, in any case");
    }
}

#[tokio::test]
async fn an_acknowledgement_goes_to_whichever_node_has_the_session() {
    let (shared, others, _) = node();
    let session = SessionId::random();
    let text = session.to_string();
    let acknowledge = async |token: Option<&str>| {
        let holder = shared.holder(&text, token).await?;
        assert!(matches!(holder, Holder::Elsewhere(..)));
        shared.acknowledge(&holder, 5).await
    };
    let said = |became| Some(Answer::Acknowledged(became));
    others.say([said(Acknowledged::Unknown), said(Acknowledged::Taken), None]);
    assert!(acknowledge(None).await.unwrap());
    others.say([said(Acknowledged::NeverSent), said(Acknowledged::Unknown)]);
    assert!(!acknowledge(None).await.unwrap());
    others.say([said(Acknowledged::NotYours)]);
    let (token, _) = auth::issue(&user(), Duration::from_secs(60), &auth_config(), crate::edge::fakes::SECRET).unwrap();
    assert!(matches!(acknowledge(Some(&token)).await, Err(Refused::NotYours(_))));
    assert_eq!(others.asked.lock().last(), Some(&Question::Acknowledge(session, 5, Some(user()))));
    let asked = others.asked.lock().len();
    assert!(matches!(acknowledge(Some("x.y.z")).await, Err(Refused::Denied(_))));
    assert_eq!(others.asked.lock().len(), asked, "nobody is asked for whoever shows a bad token");
    others.say([said(Acknowledged::Unknown), None]);
    assert!(matches!(acknowledge(None).await, Err(Refused::Silent(nodes)) if nodes == ["n2"]));
    others.say([said(Acknowledged::Unknown)]);
    assert!(matches!(acknowledge(None).await, Err(Refused::Unknown)));
}
