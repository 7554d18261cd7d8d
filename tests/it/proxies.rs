//! Clients behind proxies: the PROXY protocol, and whose `X-Forwarded-For` counts. What a client's address is shows
//! in the limits per address.

use std::time::Duration;

use notifier::proto::{AcknowledgeRequest, ConnectionRequest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{Code, Status};

use crate::harness::{
    Feed, Node,
    certs::Certs,
    dial::{Dial, Socket},
    eventually,
    grpc::{Caller, GrpcClient},
    http::{self, Head, Opened, Request},
    node::Builder,
    wait::within,
};

const PROXY: [u8; 4] = [127, 0, 0, 1];
const STRANGER: [u8; 4] = [127, 0, 0, 9];

async fn refused(node: &Node, reason: &str) -> f64 {
    node.metrics().await.sum_where("notifier_rejected_connections_total", "reason", reason)
}

/// A version 2 header (the specification's section 2.2) for a client over TCP and IPv4, with `more` behind it.
fn binary(client: [u8; 4], more: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    header.extend(u16::try_from(12 + more.len()).expect("short").to_be_bytes());
    header.extend(client);
    header.extend([10, 0, 0, 1, 0x12, 0x67, 0x01, 0xbb]);
    header.extend(more);
    header
}

fn text(client: [u8; 4]) -> Vec<u8> {
    let [a, b, c, d] = client;
    format!("PROXY TCP4 {a}.{b}.{c}.{d} 10.0.0.1 4711 443\r\n").into_bytes()
}

/// Opens a stream; the connection counts for as long as the answer is kept.
async fn ask(node: &Node, dial: &Dial, forwarded_for: Option<&str>) -> Opened<Socket> {
    let authorization = format!("Bearer {}", node.token("101"));
    let mut headers = vec![("Authorization", authorization.as_str())];
    headers.extend(forwarded_for.map(|value| ("X-Forwarded-For", value)));
    let request = Request { method: "GET", path: "/v1/stream", headers: &headers, body: "" };
    within("an answer", http::open_over(dial, request)).await.expect("an answer, not a reset")
}

#[track_caller]
fn says_when_to_come_back(head: &Head) {
    assert_eq!(head.status, 503, "{head:?}");
    assert!(head.header("retry-after").is_some_and(|value| value.parse::<u64>().is_ok()), "{head:?}");
}

fn behind_proxy(feed: &Feed) -> Builder {
    Node::builder(feed).set("client.proxy_protocol", true).set("limits.connections_per_address", 1)
}

#[tokio::test]
async fn a_proxy_header_of_either_version_names_the_client() {
    let feed = Feed::new(1).await;
    let node = behind_proxy(&feed).set("client.trusted_proxies", vec!["127.0.0.1"]).start().await;
    let dial = Dial::new(node.addr());
    let mut open = Vec::new();
    for header in [text([203, 0, 113, 1]), binary([203, 0, 113, 2], &[]), binary([203, 0, 113, 3], &[4, 0, 2, 7, 7])] {
        let answer = ask(&node, &dial.clone().before(header), None).await;
        assert_eq!(answer.head.status, 200);
        open.push(answer);
    }
    // The same client again, by the other version.
    says_when_to_come_back(&ask(&node, &dial.clone().before(binary([203, 0, 113, 1], &[])), None).await.head);
    assert_eq!(refused(&node, "connections_per_address").await, 1.0);
    // What is forwarded by whom the header names does not count: that is no trusted proxy.
    let forged = ask(&node, &dial.clone().before(text([203, 0, 113, 2])), Some("198.51.100.1")).await;
    says_when_to_come_back(&forged.head);
    drop(open);
    eventually("a free place", async || {
        (ask(&node, &dial.clone().before(text([203, 0, 113, 1])), None).await.head.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_proxy_header_comes_before_tls() {
    let (feed, certs) = (Feed::new(1).await, Certs::new().await);
    let node = certs.on(behind_proxy(&feed)).start().await;
    let dial = Dial::new(node.addr()).tls(certs.client());
    let first = ask(&node, &dial.clone().before(text([203, 0, 113, 1])), None).await;
    assert_eq!(first.head.status, 200);
    // There is no answer that such a client could read.
    assert!(dial.clone().before(text([203, 0, 113, 1])).open().await.is_err());
    assert_eq!(refused(&node, "connections_per_address").await, 1.0);
    assert_eq!(ask(&node, &dial.before(binary([203, 0, 113, 2], &[])), None).await.head.status, 200);
}

/// HTTP/2's preface with empty settings (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// A connection that speaks HTTP/2; `None`: it was closed before the server said anything.
async fn http2(dial: &Dial, header: &[u8]) -> Option<Socket> {
    let mut socket = dial.clone().before([header, PREFACE].concat()).open().await.expect("the port accepts");
    let mut frame = [0; 9];
    within("settings, or the end", socket.read_exact(&mut frame)).await.ok()?;
    assert_eq!(frame[3], 4, "settings come first: {frame:?}");
    Some(socket)
}

#[tokio::test]
async fn a_proxy_header_names_the_client_of_the_grpc_port_too() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed)
        .set("grpc.proxy_protocol", true)
        .set("grpc.trusted_proxies", vec!["127.0.0.1"])
        .set("limits.connections_per_address", 1)
        .start()
        .await;
    let dial = Dial::new(node.grpc_addr());
    let one = http2(&dial, &text([203, 0, 113, 1])).await;
    let other = http2(&dial, &binary([203, 0, 113, 2], &[])).await;
    assert!(one.is_some() && other.is_some(), "two clients, each with a place");
    assert!(http2(&dial, &binary([203, 0, 113, 1], &[])).await.is_none(), "the same client by the other version");
    assert_eq!(refused(&node, "connections_per_address").await, 1.0);
    assert!(http2(&dial, b"").await.is_none(), "no header");
    assert_eq!(refused(&node, "proxy_header").await, 1.0);
    // The client port has its own key.
    assert_eq!(ask(&node, &Dial::new(node.addr()), None).await.head.status, 200);
}

#[tokio::test]
async fn a_connection_without_a_good_header_is_closed_and_counted() {
    let feed = Feed::new(1).await;
    let node =
        Node::builder(&feed).set("client.proxy_protocol", true).set("limits.handshake_deadline", "2s").start().await;
    let too_long = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200], b"\r\n"].concat();
    let bad: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PROXY TCP4 999.1.1.1 10.0.0.1 1 2\r\n",
        b"PROXY TCP5 203.0.113.1 10.0.0.1 1 2\r\n",
        &too_long,
        &binary([203, 0, 113, 1], &[0; 4000]),
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x01\x01",
    ];
    for bytes in bad {
        let mut socket = Dial::new(node.addr()).before(bytes).open().await.expect("the port accepts");
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(1), socket.read_to_end(&mut answer)).await;
        assert!(ended.is_ok() && answer.is_empty(), "{:?}", String::from_utf8_lossy(bytes));
    }
    assert_eq!(refused(&node, "proxy_header").await, 6.0);
    // One that never ends runs into the deadline of handshakes.
    for bytes in [&b""[..], b"PROXY TCP4 203.0.113.1", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01"] {
        let mut socket = Dial::new(node.addr()).before(bytes).open().await.expect("the port accepts");
        let mut answer = Vec::new();
        let _ = within("the end", socket.read_to_end(&mut answer)).await;
    }
    eventually("the deadlines counted", async || (refused(&node, "handshake_deadline").await == 3.0).then_some(()))
        .await;
    // Health checks speak for themselves, and a header may come in pieces.
    for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let mut socket = Dial::new(node.addr()).open().await.expect("the port accepts");
        for byte in [header, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"].concat() {
            socket.write_all(&[byte]).await.expect("the node reads on");
        }
        let mut answer = String::new();
        within("an answer", socket.read_to_string(&mut answer)).await.expect("text");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

