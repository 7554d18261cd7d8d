//! The relay over a real pair of sockets on the loopback interface.

use std::future::Future;

use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpSocket, TcpStream},
};

use super::*;
use crate::{
    edge::protocol::{Form, Sse},
    event::Notification,
    fakes::{Collector, Heard, durable, transient, user},
    session::{Kind, Outgoing, Outlet, Pushed},
    wire::{CloseCode, Control, Frame, Gap, GapReason},
};

mod rest;
mod stream;
mod tls;

const LIMITS: QueueLimits = QueueLimits { items: 64, bytes: 256 * 1024 };
const PLAIN: Protocol = Protocol::Sse(Sse { chunked: false, named: false });
/// Small, so that the sockets are full soon; the kernel doubles it.
const SOCKET_BYTES: u32 = 16 * 1024;
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

struct Pair {
    relay: Arc<Relay>,
    client: TcpStream,
    /// What the relay should have written, whole frames in order.
    taken: Vec<u8>,
    /// What the relay's side has read.
    heard: Vec<u8>,
}

impl Pair {
    async fn new(protocol: Protocol) -> Self {
        let listener = {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_send_buffer_size(SOCKET_BYTES).unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            socket.listen(1).unwrap()
        };
        let client = Self::client(&listener).await;
        let (socket, _) = listener.accept().await.unwrap();
        let relay =
            Relay::new(who(), protocol, Sink::Socket(socket.into()), LIMITS, LogEpoch::random(), Arc::default());
        let relay = Arc::new(relay);
        relay.next_attachment();
        Self { relay, client, taken: Vec::new(), heard: Vec::new() }
    }

    async fn client(listener: &TcpListener) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(SOCKET_BYTES).unwrap();
        socket.connect(listener.local_addr().unwrap()).await.unwrap()
    }

    /// Pushes a notification with so many bytes of payload.
    fn push(&mut self, attachment: u64, seq: Option<Sequence>, bytes: usize) -> Pushed {
        let id = seq.map_or("t".to_owned(), |seq| seq.to_string());
        let mut event = if seq.is_some() { durable(&user(), &id) } else { transient(&user(), &id) };
        Arc::make_mut(&mut event).payload = format!("\"{}\"", "x".repeat(bytes)).into();
        let notification = Notification { seq, event };
        let frame = Frame::notification(&notification);
        let outgoing = Outgoing { frame: &frame, kind: Kind::Notification(seq, &notification.event) };
        let queued = self.relay.state.lock().passed;
        let pushed = self.relay.push(attachment, &outgoing);
        if pushed == Pushed::Taken && seq.is_none_or(|seq| seq > queued) {
            self.taken.extend_from_slice(&self.relay.protocol.encode(&self.relay.epoch, &outgoing));
        }
        pushed
    }

    /// Pushes until the relay is full; the first number that it did not take.
    fn fill(&mut self, from: Sequence, bytes: usize) -> Sequence {
        (from..).find(|seq| self.push(1, Some(*seq), bytes) == Pushed::Full).unwrap()
    }

    /// Reads as a client, while the relay writes what the socket takes, until the client has so much.
    async fn read(&mut self, length: usize) -> Vec<u8> {
        let mut got = Vec::new();
        while got.len() < length {
            self.read_some(&mut got).await;
        }
        got
    }

    /// One turn of the connection's task, and what the client can read until the next one.
    async fn read_some(&mut self, got: &mut Vec<u8>) {
        self.relay.todo().unwrap();
        // As the connection's task does: readiness may be claimed wrongly, and only a read takes it back.
        let mut said = [0; 64];
        if let Ok(read) = self.relay.try_read(&mut said) {
            self.heard.extend_from_slice(&said[..read]);
        }
        let mut part = [0; 5000];
        within(async {
            tokio::select! {
                read = self.client.read(&mut part) => got.extend_from_slice(&part[..read.unwrap()]),
                ready = self.relay.ready() => ready.unwrap(),
            }
        })
        .await;
    }
}

fn who() -> Client {
    Client { session: SessionId::random(), user: user(), device: None, is_started: false, expires_at: UnixMillis::MAX }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("nothing moves any more")
}

/// A session that only listens.
async fn session() -> (session::SessionRef, Heard<session::Msg>) {
    Collector::<session::Msg>::spawn().await
}

async fn drained(heard: &Heard<session::Msg>) -> usize {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    heard.lock().iter().filter(|msg| matches!(msg, session::Msg::Drained)).count()
}

fn numbers(bytes: &[u8]) -> Vec<Sequence> {
    let text = std::str::from_utf8(bytes).unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let frames = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    frames.filter_map(|frame| frame["seq"].as_u64()).collect()
}

