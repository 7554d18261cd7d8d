//! Links between the nodes of a cluster: one in each direction between two of them. Over the one that it has opened, a
//! node sends events and connections to the node that serves their users, and gets back what became of them.

mod client;
mod dial;
mod mirror;
mod question;
mod server;
mod under_way;
mod version;
pub(crate) mod wire;

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use rand::seq::IteratorRandom as _;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::ServerTlsConfig;

use self::{
    client::{Order, Peer},
    dial::Broken,
    server::Server,
    wire::service::link_server::LinkServer,
};
pub use self::{
    mirror::Limits,
    question::{Answer, Answering, Question, Standing},
    version::{NotVersions, Versions},
};
use crate::{
    event::InFlight,
    ids::{Incarnation, NotificationId, UserId},
    placement::{
        ShardId,
        owners::{Owner, Owners},
    },
    router,
    shard::{Elsewhere, Shards},
    store::{claims::Epoch, writer::CancelReply},
    user::Attach,
};

/// HTTP/2 pings find a frozen peer: one every so often, answered in so long.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_ANSWER: Duration = Duration::from_secs(3);
/// So many are asked in a row whether they reach one that this node does not.
const THIRDS_ASKED: usize = 3;
/// What streams may have in flight, in bytes.
const WINDOW: u32 = 4 << 20;

/// Who this node is to others.
#[derive(Clone, Debug)]
pub struct Identity {
    /// This life of it.
    pub me: Incarnation,
    /// What all nodes of the cluster know.
    pub secret: String,
    /// What it speaks.
    pub versions: Versions,
    /// Certificates, when nodes show each other some.
    pub tls: Option<Tls>,
}

/// How nodes know each other by certificates: both sides show one that the authority has signed.
#[derive(Clone, Debug)]
pub struct Tls {
    /// This node's, with its key.
    pub identity: tonic::transport::Identity,
    /// Whose signature counts.
    pub authority: tonic::transport::Certificate,
}

/// Who answers where a node should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answers {
    /// That node.
    Itself,
    /// Another one, or its host says that nothing listens there.
    SomebodyElse,
    /// One that does not know the same secret.
    Stranger,
    /// One that speaks none of this node's versions of the link: its words for that.
    Foreign(String),
    /// Nobody, as yet.
    Nobody,
}

/// A shard, and the epoch under which its owner holds it.
pub type Held = (ShardId, Epoch);

/// Hears what links notice of other nodes.
pub trait Watched: Send + Sync + 'static {
    /// Something came from that node over the link that this one has opened: it can be reached.
    fn heard(&self, node: Incarnation);
    /// That node has opened a link, or something came over it: it lives, but cannot be reached for sure.
    fn called(&self, node: Incarnation);
    /// Its host says that nothing listens there, or somebody else answers.
    fn refused(&self, node: Incarnation);
    /// A node has said whether it hears another one.
    fn told(&self, by: Incarnation, about: Incarnation, poll: u64, hears: bool);
    /// Whether this node hears that one.
    fn hears(&self, about: Incarnation) -> Pin<Box<dyn Future<Output = bool> + Send + '_>>;
    /// Claims have changed.
    fn look(&self);
    /// That node serves these shards from here on, and wants the connections of their users.
    fn wants(&self, owner: Incarnation, shards: Vec<Held>);
    /// Whether that node was declared dead.
    fn is_dead(&self, node: Incarnation) -> bool;
    /// Another node says that this one was.
    fn dead(&self);
}

/// All links of a node. Cheap to clone.
#[derive(Clone)]
pub struct Links(Arc<Inner>);

struct Inner {
    identity: Arc<Identity>,
    owners: Owners,
    peers: RwLock<HashMap<Incarnation, Peer>>,
    /// Connections of users whom nobody serves just now.
    #[expect(clippy::vec_box, reason = "they come in boxes, and go on in them")]
    waiting: Mutex<Vec<Box<Attach>>>,
    answering: Arc<OnceLock<Arc<dyn Answering>>>,
}

impl Inner {
    /// Where a node listens.
    fn addresses(&self, node: Incarnation) -> Option<Arc<[String]>> {
        Some(self.peers.read().get(&node)?.addresses.clone())
    }

