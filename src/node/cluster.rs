//! The node among others: what has to be there before it joins, and in which order it comes and goes.

use std::{
    num::NonZeroU8,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::{net::TcpListener, task::JoinHandle};

use super::{faults, others::Others, storage};
use crate::{
    cluster::view,
    config::{self, Config},
    edge::tls::{Listener, announce_expiry},
    ids::{Incarnation, NodeId},
    link::{Identity, Limits, Links, Tls},
    member::{Member, Ownership, Parts},
    placement::owners::Owners,
    router,
    shard::Shards,
    store::{self, Common, writer::Lost},
};

/// How often to look whether others have taken all.
const DRAIN_LOOK: Duration = Duration::from_millis(50);
/// How long saying that this node has left may take.
const LEAVE: Duration = Duration::from_secs(3);

/// Where other nodes call, if there are to be any.
pub(super) async fn bind(config: &Config) -> anyhow::Result<Option<TcpListener>> {
    if !config.cluster.enabled {
        return Ok(None);
    }
    let address = config.cluster.listen;
    let listener = TcpListener::bind(address).await;
    Ok(Some(listener.with_context(|| format!("cluster.listen: cannot listen on {address}"))?))
}

/// A node that is about to join.
pub(super) struct Newcomer {
    id: NodeId,
    links: Links,
    owners: Owners,
    member: Arc<Member>,
    incarnation: Incarnation,
    listener: Option<TcpListener>,
    tasks: Vec<JoinHandle<()>>,
}

fn host() -> String {
    config::host_name(&std::env::vars().collect::<Vec<_>>())
}

/// What nodes show each other, if they do. That all three files are named was checked with the configuration.
fn tls(config: &Config) -> anyhow::Result<Option<Tls>> {
    let config::Cluster { tls_cert_file, tls_key_file, tls_ca_file, .. } = &config.cluster;
    let (Some(cert), Some(key), Some(authority)) = (tls_cert_file, tls_key_file, tls_ca_file) else { return Ok(None) };
    let read = |key: &str, path: &Path| std::fs::read(path).with_context(|| format!("{key}: {}", path.display()));
    let (file, cert) = (cert, read("cluster.tls_cert_file", cert)?);
    announce_expiry(Listener::Cluster, file, &cert);
    let key = read("cluster.tls_key_file", key)?;
    Ok(Some(Tls {
        identity: tonic::transport::Identity::from_pem(cert, key),
        authority: tonic::transport::Certificate::from_pem(read("cluster.tls_ca_file", authority)?),
    }))
}

/// What this node is called.
pub(super) fn name(config: &Config) -> anyhow::Result<NodeId> {
    let id = if config.node.id.is_empty() { host() } else { config.node.id.clone() };
    NodeId::new(id).map_err(|error| anyhow::anyhow!("node.id: {error}"))
}

impl Newcomer {
    /// `None`: there are no others.
    pub(super) async fn new(
        config: &Config,
        listener: Option<TcpListener>,
        shards: u16,
        lost: &Lost,
    ) -> anyhow::Result<Option<Self>> {
        let Some(listener) = listener else { return Ok(None) };
        let store = storage::store_config(config).context("cluster.enabled needs store.url")?;
        let incarnation = Incarnation::random();
        let store = store::Config { incarnation: Some(incarnation), is_shared: true, ..store };
        let common = Common::open(&store).await.context("store.url")?;
        let id = name(config)?;
        let port = listener.local_addr()?.port();
        let advertised = match config.cluster.advertise.as_str() {
            "" if config.cluster.listen.ip().is_unspecified() => format!("{}:{port}", host()),
            "" => format!("{}", listener.local_addr()?),
            advertised => advertised.to_owned(),
        };
        let node = view::Node {
            id: id.clone(),
            incarnation,
            addresses: vec![advertised],
            zone: config.node.zone.clone(),
            weight: NonZeroU8::MIN,
            is_alone: false,
        };
        let secret = config.cluster.secret.as_ref().map_or_else(String::new, |secret| secret.expose().to_owned());
        let owners = Owners::shared(shards);
        let links = Links::new(
            Identity { me: incarnation, secret, versions: faults::link_versions(), tls: tls(config)? },
            owners.clone(),
        );
        let member = Member::new(common, node, links.clone(), lost.clone());
        Ok(Some(Self { id, links, owners, member, incarnation, listener: Some(listener), tasks: Vec::new() }))
    }

    pub(super) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    pub(super) fn owners(&self) -> Owners {
        self.owners.clone()
    }

    /// The links, as the router takes them.
    pub(super) fn links(&self) -> Arc<dyn router::Links> {
        Arc::new(self.links.clone())
    }

    /// The others, as questions go to them.
    pub(super) fn others(&self) -> Others {
        let (me, member, links) = (self.id.clone(), self.member.clone(), self.links.clone());
        Others { me, incarnation: self.incarnation, member, links }
    }

    pub(super) fn table(&self) -> Links {
        self.links.clone()
    }

    /// Listens, and joins; nothing is served yet.
    pub(super) async fn join(&mut self, config: &Config, shards: Shards) -> anyhow::Result<Shards> {
        let shards = shards.and(Arc::new(self.links.clone()));
        let limits = Limits { frames: config.sessions.window_items as u64, bytes: config.sessions.window_bytes as u64 };
        if let Some(listener) = self.listener.take() {
            let listening = self.links.listen(listener, shards.clone(), limits, self.member.clone());
            self.tasks.push(listening.context("cluster.tls_cert_file, cluster.tls_key_file")?);
        }
        self.member.join().await?;
        self.tasks.extend(self.member.run());
        Ok(shards)
    }

    /// Begins to take what this node should own.
    pub(super) fn begin(mut self, parts: Parts) -> Running {
        self.tasks.push(tokio::spawn(Ownership::new(self.member.clone(), parts).run()));
        Running { member: self.member, owners: self.owners, tasks: self.tasks }
    }
}

/// A node among others.
pub(super) struct Running {
    member: Arc<Member>,
    owners: Owners,
    tasks: Vec<JoinHandle<()>>,
}

impl Running {
    /// Says that this node gives everything away.
    pub(super) async fn drain(&self, deadline: Instant) {
        if tokio::time::timeout_at(deadline.into(), self.member.drain()).await.is_err() {
            tracing::warn!("the store did not hear in time that this node leaves");
        }
    }

    /// Returns when all shards are given away, if there is anybody to take them.
    pub(super) async fn give_away(&self, deadline: Instant) {
        let given = async {
            while self.owners.serves_any() && !self.member.view().candidates().is_empty() {
                tokio::time::sleep(DRAIN_LOOK).await;
            }
        };
        if tokio::time::timeout_at(deadline.into(), given).await.is_err() {
            tracing::warn!("not all shards were given away in time; others take them when this node is gone");
        }
    }

    /// Says that this node is gone.
    pub(super) async fn leave(&self) {
        if tokio::time::timeout(LEAVE, self.member.leave()).await.is_err() {
            tracing::warn!("the store did not hear that this node has left; others find out");
        }
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
