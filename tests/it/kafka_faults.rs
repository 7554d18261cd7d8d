//! Kafka misbehaves: nothing is lost, nothing comes twice, each user's order is kept.

use std::time::Duration;

use serde_json::json;

use crate::harness::{
    Event, Feed, Kafka, Node, Record,
    broker::Broker,
    check::{Crowd, Order},
    eventually,
};

/// A client of a broker that was killed needs its time to come back.
const AFTER_OUTAGE: Duration = Duration::from_secs(60);
/// A process that cannot go on ends at once; the machine is shared.
const ENDED: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_node_waits_for_a_broker_that_is_away_at_its_start() {
    let mut broker = Broker::stopped();
    let feed = Feed::named(&broker.kafka(), 2);
    let mut node = Node::builder(&feed).start_unready();
    node.unready("kafka").await;
    assert_eq!(node.admin("/livez").await.status(), 200);
    let mut client = node.connect("101").await;

    broker.start().await;
    feed.create().await;
    node.ready().await;
    feed.send(&Event::new("101", "at-last")).await;
    assert_eq!(client.one().await.kind, "at-last");
    assert!(node.process().running());
}

#[tokio::test]
async fn a_broker_killed_and_restarted_under_load_loses_and_repeats_nothing() {
    let mut broker = Broker::started().await;
    let feed = Feed::on(&broker.kafka(), 4).await;
    let node = Node::start(&feed).await;
    let mut crowd = Crowd::connect(&node, 8).await;
    let load = crowd.load(&feed, 150, Duration::from_millis(20));
    while !crowd.all_have(20) {
        crowd.take(Duration::from_millis(20)).await;
    }
    broker.kill();
    // Not synchronisation: time for requests to fail while nobody is there.
    crowd.take(Duration::from_millis(250)).await;
    broker.start().await;
    load.await.expect("the load is written");
    crowd.complete_within(&feed, AFTER_OUTAGE).await;
    node.ready().await;
    // Another connection, to the group's coordinator.
    feed.all_committed_within(AFTER_OUTAGE).await;
}

#[tokio::test]
async fn partitions_that_no_broker_leads_are_named_and_hold_up_no_others() {
    let mut brokers = Broker::three().await;
    let feed = Feed::named(&brokers[0].kafka(), 6);
    feed.kafka.create_topic_without_copies(&feed.topic, 6).await;
    feed.kafka.create_topic(&feed.dead_letter_topic, 1, &[]).await;
    brokers[1].stop().await;
    let node = Node::builder(&feed).start_unready();
    let said = node.unready("no broker leads partitions [").await;
    let (_, named) = said.split_once("partitions [").expect("just seen");
    let named = named.split(']').next().expect("a list").split(", ");
    let led: Vec<i32> = {
        let leaderless: Vec<i32> = named.map(|number| number.parse().expect("a partition")).collect();
        (0..6).filter(|partition| !leaderless.contains(partition)).collect()
    };
    assert_eq!(led.len(), 4, "{said}");
    let users = (0..).map(|n| format!("user-{n}"));
    let users: Vec<String> = users.filter(|user| led.contains(&feed.partition_of(user))).take(8).collect();
    for user in &users {
        let mut client = node.connect(user).await;
        feed.send(&Event::new(user, "led")).await;
        assert_eq!(client.one().await.kind, "led");
    }
    let without = (0..).map(|n| format!("user-{n}")).find(|user| !led.contains(&feed.partition_of(user)));
    let without = without.expect("there are more users than partitions");
    let mut client = node.connect(&without).await;
    brokers[1].start().await;
    node.ready().await;
    feed.send(&Event::new(&without, "led again")).await;
    assert_eq!(client.one().await.kind, "led again");
}

#[tokio::test]
async fn a_missing_topic_is_named_and_works_once_it_exists() {
    let kafka = Kafka::shared();
    let feed = Feed::named(&kafka, 2);
    let node = Node::builder(&feed).set("kafka.partition_refresh", "1s").start_unready();
    node.unready(&feed.topic).await;
    let mut client = node.connect("101").await;
    feed.create().await;
    node.ready().await;
    feed.send(&Event::new("101", "first")).await;
    assert_eq!(client.one().await.kind, "first");
}

#[tokio::test]
async fn without_the_dead_letter_topic_only_what_needs_it_stays_unsettled() {
    let kafka = Kafka::shared();
    let feed = Feed::named(&kafka, 1);
    kafka.create_topic(&feed.topic, 1, &[]).await;
    let node = Node::builder(&feed).set("kafka.partition_refresh", "1s").start().await;
    let mut client = node.connect("101").await;
    feed.send(&Event::numbered("101", 0)).await;
    let bad = Record { partition: Some(0), ..Record::new("{broken") };
    let (_, offset) = feed.put(&bad).await;
    feed.send_all(&[Event::numbered("101", 1), Event::numbered("101", 2)]).await;
    let mut order = Order::default();
    for frame in client.expect_acked(3).await {
        order.take("101", &frame);
    }
    eventually("the bad record unsettled", async || {
        (node.metrics().await.sum("notifier_unsettled_events") >= 1.0).then_some(())
    })
    .await;
    let position = feed.kafka.positions(&feed.topic, &feed.group, 1).await[0].0;
    assert!(position.unwrap_or(0) <= offset, "committed past an unsettled record: {position:?}");

    kafka.create_topic(&feed.dead_letter_topic, 1, &[]).await;
    assert_eq!(feed.dead_letters(1).await[0].value, bad.value);
    feed.all_committed().await;
}

