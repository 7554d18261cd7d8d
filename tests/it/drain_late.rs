//! A drain also hears those who come late: connections that were open without being sessions. And a stream that has
//! ended is over at once.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::harness::{
    Feed, Node, Record,
    http::{self, Request},
    token,
    wait::within,
    ws::WsClient,
};

/// A drain that takes two seconds for its goodbyes, and may take much longer.
const CLIENTS: usize = 20;
const GOODBYES_PER_SECOND: i64 = 10;
const DEADLINE: &str = "40s";
/// Far below the deadline, far above what the goodbyes take.
const DRAINED: Duration = Duration::from_secs(15);

async fn node_with_clients(feed: &Feed) -> (Node, Vec<WsClient>) {
    let node = Node::builder(feed)
        .set("drain.goodbyes_per_second", GOODBYES_PER_SECOND)
        .set("drain.deadline", DEADLINE)
        .set("limits.handshake_deadline", "30s")
        .start()
        .await;
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        clients.push(node.connect(&format!("u{n}")).await);
    }
    (node, clients)
}

/// A connection on which one request has been answered and which stays open.
async fn kept_alive(node: &Node) -> TcpStream {
    let request = Request { method: "GET", path: "/nothing", headers: &[], body: "" };
    let mut opened = http::open(node.addr(), request).await.expect("the client port answers");
    assert_eq!(opened.head.status, 404);
    let length: usize = opened.head.header("content-length").and_then(|text| text.parse().ok()).expect("a length");
    while opened.rest.len() < length {
        assert_ne!(opened.socket.read_buf(&mut opened.rest).await.expect("the body"), 0, "the body ended early");
    }
    opened.socket
}

/// What the server says until it closes.
async fn rest(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset after the answer is an end too.
    let _ = within("the end of the connection", socket.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// 503 with the time to come back, or a session that hears a goodbye; a connection that just ends would leave the
/// client without either.
fn was_told(answer: &str) -> bool {
    let refused = answer.starts_with("HTTP/1.1 503 ") && answer.to_lowercase().contains("\r\nretry-after: ");
    refused || (answer.starts_with("HTTP/1.1 200 ") && answer.contains("event: $bye"))
}

#[tokio::test]
async fn connections_that_ask_for_a_session_during_the_drain_are_told_to_come_back() {
    let feed = Feed::new(1).await;
    let (node, clients) = node_with_clients(&feed).await;
    let mut kept = kept_alive(&node).await;
    let mut half_open = TcpStream::connect(node.addr()).await.expect("the port accepts");
    let request = format!(
        "GET /v1/stream HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\r\n",
        node.addr(),
        node.token("late")
    );
    let (beginning, end) = request.split_at(40);
    half_open.write_all(beginning.as_bytes()).await.expect("an open socket");
    // Another that never says anything must not hold the drain up.
    let _silent = TcpStream::connect(node.addr()).await.expect("the port accepts");

    let (process, node) = node.into_process();
    let started = Instant::now();
    process.signal("TERM");
    node.unready("drain").await;
    kept.write_all(request.as_bytes()).await.expect("an open connection");
    half_open.write_all(end.as_bytes()).await.expect("an open connection");
    let (first, second) = tokio::join!(rest(&mut kept), rest(&mut half_open));
    assert!(was_told(&first), "the kept-alive connection heard {first:?}");
    assert!(was_told(&second), "the half-open connection heard {second:?}");
    for mut client in clients {
        assert_eq!(client.closed().await.1, Some(1001));
    }
    let finished = process.finish(DRAINED).await;
    assert_eq!(finished.code(), 0, "{finished:?}");
    assert!(started.elapsed() < DRAINED, "{:?}", started.elapsed());
}

#[tokio::test]
async fn sessions_that_begin_while_kafka_is_let_go_are_told_to_come_back() {
    let kafka = crate::harness::Kafka::shared();
    let feed = Feed::named(&kafka, 1);
    kafka.create_topic(&feed.topic, 1, &[]).await;
    let node = Node::builder(&feed).set("drain.deadline", "12s").start().await;
    // Without a dead-letter topic this stays unsettled: Kafka has half of the drain's time, and takes it.
    feed.put(&Record::new("{broken")).await;
    node.metric_reaches("notifier_unsettled_events", 1.0).await;
    let (process, node) = node.into_process();
    process.signal("TERM");
    node.unready("drain").await;
    let mut kept = TcpStream::connect(node.addr()).await.expect("the port accepts");
    let request = format!(
        "GET /v1/stream HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\n",
        node.addr(),
        node.token("late")
    );
    kept.write_all(request.as_bytes()).await.expect("an open connection");
    let answer = rest(&mut kept).await;
    assert!(was_told(&answer), "{answer:?}");
    let finished = process.finish(DRAINED).await;
    assert_eq!(finished.code(), 0, "{finished:?}");
}

#[tokio::test]
async fn a_stream_ends_within_a_second_of_its_last_byte() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("auth.jwt.leeway", "0s").start().await;
    let claims = json!({"sub": "101", "exp": token::now_secs() + 3});
    let authorization = format!("Bearer {}", token::signed(&claims, token::SECRET));
    let headers = [("Authorization", authorization.as_str())];
    let request = Request { method: "GET", path: "/v1/stream", headers: &headers, body: "" };
    let mut opened = http::open(node.addr(), request).await.expect("the client port answers");
    assert_eq!(opened.head.status, 200, "{:?}", opened.head);
    let mut last = Instant::now();
    // This client never closes by itself: the node must.
    within("the end of the stream", async {
        while opened.socket.read_buf(&mut opened.rest).await.expect("an end, not a reset") > 0 {
            last = Instant::now();
        }
    })
    .await;
    let text = String::from_utf8_lossy(&opened.rest);
    assert!(text.contains("event: $bye") && text.ends_with("0\r\n\r\n"), "{text}");
    assert!(last.elapsed() < Duration::from_secs(1), "open for {:?} after its last byte", last.elapsed());
}

#[tokio::test]
async fn a_drain_does_not_wait_for_streams_that_have_heard_goodbye() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("drain.deadline", DEADLINE).start().await;
    let mut streams = Vec::new();
    for n in 0..5 {
        streams.push(node.stream(&format!("u{n}"), "").await);
    }
    let (process, _node) = node.into_process();
    let started = Instant::now();
    process.signal("TERM");
    for stream in &mut streams {
        let bye = stream.rest().await.pop().expect("a goodbye");
        assert_eq!(bye.event.as_deref(), Some("$bye"));
    }
    // The streams' sockets stay open on this side.
    let finished = process.finish(DRAINED).await;
    assert_eq!(finished.code(), 0, "{finished:?}");
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}
