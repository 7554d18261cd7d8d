//! The gRPC port: HTTP/2 connections with bounds, and what gRPC's tools expect beside the contract's services.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body};
use hyper::{Request, body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tonic::{server::NamedService as _, service::Routes};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::ServiceExt as _;

use super::{CommandHandlerServer, Commands, Notifier, NotifierServer, REQUEST_BYTES_MAX, services};
use crate::{
    edge::{
        Shared,
        admission::{Admitted, Refusal},
        carrier::Carrier,
        metric, next_client,
        protocol::Grpc,
        proxy::Forwarded,
        transport,
    },
    proto,
};

/// Streams of one connection, each a session.
const STREAMS_MAX: u32 = 256;
/// All headers of a request together.
const HEAD_BYTES_MAX: u32 = 16 * 1024;
/// What a stream may have written that the peer has not made room for.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Streams that were opened and reset at once and are not yet forgotten: more of them end the connection
/// (CVE-2023-44487, "rapid reset").
const RESET_STREAMS_MAX: usize = 20;
/// A peer that does not answer a ping for so long is gone.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Everything that is served on the gRPC port.
pub(in crate::edge) async fn routes(shared: &Arc<Shared>) -> Router {
    let (notifier, commands) = services(shared, Grpc::Native);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = reflection().build_v1().expect("our own descriptors");
    let v1alpha = reflection().build_v1alpha().expect("our own descriptors");
    let (health, checks) = tonic_health::server::health_reporter();
    set_status(&health, ServingStatus::Serving).await;
    let mut draining = shared.draining.subscribe();
    tokio::spawn(async move {
        if draining.wait_for(|draining| *draining).await.is_ok() {
            set_status(&health, ServingStatus::NotServing).await;
        }
    });
    let routes = Routes::new(notifier)
        .add_service(commands)
        .add_service(checks.max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(v1.max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(v1alpha.max_decoding_message_size(REQUEST_BYTES_MAX));
    routes.into_axum_router()
}

async fn set_status(health: &HealthReporter, status: ServingStatus) {
    for service in ["", NotifierServer::<Notifier>::NAME, CommandHandlerServer::<Commands>::NAME] {
        health.set_service_status(service, status).await;
    }
}

/// Accepts clients for as long as it is polled.
pub(in crate::edge) async fn accept(listener: TcpListener, shared: Arc<Shared>, routes: Router) {
    loop {
        let (socket, client) = next_client(&listener).await;
        match shared.admission.admit(client, shared.config.grpc.trusted_proxies.counted(client)) {
            Ok(admitted) => _ = tokio::spawn(serve(socket, shared.clone(), routes.clone(), admitted)),
            // There is no answer before HTTP/2 has begun: clients see a closed connection, and come back with backoff.
            Err(refusal) => metric::rejected(refusal),
        }
    }
}

/// Speaks HTTP/2 on one socket until it closes.
async fn serve(socket: TcpStream, shared: Arc<Shared>, routes: Router, mut admitted: Admitted) {
    let port = &shared.config.grpc;
    // One deadline over the PROXY header, TLS and the first call that shows who asks.
    let deadline = tokio::time::sleep(shared.admission.limits.handshake_deadline);
    let mut deadline = std::pin::pin!(deadline);
    let opened = tokio::select! {
        opened = transport::open(socket, port, &mut admitted) => opened,
        () = &mut deadline => Err(Refusal::HandshakeDeadline.into()),
    };
    let stream = match opened {
        Ok(stream) => stream,
        Err(refused) => return metric::rejected(refused.refusal),
    };
    let carrier = Carrier::default();
    let was_asked = Arc::new(AtomicBool::new(false));
    let requests = {
        let (carrier, was_asked) = (carrier.clone(), was_asked.clone());
        let peer = admitted.client();
        // The connection stays the proxy's; each of its requests may be another client's.
        let proxies = port.trusted_proxies.trusts(peer).then(|| port.trusted_proxies.clone());
        service_fn(move |mut request: Request<Incoming>| {
            if let Some(client) = proxies.as_ref().and_then(|all| all.counted(all.client(peer, request.headers()))) {
                request.extensions_mut().insert(Forwarded(client));
            }
            was_asked.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(carrier.clone());
            routes.clone().oneshot(request.map(Body::new))
        })
    };
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(shared.config.heartbeat)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .serve_connection(TokioIo::new(stream), requests);
    let mut connection = std::pin::pin!(connection);
    let mut draining = shared.draining.subscribe();
    let (mut in_handshake, mut is_last, mut goes_on) = (true, false, true);
    loop {
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(client = %admitted.client(), %error, "gRPC connection ended");
                }
                return;
            }
            () = carrier.identified(), if in_handshake => {
                in_handshake = false;
                admitted.handshake_done();
            }
            // Reflection and health checks are for everybody, and not for ever.
            () = &mut deadline, if in_handshake => {
                if is_last || !was_asked.load(Ordering::Relaxed) {
                    return metric::rejected(Refusal::HandshakeDeadline);
                }
                is_last = true;
                connection.as_mut().graceful_shutdown();
                deadline.as_mut().reset(tokio::time::Instant::now() + shared.admission.limits.handshake_deadline);
            }
            () = carrier.hung_up() => return,
            // Streams that are open get their own goodbye; new ones go to another node.
            _ = draining.wait_for(|draining| *draining), if goes_on => {
                goes_on = false;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

#[cfg(test)]
mod tests;
