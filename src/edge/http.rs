//! The accept loop, and HTTP on an accepted socket. hyper reads requests and writes answers; when a request
//! becomes a session, the socket is taken over and lives on in a small task of its own.

use std::{
    future::{Future as _, poll_fn, ready},
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{Router, http::StatusCode, response::IntoResponse as _};
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
    carrier::Carrier,
    connection, metric, next_client,
    protocol::Protocol,
    relay::{Client, Relay, Sink},
    routes,
    transport::{self, Refused, Stream},
};
use crate::{ids::Since, problem::Problem};

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
        let (socket, peer) = next_client(&listener).await;
        match shared.admission.admit(peer, shared.config.client.trusted_proxies.counted(peer)) {
            Ok(admitted) => _ = tokio::spawn(begin(socket, shared.clone(), routes.clone(), admitted)),
            Err(refusal) => {
                metric::rejected(refusal);
                // Whoever waits for a TLS handshake, or speaks for somebody else, could not read the answer.
                if shared.config.client.tls.is_none() {
                    refuse(&socket);
                }
            }
        }
    }
}

/// Says that there is no room, where the socket takes it at once.
fn refuse(socket: &TcpStream) {
    let _ = socket.try_write(BUSY);
}

/// Makes an accepted socket ready for HTTP and speaks it, under one deadline until it is known who asks.
async fn begin(socket: TcpStream, shared: Arc<Shared>, routes: Router, mut admitted: Admitted) {
    let accepted_at = Instant::now();
    let deadline = accepted_at + shared.admission.limits.handshake_deadline;
    let port = &shared.config.client;
    let stream = if port.proxy_protocol || port.tls.is_some() {
        // Boxed: every connection would keep room for it otherwise.
        let opening = Box::pin(transport::open(socket, port, &mut admitted));
        match tokio::time::timeout_at(deadline.into(), opening).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(Refused { refusal, unanswered })) => {
                metric::rejected(refusal);
                return unanswered.iter().for_each(refuse);
            }
            Err(_) => return metric::rejected(Refusal::HandshakeDeadline),
        }
    } else {
        Stream::Plain(socket)
    };
    serve(stream, shared, routes, admitted, accepted_at).await;
}

/// Speaks HTTP on one socket until it closes or becomes a session.
async fn serve(stream: Stream, shared: Arc<Shared>, routes: Router, admitted: Admitted, accepted_at: Instant) {
    let proxies = &shared.config.client.trusted_proxies;
    // Whoever this is may speak for others, if it is trusted: each request may be another client's.
    let peer = admitted.client();
    let speaks_for_others = proxies.trusts(peer);
    let admitted = Mutex::new(admitted);
    let slot = TakeoverSlot::default();
    let progress = Arc::new(Progress::default());
    let carrier = Carrier::default();
    let requests = service_fn(|mut request: Request<Incoming>| {
        if speaks_for_others {
            let client = proxies.client(peer, request.headers());
            if let Err(refusal) = admitted.lock().came_from(client, proxies.counted(client)) {
                metric::rejected(refusal);
                let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many connections of this address");
                return Either::Left(ready(Ok(problem.retry_after(1).into_response())));
            }
        }
        if let Some(response) = routes::direct(&shared, &request, &slot) {
            return Either::Left(ready(Ok(response)));
        }
        request.extensions_mut().insert(slot.clone());
        request.extensions_mut().insert(carrier.clone());
        Either::Right(Box::pin(routes.clone().oneshot(request)))
    });
    let io = Io { inner: TokioIo::new(stream), progress: progress.clone() };
    let mut conn = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.admission.limits.handshake_deadline)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(io, requests);
    let deadline = accepted_at + shared.admission.limits.handshake_deadline;
    let deadline = tokio::time::sleep_until(deadline.into());
    let mut deadline = std::pin::pin!(deadline);
    let mut hung_up = std::pin::pin!(carrier.hung_up());
    let mut is_last = false;
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
            Poll::Pending if carrier.is_identified() => admitted.lock().handshake_done(),
            // Nobody has shown who it is. Who was answered may read that to its end, and ask no more.
            Poll::Pending if deadline.as_mut().poll(cx).is_ready() => {
                if is_last || !progress.answered.load(Ordering::Relaxed) {
                    metric::rejected(Refusal::HandshakeDeadline);
                    return Poll::Ready(Ok(None));
                }
                is_last = true;
                Pin::new(&mut conn).graceful_shutdown();
                deadline.as_mut().reset((Instant::now() + shared.admission.limits.handshake_deadline).into());
                cx.waker().wake_by_ref();
            }
            Poll::Pending => {}
        }
        if hung_up.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(None));
        }
        Poll::Pending
    });
    match takeover.await {
        Ok(Some(takeover)) => {
            metric::handshake(accepted_at.elapsed());
            let http1::Parts { io, read_buf, .. } = conn.into_parts();
            let stream = io.inner.into_inner();
            let mut admitted = admitted.into_inner();
            admitted.handshake_done();
            let Takeover { client, protocol, since } = takeover;
            let relay = Relay::new(
                client,
                protocol,
                Sink::Socket(stream.into()),
                shared.queue_limits(),
                shared.config.epoch.clone(),
                shared.flusher.clone(),
            );
            // A task of its own, because this one is as large as all of HTTP.
            tokio::spawn(connection::run(Arc::new(relay), shared.clone(), since, read_buf.to_vec(), admitted));
        }
        Ok(None) => {
            linger(conn.into_parts().io.inner.into_inner()).await;
        }
        Err(error) => {
            // hyper's own deadline for a request's head is as long as ours, and may be the first to pass.
            if error.is_timeout() && !progress.answered.load(Ordering::Relaxed) {
                metric::rejected(Refusal::HandshakeDeadline);
            }
            tracing::debug!(client = %admitted.lock().client(), %error, "http connection ended");
            if error.is_parse_too_large() {
                // The rest of the head is on its way, and would destroy the answer.
                linger(conn.into_parts().io.inner.into_inner()).await;
            }
        }
    }
}

/// Closes a socket whose peer may still be sending, such as a body that was refused: closing it at once would
/// reset the connection and destroy the answer on its way.
async fn linger(mut stream: Stream) {
    let rest = async {
        // With TLS a goodbye is written, which the peer has to take.
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(LINGER_BYTES), &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(LINGER, rest).await;
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
    inner: TokioIo<Stream>,
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

#[cfg(test)]
mod tests;
