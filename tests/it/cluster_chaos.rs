//! Random faults at random moments. The seed is printed; `NOTIFIER_CHAOS_SEED` runs that one again.
//!
//! A hundred of half a minute: `tests/run --long cluster_chaos::a_hundred`. Many that take minutes and have every kind of
//! fault: `NOTIFIER_CHAOS_SEEDS=100 tests/run --long cluster_chaos::cluster_chaos`

mod scene;
mod schedule;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    num::NonZero,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::runtime::Builder;

use self::{
    scene::Scene,
    schedule::{Fault, Length, Schedule, Strike},
};
#[cfg(feature = "mutants")]
use crate::harness::history::Fault as Broken;
use crate::harness::{history::Delay, node};

/// What each run of all tests has: together every kind of fault that there is time for, on three, four and five nodes.
const ALWAYS: [u64; 3] = [2, 35, 45];
/// How long one schedule may take with everything around it.
const RUN_MAX: Duration = Duration::from_secs(420);
/// What any delivery may take beyond what is promised: several clusters share two cores.
const MARGIN: Duration = Duration::from_secs(10);

/// The longest deliveries of each kind of fault, one for each time that it struck.
type Longest = BTreeMap<String, Vec<Duration>>;

/// The faults of a schedule, all of them, one after the other; when each began.
async fn damage(schedule: &Schedule, configure: impl Fn(node::Builder) -> node::Builder) -> (Scene, Vec<Instant>) {
    let mut scene = Scene::of(schedule, configure).await;
    let began = Instant::now();
    let mut moments = Vec::new();
    for strike in &schedule.strikes {
        scene.traffic.flow(strike.pause).await;
        let Strike { fault, node, other, .. } = strike;
        println!("{}: {:5.1} s: {fault:?} of node {node} ({other})", schedule.seed, began.elapsed().as_secs_f64());
        moments.push(Instant::now());
        scene.strike(*strike).await;
    }
    scene.traffic.flow(Duration::from_secs(1)).await;
    scene.cluster.settled().await;
    (scene, moments)
}

/// Then everything must be as it was promised, and in time.
async fn run(seed: u64, length: Length) -> Longest {
    let schedule = Schedule::new(seed, length);
    let Schedule { nodes, has_ways, has_broker, has_server, idle_after, .. } = schedule;
    println!(
        "NOTIFIER_CHAOS_SEED={seed}: {nodes} nodes, ways {has_ways}, broker {has_broker}, server {has_server}, \
         idle {idle_after:?}"
    );
    let began = Instant::now();
    let running = async {
        let (mut scene, moments) = damage(&schedule, |builder| builder).await;
        scene.cluster.all_run("one has ended by itself");
        if idle_after.is_some() {
            scene.somebody_wakes().await;
        }
        let checked = scene.traffic.check(&scene.cluster).await;
        in_time(&schedule, &moments, &checked.history().delays())
    };
    let longest = tokio::time::timeout(RUN_MAX, running).await.expect("a schedule ends in time");
    println!("seed {seed}: nothing found, {:.0} s", began.elapsed().as_secs_f64());
    longest
}

