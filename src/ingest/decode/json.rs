//! The JSON forms: the protobuf's JSON mapping, and the short `{"target","type","payload"}`.
//!
//! Every value is first taken as the text that stands in the record and then read by what its field
//! wants: so payloads stay byte for byte, numbers keep their digits, and no depth of nesting recurses.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Draft, Names, Payload, Rejected, fields};
use crate::event::UnixMillis;

const SHORT: Names = Names {
    user: "target",
    session: "session",
    id: "id",
    notification_type: "type",
    payload: "payload",
    collapse_key: "collapse_key",
    ttl: "ttl",
};

const MAPPED: Names = Names::PROTOBUF;

/// A value as it is written; none: absent or `null`.
type Raw<'a> = Option<&'a RawValue>;

/// Both forms' fields. Unknown ones are ignored, as protobuf's are.
#[derive(Deserialize)]
struct Top<'a> {
    #[serde(borrow)]
    target: Raw<'a>,
    #[serde(rename = "type")]
    kind: Raw<'a>,
    payload: Raw<'a>,
    id: Raw<'a>,
    session: Raw<'a>,
    durability: Raw<'a>,
    priority: Raw<'a>,
    #[serde(alias = "collapseKey")]
    collapse_key: Raw<'a>,
    ttl: Raw<'a>,

    #[serde(alias = "userId")]
    user_id: Raw<'a>,
    #[serde(alias = "sessionId")]
    session_id: Raw<'a>,
    notification: Raw<'a>,
    #[serde(alias = "notificationId")]
    notification_id: Raw<'a>,
    options: Raw<'a>,
    #[serde(alias = "requestedAt")]
    requested_at: Raw<'a>,
}

#[derive(Default, Deserialize)]
struct Content<'a> {
    #[serde(borrow, alias = "notificationType")]
    notification_type: Raw<'a>,
    data: Raw<'a>,
    #[serde(alias = "notificationId")]
    notification_id: Raw<'a>,
    #[serde(alias = "createdAt")]
    created_at: Raw<'a>,
}

#[derive(Default, Deserialize)]
struct Options<'a> {
    #[serde(borrow)]
    durability: Raw<'a>,
    priority: Raw<'a>,
    #[serde(alias = "collapseKey")]
    collapse_key: Raw<'a>,
    ttl: Raw<'a>,
}

/// Reads either form; it is the protobuf's mapping when it has a user id or a notification.
pub(super) fn read(value: &[u8]) -> Result<Draft, Rejected> {
    let top: Top<'_> = parse(value)?;
    if top.target.is_none() && (top.user_id.is_some() || top.notification.is_some()) {
        mapped(&top)
    } else {
        short(&top)
    }
}

/// Parses a whole value, whose texts must be UTF-8 even where nobody reads them.
pub(super) fn parse<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Result<T, Rejected> {
    let text = std::str::from_utf8(value).map_err(|problem| Rejected::undecodable("JSON", problem))?;
    serde_json::from_str(text).map_err(|problem| Rejected::undecodable("JSON", problem))
}

fn short(top: &Top<'_>) -> Result<Draft, Rejected> {
    let options =
        Options { durability: top.durability, priority: top.priority, collapse_key: top.collapse_key, ttl: top.ttl };
    let draft = Draft {
        user: identifier(top.target, SHORT.user)?,
        session: identifier(top.session, SHORT.session)?,
        id: identifier(top.id, SHORT.id)?,
        notification_type: text(top.kind, SHORT.notification_type)?,
        payload: top.payload.map_or(Payload::Text(String::new()), json),
        ..Draft::unset(&SHORT)
    };
    draft.with_options(&options)
}

fn mapped(top: &Top<'_>) -> Result<Draft, Rejected> {
    let notification: Content<'_> = object(top.notification, "notification")?;
    let options: Options<'_> = object(top.options, "options")?;
    let mut id = identifier(top.notification_id, MAPPED.id)?;
    if id.is_empty() {
        id = identifier(notification.notification_id, "notification.notification_id")?;
    }
    let requested_at = time(top.requested_at, "requested_at")?;
    let created_at = time(notification.created_at, "notification.created_at")?;
    let draft = Draft {
        user: identifier(top.user_id, MAPPED.user)?,
        session: identifier(top.session_id, MAPPED.session)?,
        id,
        notification_type: text(notification.notification_type, MAPPED.notification_type)?,
        payload: Payload::Text(text(notification.data, MAPPED.payload)?),
        created_at: requested_at.or(created_at),
        ..Draft::unset(&MAPPED)
    };
    draft.with_options(&options)
}

