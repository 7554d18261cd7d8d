//! The accept loop, and HTTP on an accepted socket. hyper reads requests and writes answers; when a request
//! becomes a session, the socket is taken over and lives on in a small task of its own.

use std::{
    future::{Future as _, poll_fn, ready},
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::Router;
use futures_util::future::Either;
use hyper::{
    Request,
    body::Incoming,
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tower::ServiceExt as _;

use super::{
    Shared,
    admission::{Admitted, Refusal},
    connection, metric,
    protocol::Protocol,
    relay::{Client, Relay},
    routes,
};
use crate::ids::Since;

/// The longest request head.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// What is still read from a peer that was answered and closed.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 4 * 1024 * 1024;
/// The answer when there is no room for a conversation.
const BUSY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// A request that becomes a session.
pub(super) struct Takeover {
    pub(super) client: Client,
    pub(super) protocol: Protocol,
    pub(super) since: Option<Since>,
}

/// Where a route leaves its takeover for the socket's driver.
pub(super) type TakeoverSlot = Arc<Mutex<Option<Takeover>>>;

/// Accepts clients for as long as it is polled.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let routes = routes::router(shared.clone());
    loop {
        let (socket, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: accepting at full speed would only burn a core.
                tracing::warn!(%error, "accepting failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        match shared.admission.admit(peer.ip()) {
            Ok(admitted) => _ = tokio::spawn(serve(socket, peer.ip(), shared.clone(), routes.clone(), admitted)),
            Err(refusal) => {
                metric::rejected(refusal);
                let _ = socket.try_write(BUSY);
            }
        }
    }
}

/// Speaks HTTP on one socket until it closes or becomes a session.
async fn serve(socket: TcpStream, address: IpAddr, shared: Arc<Shared>, routes: Router, mut admitted: Admitted) {
    let accepted_at = Instant::now();
    let slot = TakeoverSlot::default();
    let progress = Arc::new(Progress::default());
    let requests = service_fn(|mut request: Request<Incoming>| {
        if let Some(response) = routes::direct(&shared, &request, &slot) {
            return Either::Left(ready(Ok(response)));
        }
        request.extensions_mut().insert(slot.clone());
        Either::Right(Box::pin(routes.clone().oneshot(request)))
    });
    let io = Io { inner: TokioIo::new(socket), progress: progress.clone() };
    let mut conn = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.admission.limits.handshake_deadline)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(io, requests);
    let deadline = tokio::time::sleep(shared.admission.limits.handshake_deadline);
    let mut deadline = std::pin::pin!(deadline);
    let takeover = poll_fn(|cx| {
        let ended = conn.poll_without_shutdown(cx);
        // The answer's head must have left hyper before the socket is taken away from it.
        if !progress.blocked.load(Ordering::Relaxed)
            && let Some(takeover) = slot.lock().take()
        {
            return Poll::Ready(Ok(Some(takeover)));
        }
        match ended {
            Poll::Ready(result) => return Poll::Ready(result.map(|()| None)),
            Poll::Pending if progress.answered.load(Ordering::Relaxed) => admitted.handshake_done(),
            // One deadline from the accept to the first answer, whatever the client does in between.
            Poll::Pending if deadline.as_mut().poll(cx).is_ready() => {
                metric::rejected(Refusal::HandshakeDeadline);
                return Poll::Ready(Ok(None));
            }
            Poll::Pending => {}
        }
        Poll::Pending
    });
    match takeover.await {
        Ok(Some(takeover)) => {
            metric::handshake(accepted_at.elapsed());
            admitted.handshake_done();
            let parts = conn.into_parts();
            let socket = parts.io.inner.into_inner();
            // A task of its own, because this one is as large as all of HTTP.
            tokio::spawn(run(socket, parts.read_buf.to_vec(), takeover, shared, admitted));
        }
        Ok(None) => {
            linger(conn.into_parts().io.inner.into_inner()).await;
        }
        Err(error) => {
            // hyper's own deadline for a request's head is as long as ours, and may be the first to pass.
            if error.is_timeout() && !progress.answered.load(Ordering::Relaxed) {
                metric::rejected(Refusal::HandshakeDeadline);
            }
            tracing::debug!(%address, %error, "http connection ended");
        }
    }
}

async fn run(socket: TcpStream, already_read: Vec<u8>, takeover: Takeover, shared: Arc<Shared>, admitted: Admitted) {
    let _admitted = admitted;
    let Takeover { client, protocol, since } = takeover;
    let relay = Relay::new(
        client,
        protocol,
        socket,
        shared.queue_limits(),
        shared.config.epoch.clone(),
        shared.flusher.clone(),
    );
    connection::run(Arc::new(relay), shared, since, already_read).await;
}

/// Closes a socket whose peer may still be sending, such as a body that was refused: closing it at once would
/// reset the connection and destroy the answer on its way.
async fn linger(mut socket: TcpStream) {
    let _ = socket.shutdown().await;
    let mut rest = socket.take(LINGER_BYTES);
    let _ = tokio::time::timeout(LINGER, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
}

/// How far hyper has come with a socket.
#[derive(Default)]
struct Progress {
    /// The socket did not take all that hyper wanted to write.
    blocked: AtomicBool,
    /// Something was written: a request has been answered.
    answered: AtomicBool,
}

/// The socket as hyper wants it, with an eye on what is written.
struct Io {
    inner: TokioIo<TcpStream>,
    progress: Arc<Progress>,
}

impl Io {
    fn note<T>(&self, written: Poll<T>) -> Poll<T> {
        self.progress.blocked.store(written.is_pending(), Ordering::Relaxed);
        self.progress.answered.store(true, Ordering::Relaxed);
        written
    }
}

impl Read for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl Write for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.note(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
