//! Random faults at random moments, every kind of them in each schedule. The seed is printed; `NOTIFIER_CHAOS_SEED` runs
//! that one again.
//!
//! Many runs: `NOTIFIER_CHAOS_SEEDS=100 tests/run --long cluster_chaos::cluster_chaos`

use std::{
    env,
    num::NonZero,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use tokio::runtime::Builder;

use crate::harness::{Store, cluster::Cluster, node, process::Process, traffic::Traffic};

const NODES: usize = 3;
const USERS: usize = 24;
/// How long a node that drains may take.
const DRAIN: Duration = Duration::from_secs(60);
/// How long a node that finds itself dead may take to end.
const END: Duration = Duration::from_secs(20);
/// So long that the others take what the frozen one had.
const TAKEN: Duration = Duration::from_secs(6);
/// Users whose actors crash, one after the other.
const CRASHES: usize = 4;
/// How long one schedule may take with everything around it.
const RUN_MAX: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// SIGKILL, and it starts again so much later.
    Kill(Duration),
    /// The store takes no rows for so long, and then a node is killed.
    KillBehindALock(Duration),
    /// It stands still for a second.
    Freeze,
    /// It stands still until others have taken its place.
    FreezeLong,
    /// SIGTERM, and it starts again when it has ended.
    Restart,
    /// All connections to the store end.
    CutStore,
    /// Actors of a few users crash, each twice in a burst of its events.
    Crash,
}

/// Each kind of fault, in a random order.
struct Schedule(StdRng);

impl Schedule {
    fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    fn pause(&mut self) -> Duration {
        Duration::from_millis(self.0.random_range(0..2000))
    }

    fn faults(&mut self) -> Vec<(Fault, usize)> {
        let mut kill = |most| Duration::from_millis(self.0.random_range(0..most));
        let mut faults = vec![
            Fault::Kill(kill(2000)),
            Fault::KillBehindALock(Duration::from_millis(2500) + kill(1000)),
            Fault::KillBehindALock(Duration::from_millis(2500) + kill(1000)),
            Fault::Freeze,
            Fault::FreezeLong,
            Fault::FreezeLong,
            Fault::Restart,
            Fault::CutStore,
            Fault::Crash,
            Fault::Crash,
        ];
        faults.shuffle(&mut self.0);
        faults.into_iter().map(|fault| (fault, self.0.random_range(0..NODES))).collect()
    }
}

async fn strike(cluster: &mut Cluster, traffic: &Traffic, (fault, node): (Fault, usize)) {
    let Cluster { nodes, store, .. } = cluster;
    let hit = &mut nodes[node];
    match fault {
        Fault::CutStore => store.cut().await,
        Fault::Freeze => hit.process().freeze(Duration::from_secs(1)).await,
        Fault::Crash => (0..CRASHES).for_each(|_| traffic.crash()),
        Fault::FreezeLong => {
            traffic.hurt(node);
            hit.process().freeze(TAKEN).await;
            // On a machine that stood still itself it may be alive.
            let until = Instant::now() + END;
            while hit.is_running() && Instant::now() < until {
                traffic.flow(Duration::from_millis(100)).await;
            }
            hit.kill();
            hit.start_again();
        }
        Fault::Kill(pause) => {
            traffic.hurt(node);
            hit.kill();
            traffic.flow(pause).await;
            hit.start_again();
        }
        Fault::KillBehindALock(time) => {
            let locked = store.lock("shard_claims").await;
            traffic.flow(time).await;
            traffic.hurt(node);
            hit.kill();
            drop(locked);
            hit.start_again();
        }
        Fault::Restart => {
            traffic.hurt(node);
            let process: Process = hit.take();
            process.signal("TERM");
            process.finish(DRAIN).await.ok();
            hit.start_again();
        }
    }
    hit.ready().await;
    traffic.well(node);
}

/// Faults, one after the other, for so long or until all have been there.
async fn damage(seed: u64, time: Duration, configure: impl Fn(node::Builder) -> node::Builder) -> (Cluster, Traffic) {
    let mut schedule = Schedule::new(seed);
    let mut cluster = Cluster::start_with(NODES, 6, Store::postgres().await, |_, builder| configure(builder)).await;
    cluster.store.watch_writers().await;
    let traffic = Traffic::start_busy(&cluster, USERS).await;
    let began = Instant::now();
    for next in schedule.faults() {
        traffic.flow(schedule.pause()).await;
        if began.elapsed() > time {
            break;
        }
        println!("{seed}: {:5.1} s: {next:?}", began.elapsed().as_secs_f64());
        strike(&mut cluster, &traffic, next).await;
    }
    traffic.flow(Duration::from_secs(1)).await;
    cluster.settled().await;
    (cluster, traffic)
}

