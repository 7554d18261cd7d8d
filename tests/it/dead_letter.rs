//! A record that cannot be delivered goes to the dead-letter topic unchanged, and harms no other.

use serde_json::json;

use crate::harness::{
    Event, Feed, Kafka, Node, Record,
    kafka::{RECORD_BYTES_MAX, Stored},
};

/// Writes each bad record with a good event behind it; every good one must arrive, in order, and
/// every bad one must be found in the dead-letter topic. Gives the dead letters in order.
async fn dead_letters_of(bad: &[Record]) -> Vec<Stored> {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("good").await;
    let mut origins = Vec::new();
    for (n, record) in bad.iter().enumerate() {
        origins.push(feed.put(record).await);
        feed.send(&Event::numbered("good", n as u64)).await;
    }
    for (n, frame) in client.expect_acked(bad.len()).await.iter().enumerate() {
        assert_eq!(frame.n(), n as u64, "{frame:?}");
    }
    let letters = feed.dead_letters(bad.len()).await;
    assert_eq!(letters.len(), bad.len(), "one dead letter for each: {letters:?}");
    let source = feed.kafka.read_all(&feed.topic).await;
    for ((letter, record), (partition, offset)) in letters.iter().zip(bad).zip(origins) {
        assert_eq!((&letter.key, &letter.value), (&record.key, &record.value), "{letter:?}");
        let kept: Vec<_> = own(letter);
        assert_eq!(kept, record.headers, "{letter:?}");
        assert!(letter.header("notifier-error").is_some_and(|error| !error.is_empty()));
        assert_eq!(letter.header("notifier-origin-topic"), Some(feed.topic.clone()));
        assert_eq!(letter.header("notifier-origin-partition"), Some(partition.to_string()));
        assert_eq!(letter.header("notifier-origin-offset"), Some(offset.to_string()));
        let origin = source.iter().find(|stored| stored.offset == offset).expect("the record");
        let timestamp = letter.header("notifier-origin-timestamp");
        assert_eq!(timestamp, Some(origin.timestamp.to_string()));
    }
    let counted = node.metrics().await.sum("notifier_dead_letters_total");
    assert_eq!(counted, bad.len() as f64);
    feed.all_committed().await;
    letters
}

/// The headers that the producer wrote.
fn own(letter: &Stored) -> Vec<(String, Option<Vec<u8>>)> {
    let added = |name: &str| name.starts_with("notifier-");
    letter.headers.iter().filter(|(name, _)| !added(name)).cloned().collect()
}