#[tokio::test]
async fn a_trusted_proxy_names_the_client_and_nobody_else_can() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed)
        .set("client.trusted_proxies", vec!["127.0.0.0/29", "10.0.0.0/8"])
        .set("limits.connections_per_address", 1)
        .start()
        .await;
    let proxy = Dial::new(node.addr()).from(PROXY);
    let mut open = Vec::new();
    for client in ["203.0.113.1", "203.0.113.2", "198.51.100.7, 203.0.113.3", "203.0.113.4, 10.0.0.7"] {
        let answer = ask(&node, &proxy, Some(client)).await;
        assert_eq!(answer.head.status, 200, "{client}");
        open.push(answer);
    }
    // What a client writes in front of what the proxy adds changes nothing.
    for (n, client) in ["203.0.113.1", "1.2.3.4, 203.0.113.2", "203.0.113.3, 10.1.1.1"].into_iter().enumerate() {
        says_when_to_come_back(&ask(&node, &proxy, Some(client)).await.head);
        assert_eq!(refused(&node, "connections_per_address").await, (n + 1) as f64, "{client}");
    }
    // Somebody else has one place, whatever it says.
    let stranger = Dial::new(node.addr()).from(STRANGER);
    let first = ask(&node, &stranger, Some("203.0.113.50")).await;
    assert_eq!(first.head.status, 200);
    let mut socket = stranger.open().await.expect("the port accepts");
    let mut answer = String::new();
    within("an answer", socket.read_to_string(&mut answer)).await.expect("text");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(ask(&node, &proxy, Some("203.0.113.50")).await.head.status, 200, "it took nobody's place");
    drop(open);
    eventually("a free place", async || {
        (ask(&node, &proxy, Some("203.0.113.1")).await.head.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_trusted_proxys_own_connections_are_not_limited_as_one_clients() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed)
        .set("client.trusted_proxies", vec!["127.0.0.1"])
        .set("limits.handshakes_per_address", 2)
        .set("limits.connections_per_address", 2)
        .set("limits.handshake_deadline", "20s")
        .start()
        .await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(Dial::new(node.addr()).from(PROXY).open().await.expect("the port accepts"));
    }
    let answer = ask(&node, &Dial::new(node.addr()).from(PROXY), Some("203.0.113.1")).await;
    assert_eq!(answer.head.status, 200);
    assert_eq!(refused(&node, "handshakes_per_address").await, 0.0);
    // Another address is: the limit is there.
    for _ in 0..5 {
        idle.push(Dial::new(node.addr()).from(STRANGER).open().await.expect("the port accepts"));
    }
    eventually("three refused", async || (refused(&node, "connections_per_address").await == 3.0).then_some(())).await;
}

