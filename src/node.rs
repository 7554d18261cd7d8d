//! One node: starts its parts in order, supervises the shard actors, and takes everything down in order under
//! one deadline.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures_util::FutureExt as _;
use metrics_exporter_prometheus::PrometheusHandle;
use ractor::ActorRef;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use utoipa_axum::router::OpenApiRouter;

use crate::{
    admin::{self, Admin},
    api::{self, Api},
    auth::Authenticator,
    config::{self, Config},
    edge::{self, Edge, TrustedProxies},
    event::{Options, Priority},
    health::Health,
    ids::LogEpoch,
    ingest::{self, Ingest, ledger::Credits},
    kafka, member,
    placement::{ShardId, owners::Owners},
    receipt::{NoReceipts, Receipts},
    receipts::{self, ReceiptWriter},
    session,
    store::{self, Engine, Store, writer::Writer},
    user::{
        self,
        limiter::{Limit, Limits},
    },
};

mod cluster;
mod dev;
mod faults;
mod keys;
mod others;
mod root;
mod storage;

pub use self::{
    dev::Dev,
    keys::{auth_config, client_tls, grpc_tls},
    storage::store_config,
};

/// How long the store may take to end in good order.
const STORE_CLOSE: Duration = Duration::from_secs(5);
/// How long clients are told that they must go, by a node that has lost its store to others: it has to be gone soon
/// (contract: 3 s).
const LAST_GOODBYES: Duration = Duration::from_secs(2);
/// How long the last acknowledgements may take to be stored, although all time was for goodbyes.
const NOTED_MIN: Duration = Duration::from_millis(500);
/// How long what has ended may take to become receipts before the node ends. A durable store keeps the rest.
const RECEIPTS_FINISH: Duration = Duration::from_secs(5);
/// Shard actors of a node. They share the shards: enough to use every core, few enough that a message to one
/// carries the events of many users.
const SHARD_ACTORS: usize = 8;
/// How long Kafka may take to acknowledge what a service sends over HTTP.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(5);
/// What services may have under way to Kafka over HTTP. librdkafka's own queue holds a little more.
const PUBLISH_BYTES: usize = 64 << 20;
const PUBLISH_EVENTS: usize = 50_000;
/// How long clients wait at the most before they connect again.
const RECONNECT: Duration = Duration::from_millis(1500);
/// How long actors of users without sessions stay when those with sessions never sleep.
const AWAY_IDLE_AFTER: Duration = Duration::from_secs(30);
/// Records between a partition's position and the last one read.
const SPAN_MAX: usize = 100_000;
/// The runtime must turn at least this often to count as alive.
const RUNTIME_AGE_MAX: Duration = Duration::from_secs(15);
/// The health part that says whether the node wants clients.
const HEALTH_PART: &str = "node";

/// A running node.
pub struct Node {
    health: Health,
    root: ActorRef<()>,
    root_ended: JoinHandle<()>,
    ingest: Arc<Ingest>,
    edge: Edge,
    api: Api,
    admin_address: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
    fatal: mpsc::UnboundedReceiver<String>,
    store: Arc<dyn Store>,
    writer: Writer,
    store_lost: mpsc::UnboundedReceiver<store::Error>,
    receipts: Option<Arc<ReceiptWriter>>,
    drain: config::Drain,
    cluster: Option<cluster::Running>,
    hold: storage::Hold,
}

