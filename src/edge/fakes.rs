//! What stands around connections in tests of the edge: what they share, and streams that only the test reads.

use std::{sync::Arc, time::Duration};

use futures_util::task::AtomicWaker;
use tokio::net::{TcpListener, TcpStream};
use utoipa_axum::router::OpenApiRouter;

use super::{
    Config, Limits, Port, Shared, TrustedProxies,
    admission::Admission,
    flush::Flusher,
    protocol::{Grpc, Protocol},
    registry::Registry,
    relay::{Client, Relay, Sink},
};
use crate::{
    auth::{self, Authenticator},
    event::UnixMillis,
    ids::{LogEpoch, SessionId, UserId},
    shard::Shards,
    store::sessions::{MemorySessions, StartedSessions},
};

pub(super) const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

pub(super) fn auth_config() -> auth::Config {
    auth::Config { hs256_secret: Some(SECRET.into()), leeway: Duration::from_secs(1), ..auth::Config::default() }
}

/// What connections share on a node where nobody has started a session, and no shard runs one.
pub(super) fn shared() -> Arc<Shared> {
    shared_with(Arc::new(MemorySessions::default()), Shards::new(Vec::new(), 1))
}

pub(super) fn shared_with(started: Arc<dyn StartedSessions>, shards: Shards) -> Arc<Shared> {
    let config = config();
    Arc::new(Shared {
        authenticator: Arc::new(Authenticator::new(&auth_config())),
        admission: Admission::new(config.limits.clone()),
        registry: Arc::new(Registry::new(config.heartbeat)),
        flusher: Arc::new(Flusher::default()),
        draining: tokio::sync::watch::Sender::new(false),
        started,
        peers: None,
        shards,
        config,
    })
}

fn config() -> Config {
    let second = Duration::from_secs(1);
    let limits = Limits {
        connects_per_second: 0,
        connections_max: 100,
        handshakes_max: 0,
        handshakes_per_address: 0,
        connections_per_address: 0,
        handshake_deadline: second,
    };
    let port = Port { tls: None, proxy_protocol: false, trusted_proxies: TrustedProxies::default() };
    Config {
        client: port.clone(),
        grpc: port,
        allowed_origins: vec!["https://listed.example".into()],
        limits,
        frame_bytes_max: 1024,
        request_bytes_max: 64 * 1024,
        queue_items_max: 8,
        queue_bytes_max: 1024,
        heartbeat: second,
        reconnect: second,
        issued_ttl: second,
        epoch: LogEpoch::random(),
        others: OpenApiRouter::new(),
        memory_bytes_max: 0,
    }
}

/// The stream of a session that was started ahead of it.
pub(super) fn stream(shared: &Shared, user: &UserId, session: SessionId) -> Arc<Relay> {
    let client = Client { session, user: user.clone(), device: None, is_started: true, expires_at: UnixMillis::MAX };
    let sink = Sink::Stream(AtomicWaker::new());
    let (limits, epoch) = (shared.queue_limits(), shared.config.epoch.clone());
    Arc::new(Relay::new(client, Protocol::Grpc(Grpc::Native), sink, limits, epoch, shared.flusher.clone()))
}

/// A connection over a real pair of sockets on the loopback interface, and the client's end.
pub(super) async fn connected(shared: &Shared, protocol: Protocol) -> (Arc<Relay>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (socket, _) = listener.accept().await.unwrap();
    let (session, user, expires_at) = (SessionId::random(), crate::fakes::user(), UnixMillis::MAX);
    let client = Client { session, user, device: None, is_started: false, expires_at };
    let (sink, limits, epoch) = (Sink::Socket(socket.into()), shared.queue_limits(), shared.config.epoch.clone());
    (Arc::new(Relay::new(client, protocol, sink, limits, epoch, shared.flusher.clone())), peer)
}