/// A proxy keeps its connections and sends the requests of many clients over each.
#[tokio::test]
async fn each_request_on_a_proxys_connection_is_its_own_clients() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed)
        .set("client.trusted_proxies", vec!["127.0.0.1"])
        .set("limits.connections_per_address", 1)
        .start()
        .await;
    let proxy = Dial::new(node.addr()).from(PROXY);
    let _stream = ask(&node, &proxy, Some("203.0.113.1")).await;
    let mut kept = proxy.open().await.expect("the port accepts");
    for (client, status) in [("203.0.113.2", 404), ("203.0.113.1", 503), ("203.0.113.3", 404), ("203.0.113.1", 503)] {
        let request = format!("GET /nothing HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {client}\r\n\r\n");
        kept.write_all(request.as_bytes()).await.expect("the connection is kept");
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            let read = within("an answer", kept.read_buf(&mut answer)).await;
            assert!(read.expect("the connection is kept") > 0);
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{client}: {answer}");
    }
}

/// Opens a stream for the client that a proxy names.
async fn stream(node: &Node, caller: &Caller, forwarded_for: &str) -> Result<GrpcClient, Status> {
    let authorization = format!("Bearer {}", node.token("101"));
    let headers = [("authorization", authorization.as_str()), ("x-forwarded-for", forwarded_for)];
    caller.connect(ConnectionRequest::default(), &headers).await
}

