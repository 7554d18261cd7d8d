//! The script over WebSocket.

use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
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

use crate::harness::wait::within;

pub struct Server(TcpListener);

pub struct Line(WebSocketStream<TcpStream>);

impl Server {
    pub async fn start() -> Self {
        Self(TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port"))
    }

    pub fn addr(&self) -> SocketAddr {
        self.0.local_addr().expect("a bound socket")
    }

    /// The next connection, and what its query says.
    pub async fn accept(&self) -> (Vec<String>, Line) {
        let (socket, _) = self.0.accept().await.expect("a listening socket");
        let mut query = Vec::new();
        #[expect(clippy::result_large_err, reason = "the type is tungstenite's")]
        let look = |request: &Request, mut response: Response| {
            query.extend(request.uri().query().unwrap_or_default().split('&').map(str::to_owned));
            // A browser ends a connection whose server picks none of its offers.
            if request.headers().contains_key("sec-websocket-protocol") {
                let chosen = HeaderValue::from_static("notifier.v1.json");
                response.headers_mut().insert("sec-websocket-protocol", chosen);
            }
            Ok(response)
        };
        let socket = accept_hdr_async(socket, look).await.expect("a handshake");
        (query, Line(socket))
    }
}

impl Line {
    pub async fn say(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.expect("an open connection");
    }

    /// The next text message.
    pub async fn hear(&mut self) -> Value {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).expect("JSON"),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("{other:?} instead of a text"),
            }
        }
    }

    pub async fn close(mut self, code: u16) {
        let frame = CloseFrame { code: code.into(), reason: "as the test says".into() };
        self.0.close(Some(frame)).await.expect("an open connection");
        within("the client's close", async { while let Some(Ok(_)) = self.0.next().await {} }).await;
    }
}
