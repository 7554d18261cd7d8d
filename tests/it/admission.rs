//! Admission over real sockets: each limit refuses what is above it, says when to come back, counts it under its own
//! reason, and lets others in.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::AsyncReadExt as _,
    net::{TcpSocket, TcpStream},
};

use crate::harness::{
    Feed, Node,
    carrier::{self, Ask, Carrier},
    eventually,
    http::{self, Head, Request},
    wait::within,
};

/// A connection from another of the host's addresses, on which nothing is said.
async fn half_open(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from((from, 0))).expect("an address of the loopback network");
    within("an accepted connection", socket.connect(to)).await.expect("the port accepts")
}

/// How many connections were refused for that reason.
async fn refused(node: &Node, reason: &str) -> f64 {
    node.metrics().await.sum_where("notifier_rejected_connections_total", "reason", reason)
}

/// Asks for a stream and gives the answer's head; the open connection is kept by the caller.
async fn ask(node: &Node, user: &str) -> (Head, TcpStream) {
    let authorization = format!("Bearer {}", node.token(user));
    let headers = [("Authorization", authorization.as_str())];
    let request = Request { method: "GET", path: "/v1/stream", headers: &headers, body: "" };
    let opened = within("an answer", http::open(node.addr(), request)).await;
    let opened = opened.expect("an answer, not a reset");
    (opened.head, opened.socket)
}

/// The refusal that every limit gives.
#[track_caller]
fn says_when_to_come_back(head: &Head) {
    assert_eq!(head.status, 503, "{head:?}");
    let seconds = head.header("retry-after").and_then(|value| value.parse::<u64>().ok());
    assert!(seconds.is_some_and(|seconds| seconds >= 1), "{head:?}");
}

#[tokio::test]
async fn half_open_connections_of_one_address_do_not_delay_another() {
    const LIMIT: usize = 4;
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed)
        .set("limits.handshakes_per_address", LIMIT as i64)
        .set("limits.handshake_deadline", "20s")
        .start()
        .await;
    let mut silent = Vec::new();
    for _ in 0..3 * LIMIT {
        silent.push(half_open([127, 0, 0, 2], node.addr()).await);
    }
    eventually("those above the limit counted", async || {
        (refused(&node, "handshakes_per_address").await >= (2 * LIMIT) as f64).then_some(())
    })
    .await;
    // Those above the limit are told and let go.
    let mut answer = String::new();
    let last = silent.last_mut().expect("a connection");
    within("the end of a refused connection", last.read_to_string(&mut answer)).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nRetry-After: "), "{answer}");

    let started = Instant::now();
    let mut clients = Vec::new();
    for n in 0..2 * LIMIT {
        clients.push(node.connect(&format!("u{n}")).await);
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "delayed by another address: {took:?}");
    assert_eq!(refused(&node, "handshakes_per_address").await, (2 * LIMIT) as f64);
    // The first address has its places back when its connections end.
    drop(silent);
    let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    eventually("a place for the first address", async || {
        let mut socket = half_open([127, 0, 0, 2], node.addr()).await;
        tokio::io::AsyncWriteExt::write_all(&mut socket, request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.ok()?;
        answer.starts_with("HTTP/1.1 200 ").then_some(())
    })
    .await;
}

#[tokio::test]
async fn connections_above_the_maximum_are_refused_until_one_ends() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("limits.connections_max", 3).start().await;
    let mut open = Vec::new();
    for n in 0..3 {
        open.push(node.connect(&format!("u{n}")).await);
    }
    for n in 1..=10 {
        let (head, _socket) = ask(&node, "late").await;
        says_when_to_come_back(&head);
        eventually("the refusal counted", async || (refused(&node, "connections").await == f64::from(n)).then_some(()))
            .await;
    }
    open.pop().expect("a client").leave().await;
    eventually("a free place", async || (ask(&node, "late").await.0.status == 200).then_some(())).await;
}

#[tokio::test]
async fn connections_of_one_address_are_bounded_and_others_let_in() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("limits.connections_per_address", 2).start().await;
    let _open = [node.connect("101").await, node.connect("101").await];
    let (head, _socket) = ask(&node, "101").await;
    says_when_to_come_back(&head);
    assert_eq!(refused(&node, "connections_per_address").await, 1.0);
    // Another address has places of its own.
    let mut other = half_open([127, 0, 0, 2], node.addr()).await;
    let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut other, request.as_bytes()).await.expect("an open socket");
    let mut answer = String::new();
    within("an answer", other.read_to_string(&mut answer)).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(refused(&node, "connections_per_address").await, 1.0);
}

#[tokio::test]
async fn the_grpc_port_has_the_same_limits_per_address() {
    for (key, reason) in [
        ("limits.connections_per_address", "connections_per_address"),
        ("limits.handshakes_per_address", "handshakes_per_address"),
    ] {
        let feed = Feed::new(1).await;
        let node = Node::builder(&feed).set(key, 2).set("limits.handshake_deadline", "30s").start().await;
        let (address, other) = ([127, 0, 0, 2], [127, 0, 0, 3]);
        let _open = [half_open(address, node.grpc_addr()).await, half_open(address, node.grpc_addr()).await];
        let mut third = half_open(address, node.grpc_addr()).await;
        assert_eq!(within("its end", third.read(&mut [0])).await.unwrap_or(0), 0, "{reason}: closed");
        let mut let_in = half_open(other, node.grpc_addr()).await;
        let greeted = within("HTTP/2's beginning", let_in.read(&mut [0])).await.expect("an open socket");
        assert_eq!(greeted, 1, "{reason}: another address has places of its own");
        assert_eq!(refused(&node, reason).await, 1.0);
    }
}

