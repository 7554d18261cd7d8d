//! The protocols as codecs: how frames, heartbeats and goodbyes look on the wire. What a session is, is the
//! same for all of them.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;

use crate::{
    ids::LogEpoch,
    proto,
    session::{Kind, Outgoing},
    wire::{self, Close, Control, Frame, position, websocket_binary},
};

/// How a client is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// RFC 6455.
    WebSocket(Form),
    /// WHATWG HTML, "Server-sent events".
    Sse(Sse),
    /// gRPC's `Connect`.
    Grpc(Grpc),
}

/// What a WebSocket's messages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Subprotocol `notifier.v1.json`: text messages.
    Json,
    /// Subprotocol `notifier.v1.proto`: binary messages.
    Protobuf,
}

/// What carries a gRPC stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grpc {
    /// HTTP/2, on the gRPC port.
    Native,
    /// gRPC-Web, on the client port.
    Web,
}

/// What a client of server-sent events asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sse {
    /// HTTP/1.1: the body is sent in chunks. HTTP/1.0: as it is, until the connection ends.
    pub(super) chunked: bool,
    /// `?events=type`: the notification's type is the event's name.
    pub(super) named: bool,
}

impl Protocol {
    /// The labels of metrics, by [`Protocol::index`].
    pub(super) const NAMES: [&str; 4] = ["websocket", "sse", "grpc", "grpc-web"];

    /// Its place in [`Protocol::NAMES`].
    pub(super) fn index(self) -> usize {
        match self {
            Self::WebSocket(_) => 0,
            Self::Sse(_) => 1,
            Self::Grpc(Grpc::Native) => 2,
            Self::Grpc(Grpc::Web) => 3,
        }
    }

    /// Whether clients can be expected to acknowledge: a browser's `EventSource` has nothing to do it with.
    pub(super) fn counts_acknowledgements(self) -> bool {
        !matches!(self, Self::Sse(_))
    }

    /// Whether a peer that is there answers a heartbeat.
    pub(super) fn answers_heartbeats(self) -> bool {
        matches!(self, Self::WebSocket(_))
    }

    /// A heartbeat: a ping without payload (RFC 6455, 5.5.2), a comment, or a control notification.
    pub(super) fn heartbeat(self) -> &'static [u8] {
        match self {
            Self::WebSocket(_) => &[0x89, 0x00],
            // Field 1, `notification_type`, and its length. Proxies count a stream without messages as idle.
            Self::Grpc(_) => b"\x0a\x0a$heartbeat",
            Self::Sse(Sse { chunked: true, .. }) => b"3\r\n:\n\n\r\n",
            Self::Sse(Sse { chunked: false, .. }) => b":\n\n",
        }
    }

    /// One frame as bytes.
    pub(super) fn encode(self, epoch: &LogEpoch, outgoing: &Outgoing<'_>) -> Bytes {
        match self {
            Self::WebSocket(Form::Json) => outgoing.frame.websocket(),
            Self::WebSocket(Form::Protobuf) => websocket_binary(&protobuf(outgoing)),
            Self::Sse(sse) => sse.encode(epoch, outgoing, None),
            Self::Grpc(_) => protobuf(outgoing).encode_to_vec().into(),
        }
    }

    /// The last frame before a close. WebSocket's close frame follows it.
    pub(super) fn goodbye(self, epoch: &LogEpoch, close: &Close) -> Bytes {
        let bye = close.bye();
        let retry_ms = bye.reconnect_ms;
        let frame = Frame::control(&Control::Bye(bye));
        let outgoing = Outgoing { frame: &frame, kind: Kind::Control("$bye", None) };
        match self {
            // A browser comes back by itself, and obeys nothing else.
            Self::Sse(sse) => sse.encode(epoch, &outgoing, retry_ms),
            _ => self.encode(epoch, &outgoing),
        }
    }
}

fn protobuf(outgoing: &Outgoing<'_>) -> proto::Notification {
    match outgoing.kind {
        Kind::Notification(seq, event) => wire::protobuf(seq, event),
        Kind::Control(name, _) => outgoing.frame.protobuf(name),
    }
}

impl Sse {
    fn encode(self, epoch: &LogEpoch, outgoing: &Outgoing<'_>, retry_ms: Option<u64>) -> Bytes {
        let json = outgoing.frame.json();
        let mut out = Vec::with_capacity(json.len() + 96);
        let (name, covers) = match outgoing.kind {
            Kind::Control(name, covers) => (Some(name), covers),
            Kind::Notification(seq, event) => (self.named.then_some(&*event.notification_type), seq),
        };
        if let Some(name) = name {
            field(&mut out, "event", name.as_bytes());
        }
        if let Some(seq) = covers {
            field(&mut out, "id", position(epoch, seq).as_bytes());
        }
        if let Some(millis) = retry_ms {
            field(&mut out, "retry", millis.to_string().as_bytes());
        }
        // A payload may hold line breaks between its values; each line is a field of its own.
        json.split(|byte| matches!(byte, b'\n' | b'\r')).for_each(|line| field(&mut out, "data", line));
        out.push(b'\n');
        self.chunk(&out)
    }

