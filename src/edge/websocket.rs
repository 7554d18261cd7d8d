//! The reading side of a WebSocket, and its close: tungstenite's state machine over the relay's socket. Its own
//! frames (pongs, closes) go through the relay, between whole notifications.

use std::io::{self, Read, Write};

use prost::Message as _;
use tokio_tungstenite::tungstenite::{
    Error, Message,
    error::{CapacityError, ProtocolError},
    protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext},
};

use super::{protocol::Form, relay::Relay};
use crate::{
    ids::{Sequence, SessionId},
    proto,
    wire::{Acknowledge, Close, CloseCode},
};

/// Clients say little: acknowledgements, pongs. tungstenite allocates this much for each connection up front.
const READ_BUFFER_BYTES: usize = 256;
/// Reads for one message, before others have their turn: tungstenite reads on until a message is whole, which one of
/// fragments without end never is.
const READS_PER_MESSAGE: usize = 16;

/// Something a client said.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A message: the number that it acknowledges, if it does.
    Said(Option<Sequence>),
    /// A ping or a pong, whose answer is on its way, or a part of a message.
    Heard,
    /// The connection is closed.
    Left,
    /// What it said breaks the protocol.
    Broken(Close),
}

/// The protocol state of one WebSocket.
pub(super) struct WebSocket {
    context: WebSocketContext,
    form: Form,
    broken: bool,
}

impl WebSocket {
    pub(super) fn new(already_read: Vec<u8>, form: Form, frame_bytes_max: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(frame_bytes_max))
            .max_frame_size(Some(frame_bytes_max));
        let context = WebSocketContext::from_partially_read(already_read, Role::Server, Some(config));
        Self { context, form, broken: false }
    }

    /// The next message, if one is there.
    ///
    /// # Errors
    /// When the socket is gone.
    pub(super) fn next(&mut self, relay: &Relay) -> io::Result<Option<Incoming>> {
        if self.broken {
            return discard_rest(relay);
        }
        let mut socket = Socket { relay, reads_left: READS_PER_MESSAGE };
        let incoming = match self.context.read(&mut socket) {
            #[cfg(feature = "faults")]
            Ok(message @ (Message::Text(_) | Message::Binary(_))) if relay.is_echo() => {
                relay.echo(&message);
                Incoming::Heard
            }
            Ok(Message::Text(text)) if self.form == Form::Json => {
                Incoming::Said(Acknowledge::parse(text.as_bytes()).map(|ack| ack.ack))
            }
            Ok(Message::Binary(bytes)) if self.form == Form::Protobuf => {
                Incoming::Said(acknowledged(&bytes, relay.client.session))
            }
            Ok(Message::Text(_) | Message::Binary(_)) => {
                broken(CloseCode::BadFrame, "notifier.v1.json has text messages, notifier.v1.proto binary ones")
            }
            Ok(_) => Incoming::Heard,
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                // A part of a message is a sign of life too.
                return Ok((socket.reads_left == 0).then_some(Incoming::Heard));
            }
            Err(Error::Io(error)) => return Err(error),
            Err(Error::ConnectionClosed | Error::AlreadyClosed) => Incoming::Left,
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => Incoming::Left,
            Err(Error::Utf8(_)) => broken(CloseCode::NotUtf8, "text that is not UTF-8"),
            Err(Error::Capacity(CapacityError::MessageTooLong { .. })) => broken(CloseCode::TooBig, "message too big"),
            Err(_) => broken(CloseCode::ProtocolError, "not a WebSocket frame"),
        };
        // A message of the wrong kind is a whole one: the client's answer to our close can still be read.
        self.broken = matches!(&incoming, Incoming::Broken(close) if close.code != CloseCode::BadFrame);
        Ok(Some(incoming))
    }

    /// Begins the closing handshake (RFC 6455, 7.1.2).
    ///
    /// # Errors
    /// When the socket is gone.
    pub(super) fn close(&mut self, relay: &Relay, close: &Close) -> io::Result<()> {
        let frame = CloseFrame { code: (close.code as u16).into(), reason: close.reason.to_string().into() };
        match self.context.close(&mut Socket { relay, reads_left: READS_PER_MESSAGE }, Some(frame)) {
            Err(Error::Io(error)) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
}

/// What an `AcknowledgeRequest` says; it need not name the session that it comes from.
fn acknowledged(bytes: &[u8], session: SessionId) -> Option<Sequence> {
    let request = proto::AcknowledgeRequest::decode(bytes).ok()?;
    let is_ours = request.session_id.is_empty() || SessionId::parse(&request.session_id) == Some(session);
    is_ours.then_some(request.sequence)
}

fn broken(code: CloseCode, reason: &'static str) -> Incoming {
    Incoming::Broken(Close::new(code, reason))
}

/// What follows an error cannot be understood; the socket is read on so that our close frame is not lost in a
/// reset.
fn discard_rest(relay: &Relay) -> io::Result<Option<Incoming>> {
    super::connection::discard(relay)
}

/// The relay's socket as tungstenite wants it.
struct Socket<'a> {
    relay: &'a Relay,
    reads_left: usize,
}

