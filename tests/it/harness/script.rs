//! A server that says what a test tells it to, over WebSocket or as server-sent events: for what a real node does not
//! do on demand.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;

use super::{example::Client, wait::within};

mod stream;
mod websocket;

/// The server.
pub enum Script {
    WebSocket(websocket::Server),
    Stream(stream::Server),
}

/// One connection of a client.
pub struct Scene {
    /// What it asked for, as in `since=a-1`, in the order of the names; on a stream `since` is what its header says.
    pub query: Vec<String>,
    line: Line,
}

/// What a scene is played on.
enum Line {
    WebSocket(Box<websocket::Line>),
    Stream(stream::Line),
}

impl Script {
    /// A server for such a client.
    pub async fn start(client: Client) -> Self {
        match client {
            Client::Go => Self::Stream(stream::Server::start().await),
            _ => Self::WebSocket(websocket::Server::start().await),
        }
    }

    pub fn addr(&self) -> SocketAddr {
        match self {
            Self::WebSocket(server) => server.addr(),
            Self::Stream(server) => server.addr(),
        }
    }

    /// The next connection.
    pub async fn next(&self) -> Scene {
        within("a connection", self.accept()).await
    }

    /// Whether another connection comes within `time`.
    pub async fn is_called_within(&self, time: Duration) -> bool {
        tokio::time::timeout(time, self.accept()).await.is_ok()
    }

    async fn accept(&self) -> Scene {
        let (mut query, line) = match self {
            Self::WebSocket(server) => {
                let (query, line) = server.accept().await;
                (query, Line::WebSocket(Box::new(line)))
            }
            Self::Stream(server) => {
                let (query, line) = server.accept().await;
                (query, Line::Stream(line))
            }
        };
        query.sort();
        Scene { query, line }
    }
}

impl Scene {
    /// Sends a frame.
    pub async fn say(&mut self, text: &str) {
        match &mut self.line {
            Line::WebSocket(line) => line.say(text).await,
            Line::Stream(line) => line.say(text),
        }
    }

    /// What the client says next must be that, as JSON.
    pub async fn hear(&mut self, expected: &Value) {
        let heard = match &mut self.line {
            Line::WebSocket(line) => within("a message", line.hear()).await,
            Line::Stream(line) => within("an acknowledgement", line.hear()).await,
        };
        assert_eq!(&heard, expected);
    }

    /// Closes with that code, and waits for the other side where it answers. A stream says the code in a `$bye`, unless
    /// the test has said another.
    pub async fn close(self, code: u16) {
        match self.line {
            Line::WebSocket(line) => line.close(code).await,
            Line::Stream(line) => line.close(code),
        }
    }
}
