//! What stands between an accepted socket and HTTP: a PROXY header that names the client, and TLS. The same on
//! every port.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use super::{
    Port,
    admission::{Admitted, Refusal},
    proxy,
    socket::Socket,
};

/// A socket that HTTP can be spoken on.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that is refused.
pub(super) struct Refused {
    pub(super) refusal: Refusal,
    /// The socket, where an answer in plain text could be read.
    pub(super) unanswered: Option<TcpStream>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, unanswered: None }
    }
}

/// Makes the socket ready for HTTP, and counts it under the client's address. Waits for the peer for as long as it
/// is polled.
///
/// # Errors
/// Why the connection is refused.
pub(super) async fn open(mut tcp: TcpStream, port: &Port, admitted: &mut Admitted) -> Result<Stream, Refused> {
    if port.proxy_protocol {
        let named = proxy::read_header(&mut tcp).await.map_err(|error| {
            tracing::debug!(peer = %admitted.client(), %error, "no PROXY header that can be read");
            Refusal::ProxyHeader
        })?;
        if let Some(client) = named
            && let Err(refusal) = admitted.came_from(client, port.trusted_proxies.counted(client))
        {
            return Err(Refused { refusal, unanswered: port.tls.is_none().then_some(tcp) });
        }
    }
    let Some(tls) = &port.tls else { return Ok(Stream::Plain(tcp)) };
    let stream = tls.accept(tcp).await.map_err(|error| {
        tracing::debug!(client = %admitted.client(), %error, "no TLS handshake");
        Refusal::TlsHandshake
    })?;
    Ok(Stream::Tls(Box::new(stream)))
}

impl From<Stream> for Socket {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Plain(tcp) => tcp.into(),
            Stream::Tls(tls) => (*tls).into(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
