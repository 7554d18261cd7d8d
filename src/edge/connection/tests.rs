//! A connection's task beside a shard that only listens.

use std::{future::poll_fn, pin::pin};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::*;
use crate::{
    edge::{
        fakes::{connected, shared_with, stream},
        protocol::Form,
    },
    event::{Notification, UnixMillis},
    fakes::{Collector, Heard, durable, settled, user},
    ids::SessionId,
    session::{self, Kind, Outgoing, Outlet as _, Pushed},
    shard::{self, Shards},
    store::sessions::{MemorySessions, Started},
    wire::Frame,
};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// A pong that nobody asked for, empty and masked (RFC 6455, 5.5.3): a message that is not answered.
const PONG: [u8; 6] = [0x8a, 0x80, 0, 0, 0, 0];
/// An empty close, masked (RFC 6455, 5.5.1).
const CLOSE: [u8; 6] = [0x88, 0x80, 0, 0, 0, 0];

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

/// A WebSocket's connection that is not run yet, and its client.
async fn talking(shared: Arc<Shared>) -> (Connection, TcpStream) {
    let (relay, client) = connected(&shared, Protocol::WebSocket(Form::Json)).await;
    (Connection::new(relay, shared, None, Vec::new()), client)
}

/// How often a future gives way before it is done.
async fn pauses<T>(future: impl Future<Output = T>) -> usize {
    let (mut future, mut polls) = (pin!(future), 0);
    let counted = poll_fn(|cx| {
        polls += 1;
        future.as_mut().poll(cx)
    });
    timeout(PATIENCE, counted).await.expect("it ends");
    polls
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
    assert!(relay.attached(3, actor.into(), 9));
    drop(attach);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(matches!(request(&asked).from, Origin::Connection { passed: 9, acknowledged: 0 }));
}

