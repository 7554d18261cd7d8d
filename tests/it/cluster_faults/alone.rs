//! A node that reaches nothing and nobody any more, and that nobody reaches but its clients.

use super::*;
use crate::harness::{
    broker::Broker,
    proxy::Proxy,
    ways::{self, Links},
};

/// A node that has heard of nobody for so long ends.
const SOLITUDE: Duration = Duration::from_secs(10);
/// Four nodes: of three, the two that are left would be a view of two, in which each may say alone that the other one is
/// dead, and a busy machine needs to stand still for little more than a second for that.
const NODES: usize = 4;
const LAST: usize = NODES - 1;

/// The ways of the last node: to the others and from them, to the store, and to Kafka.
struct Ways {
    links: Links,
    store: Proxy,
    kafka: Proxy,
    _broker: Broker,
}

impl Ways {
    /// Whether nothing passes from here on, on any of them.
    fn freeze(&self, process: u32, on: bool) {
        self.links.to[LAST].freeze(on);
        self.links.to.iter().for_each(|proxy| proxy.freeze_for(process, on));
        self.store.freeze(on);
        self.kafka.freeze(on);
    }
}

async fn cluster() -> (Cluster, Ways) {
    let (broker, kafka) = ways::to_broker().await;
    let feed = Feed::on(&broker.kafka(), PARTITIONS).await;
    let postgres = Store::postgres().await;
    let (store, detour) = ways::to_store(&postgres).await;
    let links = Links::of(NODES).await;
    let configure = |node, builder| {
        let builder = links.before(node, builder);
        if node < LAST {
            return builder;
        }
        builder.set("store.url", detour.as_str()).set("kafka.brokers", kafka.addr().to_string())
    };
    let cluster = Cluster::start_on(feed, NODES, postgres, configure).await;
    cluster.store.watch_writers().await;
    (cluster, Ways { links, store, kafka, _broker: broker })
}

/// The last node, which has ended and reaches everything again, comes back, and nothing was lost meanwhile.
async fn comes_back(mut cluster: Cluster, traffic: Traffic, cut: Instant, what: &str) {
    goes_on(&traffic).await;
    cluster.nodes[LAST].start_again();
    cluster.nodes[LAST].ready().await;
    traffic.well(LAST);
    goes_on(&traffic).await;
    cluster.all_run("they hear each other");
    cluster.settled().await;
    traffic.check(&cluster).await.is_silent_for_less_than(LONG_SILENCE, what, cut);
}

#[tokio::test]
async fn a_node_that_is_cut_from_everything_says_goodbye_and_ends() {
    let (mut cluster, ways) = cluster().await;
    let mut guest = cluster.nodes[LAST].connect("guest").await;
    let traffic = traffic(&cluster).await;
    traffic.hurt(LAST);
    let process = cluster.nodes[LAST].process().id();
    let cut = Instant::now();
    ways.freeze(process, true);
    let (frames, code) = guest.closed().await;
    let told = cut.elapsed();
    println!("its clients heard of it {told:?} after the cut");
    assert_eq!(code, Some(1001), "{frames:?}");
    let [bye] = frames.as_slice() else { panic!("not a goodbye alone: {frames:?}") };
    assert_eq!((bye.kind.as_str(), bye.payload()["code"].as_u64()), ("$bye", Some(1001)), "{bye:?}");
    // Since it last heard of somebody, which was up to a probe before.
    assert!(told + CALM > SOLITUDE && told < SOLITUDE + END, "{told:?}");
    let ended = cluster.nodes[LAST].take().finish(Duration::from_secs(45)).await;
    assert_eq!(ended.code(), 3, "{ended:?}");
    assert!(ended.stderr.contains("hears neither the store nor any other node"), "{ended:?}");
    ways.freeze(process, false);
    comes_back(cluster, traffic, cut, "a node was cut from everything").await;
}

/// Before it has given up by itself it hears that others have declared it dead.
#[tokio::test]
async fn a_node_that_was_cut_from_everything_for_a_while_was_replaced_and_ends() {
    let (mut cluster, ways) = cluster().await;
    let traffic = traffic(&cluster).await;
    traffic.hurt(LAST);
    let process = cluster.nodes[LAST].process().id();
    let cut = Instant::now();
    ways.freeze(process, true);
    cluster.store.declares_dead(&format!("n{LAST}")).await;
    let healed = Instant::now();
    ways.freeze(process, false);
    let ended = cluster.nodes[LAST].take().finish(END * 4).await;
    let lasted = healed.elapsed();
    assert_eq!(ended.code(), 3, "{ended:?}");
    if healed - cut < SOLITUDE - CALM {
        assert!(!ended.stderr.contains("hears neither"), "it was {:?} alone: {ended:?}", healed - cut);
    }
    assert!(lasted < END, "it ended {lasted:?} after it could hear of its death");
    comes_back(cluster, traffic, cut, "a node was cut from everything for a while").await;
}
