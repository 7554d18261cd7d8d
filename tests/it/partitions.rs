//! Partitions that cannot be let go, and a topic that is another one under the same name.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Event, Feed, Kafka, Node, Record, eventually, wait::eventually_within};

fn on(partition: i32, event: &Event) -> Record {
    Record { partition: Some(partition), ..Record::new(event.protobuf()) }
}

#[tokio::test]
async fn a_partition_that_cannot_settle_holds_up_no_other() {
    let kafka = Kafka::shared();
    let feed = Feed::named(&kafka, 3);
    // No dead-letter topic: what is bad stays unsettled.
    kafka.create_topic(&feed.topic, 3, &[]).await;
    let node = Node::builder(&feed).set("kafka.partition_refresh", "1s").set("drain.deadline", "8s").start().await;
    let mut client = node.connect("101").await;
    let stuck = Record { partition: Some(0), ..Record::new("{broken") };
    let (_, bad_offset) = feed.put(&stuck).await;
    node.metric_reaches("notifier_unsettled_events", 1.0).await;
    feed.put(&on(1, &Event::numbered("101", 0))).await;
    feed.put(&on(2, &Event::numbered("101", 1))).await;
    client.expect_acked(2).await;

    node.assign(json!([])).await;
    let committed = async |partition: i32, position: i64| {
        eventually(&format!("position {position} of partition {partition}"), async || {
            let all = feed.kafka.positions(&feed.topic, &feed.group, 3).await;
            let (found, _) = all[usize::try_from(partition).expect("a partition")];
            (found == Some(position)).then_some(())
        })
        .await;
    };
    committed(1, 1).await;
    committed(2, 1).await;

    // The stuck partition is still on its way out; others come and go as if it were not.
    for round in 0..3 {
        for partition in [1, 2] {
            node.assign(json!([partition])).await;
            let n = 2 + 2 * round + u64::try_from(partition - 1).expect("small");
            feed.put(&on(partition, &Event::numbered("101", n))).await;
            assert_eq!(client.expect_acked(1).await[0].n(), n);
        }
    }
    node.assign(json!([1, 2])).await;
    feed.put(&on(1, &Event::numbered("101", 8))).await;
    assert_eq!(client.expect_acked(1).await[0].n(), 8);

    let (process, _node) = node.into_process();
    process.signal("TERM");
    let finished = process.finish(Duration::from_secs(30)).await;
    assert_eq!(finished.code(), 0, "{finished:?}");
    let positions = feed.kafka.positions(&feed.topic, &feed.group, 3).await;
    assert!(positions[0].0.unwrap_or(0) <= bad_offset, "committed past an unsettled record: {positions:?}");
    assert_eq!((positions[1].0, positions[2].0), (Some(5), Some(4)), "{positions:?}");
}

#[tokio::test]
async fn a_stuck_partition_that_is_given_back_goes_on_where_it_was() {
    let kafka = Kafka::shared();
    let feed = Feed::named(&kafka, 1);
    kafka.create_topic(&feed.topic, 1, &[]).await;
    let node = Node::builder(&feed).set("kafka.partition_refresh", "1s").start().await;
    let mut client = node.connect("101").await;
    feed.send(&Event::numbered("101", 0)).await;
    feed.put(&Record { partition: Some(0), ..Record::new("{broken") }).await;
    feed.send(&Event::numbered("101", 1)).await;
    client.expect_acked(2).await;
    node.metric_reaches("notifier_unsettled_events", 1.0).await;
    node.assign(json!([])).await;
    node.assign(json!("all")).await;
    feed.send(&Event::numbered("101", 2)).await;
    kafka.create_topic(&feed.dead_letter_topic, 1, &[]).await;
    assert_eq!(client.expect_acked(1).await[0].n(), 2);
    feed.all_committed().await;
    assert_eq!(feed.dead_letters(1).await.len(), 1, "one bad record, one dead letter");
}

/// Deletes the topic under a running node, creates another of that name, and checks that what is written to it
/// arrives.
async fn survives_a_new_topic(before: u64, after: u64, noticed: bool) {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("kafka.partition_refresh", "1s").start().await;
    let mut client = node.connect("101").await;
    let events =
        |from: u64, count: u64| -> Vec<_> { (from..from + count).map(|n| on(0, &Event::numbered("101", n))).collect() };
    feed.kafka.write_all(&feed.topic, &events(0, before)).await;
    client.expect_acked(usize::try_from(before).expect("small")).await;
    feed.all_committed().await;

    feed.kafka.delete_topic(&feed.topic).await;
    if noticed {
        node.unready(&feed.topic).await;
    }
    feed.kafka.recreate_topic(&feed.topic, 1).await;
    // A producer that never knew the old topic.
    let fresh = Kafka::at(&feed.kafka.bootstrap);
    fresh.write_all(&feed.topic, &events(before, after)).await;
    for n in before..before + after {
        let frame = eventually_within(Duration::from_secs(60), &format!("event {n}"), async || {
            client.poll(Duration::from_millis(100)).await
        })
        .await;
        assert_eq!(frame.n(), n, "lost or repeated: {frame:?}");
        client.ack(frame.number()).await;
    }
    node.ready().await;
    let log = node.log();
    assert!(log.contains("our position") || log.contains("the topic is gone"), "nothing in the log:\n{log}");
    feed.all_committed().await;
}

#[tokio::test]
async fn a_topic_deleted_and_created_again_is_read_from_its_beginning() {
    survives_a_new_topic(5, 2, false).await;
}

#[tokio::test]
async fn a_topic_whose_absence_was_noticed_is_read_from_its_beginning() {
    survives_a_new_topic(5, 2, true).await;
}

#[tokio::test]
async fn a_new_topic_that_is_longer_than_the_old_one_is_read_from_its_beginning() {
    survives_a_new_topic(2, 6, true).await;
}
