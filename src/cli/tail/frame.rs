//! What a frame holds, as far as a client that prints it needs to know.

use std::{borrow::Cow, time::Duration};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::ids::Sequence;

/// A frame's parts; the payload is the text that came.
#[derive(Debug, Deserialize)]
pub(super) struct Frame<'a> {
    /// The notification's type; control frames begin with `$`.
    #[serde(rename = "type", borrow)]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) payload: Option<&'a RawValue>,
    /// `None`: transient, or a control frame.
    #[serde(default)]
    pub(super) seq: Option<Sequence>,
}

/// A control frame that the connection depends on.
#[derive(Debug)]
pub(super) enum Control {
    Hello(Hello),
    Bye(Bye),
}

/// `$hello`.
#[derive(Debug, Deserialize)]
pub(super) struct Hello {
    pub(super) session: String,
    pub(super) user: String,
    pub(super) epoch: String,
    #[serde(default)]
    pub(super) head: Sequence,
    #[serde(default)]
    pub(super) cursor: Sequence,
    #[serde(default)]
    heartbeat_ms: u64,
    #[serde(default)]
    reconnect_ms: Option<u64>,
}

/// `$bye`.
#[derive(Debug, Deserialize)]
pub(super) struct Bye {
    pub(super) code: u16,
    #[serde(default)]
    pub(super) reason: String,
    #[serde(default)]
    reconnect_ms: Option<u64>,
}

impl<'a> Frame<'a> {
    /// Reads a frame; `None` when the text is none.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Whether it is about the connection and no notification.
    pub(super) fn is_control(&self) -> bool {
        self.kind.starts_with('$')
    }

    /// What the connection has to know of it; unknown control frames are only printed.
    pub(super) fn control(&self) -> Option<Control> {
        let payload = self.payload?.get();
        match &*self.kind {
            "$hello" => serde_json::from_str(payload).ok().map(Control::Hello),
            "$bye" => serde_json::from_str(payload).ok().map(Control::Bye),
            _ => None,
        }
    }
}

impl Hello {
    /// How often the server gives a sign of life; `None`: it does not say.
    pub(super) fn heartbeat(&self) -> Option<Duration> {
        const MAX: Duration = Duration::from_secs(3600);
        Some(Duration::from_millis(self.heartbeat_ms).min(MAX)).filter(|heartbeat| !heartbeat.is_zero())
    }

    /// Within which time to come back after a loss.
    pub(super) fn reconnect(&self) -> Option<Duration> {
        self.reconnect_ms.map(Duration::from_millis)
    }
}

impl Bye {
    /// How long to wait before coming back.
    pub(super) fn wait(&self) -> Option<Duration> {
        self.reconnect_ms.map(Duration::from_millis)
    }
}

/// The text on one line. A JSON text has line breaks only between its tokens (RFC 8259, 2 and 7), where a space
/// means the same.
pub(super) fn one_line(text: &str) -> Cow<'_, str> {
    if text.contains(['\n', '\r']) { text.replace(['\n', '\r'], " ").into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_keeps_its_payload_as_it_came() {
        let frame = Frame::parse(r#"{"target":"101","type":"a\"b","payload":{"n": 12345678901234567890.50},"seq":12}"#)
            .unwrap();
        assert_eq!((&*frame.kind, frame.seq, frame.is_control()), ("a\"b", Some(12), false));
        assert_eq!(frame.payload.unwrap().get(), r#"{"n": 12345678901234567890.50}"#);
        assert!(frame.control().is_none());
    }

    #[test]
    fn hello_and_bye_name_their_times() {
        let text = r#"{"type":"$hello","payload":{"session":"s","user":"101","epoch":"k3f9","head":12,"cursor":9,"heartbeat_ms":25000,"reconnect_ms":1500}}"#;
        let Some(Control::Hello(hello)) = Frame::parse(text).unwrap().control() else { panic!("no hello") };
        assert_eq!(
            (&*hello.session, &*hello.user, &*hello.epoch, hello.head, hello.cursor),
            ("s", "101", "k3f9", 12, 9)
        );
        assert_eq!(hello.heartbeat(), Some(Duration::from_secs(25)));
        assert_eq!(hello.reconnect(), Some(Duration::from_millis(1500)));
        let text = r#"{"type":"$bye","payload":{"code":1001,"reason":"draining","reconnect_ms":2750}}"#;
        let Some(Control::Bye(bye)) = Frame::parse(text).unwrap().control() else { panic!("no bye") };
        assert_eq!((bye.code, &*bye.reason, bye.wait()), (1001, "draining", Some(Duration::from_millis(2750))));
    }

    #[test]
    fn a_heartbeat_of_ages_is_not_believed() {
        let heartbeat = |heartbeat_ms| {
            let payload = format!(r#"{{"session":"s","user":"101","epoch":"k3f9","heartbeat_ms":{heartbeat_ms}}}"#);
            serde_json::from_str::<Hello>(&payload).unwrap().heartbeat()
        };
        assert_eq!(heartbeat(3_600_001), Some(Duration::from_secs(3600)));
        assert_eq!(heartbeat(u64::MAX), Some(Duration::from_secs(3600)));
        assert_eq!(heartbeat(0), None);
    }

    #[test]
    fn a_notification_of_a_users_making_is_no_control_frame() {
        for text in [r#"{"type":"$later","payload":1}"#, r#"{"type":"$hello"}"#, r#"{"type":"hello","payload":{}}"#] {
            assert!(Frame::parse(text).unwrap().control().is_none(), "{text}");
        }
        for text in ["", "[]", "{}", r#"{"type":1}"#, r#"{"type":"a"} x"#] {
            assert!(Frame::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn one_line_changes_no_value() {
        let text = "{\"a\":\r\n[1,\n\n2,\"x\\ny\u{2028}\"]}";
        let line = one_line(text);
        assert_eq!(line, "{\"a\":  [1,  2,\"x\\ny\u{2028}\"]}");
        let values = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(values(&line), values(text));
        assert!(matches!(one_line("{}"), Cow::Borrowed("{}")));
    }
}
