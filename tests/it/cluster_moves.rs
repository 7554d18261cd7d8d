//! What moves when a node joins or leaves goes in batches, so that nearly all users and partitions are served at any
//! moment. The database itself notes how many nobody has.

use std::{
    num::NonZeroU8,
    time::{Duration, Instant},
};

use notifier::placement::assignment::{self, Candidate};

use crate::harness::{cluster::Cluster, eventually, history::Delay, traffic::Traffic};

const USERS: usize = 24;
const SHARDS: i64 = 1024;
const PARTITIONS: i32 = 48;
/// A sixteenth of each.
const AT_ONCE: [(&str, i64); 2] = [("shard_claims", 64), ("partition_claims", 3)];
/// What nobody has is taken in greater batches.
const TAKEN_AT_ONCE: u64 = 256;
/// How long an event may take while its user or its partition moves. A tenth of that is enough on an idle machine.
const DELAY: Duration = Duration::from_secs(8);

/// Waits until each of the active nodes has what it should, and nothing else.
async fn settled(cluster: &mut Cluster, nodes: &[&str]) {
    cluster.settled().await;
    let candidates: Vec<_> = nodes.iter().map(|id| Candidate { id, weight: NonZeroU8::MIN }).collect();
    let owners = assignment::partitions(&candidates, &cluster.feed.topic, PARTITIONS.unsigned_abs());
    eventually("all partitions are read, by the nodes that should", async || {
        for (at, node) in nodes.iter().enumerate() {
            let share = owners.iter().filter(|owner| **owner == at).count();
            let read = format!(
                "members m join partition_claims c on c.owner = m.incarnation where m.state = 1 and m.node_id = '{node}'"
            );
            if cluster.store.count(&read).await != i64::try_from(share).expect("a number of partitions") {
                return None;
            }
        }
        Some(())
    })
    .await;
}

async fn moved_in_batches(cluster: &Cluster, what: &str, began: Instant) {
    for (claims, at_once) in AT_ONCE {
        let (released, most) = cluster.store.moves(claims).await;
        println!("{what}: {released} {claims} moved, {most} at once at the most; all in {:?}", began.elapsed());
        assert!(released > 2 * at_once, "{what}: only {released} {claims} have moved");
        assert!(most <= at_once, "{what}: {most} {claims} were nobody's at once");
    }
}

#[tokio::test]
async fn a_node_that_joins_and_one_that_leaves_move_one_batch_at_a_time() {
    let mut cluster = Cluster::start_divided(2, (SHARDS, PARTITIONS), |builder| builder).await;
    let traffic = Traffic::start(&cluster, USERS).await;
    settled(&mut cluster, &["n0", "n1"]).await;
    let log = cluster.nodes[0].log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let taken: Vec<u64> =
        lines.filter(|line| line["message"] == "shards taken").filter_map(|line| line["shards"].as_u64()).collect();
    assert!(taken.iter().sum::<u64>() >= SHARDS.unsigned_abs(), "the first node takes all: {taken:?}");
    assert!(taken.iter().all(|shards| *shards <= TAKEN_AT_ONCE), "{taken:?}");

    cluster.store.watch_moves().await;
    cluster.store.watch_writers().await;
    let began = Instant::now();
    cluster.add().await;
    traffic.joined(&cluster.nodes[2]);
    settled(&mut cluster, &["n0", "n1", "n2"]).await;
    moved_in_batches(&cluster, "a node joined", began).await;

    traffic.hurt(0);
    let began = Instant::now();
    cluster.nodes[0].process().signal("TERM");
    let left = cluster.nodes[0].take().finish(Duration::from_secs(40)).await;
    assert_eq!(left.code(), 0, "{left:?}");
    assert!(!left.stderr.contains("in time"), "it had the time to give all away: {}", left.stderr);
    settled(&mut cluster, &["n1", "n2"]).await;
    moved_in_batches(&cluster, "a node left", began).await;

    let delays = traffic.check(&cluster).await.history().delays();
    let longest = delays.iter().filter(|delay| delay.closed.is_none()).map(Delay::took).max();
    println!("the longest that an event took: {longest:?}");
    assert!(longest.expect("events came") < DELAY, "{longest:?}");
}
