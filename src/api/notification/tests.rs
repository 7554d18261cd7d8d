//! What is said of one notification, to whom, and what taking it back comes to.

use axum::{
    body::Body,
    http::{Method, Request, header},
};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::{
    api::{
        Api,
        tests::{READ_KEY, SECRET, SESSIONS_KEY, start_with},
    },
    auth, fakes,
    ids::{DeviceId, SessionId, SessionTag},
    shard::{self, Shards},
    state::State as Became,
    store::{
        Acknowledgement, Store as _, Try,
        journal::Step,
        tests::FaultyStore,
        waiting::{Holding, Waiting as _},
    },
    user,
};

struct Setup {
    api: Api,
    store: Arc<FaultyStore>,
}

impl Setup {
    /// The log of user 101 has 1, 2 and 3, and 4 waits.
    async fn new() -> Self {
        let store = FaultyStore::new(10);
        // Stored before this process began.
        let event = |n: u64| {
            let mut event = (*fakes::durable(&fakes::user(), &n.to_string())).clone();
            event.recorded_at -= 120_000;
            Arc::new(event)
        };
        let events: Vec<_> = (1..=3).map(event).collect();
        store.fill(&events).await;
        let config = user::tests::config(&store, 8);
        let args = shard::Args { config, waiting: Some(Vec::new()), sealed: shard::Sealed::default() };
        let shards = Shards::new(vec![shard::spawn(args, fakes::supervisor().await).await.unwrap()], 1);
        store.hold(&[Holding { event: fakes::durable(&fakes::user(), "4"), digest: None }]).await.unwrap();
        Self { api: start_with(1024, &[], store.clone(), shards), store }
    }

