//! CloudEvents 1.0 over Kafka. An event of type [`EVENT_TYPE`] carries one of our own as its data; of
//! any other, subject, type, id and data are user, notification type, id and payload.

use base64::Engine as _;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Draft, Headers, Names, Payload, Record, Rejected, fields, json, read_event};

/// The CloudEvents type whose data is a `NotificationDeliveryRequested`.
pub const EVENT_TYPE: &str = "atlas.notifier.v1.NotificationDeliveryRequested";

const BINARY: Names = Names {
    user: "ce_subject",
    session: "session_id",
    id: "ce_id",
    notification_type: "ce_type",
    payload: "data",
    collapse_key: "collapse_key",
    ttl: "ttl",
};

const STRUCTURED: Names = Names { user: "subject", id: "id", notification_type: "type", ..BINARY };

/// How a record carries a CloudEvent.
pub(super) enum Mode {
    /// All of it in the value.
    Structured,
    /// The attributes in headers, the data in the value.
    Binary,
}

impl Mode {
    pub(super) fn of(headers: &Headers<'_>) -> Option<Self> {
        let mut mode = None;
        let mut content_type = None;
        for (name, value) in headers {
            if *name == "ce_type" {
                mode = Some(Self::Binary);
            } else if name.eq_ignore_ascii_case("content-type") {
                content_type = *value;
            }
        }
        if content_type.is_some_and(is_cloudevents_json) { Some(Self::Structured) } else { mode }
    }
}

/// Whether a `content-type` says so, whatever its parameters (`; charset=utf-8`) and letter case.
fn is_cloudevents_json(content_type: &[u8]) -> bool {
    let media_type = content_type.split(|b| *b == b';').next().unwrap_or_default();
    media_type.trim_ascii().eq_ignore_ascii_case(b"application/cloudevents+json")
}

pub(super) fn binary(record: &Record<'_>) -> Result<Draft, Rejected> {
    let headers = record.headers;
    let notification_type = header(headers, "ce_type")?;
    let value = record.value.unwrap_or_default();
    if notification_type == EVENT_TYPE {
        return read_event(value);
    }
    let data =
        std::str::from_utf8(value).map_err(|problem| Rejected::undecodable("a text as CloudEvents data", problem))?;
    let time = header(headers, "ce_time")?;
    Ok(Draft {
        user: header(headers, "ce_subject")?.to_owned(),
        id: header(headers, "ce_id")?.to_owned(),
        notification_type: notification_type.to_owned(),
        payload: Payload::Text(data.to_owned()),
        created_at: if time.is_empty() { None } else { Some(fields::rfc3339(time, "ce_time")?) },
        ..Draft::unset(&BINARY)
    })
}

/// The last header of that name; empty when there is none.
fn header<'a>(headers: &Headers<'a>, name: &str) -> Result<&'a str, Rejected> {
    let value = headers.iter().rev().find(|(key, _)| *key == name).and_then(|(_, value)| *value);
    std::str::from_utf8(value.unwrap_or_default())
        .map_err(|problem| Rejected::undecodable(&format!("a text as header {name}"), problem))
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    subject: Option<&'a RawValue>,
    time: Option<&'a RawValue>,
    data: Option<&'a RawValue>,
    data_base64: Option<&'a RawValue>,
}

pub(super) fn structured(value: &[u8]) -> Result<Draft, Rejected> {
    match value.first() {
        None => return Err(Rejected::empty()),
        Some(b'{' | b' ' | b'\t' | b'\n' | b'\r') => {}
        Some(_) => return Err(Rejected::undecodable("a CloudEvents envelope", "it is no JSON object")),
    }
    let envelope: Envelope<'_> = json::parse(value)?;
    let notification_type = json::text(envelope.kind, STRUCTURED.notification_type)?;
    if notification_type == EVENT_TYPE {
        return event_in(&envelope);
    }
    let time = json::text(envelope.time, "time")?;
    Ok(Draft {
        user: json::identifier(envelope.subject, STRUCTURED.user)?,
        id: json::identifier(envelope.id, STRUCTURED.id)?,
        notification_type,
        payload: payload_in(&envelope)?,
        created_at: envelope.time.map(|_| fields::rfc3339(&time, "time")).transpose()?,
        ..Draft::unset(&STRUCTURED)
    })
}

fn event_in(envelope: &Envelope<'_>) -> Result<Draft, Rejected> {
    match (envelope.data, envelope.data_base64) {
        (Some(data), _) if data.get().starts_with('{') => json::read(data.get().as_bytes()),
        (Some(_), _) => Err(Rejected::field("data", "is not an object")),
        (None, Some(data)) => read_event(&bytes_of(data)?),
        (None, None) => Err(Rejected::field("data", "is missing")),
    }
}

fn payload_in(envelope: &Envelope<'_>) -> Result<Payload, Rejected> {
    match (envelope.data, envelope.data_base64) {
        (Some(data), _) => Ok(json::json(data)),
        (None, Some(data)) => {
            let text = String::from_utf8(bytes_of(data)?);
            text.map(Payload::Text).map_err(|_| Rejected::undecodable("a text as data_base64", "it is not UTF-8"))
        }
        (None, None) => Ok(Payload::Text(String::new())),
    }
}

fn bytes_of(base64_text: &RawValue) -> Result<Vec<u8>, Rejected> {
    let text = json::text(Some(base64_text), "data_base64")?;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|problem| Rejected::undecodable("base64 in data_base64", problem))
}