#[tokio::test]
async fn only_the_latest_attachment_counts() {
    let mut pair = Pair::new(PLAIN).await;
    assert_eq!(pair.push(1, Some(1), 1), Pushed::Taken);
    let (latest, passed, _) = pair.relay.next_attachment();
    assert_eq!((latest, passed), (2, 1));
    assert_eq!(pair.push(1, Some(2), 1), Pushed::Gone);
    let (old, _) = session().await;
    assert!(!pair.relay.attached(1, old.into(), 0));
    Outlet::close(&pair.relay, 1, Close::new(CloseCode::GoingAway, "old"));
    Outlet::lost(&pair.relay, 1);
    let todo = pair.relay.todo().unwrap();
    assert!(todo.lost.is_none() && todo.close.is_none(), "{todo:?}");
    assert_eq!(pair.push(2, Some(2), 1), Pushed::Taken);
    let length = pair.taken.len();
    let got = pair.read(length).await;
    assert_eq!(numbers(&got), [1, 2]);
}

#[tokio::test]
async fn a_number_that_was_passed_on_is_not_written_again() {
    let mut pair = Pair::new(PLAIN).await;
    for seq in [1, 2, 2, 1, 3] {
        pair.push(1, Some(seq), 1);
    }
    let frame = Frame::control(&Control::Gap(Gap { from: 4, to: 6, reason: GapReason::Expired }));
    let gap = Outgoing { frame: &frame, kind: Kind::Control("$gap", Some(6)) };
    assert_eq!(pair.relay.push(1, &gap), Pushed::Taken);
    pair.taken.extend_from_slice(&pair.relay.protocol.encode(&pair.relay.epoch, &gap));
    for seq in [5, 6, 7] {
        pair.push(1, Some(seq), 1);
    }
    let length = pair.taken.len();
    let got = pair.read(length).await;
    assert_eq!((numbers(&got), pair.relay.passed()), (vec![1, 2, 3, 7], 7));
    assert_eq!(got, pair.taken);
}

#[tokio::test]
async fn what_a_new_session_begins_after_counts_as_passed_on() {
    let mut pair = Pair::new(PLAIN).await;
    let (actor, _) = session().await;
    assert!(pair.relay.attached(1, actor.into(), 5));
    assert!(pair.relay.acknowledge(5) && !pair.relay.acknowledge(6));
    pair.push(1, Some(5), 1);
    pair.push(1, Some(6), 1);
    assert!(pair.relay.acknowledge(6));
    let length = pair.taken.len();
    assert_eq!(numbers(&pair.read(length).await), [6]);
}

#[tokio::test]
async fn a_queue_is_bounded_by_bytes_and_says_once_that_it_has_drained() {
    let mut pair = Pair::new(PLAIN).await;
    let (actor, heard) = session().await;
    pair.relay.attached(1, actor.into(), 0);
    let first = pair.fill(1, 20_000);
    for _ in 0..3 {
        assert_eq!(pair.push(1, Some(first), 20_000), Pushed::Full);
    }
    {
        let state = pair.relay.state.lock();
        assert!(state.queued_bytes >= LIMITS.bytes && state.queued_bytes < LIMITS.bytes + 21_000);
        assert_eq!(state.passed, first - 1, "what was not taken was not passed on");
    }
    assert_eq!(drained(&heard).await, 0);
    let length = pair.taken.len();
    let got = pair.read(length).await;
    assert!(got == pair.taken, "whole frames in order, however the socket took them");
    pair.relay.todo().unwrap();
    assert_eq!(drained(&heard).await, 1);
    assert_eq!(pair.push(1, Some(first), 20_000), Pushed::Taken);
}

#[tokio::test]
async fn a_queue_is_bounded_by_items() {
    let mut pair = Pair::new(PLAIN).await;
    pair.fill(1, 2000);
    assert_eq!(pair.relay.state.lock().queue.len(), LIMITS.items);
    let length = pair.taken.len();
    assert!(pair.read(length).await == pair.taken);
}

#[tokio::test]
async fn drained_is_said_only_when_half_of_the_queue_is_free() {
    let mut pair = Pair::new(PLAIN).await;
    let (actor, heard) = session().await;
    pair.relay.attached(1, actor.into(), 0);
    pair.fill(1, 20_000);
    let mut got = Vec::new();
    while drained(&heard).await == 0 {
        assert!(got.len() < pair.taken.len(), "never said");
        pair.read_some(&mut got).await;
    }
    let left = pair.relay.state.lock().queued_bytes;
    assert!(left * 2 <= LIMITS.bytes && left > 0, "{left} bytes are left: neither too early nor only at the end");
}