    async fn ask(&self, method: Method, credential: &str, path: &str) -> (u16, Value) {
        let request = Request::builder().method(method).uri(format!("/v1/users/{path}"));
        let request = request.header(header::AUTHORIZATION, format!("Bearer {credential}")).body(Body::empty());
        let response = axum::Router::from(self.api.routes()).oneshot(request.unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn get(&self, id: &str) -> Value {
        let (status, body) = self.ask(Method::GET, READ_KEY, &format!("101/notifications/{id}")).await;
        assert_eq!(status, 200, "{body}");
        body
    }

    async fn delete(&self, id: &str) -> (u16, Value) {
        self.ask(Method::DELETE, SESSIONS_KEY, &format!("101/notifications/{id}")).await
    }

    /// A session on the phone was given everything up to this number, and has acknowledged it or not.
    async fn step(&self, state: Became, last: Sequence, at: UnixMillis) -> SessionTag {
        let session = SessionTag::from(SessionId::random());
        let device = Some(DeviceId::new("phone").unwrap());
        let step = Step {
            user: fakes::user(),
            first: 1,
            last,
            ids: Vec::new(),
            state,
            reason: None,
            session: Some(session),
            device: device.clone(),
            handed_at: (state == Became::Sent).then_some(at),
            at: at + 5,
        };
        let seq = if state == Became::Sent { last } else { 0 };
        let one = Acknowledgement { user: fakes::user(), device, seq };
        self.store.acknowledge(&[one], &[step], Try::First).await.unwrap();
        session
    }
}

fn states(told: &Value) -> Vec<&str> {
    told["history"].as_array().unwrap().iter().map(|one| one["state"].as_str().unwrap()).collect()
}

fn token(user: &str) -> String {
    let user = UserId::new(user).unwrap();
    auth::issue(&user, Duration::from_secs(60), &auth::Config::default(), SECRET).unwrap().0
}

#[tokio::test]
async fn one_notification_tells_what_happened_to_it_on_which_session_and_when() {
    let setup = Setup::new().await;
    let pending = setup.get("1").await;
    assert_eq!((&pending["state"], &pending["seq"], states(&pending)), (&json!("pending"), &json!(1), vec!["pending"]));
    assert_eq!((&pending["payload"], &pending["durability"]), (&json!({"n": 1}), &json!("durable")));
    let waiting = setup.get("4").await;
    assert_eq!((&waiting["state"], waiting.get("seq")), (&json!("pending"), None));

    let now = unix_millis_now() + 1000;
    let session = setup.step(Became::Sent, 2, now).await.to_string();
    let sent = setup.get("2").await;
    assert_eq!((&sent["state"], states(&sent)), (&json!("sent"), vec!["pending", "active", "sent"]));
    let last = &sent["history"][2];
    assert_eq!((&last["session"], &last["device"]), (&json!(session), &json!("phone")));
    assert_eq!(last["at"], timestamp_text(now + 5));
    assert_eq!(sent["history"][1]["at"], timestamp_text(now));
    assert_eq!(setup.get("3").await["state"], "pending");
}

#[tokio::test]
async fn what_was_active_on_a_session_of_an_earlier_process_is_stale() {
    let setup = Setup::new().await;
    setup.step(Became::Active, 3, unix_millis_now() + 1000).await;
    assert_eq!(setup.get("3").await["state"], "active");
    let setup = Setup::new().await;
    setup.step(Became::Active, 3, unix_millis_now() - 60_000).await;
    assert_eq!(setup.get("3").await["state"], "stale", "nobody could write that down");
}

#[tokio::test]
async fn what_was_taken_back_is_not_delivered_and_says_so() {
    let setup = Setup::new().await;
    for id in ["2", "4"] {
        assert_eq!(setup.delete(id).await.0, 204, "{id}");
        let told = setup.get(id).await;
        assert_eq!((&told["state"], &told["reason"]), (&json!("deleted"), &json!("cancelled")));
        let (status, again) = setup.delete(id).await;
        assert_eq!((status, &again["detail"]), (409, &json!("the notification is deleted already")));
    }
    let page = setup.ask(Method::GET, READ_KEY, "101/notifications").await.1;
    assert_eq!(page["gaps"], json!([{"from": 2, "to": 2, "reason": "cancelled"}]));
    setup.step(Became::Sent, 3, unix_millis_now()).await;
    let (status, late) = setup.delete("3").await;
    assert_eq!((status, &late["detail"]), (409, &json!("the notification is sent already")));
}

#[tokio::test]
async fn a_stretch_of_numbers_says_nothing_of_one_that_had_ended_before() {
    let setup = Setup::new().await;
    setup.delete("2").await;
    let later = unix_millis_now() + 1000;
    setup.step(Became::Stale, 3, later).await;
    assert_eq!(states(&setup.get("2").await), ["pending", "deleted"], "nobody was given it");
    assert_eq!(states(&setup.get("3").await), ["pending", "stale"]);
    setup.step(Became::Sent, 3, later + 1000).await;
    assert_eq!(states(&setup.get("2").await), ["pending", "deleted"]);
    assert_eq!(setup.get("2").await["state"], "deleted");
}

#[tokio::test]
async fn only_who_may_reads_and_takes_back() {
    let setup = Setup::new().await;
    let own = token("101");
    for (method, credential, expected) in [
        (Method::GET, &*own, 200),
        (Method::GET, READ_KEY, 200),
        (Method::GET, &*token("202"), 403),
        (Method::GET, SESSIONS_KEY, 403),
        (Method::GET, "nonsense", 401),
        (Method::DELETE, READ_KEY, 403),
        (Method::DELETE, &*token("202"), 403),
        (Method::DELETE, "nonsense", 401),
        (Method::DELETE, &*own, 204),
    ] {
        let (status, body) = setup.ask(method.clone(), credential, "101/notifications/1").await;
        assert_eq!(status, expected, "{method} {body}");
    }
    for (path, expected) in
        [("101/notifications/none", 404), ("nobody/notifications/1", 404), ("101/notifications/%00", 400)]
    {
        let (status, body) = setup.ask(Method::GET, READ_KEY, path).await;
        assert_eq!(status, expected, "{path} {body}");
        let (status, body) = setup.ask(Method::DELETE, SESSIONS_KEY, path).await;
        assert_eq!(status, expected, "{path} {body}");
    }
}
