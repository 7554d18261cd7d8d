//! What producers are told of their events: one receipt each, whatever goes away in between.

use std::{collections::BTreeMap, time::Duration};

use notifier::proto::{NotificationDelivered, NotificationState};
use prost::Message as _;

use crate::harness::{
    Event, Feed, Kafka, Node, Store,
    broker::Broker,
    eventually,
    node::Builder,
    wait::{DEADLINE, eventually_within},
};

/// A client of a broker that was killed needs its time to come back.
const AFTER_OUTAGE: Duration = Duration::from_secs(60);

fn topic(feed: &Feed) -> String {
    format!("{}.receipts", feed.topic)
}

async fn create_topic(feed: &Feed) {
    feed.kafka.create_topic(&topic(feed), 2, &[]).await;
}

fn builder(feed: &Feed) -> Builder {
    Node::builder(feed).set("kafka.receipts_topic", topic(feed))
}

async fn read(feed: &Feed) -> Vec<NotificationDelivered> {
    let stored = feed.kafka.read_all(&topic(feed)).await;
    let receipt = |record: &crate::harness::kafka::Stored| {
        let receipt = NotificationDelivered::decode(record.value.as_deref().expect("a value")).expect("a receipt");
        assert_eq!(record.key.as_deref(), Some(receipt.user_id.as_bytes()));
        assert!(receipt.at.is_some(), "{receipt:?}");
        receipt
    };
    stored.iter().map(receipt).collect()
}

/// The receipts, when there are that many.
async fn receipts(feed: &Feed, count: usize) -> Vec<NotificationDelivered> {
    receipts_within(DEADLINE, feed, count).await
}

async fn receipts_within(deadline: Duration, feed: &Feed, count: usize) -> Vec<NotificationDelivered> {
    eventually_within(deadline, &format!("{count} receipts"), async || {
        let receipts = read(feed).await;
        (receipts.len() >= count).then_some(receipts)
    })
    .await
}

/// How many there are of each id of a user, and the ids in their order.
fn ids_of<'a>(receipts: &'a [NotificationDelivered], user: &str) -> Vec<&'a str> {
    let of_user = receipts.iter().filter(|receipt| receipt.user_id == user);
    of_user.map(|receipt| &*receipt.notification_id).collect()
}

fn events(user: &str, numbers: std::ops::Range<u64>) -> Vec<Event> {
    numbers.map(|n| Event::numbered(user, n).id(&format!("n{n}"))).collect()
}

#[tokio::test]
async fn a_producer_is_told_of_each_of_its_events_once() {
    let feed = Feed::new(1).await;
    create_topic(&feed).await;
    let mut node = builder(&feed).start().await;
    let mut client = node.connect("101").await;
    // Whoever has the whole id could act for the session.
    let session = client.hello().session[..8].to_owned();
    feed.send_all(&events("101", 0..3)).await;
    client.expect(3).await;
    client.ack(2).await;
    client.ack(3).await;
    let nobody = uuid::Uuid::new_v4().simple().to_string();
    feed.send(&Event::new("102", "gone").id("gone").transient().session(&nobody)).await;
    let told = receipts(&feed, 4).await;
    let mut all: Vec<_> = told
        .iter()
        .map(|told| {
            (&*told.user_id, &*told.notification_id, told.sequence, told.state(), &*told.reason, &*told.session_id)
        })
        .collect();
    all.sort();
    let (sent, deleted) = (NotificationState::Sent, NotificationState::Deleted);
    assert_eq!(
        all,
        [
            ("101", "n0", 1, sent, "", &*session),
            ("101", "n1", 2, sent, "", &*session),
            ("101", "n2", 3, sent, "", &*session),
            ("102", "gone", 0, deleted, "no_session", ""),
        ]
    );
    assert_eq!(ids_of(&told, "101"), ["n0", "n1", "n2"]);

    // Another device acknowledges the same ones: nothing has ended once more.
    let mut other =
        node.ws("101").query("device", "phone").query("since", &format!("{}-0", client.hello().epoch)).open().await;
    other.expect_acked(3).await;
    feed.send_all(&events("101", 3..4)).await;
    assert_eq!(other.one().await.number(), 4);
    other.ack(4).await;
    let told = receipts(&feed, 5).await;
    node.metric_reaches("notifier_receipts_total", 5.0).await;
    let metrics = node.metrics().await;
    assert_eq!(metrics.sum_where("notifier_receipts_total", "state", "sent"), 4.0);
    assert_eq!(metrics.sum_where("notifier_receipts_total", "outcome", "written"), 5.0);
    node.stop().await.ok();
    assert_eq!(ids_of(&told, "101"), ["n0", "n1", "n2", "n3"]);
    assert_eq!(read(&feed).await.len(), 5, "and no more");
}

#[tokio::test]
async fn without_a_topic_for_them_nobody_writes_receipts() {
    let feed = Feed::new(1).await;
    let node = builder(&feed).set("kafka.receipts_topic", "").start().await;
    let mut client = node.connect("101").await;
    feed.send_all(&events("101", 0..1)).await;
    client.expect_acked(1).await;
    assert!(!node.metrics().await.has("notifier_receipts_total"));
}

