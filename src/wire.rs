//! What clients and the server say to each other, independent of the protocol that carries it: frames,
//! control frames, the client's acknowledgement, close codes. (Contract, "Sessions".)

use std::{borrow::Cow, io::Write as _, time::Duration};

use bytes::Bytes;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::{
    event::{Event, Notification, UnixMillis},
    ids::{LogEpoch, Sequence, SessionId, UserId},
    proto,
};

/// Room in front of the JSON text for the largest WebSocket frame header of a server (RFC 6455, 5.2).
const HEADER_BYTES_MAX: usize = 10;
/// FIN and opcode 1, text (RFC 6455, 5.2).
const FINAL_TEXT: u8 = 0x81;
/// FIN and opcode 2, binary.
const FINAL_BINARY: u8 = 0x82;

/// One frame to a client: a JSON text with its WebSocket header in front, encoded once and shared by all sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    buffer: Bytes,
    header_at: u8,
}

impl Frame {
    fn of(json: impl FnOnce(&mut Vec<u8>), capacity: usize) -> Self {
        let (buffer, header_at) = message(FINAL_TEXT, json, capacity);
        Self { buffer, header_at }
    }

    /// A notification as JSON.
    #[must_use]
    pub fn notification(notification: &Notification) -> Self {
        let event = &*notification.event;
        let length = event.user.len() + event.notification_type.len() + event.payload.len() + event.id.len() + 110;
        Self::of(
            |out| {
                out.extend_from_slice(b"{\"target\":");
                string(out, &event.user);
                out.extend_from_slice(b",\"type\":");
                string(out, &event.notification_type);
                out.extend_from_slice(b",\"payload\":");
                out.extend_from_slice(event.payload.as_bytes());
                out.extend_from_slice(b",\"id\":");
                string(out, &event.id);
                if let Some(seq) = notification.seq {
                    let _ = write!(out, ",\"seq\":{seq}");
                }
                out.extend_from_slice(b",\"ts\":\"");
                timestamp(out, event.created_at);
                out.extend_from_slice(b"\"}");
            },
            length,
        )
    }

    /// A control frame as JSON.
    #[must_use]
    pub fn control(control: &Control<'_>) -> Self {
        Self::of(|out| serde_json::to_writer(out, control).expect("a control frame is plain data"), 256)
    }

    /// A frame of which the JSON text is there already.
    #[must_use]
    pub fn of_json(json: &[u8]) -> Self {
        Self::of(|out| out.extend_from_slice(json), json.len())
    }

    /// The JSON text.
    #[must_use]
    pub fn json(&self) -> &[u8] {
        &self.buffer[HEADER_BYTES_MAX..]
    }

    /// One WebSocket text message, header and all.
    #[must_use]
    pub fn websocket(&self) -> Bytes {
        self.buffer.slice(usize::from(self.header_at)..)
    }

    /// What windows and queues count, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffer.len() - HEADER_BYTES_MAX
    }

    /// Never: the shortest JSON text is one byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One WebSocket message of a server, and where its header begins: there is room for the longest one.
fn message(opcode: u8, body: impl FnOnce(&mut Vec<u8>), capacity: usize) -> (Bytes, u8) {
    let mut buffer = Vec::with_capacity(HEADER_BYTES_MAX + capacity);
    buffer.resize(HEADER_BYTES_MAX, 0);
    body(&mut buffer);
    let length = buffer.len() - HEADER_BYTES_MAX;
    let (header_at, marker) = match length {
        0..126 => (8, length),
        126..=0xffff => (6, 126),
        _ => (0, 127),
    };
    buffer[header_at] = opcode;
    buffer[header_at + 1] = u8::try_from(marker).expect("a marker is at most 127");
    let extended = HEADER_BYTES_MAX - (header_at + 2);
    let be = (length as u64).to_be_bytes();
    buffer[header_at + 2..HEADER_BYTES_MAX].copy_from_slice(&be[8 - extended..]);
    (buffer.into(), u8::try_from(header_at).expect("at most 10"))
}

