//! What waits for a user who is away, and how a client resumes.

use std::time::{Duration, Instant};

use crate::harness::{Event, Feed, Node, frame::Frame, wait::eventually};

fn kinds(frames: &[Frame]) -> Vec<&str> {
    frames.iter().map(|frame| frame.kind.as_str()).collect()
}

fn numbers(frames: &[Frame]) -> Vec<u64> {
    frames.iter().map(Frame::number).collect()
}

async fn five_pending(feed: &Feed, node: &Node) {
    let events: Vec<_> = (0..5).map(|n| Event::numbered("101", n)).collect();
    feed.send_all(&events).await;
    node.settled(5).await;
}

#[tokio::test]
async fn durable_waits_for_a_user_who_is_away_and_transient_does_not() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let transient = Event::new("101", "transient").transient();
    feed.send_all(&[Event::new("101", "a"), transient, Event::new("101", "b")]).await;
    node.settled(3).await;
    let mut client = node.connect("101").await;
    assert_eq!(client.hello().head, 2);
    feed.send(&Event::new("101", "c")).await;
    let frames = client.expect(3).await;
    assert_eq!(kinds(&frames), ["a", "b", "c"]);
    assert_eq!(numbers(&frames), [1, 2, 3]);
}

#[tokio::test]
async fn a_reconnect_gets_only_what_was_not_acknowledged() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    five_pending(&feed, &node).await;
    let mut client = node.connect("101").await;
    assert_eq!(numbers(&client.expect(5).await), [1, 2, 3, 4, 5]);
    client.ack(3).await;
    client.ack(2).await; // below the cursor: ignored
    client.leave().await;
    node.acknowledged("101", 3).await;
    let mut client = node.connect("101").await;
    assert_eq!(client.hello().cursor, 3);
    assert_eq!(numbers(&client.expect(2).await), [4, 5]);
    client.leave().await;
    // Not acknowledged, so it comes again.
    let mut client = node.connect("101").await;
    assert_eq!(numbers(&client.expect(2).await), [4, 5]);
}

#[tokio::test]
async fn since_resumes_after_what_it_names_and_acknowledges_it() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    five_pending(&feed, &node).await;
    let mut client = node.connect("101").await;
    client.expect(5).await;
    let since = client.hello().since(3);
    client.leave().await;
    let mut client = node.ws("101").query("since", &since).open().await;
    assert_eq!(numbers(&client.expect(2).await), [4, 5]);
    client.leave().await;
    node.acknowledged("101", 3).await;
}

#[tokio::test]
async fn last_event_id_resumes_an_event_stream() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    five_pending(&feed, &node).await;
    let mut stream = node.stream("101", "").await;
    let last = stream.expect(3).await[2].id.clone().expect("an id");
    drop(stream);
    let authorization = format!("Bearer {}", node.token("101"));
    let headers = [("Authorization", authorization.as_str()), ("Last-Event-ID", &last)];
    let mut stream = crate::harness::sse::SseClient::open(node.addr(), "", &headers).await;
    let frames: Vec<_> = stream.expect(2).await.iter().map(|block| block.frame()).collect();
    assert_eq!(numbers(&frames), [4, 5]);
}

#[tokio::test]
async fn since_of_another_epoch_or_of_the_future_is_announced_as_a_gap() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    five_pending(&feed, &node).await;
    let mut client = node.connect("101").await;
    client.expect(5).await;
    client.ack(2).await;
    let future = client.hello().since(99);
    client.leave().await;
    node.acknowledged("101", 2).await;
    for since in ["zzzzzz-4", &future] {
        let mut client = node.ws("101").query("since", since).open().await;
        let gap = client.control("$gap").await;
        assert_eq!(gap.payload()["reason"], "epoch", "{gap:?}");
        assert_eq!(numbers(&client.expect(3).await), [3, 4, 5], "from the cursor, after {since}");
        client.leave().await;
    }
}

#[tokio::test]
async fn each_device_has_a_cursor_of_its_own() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    five_pending(&feed, &node).await;
    let mut shared = node.connect("101").await;
    shared.expect(5).await;
    shared.ack(1).await;
    shared.leave().await;
    node.acknowledged("101", 1).await;
    // A new device starts at the user's shared cursor.
    let mut phone = node.ws("101").query("device", "phone").open().await;
    assert_eq!(numbers(&phone.expect(4).await), [2, 3, 4, 5]);
    phone.ack(4).await;
    phone.leave().await;
    let phone_cursor = async || node.ws("101").query("device", "phone").open().await.hello().cursor;
    eventually("the phone's cursor", async || (phone_cursor().await == 4).then_some(())).await;
    let mut laptop = node.ws("101").query("device", "laptop").open().await;
    assert_eq!(numbers(&laptop.expect(4).await), [2, 3, 4, 5]);
    let mut phone = node.ws("101").query("device", "phone").open().await;
    assert_eq!(numbers(&phone.expect(1).await), [5]);
    let mut shared = node.connect("101").await;
    assert_eq!(numbers(&shared.expect(4).await), [2, 3, 4, 5]);
}

#[tokio::test]
async fn what_has_expired_is_not_delivered_and_its_numbers_are_announced() {
    const TTL: Duration = Duration::from_secs(3);
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let short = Event::new("101", "short").ttl_secs(3);
    feed.send_all(&[Event::new("101", "a"), short.clone(), short, Event::new("101", "b")]).await;
    let written = Instant::now();
    node.settled(4).await;
    // The clock itself is what the test waits for.
    tokio::time::sleep_until((written + TTL + Duration::from_millis(500)).into()).await;
    let mut client = node.connect("101").await;
    assert_eq!(client.one().await.kind, "a");
    let gap = client.control("$gap").await.payload();
    assert_eq!((&gap["from"], &gap["to"], &gap["reason"]), (&2.into(), &3.into(), &"expired".into()));
    let last = client.one().await;
    assert_eq!((last.kind.as_str(), last.seq), ("b", Some(4)));
}

#[tokio::test]
async fn an_event_older_than_its_ttl_is_never_delivered() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    let hour_ago = i64::try_from(crate::harness::token::now_secs() - 3600).expect("a time") * 1000;
    let late = Event::new("101", "late").ttl_secs(60).protobuf();
    feed.put(&crate::harness::Record { timestamp: Some(hour_ago), ..crate::harness::Record::new(late) }).await;
    feed.send(&Event::new("101", "fresh")).await;
    assert_eq!(client.one().await.kind, "fresh");
}

#[tokio::test]
async fn a_users_log_is_bounded_and_what_was_evicted_is_announced() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("log.per_user_max", 10).start().await;
    let events: Vec<_> = (0..30).map(|n| Event::numbered("101", n)).collect();
    feed.send_all(&events).await;
    node.settled(30).await;
    let mut client = node.connect("101").await;
    let gap = client.control("$gap").await.payload();
    assert_eq!((&gap["from"], &gap["to"], &gap["reason"]), (&1.into(), &20.into(), &"evicted".into()));
    let frames = client.expect(10).await;
    assert_eq!(numbers(&frames), (21..=30).collect::<Vec<_>>());
    assert_eq!(frames[0].n(), 20);
}

#[tokio::test]
async fn an_acknowledgement_on_one_connection_counts_on_the_next_even_when_it_breaks_off() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    five_pending(&feed, &node).await;
    let mut client = node.connect("101").await;
    client.expect(5).await;
    client.ack(5).await;
    drop(client); // no close frame
    node.acknowledged("101", 5).await;
}
