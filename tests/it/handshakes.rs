//! Handshakes that never end, on the ports with TLS: one deadline over all of it, and other addresses notice nothing.

use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::harness::{
    Feed, Node,
    certs::Certs,
    dial::{Dial, Socket},
    eventually,
    http2::PREFACE,
    wait::within,
    ws::Connect,
};

async fn refused(node: &Node, reason: &str) -> f64 {
    node.metrics().await.sum_where("notifier_rejected_connections_total", "reason", reason)
}

/// Sends the bytes one by one and then waits; how long the node kept the connection.
async fn drips(mut socket: Socket, bytes: Vec<u8>) -> Duration {
    let started = Instant::now();
    for byte in bytes {
        if socket.write_all(&[byte]).await.is_err() {
            return started.elapsed();
        }
        let mut answer = [0; 1024];
        let read = tokio::time::timeout(Duration::from_millis(200), socket.read(&mut answer)).await;
        if let Ok(Ok(0) | Err(_)) = read {
            return started.elapsed();
        }
    }
    let mut rest = Vec::new();
    let _ = within("the end of the connection", socket.read_to_end(&mut rest)).await;
    started.elapsed()
}

#[tokio::test]
async fn a_handshake_has_one_deadline_whatever_part_of_it_is_slow() {
    let (feed, certs) = (Feed::new(1).await, Certs::new().await);
    let node = certs.on(Node::builder(&feed)).set("limits.handshake_deadline", "2s").start().await;
    let plain = Dial::new(node.addr());
    let secure = plain.clone().tls(certs.client());
    let hello = certs.client_hello();
    let request = b"GET /v1/connect HTTP/1.1\r\nHost: localhost\r\nX-Slow: yes\r\n\r\n".to_vec();
    let open = async |dial: &Dial| dial.open().await.expect("the port accepts");
    let (silent, half) = (open(&plain).await, open(&plain.clone().before(&hello[..hello.len() / 2])).await);
    let (dripping, whole) = (open(&plain).await, open(&plain.clone().before(&hello)).await);
    let (idle, slow_request) = (open(&secure).await, open(&secure).await);
    let (silent, half, dripping, whole, idle, slow_request) = tokio::join!(
        drips(silent, Vec::new()),
        drips(half, Vec::new()),
        drips(dripping, hello.clone()),
        // The node has answered with its own part and waits for the client's.
        drips(whole, Vec::new()),
        drips(idle, Vec::new()),
        drips(slow_request, request),
    );
    for (what, took) in [
        ("silent", silent),
        ("half a hello", half),
        ("a hello byte by byte", dripping),
        ("nothing after the hello", whole),
        ("no request", idle),
        ("a request byte by byte", slow_request),
    ] {
        assert!((Duration::from_millis(1500)..Duration::from_secs(6)).contains(&took), "{what}: {took:?}");
    }
    // Time that TLS took is not given again to the request.
    let started = Instant::now();
    let tcp = TcpStream::connect(node.addr()).await.expect("the port accepts");
    tokio::time::sleep(Duration::from_millis(1300)).await;
    let name = ServerName::try_from("localhost").expect("a name");
    let late = TlsConnector::from(certs.client()).connect(name, tcp).await.expect("in time");
    drips(Box::new(late), Vec::new()).await;
    assert!(started.elapsed() < Duration::from_millis(2900), "{:?}", started.elapsed());
    eventually("each counted once", async || (refused(&node, "handshake_deadline").await == 7.0).then_some(())).await;
    assert_eq!(refused(&node, "tls_handshake").await, 0.0);
}

#[tokio::test]
async fn grpcs_port_has_the_same_deadline_with_and_without_tls() {
    let (feed, certs) = (Feed::new(1).await, Certs::new().await);
    let plain = Node::builder(&feed).set("limits.handshake_deadline", "2s").start().await;
    let secure = certs.on_port("grpc", Node::builder(&Feed::new(1).await).set("limits.handshake_deadline", "2s"));
    let secure = secure.start().await;
    let hello = certs.client_hello();
    for (node, attempts) in
        [(&plain, [&b""[..], &PREFACE[..10], PREFACE]), (&secure, [&b""[..], &hello[..hello.len() / 2], &hello[..]])]
    {
        let dial = Dial::new(node.grpc_addr());
        let open = async |bytes| drips(dial.clone().before(bytes).open().await.expect("accepted"), Vec::new()).await;
        let [first, second, third] = attempts;
        let (first, second, third) = tokio::join!(open(first), open(second), open(third));
        for took in [first, second, third] {
            assert!((Duration::from_millis(1500)..Duration::from_secs(6)).contains(&took), "{took:?}");
        }
        eventually("each counted", async || (refused(node, "handshake_deadline").await == 3.0).then_some(())).await;
    }
    // Who has shaken hands and then says nothing is no client yet.
    let idle = Dial::new(secure.grpc_addr()).tls(certs.client()).open().await.expect("shaken");
    assert!(drips(idle, Vec::new()).await < Duration::from_secs(6));
}

#[tokio::test]
async fn a_thousand_half_open_handshakes_of_one_address_delay_nobody_else() {
    const ATTEMPTS: usize = 1000;
    let (feed, certs) = (Feed::new(1).await, Certs::new().await);
    let node = certs.on(Node::builder(&feed)).set("limits.handshake_deadline", "20s").start().await;
    let hello = certs.client_hello();
    let half_open = Dial::new(node.addr()).from([127, 0, 0, 2]).before(&hello[..hello.len() / 2]);
    let mut silent = Vec::new();
    for _ in 0..ATTEMPTS {
        // One that is refused at once may be reset before it has said anything.
        silent.extend(half_open.open().await);
    }
    eventually("those above the limit refused", async || {
        (refused(&node, "handshakes_per_address").await >= (ATTEMPTS - 64) as f64).then_some(())
    })
    .await;
    let other = Dial::new(node.addr()).from([127, 0, 0, 3]).tls(certs.client());
    for n in 0..100 {
        let started = Instant::now();
        let token = node.token(&format!("u{n}"));
        Connect::bearer(node.addr(), &token).over(&other).open().await;
        assert!(started.elapsed() < Duration::from_secs(2), "delayed: {:?}", started.elapsed());
    }
    assert_eq!(refused(&node, "handshakes").await, 0.0, "the limit of all was never reached");
    assert_eq!(refused(&node, "handshakes_per_address").await, (ATTEMPTS - 64) as f64, "nobody else was refused");
    drop(silent);
}