/// Test builds only: a client's message as it came, under the header that all frames have.
#[cfg(feature = "faults")]
pub(crate) fn echo(body: &[u8], is_text: bool) -> Bytes {
    let opcode = if is_text { FINAL_TEXT } else { FINAL_BINARY };
    let (buffer, header_at) = message(opcode, |out| out.extend_from_slice(body), body.len());
    buffer.slice(usize::from(header_at)..)
}

/// A protobuf message as one WebSocket binary message, header and all.
#[must_use]
pub fn websocket_binary(body: &impl Message) -> Bytes {
    let write = |out: &mut Vec<u8>| body.encode(out).expect("a vector grows");
    let (buffer, header_at) = message(FINAL_BINARY, write, body.encoded_len());
    buffer.slice(usize::from(header_at)..)
}

/// A notification as the contract's protobuf message.
#[must_use]
pub fn protobuf(seq: Option<Sequence>, event: &Event) -> proto::Notification {
    proto::Notification {
        notification_type: event.notification_type.to_string(),
        data: event.payload.to_string(),
        notification_id: event.id.to_string(),
        sequence: seq.unwrap_or_default(),
        created_at: Some(protobuf_time(event.created_at)),
    }
}

/// A time as protobuf has it.
#[must_use]
pub fn protobuf_time(at: UnixMillis) -> prost_types::Timestamp {
    let nanos = i32::try_from(at.rem_euclid(1000) * 1_000_000).expect("below 10^9");
    prost_types::Timestamp { seconds: at.div_euclid(1000), nanos }
}

impl Frame {
    /// A control frame as the contract's protobuf message: a notification whose type begins with `$`.
    #[must_use]
    pub fn protobuf(&self, name: &str) -> proto::Notification {
        #[derive(Deserialize)]
        struct Parts<'a> {
            #[serde(borrow)]
            payload: &'a serde_json::value::RawValue,
        }
        let parts: Parts<'_> = serde_json::from_slice(self.json()).expect("a control frame is JSON with a payload");
        let data = parts.payload.get().to_owned();
        proto::Notification { notification_type: name.to_owned(), data, ..proto::Notification::default() }
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    let plain = text.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\');
    if plain {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        serde_json::to_writer(out, text).expect("writing to memory does not fail");
    }
}

/// RFC 3339 with milliseconds, in UTC; times outside the years 0–9999 are clamped.
fn timestamp(out: &mut Vec<u8>, at: UnixMillis) {
    const YEAR_0: UnixMillis = -62_167_219_200_000;
    const YEAR_9999: UnixMillis = 253_402_207_200_000;
    let at = jiff::Timestamp::from_millisecond(at.clamp(YEAR_0, YEAR_9999)).expect("clamped to what it can hold");
    let _ = write!(out, "{at:.3}");
}

/// A time as frames have it: RFC 3339 with milliseconds, in UTC.
#[must_use]
pub fn timestamp_text(at: UnixMillis) -> String {
    let mut out = Vec::new();
    timestamp(&mut out, at);
    String::from_utf8(out).expect("digits and signs")
}

/// What the server says about the session itself. Types of control frames begin with `$`.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", content = "payload")]
pub enum Control<'a> {
    /// Always first.
    #[serde(rename = "$hello")]
    Hello(Hello<'a>),
    /// Numbers that will not come.
    #[serde(rename = "$gap")]
    Gap(Gap),
    /// The connection is about to be closed.
    #[serde(rename = "$bye")]
    Bye(Bye<'a>),
}

impl Control<'_> {
    /// The frame's type, as protocols that name their events want it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "$hello",
            Self::Gap(_) => "$gap",
            Self::Bye(_) => "$bye",
        }
    }
}

/// `$hello`: what a session starts with.
#[derive(Clone, Debug, Serialize)]
pub struct Hello<'a> {
    /// The session's id, which also authorises acknowledgements for it.
    #[serde(serialize_with = "display")]
    pub session: SessionId,
    /// Whose notifications these are.
    pub user: &'a str,
    /// The log's epoch, for `since`.
    pub epoch: &'a str,
    /// The highest number so far.
    pub head: Sequence,
    /// What this device has acknowledged.
    pub cursor: Sequence,
    /// How often the server sends a heartbeat, in ms.
    pub heartbeat_ms: u64,
    /// How long to wait at the most before connecting again after a loss, in ms.
    pub reconnect_ms: u64,
}

