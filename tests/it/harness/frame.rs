//! A frame as a client reads it.

use notifier::proto;
use prost::Message as _;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

/// One notification or control frame.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frame {
    pub target: Option<String>,
    #[serde(rename = "type")]
    pub kind: String,
    payload: Box<RawValue>,
    pub id: Option<String>,
    pub seq: Option<u64>,
    pub ts: Option<String>,
}

impl Frame {
    /// Reads one; panics on anything that is no frame of the contract.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        match serde_json::from_str(text) {
            Ok(frame) => frame,
            Err(error) => panic!("not a frame ({error}): {text}"),
        }
    }

    /// Reads the protobuf form, which has neither target nor a number for transient ones.
    #[track_caller]
    pub fn decode(bytes: &[u8]) -> Self {
        match proto::Notification::decode(bytes) {
            Ok(notification) => notification.into(),
            Err(error) => panic!("not a notification ({error}): {bytes:?}"),
        }
    }

    /// Whether the server itself says it.
    pub fn is_control(&self) -> bool {
        self.kind.starts_with('$')
    }

    /// The payload byte for byte.
    pub fn raw(&self) -> &str {
        self.payload.get()
    }

    /// The payload as a value.
    #[track_caller]
    pub fn payload(&self) -> Value {
        match serde_json::from_str(self.raw()) {
            Ok(value) => value,
            Err(error) => panic!("payload is no JSON ({error}): {}", self.raw()),
        }
    }

    /// The number that [`super::Event::numbered`] put in.
    #[track_caller]
    pub fn n(&self) -> u64 {
        match self.payload()["n"].as_u64() {
            Some(n) => n,
            None => panic!("no number: {self:?}"),
        }
    }

    /// The sequence number of a durable notification.
    #[track_caller]
    pub fn number(&self) -> u64 {
        match self.seq {
            Some(seq) => seq,
            None => panic!("no sequence number: {self:?}"),
        }
    }
}

impl From<proto::Notification> for Frame {
    fn from(notification: proto::Notification) -> Self {
        let text = |text: String| Some(text).filter(|text| !text.is_empty());
        let data = text(notification.data).unwrap_or_else(|| "null".into());
        Self {
            target: None,
            kind: notification.notification_type,
            payload: RawValue::from_string(data).expect("data is JSON"),
            id: text(notification.notification_id),
            seq: Some(notification.sequence).filter(|seq| *seq > 0),
            ts: notification.created_at.map(|at| format!("{}.{:09}", at.seconds, at.nanos)),
        }
    }
}

/// The content of `$hello`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    pub session: String,
    pub user: String,
    pub epoch: String,
    pub head: u64,
    pub cursor: u64,
    pub heartbeat_ms: u64,
    pub reconnect_ms: u64,
}

impl Hello {
    /// Reads it out of the first frame.
    #[track_caller]
    pub fn from_frame(frame: &Frame) -> Self {
        assert_eq!(frame.kind, "$hello", "the first frame: {frame:?}");
        match serde_json::from_str(frame.raw()) {
            Ok(hello) => hello,
            Err(error) => panic!("not a hello ({error}): {}", frame.raw()),
        }
    }

    /// The resume point after `seq`, as `since=` and `Last-Event-ID` take it.
    pub fn since(&self, seq: u64) -> String {
        format!("{}-{seq}", self.epoch)
    }
}
