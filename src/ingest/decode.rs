//! From a Kafka record to an event: finds out which of the contract's forms a record has, reads it and
//! checks every field. Pure: knows nothing of consumers, positions or dead letters.
//!
//! | form | how it is known, in this order |
//! |---|---|
//! | CloudEvents structured | header `content-type: application/cloudevents+json` |
//! | CloudEvents binary | header `ce_type` |
//! | Confluent wire format | first byte 0x00 |
//! | JSON | first byte `{` |
//! | raw protobuf | otherwise |
//!
//! Where a record carries both CloudEvents headers it is structured, as CloudEvents' Kafka binding has
//! it. Of a header that occurs several times the last one counts, as in Kafka's own `lastHeader`.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use serde::de::IgnoredAny;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_128};

use crate::{
    event::{Durability, Event, Options, Priority, UnixMillis, unix_millis_now},
    ids::{self, InvalidId, NotificationId, UserId},
};

mod cloudevents;
mod fields;
mod json;
mod protobuf;
#[cfg(test)]
mod tests;

pub use cloudevents::EVENT_TYPE as CLOUDEVENTS_EVENT_TYPE;

/// A record's headers, in their order; a value may be null.
pub type Headers<'a> = [(&'a str, Option<&'a [u8]>)];

/// One Kafka record as it was read.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its value; none: a tombstone.
    pub value: Option<&'a [u8]>,
    /// Its headers.
    pub headers: &'a Headers<'a>,
    /// When it was written, as producer or broker says.
    pub timestamp: Option<UnixMillis>,
    /// Its partition.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
}

/// The options that the configuration gives to a notification type.
pub type Defaults = Arc<dyn Fn(&str) -> Options + Send + Sync>;

/// Decodes the records of one topic.
pub struct Decoder {
    /// Hash of the cluster's id and the topic: the part of a derived id that all records share.
    origin: u128,
    payload_bytes_max: usize,
    defaults: Defaults,
}

/// Why a record cannot be delivered, as a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A tombstone, or a value of no bytes.
    Empty,
    /// The bytes are not of the form that they look like.
    Undecodable,
    /// A field is missing or breaks its rule.
    InvalidField,
    /// The payload is larger than allowed.
    TooLarge,
}

/// Why a record cannot be delivered; `Display` names the field (`user_id is longer than 256 bytes`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The label that it is counted under.
    pub reason: Reason,
    detail: Cow<'static, str>,
}

/// What every form comes down to, unchecked. An empty text stands for a field that is not set.
struct Draft {
    names: &'static Names,
    user: String,
    session: String,
    id: String,
    notification_type: String,
    payload: Payload,
    durability: Option<Durability>,
    priority: Option<Priority>,
    collapse_key: String,
    ttl: Option<Duration>,
    created_at: Option<UnixMillis>,
}

/// A payload as its form carries it.
enum Payload {
    /// Any text; becomes a JSON string unless it is a JSON text itself.
    Text(String),
    /// A JSON text that its form's parser has already checked.
    Json(Box<str>),
}

/// What a form calls its fields, for messages.
struct Names {
    user: &'static str,
    session: &'static str,
    id: &'static str,
    notification_type: &'static str,
    payload: &'static str,
    collapse_key: &'static str,
    ttl: &'static str,
}

impl Names {
    /// Those of the protobuf and of its JSON mapping.
    const PROTOBUF: Self = Self {
        user: "user_id",
        session: "session_id",
        id: "notification_id",
        notification_type: "notification.notification_type",
        payload: "notification.data",
        collapse_key: "options.collapse_key",
        ttl: "options.ttl",
    };
}

impl Draft {
    fn unset(names: &'static Names) -> Self {
        Self {
            names,
            user: String::new(),
            session: String::new(),
            id: String::new(),
            notification_type: String::new(),
            payload: Payload::Text(String::new()),
            durability: None,
            priority: None,
            collapse_key: String::new(),
            ttl: None,
            created_at: None,
        }
    }
}

