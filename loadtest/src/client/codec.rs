//! The four protocols behind one shape: bytes of a server in, messages and answers out.
//!
//! Pure: nothing here reads or writes a socket.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::endpoint::Endpoint;
use super::{grpc, sse, websocket};
use crate::event::{self, Notification};
use crate::workload::{Stamp, sequence_of, stamp_of, stamp_of_data};

/// Longest frame accepted, in bytes: the contract's payload limit and some room.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// One JSON object per text frame.
    Websocket,
    /// One protobuf `Notification` per binary frame.
    WebsocketProto,
    /// Server-sent events; nothing is acknowledged on the stream.
    Sse,
    /// A gRPC stream on an HTTP/2 connection of its own.
    Grpc,
}

/// One message of the server, borrowed from what was read.
#[derive(Debug)]
pub enum Message<'a> {
    /// A JSON frame.
    Json(&'a [u8]),
    Protobuf(Notification<'a>),
}

/// One connection's protocol and its state.
pub enum Codec {
    Websocket(websocket::Client),
    Sse(sse::Client),
    Grpc(Box<grpc::Client>),
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Websocket => "websocket",
            Self::WebsocketProto => "websocket-proto",
            Self::Sse => "sse",
            Self::Grpc => "grpc",
        })
    }
}

impl<'a> Message<'a> {
    /// Reads a protobuf notification.
    pub fn protobuf(bytes: &'a [u8]) -> Result<Self, String> {
        event::decode_notification(bytes).map(Self::Protobuf).ok_or_else(|| "bytes that are no notification".to_owned())
    }

    /// `None` when this is not one of this tool's events.
    pub fn stamp(&self) -> Option<Stamp> {
        match self {
            Self::Json(frame) => stamp_of(frame),
            Self::Protobuf(notification) => stamp_of_data(notification.data.as_bytes()),
        }
    }

    /// The number that durable notifications have.
    pub fn sequence(&self) -> Option<u64> {
        match self {
            Self::Json(frame) => sequence_of(frame),
            // Absent is 0 in protobuf; numbers begin at 1.
            Self::Protobuf(notification) => notification.sequence.filter(|&sequence| sequence > 0),
        }
    }