    /// Nodes that might reach one that this node does not, a few of them, in any order.
    fn thirds(&self, node: Incarnation) -> Vec<(Incarnation, Arc<[String]>)> {
        let peers = self.peers.read();
        let thirds = peers.iter().filter(|(third, peer)| **third != node && peer.life().is_some());
        thirds.map(|(third, peer)| (*third, peer.addresses.clone())).sample(&mut rand::rng(), THIRDS_ASKED)
    }
}

impl Links {
    /// No links yet.
    #[must_use]
    pub fn new(identity: Identity, owners: Owners) -> Self {
        metric::describe();
        let (identity, peers, waiting) = (Arc::new(identity), RwLock::default(), Mutex::default());
        Self(Arc::new(Inner { identity, owners, peers, waiting, answering: Arc::default() }))
    }

    /// From here on other nodes' questions are answered, by this.
    pub fn answered_by(&self, answering: Arc<dyn Answering>) {
        let _ = self.0.answering.set(answering);
    }

    /// Asks a node something. `None`: there is no link, or no answer. It may take as long as the link is there: the
    /// caller knows how long to wait. Cancel safe.
    pub async fn query(&self, node: Incarnation, question: Question) -> Option<Answer> {
        let (reply, answer) = oneshot::channel();
        self.order(node, Order::Query(question, reply));
        answer.await.ok()
    }

    /// Serves other nodes on this listener, until the task is aborted.
    ///
    /// # Errors
    /// When certificate and key cannot be used.
    pub fn listen(
        &self,
        listener: TcpListener,
        shards: Shards,
        limits: Limits,
        watched: Arc<dyn Watched>,
    ) -> Result<JoinHandle<()>, tonic::transport::Error> {
        let (identity, answering) = (self.0.identity.clone(), self.0.answering.clone());
        let links = Arc::downgrade(&self.0);
        let server = Server { identity, shards, limits, watched, answering, links };
        let service = LinkServer::new(server).max_decoding_message_size(usize::MAX);
        let mut builder = tonic::transport::Server::builder();
        if let Some(Tls { identity, authority }) = &self.0.identity.tls {
            let tls = ServerTlsConfig::new().identity(identity.clone()).client_ca_root(authority.clone());
            builder = builder.tls_config(tls)?;
        }
        let serving = builder
            .tcp_nodelay(true)
            .http2_keepalive_interval(Some(PING_EVERY))
            .http2_keepalive_timeout(Some(PING_ANSWER))
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        Ok(tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the link's listener has ended");
            }
        }))
    }

    /// Asks who answers where a node should be.
    pub async fn who_answers(&self, node: Incarnation, addresses: &[String]) -> Answers {
        for address in addresses {
            match dial::connect(&self.0.identity, node, address).await {
                Ok(_) => return Answers::Itself,
                Err(Broken::Refused(_)) => return Answers::SomebodyElse,
                Err(Broken::Stranger) => return Answers::Stranger,
                Err(Broken::Foreign(why)) => return Answers::Foreign(why),
                Err(Broken::Dead | Broken::Other(_)) => {}
            }
        }
        Answers::Nobody
    }

    /// Keeps links to these nodes, and to no others.
    pub fn keep(&self, nodes: &[(Incarnation, Vec<String>)], watched: &Arc<dyn Watched>) {
        let mut peers = self.0.peers.write();
        peers.retain(|peer, _| nodes.iter().any(|(node, _)| node == peer));
        for (node, addresses) in nodes {
            let links = Arc::downgrade(&self.0);
            let start = || Peer::start(self.0.identity.clone(), *node, addresses.clone(), (watched.clone(), links));
            peers.entry(*node).or_insert_with(start);
        }
    }

    /// Whether there is a link to that node, which this one has opened.
    #[must_use]
    pub fn is_open(&self, node: Incarnation) -> bool {
        router::Links::life(self, node).is_some()
    }

    /// Why the last call to that node has failed, if it has.
    #[must_use]
    pub fn failure(&self, node: Incarnation) -> Option<String> {
        self.0.peers.read().get(&node)?.failure.lock().clone()
    }

    fn order(&self, node: Incarnation, order: Order) {
        let peer = self.0.peers.read().get(&node).cloned();
        if let Some(peer) = peer {
            peer.order(order);
        }
    }

    /// Asks a node whether it is there.
    pub fn probe(&self, node: Incarnation) {
        self.order(node, Order::Probe);
    }

    /// Asks a node whether it hears another one.
    pub fn ask(&self, node: Incarnation, about: Incarnation, poll: u64) {
        self.order(node, Order::Hears { poll, about });
    }

    /// Tells all nodes that claims have changed.
    pub fn tell_to_look(&self) {
        self.tell_all(|| Order::Look);
    }

    /// Asks all nodes for the connections that they have of users of these shards, which this node serves from here on.
    pub fn ask_for(&self, shards: &[Held]) {
        self.tell_all(|| Order::List(shards.to_vec()));
    }

    /// Tells a node that it has been sent all of them.
    ///
    /// `life`: of the link that they went out on ([`Self::coming_life`]). If that is over, so may they be, and nothing is
    /// told.
    pub fn listed(&self, owner: Incarnation, life: u64, shards: Vec<Held>) {
        self.order(owner, Order::Listed(life, shards));
    }

    /// Which life of the link to a node what is sent now goes out in: this one, or else the next.
    #[must_use]
    pub fn coming_life(&self, node: Incarnation) -> Option<u64> {
        Some(self.0.peers.read().get(&node)?.coming_life())
    }

    fn tell_all(&self, order: impl Fn() -> Order) {
        let peers: Vec<Peer> = self.0.peers.read().values().cloned().collect();
        peers.into_iter().for_each(|peer| peer.order(order()));
    }

    /// The map has changed: connections that waited for somebody ask again.
    pub fn map_changed(&self, shards: &Shards) {
        let waiting = std::mem::take(&mut *self.0.waiting.lock());
        // Those that were asked for meanwhile are on their way.
        waiting.into_iter().filter(|attach| attach.attachment.is_latest()).for_each(|attach| shards.attach(attach));
    }
}