/// Whoever stays connected gets what is written within what is promised of the faults that it meets on its way.
fn in_time(schedule: &Schedule, moments: &[Instant], delays: &[Delay]) -> Longest {
    let mut longest: Vec<_> = schedule.strikes.iter().map(|_| Duration::ZERO).collect();
    let mut late = Vec::new();
    let latest = |at| moments.partition_point(|moment| *moment <= at).checked_sub(1);
    for delay in delays {
        let (Some(first), Some(last)) = (latest(delay.written), latest(delay.seen)) else { continue };
        // That node was hit itself.
        if delay.closed.is_some_and(|closed| latest(closed) <= Some(last)) {
            continue;
        }
        longest[first] = longest[first].max(delay.took());
        let promises = schedule.strikes[first..=last].iter().map(|strike| strike.fault.promise(schedule.has_ways));
        // Of some nothing is promised.
        let promised = promises.sum::<Option<Duration>>();
        if promised.is_some_and(|promised| delay.took() > promised + MARGIN) {
            let (client, n, took) = (delay.client, delay.n, delay.took());
            let fault = schedule.strikes[first].fault;
            late.push(format!("client {client} got {n} {took:?} after it was written, during or after {fault:?}"));
        }
    }
    let mut kinds = Longest::new();
    for (strike, longest) in schedule.strikes.iter().zip(longest) {
        println!("{}: {:?}: {:.2} s at the most", schedule.seed, strike.fault, longest.as_secs_f64());
        kinds.entry(strike.fault.kind()).or_default().push(longest);
    }
    assert!(
        late.is_empty(),
        "{} deliveries came later than is promised: {:#?}",
        late.len(),
        &late[..late.len().min(10)]
    );
    kinds
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn seeds(default: u64) -> Vec<u64> {
    if let Some(seed) = number("NOTIFIER_CHAOS_SEED") {
        return vec![seed];
    }
    let first = rand::random::<u32>().into();
    (first..first + number("NOTIFIER_CHAOS_SEEDS").unwrap_or(default)).collect()
}

/// Goes through schedules, a few at a time: each of them mostly waits.
fn each<T: Send>(seeds: Vec<u64>, run: impl AsyncFn(u64) -> T + Sync) -> Vec<(u64, thread::Result<T>)> {
    let seeds = Mutex::new(seeds.into_iter());
    let next = || seeds.lock().next();
    let one = |seed| {
        // What nodes and clients do goes on while the script does something that blocks.
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        runtime.block_on(run(seed))
    };
    let work = || {
        let seeds = std::iter::from_fn(next);
        seeds.map(|seed| (seed, catch_unwind(AssertUnwindSafe(|| one(seed))))).collect::<Vec<_>>()
    };
    let default = || 2 * thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let at_once = number("NOTIFIER_CHAOS_AT_ONCE").unwrap_or_else(default);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("panics are caught")).collect()
    })
}

fn all(seeds: Vec<u64>, length: Length) {
    let (mut failed, mut longest) = (Vec::new(), Longest::new());
    for (seed, run) in each(seeds, async |seed| run(seed, length).await) {
        let Ok(kinds) = run else {
            failed.push(seed);
            continue;
        };
        kinds.into_iter().for_each(|(kind, took)| longest.entry(kind).or_default().extend(took));
    }
    println!("the longest delivery to who stayed connected, by fault: how often it struck, the median, the most");
    for (kind, mut took) in longest {
        took.sort_unstable();
        println!("  {kind}: {}, {:.2?}, {:.2?}", took.len(), took[took.len() / 2], took[took.len() - 1]);
    }
    assert!(failed.is_empty(), "something was found with the seeds {failed:?}");
}

#[test]
fn three_schedules_of_half_a_minute() {
    all(ALWAYS.into(), Length::Short);
}

#[test]
fn the_schedules_that_always_run_have_every_kind_of_fault_on_three_to_five_nodes() {
    let schedules = ALWAYS.map(|seed| Schedule::new(seed, Length::Short));
    let nodes: BTreeSet<usize> = schedules.iter().map(|schedule| schedule.nodes).collect();
    assert_eq!(nodes, BTreeSet::from([3, 4, 5]));
    let kinds: BTreeSet<String> =
        schedules.iter().flat_map(|schedule| &schedule.strikes).map(|strike| strike.fault.kind()).collect();
    assert_eq!(kinds.len(), Schedule::KINDS_SHORT, "{kinds:?}");
    assert!(schedules.iter().any(|schedule| schedule.idle_after.is_some()), "somebody sleeps");
    assert!(schedules.iter().any(|schedule| !schedule.has_ways), "somebody's host refuses");
}

/// A strike every 100 s, and a delivery of something that was written 10 s after the first one.
fn delivered_after(seconds: u64, closed: Option<u64>) -> Longest {
    let mut schedule = Schedule::new(ALWAYS[0], Length::Short);
    schedule.strikes.truncate(2);
    schedule.strikes[0].fault = Fault::Restart;
    schedule.strikes[1].fault = Fault::Freeze(Duration::from_secs(1));
    let began = Instant::now();
    let at = |seconds| began + Duration::from_secs(seconds);
    let delay = Delay { client: 0, n: 0, written: at(10), seen: at(10 + seconds), closed: closed.map(at) };
    in_time(&schedule, &[at(0), at(100)], &[delay])
}

