//! Every form in which an event may be written arrives, and its payload is not touched.

use serde_json::json;

use crate::harness::{Event, Feed, Node, Record, frame::Frame};

const PROTO_TYPE: &str = "atlas.notifier.v1.NotificationDeliveryRequested";

/// Writes `record` for user `101` and gives what the user gets.
async fn delivered(record: Record) -> Frame {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    feed.put(&record).await;
    client.one().await
}

fn event() -> Event {
    Event::new("101", "update_channel").data(r#"{"channel":999}"#).id("form-1")
}

fn cloud_event(event_type: &str, value: &[u8]) -> Record {
    Record::new(value)
        .header("ce_specversion", "1.0")
        .header("ce_source", "/test")
        .header("ce_id", "form-1")
        .header("ce_type", event_type)
}

#[track_caller]
fn assert_arrived(frame: &Frame) {
    assert_eq!(frame.target.as_deref(), Some("101"), "{frame:?}");
    assert_eq!(frame.kind, "update_channel", "{frame:?}");
    assert_eq!(frame.raw(), r#"{"channel":999}"#, "{frame:?}");
    assert_eq!(frame.id.as_deref(), Some("form-1"), "{frame:?}");
    assert_eq!(frame.seq, Some(1), "{frame:?}");
    assert!(frame.ts.as_deref().is_some_and(|ts| ts.ends_with('Z')), "{frame:?}");
}

#[tokio::test]
async fn raw_protobuf_arrives() {
    assert_arrived(&delivered(Record::new(event().protobuf())).await);
}

#[tokio::test]
async fn confluent_wire_format_arrives_with_every_form_of_message_indexes() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    // The short form of [0]; [0] spelled out; [1, 0]: zig-zag varints, the count first.
    for (n, indexes) in [&[0][..], &[2, 0], &[4, 2, 0]].into_iter().enumerate() {
        let id = format!("indexes-{n}");
        feed.put(&Record::new(event().id(&id).confluent(indexes))).await;
        let frame = client.one().await;
        assert_eq!(frame.id, Some(id), "{frame:?}");
        assert_eq!(frame.raw(), r#"{"channel":999}"#);
    }
}

#[tokio::test]
async fn cloud_event_binary_that_carries_the_protobuf_arrives() {
    let record = cloud_event(PROTO_TYPE, &event().protobuf()).header("content-type", "application/protobuf");
    assert_arrived(&delivered(record).await);
}

#[tokio::test]
async fn cloud_event_binary_of_another_type_is_mapped_by_its_attributes() {
    let record = cloud_event("update_channel", br#"{"channel":999}"#)
        .header("ce_subject", "101")
        .header("content-type", "application/json");
    assert_arrived(&delivered(record).await);
}

#[tokio::test]
async fn cloud_event_structured_arrives() {
    let value = json!({
        "specversion": "1.0", "source": "/test", "id": "form-1", "type": "update_channel",
        "subject": "101", "datacontenttype": "application/json", "data": {"channel": 999},
    });
    let record = Record::new(value.to_string()).header("content-type", "application/cloudevents+json; charset=utf-8");
    assert_arrived(&delivered(record).await);
}

#[tokio::test]
async fn cloud_event_structured_that_carries_the_request_arrives() {
    let value = json!({
        "specversion": "1.0", "source": "/test", "id": "ignored-for-the-inner-one",
        "type": PROTO_TYPE, "data": event().camel(),
    });
    let record = Record::new(value.to_string()).header("content-type", "application/cloudevents+json");
    assert_arrived(&delivered(record).await);
}

#[tokio::test]
async fn json_with_camel_case_names_arrives() {
    assert_arrived(&delivered(Record::new(event().camel().to_string())).await);
}

#[tokio::test]
async fn json_with_snake_case_names_arrives() {
    assert_arrived(&delivered(Record::new(event().snake().to_string())).await);
}

#[tokio::test]
async fn short_json_with_a_string_target_arrives() {
    let value = json!({
        "target": "101", "type": "update_channel", "payload": {"channel": 999}, "id": "form-1",
        "durability": "DURABILITY_DURABLE", "priority": "high", "ttl": "1h",
    });
    assert_arrived(&delivered(Record::new(value.to_string())).await);
}

#[tokio::test]
async fn short_json_with_a_number_as_target_arrives() {
    let value = json!({
        "target": 101, "type": "update_channel", "payload": {"channel": 999}, "id": "form-1",
        "durability": "durable",
    });
    assert_arrived(&delivered(Record::new(value.to_string())).await);
}

#[tokio::test]
async fn short_json_can_be_transient() {
    let value = json!({
        "target": 101, "type": "typing", "payload": null, "durability": "transient",
    });
    let frame = delivered(Record::new(value.to_string())).await;
    assert_eq!((frame.kind.as_str(), frame.raw(), frame.seq), ("typing", "null", None));
}

#[tokio::test]
async fn an_event_without_id_gets_one_that_is_its_own() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    feed.send_all(&[Event::new("101", "a"), Event::new("101", "a")]).await;
    let frames = client.expect(2).await;
    let ids: Vec<_> = frames.iter().map(|frame| frame.id.clone()).collect();
    assert!(ids.iter().flatten().all(|id| !id.is_empty()), "{ids:?}");
    assert!(ids[0].is_some() && ids[0] != ids[1], "{ids:?}");
}

#[tokio::test]
async fn compressed_batches_arrive_whatever_the_codec() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    // Long and repetitive, so that the producer really sends it compressed.
    let data = format!("{{\"text\":\"{}\"}}", "notification ".repeat(500));
    for codec in ["zstd", "lz4", "gzip", "snappy"] {
        let kafka = feed.kafka.compressed(codec);
        let record = Record::new(Event::new("101", codec).data(&data).protobuf());
        kafka.write_all(&feed.topic, &vec![record; 20]).await;
        for frame in client.expect_acked(20).await {
            assert_eq!(frame.kind, codec);
            assert_eq!(frame.raw(), data);
        }
    }
}

#[tokio::test]
async fn payload_arrives_byte_for_byte() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    let mut stream = node.stream("101", "device=other").await;
    let payloads = [
        r#"{"n":9007199254740993,"m":-9007199254740993,"big":123456789012345678901234567890}"#,
        r#"{"f":1.10,"e":1E400,"z":-0.0,"tiny":1e-999}"#,
        r#"{ "spaces" : [ 1 ,2 ] , "order":1, "b":2, "a":3 }"#,
        r#"{"same":1,"same":2}"#,
        r#"{"escaped":"\u00e9\/\ud83d\ude00","plain":"é😀","slash":"\\\""}"#,
        r#""a string""#,
        "null",
        "[]",
        "42",
    ];
    for payload in payloads {
        feed.send(&Event::new("101", "t").data(payload)).await;
        assert_eq!(client.one().await.raw(), payload);
        assert_eq!(stream.expect(1).await[0].frame().raw(), payload);
        // The short form carries its payload as JSON inside JSON.
        let short = format!(r#"{{"target":"101","type":"t","payload":{payload}}}"#);
        feed.put(&Record::new(short)).await;
        assert_eq!(client.one().await.raw(), payload);
        assert_eq!(stream.expect(1).await[0].frame().raw(), payload);
    }
}

#[tokio::test]
async fn payload_with_line_breaks_keeps_its_meaning_on_every_protocol() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    let mut stream = node.stream("101", "device=other").await;
    for payload in ["{\n  \"a\": 1\n}", "{\r\n\"a\": 1\r\n}", "{\n\n\"a\": 1}"] {
        feed.send(&Event::new("101", "t").data(payload)).await;
        assert_eq!(client.one().await.raw(), payload);
        // A line break is what separates fields there: the bytes may differ, the value may not.
        assert_eq!(stream.expect(1).await[0].frame().payload(), json!({"a": 1}));
    }
}