#[tokio::test]
async fn partitions_added_while_running_are_read_from_their_beginning() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("kafka.partition_refresh", "1s").start().await;
    let mut client = node.connect("101").await;
    feed.send(&Event::new("101", "old")).await;
    assert_eq!(client.one().await.kind, "old");
    feed.kafka.add_partitions(&feed.topic, 4).await;
    // A producer that knows them, writing before the node does.
    let fresh = Kafka::at(&feed.kafka.bootstrap);
    for partition in 1..4 {
        let kind = format!("partition-{partition}");
        let value = Event::new("101", &kind).protobuf();
        let record = Record { partition: Some(partition), ..Record::new(value) };
        fresh.write(&feed.topic, &record).await;
    }
    let mut kinds: Vec<_> = client.expect(3).await.into_iter().map(|frame| frame.kind).collect();
    kinds.sort();
    assert_eq!(kinds, ["partition-1", "partition-2", "partition-3"]);
}

#[tokio::test]
async fn partitions_taken_away_and_given_back_under_load_lose_and_repeat_nothing() {
    const PARTITIONS: u32 = 6;
    let feed = Feed::new(6).await;
    let node = Node::start(&feed).await;
    let mut crowd = Crowd::connect(&node, 16).await;
    let load = crowd.load(&feed, 200, Duration::from_millis(15));
    while !load.is_finished() {
        let kept: u32 = rand::random();
        let kept: Vec<_> = (0..PARTITIONS).filter(|index| kept >> index & 1 == 1).collect();
        node.assign(json!(kept)).await;
        let pause = u64::from(rand::random::<u8>());
        tokio::time::sleep(Duration::from_millis(pause)).await;
        crowd.take(Duration::ZERO).await;
    }
    load.await.expect("the load is written");
    node.assign(json!("all")).await;
    crowd.complete(&feed).await;
    feed.all_committed().await;
    assert!(feed.kafka.read_all(&feed.dead_letter_topic).await.is_empty());
}

#[tokio::test]
async fn a_partition_that_was_taken_away_is_not_read() {
    let feed = Feed::new(2).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    let on = |partition, kind: &str| {
        let value = Event::new("101", kind).protobuf();
        Record { partition: Some(partition), ..Record::new(value) }
    };
    node.assign(json!([0])).await;
    // In good order: what it holds is released once this has been committed.
    let mut n = 0;
    eventually("partition 1 released", async || {
        n += 1;
        let probe = format!("probe-{n}");
        feed.put(&on(1, &probe)).await;
        feed.put(&on(0, "mark")).await;
        let mut kinds = Vec::new();
        while kinds.last().is_none_or(|kind| kind != "mark") {
            kinds.push(client.one().await.kind);
        }
        // What was written before the mark would be here by now, or very soon.
        kinds.extend(client.poll(Duration::from_millis(500)).await.map(|frame| frame.kind));
        (!kinds.contains(&probe)).then_some(())
    })
    .await;
    feed.put(&on(0, "kept")).await;
    assert_eq!(client.one().await.kind, "kept");
    node.assign(json!("all")).await;
    assert_eq!(client.one().await.kind, format!("probe-{n}"));
}

#[tokio::test]
async fn a_restart_begins_at_the_committed_position() {
    let feed = Feed::new(3).await;
    let mut node = Node::start(&feed).await;
    let mut next = 0;
    let mut send = async |count: u64| {
        let events: Vec<_> = (next..next + count).map(|n| Event::numbered("101", n)).collect();
        feed.send_all(&events).await;
        next += count;
    };
    let mut seen = 0;
    for round in 0..3 {
        let mut client = node.connect("101").await;
        // Those written while the node was away, then those written now.
        send(10).await;
        let expected = if round == 0 { 10 } else { 20 };
        for frame in client.expect_acked(expected).await {
            assert_eq!(frame.n(), seen, "lost or repeated over the restart: {frame:?}");
            seen += 1;
        }
        assert!(client.poll(Duration::from_millis(300)).await.is_none());
        node.stop().await.ok();
        feed.all_committed().await;
        send(10).await;
        node.start_again();
        node.ready().await;
    }
    let epoch = node.connect("101").await.hello().epoch.clone();
    node.restart().await;
    assert_ne!(node.connect("101").await.hello().epoch, epoch, "the log in memory began anew");
}

#[tokio::test]
async fn a_new_group_may_start_at_the_latest_event() {
    let feed = Feed::new(1).await;
    feed.send(&Event::new("101", "before")).await;
    let node = Node::builder(&feed).set("kafka.start", "latest").start().await;
    let mut client = node.connect("101").await;
    feed.send(&Event::new("101", "after")).await;
    assert_eq!(client.one().await.kind, "after");
}

#[tokio::test]
async fn a_client_error_that_librdkafka_calls_fatal_ends_the_process_with_a_message() {
    for consumer in [true, false] {
        let feed = Feed::new(1).await;
        let node = Node::start(&feed).await;
        node.fail_kafka(consumer).await;
        let (process, _node) = node.into_process();
        let finished = process.finish(ENDED).await;
        assert_eq!(finished.code(), 1, "{finished:?}");
        assert!(
            finished.stderr.contains("kafka client failed") && finished.stderr.contains("as planned"),
            "{finished:?}"
        );
    }
}
