//! Servers that are measured in turns in one go: one, the other, one, the other …
//!
//! Absolute figures of one machine say little; the ratio of two servers that met the same load within
//! the same minute says more. Both stand in the table.

pub mod durability;

mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::event::Durability;
use crate::kafka::Topic;
use crate::measure::{Load, RateArgs};
use crate::report::{self, Report};
use crate::workload::Users;

/// Partitions of the topic that each run gets.
const PARTITIONS: i32 = 12;
const SECRET: &str = "a-secret-for-load-tests-of-32-bytes-or-more";

/// What every comparison is told.
#[derive(Debug, clap::Args)]
struct CommonArgs {
    /// The product's binary
    #[arg(long, value_name = "BIN")]
    notifier: PathBuf,
    /// Kafka's bootstrap servers
    #[arg(long, env = "NOTIFIER_LOADTEST_BROKERS")]
    brokers: String,
    /// How often each is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Sessions, each of its own user
    #[arg(long, default_value_t = 10_000)]
    users: usize,
    /// Events of each backlog
    #[arg(long, default_value_t = 300_000)]
    events: u64,
    /// Size of each event's `data`
    #[arg(long, default_value_t = 512)]
    bytes: usize,
    /// Connects in progress at one time
    #[arg(long, default_value_t = 50)]
    concurrency: usize,
    #[command(flatten)]
    rate: RateArgs,
    /// How long the producer collects a batch, in milliseconds
    #[arg(long, default_value_t = 5)]
    linger_ms: u64,
    /// Writes every run's figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One server's figures of one round, by scenario.
struct Sample {
    server: &'static str,
    round: usize,
    reports: Vec<(&'static str, Report)>,
    /// Why the run ended early.
    error: Option<String>,
}

/// Measures each server in each round; `measure` gets the product's binary and adds to the sample.
fn in_turns(
    args: &CommonArgs,
    servers: &[&'static str],
    measure: impl Fn(&Path, &mut Sample) -> Result<()>,
) -> Result<Vec<Sample>> {
    // The children run in a directory of their own, where a relative path means something else.
    let notifier =
        fs::canonicalize(&args.notifier).with_context(|| format!("no binary at {}", args.notifier.display()))?;
    let mut samples = Vec::new();
    for round in 1..=args.rounds {
        for &server in servers {
            let mut sample = Sample { server, round, reports: Vec::new(), error: None };
            if let Err(error) = measure(&notifier, &mut sample) {
                let why = format!("{error:#}");
                eprintln!("round {round}, {server}: {why}");
                sample.error = Some(why);
            }
            samples.push(sample);
        }
    }
    Ok(samples)
}

/// Writes the figures where they are wanted, after the table.
///
/// # Errors
///
/// Also when a run failed or found a fault.
fn finish(args: &CommonArgs, samples: &[Sample]) -> Result<()> {
    if let Some(path) = &args.json {
        report::write_json(path, &samples.iter().map(Sample::json).collect())?;
    }
    match samples.iter().flat_map(Sample::faults).count() {
        0 => Ok(()),
        count => bail!("{count} faults: see below the table"),
    }
}

impl CommonArgs {
    /// Runs something with a topic of its own, which is deleted afterwards.
    fn on_fresh_topic<T>(&self, place: &str, run: impl FnOnce(&Topic) -> Result<T>) -> Result<T> {
        let name = format!("loadtest-{}-{place}", std::process::id());
        let topic = Topic { brokers: self.brokers.clone(), name, partitions: Vec::new() };
        topic.create(PARTITIONS)?;
        let result = run(&topic);
        // A few hundred MB a run: not left behind, whatever happened.
        let deleted = topic.delete();
        result.and_then(|result| deleted.map(|()| result))
    }

    /// What the scenarios send to a topic; what is durable is acknowledged.
    fn load(&self, topic: &Topic, users: Users, durability: Durability) -> Load {
        Load {
            topic: topic.clone(),
            users,
            bytes: self.bytes,
            durability,
            acknowledge: durability == Durability::Durable,
            linger: Duration::from_millis(self.linger_ms),
        }
    }

    fn title(&self) -> String {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        format!(
            "{} sessions, {} events of {} B, steady {}/s for {} s, {} rounds in turns; {cores} cores \
             shared by broker, clients and server, load average at the end {}",
            self.users,
            self.events,
            self.bytes,
            self.rate.rate,
            self.rate.seconds,
            self.rounds,
            load.split(' ').take(3).collect::<Vec<_>>().join(" ")
        )
    }
}

impl Sample {
    fn add(&mut self, scenario: &'static str, report: Report) {
        eprintln!("round {}, {}, {scenario}: {}", self.round, self.server, report.table());
        self.reports.push((scenario, report));
    }

    /// A figure of a scenario that ran without a fault.
    fn value(&self, scenario: &str, name: &str) -> Option<f64> {
        let (_, report) = self.reports.iter().find(|(key, _)| *key == scenario)?;
        report.faults().is_empty().then(|| report.get(name))?
    }

    fn faults(&self) -> impl Iterator<Item = String> + '_ {
        let place = format!("round {}, {}", self.round, self.server);
        let found = self
            .reports
            .iter()
            .flat_map(|(scenario, report)| report.faults().iter().map(move |fault| format!("{scenario}: {fault}")));
        found.chain(self.error.clone()).map(move |fault| format!("{place}, {fault}"))
    }

    fn json(&self) -> serde_json::Value {
        let reports: serde_json::Map<_, _> =
            self.reports.iter().map(|(scenario, report)| ((*scenario).to_owned(), report.json())).collect();
        serde_json::json!({
            "server": self.server, "round": self.round,
            "scenarios": reports, "error": self.error,
        })
    }
}
