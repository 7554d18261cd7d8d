//! Small promises at the edges: cursors of devices that saw nothing yet, crashes in the middle of a batch, requests
//! that only look like a connect.

use std::time::Duration;

use crate::harness::{Event, Feed, Node, eventually};

#[tokio::test]
async fn a_device_that_connected_to_an_empty_log_keeps_a_cursor_of_its_own() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let phone = node.ws("101").query("device", "phone").open().await;
    assert_eq!((phone.hello().head, phone.hello().cursor), (0, 0));
    phone.leave().await;

    let mut shared = node.connect("101").await;
    let events: Vec<_> = (0..3).map(|n| Event::numbered("101", n)).collect();
    feed.send_all(&events).await;
    shared.expect_acked(3).await;
    eventually("the shared cursor at 3", async || (node.connect("101").await.hello().cursor == 3).then_some(())).await;

    let mut phone = node.ws("101").query("device", "phone").open().await;
    assert_eq!(phone.hello().cursor, 0);
    let frames = phone.expect(3).await;
    assert_eq!(frames.iter().map(|frame| frame.n()).collect::<Vec<_>>(), [0, 1, 2]);
    // One that is new now starts where the user is.
    assert_eq!(node.ws("101").query("device", "tablet").open().await.hello().cursor, 3);
}

/// Puts a crashing event behind good ones in one batch; only it may be lost, and only to the dead letters.
async fn only_the_crashing_event_is_buried(good: impl Fn(&str) -> Event) {
    let feed = Feed::new(1).await;
    // In one batch: all is written before the node reads.
    let crash = Event::new("101", "fault.user").transient().id("crash");
    feed.send_all(&[good("one").id("one"), good("two").id("two"), crash, good("three").id("three")]).await;
    let node = Node::start(&feed).await;
    feed.all_committed().await;
    let letters = feed.dead_letters(1).await;
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert!(letters[0].header("notifier-error").is_some_and(|error| error.contains("poison")), "{letters:?}");
    node.metric_reaches("notifier_dead_letters_total", 1.0).await;
    assert_eq!(letters[0].header("notifier-origin-offset").as_deref(), Some("2"));
    // And nothing follows.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(feed.kafka.read_all(&feed.dead_letter_topic).await.len(), 1);
}

#[tokio::test]
async fn transient_events_before_a_crashing_one_are_no_dead_letters() {
    only_the_crashing_event_is_buried(|kind| Event::new("101", kind).transient()).await;
}

#[tokio::test]
async fn durable_events_around_a_crashing_one_are_no_dead_letters() {
    only_the_crashing_event_is_buried(|kind| Event::new("101", kind)).await;
}

#[tokio::test]
async fn head_is_no_way_to_connect() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let authorization = format!("Bearer {}", node.token("101"));
    for path in ["/v1/stream", "/v1/connect"] {
        let answer = node.request("HEAD", path, &[("Authorization", &authorization)], "").await;
        assert_eq!(answer.status(), 405, "{answer:?}");
        assert_eq!(answer.head.header("allow"), Some("GET"), "{path}");
        assert!(answer.body.is_empty(), "an answer to HEAD has no body");
    }
    assert_eq!(node.metrics().await.sum("notifier_connections"), 0.0);
    // A HEAD that the page answers like a GET, without the body.
    assert_eq!(node.request("HEAD", "/", &[], "").await.status(), 200);
}