    /// The name of a control frame: `$hello`, `$gap`, `$bye`.
    pub fn control(&self) -> Option<Cow<'a, str>> {
        let kind = match self {
            Self::Json(frame) => Cow::Owned(json_text(frame, br#""type":""#)?),
            Self::Protobuf(notification) => Cow::Borrowed(notification.kind),
        };
        kind.starts_with('$').then_some(kind)
    }

    /// What a `$hello` calls its session.
    pub fn session(&self) -> Option<String> {
        json_text(self.text(), br#""session":""#)
    }

    /// Which life of the log a `$hello` speaks of.
    pub fn epoch(&self) -> Option<String> {
        json_text(self.text(), br#""epoch":""#)
    }

    /// What a `$hello` says its device has acknowledged.
    pub fn cursor(&self) -> Option<u64> {
        json_number(self.text(), br#""cursor":"#)
    }

    /// When to come back, in milliseconds, as a `$hello` (at the latest) and a `$bye` (exactly) have it.
    pub fn reconnect_ms(&self) -> Option<u64> {
        json_number(self.text(), br#""reconnect_ms":"#)
    }

    fn text(&self) -> &'a [u8] {
        match self {
            Self::Json(frame) => frame,
            Self::Protobuf(notification) => notification.data.as_bytes(),
        }
    }
}

/// The number behind a key.
fn json_number(json: &[u8], key: &[u8]) -> Option<u64> {
    let rest = &json[memchr::memmem::find(json, key)? + key.len()..];
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

/// The text behind a key, up to the next quote: these hold none.
fn json_text(json: &[u8], key: &[u8]) -> Option<String> {
    let rest = &json[memchr::memmem::find(json, key)? + key.len()..];
    let end = memchr::memchr(b'"', rest)?;
    Some(String::from_utf8_lossy(&rest[..end]).into_owned())
}

impl Codec {
    pub fn new(endpoint: &Endpoint) -> Self {
        match endpoint.protocol {
            Protocol::Websocket => Self::Websocket(websocket::Client::new(false)),
            Protocol::WebsocketProto => Self::Websocket(websocket::Client::new(true)),
            Protocol::Sse => Self::Sse(sse::Client::default()),
            Protocol::Grpc => Self::Grpc(Box::new(grpc::Client::new(&endpoint.host))),
        }
    }

    /// What is sent first. `since`: what the session goes on behind, `<epoch>-<sequence>`.
    pub fn request(&self, endpoint: &Endpoint, token: &str, since: Option<&str>) -> Vec<u8> {
        match self {
            Self::Websocket(client) => client.request(endpoint, token, since),
            Self::Sse(_) => sse::Client::request(endpoint, token, since),
            Self::Grpc(client) => client.request(endpoint, token, since),
        }
    }

    /// Reads the complete frames at the start of `bytes` and returns how many bytes they were. Messages go to
    /// `on`; what has to be answered is appended to `out`.
    ///
    /// # Errors
    ///
    /// When the server refused, said goodbye, or sent what it must not: the connection is over.
    pub fn read(&mut self, bytes: &[u8], out: &mut Vec<u8>, on: &mut On<'_>) -> Result<usize, String> {
        match self {
            Self::Websocket(client) => client.read(bytes, out, on),
            Self::Sse(client) => client.read(bytes, on),
            Self::Grpc(client) => client.read(bytes, out, on),
        }
    }

    /// Appends an acknowledgement; server-sent events have none.
    pub fn acknowledge(&mut self, sequence: u64, out: &mut Vec<u8>) {
        match self {
            Self::Websocket(client) => client.acknowledge(sequence, out),
            Self::Sse(_) => {}
            Self::Grpc(client) => client.acknowledge(sequence, out),
        }
    }
}

/// The part of a path that says where to go on.
pub fn query(since: Option<&str>) -> String {
    since.map(|since| format!("?since={since}")).unwrap_or_default()
}

/// Gets each message; an error ends the connection.
pub type On<'a> = dyn FnMut(Message<'_>) -> Result<(), String> + 'a;

/// Where the body of an HTTP/1.1 answer begins; `None` while its head is incomplete.
///
/// # Errors
///
/// When the status is another one.
pub fn http_head<'a>(bytes: &'a [u8], status: &str) -> Result<Option<(&'a [u8], usize)>, String> {
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
        return Ok(None);
    };
    let line = String::from_utf8_lossy(bytes.split(|&b| b == b'\r').next().unwrap_or_default());
    if line.split(' ').nth(1) != Some(status) {
        return Err(format!("the server refused: {line}{}", hint(&line)));
    }
    Ok(Some((&bytes[..end], end + 4)))
}

/// What to do about a refusal.
fn hint(line: &str) -> &'static str {
    match line.split(' ').nth(1) {
        Some("401") => " (the token: is --secret the server's auth.jwt.hs256_secret?)",
        Some("503") => " (its limits: see [limits] in its configuration)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_message_say_the_same() {
        let data = r#"{"r":7,"u":1,"n":2,"t":3,"s":4,"pad":"x"}"#;
        let json = format!(r#"{{"target":"load-1","type":"loadtest","payload":{data},"seq":9}}"#);
        let json = Message::Json(json.as_bytes());
        let notification = Message::Protobuf(Notification { kind: "loadtest", data, sequence: Some(9) });
        for message in [json, notification] {
            assert_eq!(message.stamp().map(|stamp| (stamp.run, stamp.number)), Some((7, 2)));
            assert_eq!(message.sequence(), Some(9));
            assert_eq!(message.control(), None);
        }
        let transient = Message::Protobuf(Notification { kind: "loadtest", data, sequence: Some(0) });
        assert_eq!(transient.sequence(), None);
    }

    #[test]
    fn control_frames_are_known_and_a_hello_names_its_session() {
        let payload = r#"{"session":"abc","user":"u","epoch":"k3f9","cursor":9,"reconnect_ms":1500}"#;
        let json = format!(r#"{{"type":"$hello","payload":{payload}}}"#);
        for hello in [
            Message::Json(json.as_bytes()),
            Message::Protobuf(Notification { kind: "$hello", data: payload, sequence: None }),
        ] {
            assert_eq!(hello.control().as_deref(), Some("$hello"));
            assert_eq!(hello.session().as_deref(), Some("abc"));
            assert_eq!(hello.epoch().as_deref(), Some("k3f9"));
            assert_eq!((hello.cursor(), hello.reconnect_ms()), (Some(9), Some(1500)));
        }
        let bye = Message::Json(br#"{"type":"$bye","payload":{"code":1001,"reason":"x"}}"#);
        assert_eq!((bye.control().as_deref(), bye.reconnect_ms()), (Some("$bye"), None));
    }

    #[test]
    fn a_refusal_says_what_to_look_at() {
        let refused = http_head(b"HTTP/1.1 401 Unauthorized\r\n\r\n", "101").unwrap_err();
        assert!(refused.contains("401 Unauthorized") && refused.contains("--secret"), "{refused}");
        assert_eq!(http_head(b"HTTP/1.1 200 OK\r\n", "200"), Ok(None));
        let (_, body) = http_head(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nrest", "200").unwrap().unwrap();
        assert_eq!(body, 25);
    }
}