fn display<S: serde::Serializer>(value: &impl std::fmt::Display, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

/// Why numbers will not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GapReason {
    /// Their time to live or the log's retention ended.
    Expired,
    /// The user's log or the log as a whole was full.
    Evicted,
    /// Somebody took them back.
    Cancelled,
    /// The client's `since` belongs to another epoch, or lies in the future.
    Epoch,
    /// The store lost its last commits, and with them what the client's `since` counted.
    Restored,
}

/// `$gap`: the numbers `from..=to` will not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// First missing number.
    pub from: Sequence,
    /// Last missing number.
    pub to: Sequence,
    /// Why.
    pub reason: GapReason,
}

/// `$bye`: the close code in words, for protocols without close codes, and when to come back.
#[derive(Clone, Debug, Serialize)]
pub struct Bye<'a> {
    /// The close code's number.
    pub code: u16,
    /// Why.
    pub reason: &'a str,
    /// How long to wait before connecting again, in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconnect_ms: Option<u64>,
}

/// Why a connection is closed. The numbers are WebSocket close codes (RFC 6455, 7.4; 4000–4999 are ours).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum CloseCode {
    /// Normal: the client closed.
    Normal = 1000,
    /// The node goes away; come back.
    GoingAway = 1001,
    /// Not the protocol.
    ProtocolError = 1002,
    /// Text that is not UTF-8.
    NotUtf8 = 1007,
    /// Refused by a rule.
    Policy = 1008,
    /// A message above the limit.
    TooBig = 1009,
    /// Overloaded; come back later.
    TryAgainLater = 1013,
    /// No valid token, or not any more.
    Unauthenticated = 4001,
    /// Reads or acknowledges too slowly; resume.
    SlowConsumer = 4002,
    /// Another session took its place, or an operator ended it.
    Replaced = 4003,
    /// A frame that is no acknowledgement, or one of what was never sent.
    BadFrame = 4004,
}

impl CloseCode {
    /// Every code.
    pub const ALL: [Self; 11] = [
        Self::Normal,
        Self::GoingAway,
        Self::ProtocolError,
        Self::NotUtf8,
        Self::Policy,
        Self::TooBig,
        Self::TryAgainLater,
        Self::Unauthenticated,
        Self::SlowConsumer,
        Self::Replaced,
        Self::BadFrame,
    ];
}

/// A decided close: its code, its words and when the client may come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    /// The code.
    pub code: CloseCode,
    /// Words for the client's developer.
    pub reason: Cow<'static, str>,
    /// When to connect again.
    pub reconnect: Option<Duration>,
}

impl Close {
    /// A close without a time to come back.
    #[must_use]
    pub fn new(code: CloseCode, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { code, reason: reason.into(), reconnect: None }
    }

    /// A close that asks the client to come back after `wait`.
    #[must_use]
    pub fn come_back(code: CloseCode, reason: impl Into<Cow<'static, str>>, wait: Duration) -> Self {
        Self { code, reason: reason.into(), reconnect: Some(wait) }
    }

    /// The `$bye` frame for it.
    #[must_use]
    pub fn bye(&self) -> Bye<'_> {
        let reconnect_ms = self.reconnect.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        Bye { code: self.code as u16, reason: &self.reason, reconnect_ms }
    }
}

/// The only thing a client says: everything up to this number has been taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acknowledge {
    /// The number.
    pub ack: Sequence,
}

impl Acknowledge {
    /// Reads `{"ack":12}`; `None` for anything else.
    #[must_use]
    pub fn parse(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }
}

/// The name of a place in a user's log that a client resumes from: `<epoch>-<seq>`.
#[must_use]
pub fn position(epoch: &LogEpoch, seq: Sequence) -> String {
    format!("{}-{seq}", &**epoch)
}