impl Node {
    /// Starts everything. Clients are served from here on; Kafka is read as soon as a broker answers.
    ///
    /// # Errors
    /// When an address is taken or librdkafka refuses a property.
    pub async fn start(config: &Config, dev: Dev, metrics: PrometheusHandle) -> anyhow::Result<Self> {
        raise_descriptor_limit();
        // A node that is started beside another one by mistake has no ports, and must not take the store from it.
        let listeners = edge::Listeners::bind(config.client.listen, config.grpc.listen)?;
        let admin_listener = TcpListener::bind(config.admin.listen)
            .await
            .with_context(|| format!("admin.listen: cannot listen on {}", config.admin.listen))?;
        let link_listener = cluster::bind(config).await?;
        let health = Health::default();
        health.not_ready(HEALTH_PART, "starting");
        let shard_count = u16::try_from(config.cluster.shards).context("cluster.shards is too large")?;
        let (lost, store_lost) = mpsc::unbounded_channel();
        let mut newcomer = cluster::Newcomer::new(config, link_listener, shard_count, &lost).await?;
        let member = newcomer.as_ref().map(cluster::Newcomer::incarnation);
        let (Engine { log: store, sessions: started, positions }, hold) = storage::open(config, member, &lost).await?;
        let epoch = store.epoch();
        let writer = Writer::start(&store, &health, &lost);
        let watch = tokio::spawn(storage::watch(store.clone(), health.clone(), lost.clone()));
        let tidy = tokio::spawn(storage::tidy(store.clone()));
        let (log, kept) = (store.clone(), store.clone());
        let (fatal_sender, fatal) = mpsc::unbounded_channel();
        let owners = newcomer.as_ref().map_or_else(|| Owners::alone(shard_count), cluster::Newcomer::owners);
        let receipts =
            start_receipts(config, &owners, store.clone(), fatal_sender.clone()).context("kafka.properties")?;
        let unkept: Arc<dyn Receipts> =
            receipts.clone().map_or_else(|| Arc::new(NoReceipts) as _, |writer| writer as _);
        let user_config = user_config(config, store, writer.clone(), unkept);
        let (root, root_ended, shards) = root::start(user_config, owners, fatal_sender.clone()).await?;
        let shards = match &mut newcomer {
            Some(newcomer) => newcomer.join(config, shards).await?,
            None => shards,
        };
        let links = newcomer.as_ref().map(cluster::Newcomer::links);

        let authenticator = Authenticator::start(&auth_config(config))?;
        let api = Api::start(api_config(config), authenticator.clone(), (log, shards.clone()), fatal_sender.clone());
        let api = api.context("kafka.properties")?;
        let routes = api.routes().merge(dev.routes.into());
        let edge_config = edge_config(config, epoch, routes)?;
        let others = newcomer.as_ref().map(cluster::Newcomer::others);
        let peers = others.clone().map(|others| Arc::new(others) as Arc<dyn edge::Peers>);
        let edge = edge::start(edge_config, listeners, authenticator, (started, peers), shards.clone()).await;
        let ingest = ingest::start(
            ingest_config(config, dev.embedded_broker),
            (shards.clone(), links),
            (positions, lost),
            &health,
            fatal_sender,
        );
        let ingest = ingest.context("kafka.properties")?;
        let ingest = Arc::new(ingest);
        let here = Arc::new(others::Here { connections: edge.connections(), ingest: ingest.clone() });
        let owners = shards.owners().clone();
        api.observe(Arc::new(match others {
            Some(others) => {
                others.links.answered_by(here.clone());
                others::Overview::among(here, owners, others)
            }
            None => others::Overview::alone(here, owners, (cluster::name(config)?, config.node.zone.clone())),
        }));
        let cluster = match newcomer {
            Some(newcomer) => {
                let (store, writer, ingest) = (kept.clone(), writer.clone(), ingest.clone());
                let (topic, owners) = (config.kafka.topic.clone(), shards.owners().clone());
                let connections = edge.connections();
                let attach_again = Box::new(move |of: &HashSet<ShardId>, owner| {
                    connections.attach_again(|user| of.contains(&owners.shard(user)), owner).boxed()
                });
                let parts = member::Parts {
                    links: newcomer.table(),
                    shards,
                    store,
                    writer,
                    ingest,
                    topic,
                    health: health.clone(),
                    attach_again,
                };
                Some(newcomer.begin(parts))
            }
            None => None,
        };
        let admin = Admin { health: health.clone(), metrics };
        let (admin_address, admin) = admin::start(admin_listener, admin, faults::routes(&ingest, &health))?;
        health.ready(HEALTH_PART);
        let tasks = vec![admin, watch, tidy, tokio::spawn(runtime_heartbeat(health.clone()))];
        let drain = config.drain.clone();
        Ok(Self {
            health,
            root,
            root_ended,
            ingest,
            edge,
            api,
            admin_address,
            tasks,
            fatal,
            store: kept,
            writer,
            store_lost,
            receipts,
            drain,
            cluster,
            hold,
        })
    }

    /// Where clients connect.
    #[must_use]
    pub fn client_address(&self) -> SocketAddr {
        self.edge.address()
    }

    /// Where gRPC clients connect.
    #[must_use]
    pub fn grpc_address(&self) -> SocketAddr {
        self.edge.grpc_address()
    }