#[tokio::test]
async fn undecodable_bytes_of_every_form_become_dead_letters() {
    let cloud = |value: &str| {
        Record::new(value).header("ce_specversion", "1.0").header("ce_source", "/test").header("ce_id", "1")
    };
    let structured = |value: &str| Record::new(value).header("content-type", "application/cloudevents+json");
    dead_letters_of(&[
        Record::new(*b"\xff\xff\xff\xff\xff").key("raw protobuf"),
        Record::new(*b"\x07nonsense").key("no tag of protobuf"),
        Record::new(*b"\x00\x00").key("confluent, cut in the prefix"),
        Record::new(*b"\x00\x00\x00\x00\x2a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").key("indexes"),
        Record::new(*b"\x00\x00\x00\x00\x2a\x00\xff\xff\xff").key("confluent, no protobuf"),
        Record::new("{").key("json, cut"),
        Record::new("{}").key("json, nothing in it"),
        Record::new(r#"{"target":"101","type":"t","payload":}"#).key("json, wrong"),
        Record::new(r#"{"target":{"no":1},"type":"t","payload":1}"#).key("json, no target"),
        Record::new(r#"{"target":"101","type":"t","payload":1,"durability":"eternal"}"#).key("enum"),
        Record::new(*b"{\"target\":\"\xff\xfe\",\"type\":\"t\",\"payload\":1}").key("no UTF-8"),
        Record::new(r#"{"target":"101","payload":{}}"#).key("json, no type"),
        cloud("\u{1}\u{2}").header("ce_type", "atlas.notifier.v1.NotificationDeliveryRequested"),
        cloud("{}").header("ce_type", "t").key("no subject"),
        structured("not json").key("structured, no json"),
        structured(r#"{"specversion":"1.0","id":"1","source":"/"}"#).key("no type, no subject"),
        Record { value: Some(Vec::new()), ..Record::default() }.key("empty value"),
        Record::default().key("no value"),
    ])
    .await;
}

#[tokio::test]
async fn every_truncation_of_a_protobuf_is_dead_or_delivered_and_never_in_the_way() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("cut").await;
    let whole = Event::new("cut", "whole").id("id").data(r#"{"a":[1,2,3]}"#).protobuf();
    let mut records: Vec<_> = (0..whole.len()).map(|end| Record::new(&whole[..end])).collect();
    records.push(Record::new(Event::new("cut", "end").protobuf()));
    feed.kafka.write_all(&feed.topic, &records).await;
    // A cut between two fields leaves a valid message: those are delivered.
    let mut delivered = 0;
    while client.one().await.kind != "end" {
        delivered += 1;
    }
    assert!(delivered < 5, "{delivered} truncated events were delivered");
    let letters = feed.dead_letters(whole.len() - delivered).await;
    // Those with the same id are one notification, so a few may be neither.
    assert!(letters.len() >= whole.len() - 5, "{} of {}", letters.len(), whole.len());
    feed.all_committed().await;
}

#[tokio::test]
async fn ids_that_break_the_rules_become_dead_letters() {
    let good = Event::new("101", "t").id("id");
    let long = "u".repeat(10 * 1024);
    let edge = "u".repeat(257);
    let mut bad = vec![
        Event { user: String::new(), ..good.clone() },
        Event { kind: String::new(), ..good.clone() },
        Event { user: long.clone(), ..good.clone() },
        Event { kind: long.clone(), ..good.clone() },
    ];
    // NUL, a C1 control, right-to-left override, bidi isolate, DEL, and one byte too long.
    for wrong in ["a\0b", "a\u{85}b", "a\u{202E}b", "a\u{2066}b", "a\u{7f}b", &edge] {
        bad.push(Event { user: wrong.into(), ..good.clone() });
        bad.push(Event { kind: wrong.into(), ..good.clone() });
        bad.push(good.clone().id(wrong));
        bad.push(good.clone().collapse_key(wrong));
    }
    let records: Vec<_> = bad.iter().map(|event| Record::new(event.protobuf())).collect();
    dead_letters_of(&records).await;
}

#[tokio::test]
async fn ids_at_the_limit_are_delivered() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let user = "u".repeat(256);
    let mut client = node.connect(&user).await;
    let kind = "ü".repeat(128);
    feed.send(&Event::new(&user, &kind).id("世界 👋").collapse_key(&"k".repeat(256))).await;
    let frame = client.one().await;
    assert_eq!((frame.target.as_deref(), frame.kind), (Some(user.as_str()), kind));
    assert_eq!(frame.id.as_deref(), Some("世界 👋"));
}

#[tokio::test]
async fn a_dead_letter_keeps_duplicate_null_and_binary_headers_in_order() {
    let mut record = Record::new(*b"\xff\xff\xff").key("k");
    record.headers = vec![
        ("a".into(), Some(b"1".to_vec())),
        ("b".into(), None),
        ("a".into(), Some(b"2".to_vec())),
        ("a".into(), Some(vec![0, 0xff, 0xfe])),
        ("empty".into(), Some(Vec::new())),
        ("traceparent".into(), Some(b"00-nonsense".to_vec())),
    ];
    dead_letters_of(&[record]).await;
}

#[tokio::test]
async fn duplicate_headers_of_an_event_do_not_stop_the_partition() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    let mut twice = Record::new(r#"{"a":1}"#).header("ce_specversion", "1.0");
    for n in ["1", "2"] {
        twice = twice.header("ce_type", "twice").header("ce_subject", "101").header("ce_id", n);
    }
    feed.put(&twice).await;
    feed.put(&Record::new(Event::new("101", "plain").protobuf()).header("x", "1").header("x", "2")).await;
    let mut frame = client.one().await;
    if frame.kind == "twice" {
        assert_eq!(frame.raw(), r#"{"a":1}"#);
        frame = client.one().await;
    } else {
        feed.dead_letters(1).await;
    }
    assert_eq!(frame.kind, "plain");
}

#[tokio::test]
async fn a_payload_above_the_limit_becomes_a_dead_letter() {
    let data = json!({ "text": "x".repeat(300 * 1024) }).to_string();
    let record = Record::new(Event::new("101", "large").data(&data).protobuf()).key("k");
    dead_letters_of(&[record]).await;
}

async fn feed_for_large_records(dead_letters_large: bool) -> Feed {
    let kafka = Kafka::shared();
    let feed = Feed::named(&kafka, 1);
    let limit = RECORD_BYTES_MAX.to_string();
    let large = [("max.message.bytes", limit.as_str())];
    kafka.create_topic(&feed.topic, 1, &large).await;
    let properties = if dead_letters_large { large } else { [("max.message.bytes", "1048576")] };
    kafka.create_topic(&feed.dead_letter_topic, 1, &properties).await;
    feed
}

fn ten_megabytes() -> Record {
    let data = json!({ "text": "0123456789".repeat(1024 * 1024) }).to_string();
    Record::new(Event::new("101", "huge").data(&data).protobuf()).key("k").header("h", "v")
}

#[tokio::test]
async fn a_record_of_ten_megabytes_becomes_a_dead_letter() {
    let feed = feed_for_large_records(true).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    let record = ten_megabytes();
    feed.put(&record).await;
    feed.send(&Event::new("101", "good")).await;
    assert_eq!(client.one().await.kind, "good");
    let letter = feed.dead_letters(1).await.remove(0);
    // Not `assert_eq`: it would print the megabytes.
    assert!(letter.value == record.value && letter.key == record.key);
    assert_eq!(own(&letter), record.headers);
    feed.all_committed().await;
}

#[tokio::test]
async fn a_dead_letter_that_its_topic_refuses_for_its_size_goes_without_the_value() {
    let feed = feed_for_large_records(false).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    let record = ten_megabytes();
    let (_, offset) = feed.put(&record).await;
    feed.send(&Event::new("101", "good")).await;
    assert_eq!(client.one().await.kind, "good");
    let letter = feed.dead_letters(1).await.remove(0);
    assert!(letter.value.as_deref().unwrap_or_default().is_empty());
    assert!(letter.header("notifier-value-omitted").is_some(), "{:?}", letter.headers);
    assert_eq!(letter.key, record.key);
    assert_eq!(letter.header("notifier-origin-offset"), Some(offset.to_string()));
    feed.all_committed().await;
}