#[tokio::test]
async fn receipts_wait_for_their_topic_and_delivery_does_not() {
    let feed = Feed::new(1).await;
    let node = builder(&feed).start().await;
    let mut client = node.connect("101").await;
    for n in 0..10 {
        feed.send_all(&events("101", n..n + 1)).await;
        client.expect_acked(1).await;
    }
    let warned = || node.log().lines().filter(|line| line.contains("WARN") && line.contains(&topic(&feed))).count();
    eventually("a warning that names the topic", async || (warned() > 0).then_some(())).await;
    feed.send_all(&events("101", 10..11)).await;
    client.expect_acked(1).await;
    eventually("an age that grows", async || {
        (node.metrics().await.sum("notifier_receipts_age_seconds") > 3.0).then_some(())
    })
    .await;
    node.ready().await;
    assert_eq!(warned(), 1, "once");

    create_topic(&feed).await;
    let told = receipts_within(AFTER_OUTAGE, &feed, 11).await;
    assert_eq!(ids_of(&told, "101"), (0..11).map(|n| format!("n{n}")).collect::<Vec<_>>());
    eventually("nothing that waits", async || {
        (node.metrics().await.sum("notifier_receipts_age_seconds") == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_receipt_that_kafka_refuses_is_left_out_and_costs_no_other() {
    let kafka = Kafka::shared();
    let feed = Feed::on(&kafka, 1).await;
    // Room for one of an ordinary size, but not for a batch of them, nor for one with the longest names.
    kafka.create_topic(&topic(&feed), 1, &[("max.message.bytes", "600")]).await;
    let node = builder(&feed).start().await;
    let long = "u".repeat(256);
    let mut named_long = node.connect(&long).await;
    let mut client = node.connect("101").await;
    feed.send(&Event::new(&long, "t").id(&"i".repeat(256))).await;
    named_long.expect_acked(1).await;
    feed.send_all(&events("101", 0..40)).await;
    client.expect(40).await;
    client.ack(40).await;
    let told = receipts(&feed, 40).await;
    let mut ids = ids_of(&told, "101");
    ids.sort_by_key(|id| id[1..].parse::<u64>().expect("a number"));
    assert_eq!(ids, (0..40).map(|n| format!("n{n}")).collect::<Vec<_>>());
    eventually("one that failed", async || {
        let failed = node.metrics().await.sum_where("notifier_receipts_total", "outcome", "failed");
        (failed == 1.0).then_some(())
    })
    .await;
    feed.send_all(&events("101", 40..41)).await;
    client.expect_acked(1).await;
    assert_eq!(receipts(&feed, 41).await.len(), 41);
    node.ready().await;
}

#[tokio::test]
async fn a_broker_killed_and_restarted_costs_no_receipt_and_repeats_none() {
    let mut broker = Broker::started().await;
    let feed = Feed::on(&broker.kafka(), 2).await;
    create_topic(&feed).await;
    let mut node = builder(&feed).start().await;
    let mut client = node.connect("101").await;
    for n in 0..20 {
        feed.send_all(&events("101", n..n + 1)).await;
        client.expect_acked(1).await;
    }
    feed.send_all(&events("101", 20..40)).await;
    client.expect(20).await;
    broker.kill();
    // These end while nobody is there to be told.
    for seq in 21..=40 {
        client.ack(seq).await;
    }
    broker.start().await;
    receipts_within(AFTER_OUTAGE, &feed, 40).await;
    node.ready().await;
    feed.send_all(&events("101", 40..50)).await;
    client.expect_acked(10).await;
    let told = receipts_within(AFTER_OUTAGE, &feed, 50).await;
    assert_eq!(ids_of(&told, "101"), (0..50).map(|n| format!("n{n}")).collect::<Vec<_>>());
    node.stop().await.ok();
    assert_eq!(read(&feed).await.len(), 50, "and no more");
}

#[tokio::test]
async fn a_restart_in_good_order_repeats_no_receipt_and_loses_none() {
    for store in Store::each().await {
        let feed = Feed::new(1).await;
        create_topic(&feed).await;
        let mut node = store.of(builder(&feed)).start().await;
        for round in 0..3 {
            let mut client = node.connect("101").await;
            feed.send_all(&events("101", round * 20..(round + 1) * 20)).await;
            client.expect_acked(20).await;
            node.restart().await;
        }
        let told = receipts(&feed, 60).await;
        node.stop().await.ok();
        assert_eq!(ids_of(&told, "101"), (0..60).map(|n| format!("n{n}")).collect::<Vec<_>>(), "{}", store.engine());
        assert_eq!(read(&feed).await.len(), 60, "{}", store.engine());
    }
}

#[tokio::test]
async fn after_kill_9_every_event_has_a_receipt_though_some_may_come_again() {
    const EACH: u64 = 40;
    for store in Store::each().await {
        let feed = Feed::new(1).await;
        create_topic(&feed).await;
        let mut node = store.of(builder(&feed)).start().await;
        for round in 0..4 {
            let mut client = node.connect("101").await;
            feed.send_all(&events("101", round * EACH..(round + 1) * EACH)).await;
            // What was acknowledged and not stored before a kill comes once more.
            while client.one().await.n() + 1 < (round + 1) * EACH {}
            client.ack((round + 1) * EACH).await;
            if round % 2 == 0 {
                receipts(&feed, 1).await;
            } else {
                node.acknowledged("101", (round + 1) * EACH).await;
            }
            node.kill();
            node.start_again();
            node.ready().await;
        }
        let mut client = node.connect("101").await;
        let (cursor, head) = (client.hello().cursor, client.hello().head);
        assert_eq!(head, 4 * EACH, "{}", store.engine());
        client.expect_acked(usize::try_from(head - cursor).expect("a few")).await;
        eventually(&format!("all receipts ({})", store.engine()), async || {
            let told = read(&feed).await;
            let mut counts = BTreeMap::<String, usize>::new();
            for id in ids_of(&told, "101") {
                *counts.entry(id.to_owned()).or_default() += 1;
            }
            (0..4 * EACH).all(|n| counts.contains_key(&format!("n{n}"))).then_some(())
        })
        .await;
    }
}
