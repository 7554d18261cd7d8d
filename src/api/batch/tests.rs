//! What a body may say, and that what is accepted is read by ingest as the same event.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    event::Options,
    ingest::decode::{Decoder, Record},
};

const PAYLOAD_BYTES_MAX: usize = 64;

fn decoder() -> Decoder {
    Decoder::new("cluster", "topic", PAYLOAD_BYTES_MAX, Arc::new(|_| Options::default()))
}

fn made(index: usize) -> NotificationId {
    NotificationId::new(format!("made-{index}")).unwrap()
}

fn read_text(body: &str) -> Result<Vec<Item>, Refused> {
    read(body.as_bytes(), &decoder(), made)
}

/// The one event of a body, as ingest reads what is written of it.
fn as_ingested(body: &str) -> (Item, crate::event::Event) {
    let item = read_text(body).unwrap().remove(0);
    let value = Some(item.value.as_bytes());
    let record = Record { value, headers: &[], timestamp: Some(7), partition: 0, offset: 0 };
    let event = decoder().decode(&record).unwrap();
    assert_eq!((&item.user, &item.id), (&event.user, &event.id), "{}", item.value);
    (item, event)
}

#[test]
fn an_event_with_an_id_is_written_as_it_stands() {
    for own in [
        r#"{"target":1,"type":"t","payload": { "a":1.0 } ,"id":"mine"}"#,
        r#"{"userId":"1","notification":{"notificationType":"t"},"notificationId":"mine"}"#,
        r#"{"user_id":"1","notification":{"notification_type":"t","notification_id":"mine"}}"#,
        r#"{"user_id":"1","notification_id":"","notification":{"notification_type":"t","notification_id":"mine"}}"#,
    ] {
        let (item, event) = as_ingested(&format!(" \n{own}\t"));
        assert_eq!((item.value.as_str(), &*event.id), (own, "mine"));
    }
}

#[test]
fn an_event_without_an_id_gets_one_in_its_own_form() {
    for (without, with) in [
        (r#"{"target":1,"type":"t"}"#, r#"{"id":"made-0","target":1,"type":"t"}"#),
        (r#"{"target":1,"id":null,"type":"t"}"#, r#"{"id":"made-0","target":1,"type":"t"}"#),
        (r#"{"id":"","target":1,"type":"t"}"#, r#"{"id":"made-0","target":1,"type":"t"}"#),
        (r#"{"\u0069d":"","target":1,"type":"t"}"#, r#"{"id":"made-0","target":1,"type":"t"}"#),
        (
            r#"{"target":null,"userId":"1","notificationId":"","notification":{"notificationType":"t"}}"#,
            r#"{"notification_id":"made-0","target":null,"userId":"1","notification":{"notificationType":"t"}}"#,
        ),
        (
            r#"{"user_id":1,"notification":{"notification_type":"t"},"id":"of the other form"}"#,
            r#"{"notification_id":"made-0","user_id":1,"notification":{"notification_type":"t"},"id":"of the other form"}"#,
        ),
    ] {
        assert_eq!(as_ingested(without).0.value, with);
    }
}

#[test]
fn an_array_is_read_in_its_order_and_each_event_gets_an_id_by_its_place() {
    let items = read_text(r#"[{"target":1,"type":"a"}, {"target":2,"type":"b","id":"own"},{"target":1,"type":"c"}]"#);
    let items = items.unwrap();
    let ids: Vec<_> = items.iter().map(|item| &*item.id).collect();
    assert_eq!(ids, ["made-0", "own", "made-2"]);
}

#[test]
fn of_an_array_all_events_that_break_a_rule_are_named() {
    let long = "x".repeat(PAYLOAD_BYTES_MAX);
    let body = format!(
        r#"[{{"target":1,"type":"t"}},7,{{"target":1}},[],{{"target":1,"type":"$bye"}},{{"target":1,"type":"t","payload":"{long}"}}]"#
    );
    let Err(Refused::Items(errors)) = read_text(&body) else { panic!("accepted") };
    let named: Vec<_> = errors.iter().map(|error| (error.index, error.detail.split(' ').next().unwrap())).collect();
    assert_eq!(named, [(1, "not"), (2, "type"), (3, "not"), (4, "type"), (5, "payload")]);
}

#[test]
fn what_is_neither_an_event_nor_events_is_refused_as_a_whole() {
    let many = format!("[{}1]", "1,".repeat(EVENTS_MAX));
    for body in ["", " ", "[]", "7", "null", "\"x\"", "{", "[{}", "{}{}", "[1],", "\u{feff}{}", &many] {
        assert!(matches!(read_text(body), Err(Refused::Body(_))), "{body}");
    }
    assert!(matches!(read(b"{\"target\":\"\xff\"}", &decoder(), made), Err(Refused::Body(_))));
    let most = format!("[{}1]", "1,".repeat(EVENTS_MAX - 1));
    assert!(matches!(read_text(&most), Err(Refused::Items(errors)) if errors.len() == EVENTS_MAX));
}

#[test]
fn fields_that_come_twice_are_refused() {
    for twice in [
        r#"{"target":1,"target":2,"type":"t"}"#,
        r#"{"target":1,"type":"t","id":"","id":""}"#,
        r#"{"userId":1,"notification":{"notificationType":"t"},"notificationId":"","notification_id":""}"#,
    ] {
        assert!(matches!(read_text(twice), Err(Refused::Event(_))), "{twice}");
    }
}

fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("1e400".to_owned()),
        Just(r#""\ud800""#.to_owned()),
        "[0-9]{1,30}",
        r#""[a-z"$]{0,3}""#.prop_map(|text| text.replace("\"$", "\"")),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(|all| format!("[{}]", all.join(", "))),
            prop::collection::vec(("[a-z]{0,2}", inner), 0..3).prop_map(|all| {
                let all: Vec<_> = all.iter().map(|(name, value)| format!("\"{name}\" : {value}")).collect();
                format!("{{{}}}", all.join(","))
            }),
        ]
    })
}

fn member() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "target",
        "type",
        "payload",
        "id",
        "session",
        "durability",
        "ttl",
        "user_id",
        "userId",
        "notification",
        "notification_id",
        "notificationId",
        "options",
        "other",
        "\\u0069d",
        "a\\\"b",
    ]);
    let usual = prop::sample::select(vec![
        "1",
        "\"x\"",
        "\"\"",
        "null",
        "\"1h\"",
        r#"{"notification_type":"t"}"#,
        r#"{"notificationType":"t","notificationId":"n","data":"\"\\ud800\""}"#,
    ]);
    (name, prop_oneof![usual.prop_map(str::to_owned), json()]).prop_map(|(name, value)| format!("\"{name}\":{value}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// The promise of the API: what it accepts, ingest accepts, with the same user and id.
    #[test]
    fn what_is_accepted_never_becomes_a_dead_letter(members in prop::collection::vec(member(), 0..6), valid: bool) {
        let valid = if valid { r#""target":7,"type":"t""# } else { "" };
        let members: Vec<_> = members.iter().map(String::as_str).chain([valid]).filter(|text| !text.is_empty()).collect();
        let body = format!("{{{}}}", members.join(","));
        if read_text(&body).is_ok() {
            as_ingested(&body);
        }
    }
}