    /// Where operators look.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// The node's health.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Serves until `stop` resolves, then drains.
    ///
    /// # Errors
    /// When something failed that the process cannot go on without.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        tokio::select! {
            () = stop => {}
            failure = self.fatal.recv() => anyhow::bail!(failure.unwrap_or_else(|| "kafka ended".into())),
            Some(error) = self.store_lost.recv() => {
                tracing::error!(%error, "ending: what this process knows of the store does not hold any more");
                // Nothing can be settled any more; only the clients are told.
                self.edge.refuse();
                self.edge.drain(self.drain.goodbyes_per_second, Instant::now() + self.drain.deadline.min(LAST_GOODBYES)).await;
                self.hold.let_go().await;
                return Err(error.into());
            }
            failure = self.edge.failed() => anyhow::bail!(failure),
            _ = &mut self.root_ended => anyhow::bail!("the root of all actors ended"),
        }
        self.drain().await;
        Ok(())
    }

    /// Not ready → Kafka settled and let go → clients told when to come back → receipts written → closed.
    async fn drain(self) {
        let began = Instant::now();
        let deadline = began + self.drain.deadline;
        tracing::info!(deadline = ?self.drain.deadline, "draining");
        self.health.not_ready(HEALTH_PART, "draining");
        self.edge.refuse();
        self.api.refuse();
        // Half of the time at the most for Kafka: clients must hear goodbye in any case.
        let kafka_deadline = began + self.drain.deadline / 2;
        let published = tokio::time::timeout_at(kafka_deadline.into(), self.api.settled());
        let given = async {
            if let Some(cluster) = &self.cluster {
                cluster.give_away(kafka_deadline).await;
            }
        };
        if let Some(cluster) = &self.cluster {
            cluster.drain(kafka_deadline).await;
        }
        let ((), (), published) = tokio::join!(given, self.ingest.drain(kafka_deadline), published);
        if published.is_err() {
            tracing::warn!("kafka did not confirm all events of services in time");
        }
        self.edge.drain(self.drain.goodbyes_per_second, deadline).await;
        // What the clients have acknowledged at last.
        let now = Instant::now();
        let noted_by = deadline.clamp(now + NOTED_MIN, now + STORE_CLOSE);
        if tokio::time::timeout_at(noted_by.into(), self.writer.noted()).await.is_err() {
            tracing::warn!("the store did not take the last acknowledgements in time: what they are for comes again");
        }
        if let Some(receipts) = &self.receipts {
            receipts.finish(deadline.min(Instant::now() + RECEIPTS_FINISH)).await;
        }
        if let Some(cluster) = &self.cluster {
            cluster.leave().await;
        }
        self.root.stop(None);
        self.tasks.iter().for_each(JoinHandle::abort);
        if tokio::time::timeout(STORE_CLOSE, self.store.close()).await.is_err() {
            tracing::warn!("the store did not close in time; it has all that was settled");
        }
        self.hold.let_go().await;
        tracing::info!(seconds = began.elapsed().as_secs_f64(), "drained");
    }
}

/// Nobody writes them if there is no topic for them.
fn start_receipts(
    config: &Config,
    owners: &Owners,
    journal: Arc<dyn Store>,
    fatal: kafka::Fatal,
) -> Result<Option<Arc<ReceiptWriter>>, rdkafka::error::KafkaError> {
    let topic = config.kafka.receipts_topic.clone();
    if topic.is_empty() {
        return Ok(None);
    }
    let config = receipts::Config { producer: kafka::producer_config(&config.kafka), topic, owners: owners.clone() };
    Ok(Some(Arc::new(ReceiptWriter::start(&config, journal, fatal)?)))
}

fn user_config(
    config: &Config,
    store: Arc<dyn Store>,
    writer: Writer,
    receipts: Arc<dyn Receipts>,
) -> Arc<user::Config> {
    let sessions = &config.sessions;
    Arc::new(user::Config {
        session: Arc::new(session::Config {
            window: session::window::Limits { items: sessions.window_items, bytes: sessions.window_bytes },
            slow_deadline: sessions.slow_deadline,
            ack_deadline: config.log.ack_deadline,
            heartbeat: sessions.heartbeat,
            reconnect: RECONNECT,
        }),
        sessions_max: sessions.per_user_max,
        idle_after: if sessions.idle_after.is_zero() { AWAY_IDLE_AFTER } else { sessions.idle_after },
        dormancy: !sessions.idle_after.is_zero(),
        limits: limits(&config.limits.delivery),
        buffer: user::buffer::Bounds { items: config.buffer.items, bytes: config.buffer.bytes },
        store,
        writer,
        receipts,
    })
}

