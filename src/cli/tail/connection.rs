//! One connection, whatever carries it: frames come, acknowledgements go.

use std::{sync::Arc, time::Duration};

use super::{
    Protocol,
    grpc::Grpc,
    http::Server,
    retry::{Closed, Failure},
    sse::Sse,
    websocket::WebSocket,
};
use crate::ids::{DeviceId, Sequence};

/// How long the end of a connection may take.
pub(super) const FAREWELL: Duration = Duration::from_secs(1);

/// What came.
#[derive(Debug)]
pub(super) enum Received {
    /// A frame's text.
    Frame(String),
    /// Something that only shows that the other side is there.
    SignOfLife,
    /// The server closed in good order.
    Closed(Closed),
}

/// What a connect asks for.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) device: Option<&'a DeviceId>,
    /// `<epoch>-<seq>`.
    pub(super) since: Option<&'a str>,
}

/// A connection that was made.
pub(super) enum Connection {
    WebSocket(Box<WebSocket>),
    Sse(Sse),
    Grpc(Box<Grpc>),
}

impl Wanted<'_> {
    /// Names and values of the query.
    pub(super) fn query(&self) -> [(&'static str, Option<&str>); 2] {
        [("device", self.device.map(|device| &**device)), ("since", self.since)]
    }
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// Says why there is no connection. When cancelled, there is none.
    pub(super) async fn open(protocol: Protocol, server: &Arc<Server>, wanted: &Wanted<'_>) -> Result<Self, Failure> {
        match protocol {
            Protocol::Websocket => {
                WebSocket::open(server, wanted).await.map(|socket| Self::WebSocket(Box::new(socket)))
            }
            Protocol::Sse => Sse::open(server, wanted).await.map(Self::Sse),
            Protocol::Grpc => Grpc::open(server, wanted).await.map(|stream| Self::Grpc(Box::new(stream))),
        }
    }

    /// The next thing that comes. Cancel safe.
    ///
    /// # Errors
    /// When nothing more will.
    pub(super) async fn next(&mut self) -> Result<Received, Failure> {
        match self {
            Self::WebSocket(socket) => socket.next().await,
            Self::Sse(stream) => stream.next().await,
            Self::Grpc(stream) => stream.next().await,
        }
    }

    /// Acknowledges everything up to `seq` for `session`.
    ///
    /// # Errors
    /// When the connection does not take it.
    pub(super) async fn acknowledge(&mut self, session: &str, seq: Sequence) -> Result<(), Failure> {
        match self {
            Self::WebSocket(socket) => socket.acknowledge(seq).await,
            Self::Sse(stream) => {
                stream.acknowledge(session, seq);
                Ok(())
            }
            Self::Grpc(stream) => stream.acknowledge(session, seq).await,
        }
    }

    /// Ends the connection; acknowledgements that are on their way arrive, if that takes no longer than
    /// [`FAREWELL`].
    pub(super) async fn close(self) {
        match self {
            Self::WebSocket(socket) => socket.close().await,
            Self::Sse(stream) => stream.close().await,
            // Each acknowledgement was answered; the stream ends when it is dropped.
            Self::Grpc(_) => {}
        }
    }
}