/// Then everything must be as it was promised.
async fn run(seed: u64, time: Duration) {
    println!("NOTIFIER_CHAOS_SEED={seed}");
    let began = Instant::now();
    let running = async {
        let (mut cluster, traffic) = damage(seed, time, |builder| builder).await;
        cluster.all_run("one has ended by itself");
        traffic.check(&cluster).await;
    };
    tokio::time::timeout(RUN_MAX, running).await.expect("a schedule ends in time");
    println!("seed {seed}: nothing found, {:.0} s", began.elapsed().as_secs_f64());
}

#[tokio::test]
async fn chaos_of_one_kind() {
    run(1, Duration::from_secs(15)).await;
}

#[tokio::test]
async fn chaos_of_another_kind() {
    run(2, Duration::from_secs(15)).await;
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn seeds(default: u64) -> std::ops::Range<u64> {
    if let Some(seed) = number("NOTIFIER_CHAOS_SEED") {
        return seed..seed + 1;
    }
    let first = rand::random::<u32>().into();
    first..first + number("NOTIFIER_CHAOS_SEEDS").unwrap_or(default)
}

/// Goes through schedules, a few at a time: each of them mostly waits.
fn each<T: Send>(default: u64, run: impl AsyncFn(u64) -> T + Sync) -> Vec<(u64, thread::Result<T>)> {
    let seeds = Mutex::new(seeds(default));
    let next = || seeds.lock().next();
    let one = |seed| {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(run(seed))
    };
    let work = || {
        let seeds = std::iter::from_fn(next);
        seeds.map(|seed| (seed, catch_unwind(AssertUnwindSafe(|| one(seed))))).collect::<Vec<_>>()
    };
    let at_once = 2 * thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("panics are caught")).collect()
    })
}

#[test]
#[ignore = "takes minutes: NOTIFIER_CHAOS_SEEDS says how many schedules, NOTIFIER_CHAOS_SEED which one alone"]
fn cluster_chaos() {
    let runs = each(5, async |seed| run(seed, Duration::MAX).await);
    println!("{} schedules", runs.len());
    let failed: Vec<u64> = runs.into_iter().filter(|(_, run)| run.is_err()).map(|(seed, _)| seed).collect();
    assert!(failed.is_empty(), "something was found with the seeds {failed:?}");
}

#[cfg(feature = "mutants")]
/// What a schedule finds in nodes that make a mistake on purpose.
async fn found(seed: u64, mutant: &str) -> Vec<crate::harness::history::Fault> {
    let damaged = damage(seed, Duration::MAX, |builder| builder.env("NOTIFIER_MUTANT", mutant));
    let (cluster, traffic) = tokio::time::timeout(RUN_MAX, damaged).await.expect("a schedule ends in time");
    let history = traffic.end(&cluster, Duration::from_secs(10)).await;
    history.faults()
}

/// Each schedule finds the mistake. Nodes with it have to be built: `tests/run --long` does.
#[cfg(feature = "mutants")]
fn always_found(mutant: &str) {
    let mut missed = Vec::new();
    for (seed, found) in each(10, async |seed| found(seed, mutant).await) {
        let found = found.expect("a schedule ends");
        println!("{mutant}, seed {seed}: {} promises are broken, first {:?}", found.len(), found.first());
        if found.is_empty() {
            missed.push(seed);
        }
    }
    assert!(missed.is_empty(), "{mutant} is not found with the seeds {missed:?}");
}

#[cfg(feature = "mutants")]
#[test]
#[ignore = "takes minutes: NOTIFIER_CHAOS_SEEDS says how many schedules"]
fn mutant_that_settles_before_the_commit_is_found() {
    always_found("settles-early");
}

#[cfg(feature = "mutants")]
#[test]
#[ignore = "takes minutes: NOTIFIER_CHAOS_SEEDS says how many schedules"]
fn mutant_without_a_fence_is_found() {
    always_found("unfenced");
}

#[cfg(feature = "mutants")]
#[test]
#[ignore = "takes minutes: NOTIFIER_CHAOS_SEEDS says how many schedules"]
fn mutant_that_skips_a_number_when_a_connection_comes_back_is_found() {
    always_found("skips-one");
}

#[cfg(feature = "mutants")]
#[test]
#[ignore = "takes minutes: NOTIFIER_CHAOS_SEEDS says how many schedules"]
fn mutant_that_takes_later_events_after_a_loss_is_found() {
    always_found("takes-later");
}
