//! A WebSocket: the handshake over hyper, so that a refusal is read as for any request; the rest is tungstenite's.

use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::Full;
use hyper::{
    Request, StatusCode,
    header::{self, HeaderMap},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::Role,
    },
};

use super::{
    connection::{FAREWELL, Received, Wanted},
    http::{Server, chain},
    retry::{Closed, Failure},
};
use crate::ids::Sequence;

const SUBPROTOCOL: &str = "notifier.v1.json";

/// An open WebSocket.
pub(super) struct WebSocket {
    stream: WebSocketStream<TokioIo<Upgraded>>,
}

impl WebSocket {
    /// Connects (RFC 6455, 4.1).
    ///
    /// # Errors
    /// Says why there is no connection.
    pub(super) async fn open(server: &Server, wanted: &Wanted<'_>) -> Result<Self, Failure> {
        let key = generate_key();
        let request = Request::get(server.endpoint.target("/v1/connect", &wanted.query()))
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key)
            .header(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
        let response = server.request(request, Full::default(), StatusCode::SWITCHING_PROTOCOLS).await?;
        check(response.headers(), &key)?;
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| Failure::Unreachable(chain(&error)))?;
        let stream = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
        Ok(Self { stream })
    }

    /// The next thing that comes. Cancel safe.
    ///
    /// # Errors
    /// When nothing more will.
    pub(super) async fn next(&mut self) -> Result<Received, Failure> {
        match self.stream.next().await {
            Some(Ok(Message::Text(text))) => Ok(Received::Frame(text.as_str().to_owned())),
            Some(Ok(Message::Close(close))) => {
                let (code, reason) = match close {
                    Some(close) => (Some(close.code.into()), close.reason.as_str().to_owned()),
                    None => (None, String::new()),
                };
                Ok(Received::Closed(Closed { code, reason, wait: None }))
            }
            Some(Ok(_)) => Ok(Received::SignOfLife),
            Some(Err(error)) => Err(lost(&error)),
            None => Err(Failure::Lost("the server closed the connection".to_owned())),
        }
    }

    /// Acknowledges on the connection itself.
    ///
    /// # Errors
    /// When it is gone.
    pub(super) async fn acknowledge(&mut self, seq: Sequence) -> Result<(), Failure> {
        self.stream.send(Message::text(format!(r#"{{"ack":{seq}}}"#))).await.map_err(|error| lost(&error))
    }

    /// The closing handshake (RFC 6455, 7.1.2). Reads on to its end: a socket that is dropped with something
    /// unread is reset, and what was just acknowledged with it.
    pub(super) async fn close(mut self) {
        let farewell = async {
            let _ = self.stream.close(None).await;
            while let Some(Ok(_)) = self.stream.next().await {}
        };
        let _ = timeout(FAREWELL, farewell).await;
    }
}

fn check(headers: &HeaderMap, key: &str) -> Result<(), Failure> {
    let is = |name, expected: &[u8]| headers.get(name).is_some_and(|value| value.as_bytes() == expected);
    if !is(header::SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes()).as_bytes()) {
        return Err(Failure::Foreign("its WebSocket handshake is wrong".to_owned()));
    }
    if headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL)
        && !is(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL.as_bytes())
    {
        return Err(Failure::Foreign(format!("it does not speak {SUBPROTOCOL}")));
    }
    Ok(())
}

fn lost(error: &tungstenite::Error) -> Failure {
    Failure::Lost(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_is_answered_by_who_read_it_and_in_our_subprotocol() {
        // The example of RFC 6455, 1.3.
        const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
        const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
        let answer = |accept: Option<&str>, subprotocol: Option<&str>| {
            let accept = accept.map(|value| (header::SEC_WEBSOCKET_ACCEPT, value.parse().unwrap()));
            let subprotocol = subprotocol.map(|value| (header::SEC_WEBSOCKET_PROTOCOL, value.parse().unwrap()));
            check(&accept.into_iter().chain(subprotocol).collect(), KEY)
        };
        assert_eq!(answer(Some(ACCEPT), Some(SUBPROTOCOL)), Ok(()));
        assert_eq!(answer(Some(ACCEPT), None), Ok(()), "RFC 6455, 4.1: it may name none");
        for accept in [None, Some(""), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOp="), Some(KEY)] {
            assert!(matches!(answer(accept, Some(SUBPROTOCOL)), Err(Failure::Foreign(_))), "{accept:?}");
        }
        for subprotocol in ["", "chat", "notifier.v1.proto", "notifier.v1.json, chat"] {
            assert!(matches!(answer(Some(ACCEPT), Some(subprotocol)), Err(Failure::Foreign(_))), "{subprotocol}");
        }
    }
}
