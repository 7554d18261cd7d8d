//! What may happen to a cluster, one thing at a time, under light traffic: nothing that was accepted is lost, nothing
//! comes twice or out of order on a connection, and whoever is connected to a good node stays connected.

mod alone;
mod clocks;
mod crashes;
mod drains;
mod links;
mod overload;
mod services;
mod strangers;

use std::time::{Duration, Instant};

use crate::harness::{
    Feed, Store, cluster::Cluster, history::History, node::Builder, postgres::execute, traffic::Traffic,
};

const USERS: usize = 24;
const PARTITIONS: i32 = 6;

/// Before anything happens, and before the traffic ends.
const CALM: Duration = Duration::from_secs(1);
/// For a machine that runs random schedules beside this, and since a user gets something three times a second only.
const MARGIN: Duration = Duration::from_secs(6);
/// How long users of a killed node may hear nothing: 2 s are promised where most of the others see it.
const SILENCE: Duration = Duration::from_secs(2).saturating_add(MARGIN);
/// 5 s are promised where a node does not answer, and to the one that is left of several whose hosts say that nothing
/// listens there.
const LONG_SILENCE: Duration = Duration::from_secs(5).saturating_add(MARGIN);
/// 15 s are promised when whoever takes over has only the store's word for it. The same where no number is promised: for
/// another way to a node that cannot be reached, and while the store fails over.
const LONGEST_SILENCE: Duration = Duration::from_secs(15);
/// A node that finds itself dead ends within 3 s; the rest is for a busy machine.
const END: Duration = Duration::from_secs(5);

async fn three() -> Cluster {
    three_with(Store::postgres().await, |_, builder| builder).await
}

async fn three_with(store: Store, configure: impl Fn(usize, Builder) -> Builder) -> Cluster {
    three_on(Feed::new(PARTITIONS).await, store, configure).await
}

/// At its end each script looks whether only owners have written.
async fn three_on(feed: Feed, store: Store, configure: impl Fn(usize, Builder) -> Builder) -> Cluster {
    let cluster = Cluster::start_on(feed, 3, store, configure).await;
    cluster.store.watch_writers().await;
    cluster
}

/// The same for a script whose traffic is its own.
async fn only_owners_wrote(cluster: &Cluster) {
    let history = History { writers: cluster.store.writers().await, ..History::default() };
    assert_eq!(history.faults(), []);
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

/// The last node, which was cut off just now, ends, and the others go on in its place.
async fn is_replaced(cluster: &mut Cluster, traffic: Traffic, bound: Duration, what: &str) {
    let cut = Instant::now();
    let ended = cluster.nodes[2].take().finish(Duration::from_secs(45)).await;
    println!("it ended {:?} after the cut", cut.elapsed());
    assert_eq!(ended.code(), 3, "{ended:?}");
    goes_on(&traffic).await;
    cluster.settled().await;
    traffic.check(cluster).await.is_silent_for_less_than(bound, what, cut);
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
    traffic.check(&cluster).await.is_silent_for_less_than(SILENCE, "a node was killed", killed);
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
    traffic.check(&cluster).await.is_silent_for_less_than(LONG_SILENCE, "two nodes were killed", killed);
}

#[tokio::test]
async fn a_node_that_stands_still_for_a_second_is_not_noticed() {
    let mut cluster = three().await;
    let traffic = traffic(&cluster).await;
    for node in [0, 1, 2] {
        cluster.nodes[node].process().freeze(Duration::from_secs(1)).await;
        traffic.flows().await;
    }
    cluster.all_run("declared dead, and renewed in time");
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
    traffic.check(&cluster).await.is_silent_for_less_than(LONG_SILENCE, "a node stood still", frozen);
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
    let killed = Instant::now();
    cluster.nodes[1].kill();
    goes_on(&traffic).await;
    cluster.settled().await;
    traffic.check(&cluster).await.is_silent_for_less_than(SILENCE, "a node was killed while it drained", killed);
}

#[tokio::test]
async fn a_node_that_is_killed_comes_back_at_once_under_its_name() {
    let mut cluster = three().await;
    let traffic = traffic(&cluster).await;
    traffic.hurt(1);
    let killed = Instant::now();
    cluster.nodes[1].kill();
    cluster.nodes[1].start_again();
    cluster.nodes[1].ready().await;
    traffic.well(1);
    goes_on(&traffic).await;
    cluster.settled().await;
    traffic.check(&cluster).await.is_silent_for_less_than(SILENCE, "a node was killed and came back", killed);
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

/// It waits for the claims of a node that has died, and another node takes all of them before it.
#[tokio::test]
async fn one_joins_and_waits_for_claims_that_another_takes() {
    let mut cluster = three().await;
    let traffic = traffic(&cluster).await;
    let mut locked = cluster.store.lock("shard_claims").await;
    traffic.hurt(2);
    cluster.nodes[2].kill();
    let newcomer = cluster.builder().start_unready();
    cluster.nodes.push(newcomer);
    cluster.store.waits_to_take("n3").await;
    // What a take of the other one would do, had it come first.
    let take = "update shard_claims set epoch = epoch + 1, \
                owner = (select incarnation from members where node_id = 'n1' and state = 1) \
                where owner = (select incarnation from members where node_id = 'n2'); commit";
    execute(&mut locked, take).await;
    cluster.nodes[3].ready().await;
    goes_on(&traffic).await;
    for node in [0, 1, 3] {
        assert!(cluster.nodes[node].is_running(), "{}", cluster.nodes[node].log());
    }
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
