//! What may happen to a cluster, one thing at a time, under light traffic: nothing that was accepted is lost, nothing
//! comes twice or out of order on a connection, and whoever is connected to a good node stays connected.

use std::{
    future::Future,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::harness::{
    Store,
    cluster::Cluster,
    node::{Builder, free_ports},
    postgres::{PrivatePostgres, Stop},
    proxy::Proxy,
    traffic::Traffic,
};

const USERS: usize = 24;
const PARTITIONS: i32 = 6;

/// Before anything happens, and before the traffic ends.
const CALM: Duration = Duration::from_secs(1);
/// How long a killed node's users may hear nothing, on a machine that does something else.
const SILENCE: Duration = Duration::from_secs(15);
/// A node that finds itself dead ends within 3 s; the rest is for a busy machine.
const END: Duration = Duration::from_secs(5);

async fn three() -> Cluster {
    three_with(Store::postgres().await, |_, builder| builder).await
}

async fn three_with(store: Store, configure: impl Fn(usize, Builder) -> Builder) -> Cluster {
    Cluster::start_with(3, PARTITIONS, store, configure).await
}

async fn traffic(cluster: &Cluster) -> Traffic {
    let traffic = Traffic::start(cluster, USERS).await;
    traffic.flow(CALM).await;
    traffic
}

/// Until whoever dies now would be missed.
async fn goes_on(traffic: &Traffic) {
    traffic.flows().await;
    traffic.flow(CALM).await;
}

#[tokio::test]
async fn a_node_is_killed() {
    let mut cluster = three().await;
    let traffic = traffic(&cluster).await;
    traffic.hurt(2);
    let killed = Instant::now();
    cluster.nodes[2].kill();
    goes_on(&traffic).await;
    cluster.settled().await;
    let silence = traffic.check(&cluster).await.silence_after("a node was killed", killed);
    assert!(silence < SILENCE);
}

/// What it had read was not stored, and what it had begun to write comes late or not at all.
#[tokio::test]
async fn a_node_is_killed_while_the_store_stands_still() {
    let mut cluster = three().await;
    let traffic = traffic(&cluster).await;
    for node in [2, 1] {
        let locked = cluster.store.lock("shard_claims").await;
        traffic.flow(CALM).await;
        traffic.hurt(node);
        cluster.nodes[node].kill();
        drop(locked);
        goes_on(&traffic).await;
    }
    cluster.settled().await;
    traffic.check(&cluster).await;
}

#[tokio::test]
async fn two_of_three_are_killed_at_once() {
    let mut cluster = three().await;
    let traffic = traffic(&cluster).await;
    let killed = Instant::now();
    for node in [0, 1] {
        traffic.hurt(node);
        cluster.nodes[node].kill();
    }
    goes_on(&traffic).await;
    cluster.settled().await;
    let silence = traffic.check(&cluster).await.silence_after("two nodes were killed", killed);
    assert!(silence < SILENCE);
}

#[tokio::test]
async fn a_node_that_stands_still_for_a_second_is_not_noticed() {
    let mut cluster = three().await;
    let traffic = traffic(&cluster).await;
    for node in [0, 1, 2] {
        cluster.nodes[node].process().freeze(Duration::from_secs(1)).await;
        traffic.flows().await;
    }
    for node in &mut cluster.nodes {
        assert!(node.is_running(), "declared dead, and renewed in time:\n{}", node.log());
    }
    traffic.check(&cluster).await;
}

#[tokio::test]
async fn a_node_that_stands_still_for_half_a_minute_ends_and_has_written_nothing() {
    let mut cluster = three().await;
    let traffic = traffic(&cluster).await;
    traffic.hurt(2);
    let frozen = Instant::now();
    cluster.nodes[2].process().freeze(Duration::from_secs(30)).await;
    let thawed = Instant::now();
    let ended = cluster.nodes[2].take().finish(END * 4).await;
    let lasted = thawed.elapsed();
    goes_on(&traffic).await;
    let silence = traffic.check(&cluster).await.silence_after("a node stood still", frozen);
    assert!(silence < SILENCE);
    assert_eq!(ended.code(), 3, "{ended:?}");
    assert!(lasted < END, "it ended {lasted:?} after it ran again: {ended:?}");
}

#[tokio::test]
async fn a_node_is_killed_while_it_drains() {
    let mut cluster = three().await;
    let traffic = traffic(&cluster).await;
    traffic.hurt(1);
    cluster.nodes[1].process().signal("TERM");
    traffic.flow(Duration::from_millis(100)).await;
    cluster.nodes[1].kill();
    goes_on(&traffic).await;
    cluster.settled().await;
    traffic.check(&cluster).await;
}

#[tokio::test]
async fn a_node_that_is_killed_comes_back_at_once_under_its_name() {
    let mut cluster = three().await;
    let traffic = traffic(&cluster).await;
    traffic.hurt(1);
    cluster.nodes[1].kill();
    cluster.nodes[1].start_again();
    cluster.nodes[1].ready().await;
    traffic.well(1);
    goes_on(&traffic).await;
    cluster.settled().await;
    traffic.check(&cluster).await;
}

#[tokio::test]
async fn a_second_node_of_the_same_name_is_refused_and_harms_nobody() {
    let cluster = three().await;
    let traffic = traffic(&cluster).await;
    let second = cluster.builder().set("node.id", "n1").fails().await;
    assert_eq!(second.code(), 2, "{second:?}");
    assert!(second.stderr.contains("node.id"), "{second:?}");
    goes_on(&traffic).await;
    traffic.check(&cluster).await;
}

#[tokio::test]
async fn one_joins_while_another_leaves() {
    let mut cluster = three().await;
    let traffic = traffic(&cluster).await;
    traffic.hurt(0);
    cluster.nodes[0].process().signal("TERM");
    cluster.add().await;
    traffic.joined(&cluster.nodes[3]);
    let left = cluster.nodes[0].take().finish(Duration::from_secs(60)).await;
    assert_eq!(left.code(), 0, "{left:?}");
    goes_on(&traffic).await;
    cluster.settled().await;
    traffic.check(&cluster).await;
}

#[tokio::test]
async fn all_nodes_are_restarted_one_after_the_other() {
    let mut cluster = three().await;
    let traffic = traffic(&cluster).await;
    for node in [0, 1, 2] {
        traffic.hurt(node);
        cluster.nodes[node].restart().await;
        traffic.well(node);
        traffic.flows().await;
    }
    cluster.settled().await;
    traffic.check(&cluster).await;
}

#[tokio::test]
async fn the_stores_server_is_restarted() {
    let mut server = PrivatePostgres::started().await;
    let mut cluster = three_with(Store::on(server.url()).await, |_, builder| builder).await;
    let traffic = traffic(&cluster).await;
    for how in [Stop::Fast, Stop::Immediate] {
        server.stop(how).await;
        traffic.flow(Duration::from_secs(3)).await;
        server.start().await;
        goes_on(&traffic).await;
    }
    for node in &mut cluster.nodes {
        assert!(node.is_running(), "a store that was away for 3 s ends nobody:\n{}", node.log());
    }
    cluster.settled().await;
    traffic.check(&cluster).await;
}

#[tokio::test]
async fn connections_to_the_store_are_cut_while_shards_move() {
    let mut cluster = three().await;
    let traffic = traffic(&cluster).await;
    for _ in 0..2 {
        traffic.hurt(1);
        let leaving = cluster.nodes[1].take();
        leaving.signal("TERM");
        let left = while_cut(&cluster, &traffic, leaving.finish(Duration::from_secs(60))).await;
        assert_eq!(left.code(), 0, "{left:?}");
        cluster.nodes[1].start_again();
        cluster.nodes[1].ready().await;
        traffic.well(1);
        // Its shards are on their way to it.
        while_cut(&cluster, &traffic, traffic.flow(CALM)).await;
        goes_on(&traffic).await;
    }
    cluster.settled().await;
    traffic.check(&cluster).await;
}

/// Waits for something; meanwhile no connection to the store lives for long.
async fn while_cut<T>(cluster: &Cluster, traffic: &Traffic, what: impl Future<Output = T>) -> T {
    let cuts = async {
        loop {
            cluster.store.cut().await;
            traffic.flow(Duration::from_millis(60)).await;
        }
    };
    tokio::select! {
        done = what => done,
        () = cuts => unreachable!("they do not end"),
    }
}

/// A cluster whose last node has its own way to the store.
async fn with_its_own_way_to_the_store() -> (Cluster, Proxy) {
    let store = Store::postgres().await;
    let url = store.url();
    let (before, behind) = url.split_once("@").expect("a user");
    let (server, name) = behind.split_once('/').expect("a database");
    let proxy = Proxy::to(server.parse().expect("an address")).await;
    let detour = format!("{before}@{}/{name}", proxy.addr());
    let configure =
        |node, builder: Builder| if node == 2 { builder.set("store.url", detour.as_str()) } else { builder };
    (three_with(store, configure).await, proxy)
}

#[tokio::test]
async fn one_node_does_not_reach_the_store_for_a_moment() {
    let (mut cluster, proxy) = with_its_own_way_to_the_store().await;
    let traffic = traffic(&cluster).await;
    proxy.freeze(true);
    traffic.flow(Duration::from_secs(2)).await;
    proxy.freeze(false);
    goes_on(&traffic).await;
    proxy.cut();
    goes_on(&traffic).await;
    assert!(cluster.nodes[2].is_running(), "it renewed in time:\n{}", cluster.nodes[2].log());
    traffic.check(&cluster).await;
}

#[tokio::test]
async fn a_node_that_does_not_reach_the_store_any_more_is_replaced_and_ends() {
    let (mut cluster, proxy) = with_its_own_way_to_the_store().await;
    let traffic = traffic(&cluster).await;
    traffic.hurt(2);
    proxy.freeze(true);
    let cut = Instant::now();
    let ended = cluster.nodes[2].take().finish(Duration::from_secs(45)).await;
    println!("it ended {:?} after the cut", cut.elapsed());
    assert_eq!(ended.code(), 3, "{ended:?}");
    goes_on(&traffic).await;
    cluster.settled().await;
    let silence = traffic.check(&cluster).await.silence_after("the store was out of one node's reach", cut);
    assert!(silence < SILENCE);
}

/// A cluster whose nodes reach each other over proxies, one before each.
async fn with_proxies_between() -> (Cluster, Vec<Proxy>) {
    let ports = free_ports::<3>();
    let mut proxies = Vec::new();
    for port in ports {
        proxies.push(Proxy::to(SocketAddr::from(([127, 0, 0, 1], port))).await);
    }
    let configure = |node: usize, builder: Builder| {
        let builder = builder.set("cluster.listen", format!("127.0.0.1:{}", ports[node]));
        builder.set("cluster.advertise", proxies[node].addr().to_string())
    };
    (three_with(Store::postgres().await, configure).await, proxies)
}

#[tokio::test]
async fn links_that_break_cost_nothing() {
    let (mut cluster, proxies) = with_proxies_between().await;
    let traffic = traffic(&cluster).await;
    for _ in 0..3 {
        for proxy in &proxies {
            proxy.cut();
            traffic.flow(Duration::from_millis(300)).await;
        }
    }
    goes_on(&traffic).await;
    for node in &mut cluster.nodes {
        assert!(node.is_running(), "the others heard it in time:\n{}", node.log());
    }
    traffic.check(&cluster).await;
}

#[tokio::test]
async fn nobody_reaches_anybody_for_a_while_and_nobody_dies_of_it() {
    let (mut cluster, proxies) = with_proxies_between().await;
    let traffic = traffic(&cluster).await;
    proxies.iter().for_each(|proxy| proxy.freeze(true));
    traffic.flow(Duration::from_secs(8)).await;
    proxies.iter().for_each(|proxy| proxy.freeze(false));
    goes_on(&traffic).await;
    for node in &mut cluster.nodes {
        assert!(node.is_running(), "nobody hears more than half, and all renew:\n{}", node.log());
    }
    traffic.check(&cluster).await;
}

#[tokio::test]
async fn one_node_is_out_of_the_others_reach_for_a_while() {
    let (mut cluster, proxies) = with_proxies_between().await;
    let traffic = traffic(&cluster).await;
    traffic.hurt(2);
    proxies[2].freeze(true);
    traffic.flow(Duration::from_secs(4)).await;
    proxies[2].freeze(false);
    goes_on(&traffic).await;
    // It reaches the others: they may wait for it, or go on without it.
    if !cluster.nodes[2].is_running() {
        assert_eq!(cluster.nodes[2].ends().await, 3);
    }
    assert!(cluster.nodes[0].is_running() && cluster.nodes[1].is_running());
    cluster.settled().await;
    traffic.check(&cluster).await;
}

#[tokio::test]
async fn a_node_that_nobody_reaches_and_that_reaches_others_is_replaced_and_ends() {
    let (mut cluster, proxies) = with_proxies_between().await;
    let traffic = traffic(&cluster).await;
    traffic.hurt(2);
    proxies[2].freeze(true);
    let cut = Instant::now();
    let ended = cluster.nodes[2].take().finish(Duration::from_secs(45)).await;
    println!("it ended {:?} after the cut", cut.elapsed());
    assert_eq!(ended.code(), 3, "{ended:?}");
    goes_on(&traffic).await;
    cluster.settled().await;
    traffic.check(&cluster).await;
}
