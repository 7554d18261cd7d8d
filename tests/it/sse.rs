//! Server-sent events: the format, the heartbeat, and acknowledging beside the stream.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Event, Feed, Node, eventually, sse::SseClient};

#[tokio::test]
async fn the_stream_has_the_headers_that_browsers_and_proxies_need() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let stream = node.stream("101", "").await;
    let content_type = stream.header("content-type").expect("a content type");
    assert!(content_type.starts_with("text/event-stream"), "{content_type}");
    assert!(stream.header("cache-control").is_some_and(|value| value.contains("no-")));
}

#[tokio::test]
async fn only_control_frames_are_named_and_only_numbered_notifications_have_an_id() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut stream = node.stream("101", "").await;
    let hello = stream.hello();
    assert_eq!((stream.first.event.as_deref(), &stream.first.id), (Some("$hello"), &None));
    feed.send(&Event::new("101", "a")).await;
    let mut blocks = stream.expect(1).await;
    feed.send(&Event::new("101", "b").transient()).await;
    blocks.extend(stream.expect(1).await);
    assert_eq!((&blocks[0].event, &blocks[1].event), (&None, &None));
    assert_eq!(blocks[0].id, Some(hello.since(1)));
    assert_eq!(blocks[0].frame().seq, Some(1));
    assert_eq!(blocks[1].id, None, "nothing to resume from");
    assert!(stream.retry_ms.is_some_and(|retry| retry > 0), "no `retry:` so far");
}

#[tokio::test]
async fn events_can_be_named_by_their_type() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut stream = node.stream("101", "events=type").await;
    assert_eq!(stream.first.event.as_deref(), Some("$hello"));
    feed.send(&Event::new("101", "update_channel")).await;
    assert_eq!(stream.expect(1).await[0].event.as_deref(), Some("update_channel"));
}

#[tokio::test]
async fn a_gap_is_a_named_control_frame() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut stream = node.stream("101", "since=zzzzzz-7").await;
    let block = stream.next().await;
    assert_eq!(block.event.as_deref(), Some("$gap"));
    let gap = block.frame().payload();
    assert_eq!(gap["reason"], "epoch");
    // A browser that is cut here does not hear of the gap once more.
    let hello = stream.hello();
    assert_eq!(block.id, Some(hello.since(hello.cursor)));
    drop(stream);
    let since = block.id.expect("an id");
    feed.send(&Event::new("101", "next")).await;
    let mut stream = node.stream("101", &format!("since={since}")).await;
    assert_eq!(stream.next().await.frame().kind, "next");
}

#[tokio::test]
async fn a_goodbye_says_to_browsers_too_when_to_come_back() {
    let feed = Feed::new(1).await;
    let mut node = Node::start(&feed).await;
    let mut stream = node.stream("101", "").await;
    let (blocks, stopped) = tokio::join!(stream.rest(), node.stop());
    stopped.ok();
    let bye = blocks.last().expect("a goodbye");
    assert_eq!(bye.event.as_deref(), Some("$bye"));
    let wait = bye.frame().payload()["reconnect_ms"].as_u64();
    assert!(wait.is_some() && bye.retry_ms == wait, "{bye:?}");
}

#[tokio::test]
async fn the_heartbeat_is_a_comment() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("sessions.heartbeat", "1s").start().await;
    let mut stream = node.stream("101", "").await;
    let before = stream.comments;
    stream.idle(Duration::from_secs(5)).await;
    assert!(stream.comments >= before + 2, "{} comments in 5 s", stream.comments - before);
}

#[tokio::test]
async fn a_stream_is_acknowledged_with_the_users_token_or_by_the_session_id() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let events: Vec<_> = (0..4).map(|n| Event::numbered("101", n)).collect();
    feed.send_all(&events).await;
    let mut stream = node.stream("101", "").await;
    stream.expect(4).await;
    let path = format!("/v1/sessions/{}/ack", stream.hello().session);
    let bearer = |user: &str| format!("Bearer {}", node.token(user));
    let json = ("Content-Type", "application/json");

    let own = bearer("101");
    let answer = node.request("POST", &path, &[json, ("Authorization", &own)], r#"{"ack":2}"#).await;
    assert!((200..300).contains(&answer.status()), "{answer:?}");
    cursor_becomes(&node, 2).await;
    let answer = node.request("POST", &path, &[json], r#"{"ack":3}"#).await;
    assert!((200..300).contains(&answer.status()), "the session id is enough: {answer:?}");
    cursor_becomes(&node, 3).await;

    let foreign = bearer("102");
    let refused = node.request("POST", &path, &[json, ("Authorization", &foreign)], r#"{"ack":4}"#).await;
    assert!([403, 404].contains(&refused.status()), "{refused:?}");
    refused.problem(refused.status());
    cursor_becomes(&node, 3).await;
}

async fn cursor_becomes(node: &Node, cursor: u64) {
    eventually(&format!("cursor {cursor}"), async || {
        (node.connect("101").await.hello().cursor == cursor).then_some(())
    })
    .await;
}

#[tokio::test]
async fn bad_acknowledgements_are_problems() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let stream = node.stream("101", "").await;
    let path = format!("/v1/sessions/{}/ack", stream.hello().session);
    let json = ("Content-Type", "application/json");
    for body in ["", "{}", "{\"ack\":\"x\"}", "nonsense"] {
        node.request("POST", &path, &[json], body).await.problem(400);
    }
    let unknown = "/v1/sessions/no-such-session/ack";
    node.request("POST", unknown, &[json], &json!({"ack": 1}).to_string()).await.problem(404);
}

#[tokio::test]
async fn a_reader_of_a_stream_is_not_slow_although_it_acknowledges_nothing() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("sessions.window_items", 10).set("sessions.slow_deadline", "1s").start().await;
    let mut stream = node.stream("101", "").await;
    for round in 0..3 {
        let events: Vec<_> = (0..50).map(|n| Event::numbered("101", round * 50 + n)).collect();
        feed.send_all(&events).await;
        for (n, block) in stream.expect(50).await.iter().enumerate() {
            assert_eq!(block.frame().n(), round * 50 + n as u64);
        }
        stream.idle(Duration::from_millis(1200)).await;
    }
}

#[tokio::test]
async fn a_stream_takes_its_token_from_the_header_or_the_query() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut one = node.stream("101", "device=a").await;
    let token = node.token("101");
    let mut two = SseClient::open(node.addr(), &format!("access_token={token}&device=b"), &[]).await;
    feed.send(&Event::new("101", "both")).await;
    assert_eq!(one.expect(1).await[0].frame().kind, "both");
    assert_eq!(two.expect(1).await[0].frame().kind, "both");
}
