//! A WebSocket server that says what a test tells it to: for what a real node does not do on demand.

use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{Request, Response},
        http::HeaderValue,
        protocol::CloseFrame,
    },
};

use super::wait::within;

/// The server.
pub struct Script {
    listener: TcpListener,
}

/// One connection of a client.
pub struct Scene {
    /// What it asked for, as in `since=a-1`, in the order of the names.
    pub query: Vec<String>,
    socket: WebSocketStream<TcpStream>,
}

impl Script {
    pub async fn start() -> Self {
        Self { listener: TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port") }
    }

    pub fn addr(&self) -> SocketAddr {
        self.listener.local_addr().expect("a bound socket")
    }

    /// The next connection.
    pub async fn next(&self) -> Scene {
        within("a connection", self.accept()).await
    }

    /// Whether another connection comes within `time`.
    pub async fn is_called_within(&self, time: std::time::Duration) -> bool {
        tokio::time::timeout(time, self.accept()).await.is_ok()
    }

    async fn accept(&self) -> Scene {
        let (socket, _) = self.listener.accept().await.expect("a listening socket");
        let mut query = Vec::new();
        #[expect(clippy::result_large_err, reason = "the type is tungstenite's")]
        let look = |request: &Request, mut response: Response| {
            query.extend(request.uri().query().unwrap_or_default().split('&').map(str::to_owned));
            query.sort();
            // A browser ends a connection whose server picks none of its offers.
            if request.headers().contains_key("sec-websocket-protocol") {
                let chosen = HeaderValue::from_static("notifier.v1.json");
                response.headers_mut().insert("sec-websocket-protocol", chosen);
            }
            Ok(response)
        };
        let socket = accept_hdr_async(socket, look).await.expect("a handshake");
        Scene { query, socket }
    }
}

impl Scene {
    /// Sends a text message.
    pub async fn say(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.expect("an open connection");
    }

    /// The next text message must be that, as JSON.
    pub async fn hear(&mut self, expected: &serde_json::Value) {
        loop {
            match within("a message", self.socket.next()).await {
                Some(Ok(Message::Text(text))) => {
                    let text: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                    assert_eq!(&text, expected);
                    return;
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("{other:?} instead of {expected}"),
            }
        }
    }

    /// Closes with that code, and waits for the other side.
    pub async fn close(mut self, code: u16) {
        let frame = CloseFrame { code: code.into(), reason: "as the test says".into() };
        self.socket.close(Some(frame)).await.expect("an open connection");
        within("the client's close", async { while let Some(Ok(_)) = self.socket.next().await {} }).await;
    }
}