impl Decoder {
    /// A decoder for the records of `topic` on the Kafka cluster `cluster_id`. Payloads of more than
    /// `payload_bytes_max` bytes are refused; `defaults` gives the options that an event leaves open.
    #[must_use]
    pub fn new(cluster_id: &str, topic: &str, payload_bytes_max: usize, defaults: Defaults) -> Self {
        let mut origin = Xxh3Default::new();
        // A separator that neither name can hold keeps ("ab", "c") and ("a", "bc") apart.
        for part in [cluster_id, "\0", topic] {
            origin.update(part.as_bytes());
        }
        Self { origin: origin.digest128(), payload_bytes_max, defaults }
    }

    /// Decodes and checks a record.
    ///
    /// # Errors
    /// Says why the record cannot be delivered; trying again gives the same answer.
    pub fn decode(&self, record: &Record<'_>) -> Result<Event, Rejected> {
        self.check(read(record)?, record, || self.derived_id(record))
    }

    /// Checks an event that is not in Kafka yet, by the rules that hold once it is: a JSON object in either of its
    /// forms. One without an id gets `id`.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn decode_json(&self, text: &str, id: impl FnOnce() -> NotificationId) -> Result<Event, Rejected> {
        if !text.starts_with('{') {
            return Err(Rejected::undecodable("an event", "expected a JSON object"));
        }
        let record = Record { value: None, headers: &[], timestamp: None, partition: 0, offset: 0 };
        self.check(json::read(text.as_bytes())?, &record, || Ok(id()))
    }

    fn check(
        &self,
        draft: Draft,
        record: &Record<'_>,
        id: impl FnOnce() -> Result<NotificationId, InvalidId>,
    ) -> Result<Event, Rejected> {
        let names = draft.names;
        let user = UserId::new(draft.user).map_err(|problem| Rejected::id(names.user, problem))?;
        let notification_type = notification_type(draft.notification_type, names)?;
        let session = optional(draft.session, names.session)?;
        let collapse_key = optional(draft.collapse_key, names.collapse_key)?;
        let id = if draft.id.is_empty() { id() } else { NotificationId::new(draft.id) };
        let id = id.map_err(|problem| Rejected::id(names.id, problem))?;
        let payload = payload(draft.payload, self.payload_bytes_max, names)?;

        // The event's own options over those of its type.
        let mut options = (self.defaults)(&notification_type);
        options.durability = draft.durability.unwrap_or(options.durability);
        options.priority = draft.priority.unwrap_or(options.priority);
        options.collapse_key = collapse_key.or(options.collapse_key);
        options.ttl = match draft.ttl {
            Some(ttl) => Some(fields::check_ttl(ttl, names.ttl)?),
            None => options.ttl,
        };
        if session.is_some() {
            options.durability = Durability::Transient;
        }

        let recorded_at = stamped_at(record).unwrap_or_else(unix_millis_now);
        let created_at = draft.created_at.unwrap_or(recorded_at);
        Ok(Event { user, session, id, notification_type, payload, options, created_at, recorded_at })
    }

    /// The id of an event that has none: the same for each reading of the record, and as good as
    /// unique. A UUID of version 8 (RFC 9562, 5.8): 48 bits of record timestamp in milliseconds, so
    /// that ids sort by time as version 7 does, then a hash of where the record stands.
    fn derived_id(&self, record: &Record<'_>) -> Result<NotificationId, InvalidId> {
        // A record without a timestamp must not get one of this reading.
        let timestamp = stamped_at(record).unwrap_or(0);
        let mut place = [0; 36];
        place[..16].copy_from_slice(&self.origin.to_be_bytes());
        place[16..20].copy_from_slice(&record.partition.to_be_bytes());
        place[20..28].copy_from_slice(&record.offset.to_be_bytes());
        place[28..].copy_from_slice(&timestamp.to_be_bytes());
        let mut bytes = xxh3_128(&place).to_be_bytes();
        bytes[..6].copy_from_slice(&timestamp.to_be_bytes()[2..]);
        let id = uuid::Builder::from_custom_bytes(bytes).into_uuid();
        NotificationId::new(&*id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()))
    }
}

