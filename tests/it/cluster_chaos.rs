//! Random faults at random moments. The seed is printed; `NOTIFIER_CHAOS_SEED` runs that one again.
//!
//! Many runs: `NOTIFIER_CHAOS_SEEDS=100 cargo test --release --test it --features faults -- --ignored --nocapture chaos`

use std::{
    env,
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::harness::{Store, cluster::Cluster, process::Process, traffic::Traffic};

const NODES: usize = 3;
const USERS: usize = 24;
/// How long a node that drains may take.
const DRAIN: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// SIGKILL, and it starts again so much later.
    Kill(Duration),
    /// It stands still for a second.
    Freeze,
    /// SIGTERM, and it starts again when it has ended.
    Restart,
    /// All connections to the store end.
    CutStore,
}

struct Schedule(StdRng);

impl Schedule {
    fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    fn pause(&mut self) -> Duration {
        Duration::from_millis(self.0.random_range(0..2500))
    }

    fn next(&mut self) -> (Fault, usize) {
        let fault = match self.0.random_range(0..8) {
            0..3 => Fault::Kill(Duration::from_millis(self.0.random_range(0..2000))),
            3 | 4 => Fault::Freeze,
            5 | 6 => Fault::Restart,
            _ => Fault::CutStore,
        };
        (fault, self.0.random_range(0..NODES))
    }
}

async fn strike(cluster: &mut Cluster, traffic: &Traffic, (fault, node): (Fault, usize)) {
    let hit = &mut cluster.nodes[node];
    match fault {
        Fault::CutStore => cluster.store.cut().await,
        Fault::Freeze => hit.process().freeze(Duration::from_secs(1)).await,
        Fault::Kill(pause) => {
            traffic.hurt(node);
            hit.kill();
            tokio::time::sleep(pause).await;
            hit.start_again();
            hit.ready().await;
            traffic.well(node);
        }
        Fault::Restart => {
            traffic.hurt(node);
            let process: Process = hit.take();
            process.signal("TERM");
            process.finish(DRAIN).await.ok();
            hit.start_again();
            hit.ready().await;
            traffic.well(node);
        }
    }
}

/// Faults for so long, one after the other; then everything must be as it was promised.
async fn run(seed: u64, time: Duration) {
    println!("NOTIFIER_CHAOS_SEED={seed}");
    let mut schedule = Schedule::new(seed);
    let mut cluster = Cluster::start_with(NODES, 6, Store::postgres().await, |_, builder| builder).await;
    let traffic = Traffic::start_busy(&cluster, USERS).await;
    let began = Instant::now();
    while began.elapsed() < time {
        traffic.flow(schedule.pause()).await;
        let next = schedule.next();
        println!("{:5.1} s: {next:?}", began.elapsed().as_secs_f64());
        strike(&mut cluster, &traffic, next).await;
    }
    for node in &mut cluster.nodes {
        assert!(node.is_running(), "one has ended by itself:\n{}", node.log());
    }
    cluster.settled().await;
    traffic.check(&cluster).await;
}

#[tokio::test]
async fn chaos_of_one_kind() {
    run(1, Duration::from_secs(15)).await;
}

#[tokio::test]
async fn chaos_of_another_kind() {
    run(2, Duration::from_secs(15)).await;
}

#[tokio::test]
#[ignore = "takes minutes: NOTIFIER_CHAOS_SEEDS says how many runs of 30 s, NOTIFIER_CHAOS_SEED which one alone"]
async fn cluster_chaos() {
    let number = |name| env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("NOTIFIER_CHAOS_SEED") {
        return run(seed, Duration::from_secs(30)).await;
    }
    let first = rand::random::<u32>().into();
    for seed in first..first + number("NOTIFIER_CHAOS_SEEDS").unwrap_or(5) {
        run(seed, Duration::from_secs(30)).await;
    }
}
