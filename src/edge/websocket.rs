//! The reading side of a WebSocket, and its close: tungstenite's state machine over the relay's socket. Its own
//! frames (pongs, closes) go through the relay, between whole notifications.

use std::io::{self, Read, Write};

use bytes::Bytes;
use tokio_tungstenite::tungstenite::{
    Error, Message,
    error::{CapacityError, ProtocolError},
    protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext},
};

use super::relay::Relay;
use crate::wire::{Close, CloseCode};

/// Clients say little: acknowledgements, pongs. tungstenite allocates this much for each connection up front.
const READ_BUFFER_BYTES: usize = 256;

/// Something a client said.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A text message.
    Text(Bytes),
    /// A ping or a pong; the answer is on its way.
    Heard,
    /// The connection is closed.
    Left,
    /// What it said breaks the protocol.
    Broken(Close),
}

/// The protocol state of one WebSocket.
pub(super) struct WebSocket {
    context: WebSocketContext,
    broken: bool,
}

impl WebSocket {
    pub(super) fn new(already_read: Vec<u8>, frame_bytes_max: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(frame_bytes_max))
            .max_frame_size(Some(frame_bytes_max));
        let context = WebSocketContext::from_partially_read(already_read, Role::Server, Some(config));
        Self { context, broken: false }
    }

    /// The next message, if one is there.
    ///
    /// # Errors
    /// When the socket is gone.
    pub(super) fn next(&mut self, relay: &Relay) -> io::Result<Option<Incoming>> {
        if self.broken {
            return discard_rest(relay);
        }
        let incoming = match self.context.read(&mut Socket(relay)) {
            Ok(Message::Text(text)) => Incoming::Text(text.into()),
            Ok(Message::Binary(_)) => broken(CloseCode::BadFrame, "binary frames are not part of notifier.v1.json"),
            Ok(_) => Incoming::Heard,
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(Error::Io(error)) => return Err(error),
            Err(Error::ConnectionClosed | Error::AlreadyClosed) => Incoming::Left,
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => Incoming::Left,
            Err(Error::Utf8(_)) => broken(CloseCode::NotUtf8, "text that is not UTF-8"),
            Err(Error::Capacity(CapacityError::MessageTooLong { .. })) => broken(CloseCode::TooBig, "message too big"),
            Err(_) => broken(CloseCode::ProtocolError, "not a WebSocket frame"),
        };
        self.broken = matches!(incoming, Incoming::Broken(_));
        Ok(Some(incoming))
    }

    /// Begins the closing handshake (RFC 6455, 7.1.2).
    ///
    /// # Errors
    /// When the socket is gone.
    pub(super) fn close(&mut self, relay: &Relay, close: &Close) -> io::Result<()> {
        let frame = CloseFrame { code: (close.code as u16).into(), reason: close.reason.into() };
        match self.context.close(&mut Socket(relay), Some(frame)) {
            Err(Error::Io(error)) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
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
struct Socket<'a>(&'a Relay);

impl Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.socket.try_read(buffer)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_control(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
