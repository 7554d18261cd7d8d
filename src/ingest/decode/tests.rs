use prost::Message as _;

use super::*;
use crate::proto::{self, DeliveryOptions, Notification, NotificationDeliveryRequested};

mod properties;
mod rejected;

const AT: UnixMillis = 1_795_251_600_123;

fn decoder() -> Decoder {
    Decoder::new("cluster", "events", 1000, Arc::new(|_| Options::default()))
}

fn decode(value: &[u8], headers: &Headers<'_>) -> Result<Event, Rejected> {
    decode_by(&decoder(), value, headers)
}

fn decode_by(decoder: &Decoder, value: &[u8], headers: &Headers<'_>) -> Result<Event, Rejected> {
    decoder.decode(&Record { value: Some(value), headers, timestamp: Some(AT), partition: 3, offset: 7 })
}

fn json(text: &str) -> Result<Event, Rejected> {
    decode(text.as_bytes(), &[])
}

/// Fields of a short JSON event, in place of the usual ones.
fn short(fields: &str) -> Result<Event, Rejected> {
    json(&format!(r#"{{"target":"101","type":"greeting",{fields}}}"#))
}

fn message() -> NotificationDeliveryRequested {
    NotificationDeliveryRequested {
        user_id: "101".into(),
        notification: Some(Notification {
            notification_type: "greeting".into(),
            data: r#"{"hello": "world"}"#.into(),
            ..Notification::default()
        }),
        notification_id: "n1".into(),
        ..NotificationDeliveryRequested::default()
    }
}

fn expected() -> Event {
    Event {
        user: UserId::new("101").unwrap(),
        session: None,
        id: NotificationId::new("n1").unwrap(),
        notification_type: "greeting".into(),
        payload: r#"{"hello": "world"}"#.into(),
        options: Options::default(),
        created_at: AT,
        recorded_at: AT,
    }
}

fn confluent(prefix: &[u8], body: &[u8]) -> Vec<u8> {
    [&[0, 0, 0, 0, 9], prefix, body].concat()
}

/// A record's header.
type Header<'a> = (&'a str, Option<&'a [u8]>);

const CE_TYPE: Header<'static> = ("ce_type", Some(b"greeting"));
const CE_EVENT: Header<'static> = ("ce_type", Some(CLOUDEVENTS_EVENT_TYPE.as_bytes()));
const CE_SUBJECT: Header<'static> = ("ce_subject", Some(b"101"));
const CE_ID: Header<'static> = ("ce_id", Some(b"n1"));
const STRUCTURED: Header<'static> = ("content-type", Some(b"application/cloudevents+json; charset=utf-8"));

const SHORT: &[u8] = br#"{"target":101,"type":"greeting","payload": {"hello": "world"} ,"id":"n1"}"#;
const CAMEL: &[u8] = br#"{"userId":"101","notification":{"notificationType":"greeting","data":"{\"hello\": \"world\"}","sequence":"5","x":[]},"notificationId":"n1","unknown":{"deep":[1]}}"#;
const SNAKE: &[u8] = br#"{"user_id":"101","notification":{"notification_type":"greeting","data":" {\"hello\": \"world\"}\n","notification_id":"n1"},"session_id":"","options":null}"#;

#[test]
fn every_form_gives_the_same_event() {
    let raw = message().encode_to_vec();
    let structured = br#"{"specversion":"1.0","source":"/x","type":"greeting","id":"n1","subject":"101","datacontenttype":"application/json","data": {"hello": "world"} }"#;
    let base64 = br#"{"type":"greeting","id":"n1","subject":"101","data_base64":"eyJoZWxsbyI6ICJ3b3JsZCJ9"}"#;
    let own =
        [br#"{"type":"atlas.notifier.v1.NotificationDeliveryRequested","id":"other","data":"#, SHORT, b"}"].concat();
    let forms: Vec<(&str, Vec<u8>, Vec<Header<'_>>)> = vec![
        ("raw", raw.clone(), vec![]),
        ("raw with other headers", raw.clone(), vec![("traceparent", Some(b"\xff")), ("content-type", None)]),
        ("confluent, first message", confluent(&[0], &raw), vec![]),
        ("confluent, indexes 1 and 70", confluent(&[4, 2, 0x8c, 1], &raw), vec![]),
        ("confluent, JSON Schema", confluent(&[], SHORT), vec![]),
        ("JSON, short", SHORT.to_vec(), vec![]),
        ("JSON, camelCase", CAMEL.to_vec(), vec![]),
        ("JSON, snake_case", SNAKE.to_vec(), vec![]),
        ("CloudEvents binary", br#"{"hello": "world"}"#.to_vec(), vec![CE_TYPE, CE_SUBJECT, CE_ID]),
        ("CloudEvents binary, our type", raw.clone(), vec![CE_EVENT, ("ce_id", Some(b"other"))]),
        ("CloudEvents binary, our type in JSON", CAMEL.to_vec(), vec![CE_EVENT]),
        ("CloudEvents binary, our type, Confluent", confluent(&[0], &raw), vec![CE_EVENT]),
        ("CloudEvents structured", structured.to_vec(), vec![STRUCTURED]),
        ("CloudEvents structured wins", structured.to_vec(), vec![("ce_type", Some(b"x")), STRUCTURED]),
        (
            "CloudEvents structured, base64",
            base64.to_vec(),
            vec![("Content-Type", Some(b"Application/CloudEvents+JSON"))],
        ),
        ("CloudEvents structured, our type", own, vec![STRUCTURED]),
        (
            "the last header counts",
            b" {\"hello\": \"world\"} ".to_vec(),
            vec![CE_EVENT, CE_TYPE, ("ce_id", None), CE_SUBJECT, CE_ID],
        ),
    ];
    for (form, value, headers) in forms {
        assert_eq!(decode(&value, &headers), Ok(expected()), "{form}");
    }
}

#[test]
fn every_field_arrives_in_every_form_that_has_it() {
    let message = NotificationDeliveryRequested {
        options: Some(DeliveryOptions {
            durability: proto::Durability::Inbox.into(),
            priority: proto::Priority::High.into(),
            collapse_key: "k".into(),
            ttl: Some(prost_types::Duration { seconds: 5400, nanos: 0 }),
        }),
        requested_at: Some(prost_types::Timestamp { seconds: 1_795_251_500, nanos: 5_999_999 }),
        ..message()
    };
    let json = |options: &str| {
        format!(
            r#"{{"user_id":"101","notification":{{"notification_type":"greeting","data":"{{\"hello\": \"world\"}}","createdAt":"2020-01-01T00:00:00Z"}},"notification_id":"n1","requestedAt":"2026-11-21T09:58:20.005+01:00","options":{{{options}}}}}"#
        )
    };
    let forms = [
        message.encode_to_vec(),
        json(r#""durability":"inbox","priority":"high","collapse_key":"k","ttl":"1h 30m""#).into_bytes(),
        json(r#""durability":"DURABILITY_INBOX","priority":"PRIORITY_HIGH","collapseKey":"k","ttl":"5400s""#)
            .into_bytes(),
        json(r#""durability":3,"priority":2,"collapseKey":"k","ttl":5400"#).into_bytes(),
        json(r#""durability":3.0,"priority":2e0,"collapseKey":"k","ttl":5400.0"#).into_bytes(),
    ];
    let options = Options {
        durability: Durability::Inbox,
        priority: Priority::High,
        collapse_key: Some("k".into()),
        ttl: Some(Duration::from_secs(5400)),
    };
    for value in forms {
        let text = String::from_utf8_lossy(&value).into_owned();
        let event = decode(&value, &[]).expect(&text);
        assert_eq!(event.options, options, "{text}");
        assert_eq!(event.created_at, message.requested_at.unwrap().seconds * 1000 + 5, "{text}");
        assert_eq!(event.recorded_at, AT);
    }
    let time = ("ce_time", Some(&b"1969-12-31T23:59:59.5Z"[..]));
    assert_eq!(decode(b"1", &[CE_TYPE, CE_SUBJECT, time]).unwrap().created_at, -500);
    let envelope = br#"{"type":"t","subject":7,"time":"1970-01-01T00:00:01Z"}"#;
    assert_eq!(decode(envelope, &[STRUCTURED]).unwrap().created_at, 1000);
    let notified = br#"{"user_id":"1","notification":{"notification_type":"t","created_at":"1970-01-01T00:00:02Z"}}"#;
    assert_eq!(decode(notified, &[]).unwrap().created_at, 2000);
}

#[test]
fn an_events_own_options_win_over_those_of_its_type() {
    let defaults = |notification_type: &str| Options {
        durability: if notification_type == "greeting" { Durability::Inbox } else { Durability::Transient },
        priority: Priority::Low,
        collapse_key: None,
        ttl: Some(Duration::from_secs(9)),
    };
    let decoder = Decoder::new("c", "t", 1000, Arc::new(defaults));
    let decode = |text: &str| decode_by(&decoder, text.as_bytes(), &[]).unwrap().options;
    let by_type = decode(r#"{"target":"1","type":"greeting"}"#);
    assert_eq!(by_type, defaults("greeting"));
    let own = decode(r#"{"target":"1","type":"greeting","durability":"durable","priority":"critical","ttl":"1s"}"#);
    assert_eq!(
        (own.durability, own.priority, own.ttl),
        (Durability::Durable, Priority::Critical, Some(Duration::from_secs(1)))
    );
    let unknown = decode(r#"{"target":"1","type":"greeting","durability":99,"priority":0}"#);
    assert_eq!(unknown, by_type);
}

#[test]
fn an_event_for_one_session_is_always_transient() {
    let event = short(r#""session":42,"durability":"inbox""#).unwrap();
    assert_eq!((event.session.as_deref(), event.options.durability), (Some("42"), Durability::Transient));
    assert!(!event.is_stored());
}

#[test]
fn numbers_as_ids_keep_their_digits() {
    let event = json(r#"{"target":12345678901234567890123,"type":"t","id":-7}"#).unwrap();
    assert_eq!((&*event.user, &*event.id), ("12345678901234567890123", "-7"));
}

#[test]
fn payloads_stay_byte_for_byte() {
    let texts = [
        r#"{"z":1,"a":9007199254740993,"pi":3.14000,"big":1e999,"s":"\u00e9é\ud800","n":null}"#,
        "[1,  2,\n\t3]",
        r#""just a text""#,
        "-0.0",
        "true",
    ];
    for text in texts {
        assert_eq!(&*short(&format!(r#""payload":{text}"#)).unwrap().payload, text);
        assert_eq!(&*decode(text.as_bytes(), &[CE_TYPE, CE_SUBJECT]).unwrap().payload, text);
        let data = format!(r#"{{"type":"t","subject":"1","datacontenttype":"text/plain","data":{text}}}"#);
        assert_eq!(&*decode(data.as_bytes(), &[STRUCTURED]).unwrap().payload, text);
        let mut message = message();
        message.notification.as_mut().unwrap().data = text.into();
        assert_eq!(&*decode(&message.encode_to_vec(), &[]).unwrap().payload, text);
    }
}

#[test]
fn data_that_is_no_json_text_becomes_a_json_string_and_no_data_null() {
    for (data, payload) in [
        ("", "null"),
        ("hello \"you\"\n", r#""hello \"you\"\n""#),
        (" ", "\" \""),
        ("{\"a\":1", r#""{\"a\":1""#),
        ("{} {}", "\"{} {}\""),
        ("NaN", "\"NaN\""),
        ("01", "\"01\""),
    ] {
        assert_eq!(&*decode(data.as_bytes(), &[CE_TYPE, CE_SUBJECT]).unwrap().payload, payload, "{data:?}");
        let mut message = message();
        message.notification.as_mut().unwrap().data = data.into();
        assert_eq!(&*decode(&message.encode_to_vec(), &[]).unwrap().payload, payload, "{data:?}");
    }
    assert_eq!(&*short(r#""id":"n1""#).unwrap().payload, "null");
    assert_eq!(&*short(r#""payload":null"#).unwrap().payload, "null");
    assert_eq!(&*decode(br#"{"type":"t","subject":"1"}"#, &[STRUCTURED]).unwrap().payload, "null");
    let none = Record { value: None, headers: &[CE_TYPE, CE_SUBJECT], timestamp: None, partition: 0, offset: 0 };
    assert_eq!(&*decoder().decode(&none).unwrap().payload, "null");
}

#[test]
fn deep_json_is_delivered_unchanged_on_a_small_stack() {
    let run = || {
        let decoder = Decoder::new("c", "t", usize::MAX, Arc::new(|_| Options::default()));
        for deep in [("[", "]"), (r#"{"a":"#, "}")]
            .map(|(open, close)| format!("{}1{}", open.repeat(100_000), close.repeat(100_000)))
        {
            let short = format!(r#"{{"ignored":{deep},"target":"1","type":"t","payload":{deep}}}"#);
            let envelope = format!(r#"{{"type":"t","subject":"1","ignored":{deep},"data":{deep}}}"#);
            let mut message = message();
            message.notification.as_mut().unwrap().data.clone_from(&deep);
            let forms: [(Vec<u8>, &Headers<'_>); 4] = [
                (short.into_bytes(), &[]),
                (envelope.into_bytes(), &[STRUCTURED]),
                (deep.clone().into_bytes(), &[CE_TYPE, CE_SUBJECT]),
                (message.encode_to_vec(), &[]),
            ];
            for (value, headers) in forms {
                assert!(*decode_by(&decoder, &value, headers).unwrap().payload == *deep);
            }
            let misplaced = format!(r#"{{"target":{deep},"type":"t","durability":{deep}}}"#);
            assert_eq!(decode_by(&decoder, misplaced.as_bytes(), &[]).unwrap_err().reason, Reason::InvalidField);
        }
    };
    std::thread::Builder::new().stack_size(256 * 1024).spawn(run).unwrap().join().unwrap();
}

#[test]
fn a_derived_id_is_fixed_by_where_the_record_stands() {
    let value = br#"{"target":"1","type":"t","id":""}"#;
    let record = Record { value: Some(value), headers: &[], timestamp: Some(AT), partition: 3, offset: 7 };
    let id = |decoder: &Decoder, record: Record<'_>| decoder.decode(&record).unwrap().id.to_string();
    let first = id(&decoder(), record);
    assert_eq!(id(&decoder(), record), first);

    let uuid = uuid::Uuid::parse_str(&first).unwrap();
    assert_eq!((uuid.get_version_num(), uuid.get_variant()), (8, uuid::Variant::RFC4122));
    assert_eq!(uuid.as_u128() >> 80, u128::try_from(AT).unwrap());
    // Written down: another value would deliver everything that is read again twice.
    assert_eq!(first, "01a1fd55-7afb-8c57-b67e-fdc4802aeb09");

    let defaults: Defaults = Arc::new(|_| Options::default());
    let others = [
        id(&decoder(), Record { partition: 4, ..record }),
        id(&decoder(), Record { offset: 8, ..record }),
        id(&decoder(), Record { timestamp: Some(AT + 1), ..record }),
        id(&Decoder::new("cluste", "revents", 1000, defaults.clone()), record),
        id(&Decoder::new("other", "events", 1000, defaults.clone()), record),
    ];
    for (i, other) in others.iter().enumerate() {
        assert!(*other != first && !others[i + 1..].contains(other), "{i}");
    }
    let unstamped = Record { timestamp: Some(-1), ..record };
    assert_eq!(id(&decoder(), unstamped), id(&decoder(), Record { timestamp: None, ..record }));
    assert!(decoder().decode(&unstamped).unwrap().recorded_at > AT - 1_000_000_000_000);
}