impl router::Links for Links {
    fn life(&self, node: Incarnation) -> Option<u64> {
        self.0.peers.read().get(&node)?.life()
    }

    fn send(&self, node: Incarnation, life: u64, events: Vec<InFlight>) {
        self.order(node, Order::Events(life, events));
    }
}

impl Elsewhere for Links {
    fn attach(&self, attach: Box<Attach>) {
        let peer = || match self.0.owners.of(&attach.user) {
            Owner::There(node) => self.0.peers.read().get(&node).cloned(),
            // Here since a moment ago, too: the map is told of again.
            Owner::Nobody | Owner::Here => None,
        };
        match peer() {
            Some(peer) => peer.order(Order::Attach(attach)),
            None => self.0.waiting.lock().push(attach),
        }
    }

    fn cancel(&self, user: UserId, id: NotificationId, reply: CancelReply) {
        if let Owner::There(node) = self.0.owners.of(&user) {
            self.order(node, Order::Cancel(user, id, reply));
        }
    }
}

/// Metrics of links.
mod metric {
    use metrics::{counter, describe_counter, describe_gauge, gauge};

    const OPEN: &str = "notifier_link_open";
    const THROUGH: &str = "notifier_link_through_others";
    const BROKEN: &str = "notifier_link_broken_total";
    const EVENTS: &str = "notifier_link_events_total";

    pub(super) fn describe() {
        describe_gauge!(OPEN, "Links to other nodes that this node has opened and that are up");
        describe_gauge!(
            THROUGH,
            "Those of them that go through a third node, as this one does not reach the other itself"
        );
        describe_counter!(BROKEN, "Links to other nodes that were up and broke");
        describe_counter!(EVENTS, "Events that were forwarded between nodes, by direction");
        gauge!(OPEN).set(0.0);
        gauge!(THROUGH).set(0.0);
        counter!(BROKEN).increment(0);
        for direction in ["sent", "received"] {
            counter!(EVENTS, "direction" => direction).increment(0);
        }
    }

    pub(super) fn opened(is_through: bool) {
        gauge!(OPEN).increment(1.0);
        gauge!(THROUGH).increment(f64::from(u8::from(is_through)));
    }

    pub(super) fn closed(is_through: bool, is_broken: bool) {
        gauge!(OPEN).decrement(1.0);
        gauge!(THROUGH).decrement(f64::from(u8::from(is_through)));
        counter!(BROKEN).increment(u64::from(is_broken));
    }

    pub(super) fn sent(events: usize) {
        counter!(EVENTS, "direction" => "sent").increment(events as u64);
    }

    pub(super) fn received(events: usize) {
        counter!(EVENTS, "direction" => "received").increment(events as u64);
    }
}

#[cfg(test)]
mod tests;
