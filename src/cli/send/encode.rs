//! An event in the forms that producers write; the reverse of what ingest decodes.

use clap::ValueEnum;
use prost::Message as _;
use rdkafka::message::{Header, OwnedHeaders};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{ingest::decode::CLOUDEVENTS_EVENT_TYPE, proto::NotificationDeliveryRequested};

/// The form that an event is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The protobuf message as it is
    Protobuf,
    /// `{"target","type","payload"}`
    Json,
    /// Confluent's wire format around the protobuf message, schema id 1
    Confluent,
    /// CloudEvents in headers
    Cloudevents,
}

/// Magic byte, schema id 1, and the one byte that stands for the schema's first message.
const CONFLUENT_PREFIX: [u8; 6] = [0, 0, 0, 0, 1, 0];

/// An event as a Kafka record.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    pub value: Vec<u8>,
    pub headers: Vec<(&'static str, String)>,
}

/// The short JSON form.
#[derive(Serialize)]
struct Short<'a> {
    target: &'a str,
    #[serde(rename = "type")]
    notification_type: &'a str,
    payload: &'a RawValue,
    id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    session: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    durability: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<&'static str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    collapse_key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<String>,
}

impl Encoded {
    pub(super) fn headers(&self) -> OwnedHeaders {
        let headers = OwnedHeaders::new_with_capacity(self.headers.len());
        self.headers.iter().fold(headers, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
    }
}

/// Encodes an event whose data is a JSON text.
pub(super) fn encode(format: Format, event: &NotificationDeliveryRequested) -> Encoded {
    match format {
        Format::Protobuf => Encoded { value: event.encode_to_vec(), headers: Vec::new() },
        Format::Json => Encoded { value: json(event), headers: Vec::new() },
        Format::Confluent => {
            let value = [&CONFLUENT_PREFIX, &event.encode_to_vec()[..]].concat();
            Encoded { value, headers: Vec::new() }
        }
        Format::Cloudevents => cloudevents(event),
    }
}

fn json(event: &NotificationDeliveryRequested) -> Vec<u8> {
    let notification = event.notification.as_ref().expect("every event of ours has one");
    let options = event.options.clone().unwrap_or_default();
    let short = Short {
        target: &event.user_id,
        notification_type: &notification.notification_type,
        payload: serde_json::from_str(&notification.data).expect("data is checked to be a JSON text"),
        id: &event.notification_id,
        session: &event.session_id,
        durability: set(options.durability, options.durability().as_str_name()),
        priority: set(options.priority, options.priority().as_str_name()),
        collapse_key: &options.collapse_key,
        ttl: options.ttl.as_ref().map(ToString::to_string),
    };
    serde_json::to_vec(&short).expect("plain data is always JSON")
}

/// The name of an enumeration's value, unless it is unspecified.
fn set(number: i32, name: &'static str) -> Option<&'static str> {
    (number != 0).then_some(name)
}

/// Of the usual kind, unless the event has something to say that CloudEvents has no attribute for: then
/// the whole protobuf message is its data.
fn cloudevents(event: &NotificationDeliveryRequested) -> Encoded {
    let notification = event.notification.as_ref().expect("every event of ours has one");
    let whole = event.options.is_some() || !event.session_id.is_empty();
    let (kind, content_type, value) = if whole {
        (CLOUDEVENTS_EVENT_TYPE, "application/protobuf", event.encode_to_vec())
    } else {
        (&*notification.notification_type, "application/json", notification.data.clone().into_bytes())
    };
    let headers = vec![
        ("ce_specversion", "1.0".to_owned()),
        ("ce_type", kind.to_owned()),
        ("ce_source", "/notifier/send".to_owned()),
        ("ce_id", event.notification_id.clone()),
        ("ce_subject", event.user_id.clone()),
        ("ce_time", event.requested_at.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("content-type", content_type.to_owned()),
    ];
    Encoded { value, headers }
}
