//! Requests to the server, each on a connection of its own; hyper speaks HTTP.

use std::{future::Future, io, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{self, HeaderMap},
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{credentials::Credentials, endpoint::Endpoint, retry::Failure};

/// From the name's resolution to the answer's head.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// An error's text is short; more than this is not read.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// The server, and how to show it who we are.
pub(super) struct Server {
    pub(super) endpoint: Endpoint,
    pub(super) credentials: Credentials,
    /// Where the endpoint is secure.
    pub(super) tls: Option<TlsConnector>,
}

/// A connection, with TLS or without: what both have in common.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// RFC 9457.
#[derive(Default, Deserialize)]
struct Problem {
    detail: Option<String>,
    title: Option<String>,
}

impl Server {
    /// Sends a request, with who we are, and waits for the head of its answer, which has the `expected` status.
    ///
    /// # Errors
    /// When nobody answers, or something else.
    pub(super) async fn request(
        &self,
        request: hyper::http::request::Builder,
        body: Full<Bytes>,
        expected: StatusCode,
    ) -> Result<Response<Incoming>, Failure> {
        let credentials = self.credentials.header().map_err(|error| Failure::Unreachable(error.to_string()))?;
        let request = request
            .header(header::HOST, self.endpoint.host())
            .header(header::USER_AGENT, concat!("notifier/", env!("CARGO_PKG_VERSION")))
            .header(header::AUTHORIZATION, credentials)
            .body(body)
            .map_err(|error| Failure::Unreachable(error.to_string()))?;
        let response = in_time(self.exchange(request)).await?;
        match response.status() {
            status if status == expected => Ok(response),
            StatusCode::SWITCHING_PROTOCOLS | StatusCode::OK => {
                Err(Failure::Foreign(format!("unexpected answer {}", response.status())))
            }
            _ => Err(refused(response).await),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failure> {
        let socket = self.connect().await.map_err(|error| Failure::Unreachable(chain(&error)))?;
        let unreachable = |error: hyper::Error| Failure::Unreachable(chain(&error));
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(unreachable)?;
        // Ends with the answer's body, or hands the socket over to whoever upgrades it.
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.map_err(unreachable)
    }

    /// A connection, with TLS where the endpoint has it.
    ///
    /// # Errors
    /// When nobody answers, or nobody who is trusted.
    pub(super) async fn connect(&self) -> io::Result<Box<dyn Io>> {
        let socket = TcpStream::connect(self.endpoint.address()).await?;
        // Acknowledgements are small and must not wait for more of them.
        socket.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(socket)) };
        let name = ServerName::try_from(self.endpoint.name().to_owned()).map_err(io::Error::other)?;
        Ok(Box::new(tls.connect(name, socket).await?))
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = |_| Err(Failure::Unreachable(format!("no answer within {} s", ANSWER.as_secs())));
    timeout(ANSWER, answer).await.unwrap_or_else(late)
}

/// hyper's errors say little without their causes.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The error that an answer is, in the server's words where it has some.
async fn refused(response: Response<Incoming>) -> Failure {
    let (head, body) = response.into_parts();
    let body = timeout(ANSWER, Limited::new(body, ERROR_BYTES_MAX).collect()).await;
    let body = body.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
    Failure::Refused {
        status: head.status,
        detail: detail(head.status, &body),
        retry_after: retry_after(&head.headers),
    }
}

fn detail(status: StatusCode, body: &[u8]) -> String {
    let Problem { detail, title } = serde_json::from_slice(body).unwrap_or_default();
    detail.or(title).unwrap_or_else(|| status.canonical_reason().unwrap_or("error").to_owned())
}

/// RFC 9110, 10.2.3; the form with a date is not read, servers of ours send seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_in_the_servers_words() {
        let body = br#"{"type":"about:blank","title":"Unauthorized","status":401,"detail":"the token has expired"}"#;
        assert_eq!(detail(StatusCode::UNAUTHORIZED, body), "the token has expired");
        assert_eq!(detail(StatusCode::UNAUTHORIZED, br#"{"title":"t"}"#), "t");
        assert_eq!(detail(StatusCode::BAD_GATEWAY, b"<html>"), "Bad Gateway");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_is_not_waited_for_without_end() {
        let answer = tokio::time::timeout(2 * ANSWER, in_time(std::future::pending::<Result<(), Failure>>())).await;
        assert!(matches!(answer, Ok(Err(Failure::Unreachable(_)))), "{answer:?}");
    }

    #[test]
    fn retry_after_is_read_in_seconds() {
        let headers = |value: &str| HeaderMap::from_iter([(header::RETRY_AFTER, value.parse().unwrap())]);
        assert_eq!(retry_after(&headers("7")), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(&headers("Fri, 31 Dec 1999 23:59:59 GMT")), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
