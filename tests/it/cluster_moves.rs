//! What moves when a node joins or leaves goes in batches, so that nearly all users and partitions are served at any
//! moment. The database itself notes how many nobody has.

use std::time::{Duration, Instant};

use crate::harness::{cluster::Cluster, eventually};

const SHARDS: i64 = 1024;
const PARTITIONS: i32 = 64;
/// A sixteenth of each.
const AT_ONCE: [(&str, i64); 2] = [("shard_claims", 64), ("partition_claims", 4)];
/// What nobody has is taken in greater batches.
const TAKEN_AT_ONCE: u64 = 256;

/// Waits until members that are active have all, and nothing else is to move.
async fn settled(cluster: &mut Cluster, nodes: i64) {
    cluster.settled().await;
    eventually("active members read all partitions, each its share", async || {
        let shared = "members m join partition_claims c on c.owner = m.incarnation where m.state = 1";
        let (read, readers) = (cluster.store.count(shared).await, format!("(select distinct c.owner from {shared}) r"));
        (read == i64::from(PARTITIONS) && cluster.store.count(&readers).await == nodes).then_some(())
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
    settled(&mut cluster, 2).await;
    let log = cluster.nodes[0].log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let taken: Vec<u64> =
        lines.filter(|line| line["message"] == "shards taken").filter_map(|line| line["shards"].as_u64()).collect();
    assert!(taken.iter().sum::<u64>() >= SHARDS.unsigned_abs(), "the first node takes all: {taken:?}");
    assert!(taken.iter().all(|shards| *shards <= TAKEN_AT_ONCE), "{taken:?}");

    cluster.store.watch_moves().await;
    let began = Instant::now();
    cluster.add().await;
    settled(&mut cluster, 3).await;
    moved_in_batches(&cluster, "a node joined", began).await;

    let began = Instant::now();
    cluster.nodes[0].process().signal("TERM");
    let left = cluster.nodes[0].take().finish(Duration::from_secs(40)).await;
    assert_eq!(left.code(), 0, "{left:?}");
    assert!(!left.stderr.contains("in time"), "it had the time to give all away: {}", left.stderr);
    settled(&mut cluster, 2).await;
    moved_in_batches(&cluster, "a node left", began).await;
}
