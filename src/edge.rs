//! Sockets in: the accept loop, admission, authentication, HTTP, and a small task for every connected client.
//! Knows users and sessions, and neither Kafka nor the store.

mod admission;
pub mod auth;
mod connection;
mod flush;
mod http;
mod protocol;
mod registry;
mod relay;
mod routes;
mod websocket;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, TcpKeepalive, Type};
use tokio::{net::TcpListener, task::JoinHandle};

use self::{admission::Admission, auth::Authenticator, flush::Flusher, registry::Registry, relay::QueueLimits};
pub use self::{admission::Limits, routes::DevRoutes};
use crate::{ids::LogEpoch, shard::Shards};

/// A peer that takes nothing for so long is gone.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// Unsent bytes in the kernel: a stalled reader would pin megabytes otherwise.
const UNSENT_BYTES_MAX: u32 = 16 * 1024;

/// How the edge behaves.
#[derive(Clone)]
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Origins besides the same host; `*`: all.
    pub allowed_origins: Vec<String>,
    /// What tokens are checked against.
    pub auth: auth::Config,
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
    /// The log's epoch.
    pub epoch: LogEpoch,
    /// What only `notifier dev` serves.
    pub dev: Option<Arc<dyn DevRoutes>>,
}

/// What every connection of a node shares.
struct Shared {
    config: Config,
    shards: Shards,
    authenticator: Authenticator,
    admission: Admission,
    registry: Arc<Registry>,
    flusher: Arc<Flusher>,
    /// No request becomes a session any more.
    draining: AtomicBool,
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
    accepting: JoinHandle<()>,
    background: [JoinHandle<()>; 2],
}

/// Begins to accept clients.
///
/// # Errors
/// When the address cannot be listened on.
pub fn start(config: Config, shards: Shards) -> io::Result<Edge> {
    metric::describe();
    let listener = listen(config.listen)?;
    let address = listener.local_addr()?;
    let registry = Arc::new(Registry::new(config.heartbeat));
    let flusher = Arc::new(Flusher::default());
    let shared = Arc::new(Shared {
        authenticator: Authenticator::new(&config.auth),
        admission: Admission::new(config.limits.clone()),
        registry: registry.clone(),
        flusher: flusher.clone(),
        draining: AtomicBool::new(false),
        shards,
        config,
    });
    let accepting = tokio::spawn(http::accept(listener, shared.clone()));
    let background = [tokio::spawn(registry.sweep()), tokio::spawn(flusher.run())];
    Ok(Edge { shared, address, accepting, background })
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

impl Edge {
    /// Where clients connect: the port is known even when 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resolves when a task that the edge cannot do without has ended, which only a bug makes it do. Cancel safe.
    pub async fn failed(&mut self) -> &'static str {
        let [sweeping, flushing] = &mut self.background;
        tokio::select! {
            _ = &mut self.accepting => "the accept loop ended",
            _ = sweeping => "the sweep of connections ended",
            _ = flushing => "the flusher ended",
        }
    }

    /// From here on nobody is let in; who is connected stays.
    pub fn refuse(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
    }

    /// Accepts nobody any more, and says goodbye to everyone at `per_second`; returns when all have left, or at
    /// the deadline. Not cancel safe.
    pub async fn drain(self, per_second: u32, deadline: Instant) {
        self.accepting.abort();
        // Twice the usual wait: everyone comes back at once otherwise.
        let spread = self.shared.config.reconnect * 2;
        self.shared.registry.goodbye(per_second, spread, deadline).await;
        self.background.iter().for_each(JoinHandle::abort);
    }
}

/// Metrics of the edge.
mod metric {
    use std::sync::LazyLock;

    use metrics::{
        Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
    };

    const CONNECTIONS: &str = "notifier_connections";
    const DELIVERIES: &str = "notifier_deliveries_total";
    const LATENCY: &str = "notifier_delivery_latency_seconds";
    const REJECTED: &str = "notifier_rejected_connections_total";
    const STAGE: &str = "notifier_stage_seconds";
    const CAPACITY: &str = "notifier_capacity_ratio";

    static SENT: LazyLock<[Counter; 2]> = LazyLock::new(|| deliveries("sent"));
    static DROPPED: LazyLock<[Counter; 2]> = LazyLock::new(|| deliveries("dropped"));
    static SECONDS: LazyLock<Histogram> = LazyLock::new(|| histogram!(LATENCY));
    static HANDSHAKE: LazyLock<Histogram> = LazyLock::new(|| histogram!(STAGE, "stage" => "handshake"));
    static OPEN: LazyLock<[Gauge; 2]> =
        LazyLock::new(|| PROTOCOLS.map(|protocol| gauge!(CONNECTIONS, "protocol" => protocol)));
    static USED: LazyLock<Gauge> = LazyLock::new(|| gauge!(CAPACITY, "resource" => "connections"));

    const PROTOCOLS: [&str; 2] = ["websocket", "sse"];

    /// What became of a delivery that was not sent.
    pub(super) enum Delivery {
        /// Transient, and too much waited for the socket.
        Dropped,
    }

    fn deliveries(outcome: &'static str) -> [Counter; 2] {
        PROTOCOLS.map(|protocol| counter!(DELIVERIES, "protocol" => protocol, "outcome" => outcome))
    }

    fn index(protocol: &str) -> usize {
        usize::from(protocol != PROTOCOLS[0])
    }

    pub(super) fn describe() {
        describe_gauge!(CONNECTIONS, "Open connections of clients");
        describe_counter!(DELIVERIES, "Notifications handed to a client's socket, or dropped before it");
        describe_histogram!(LATENCY, "Time from the record's timestamp to the write to the client's socket");
        describe_counter!(REJECTED, "Connections that were not let in, by reason");
        describe_histogram!(STAGE, "Time that a stage took");
        describe_gauge!(CAPACITY, "How much of a limited resource is used, 0 to 1");
        OPEN.iter().for_each(|open| open.set(0.0));
        LazyLock::force(&SENT);
        LazyLock::force(&DROPPED);
        LazyLock::force(&SECONDS);
        LazyLock::force(&HANDSHAKE);
        for reason in super::admission::Refusal::ALL {
            counter!(REJECTED, "reason" => reason.as_str()).increment(0);
        }
        capacity(0.0);
    }

    pub(super) fn connected(protocol: &str, by: f64) {
        OPEN[index(protocol)].increment(by);
    }

    /// A notification is in the socket, so long after its record was written.
    pub(super) fn delivered(protocol: &str, latency_ms: i64) {
        SENT[index(protocol)].increment(1);
        #[expect(clippy::cast_precision_loss, reason = "a latency is far below 2^52 ms")]
        SECONDS.record(latency_ms.max(0) as f64 / 1000.0);
    }

    pub(super) fn delivery(protocol: &str, delivery: Delivery) {
        match delivery {
            Delivery::Dropped => DROPPED[index(protocol)].increment(1),
        }
    }

    pub(super) fn rejected(reason: super::admission::Refusal) {
        counter!(REJECTED, "reason" => reason.as_str()).increment(1);
    }

    pub(super) fn handshake(time: std::time::Duration) {
        HANDSHAKE.record(time.as_secs_f64());
    }

    pub(super) fn capacity(connections: f64) {
        USED.set(connections);
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