    /// The first bytes of a stream: how long to wait before connecting again.
    pub(super) fn retry(self, millis: u128) -> Bytes {
        self.chunk(format!("retry: {millis}\n\n").as_bytes())
    }

    /// RFC 9112, 7.1.
    fn chunk(self, body: &[u8]) -> Bytes {
        if !self.chunked {
            return Bytes::copy_from_slice(body);
        }
        let mut out = BytesMut::with_capacity(body.len() + 12);
        out.put_slice(format!("{:x}\r\n", body.len()).as_bytes());
        out.put_slice(body);
        out.put_slice(b"\r\n");
        out.freeze()
    }

    /// The end of the body.
    pub(super) fn end(self) -> &'static [u8] {
        if self.chunked { b"0\r\n\r\n" } else { b"" }
    }
}

fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::{
        event::{Event, Notification, Options},
        ids::{NotificationId, UserId},
        wire::{CloseCode, Gap, GapReason},
    };

    fn event(payload: &str) -> Arc<Event> {
        Arc::new(Event {
            user: UserId::new("u").unwrap(),
            session: None,
            id: NotificationId::new("i").unwrap(),
            notification_type: "t".into(),
            payload: payload.into(),
            options: Options::default(),
            created_at: 0,
            recorded_at: 0,
        })
    }

    fn encoded(sse: Sse, seq: Option<u64>, payload: &str) -> String {
        let notification = Notification { seq, event: event(payload) };
        let frame = Frame::notification(&notification);
        let outgoing = Outgoing { frame: &frame, kind: Kind::Notification(seq, &notification.event) };
        let epoch = LogEpoch::random();
        let text = String::from_utf8(sse.encode(&epoch, &outgoing, None).to_vec()).unwrap();
        text.replace(&*epoch, "EPOCH")
    }

    const PLAIN: Sse = Sse { chunked: false, named: false };

    #[test]
    fn a_notification_has_an_id_when_it_has_a_number_and_no_event_name() {
        let numbered = encoded(PLAIN, Some(7), "1");
        assert!(numbered.starts_with("id: EPOCH-7\ndata: {\"target\":") && numbered.ends_with("}\n\n"), "{numbered}");
        assert!(encoded(PLAIN, None, "1").starts_with("data: "));
        assert!(encoded(Sse { named: true, ..PLAIN }, Some(7), "1").starts_with("event: t\nid: EPOCH-7\n"));
    }

    #[test]
    fn who_is_cut_behind_a_gap_goes_on_behind_it_and_a_goodbye_says_when_to_come_back() {
        let (protocol, epoch) = (Protocol::Sse(PLAIN), LogEpoch::random());
        let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap().replace(&*epoch, "EPOCH");
        let gap = Frame::control(&Control::Gap(Gap { from: 1, to: 4, reason: GapReason::Expired }));
        let gap = protocol.encode(&epoch, &Outgoing { frame: &gap, kind: Kind::Control("$gap", Some(4)) });
        assert!(text(gap).starts_with("event: $gap\nid: EPOCH-4\ndata: "));
        let close = Close::new(CloseCode::GoingAway, "draining");
        let close = Close { reconnect: Some(Duration::from_millis(1500)), ..close };
        assert!(text(protocol.goodbye(&epoch, &close)).starts_with("event: $bye\nretry: 1500\ndata: "));
        let close = Close::new(CloseCode::Replaced, "ended");
        assert!(!text(protocol.goodbye(&epoch, &close)).contains("retry"));
    }

    #[test]
    fn line_breaks_in_a_payload_become_data_lines() {
        let text = encoded(PLAIN, None, "{\n\"a\":\r\n1}");
        assert_eq!(text.lines().filter(|line| line.starts_with("data: ")).count(), 4, "{text}");
        assert_eq!(text.matches("\n\n").count(), 1);
    }

    #[test]
    fn chunks_say_their_length() {
        let sse = Sse { chunked: true, named: false };
        assert_eq!(&sse.retry(1500)[..], b"d\r\nretry: 1500\n\n\r\n");
        assert_eq!(Protocol::Sse(sse).heartbeat(), &sse.chunk(b":\n\n")[..]);
    }
}