/// A [`Hello`] as its frame.
#[must_use]
pub fn hello(
    session: SessionId,
    user: &UserId,
    epoch: &LogEpoch,
    marks: (Sequence, Sequence),
    times: (Duration, Duration),
) -> Frame {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let hello = Hello {
        session,
        user,
        epoch,
        head: marks.0,
        cursor: marks.1,
        heartbeat_ms: millis(times.0),
        reconnect_ms: millis(times.1),
    };
    Frame::control(&Control::Hello(hello))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::event::{Event, Options};

    fn notification(payload: &str, seq: Option<u64>) -> Notification {
        let event = Event {
            user: UserId::new("101").unwrap(),
            session: None,
            id: crate::ids::NotificationId::new("0199").unwrap(),
            notification_type: "update \"channel\"".into(),
            payload: payload.into(),
            options: Options::default(),
            created_at: 1_795_251_600_123,
            recorded_at: 0,
        };
        Notification { seq, event: Arc::new(event) }
    }

    #[test]
    fn a_notification_is_one_json_object_with_the_payload_byte_for_byte() {
        let frame = Frame::notification(&notification(r#"{"n": 12345678901234567890123}"#, Some(12)));
        let expected = r#"{"target":"101","type":"update \"channel\"","payload":{"n": 12345678901234567890123},"id":"0199","seq":12,"ts":"2026-11-21T09:00:00.123Z"}"#;
        assert_eq!(std::str::from_utf8(frame.json()).unwrap(), expected);
        let transient = Frame::notification(&notification("1", None));
        assert!(!std::str::from_utf8(transient.json()).unwrap().contains("seq"));
    }

    #[test]
    fn the_websocket_header_is_as_long_as_the_text_needs() {
        for (payload, header) in [(1, 2), (200, 4), (65_000, 4), (65_536, 10), (200_000, 10)] {
            let frame = Frame::notification(&notification(&"1".repeat(payload), None));
            let bytes = frame.websocket();
            let mut cursor = std::io::Cursor::new(&bytes[..]);
            let (parsed, length) =
                tokio_tungstenite::tungstenite::protocol::frame::FrameHeader::parse(&mut cursor).unwrap().unwrap();
            assert_eq!((cursor.position(), length as usize), (header, frame.len()), "payload of {payload}");
            assert!(parsed.is_final && bytes.len() == frame.len() + header as usize);
        }
    }

    #[test]
    fn control_frames_have_the_contracts_shape() {
        let close = Close::come_back(CloseCode::GoingAway, "draining", Duration::from_millis(2750));
        let frame = Frame::control(&Control::Bye(close.bye()));
        assert_eq!(frame.json(), br#"{"type":"$bye","payload":{"code":1001,"reason":"draining","reconnect_ms":2750}}"#);
        let gap = Frame::control(&Control::Gap(Gap { from: 3, to: 8, reason: GapReason::Expired }));
        assert_eq!(gap.json(), br#"{"type":"$gap","payload":{"from":3,"to":8,"reason":"expired"}}"#);
    }

    #[test]
    fn a_client_says_ack_and_nothing_else() {
        assert_eq!(Acknowledge::parse(br#" {"ack":12} "#), Some(Acknowledge { ack: 12 }));
        let bad: [&[u8]; 8] =
            [b"", b"{}", b"[]", b"12", br#"{"ack":-1}"#, br#"{"ack":"1"}"#, br#"{"ack":1,"x":2}"#, br#"{"ack":1}{"#];
        for frame in bad {
            assert_eq!(Acknowledge::parse(frame), None, "{:?}", String::from_utf8_lossy(frame));
        }
    }

    #[test]
    fn times_beyond_the_calendar_are_clamped() {
        let mut out = Vec::new();
        timestamp(&mut out, i64::MAX);
        assert!(String::from_utf8(out).unwrap().starts_with("9999-12-3"));
        let mut out = Vec::new();
        timestamp(&mut out, -1);
        assert_eq!(String::from_utf8(out).unwrap(), "1969-12-31T23:59:59.999Z");
    }
}