/// Without any, the defaults hold for every priority that can be limited.
fn limits(configured: &[config::DeliveryLimit]) -> Limits {
    let default = [Priority::High, Priority::Normal, Priority::Low].map(config::DeliveryLimit::of);
    let limits = if configured.is_empty() { &default } else { configured };
    limits.iter().fold(Limits::default(), |limits, limit| {
        let config::DeliveryLimit { priority, per_second, burst, dry_run } = *limit;
        limits.with(priority, Limit { per_second, burst, dry_run })
    })
}

fn trusted(networks: &[config::Network]) -> TrustedProxies {
    TrustedProxies::new(networks.iter().map(|one| one.net()).collect())
}

fn edge_config(config: &Config, epoch: LogEpoch, others: OpenApiRouter) -> Result<edge::Config, config::Error> {
    let limits = &config.limits;
    Ok(edge::Config {
        client: edge::Port {
            tls: client_tls(config)?.map(Arc::new),
            proxy_protocol: config.client.proxy_protocol,
            trusted_proxies: trusted(&config.client.trusted_proxies),
        },
        grpc: edge::Port {
            tls: grpc_tls(config)?.map(Arc::new),
            proxy_protocol: config.grpc.proxy_protocol,
            trusted_proxies: trusted(&config.grpc.trusted_proxies),
        },
        allowed_origins: config.client.allowed_origins.clone(),
        limits: edge::Limits {
            connects_per_second: limits.connects_per_second,
            connections_max: limits.connections_max,
            handshakes_max: limits.handshakes_max,
            handshakes_per_address: limits.handshakes_per_address,
            connections_per_address: limits.connections_per_address,
            handshake_deadline: limits.handshake_deadline,
        },
        frame_bytes_max: limits.frame_bytes_max,
        request_bytes_max: limits.request_bytes_max,
        queue_items_max: config.sessions.window_items,
        queue_bytes_max: config.sessions.window_bytes,
        heartbeat: config.sessions.heartbeat,
        reconnect: RECONNECT,
        issued_ttl: config.sessions.issued_ttl,
        epoch,
        others,
        memory_bytes_max: limits.memory_bytes_max as u64,
    })
}

fn api_config(config: &Config) -> api::Config {
    let limits = &config.limits;
    api::Config {
        producer: kafka::producer_config(&config.kafka),
        topic: config.kafka.topic.clone(),
        payload_bytes_max: limits.payload_bytes_max,
        request_bytes_max: limits.request_bytes_max,
        body_deadline: limits.handshake_deadline * 2,
        publish_deadline: PUBLISH_DEADLINE,
        in_flight_bytes: PUBLISH_BYTES,
        in_flight_events: PUBLISH_EVENTS,
    }
}

fn ingest_config(config: &Config, is_cluster_new: bool) -> ingest::Config {
    let kafka = &config.kafka;
    let types = config.types.clone();
    ingest::Config {
        consumer: kafka::consumer_config(kafka),
        producer: kafka::producer_config(kafka),
        brokers: kafka.brokers.clone(),
        topic: kafka.topic.clone(),
        dead_letter_topic: kafka.dead_letter_topic.clone(),
        from_latest: kafka.start == config::Start::Latest,
        is_cluster_new,
        partition_refresh: kafka.partition_refresh,
        credits: Credits {
            events: kafka.in_flight_events,
            bytes: kafka.in_flight_bytes,
            partition_events: (kafka.in_flight_events / 4).max(1),
            partition_bytes: (kafka.in_flight_bytes / 4).max(1),
            span: SPAN_MAX,
        },
        payload_bytes_max: config.limits.payload_bytes_max,
        defaults: Arc::new(move |notification_type| {
            let config::ResolvedOptions { durability, priority, ttl } = types.options(notification_type);
            Options { durability, priority, collapse_key: None, ttl }
        }),
    }
}

/// Every client is a descriptor; the soft limit is often a thousand.
fn raise_descriptor_limit() {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

async fn runtime_heartbeat(health: Health) {
    let progress = health.watch_loop("runtime", RUNTIME_AGE_MAX);
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        progress.turn();
    }
}