#[tokio::test]
async fn the_first_close_counts_and_nothing_is_taken_after_it() {
    let mut pair = Pair::new(PLAIN).await;
    let (actor, heard) = session().await;
    pair.relay.attached(1, actor.into(), 0);
    Outlet::close(&pair.relay, 1, Close::new(CloseCode::Replaced, "first"));
    Relay::close(&pair.relay, Close::new(CloseCode::GoingAway, "second"));
    assert_eq!(pair.push(1, Some(1), 1), Pushed::Gone);
    let (late, _) = session().await;
    assert!(!pair.relay.attached(1, late.into(), 0));
    Outlet::lost(&pair.relay, 1);
    let todo = pair.relay.todo().unwrap();
    assert_eq!(todo.close.map(|close| close.code), Some(CloseCode::Replaced));
    assert!(todo.lost.is_none(), "a connection that is being closed does not attach again");
    tokio::task::yield_now().await;
    let ends = heard.lock().iter().filter(|msg| matches!(msg, session::Msg::Disconnected)).count();
    assert_eq!(ends, 1, "its session is told once");
}

#[tokio::test]
async fn a_close_in_order_goes_through_the_session_that_serves_and_is_direct_without_one() {
    let close = || Close::new(CloseCode::GoingAway, "draining");
    let unserved = Pair::new(Protocol::WebSocket(Form::Json)).await;
    unserved.relay.close_in_order(close());
    assert_eq!(unserved.relay.todo().unwrap().close, Some(close()));

    let served = Pair::new(Protocol::WebSocket(Form::Json)).await;
    let (session, heard) = session().await;
    assert!(served.relay.attached(1, session.clone().into(), 0));
    served.relay.close_in_order(close());
    assert_eq!(served.relay.todo().unwrap().close, None, "what the session has been given comes first");
    let told = |heard: &Heard<session::Msg>| {
        heard.lock().iter().any(|msg| matches!(msg, session::Msg::Close(told) if *told == close()))
    };
    within(async {
        while !told(&heard) {
            tokio::task::yield_now().await;
        }
    })
    .await;

    session.stop_and_wait(None, None).await.unwrap();
    served.relay.close_in_order(close());
    assert_eq!(served.relay.todo().unwrap().close, Some(close()), "nobody is left to pass it on");
}

#[tokio::test]
async fn a_close_in_order_is_not_forgotten_when_the_session_is_lost() {
    let close = Close::new(CloseCode::GoingAway, "draining");
    let pair = Pair::new(PLAIN).await;
    let (session, _heard) = session().await;
    assert!(pair.relay.attached(1, session.into(), 0));
    pair.relay.close_in_order(close.clone());
    assert_eq!(pair.relay.todo().unwrap().close, None);
    Outlet::lost(&pair.relay, 1);
    let todo = pair.relay.todo().unwrap();
    assert_eq!((todo.close, todo.lost.is_some()), (Some(close), false));
}

#[tokio::test]
async fn a_lost_attachment_is_attached_again_once() {
    let pair = Pair::new(PLAIN).await;
    Outlet::lost(&pair.relay, 1);
    within(pair.relay.ready()).await.unwrap();
    assert!(pair.relay.todo().unwrap().lost.is_some());
    assert!(pair.relay.todo().unwrap().lost.is_none());
}

#[tokio::test]
async fn a_connection_that_is_lost_and_then_closed_or_ended_is_not_attached_again() {
    let [closed, ended] = [Pair::new(PLAIN).await, Pair::new(PLAIN).await];
    [&closed, &ended].iter().for_each(|pair| Outlet::lost(&pair.relay, 1));
    Relay::close(&closed.relay, Close::new(CloseCode::GoingAway, "draining"));
    ended.relay.end();
    assert!(closed.relay.todo().unwrap().lost.is_none() && ended.relay.todo().unwrap().lost.is_none());
}

#[tokio::test]
async fn a_burst_is_written_before_it_counts_as_too_much_for_its_reader() {
    let mut pair = Pair::new(PLAIN).await;
    for seq in 1..=3 * LIMITS.items as u64 {
        assert_eq!(pair.push(1, Some(seq), 1), Pushed::Taken, "{seq}");
    }
    let length = pair.taken.len();
    assert!(pair.read(length).await == pair.taken);
}

