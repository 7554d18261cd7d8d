//! `NotificationDeliveryRequested` as protobuf bytes, by hand: the generator fills one reused buffer
//! per event, and the bare server borrows the fields it needs without building a message.
//!
//! Knows fields 1 and 3 of the event, 1, 2 and 4 of the notification, and the durability in field 5;
//! everything else is skipped. Clients that speak protobuf read their notifications here too.

/// What the bare server needs of an event, borrowed from the record.
#[derive(Debug, PartialEq, Eq)]
pub struct Event<'a> {
    pub user: &'a str,
    pub kind: &'a str,
    /// A JSON text.
    pub data: &'a str,
}

/// A notification as it reaches a client, borrowed from the frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Notification<'a> {
    pub kind: &'a str,
    /// A JSON text.
    pub data: &'a str,
    /// `None` for transient ones.
    pub sequence: Option<u64>,
}

/// The contract's `Durability`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// For those who are connected; no sequence.
    Transient = 1,
    /// Kept until acknowledged.
    Durable = 2,
}

/// Reads an event; `None` when the bytes are no such message.
pub fn decode(bytes: &[u8]) -> Option<Event<'_>> {
    let (mut user, mut notification) = ("", None);
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(value)) => user = std::str::from_utf8(value).ok()?,
            (3, Value::Bytes(value)) => notification = Some(value),
            _ => {}
        }
    }
    let Notification { kind, data, .. } = decode_notification(notification?)?;
    Some(Event { user, kind, data })
}

/// Reads a notification; `None` when the bytes are no such message.
pub fn decode_notification(bytes: &[u8]) -> Option<Notification<'_>> {
    let mut notification = Notification { kind: "", data: "", sequence: None };
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(value)) => notification.kind = std::str::from_utf8(value).ok()?,
            (2, Value::Bytes(value)) => notification.data = std::str::from_utf8(value).ok()?,
            (4, Value::Number(value)) => notification.sequence = Some(value),
            _ => {}
        }
    }
    Some(notification)
}

/// Appends an `AcknowledgeRequest`; WebSocket's need not name the session.
pub fn encode_acknowledgement(out: &mut Vec<u8>, session: &str, sequence: u64) {
    if !session.is_empty() {
        field(out, 1, session.as_bytes());
    }
    out.push(2 << 3);
    varint(out, sequence);
}

/// A `ConnectionRequest`.
pub fn encode_connection_request(since: Option<&str>) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some(since) = since {
        field(&mut out, 4, since.as_bytes());
    }
    out
}

/// Appends an event's bytes to `out`.
pub fn encode(out: &mut Vec<u8>, event: &Event<'_>, durability: Durability) {
    field(out, 1, event.user.as_bytes());
    let (kind, data) = (event.kind.as_bytes(), event.data.as_bytes());
    out.push((3 << 3) | 2);
    varint(out, field_len(kind) + field_len(data));
    field(out, 1, kind);
    field(out, 2, data);
    field(out, 5, &[1 << 3, durability as u8]);
}

fn field(out: &mut Vec<u8>, number: u8, value: &[u8]) {
    out.push((number << 3) | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn field_len(value: &[u8]) -> u64 {
    let length = value.len() as u64;
    let bits = 64 - (length | 1).leading_zeros();
    1 + u64::from(bits.div_ceil(7)) + length
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A field's value; fixed-width ones are skipped.
enum Value<'a> {
    Bytes(&'a [u8]),
    Number(u64),
}

/// The fields of a message; `None` as an item means malformed bytes.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for (i, &byte) in self.0.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7F) << (7 * i);
            if byte < 0x80 {
                self.0 = &self.0[i + 1..];
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(head)
    }

    fn next_field(&mut self) -> Option<Option<(u64, Value<'a>)>> {
        let tag = self.varint()?;
        match tag & 7 {
            0 => self.varint().map(|value| Some((tag >> 3, Value::Number(value)))),
            1 => self.take(8).map(|_| None),
            2 => {
                let length = self.varint()?;
                self.take(length).map(|value| Some((tag >> 3, Value::Bytes(value))))
            }
            5 => self.take(4).map(|_| None),
            _ => None,
        }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.0.is_empty() {
            match self.next_field() {
                Some(None) => {}
                Some(Some(field)) => return Some(Some(field)),
                None => {
                    self.0 = &[];
                    return Some(None);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let long = "x".repeat(20_000);
        for data in ["{}", &"y".repeat(126), &"z".repeat(127), &"z".repeat(128), &long] {
            let event = Event { user: "load-7", kind: "update_channel", data };
            let mut bytes = Vec::new();
            encode(&mut bytes, &event, Durability::Durable);
            assert_eq!(decode(&bytes), Some(event));
        }
    }

    /// Bytes written by hand from the message's definition, so that a mistake shared by encoder
    /// and decoder shows.
    #[test]
    fn the_numbers_are_the_contract_s() {
        let mut bytes = Vec::new();
        let event = Event { user: "u", kind: "t", data: "1" };
        encode(&mut bytes, &event, Durability::Transient);
        assert_eq!(bytes, b"\x0a\x01u\x1a\x06\x0a\x01t\x12\x011\x2a\x02\x08\x01");
    }

    #[test]
    fn a_notification_s_number_is_its_fourth_field_and_an_acknowledgement_s_its_second() {
        let bytes = b"\x0a\x01t\x12\x011\x1a\x02id\x20\xac\x02";
        let expected = Notification { kind: "t", data: "1", sequence: Some(300) };
        assert_eq!(decode_notification(bytes), Some(expected));
        assert_eq!(decode_notification(&bytes[..bytes.len() - 1]), None);
        let mut out = Vec::new();
        encode_acknowledgement(&mut out, "s", 300);
        encode_acknowledgement(&mut out, "", 1);
        assert_eq!(out, b"\x0a\x01s\x10\xac\x02\x10\x01");
    }

    #[test]
    fn unknown_fields_are_skipped_and_truncation_is_noticed() {
        let mut bytes = vec![0x38, 0x96, 0x01, 0x45, 1, 2, 3, 4]; // field 7 varint, field 8 fixed32
        let event = Event { user: "u", kind: "t", data: "1" };
        encode(&mut bytes, &event, Durability::Transient);
        assert_eq!(decode(&bytes), Some(event));
        assert_eq!(decode(&bytes[..bytes.len() - 1]), None);
        assert_eq!(decode(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
        assert_eq!(decode(b""), None);
    }
}