/// As when its user's shard moves: whoever serves it next wants it at once.
#[tokio::test(start_paused = true)]
async fn a_connection_that_is_wanted_again_asks_once_and_only_if_it_was_ever_served() {
    let (shared, session, asked) = scene().await;
    let relay = start(&shared, session, None);
    settled().await;
    let wanted = || attach_again(shared.clone(), vec![relay.clone()], Some(Incarnation::random()));
    let first = request(&asked);
    wanted().await;
    assert!(asked.lock().is_empty(), "it has asked, and nobody has answered yet");
    let (actor, _) = Collector::<session::Msg>::spawn().await;
    assert!(relay.attached(1, actor.into(), 9));
    // Lost, it waits a little before it asks by itself.
    drop(first);
    for _ in 0..10 {
        // The clock stands still.
        tokio::task::yield_now().await;
    }
    wanted().await;
    tokio::time::sleep(SERVED).await;
    let again = request(&asked);
    assert!(matches!(again.from, Origin::Connection { passed: 9, acknowledged: 0 }));
    assert!(again.attachment.is_latest());
    Relay::close(&relay, Close::new(CloseCode::Replaced, "ended by the API"));
    wanted().await;
    assert!(asked.lock().is_empty(), "it ends");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_wanted_by_another_gets_what_its_former_owner_has_sent() {
    let (shared, session, asked) = scene().await;
    let relay = start(&shared, session, None);
    settled().await;
    let first = request(&asked);
    let (actor, _) = Collector::<session::Msg>::spawn().await;
    assert!(relay.attached(1, actor.clone().into(), 9));
    let wanted = tokio::spawn(attach_again(shared.clone(), vec![relay.clone()], Some(Incarnation::random())));
    tokio::time::sleep(LAST_FRAMES / 2).await;
    let event = durable(&user(), "last");
    let frame = Frame::notification(&Notification { seq: Some(10), event: event.clone() });
    let pushed = relay.push(1, &Outgoing { frame: &frame, kind: Kind::Notification(Some(10), &event) });
    assert_eq!((pushed, asked.lock().len()), (Pushed::Taken, 0));
    drop(first);
    wanted.await.unwrap();
    settled().await;
    let second = request(&asked);
    assert!(matches!(second.from, Origin::Connection { passed: 10, .. }));
    // One that says nothing is not waited for for ever.
    assert!(relay.attached(2, actor.into(), 10));
    attach_again(shared.clone(), vec![relay.clone()], None).await;
    assert!(second.attachment.is_latest(), "this node serves it already");
    let began = tokio::time::Instant::now();
    attach_again(shared.clone(), vec![relay.clone()], Some(Incarnation::random())).await;
    assert!(began.elapsed() >= LAST_FRAMES && began.elapsed() < 2 * LAST_FRAMES, "{:?}", began.elapsed());
    settled().await;
    assert!(!second.attachment.is_latest() && request(&asked).attachment.is_latest());
}

/// Ends, or says something, while its session is at rest.
#[tokio::test(start_paused = true)]
async fn a_connection_tells_the_shard_what_its_resting_session_cannot_hear() {
    for ends in [false, true] {
        let (shared, session, asked) = scene().await;
        let relay = start(&shared, session, None);
        settled().await;
        let _first = request(&asked);
        let (actor, _) = Collector::<session::Msg>::spawn().await;
        assert!(relay.attached(1, actor.into(), 9));
        assert_eq!(relay.rest(1, 0), Some(2));
        settled().await;
        assert!(asked.lock().is_empty(), "nothing to tell");
        if ends {
            Relay::close(&relay, Close::new(CloseCode::Replaced, "ended by the API"));
        } else {
            assert!(relay.acknowledge(4));
        }
        tokio::time::sleep(GOODBYE * 2).await;
        let told: Vec<_> = asked.lock().drain(..).collect();
        match &told[..] {
            [shard::Msg::Wake(of)] => assert!(!ends && *of == user()),
            [shard::Msg::Ended(of)] => assert!(ends && *of == user()),
            _ => panic!("{} messages", told.len()),
        }
    }
}

/// Nobody flushes here: what is pushed waits in the queue.
#[tokio::test]
async fn a_client_that_leaves_is_answered_behind_what_was_queued() {
    let (shared, ..) = scene().await;
    let (mut connection, mut client) = talking(shared).await;
    let relay = connection.relay.clone();
    relay.next_attachment();
    let (actor, _) = Collector::<session::Msg>::spawn().await;
    assert!(relay.attached(1, actor.into(), 0));
    let notification = Notification { seq: Some(1), event: durable(&user(), "1") };
    let frame = Frame::notification(&notification);
    let outgoing = Outgoing { frame: &frame, kind: Kind::Notification(Some(1), &notification.event) };
    assert_eq!(relay.push(1, &outgoing), Pushed::Taken);
    client.write_all(&CLOSE).await.unwrap();
    while !matches!(connection.read().unwrap(), Turn::Left) {
        relay.ready().await.unwrap();
    }
    let expected = [&frame.websocket()[..], &[0x88, 0]].concat();
    let mut got = vec![0; expected.len()];
    let read = timeout(PATIENCE, client.read_exact(&mut got)).await;
    read.expect("an answer to the close").unwrap();
    assert_eq!(got, expected);
}

#[tokio::test]
async fn a_turn_takes_so_many_messages_however_many_are_there() {
    const TURNS: usize = 5;
    let (shared, ..) = scene().await;
    let (relay, _client) = connected(&shared, Protocol::WebSocket(Form::Json)).await;
    let mut connection = Connection::new(relay, shared, None, PONG.repeat(TURNS * READS_PER_TURN));
    for turn in 0..TURNS {
        assert!(matches!(connection.read().unwrap(), Turn::MoreToRead), "{turn}");
    }
    assert!(matches!(connection.read().unwrap(), Turn::Done));
}

#[tokio::test]
async fn others_have_their_turn_while_a_client_talks_and_after_its_goodbye() {
    // tokio makes who waits for sockets pause too, but later.
    const MESSAGES: usize = 25 * READS_PER_TURN;
    let (shared, ..) = scene().await;
    for is_closed in [false, true] {
        let (mut connection, mut client) = talking(shared.clone()).await;
        client.write_all(&[PONG.repeat(MESSAGES), CLOSE.to_vec()].concat()).await.unwrap();
        if is_closed {
            Relay::close(&connection.relay, Close::new(CloseCode::GoingAway, "draining"));
        }
        let pauses = pauses(connection.serve()).await;
        assert!(pauses > MESSAGES / READS_PER_TURN, "{pauses}, closed: {is_closed}");
    }
}

#[tokio::test]
async fn who_goes_on_sending_after_its_goodbye_is_not_read_to_the_end() {
    let (shared, ..) = scene().await;
    let (mut connection, mut client) = talking(shared).await;
    client.write_all(&PONG.repeat(4 * GOODBYE_READS_MAX)).await.unwrap();
    client.shutdown().await.unwrap();
    pauses(connection.goodbye(&Close::new(CloseCode::GoingAway, "draining"))).await;
    let mut left = 0;
    loop {
        timeout(PATIENCE, connection.relay.ready()).await.expect("an end").unwrap();
        match connection.relay.try_read(&mut [0; 4096]) {
            Ok(0) => break,
            Ok(read) => left += read,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
    assert!(left >= 2 * GOODBYE_READS_MAX * PONG.len(), "{left} bytes are left");
}

#[tokio::test]
async fn nothing_is_acknowledged_behind_what_a_client_is_sent_away_for() {
    /// `{"ack":5}`, masked with zeros (RFC 6455, 5.3).
    const ACK: &[u8] = b"\x81\x89\0\0\0\0{\"ack\":5}";
    const TEXT: &[u8] = b"\x81\x85\0\0\0\0hello";
    const RESERVED: &[u8] = b"\x83\x80\0\0\0\0";
    let (shared, ..) = scene().await;
    for (before, acknowledged) in [(&b""[..], vec![0, 5]), (TEXT, vec![0]), (RESERVED, vec![0])] {
        let (mut connection, mut client) = talking(shared.clone()).await;
        connection.relay.next_attachment();
        let (actor, heard) = Collector::<session::Msg>::spawn().await;
        assert!(connection.relay.attached(1, actor.clone().into(), 5));
        client.write_all(&[before, ACK].concat()).await.unwrap();
        client.shutdown().await.unwrap();
        pauses(connection.serve()).await;
        actor.drain_and_wait(Some(PATIENCE)).await.unwrap();
        let heard = heard.lock();
        let heard = heard.iter().filter_map(|msg| match msg {
            session::Msg::Acknowledged(seq) => Some(*seq),
            _ => None,
        });
        assert_eq!(heard.collect::<Vec<_>>(), acknowledged, "behind {before:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_that_nobody_takes_is_not_waited_for_without_end() {
    let (shared, session, _) = scene().await;
    let relay = stream(&shared, &user(), session);
    let running = tokio::spawn(run(relay.clone(), shared, None, Vec::new(), ()));
    settled().await;
    Relay::close(&relay, Close::new(CloseCode::GoingAway, "draining"));
    timeout(2 * GOODBYE, running).await.expect("it ends").unwrap();
}
