//! A connection's task beside a shard that only listens.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    edge::{
        fakes::{shared_with, stream},
        protocol::Form,
        relay::{Client, Sink},
    },
    event::{Notification, UnixMillis},
    fakes::{Collector, Heard, durable, settled, user},
    ids::{LogEpoch, SessionId},
    session::{self, Kind, Outgoing, Outlet as _, Pushed},
    shard::{self, Shards},
    store::sessions::{MemorySessions, Started},
    wire::Frame,
};

/// What connections share, with the id of a session that was started, and what the shard is asked for.
async fn scene() -> (Arc<Shared>, SessionId, Heard<shard::Msg>) {
    let (shard, asked) = Collector::<shard::Msg>::spawn().await;
    let shared = shared_with(Arc::new(MemorySessions::default()), Shards::new(vec![shard], 1));
    let started = Started { session: SessionId::random(), user: user(), expires_at: UnixMillis::MAX };
    shared.started.start(started.clone()).await.unwrap();
    (shared, started.session, asked)
}

/// Runs the connection of a session.
fn start(shared: &Arc<Shared>, session: SessionId, since: Option<Since>) -> Arc<Relay> {
    let relay = stream(shared, &user(), session);
    tokio::spawn(run(relay.clone(), shared.clone(), since, Vec::new(), ()));
    relay
}

/// The only request for a session that has come since the last time.
fn request(asked: &Heard<shard::Msg>) -> Box<Attach> {
    let mut requests: Vec<_> = asked.lock().drain(..).collect();
    match (requests.pop(), requests.is_empty()) {
        (Some(shard::Msg::Attach(attach)), true) => attach,
        _ => panic!("not one request"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_ended_between_its_lookup_and_its_connection_is_sent_away() {
    let (shared, session, asked) = scene().await;
    let [good, ended] = [session, SessionId::random()].map(|session| start(&shared, session, None));
    settled().await;
    assert_eq!(ended.close_reason().map(|close| close.code), Some(CloseCode::Replaced));
    assert_eq!(good.close_reason(), None);
    assert!(!asked.lock().is_empty(), "the good one asks to be served");
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_sessions_are_lost_in_a_row_asks_less_often_and_is_sent_away() {
    let (shared, session, asked) = scene().await;
    let relay = start(&shared, session, None);
    let began = tokio::time::Instant::now();
    let mut attempts = 0;
    while relay.close_reason().is_none() {
        settled().await;
        // Whoever should have served it drops the request.
        attempts += asked.lock().drain(..).count();
        assert!(began.elapsed() < SERVED, "for ever");
    }
    assert_eq!(attempts, 1 + LOST_MAX as usize);
    assert_eq!(relay.close_reason().map(|close| close.code), Some(CloseCode::TryAgainLater));
    assert!(began.elapsed() > Duration::from_millis(100), "not at once, again and again: {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_begins_where_its_client_said_until_it_was_served() {
    let (shared, session, asked) = scene().await;
    let relay = start(&shared, session, Since::parse("epoch-7"));
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let attach = request(&asked);
        assert!(matches!(&attach.from, Origin::Since(since) if since.seq == 7), "nobody has served it");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let attach = request(&asked);
    let (actor, _) = Collector::<session::Msg>::spawn().await;
    assert!(relay.attached(3, actor, 9));
    drop(attach);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(matches!(request(&asked).from, Origin::Connection { passed: 9, acknowledged: 0 }));
}

/// Nobody flushes here: what is pushed waits in the queue.
#[tokio::test]
async fn a_client_that_leaves_is_answered_behind_what_was_queued() {
    let (shared, ..) = scene().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (socket, _) = listener.accept().await.unwrap();
    let who = Client {
        session: SessionId::random(),
        user: user(),
        device: None,
        is_started: false,
        expires_at: UnixMillis::MAX,
    };
    let relay = Arc::new(Relay::new(
        who,
        Protocol::WebSocket(Form::Json),
        Sink::Socket(socket.into()),
        shared.queue_limits(),
        LogEpoch::random(),
        Arc::default(),
    ));
    let mut connection = Connection::new(relay.clone(), shared, None, Vec::new());
    relay.next_attachment();
    let (actor, _) = Collector::<session::Msg>::spawn().await;
    assert!(relay.attached(1, actor, 0));
    let notification = Notification { seq: Some(1), event: durable(&user(), "1") };
    let frame = Frame::notification(&notification);
    let outgoing = Outgoing { frame: &frame, kind: Kind::Notification(Some(1), &notification.event) };
    assert_eq!(relay.push(1, &outgoing), Pushed::Taken);
    // An empty close, masked (RFC 6455, 5.5.1).
    client.write_all(&[0x88, 0x80, 0, 0, 0, 0]).await.unwrap();
    while !matches!(connection.read().unwrap(), Turn::Left) {
        relay.ready().await.unwrap();
    }
    let expected = [&frame.websocket()[..], &[0x88, 0]].concat();
    let mut got = vec![0; expected.len()];
    let read = tokio::time::timeout(Duration::from_secs(30), client.read_exact(&mut got)).await;
    read.expect("an answer to the close").unwrap();
    assert_eq!(got, expected);
}