impl Reason {
    /// Every reason, to announce the metric's label values.
    pub const ALL: [Self; 4] = [Self::Empty, Self::Undecodable, Self::InvalidField, Self::TooLarge];

    /// The metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Undecodable => "undecodable",
            Self::InvalidField => "invalid_field",
            Self::TooLarge => "too_large",
        }
    }
}

impl Rejected {
    fn empty() -> Self {
        Self { reason: Reason::Empty, detail: "the record has no value".into() }
    }

    fn undecodable(form: &str, problem: impl fmt::Display) -> Self {
        Self { reason: Reason::Undecodable, detail: format!("not {form}: {problem}").into() }
    }

    fn field(name: &str, problem: impl fmt::Display) -> Self {
        Self { reason: Reason::InvalidField, detail: format!("{name} {problem}").into() }
    }

    fn id(name: &str, problem: InvalidId) -> Self {
        Self::field(name, problem)
    }

    fn too_large(name: &str, bytes: usize, bytes_max: usize) -> Self {
        let detail = format!("{name} has {bytes} bytes, more than limits.payload_bytes_max = {bytes_max}");
        Self { reason: Reason::TooLarge, detail: detail.into() }
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Rejected {}

fn read(record: &Record<'_>) -> Result<Draft, Rejected> {
    match cloudevents::Mode::of(record.headers) {
        Some(cloudevents::Mode::Structured) => cloudevents::structured(record.value.unwrap_or_default()),
        Some(cloudevents::Mode::Binary) => cloudevents::binary(record),
        None => read_event(record.value.unwrap_or_default()),
    }
}

/// Reads a `NotificationDeliveryRequested` in one of the forms that the first byte tells apart: raw
/// protobuf never begins with 0x00 (there is no field 0), nor with `{` (the end of no field of ours).
fn read_event(value: &[u8]) -> Result<Draft, Rejected> {
    match value.first() {
        None => Err(Rejected::empty()),
        Some(0) => protobuf::confluent(value),
        Some(b'{') => json::read(value),
        Some(_) => protobuf::read(value),
    }
}

fn stamped_at(record: &Record<'_>) -> Option<UnixMillis> {
    record.timestamp.filter(|timestamp| *timestamp >= 0)
}

fn notification_type(text: String, names: &Names) -> Result<Box<str>, Rejected> {
    ids::check(&text).map_err(|problem| Rejected::id(names.notification_type, problem))?;
    if text.starts_with('$') {
        // Else a producer could end its users' connections with a `$bye` of its own.
        return Err(Rejected::field(names.notification_type, "starts with $, as only control frames do"));
    }
    Ok(text.into())
}

fn optional(text: String, name: &str) -> Result<Option<Box<str>>, Rejected> {
    if text.is_empty() {
        return Ok(None);
    }
    ids::check(&text).map_err(|problem| Rejected::id(name, problem))?;
    Ok(Some(text.into()))
}

/// The JSON text that clients get: the producer's, byte for byte but for white space around it. Any
/// other text becomes a JSON string, and no payload at all `null`.
fn payload(payload: Payload, bytes_max: usize, names: &Names) -> Result<Box<str>, Rejected> {
    let too_large = |bytes| Rejected::too_large(names.payload, bytes, bytes_max);
    let json = match payload {
        Payload::Json(json) => json,
        Payload::Text(text) if text.is_empty() => "null".into(),
        Payload::Text(text) => {
            let trimmed = fields::trim_json(&text);
            if trimmed.len() > bytes_max {
                return Err(too_large(trimmed.len()));
            }
            // Skips through the text without building a tree, and without recursion however deep it is.
            if serde_json::from_str::<IgnoredAny>(trimmed).is_err() {
                serde_json::to_string(&text).expect("a text is always a JSON string").into()
            } else if trimmed.len() == text.len() {
                text.into()
            } else {
                trimmed.into()
            }
        }
    };
    if json.len() > bytes_max { Err(too_large(json.len())) } else { Ok(json) }
}