#[test]
fn what_is_late_is_found_only_beyond_what_is_promised_of_all_faults_on_the_way() {
    let is_late = |seconds, closed| catch_unwind(|| delivered_after(seconds, closed)).is_err();
    assert!(!is_late(14, None) && is_late(16, None));
    assert!(!is_late(89, Some(99)), "whoever was hit itself is promised nothing");
    assert!(is_late(89, Some(101)));
    assert_eq!(delivered_after(14, None)["Restart"], [Duration::from_secs(14)]);
}

#[test]
#[ignore = "takes minutes: NOTIFIER_CHAOS_SEEDS says how many schedules, NOTIFIER_CHAOS_SEED which one alone"]
fn cluster_chaos() {
    all(seeds(5), Length::Long);
}

#[test]
#[ignore = "takes half an hour"]
fn a_hundred_schedules_of_half_a_minute() {
    all(seeds(100), Length::Short);
}

/// What a schedule finds in nodes that make a mistake on purpose, or none.
#[cfg(feature = "mutants")]
async fn found(seed: u64, mutant: Option<&str>) -> Vec<Broken> {
    let schedule = Schedule::for_mutants(seed);
    let damaged = damage(&schedule, |builder| match mutant {
        Some(mutant) => builder.env("NOTIFIER_MUTANT", mutant),
        None => builder,
    });
    let (Scene { cluster, traffic, .. }, _) =
        tokio::time::timeout(RUN_MAX, damaged).await.expect("a schedule ends in time");
    let history = traffic.end(&cluster, Duration::from_secs(10)).await;
    history.faults()
}

/// Each schedule finds the mistake, by what it breaks. Nodes with it have to be built: `tests/run --long` does.
#[cfg(feature = "mutants")]
fn always_found(mutant: &str, is_it: impl Fn(&Broken) -> bool) {
    let mut missed = Vec::new();
    for (seed, found) in each(seeds(10), async |seed| found(seed, Some(mutant)).await) {
        let all = found.expect("a schedule ends");
        let its: Vec<_> = all.iter().filter(|broken| is_it(broken)).collect();
        println!(
            "{mutant}, seed {seed}: {} of {} broken promises are its, first {:?}",
            its.len(),
            all.len(),
            its.first()
        );
        if its.is_empty() {
            missed.push(seed);
        }
    }
    assert!(missed.is_empty(), "{mutant} is not found with the seeds {missed:?}");
}

#[cfg(feature = "mutants")]
#[test]
#[ignore = "takes minutes: NOTIFIER_CHAOS_SEEDS says how many schedules"]
fn mutant_none_is_found_where_there_is_none() {
    for (seed, found) in each(seeds(10), async |seed| found(seed, None).await) {
        let found = found.expect("a schedule ends");
        assert!(found.is_empty(), "seed {seed}: {} promises are broken, first {:?}", found.len(), found.first());
    }
}

#[cfg(feature = "mutants")]
#[test]
#[ignore = "takes minutes: NOTIFIER_CHAOS_SEEDS says how many schedules"]
fn mutant_that_settles_before_the_commit_is_found() {
    always_found("settles-early", |broken| matches!(broken, Broken::NotStored { .. }));
}

#[cfg(feature = "mutants")]
#[test]
#[ignore = "takes minutes: NOTIFIER_CHAOS_SEEDS says how many schedules"]
fn mutant_without_a_fence_is_found() {
    always_found("unfenced", |broken| matches!(broken, Broken::Stranger { .. }));
}

#[cfg(feature = "mutants")]
#[test]
#[ignore = "takes minutes: NOTIFIER_CHAOS_SEEDS says how many schedules"]
fn mutant_that_skips_a_number_when_a_connection_comes_back_is_found() {
    always_found("skips-one", |broken| matches!(broken, Broken::Skipped { .. }));
}

#[cfg(feature = "mutants")]
#[test]
#[ignore = "takes minutes: NOTIFIER_CHAOS_SEEDS says how many schedules"]
fn mutant_that_takes_later_events_after_a_loss_is_found() {
    always_found("takes-later", |broken| matches!(broken, Broken::StoredOutOfOrder { .. }));
}