impl Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reads_left = self.reads_left.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
        self.relay.try_read(buffer)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.relay.write_control(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Fuzz builds only: reads bytes to their end or the first error, as of a client that sends nothing else.
#[cfg(fuzzing)]
pub(super) fn read_all(bytes: &[u8], form: Form) {
    struct Deaf;
    impl Read for Deaf {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }
    impl Write for Deaf {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut websocket = WebSocket::new(bytes.to_vec(), form, 64 * 1024);
    while let Ok(message) = websocket.context.read(&mut Deaf) {
        match message {
            Message::Text(text) => _ = Acknowledge::parse(text.as_bytes()),
            Message::Binary(bytes) => _ = acknowledged(&bytes, SessionId::random()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::{io::AsyncWriteExt as _, net::TcpStream};

    use super::*;
    use crate::edge::{
        fakes::{connected, shared},
        protocol::Protocol,
    };

    /// `{"ack":0}`, masked with zeros (RFC 6455, 5.3).
    const ACK: &[u8] = b"\x81\x89\0\0\0\0{\"ack\":0}";

    /// A WebSocket whose client says that and no more.
    async fn told(bytes: &[u8]) -> (WebSocket, Arc<Relay>, TcpStream) {
        let (relay, mut client) = connected(&shared(), Protocol::WebSocket(Form::Json)).await;
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        (WebSocket::new(Vec::new(), Form::Json, 64 * 1024), relay, client)
    }

    /// What comes next, when something has come.
    async fn next(websocket: &mut WebSocket, relay: &Relay) -> Option<Incoming> {
        tokio::time::timeout(Duration::from_secs(30), relay.ready()).await.expect("something comes").unwrap();
        websocket.next(relay).unwrap()
    }

    #[tokio::test]
    async fn a_message_of_many_fragments_is_read_in_parts() {
        const PARTS: usize = 5;
        let fragments = [0, 0x80, 0, 0, 0, 0].repeat(PARTS * READS_PER_MESSAGE * READ_BUFFER_BYTES / 6);
        let (first, last) = ([1, 0x80, 0, 0, 0, 0], [0x80, 0x80, 0, 0, 0, 0]);
        let (mut websocket, relay, _client) = told(&[&first[..], &fragments, &last].concat()).await;
        let mut parts = 0;
        loop {
            match next(&mut websocket, &relay).await {
                Some(Incoming::Heard) | None => parts += 1,
                whole => break assert!(matches!(whole, Some(Incoming::Said(None))), "{whole:?}"),
            }
        }
        assert!(parts >= PARTS, "{parts}");
    }

    #[tokio::test]
    async fn behind_what_breaks_the_protocol_all_is_read_and_nothing_as_a_message() {
        let reserved = [0x83, 0x80, 0, 0, 0, 0];
        let (mut websocket, relay, _client) = told(&[&reserved[..], &ACK.repeat(1000)].concat()).await;
        let close = loop {
            match next(&mut websocket, &relay).await {
                None => {}
                Some(Incoming::Broken(close)) => break close,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(close.code, CloseCode::ProtocolError);
        websocket.close(&relay, &close).unwrap();
        let mut heard = 0;
        loop {
            match next(&mut websocket, &relay).await {
                Some(Incoming::Left) => break,
                Some(Incoming::Heard) => heard += 1,
                None => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(heard > 1, "what is not read would reset the connection, and our close with it");
    }

    #[test]
    fn an_acknowledgement_is_for_the_session_that_it_comes_from() {
        let own = SessionId::random();
        let said = |session_id: String| {
            acknowledged(&proto::AcknowledgeRequest { session_id, sequence: 7 }.encode_to_vec(), own)
        };
        assert_eq!((said(own.to_string()), said(String::new())), (Some(7), Some(7)));
        assert_eq!((said(SessionId::random().to_string()), said("x".into())), (None, None));
        assert_eq!(acknowledged(b"\xff", own), None);
    }
}