#[tokio::test]
async fn data_that_is_no_json_arrives_as_a_json_string() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    let texts = ["hello, plain \"text\"", "{\"cut\":", "1 2", "NaN", "línea\nuna\u{1F600}\t\u{1}"];
    for text in texts {
        feed.send(&Event::new("101", "t").data(text)).await;
        assert_eq!(client.one().await.payload(), json!(text));
    }
}

#[tokio::test]
async fn ten_thousand_levels_of_nesting_do_not_stop_the_partition() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let object = format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    for payload in [&deep, &object] {
        let short = format!(r#"{{"target":"101","type":"deep","payload":{payload}}}"#);
        let mut camel = Event::new("101", "deep").camel();
        camel["notification"]["data"] = json!(payload);
        let records = [
            Record::new(Event::new("101", "deep").data(payload).protobuf()),
            Record::new(short),
            Record::new(camel.to_string()),
            Record::new(payload.as_str()),
            Record::new(Event::new("101", "end").protobuf()),
        ];
        feed.kafka.write_all(&feed.topic, &records).await;
        loop {
            let frame = client.one().await;
            if frame.kind == "end" {
                break;
            }
            assert_eq!(frame.raw(), payload.as_str(), "delivered, but not unchanged");
        }
    }
    feed.all_committed().await;
}
