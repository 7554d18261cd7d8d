//! `POST /v1/events` against whoever means harm, or does not know better: each is answered, and none harms the node.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    api::{KEY, builder, publish, publish_with},
    harness::{
        Feed, Node,
        http::{self, Response},
        wait::within,
    },
};

/// Writes a request head with [`KEY`] and these headers.
async fn begin(node: &Node, headers: &str) -> TcpStream {
    let mut socket = TcpStream::connect(node.addr()).await.expect("the port accepts");
    let addr = node.addr();
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nHost: {addr}\r\nX-API-Key: {KEY}\r\nConnection: close\r\n{headers}\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.expect("an open socket");
    socket
}

/// The answer to a request whose body was written.
async fn end(socket: TcpStream) -> Response {
    let answered = async { http::whole(http::answered(socket).await).await };
    within("an answer", answered).await.expect("an answer")
}

/// Sends bytes that need not be text.
async fn publish_bytes(node: &Node, body: &[u8]) -> Response {
    let mut socket = begin(node, &format!("Content-Length: {}", body.len())).await;
    socket.write_all(body).await.expect("an open socket");
    end(socket).await
}

/// Checks that the node goes on, and that nothing of what was refused has been written.
async fn goes_on(feed: &Feed, node: &Node) {
    let written = feed.kafka.read_all(&feed.topic).await.len();
    assert_eq!(written, 0, "something that was refused was written");
    let mut client = node.connect("101").await;
    assert_eq!(publish(node, r#"{"target":101,"type":"good"}"#).await.status(), 202);
    assert_eq!(client.one().await.kind, "good");
    assert_eq!(node.metrics().await.sum("notifier_dead_letters_total"), 0.0);
}

#[tokio::test]
async fn bodies_that_are_no_events_are_problems_with_400() {
    let feed = Feed::new(1).await;
    let node = builder(&feed).start().await;
    let deep = 10_000;
    let long = "7".repeat(300);
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("white space", b" \r\n\t".to_vec()),
        ("no JSON", b"{target:1}".to_vec()),
        ("half of it", br#"{"target":101,"type":"t""#.to_vec()),
        ("more behind it", br#"{"target":101,"type":"t"}{}"#.to_vec()),
        ("an empty array", b"[]".to_vec()),
        ("10,000 arrays", [vec![b'['; deep], vec![b']'; deep]].concat()),
        ("10,000 objects", ["{\"a\":".repeat(deep), "1".into(), "}".repeat(deep)].concat().into_bytes()),
        ("10,000 arrays that do not end", vec![b'['; deep]),
        ("a deep target", format!(r#"{{"target":{}{},"type":"t"}}"#, "[".repeat(deep), "]".repeat(deep)).into_bytes()),
        ("too many events", json!(vec![json!({"target": 101, "type": "t"}); 1001]).to_string().into_bytes()),
        ("a field twice", br#"{"target":101,"target":102,"type":"t"}"#.to_vec()),
        (
            "a field twice, by two names",
            br#"{"userId":1,"user_id":2,"notification":{"notificationType":"t"}}"#.to_vec(),
        ),
        ("a field twice, once escaped", br#"{"target":101,"\u0074arget":102,"type":"t"}"#.to_vec()),
        ("a huge number", format!(r#"{{"target":{long},"type":"t"}}"#).into_bytes()),
        ("a huge ttl", br#"{"target":101,"type":"t","ttl":999999999999999999999999}"#.to_vec()),
        ("a huge enumeration", br#"{"target":101,"type":"t","priority":4294967297}"#.to_vec()),
        ("a lone surrogate", br#"{"target":"\ud800","type":"t"}"#.to_vec()),
        ("a lone surrogate as name", br#"{"target":101,"type":"t","\udfff":1}"#.to_vec()),
        ("an escaped NUL", br#"{"target":"1\u0000","type":"t"}"#.to_vec()),
        ("a NUL", b"{\"target\":\"1\0\",\"type\":\"t\"}".to_vec()),
        ("a NUL behind it", b"{\"target\":\"1\",\"type\":\"t\"}\0".to_vec()),
        ("a direction override", r#"{"target":"a\u202eb","type":"t"}"#.into()),
        ("no UTF-8 in a target", b"{\"target\":\"\xff\",\"type\":\"t\"}".to_vec()),
        ("no UTF-8 in a payload", b"{\"target\":\"1\",\"type\":\"t\",\"payload\":\"\xc3\x28\"}".to_vec()),
        ("no UTF-8 where nobody looks", b"{\"target\":\"1\",\"type\":\"t\",\"x\":\"\xed\xa0\x80\"}".to_vec()),
        ("a byte order mark", b"\xef\xbb\xbf{\"target\":\"1\",\"type\":\"t\"}".to_vec()),
        ("UTF-16", "{\"target\":1}".encode_utf16().flat_map(u16::to_le_bytes).collect()),
        ("protobuf", b"\x0a\x03101".to_vec()),
        ("a control frame", br#"{"target":101,"type":"$bye"}"#.to_vec()),
    ];
    for (what, body) in bodies {
        let answer = publish_bytes(&node, &body).await;
        assert_eq!(answer.status(), 400, "{what}: {answer:?}");
        answer.problem(400);
        assert!(answer.body.len() < 100_000, "{what}: {} bytes", answer.body.len());
    }
    goes_on(&feed, &node).await;
}

#[tokio::test]
async fn odd_payloads_arrive_as_they_were_sent() {
    let feed = Feed::new(1).await;
    let node = builder(&feed).start().await;
    let mut client = node.connect("101").await;
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let objects = format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    let digits = "9".repeat(10_000);
    for payload in [&deep, &objects, &digits, "1e999999999", r#"{"a":1,"a":2}"#, r#""\ud800\u0000\udc00""#] {
        let answer = publish(&node, &format!(r#"{{"target":101,"type":"odd","payload":{payload}}}"#)).await;
        assert_eq!(answer.status(), 202, "{answer:?}");
        assert_eq!(client.one().await.raw(), payload);
    }
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused_whether_it_is_announced_or_not() {
    let feed = Feed::new(1).await;
    let node = builder(&feed).start().await;
    // Announced: before it has come.
    let announced = begin(&node, "Content-Length: 10485760").await;
    let answer = end(announced).await;
    answer.problem(413);
    assert!(answer.body.contains("limits.request_bytes_max"), "{answer:?}");
    // Not announced: as soon as there is too much of it.
    let mut chunked = begin(&node, "Transfer-Encoding: chunked").await;
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    for _ in 0..160 {
        if chunked.write_all(chunk.as_bytes()).await.is_err() {
            break;
        }
    }
    let answer = end(chunked).await;
    answer.problem(413);
    assert!(answer.body.contains("limits.request_bytes_max"), "{answer:?}");
    goes_on(&feed, &node).await;
}

#[tokio::test]
async fn what_is_not_json_by_its_own_word_is_refused() {
    let feed = Feed::new(1).await;
    let node = builder(&feed).start().await;
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/cloudevents+json", "é"] {
        let headers = [("X-API-Key", KEY), ("Content-Type", kind)];
        let answer = node.request("POST", "/v1/events", &headers, r#"{"target":101,"type":"t"}"#).await;
        answer.problem(415);
        assert_eq!(answer.head.header("accept-post"), Some("application/json"));
    }
    goes_on(&feed, &node).await;
    let headers = [("X-API-Key", KEY), ("Content-Type", "Application/JSON; charset=utf-8")];
    let answer = node.request("POST", "/v1/events", &headers, r#"{"target":101,"type":"t"}"#).await;
    assert_eq!(answer.status(), 202);
}

/// Sends a body in pieces with pauses; none when the node has had enough.
async fn drip(node: &Node, pieces: usize, pause: Duration) -> (Response, Duration) {
    let event = r#"{"target":101,"type":"slow"}"#;
    let began = Instant::now();
    let mut socket = begin(node, &format!("Content-Length: {}", event.len())).await;
    for piece in event.as_bytes().chunks(event.len().div_ceil(pieces)) {
        tokio::time::sleep(pause).await;
        if socket.write_all(piece).await.is_err() {
            break;
        }
    }
    (end(socket).await, began.elapsed())
}

#[tokio::test]
async fn a_slow_body_has_a_deadline_of_its_own_and_is_not_even_awaited_from_strangers() {
    let feed = Feed::new(1).await;
    let node = builder(&feed).set("limits.handshake_deadline", "1s").start().await;
    // Who has shown who it is may take longer than a handshake.
    let (answer, took) = drip(&node, 5, Duration::from_millis(300)).await;
    assert_eq!(answer.status(), 202, "{answer:?}");
    assert!(took > Duration::from_secs(1), "{took:?}");
    // But not for ever, byte by byte or not at all.
    for (pieces, pause) in [(28, Duration::from_millis(150)), (1, Duration::from_secs(4))] {
        let (answer, took) = drip(&node, pieces, pause).await;
        answer.problem(408);
        assert!(took < Duration::from_secs(15), "{took:?}");
    }
    let stranger = node.request("POST", "/v1/events", &[("Content-Length", "100")], "").await;
    stranger.problem(401);
}

#[tokio::test]
async fn headers_that_lie_are_refused() {
    let feed = Feed::new(1).await;
    let node = builder(&feed).start().await;
    let long = "k".repeat(10_000);
    publish_with(&node, &[("Idempotency-Key", &long)], r#"{"target":101,"type":"t"}"#).await.problem(400);
    let huge = "k".repeat(20_000);
    let answer = publish_with(&node, &[("Idempotency-Key", &huge)], "{}").await;
    assert_eq!(answer.status(), 431, "{answer:?}");
    let mut both = begin(&node, "Content-Length: 5\r\nTransfer-Encoding: chunked").await;
    let _ = both.write_all(b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n").await;
    let answer = end(both).await;
    assert_eq!(answer.status(), 400, "{answer:?}");
    goes_on(&feed, &node).await;
}
