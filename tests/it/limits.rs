//! Admission: deadlines on what has not identified itself, and the rate of those who have.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::harness::{
    Feed, Node, eventually,
    http::{Request, send},
    wait::{eventually_within, within},
};

#[tokio::test]
async fn peers_that_never_finish_their_request_are_closed_at_the_deadline() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("limits.handshake_deadline", "1s").start().await;
    for beginning in ["", "GET /v1/connect HTTP/1.1\r\nHost: x\r\nX-Slow: "] {
        let mut socket = TcpStream::connect(node.addr()).await.expect("the port accepts");
        socket.write_all(beginning.as_bytes()).await.expect("an open socket");
        let started = Instant::now();
        let mut answer = Vec::new();
        // An answer such as 408 is allowed, an end is required.
        let _ = within("the end of a half-open connection", socket.read_to_end(&mut answer)).await;
        let open = started.elapsed();
        assert!(open >= Duration::from_millis(500), "closed at once: {open:?}");
        assert!(open < Duration::from_secs(10), "open for {open:?}");
        assert!(!answer.starts_with(b"HTTP/1.1 1") && !answer.starts_with(b"HTTP/1.1 2"));
    }
}

#[tokio::test]
async fn who_has_shown_who_it_is_has_a_deadline_for_each_further_request() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("limits.handshake_deadline", "1s").start().await;
    let authorization = format!("Bearer {}", node.token("101"));
    let headers = [("Authorization", authorization.as_str())];
    let request = Request { method: "POST", path: "/v1/sessions", headers: &headers, body: "{}" };
    let mut opened = crate::harness::http::open(node.addr(), request).await.expect("an answer");
    assert_eq!(opened.head.status, 201, "{:?}", opened.head);
    opened.socket.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.expect("the connection is kept");
    let _ = within("its end", opened.socket.read_to_end(&mut opened.rest)).await;
}

#[tokio::test]
async fn a_stranger_who_reads_no_answer_keeps_no_place() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("limits.handshake_deadline", "2s").start().await;
    let mut deaf = TcpStream::connect(node.addr()).await.expect("the port accepts");
    // More answers than the kernel holds.
    let requests = "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2000);
    let asking = async {
        let _ = deaf.write_all(requests.as_bytes()).await;
        std::future::pending::<()>().await;
    };
    let connections = async || node.metrics().await.sum_where("notifier_capacity_ratio", "resource", "connections");
    let freed = async {
        eventually("its connection", async || (connections().await > 0.0).then_some(())).await;
        // Before TCP gives up, which takes 30 s.
        eventually_within(Duration::from_secs(20), "its end", async || (connections().await == 0.0).then_some(()))
            .await;
    };
    tokio::select! { () = asking => {}, () = freed => {} }
}

#[tokio::test]
async fn connects_above_the_rate_are_told_when_to_come_back() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("limits.connects_per_second", 2).start().await;
    let authorization = format!("Bearer {}", node.token("101"));
    let headers = [
        ("Connection", "close, Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Authorization", authorization.as_str()),
    ];
    let mut open = Vec::new();
    let refused = eventually("a refused connect", async || {
        if let Ok(client) = node.ws("101").try_open().await {
            open.push(client);
            return None;
        }
        let path = "/v1/connect";
        let request = Request { method: "GET", path, headers: &headers, body: "" };
        let answer = crate::harness::http::open(node.addr(), request).await.ok()?;
        (answer.head.status != 101).then_some(answer.head)
    })
    .await;
    assert!([429, 503].contains(&refused.status), "{refused:?}");
    let seconds = refused.header("retry-after").and_then(|value| value.parse::<u64>().ok());
    assert!(seconds.is_some_and(|seconds| seconds >= 1), "{refused:?}");
    assert!(node.metrics().await.sum("notifier_rejected_connections_total") >= 1.0);
    // And it passes.
    eventually("an accepted connect", async || node.ws("101").try_open().await.ok()).await;
    let page = send(node.addr(), Request { method: "GET", path: "/", headers: &[], body: "" }).await;
    assert_eq!(page.status(), 200);
}