#[tokio::test]
async fn who_has_shown_who_it_is_takes_no_place_of_handshakes() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("limits.handshakes_max", 1).start().await;
    let token = node.token("101");
    let mut open = Vec::new();
    for carrier in Carrier::ALL {
        // Asked until it gets in: the place is free a moment after the answer that another one has read.
        open.push(eventually("room", async || carrier::open(&node, carrier, &Ask::token(&token)).await.ok()).await);
    }
    // Who only looked at the page, or was refused, and stays, has shown nothing.
    let refused_request =
        "POST /v1/sessions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\nContent-Length: 0\r\n\r\n";
    for request in ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", refused_request] {
        let stranger = eventually("an answer", async || {
            let mut stranger = half_open([127, 0, 0, 1], node.addr()).await;
            tokio::io::AsyncWriteExt::write_all(&mut stranger, request.as_bytes()).await.ok()?;
            let mut answer = [0; 12];
            within("an answer", stranger.read_exact(&mut answer)).await.ok()?;
            matches!(&answer, b"HTTP/1.1 200" | b"HTTP/1.1 401").then_some(stranger)
        })
        .await;
        says_when_to_come_back(&ask(&node, "102").await.0);
        drop(stranger);
    }
    assert!(refused(&node, "handshakes").await >= 2.0);
}

#[tokio::test]
async fn who_was_refused_and_goes_on_sending_is_cut_off() {
    /// What is read after a refusal takes 2 s, or 4 MiB.
    const CUT_WITHIN: Duration = Duration::from_secs(8);
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("limits.handshake_deadline", "60s").start().await;
    for (piece, pause) in [(1, Duration::from_millis(100)), (1 << 20, Duration::ZERO)] {
        let mut socket = half_open([127, 0, 0, 1], node.addr()).await;
        let head = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}", "x".repeat(40_000));
        tokio::io::AsyncWriteExt::write_all(&mut socket, head.as_bytes()).await.expect("an open socket");
        let mut answer = [0; 12];
        within("an answer", socket.read_exact(&mut answer)).await.expect("not destroyed by what was unread");
        assert_eq!(&answer, b"HTTP/1.1 431");
        let (started, piece, mut sent) = (Instant::now(), vec![b'x'; piece], 0);
        while tokio::io::AsyncWriteExt::write_all(&mut socket, &piece).await.is_ok() {
            sent += piece.len();
            assert!(started.elapsed() < CUT_WITHIN && sent < 64 << 20, "still read after {sent} bytes");
            tokio::time::sleep(pause).await;
        }
    }
}

#[tokio::test]
async fn connects_above_the_rate_are_refused_with_503_and_counted() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("limits.connects_per_second", 3).start().await;
    let mut open = Vec::new();
    let head = eventually("a connect above the rate", async || {
        let (head, socket) = ask(&node, "101").await;
        if head.status == 200 {
            open.push(socket);
            return None;
        }
        Some(head)
    })
    .await;
    says_when_to_come_back(&head);
    assert!(open.len() >= 3, "a second's worth is let in at once, not {}", open.len());
    assert_eq!(refused(&node, "connect_rate").await, 1.0);
    // A bad token costs nobody a place.
    for _ in 0..10 {
        let path = "/v1/stream";
        node.request("GET", path, &[("Authorization", "Bearer x")], "").await.problem(401);
    }
    assert_eq!(refused(&node, "unauthenticated").await, 10.0);
    assert_eq!(refused(&node, "connect_rate").await, 1.0);
}

#[tokio::test]
async fn a_handshake_over_its_deadline_is_closed_and_counted() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("limits.handshake_deadline", "1s").start().await;
    let mut silent = half_open([127, 0, 0, 1], node.addr()).await;
    let mut slow = half_open([127, 0, 0, 1], node.addr()).await;
    let started = Instant::now();
    // A header byte now and then does not buy time.
    let dripping = async {
        let mut sent: &[u8] = b"GET /v1/connect HTTP/1.1\r\nX-Slow: ";
        while tokio::io::AsyncWriteExt::write_all(&mut slow, sent).await.is_ok() {
            sent = b"x";
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let mut nothing = Vec::new();
    let ends = async {
        let _ = silent.read_to_end(&mut nothing).await;
        started.elapsed()
    };
    let (silent_for, ()) = within("the end of both", async { tokio::join!(ends, dripping) }).await;
    assert!(silent_for >= Duration::from_millis(900), "{silent_for:?}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    eventually("both counted", async || (refused(&node, "handshake_deadline").await == 2.0).then_some(())).await;
}

#[tokio::test]
async fn nobody_is_let_in_while_memory_is_nearly_used_up() {
    let feed = Feed::new(1).await;
    let used = async |node: &Node| node.metrics().await.sum_where("notifier_capacity_ratio", "resource", "memory");
    // Any process needs more than that.
    let node = Node::builder(&feed).set("limits.memory_bytes_max", "4MiB").start().await;
    eventually("memory measured", async || (used(&node).await > 1.0).then_some(())).await;
    let (head, _socket) = ask(&node, "101").await;
    says_when_to_come_back(&head);
    assert_eq!(refused(&node, "memory").await, 1.0);

    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("limits.memory_bytes_max", "16GiB").start().await;
    eventually("memory measured", async || (used(&node).await > 0.0).then_some(())).await;
    assert!(used(&node).await < 0.5);
    assert_eq!(ask(&node, "101").await.0.status, 200);
}
