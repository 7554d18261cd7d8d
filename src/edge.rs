//! Sockets in: the accept loops, admission, HTTP, gRPC, and a small task for every connected client. Knows users and
//! sessions, and neither Kafka nor users' logs.

mod admission;
mod carrier;
mod connection;
mod entry;
#[cfg(test)]
mod fakes;
mod flush;
pub(crate) mod grpc;
mod headers;
mod http;
mod memory;
mod openapi;
pub mod peers;
mod protocol;
mod proxy;
mod registry;
mod relay;
mod routes;
mod sessions;
mod socket;
pub mod tls;
mod transport;
mod websocket;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::select_all;
use socket2::{Domain, Socket, TcpKeepalive, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use utoipa_axum::router::OpenApiRouter;

use self::{admission::Admission, flush::Flusher, peers::Connections, registry::Registry, relay::QueueLimits};
pub use self::{admission::Limits, carrier::Carrier, peers::Peers, proxy::TrustedProxies};
use crate::{auth::Authenticator, ids::LogEpoch, shard::Shards, store::sessions::StartedSessions};

/// A peer that takes nothing for so long is gone.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// Unsent bytes in the kernel: a stalled reader would pin megabytes otherwise.
const UNSENT_BYTES_MAX: u32 = 16 * 1024;

/// A port that clients connect to.
#[derive(Clone)]
pub struct Port {
    /// None: plain text.
    pub tls: Option<Arc<tls::Acceptor>>,
    /// Every connection begins with a header of the PROXY protocol.
    pub proxy_protocol: bool,
    /// Whose `X-Forwarded-For` counts.
    pub trusted_proxies: TrustedProxies,
}

/// How the edge behaves.
#[derive(Clone)]
pub struct Config {
    /// WebSocket, server-sent events, the HTTP API.
    pub client: Port,
    /// gRPC.
    pub grpc: Port,
    /// Origins besides the same host; `*`: all.
    pub allowed_origins: Vec<String>,
    /// Who gets in.
    pub limits: Limits,
    /// The longest message of a client, in bytes.
    pub frame_bytes_max: usize,
    /// The longest request body, in bytes.
    pub request_bytes_max: usize,
    /// What may wait for a socket.
    pub queue_items_max: usize,
    /// The same in bytes.
    pub queue_bytes_max: usize,
    /// How often a sign of life is sent.
    pub heartbeat: Duration,
    /// How long clients wait at the most before they connect again.
    pub reconnect: Duration,
    /// How long a started session is accepted.
    pub issued_ttl: Duration,
    /// The log's epoch.
    pub epoch: LogEpoch,
    /// What others serve on the client port; what is documented of it gets into `/openapi.json`.
    pub others: OpenApiRouter,
    /// What the process may use; 0: what the control group or the machine has.
    pub memory_bytes_max: u64,
}

/// What every connection of a node shares.
struct Shared {
    config: Config,
    shards: Shards,
    authenticator: Arc<Authenticator>,
    started: Arc<dyn StartedSessions>,
    /// The other nodes, if there are to be any.
    peers: Option<Arc<dyn Peers>>,
    admission: Admission,
    registry: Arc<Registry>,
    flusher: Arc<Flusher>,
    /// No request becomes a session any more.
    draining: watch::Sender<bool>,
}

impl Shared {
    fn queue_limits(&self) -> QueueLimits {
        QueueLimits { items: self.config.queue_items_max, bytes: self.config.queue_bytes_max }
    }
}

/// A running edge.
pub struct Edge {
    shared: Arc<Shared>,
    address: SocketAddr,
    grpc_address: SocketAddr,
    accepting: [JoinHandle<()>; 2],
    /// Each with what is wrong when it ends.
    background: Vec<(&'static str, JoinHandle<()>)>,
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("{key}: cannot listen on {address}")]
pub struct ListenError {
    key: &'static str,
    address: SocketAddr,
    source: io::Error,
}

/// Begins to accept clients.
pub async fn start(
    config: Config,
    listeners: Listeners,
    authenticator: Arc<Authenticator>,
    (started, peers): (Arc<dyn StartedSessions>, Option<Arc<dyn Peers>>),
    shards: Shards,
) -> Edge {
    metric::describe();
    let Listeners { client: (listener, address), grpc: (grpc_listener, grpc_address) } = listeners;
    let registry = Arc::new(Registry::new(config.heartbeat));
    let flusher = Arc::new(Flusher::default());
    let shared = Arc::new(Shared {
        authenticator,
        admission: Admission::new(config.limits.clone()),
        registry: registry.clone(),
        flusher: flusher.clone(),
        draining: watch::Sender::new(false),
        started,
        peers,
        shards,
        config,
    });
    let routes = grpc::server::routes(&shared).await;
    let accepting = [
        tokio::spawn(http::accept(listener, shared.clone())),
        tokio::spawn(grpc::server::accept(grpc_listener, shared.clone(), routes)),
    ];
    let mut background = vec![
        ("the sweep of connections ended", tokio::spawn(registry.sweep())),
        ("the flusher ended", tokio::spawn(flusher.run())),
        ("the watch over memory ended", tokio::spawn(memory::watch(shared.clone()))),
    ];
    for tls in [&shared.config.client, &shared.config.grpc].into_iter().filter_map(|port| port.tls.as_ref()) {
        background.push(("the watch over a certificate ended", tokio::spawn(tls.clone().watch())));
    }
    Edge { shared, address, grpc_address, accepting, background }
}

/// The ports of clients, taken. Who connects waits until the edge starts.
pub struct Listeners {
    client: (TcpListener, SocketAddr),
    grpc: (TcpListener, SocketAddr),
}

impl Listeners {
    /// Takes the ports.
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub fn bind(client: SocketAddr, grpc: SocketAddr) -> Result<Self, ListenError> {
        Ok(Self { client: listen_for("client.listen", client)?, grpc: listen_for("grpc.listen", grpc)? })
    }
}

fn listen_for(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), ListenError> {
    let listening = listen(address).and_then(|listener| listener.local_addr().map(|address| (listener, address)));
    listening.map_err(|source| ListenError { key, address, source })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Accepted sockets inherit these: six system calls less for each of them.
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    }
    socket.bind(&address.into())?;
    // A reconnect storm must not be refused by the kernel before admission can answer it.
    socket.listen(4096)?;
    TcpListener::from_std(socket.into())
}

/// The next client of a port, and its address. Cancel safe.
async fn next_client(listener: &TcpListener) -> (TcpStream, IpAddr) {
    loop {
        match listener.accept().await {
            Ok((socket, peer)) => return (socket, peer.ip().to_canonical()),
            Err(error) => {
                // Out of descriptors, most likely: accepting at full speed would only burn a core.
                tracing::warn!(%error, "accepting failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

impl Edge {
    /// Where clients connect: the port is known even when 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where gRPC clients connect.
    #[must_use]
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc_address
    }

    /// Its connections, as other nodes ask about them.
    #[must_use]
    pub fn connections(&self) -> Connections {
        Connections(self.shared.clone())
    }

    /// Resolves when a task that the edge cannot do without has ended, which only a bug makes it do. Cancel safe.
    pub async fn failed(&mut self) -> &'static str {
        let [http, grpc] = &mut self.accepting;
        let background = self.background.iter_mut().map(|(ended, task)| {
            Box::pin(async {
                let _ = task.await;
                *ended
            })
        });
        tokio::select! {
            _ = http => "the accept loop ended",
            _ = grpc => "gRPC's accept loop ended",
            (ended, ..) = select_all(background) => ended,
        }
    }

    /// From here on nobody is let in; who is connected stays.
    pub fn refuse(&self) {
        self.shared.draining.send_replace(true);
    }

    /// Accepts nobody any more, and says goodbye to everyone at `per_second`; returns when all have left, or at
    /// the deadline. Not cancel safe.
    pub async fn drain(self, per_second: u32, deadline: Instant) {
        self.accepting.iter().for_each(JoinHandle::abort);
        // Twice the usual wait: everyone comes back at once otherwise.
        let spread = self.shared.config.reconnect * 2;
        self.shared.registry.goodbye(per_second, spread, deadline).await;
        self.background.iter().for_each(|(_, task)| task.abort());
    }
}

/// Fuzz builds only: what reads bytes of strangers, on bytes alone.
#[cfg(fuzzing)]
pub mod fuzzing {
    use super::{protocol::Form, proxy, websocket};

    /// A PROXY header, as far as one is there.
    pub fn proxy_header(bytes: &[u8]) {
        if let Ok(Some(end)) = proxy::end(bytes) {
            let _ = proxy::client(&bytes[..end]);
        }
    }

    /// A WebSocket's bytes up to their end or the first error.
    pub fn websocket(bytes: &[u8], protobuf: bool) {
        websocket::read_all(bytes, if protobuf { Form::Protobuf } else { Form::Json });
    }
}

/// Metrics of the edge.
mod metric {
    use std::sync::LazyLock;

    use metrics::{
        Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
    };

    use super::{
        protocol::Protocol,
        routes::{CONNECT, STREAM},
    };

    const CONNECTIONS: &str = "notifier_connections";
    const DELIVERIES: &str = "notifier_deliveries_total";
    const LATENCY: &str = "notifier_delivery_latency_seconds";
    const REJECTED: &str = "notifier_rejected_connections_total";
    const STAGE: &str = "notifier_stage_seconds";
    const CAPACITY: &str = "notifier_capacity_ratio";
    const REQUESTS: &str = "notifier_http_requests_total";

    static SENT: LazyLock<[Counter; PROTOCOLS]> = LazyLock::new(|| deliveries("sent"));
    static DROPPED: LazyLock<[Counter; PROTOCOLS]> = LazyLock::new(|| deliveries("dropped"));
    static SECONDS: LazyLock<Histogram> = LazyLock::new(|| histogram!(LATENCY));
    static HANDSHAKE: LazyLock<Histogram> = LazyLock::new(|| histogram!(STAGE, "stage" => "handshake"));
    static OPEN: LazyLock<[Gauge; PROTOCOLS]> =
        LazyLock::new(|| Protocol::NAMES.map(|protocol| gauge!(CONNECTIONS, "protocol" => protocol)));
    static CONNECTIONS_USED: LazyLock<Gauge> = LazyLock::new(|| gauge!(CAPACITY, "resource" => "connections"));
    static MEMORY_USED: LazyLock<Gauge> = LazyLock::new(|| gauge!(CAPACITY, "resource" => "memory"));

    const PROTOCOLS: usize = Protocol::NAMES.len();
    /// Of an answer's status.
    const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
    /// What every client asks for, and all at once after a restart.
    const SESSION_ROUTES: [&str; 2] = [CONNECT, STREAM];
    static SESSIONS_ASKED: LazyLock<[[Counter; CLASSES.len()]; SESSION_ROUTES.len()]> = LazyLock::new(|| {
        SESSION_ROUTES.map(|route| CLASSES.map(|class| counter!(REQUESTS, "route" => route, "status" => class)))
    });

    /// What became of a delivery that was not sent.
    pub(super) enum Delivery {
        /// Transient, and too much waited for the socket.
        Dropped,
    }

    fn deliveries(outcome: &'static str) -> [Counter; PROTOCOLS] {
        Protocol::NAMES.map(|protocol| counter!(DELIVERIES, "protocol" => protocol, "outcome" => outcome))
    }

    pub(super) fn describe() {
        describe_gauge!(CONNECTIONS, "Open connections of clients");
        describe_counter!(DELIVERIES, "Notifications handed to a client's socket, or dropped before it");
        describe_histogram!(LATENCY, "Time from the record's timestamp to the write to the client's socket");
        describe_counter!(REJECTED, "Connections that were not let in, by reason");
        describe_histogram!(STAGE, "Time that a stage took");
        describe_counter!(REQUESTS, "Requests on the client port, by route and class of the answer's status");
        describe_gauge!(CAPACITY, "How much of a limited resource is used, 0 to 1");
        OPEN.iter().for_each(|open| open.set(0.0));
        LazyLock::force(&SENT);
        LazyLock::force(&DROPPED);
        LazyLock::force(&SECONDS);
        LazyLock::force(&HANDSHAKE);
        for reason in super::admission::Refusal::ALL {
            counter!(REJECTED, "reason" => reason.as_str()).increment(0);
        }
        connections(0.0);
    }

    pub(super) fn connected(protocol: Protocol, by: f64) {
        OPEN[protocol.index()].increment(by);
    }

    /// A notification is in the socket, so long after its record was written.
    pub(super) fn delivered(protocol: Protocol, latency_ms: i64) {
        SENT[protocol.index()].increment(1);
        #[expect(clippy::cast_precision_loss, reason = "a latency is far below 2^52 ms")]
        SECONDS.record(latency_ms.max(0) as f64 / 1000.0);
    }

    pub(super) fn delivery(protocol: Protocol, delivery: Delivery) {
        match delivery {
            Delivery::Dropped => DROPPED[protocol.index()].increment(1),
        }
    }

    pub(super) fn rejected(reason: super::admission::Refusal) {
        counter!(REJECTED, "reason" => reason.as_str()).increment(1);
    }

    /// `route`: a path as it was declared, never one as it was asked for.
    pub(super) fn requested(route: &str, status: axum::http::StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        match SESSION_ROUTES.iter().position(|one| *one == route) {
            Some(at) => SESSIONS_ASKED[at][class].increment(1),
            None => counter!(REQUESTS, "route" => route.to_owned(), "status" => CLASSES[class]).increment(1),
        }
    }

    pub(super) fn handshake(time: std::time::Duration) {
        HANDSHAKE.record(time.as_secs_f64());
    }

    /// How many of the connections that may be there are, 0 to 1.
    pub(super) fn connections(used: f64) {
        CONNECTIONS_USED.set(used);
    }

    /// How much of the memory that there is is used, 0 to 1.
    pub(super) fn memory(used: f64) {
        MEMORY_USED.set(used);
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn accepted_sockets_have_the_options_of_the_listener() {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        #[cfg(target_os = "linux")]
        {
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
            assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT_BYTES_MAX);
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
        }
    }
}
