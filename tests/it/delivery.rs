//! The plain case: an event is written, every open session of its user gets it, in order.

use crate::harness::{Event, Feed, Node, check::Order};

#[tokio::test]
async fn hello_comes_first_and_says_where_the_user_stands() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("sessions.heartbeat", "7s").start().await;
    let mut first = node.connect("101").await;
    let hello = first.hello().clone();
    assert_eq!((hello.user.as_str(), hello.head, hello.cursor), ("101", 0, 0));
    assert_eq!(hello.heartbeat_ms, 7_000);
    assert!(hello.reconnect_ms > 0 && !hello.session.is_empty());
    assert!(!hello.epoch.is_empty() && !hello.epoch.contains('-'), "{}", hello.epoch);

    feed.send_all(&[Event::numbered("101", 0), Event::numbered("101", 1)]).await;
    first.expect(2).await;
    first.ack(1).await;
    node.settled(2).await;
    first.leave().await;
    node.acknowledged("101", 1).await;
    let second = node.connect("101").await;
    assert_eq!((second.hello().head, second.hello().cursor), (2, 1));
    assert_ne!(second.hello().session, hello.session);
    assert_eq!(second.hello().epoch, hello.epoch);
}

#[tokio::test]
async fn notifications_arrive_in_order_with_rising_numbers() {
    let feed = Feed::new(4).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    let events: Vec<_> = (0..1_000).map(|n| Event::numbered("101", n)).collect();
    feed.send_all(&events).await;
    let mut order = Order::default();
    for frame in client.expect_acked(events.len()).await {
        order.take("101", &frame);
    }
    assert_eq!(order.last_seq(), 1_000, "numbers without gaps");
    feed.all_committed().await;
}

#[tokio::test]
async fn every_session_of_a_user_gets_every_notification_and_no_other_user_does() {
    let feed = Feed::new(2).await;
    let node = Node::start(&feed).await;
    let mut phone = node.ws("101").query("device", "phone").open().await;
    let mut laptop = node.ws("101").query("device", "laptop").open().await;
    let mut stream = node.stream("101", "device=tv").await;
    let mut other = node.connect("102").await;
    feed.send(&Event::new("101", "a")).await;
    feed.send(&Event::new("102", "mine")).await;
    // A transient one may overtake a durable one: it is sent when that has arrived.
    node.metric_reaches("notifier_deliveries_total", 4.0).await;
    feed.send(&Event::new("101", "b").transient()).await;
    for client in [&mut phone, &mut laptop] {
        let frames = client.expect(2).await;
        assert_eq!((frames[0].kind.as_str(), frames[0].seq), ("a", Some(1)));
        assert_eq!((frames[1].kind.as_str(), frames[1].seq), ("b", None));
    }
    let blocks = stream.expect(2).await;
    assert_eq!((blocks[0].frame().kind, blocks[1].frame().kind), ("a".into(), "b".into()));
    assert_eq!(other.one().await.kind, "mine");
}

#[tokio::test]
async fn an_event_for_one_session_reaches_only_that_and_is_transient() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut wanted = node.connect("101").await;
    let mut other = node.connect("101").await;
    let session = wanted.hello().session.clone();
    // Asked to be durable: an event for a session never is.
    feed.send(&Event::new("101", "private").session(&session)).await;
    feed.send(&Event::new("101", "lost").session("no-such-session")).await;
    feed.send(&Event::new("101", "public")).await;
    let frames = wanted.expect(2).await;
    assert_eq!((frames[0].kind.as_str(), frames[0].seq), ("private", None));
    assert_eq!((frames[1].kind.as_str(), frames[1].seq), ("public", Some(1)));
    assert_eq!(other.one().await.kind, "public");
}

#[tokio::test]
async fn the_same_id_twice_is_delivered_once() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    let once = Event::new("101", "once").id("the-same");
    feed.send_all(&[once.clone(), once.clone(), Event::new("101", "end")]).await;
    let kinds: Vec<_> = client.expect(2).await.into_iter().map(|frame| frame.kind).collect();
    assert_eq!(kinds, ["once", "end"]);
    // Ids are unique per user, not over all users.
    let mut other = node.connect("102").await;
    feed.send(&Event { user: "102".into(), ..once }).await;
    assert_eq!(other.one().await.kind, "once");
}

#[tokio::test]
async fn records_of_an_aborted_transaction_are_never_delivered() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    feed.transaction(&[Event::new("101", "aborted")], false).await;
    feed.transaction(&[Event::new("101", "committed")], true).await;
    feed.send(&Event::new("101", "plain")).await;
    let kinds: Vec<_> = client.expect(2).await.into_iter().map(|frame| frame.kind).collect();
    assert_eq!(kinds, ["committed", "plain"]);
}
