//! What the nodes stand on is away, for all of them or for one: the store, Kafka.

use std::future::Future;

use super::*;
use crate::harness::{
    broker::Broker,
    postgres::{PrivatePostgres, Stop},
    proxy::Proxy,
    wait::eventually,
    ways::{self, Pair},
};

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
    cluster.all_run("a store that was away for 3 s ends nobody");
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
    let (proxy, detour) = ways::to_store(&store).await;
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
    is_replaced(&mut cluster, traffic, LONGEST_SILENCE, "the store was out of one node's reach").await;
}

/// The primary ends as in a crash, and its synchronous standby takes its place under the same name.
#[tokio::test]
async fn the_store_fails_over_to_a_synchronous_standby() {
    let mut server = Pair::started().await;
    let mut cluster = three_with(Store::on(server.url()).await, |_, builder| builder).await;
    let traffic = traffic(&cluster).await;
    server.primary.stop(Stop::Immediate).await;
    let failed = Instant::now();
    traffic.flow(CALM).await;
    server.fail_over().await;
    goes_on(&traffic).await;
    cluster.all_run("a standby that has everything ends nobody");
    cluster.settled().await;
    traffic.check(&cluster).await.is_silent_for_less_than(LONGEST_SILENCE, "the store failed over", failed);
}

/// Whoever gives partitions away does not forget that the store has not heard of it.
#[tokio::test]
async fn partitions_move_when_the_store_has_taken_no_positions_for_a_while() {
    let mut cluster = three().await;
    let traffic = traffic(&cluster).await;
    let locked = cluster.store.lock("partition_claims").await;
    let node = cluster.builder().start_unready();
    cluster.nodes.push(node);
    // Longer than the last positions of a partition are tried.
    traffic.flow(Duration::from_secs(15)).await;
    drop(locked);
    cluster.nodes[3].ready().await;
    goes_on(&traffic).await;
    cluster.settled().await;
    traffic.check(&cluster).await;
}

/// A cluster on a broker of its own, to which the last node has its own way.
async fn with_its_own_way_to_kafka() -> (Cluster, Broker, Proxy) {
    let (broker, proxy) = ways::to_broker().await;
    let feed = Feed::on(&broker.kafka(), PARTITIONS).await;
    let configure = |node, builder: Builder| {
        if node == 2 { builder.set("kafka.brokers", proxy.addr().to_string()) } else { builder }
    };
    (three_on(feed, Store::postgres().await, configure).await, broker, proxy)
}

/// Its partitions wait, and it says so; its users and clients are served as before.
#[tokio::test]
async fn one_node_does_not_reach_kafka_for_a_while() {
    let (mut cluster, _broker, proxy) = with_its_own_way_to_kafka().await;
    let traffic = traffic(&cluster).await;
    proxy.freeze(true);
    cluster.nodes[2].unready("kafka").await;
    traffic.flow(CALM).await;
    for node in &cluster.nodes[..2] {
        node.ready().await;
    }
    proxy.freeze(false);
    cluster.nodes[2].ready().await;
    goes_on(&traffic).await;
    cluster.all_run("who does not reach Kafka lives");
    traffic.check(&cluster).await;
}

/// Who cannot read takes nothing from those who can.
#[tokio::test]
async fn a_newcomer_that_does_not_reach_kafka_waits_and_the_others_read_on() {
    let (mut cluster, _broker, proxy) = with_its_own_way_to_kafka().await;
    let traffic = traffic(&cluster).await;
    traffic.hurt(2);
    let leaving = cluster.nodes[2].take();
    leaving.signal("TERM");
    leaving.finish(Duration::from_secs(60)).await.ok();
    let taken = cluster.store.takes_of("n2").await;
    proxy.freeze(true);
    cluster.nodes[2].start_again();
    eventually("links to both others", async || {
        (cluster.nodes[2].log().matches(r#""message":"link""#).count() == 2).then_some(())
    })
    .await;
    goes_on(&traffic).await;
    assert_eq!(cluster.store.takes_of("n2").await, taken, "{}", cluster.nodes[2].log());
    cluster.nodes[2].unready("joining").await;
    proxy.freeze(false);
    cluster.nodes[2].ready().await;
    traffic.well(2);
    cluster.settled().await;
    assert!(cluster.store.takes_of("n2").await > taken, "then it has its share");
    goes_on(&traffic).await;
    traffic.check(&cluster).await;
}

/// Whenever one of three is away, the two others lead its partitions.
#[tokio::test]
async fn each_of_three_brokers_is_restarted() {
    let mut brokers = Broker::three().await;
    let feed = Feed::on(&brokers[0].kafka(), PARTITIONS).await;
    let mut cluster = Cluster::start_on(feed, 3, Store::postgres().await, |_, builder| builder).await;
    cluster.store.watch_writers().await;
    let traffic = Traffic::start_busy(&cluster, USERS).await;
    traffic.flow(CALM).await;
    for (at, broker) in brokers.iter_mut().enumerate() {
        let away = Instant::now();
        // In good order, or not.
        if at == 1 {
            broker.stop().await;
        } else {
            broker.kill();
        }
        traffic.flows().await;
        println!("without broker {}: everything came, within {:?}", at + 1, away.elapsed());
        broker.start().await;
    }
    goes_on(&traffic).await;
    cluster.all_run("a broker that is away ends nobody");
    cluster.settled().await;
    traffic.check(&cluster).await;
}