impl Draft {
    fn with_options(self, options: &Options<'_>) -> Result<Self, Rejected> {
        let durability = number_or_name(options.durability, "durability", fields::durability_name)?;
        let priority = number_or_name(options.priority, "priority", fields::priority_name)?;
        Ok(Self {
            durability: durability.and_then(fields::durability_number),
            priority: priority.and_then(fields::priority_number),
            collapse_key: text(options.collapse_key, self.names.collapse_key)?,
            ttl: ttl(options.ttl, self.names.ttl)?,
            ..self
        })
    }
}

/// A value as payload: its own text.
pub(super) fn json(raw: &RawValue) -> Payload {
    Payload::Json(raw.get().into())
}

/// A text; empty when absent.
pub(super) fn text(raw: Raw<'_>, name: &str) -> Result<String, Rejected> {
    let Some(raw) = raw else { return Ok(String::new()) };
    serde_json::from_str(raw.get()).map_err(|_| Rejected::field(name, "is not a text"))
}

/// A text, or an integer of any size with the digits that it is written with; empty when absent. A number with a
/// fraction or an exponent has several spellings, which would be several identifiers.
pub(super) fn identifier(raw: Raw<'_>, name: &str) -> Result<String, Rejected> {
    match raw {
        Some(raw) if is_integer(raw) => Ok(raw.get().to_owned()),
        Some(raw) => serde_json::from_str(raw.get())
            .map_err(|_| Rejected::field(name, "is neither a text nor an integer written in digits only")),
        None => Ok(String::new()),
    }
}

fn is_number(raw: &RawValue) -> bool {
    raw.get().starts_with(|c: char| c == '-' || c.is_ascii_digit())
}

/// Whether the JSON number is one whose spelling is its digits, with a sign perhaps.
fn is_integer(raw: &RawValue) -> bool {
    is_number(raw) && !raw.get().contains(['.', 'e', 'E'])
}

fn number_or_name(raw: Raw<'_>, name: &str, by_name: fn(&str) -> Option<i32>) -> Result<Option<i32>, Rejected> {
    let Some(raw) = raw else { return Ok(None) };
    let number = if is_number(raw) {
        whole(raw.get())
    } else {
        serde_json::from_str::<String>(raw.get()).ok().and_then(|text| by_name(&text))
    };
    number.map(Some).ok_or_else(|| Rejected::field(name, "is not a known value"))
}

/// The whole number that a JSON number stands for; `2.0` and `2e0` are the same as `2`.
fn whole(text: &str) -> Option<i32> {
    let number: f64 = text.parse().ok()?;
    let is_whole = number.fract() == 0.0 && (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&number);
    #[expect(clippy::cast_possible_truncation, reason = "it is in the range")]
    is_whole.then_some(number as i32)
}

fn ttl(raw: Raw<'_>, name: &str) -> Result<Option<Duration>, Rejected> {
    let Some(raw) = raw else { return Ok(None) };
    let text = if is_number(raw) { Ok(raw.get().to_owned()) } else { serde_json::from_str(raw.get()) };
    let ttl = text.ok().and_then(|text: String| fields::duration(&text));
    ttl.map(Some).ok_or_else(|| Rejected::field(name, "is not a duration such as \"1h\""))
}

fn time(raw: Raw<'_>, name: &str) -> Result<Option<UnixMillis>, Rejected> {
    let text = text(raw, name)?;
    raw.map(|_| fields::rfc3339(&text, name)).transpose()
}

/// A message; all of its fields unset when absent.
fn object<'a, T: Default + Deserialize<'a>>(raw: Raw<'a>, name: &str) -> Result<T, Rejected> {
    let Some(raw) = raw else { return Ok(T::default()) };
    if !raw.get().starts_with('{') {
        // Serde would take an array for a struct, field by field.
        return Err(Rejected::field(name, "is not an object"));
    }
    serde_json::from_str(raw.get()).map_err(|problem| Rejected::field(name, problem))
}
