//! From a request's body to the events that are written: one event or an array of them, each checked as ingest will
//! check it, so that nothing accepted here becomes a dead letter. Pure.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::{
    ids::{NotificationId, UserId},
    ingest::decode::Decoder,
};

/// The most events of one request.
pub(super) const EVENTS_MAX: usize = 1000;

/// An event as it is written to Kafka.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// The record's key.
    pub(super) user: UserId,
    pub(super) id: NotificationId,
    /// The record's value: the event's own text, with an id.
    pub(super) value: String,
}

/// Why nothing of a request is written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is neither an event nor an array of events.
    Body(String),
    /// It is one event, which breaks a rule.
    Event(String),
    /// Some events of an array break a rule.
    Items(Vec<ItemError>),
}

/// What is wrong with one event of an array.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct ItemError {
    /// Which one, counted from 0.
    index: usize,
    /// What is wrong, with the field's name.
    #[schema(example = "type is empty")]
    detail: String,
}

/// Reads a body. `new_id` gives an event without an id one, by its place.
pub(super) fn read(
    body: &[u8],
    decoder: &Decoder,
    new_id: impl Fn(usize) -> NotificationId,
) -> Result<Vec<Item>, Refused> {
    let text = std::str::from_utf8(body).map_err(|error| Refused::Body(format!("the body is not UTF-8: {error}")))?;
    match text.trim_start_matches([' ', '\t', '\n', '\r']).as_bytes().first() {
        Some(b'{') => {
            let event = parse::<&RawValue>(text)?;
            let item = item(event.get(), decoder, || new_id(0)).map_err(Refused::Event)?;
            Ok(vec![item])
        }
        Some(b'[') => {
            let Texts(texts) = parse(text)?;
            if texts.is_empty() {
                return Err(Refused::Body("the array holds no event".into()));
            }
            let mut errors = Vec::new();
            let mut items = Vec::with_capacity(texts.len());
            for (index, text) in texts.iter().enumerate() {
                match item(text.get(), decoder, || new_id(index)) {
                    Ok(item) => items.push(item),
                    Err(detail) => errors.push(ItemError { index, detail }),
                }
            }
            if errors.is_empty() { Ok(items) } else { Err(Refused::Items(errors)) }
        }
        _ => Err(Refused::Body("the body is neither an event nor an array of events".into())),
    }
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Refused> {
    serde_json::from_str(text).map_err(|error| Refused::Body(format!("the body: {error}")))
}

fn item(text: &str, decoder: &Decoder, new_id: impl FnOnce() -> NotificationId) -> Result<Item, String> {
    let mut made = None;
    let event = decoder.decode_json(text, || made.insert(new_id()).clone()).map_err(|rejected| rejected.to_string())?;
    let value = match &made {
        None => text.to_owned(),
        Some(id) => with_id(text, id),
    };
    Ok(Item { user: event.user, id: event.id, value })
}

/// The text of an event that has no id, with one. All else stays as it was written.
fn with_id(text: &str, id: &NotificationId) -> String {
    let Members(members) = serde_json::from_str(text).expect("it was read as an event before");
    let has = |names: &[&str]| members.iter().any(|(name, raw)| names.contains(&&**name) && raw.get() != "null");
    let is_short = has(&["target"]) || !has(&["user_id", "userId", "notification"]);
    // What stands there already is empty, or the event would have an id; twice, the field would be refused.
    let (name, names): (_, &[&str]) =
        if is_short { ("id", &["id"]) } else { ("notification_id", &["notification_id", "notificationId"]) };
    let mut out = String::with_capacity(text.len() + name.len() + id.len() + 8);
    out.push_str(&format!("{{\"{name}\":\"{}\"", &**id));
    for (name, raw) in members.iter().filter(|(name, _)| !names.contains(&&**name)) {
        out.push(',');
        out.push_str(&serde_json::to_string(name).expect("a text is always a JSON string"));
        out.push(':');
        out.push_str(raw.get());
    }
    out.push('}');
    out
}

/// The elements of an array as they are written, no more than are taken.
struct Texts<'a>(Vec<&'a RawValue>);

impl<'de> Deserialize<'de> for Texts<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;
        impl<'de> Visitor<'de> for Elements {
            type Value = Texts<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of events")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = array.next_element()? {
                    if texts.len() == EVENTS_MAX {
                        return Err(A::Error::custom(format_args!("more than {EVENTS_MAX} events")));
                    }
                    texts.push(text);
                }
                Ok(Texts(texts))
            }
        }
        deserializer.deserialize_seq(Elements)
    }
}

/// The members of an object as they are written, in their order.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = object.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests;
