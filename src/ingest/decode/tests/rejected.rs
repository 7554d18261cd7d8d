//! Everything that must end as a dead letter, with the reason and the words that it is written with.

use super::*;

#[test]
fn what_cannot_be_delivered_is_rejected_with_its_field_and_reason() {
    use Reason::{Empty, InvalidField, TooLarge, Undecodable};

    let edited = |edit: fn(&mut NotificationDeliveryRequested)| {
        let mut message = message();
        edit(&mut message);
        message.encode_to_vec()
    };
    let options = |options: DeliveryOptions| {
        NotificationDeliveryRequested { options: Some(options), ..message() }.encode_to_vec()
    };
    let ttl = |seconds, nanos| {
        options(DeliveryOptions { ttl: Some(prost_types::Duration { seconds, nanos }), ..DeliveryOptions::default() })
    };
    let raw = message().encode_to_vec();
    let data = |data: String| {
        let mut message = message();
        message.notification.as_mut().unwrap().data = data;
        message.encode_to_vec()
    };
    let short = |fields: &str| format!(r#"{{"target":"101","type":"t",{fields}}}"#).into_bytes();
    let ce = [CE_TYPE, CE_SUBJECT];

    let cases: Vec<(Vec<u8>, &Headers<'_>, Reason, &str)> = vec![
        // The record as a whole.
        (vec![], &[], Empty, "the record has no value"),
        (vec![], &[CE_EVENT], Empty, "no value"),
        (vec![], &[STRUCTURED], Empty, "no value"),
        // Bytes.
        (raw[..raw.len() - 1].to_vec(), &[], Undecodable, "not protobuf"),
        (b"hello".to_vec(), &[], Undecodable, "not protobuf"),
        (b"\x0a\x02\xff\xfe".to_vec(), &[], Undecodable, "user_id"),
        (vec![0], &[], Undecodable, "schema id is cut off"),
        (vec![0; 5], &[], Undecodable, "message indexes"),
        (confluent(&[1], &raw), &[], Undecodable, "message indexes"),
        (confluent(&[4, 1, 0], &raw), &[], Undecodable, "message indexes"),
        (confluent(&[0xfe; 5], &[]), &[], Undecodable, "message indexes"),
        (confluent(&[0], &raw[..9]), &[], Undecodable, "not protobuf"),
        (confluent(&[], b"{"), &[], Undecodable, "not JSON"),
        (b"{\"target\":\"1\"".to_vec(), &[], Undecodable, "not JSON"),
        (b"{\"target\":\"1\"}x".to_vec(), &[], Undecodable, "not JSON"),
        (b"{\"target\":\"1\",\"target\":\"2\"}".to_vec(), &[], Undecodable, "duplicate field `target`"),
        (b"{\"target\":\"1\",\"type\":\"t\",\"x\":\"\xff\"}".to_vec(), &[], Undecodable, "utf-8"),
        (b"\xff".to_vec(), &ce, Undecodable, "CloudEvents data"),
        (b"1".to_vec(), &[CE_TYPE, ("ce_subject", Some(b"\xff"))], Undecodable, "ce_subject"),
        (b"hello".to_vec(), &[CE_EVENT], Undecodable, "not protobuf"),
        (b"[]".to_vec(), &[STRUCTURED], Undecodable, "CloudEvents"),
        (b"{".to_vec(), &[STRUCTURED], Undecodable, "not JSON"),
        (br#"{"type":"t","subject":"1","data_base64":"?"}"#.to_vec(), &[STRUCTURED], Undecodable, "base64"),
        (br#"{"type":"t","subject":"1","data_base64":"/w=="}"#.to_vec(), &[STRUCTURED], Undecodable, "UTF-8"),
        // Identifiers.
        (edited(|m| m.user_id.clear()), &[], InvalidField, "user_id is empty"),
        (edited(|m| m.user_id = "u".repeat(10_240)), &[], InvalidField, "user_id is longer than 256 bytes"),
        (edited(|m| m.user_id = "a\0b".into()), &[], InvalidField, "user_id holds a control character"),
        (edited(|m| m.user_id = "a\u{202e}b".into()), &[], InvalidField, "user_id holds a control character"),
        (edited(|m| m.notification_id = "\u{7f}".into()), &[], InvalidField, "notification_id holds"),
        (edited(|m| m.session_id = "\n".into()), &[], InvalidField, "session_id holds"),
        (edited(|m| m.notification = None), &[], InvalidField, "notification.notification_type is empty"),
        (
            options(DeliveryOptions { collapse_key: "\u{2066}".into(), ..DeliveryOptions::default() }),
            &[],
            InvalidField,
            "options.collapse_key holds",
        ),
        (b"{}".to_vec(), &[], InvalidField, "target is empty"),
        (br#"{"target":"1"}"#.to_vec(), &[], InvalidField, "type is empty"),
        (br#"{"target":true,"type":"t"}"#.to_vec(), &[], InvalidField, "target is neither a text nor an integer"),
        (br#"{"target":"\ud800","type":"t"}"#.to_vec(), &[], InvalidField, "target is neither a text nor an integer"),
        (br#"{"target":55.5,"type":"t"}"#.to_vec(), &[], InvalidField, "target is neither a text nor an integer"),
        (br#"{"target":1e3,"type":"t"}"#.to_vec(), &[], InvalidField, "target is neither a text nor an integer"),
        (br#"{"target":1E3,"type":"t"}"#.to_vec(), &[], InvalidField, "target is neither a text nor an integer"),
        (br#"{"target":55.0,"type":"t"}"#.to_vec(), &[], InvalidField, "target is neither a text nor an integer"),
        (short(r#""id":1.5"#), &[], InvalidField, "id is neither a text nor an integer"),
        (
            br#"{"user_id":5.5,"notification":{"notification_type":"t"}}"#.to_vec(),
            &[],
            InvalidField,
            "user_id is neither a text nor an integer",
        ),
        (br#"{"target":"1","type":7}"#.to_vec(), &[], InvalidField, "type is not a text"),
        (br#"{"target":"1","type":"$bye"}"#.to_vec(), &[], InvalidField, "type starts with $"),
        (br#"{"user_id":"","notification":{"notification_type":"t"}}"#.to_vec(), &[], InvalidField, "user_id is empty"),
        (br#"{"user_id":"1","notification":["t"]}"#.to_vec(), &[], InvalidField, "notification is not an object"),
        (
            br#"{"user_id":"1","notification":{"notification_type":"t","data":{}}}"#.to_vec(),
            &[],
            InvalidField,
            "notification.data is not a text",
        ),
        (
            br#"{"user_id":"1","notification":{"data":"","data":""}}"#.to_vec(),
            &[],
            InvalidField,
            "notification duplicate field",
        ),
        (b"1".to_vec(), &[("ce_type", None), CE_SUBJECT], InvalidField, "ce_type is empty"),
        (b"1".to_vec(), &[CE_TYPE], InvalidField, "ce_subject is empty"),
        (b"1".to_vec(), &[CE_TYPE, CE_SUBJECT, ("ce_subject", None)], InvalidField, "ce_subject is empty"),
        (br#"{"type":"t"}"#.to_vec(), &[STRUCTURED], InvalidField, "subject is empty"),
        (br#"{"subject":"1"}"#.to_vec(), &[STRUCTURED], InvalidField, "type is empty"),
        // Options and times.
        (short(r#""durability":"forever""#), &[], InvalidField, "durability is not a known value"),
        (short(r#""durability":"DURABLE""#), &[], InvalidField, "durability is not a known value"),
        (short(r#""priority":1.5"#), &[], InvalidField, "priority is not a known value"),
        (short(r#""ttl":"soon""#), &[], InvalidField, "ttl is not a duration"),
        (short(r#""ttl":"""#), &[], InvalidField, "ttl is not a duration"),
        (short(r#""ttl":0"#), &[], InvalidField, "ttl is zero"),
        (short(r#""ttl":-5"#), &[], InvalidField, "ttl is not a duration"),
        (short(r#""ttl":"-5s""#), &[], InvalidField, "ttl is not a duration"),
        (short(r#""ttl":99999999999999999999999"#), &[], InvalidField, "ttl is not a duration"),
        (short(r#""ttl":"11000 years""#), &[], InvalidField, "ttl is longer than 10,000 years"),
        (ttl(0, 0), &[], InvalidField, "options.ttl is zero"),
        (ttl(-1, 0), &[], InvalidField, "options.ttl is negative"),
        (ttl(1, -1), &[], InvalidField, "options.ttl is negative"),
        (ttl(1, 1_000_000_000), &[], InvalidField, "options.ttl"),
        (ttl(i64::MAX, 0), &[], InvalidField, "options.ttl is longer"),
        (
            edited(|m| m.requested_at = Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 })),
            &[],
            InvalidField,
            "requested_at is not a time",
        ),
        (
            edited(|m| {
                m.notification.as_mut().unwrap().created_at = Some(prost_types::Timestamp { seconds: 0, nanos: -1 })
            }),
            &[],
            InvalidField,
            "notification.created_at is not a time",
        ),
        (
            br#"{"user_id":"1","notification":{"notification_type":"t"},"requested_at":"yesterday"}"#.to_vec(),
            &[],
            InvalidField,
            "requested_at is not an RFC 3339 time",
        ),
        (b"1".to_vec(), &[CE_TYPE, CE_SUBJECT, ("ce_time", Some(b"now"))], InvalidField, "ce_time is not"),
        (
            br#"{"type":"atlas.notifier.v1.NotificationDeliveryRequested"}"#.to_vec(),
            &[STRUCTURED],
            InvalidField,
            "data is missing",
        ),
        (
            br#"{"type":"atlas.notifier.v1.NotificationDeliveryRequested","data":["1","t"]}"#.to_vec(),
            &[STRUCTURED],
            InvalidField,
            "data is not an object",
        ),
        // Size: 1000 bytes are allowed.
        (data(format!("\"{}\"", "x".repeat(999))), &[], TooLarge, "notification.data has 1001 bytes"),
        (data("x".repeat(999)), &[], TooLarge, "notification.data has 1001 bytes"),
        (data("x".repeat(10_000_000)), &[], TooLarge, "notification.data has 10000000 bytes"),
        (short(&format!(r#""payload":"{}""#, "x".repeat(999))), &[], TooLarge, "payload has 1001 bytes"),
        (b"x".repeat(999), &ce, TooLarge, "data has 1001 bytes"),
    ];
    for (value, headers, reason, message) in cases {
        let shown = String::from_utf8_lossy(&value[..value.len().min(80)]).into_owned();
        let rejected = decode(&value, headers).expect_err(&shown);
        assert_eq!(rejected.reason, reason, "{shown}: {rejected}");
        assert!(rejected.to_string().contains(message), "{shown}: {rejected}, expected {message}");
        assert!(rejected.to_string().len() < 300, "{shown}: a long message");
    }
    let tombstone = Record { value: None, headers: &[], timestamp: None, partition: 0, offset: 0 };
    assert_eq!(decoder().decode(&tombstone).unwrap_err().reason, Empty);
    assert!(decode(&data(format!("\"{}\"", "x".repeat(998))), &[]).is_ok(), "1000 bytes are allowed");
}
