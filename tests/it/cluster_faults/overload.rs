//! More comes than can be done: everything waits where it has to, in bounds, and nothing is lost.

use super::*;
use crate::harness::{
    metrics::Metrics,
    traffic::{LIGHT, Load},
    wait::eventually_within,
};

/// As fast as the broker takes it.
const FLOOD: Load = Load { every: Duration::from_millis(1), users: USERS, each: 400, ..LIGHT };
/// `kafka.in_flight_events` of each node.
const IN_FLIGHT: f64 = 4096.0;
/// What a node may grow by, in bytes: its buffers (32 MiB in flight, 4 MiB a partition, links, the store's groups), and
/// what the allocator holds beside them.
const GROWTH: f64 = 400e6;

fn resident(metrics: &Metrics) -> f64 {
    metrics.sum("process_resident_memory_bytes")
}

/// Floods the cluster for so long, and waits until everybody has everything.
async fn overload(time: Duration) {
    // Without notes of who writes: they would cost as much as the rows.
    let cluster = Cluster::start(3, PARTITIONS).await;
    let mut before = Vec::new();
    for node in &cluster.nodes {
        before.push(resident(&node.metrics().await));
    }
    let traffic = Traffic::start_with(&cluster, USERS, FLOOD).await;
    let began = Instant::now();
    let mut grown: f64 = 0.0;
    while began.elapsed() < time {
        traffic.flow(Duration::from_millis(250)).await;
        for (node, before) in cluster.nodes.iter().zip(&before) {
            let metrics = node.metrics().await;
            let unsettled = metrics.sum("notifier_unsettled_events");
            assert!(unsettled <= IN_FLIGHT, "{unsettled} events under way");
            grown = grown.max(resident(&metrics) - before);
        }
    }
    let (written, delivered) = traffic.so_far();
    let rate = |count: usize| count as f64 / began.elapsed().as_secs_f64();
    println!(
        "written {:.0}/s, of which the slowest client had {:.0} %; memory grew by {:.0} MB",
        rate(written),
        100.0 * delivered,
        grown / 1e6
    );
    traffic.pause();
    let patience = 30 * time + Duration::from_secs(60);
    eventually_within(patience, "everything is delivered", async || {
        for (node, before) in cluster.nodes.iter().zip(&before) {
            grown = grown.max(resident(&node.metrics().await) - before);
        }
        traffic.is_complete().then_some(())
    })
    .await;
    println!("{written} events took {:?}; memory grew by {:.0} MB", began.elapsed(), grown / 1e6);
    assert!(grown < GROWTH, "{grown} bytes more");
    traffic.check(&cluster).await;
}

#[tokio::test]
async fn more_than_can_be_done_for_a_moment_waits_in_bounds() {
    overload(Duration::from_secs(1)).await;
}

#[tokio::test]
#[ignore = "takes minutes: a minute's flood has to be delivered"]
async fn more_than_can_be_done_for_a_minute_waits_in_bounds() {
    overload(Duration::from_secs(60)).await;
}