#[tokio::test]
async fn what_a_client_makes_us_write_with_its_pings_is_bounded() {
    let mut pair = Pair::new(Protocol::WebSocket(Form::Json)).await;
    let first = pair.fill(1, 20_000);
    let pong = [0x8a, 0x7d];
    let mut accepted = 0;
    while pair.relay.write_control(&pong).is_ok() {
        accepted += 1;
        assert!(accepted <= 1000, "without bound");
    }
    assert_eq!(accepted, CONTROLS_MAX);
    assert!(pair.relay.state.lock().queue.len() <= LIMITS.items + CONTROLS_MAX);
    let taken = std::mem::take(&mut pair.taken);
    let got = pair.read(taken.len() + CONTROLS_MAX * pong.len()).await;
    assert!(got[..taken.len()] == taken && got[taken.len()..] == pong.repeat(CONTROLS_MAX));
    assert_eq!(pair.relay.state.lock().controls, 0);
    assert!(pair.relay.write_control(&pong).is_ok());
    assert_eq!(pair.push(1, Some(first), 1), Pushed::Taken);
}

#[tokio::test]
async fn nothing_is_read_from_a_flooding_client_until_its_pongs_are_written() {
    let mut pair = Pair::new(Protocol::WebSocket(Form::Json)).await;
    pair.fill(1, 20_000);
    assert!((0..CONTROLS_MAX).all(|_| pair.relay.write_control(&[0x8a, 0x00]).is_ok()));
    pair.client.try_write(&[0x89, 0x80, 0, 0, 0, 0]).unwrap();
    let mut turns = 0;
    let _ = tokio::time::timeout(Duration::from_millis(200), async {
        loop {
            pair.relay.ready().await.unwrap();
            pair.relay.todo().unwrap();
            turns += 1;
            tokio::task::yield_now().await;
        }
    })
    .await;
    // The kernel may still move something; what can be read would wake us at every turn.
    assert!(turns < 50, "{turns} turns");
    let all = pair.taken.len() + 2 * CONTROLS_MAX;
    pair.read(all).await;
    within(async {
        while pair.heard.is_empty() {
            pair.relay.ready().await.unwrap();
            let mut said = [0; 64];
            let read = pair.relay.try_read(&mut said).unwrap_or_default();
            pair.heard.extend_from_slice(&said[..read]);
        }
    })
    .await;
    assert_eq!(pair.heard.len(), 6);
}

#[tokio::test]
async fn a_silent_peer_is_gone_at_the_second_heartbeat() {
    let mut pair = Pair::new(Protocol::WebSocket(Form::Json)).await;
    pair.fill(1, 20_000);
    pair.relay.beat();
    pair.relay.heard();
    pair.relay.beat();
    assert!(!pair.relay.todo().unwrap().ended);
    pair.relay.beat();
    assert!(pair.relay.todo().unwrap().ended);
}

#[tokio::test]
async fn who_has_to_answer_a_heartbeat_gets_one_behind_what_waits() {
    let mut pair = Pair::new(Protocol::WebSocket(Form::Json)).await;
    // Nothing else of a client that acknowledges nothing is ever heard.
    assert_eq!(pair.push(1, None, 1), Pushed::Taken);
    pair.relay.beat();
    let expected = [&pair.taken[..], pair.relay.protocol.heartbeat()].concat();
    assert!(pair.read(expected.len()).await == expected);
}

#[tokio::test]
async fn heartbeats_that_nobody_answers_do_not_pile_up() {
    let mut quiet = Pair::new(PLAIN).await;
    quiet.fill(1, 20_000);
    let queued = quiet.relay.state.lock().queue.len();
    (0..3).for_each(|_| quiet.relay.beat());
    assert_eq!(quiet.relay.state.lock().queue.len(), queued, "what waits already shows that we are here");
    // Who cannot answer is not expected to.
    assert!(!quiet.relay.todo().unwrap().ended);
}

#[tokio::test]
async fn a_queue_that_was_long_gives_its_memory_back() {
    let mut pair = Pair::new(PLAIN).await;
    pair.fill(1, 2000);
    assert!(pair.relay.state.lock().queue.capacity() >= LIMITS.items);
    let length = pair.taken.len();
    pair.read(length).await;
    pair.relay.todo().unwrap();
    assert!(pair.relay.state.lock().queue.capacity() <= KEPT_CAPACITY);
}

#[tokio::test]
async fn an_ended_relay_keeps_nothing() {
    let mut pair = Pair::new(PLAIN).await;
    let (actor, heard) = session().await;
    pair.relay.attached(1, actor.into(), 0);
    let next = pair.fill(1, 20_000);
    pair.relay.end();
    assert_eq!(pair.push(1, Some(next), 1), Pushed::Gone);
    pair.relay.write_start(Duration::from_secs(1));
    let todo = pair.relay.todo().unwrap();
    assert!(todo.ended && todo.lost.is_none() && pair.relay.is_flushed());
    assert_eq!(pair.relay.state.lock().queued_bytes, 0);
    tokio::task::yield_now().await;
    assert!(matches!(heard.lock().last(), Some(session::Msg::Disconnected)));
}