/// A proxy that speaks HTTP/2 carries the streams of many clients over one connection.
#[tokio::test]
async fn each_stream_on_a_proxys_grpc_connection_is_its_own_clients() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed)
        .set("grpc.trusted_proxies", vec!["127.0.0.1", "10.0.0.0/8"])
        .set("limits.connections_per_address", 1)
        .start()
        .await;
    let proxy = Caller::native_from(PROXY, node.grpc_addr());
    let mut open = Vec::new();
    for client in ["203.0.113.1", "198.51.100.7, 203.0.113.2", "203.0.113.3, 10.0.0.7"] {
        open.push(stream(&node, &proxy, client).await.unwrap_or_else(|status| panic!("{client}: {status}")));
    }
    let another = Caller::native_from(PROXY, node.grpc_addr());
    for (n, (client, by)) in [
        ("203.0.113.1", &proxy),
        ("1.2.3.4, 203.0.113.2", &proxy),
        ("203.0.113.3, 10.1.1.1", &proxy),
        ("203.0.113.1", &another),
    ]
    .into_iter()
    .enumerate()
    {
        let refusal = stream(&node, by, client).await.err().unwrap_or_else(|| panic!("{client} has two places"));
        assert_eq!((refusal.code(), refusal.message()), (Code::Unavailable, "too many connections of this address"));
        assert!(refusal.metadata().contains_key("grpc-retry-pushback-ms"), "{refusal:?}");
        assert_eq!(refused(&node, "connections_per_address").await, (n + 1) as f64, "{client}");
    }
    // Who has its place may still acknowledge: a call is no connection.
    let session_id = open[0].hello().await.session;
    let acknowledge = AcknowledgeRequest { session_id, sequence: 0 };
    proxy.acknowledge(acknowledge, &[("x-forwarded-for", "203.0.113.1")]).await.expect("a call beside the stream");
    // Somebody else's connection is its own, whatever it says, and takes nobody's place.
    let stranger = Caller::native_from(STRANGER, node.grpc_addr());
    for _ in 0..2 {
        open.push(stream(&node, &stranger, "203.0.113.50").await.expect("a stream of its one connection"));
    }
    assert!(stream(&node, &Caller::native_from(STRANGER, node.grpc_addr()), "203.0.113.51").await.is_err());
    open.push(stream(&node, &proxy, "203.0.113.50").await.expect("its place is free"));
    drop(open);
    eventually("a free place", async || stream(&node, &proxy, "203.0.113.1").await.ok()).await;
}

#[tokio::test]
async fn each_port_trusts_its_own_proxies_only() {
    let feed = Feed::new(1).await;
    let trusting = async |key: &str| {
        let builder = Node::builder(&feed).set("limits.connections_per_address", 1);
        builder.set(key, vec!["127.0.0.1"]).start().await
    };
    let node = trusting("grpc.trusted_proxies").await;
    let first = ask(&node, &Dial::new(node.addr()), Some("203.0.113.1")).await;
    assert_eq!(first.head.status, 200);
    let mut second = Dial::new(node.addr()).open().await.expect("the port accepts");
    let mut answer = String::new();
    within("an answer", second.read_to_string(&mut answer)).await.expect("text");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");

    let node = trusting("client.trusted_proxies").await;
    let _first = stream(&node, &Caller::native(node.grpc_addr()), "203.0.113.1").await.expect("the one place");
    assert!(stream(&node, &Caller::native(node.grpc_addr()), "203.0.113.2").await.is_err());
}
