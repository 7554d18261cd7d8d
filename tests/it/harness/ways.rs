//! The ways between the nodes of a cluster, and from a node to the store and to Kafka, over proxies that can cut them.

use std::net::SocketAddr;

use super::{
    Store,
    broker::Broker,
    node::{Builder, free_ports},
    postgres::PrivatePostgres,
    proxy::Proxy,
};

/// The ways by which nodes reach each other: a proxy before each.
pub struct Links {
    ports: Vec<u16>,
    /// Of each node, the way of the others to it.
    pub to: Vec<Proxy>,
}

impl Links {
    /// Of so many nodes.
    pub async fn of(nodes: usize) -> Self {
        let mut links = Self { ports: Vec::new(), to: Vec::new() };
        for _ in 0..nodes {
            let [port] = free_ports();
            links.ports.push(port);
            links.to.push(Proxy::to(local(port)).await);
        }
        links
    }

    /// That node with its proxy before it.
    pub fn before(&self, node: usize, builder: Builder) -> Builder {
        let builder = builder.set("cluster.listen", local(self.ports[node]).to_string());
        builder.set("cluster.advertise", self.to[node].addr().to_string())
    }
}

/// A way to a store in PostgreSQL, and the store's URL over it.
pub async fn to_store(store: &Store) -> (Proxy, String) {
    let url = store.url();
    let (before, behind) = url.split_once('@').expect("a user");
    let (server, name) = behind.split_once('/').expect("a database");
    let proxy = Proxy::to(server.parse().expect("an address")).await;
    let detour = format!("{before}@{}/{name}", proxy.addr());
    (proxy, detour)
}

/// A PostgreSQL and its synchronous standby: one address for whichever of both serves.
pub struct Pair {
    /// Who serves.
    pub primary: PrivatePostgres,
    standby: Option<PrivatePostgres>,
    way: Proxy,
}

impl Pair {
    /// Both run.
    pub async fn started() -> Self {
        let primary = PrivatePostgres::started().await;
        let standby = Some(primary.synchronous_standby().await);
        let way = Proxy::to(local(primary.port())).await;
        Self { primary, standby, way }
    }

    /// Its address without a database.
    pub fn url(&self) -> String {
        self.primary.url().replace(&self.primary.port().to_string(), &self.way.addr().port().to_string())
    }

    /// The standby takes the place of the primary, which has ended. Only once.
    pub async fn fail_over(&mut self) {
        self.primary = self.standby.take().expect("nobody has taken its place yet");
        self.primary.promote().await;
        self.way.aim(local(self.primary.port()));
    }
}

/// A running broker, and a way to it that whoever begins there stays on.
pub async fn to_broker() -> (Broker, Proxy) {
    let [detour] = free_ports();
    let proxy = Proxy::to(local(detour)).await;
    let broker = Broker::stopped();
    let (port, detoured) = (broker.port(), proxy.addr());
    let mut broker = broker.properties(&format!(
        "listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{},DETOUR://127.0.0.1:{detour}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port},DETOUR://{detoured}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,DETOUR:PLAINTEXT\n",
        port + 1
    ));
    broker.start().await;
    (broker, proxy)
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}
