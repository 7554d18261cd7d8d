//! The bare server and the product, measured in turns in one go: floor, notifier, floor, notifier …
//!
//! Absolute figures of one machine say little; the ratio of two servers that met the same load within
//! the same minute says more. Both stand in the table.

mod server;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::event::Durability;
use crate::kafka::Topic;
use crate::measure::tokens;
use crate::measure::{IdleArgs, Load, RateArgs, backlog, check_descriptors, connect, idle, steady};
use crate::report::{self, Report};
use server::{Kind, Server};

/// Partitions of the topic that each run gets.
const PARTITIONS: i32 = 12;
const SECRET: &str = "a-secret-for-load-tests-of-32-bytes-or-more";

/// What `notifier-loadtest compare-floor` is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The product's binary
    #[arg(long, value_name = "BIN")]
    notifier: PathBuf,
    /// Kafka's bootstrap servers
    #[arg(long)]
    brokers: String,
    /// How often both are measured
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
    /// Seconds between the last connect and the reading of memory
    #[arg(long, default_value_t = 5)]
    settle: u64,
    /// Seconds of idling over which CPU is taken; memory is read again at their end (0: not taken)
    #[arg(long, default_value_t = 0)]
    idle_seconds: u64,
    /// How long the producer collects a batch, in milliseconds
    #[arg(long, default_value_t = 5)]
    linger_ms: u64,
    /// Leaves out the durable backlog
    #[arg(long)]
    skip_durable: bool,
    /// Writes every run's figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One server's figures of one round, by scenario.
struct Sample {
    kind: Kind,
    round: usize,
    reports: Vec<(&'static str, Report)>,
    /// Why the run ended early.
    error: Option<String>,
}

/// Runs all rounds and prints the table; a run that fails is named below it and the rest is kept.
///
/// # Errors
///
/// When any run failed or found a fault, after the table is printed.
pub fn run(args: &Args) -> Result<()> {
    // The children run in a directory of their own, where a relative path means something else.
    let notifier =
        fs::canonicalize(&args.notifier).with_context(|| format!("no binary at {}", args.notifier.display()))?;
    let mut samples = Vec::new();
    for round in 1..=args.rounds {
        for kind in [Kind::Floor, Kind::Notifier] {
            let mut sample = Sample { kind, round, reports: Vec::new(), error: None };
            if let Err(error) = measure(args, &notifier, &mut sample) {
                let why = format!("{error:#}");
                eprintln!("round {round}, {kind}: {why}");
                sample.error = Some(why);
            }
            samples.push(sample);
        }
    }
    println!("{}", table::markdown(&samples, &title(args)));
    if let Some(path) = &args.json {
        report::write_json(path, &samples.iter().map(Sample::json).collect())?;
    }
    match samples.iter().flat_map(Sample::faults).count() {
        0 => Ok(()),
        count => bail!("{count} faults: see below the table"),
    }
}

fn measure(args: &Args, notifier: &Path, sample: &mut Sample) -> Result<()> {
    let (kind, round) = (sample.kind, sample.round);
    let topic =
        Topic { brokers: args.brokers.clone(), name: format!("loadtest-{}-{kind}-{round}", std::process::id()) };
    topic.create(PARTITIONS)?;
    let result = measure_on(args, notifier, sample, &topic);
    // A few hundred MB a run: not left behind, whatever happened.
    let deleted = topic.delete();
    result.and(deleted)
}

fn measure_on(args: &Args, notifier: &Path, sample: &mut Sample, topic: &Topic) -> Result<()> {
    let mut load = Load {
        topic: topic.clone(),
        users: args.users,
        bytes: args.bytes,
        durability: Durability::Transient,
        acknowledge: false,
        linger: Duration::from_millis(args.linger_ms),
    };
    let mut server = Server::start(sample.kind, notifier, topic, SECRET)?;
    check_descriptors(&server.process(), args.users)?;
    let tokens = tokens(SECRET, args.users)?;
    // Closes its sessions at its end, so that the server need not say goodbye to each.
    let result = scenarios(args, sample, &server, &mut load, &tokens);
    let stopped = server.stop();
    result.with_context(|| server.log_tail()).and(stopped)
}

fn scenarios(args: &Args, sample: &mut Sample, server: &Server, load: &mut Load, tokens: &[String]) -> Result<()> {
    let process = server.process();
    let (mut fleet, connected) = connect::run(&process, server.endpoint(), tokens, args.concurrency)?;
    let rss_before = connected.get(connect::RSS_BEFORE).unwrap_or(0.0);
    sample.add("connect", connected);
    let idle_args = IdleArgs { settle: args.settle, seconds: args.idle_seconds };
    let idle = idle::run(&process, &mut fleet, args.users, rss_before, &idle_args)?;
    sample.add("idle", idle);
    sample.add("steady", steady::run(&process, &mut fleet, load, &args.rate)?);
    sample.add("transient", backlog::run(&process, &mut fleet, load, args.events)?);
    // The bare server knows no durability: its transient backlog is what both are compared with.
    if sample.kind == Kind::Notifier && !args.skip_durable {
        load.durability = Durability::Durable;
        load.acknowledge = true;
        sample.add("durable", backlog::run(&process, &mut fleet, load, args.events)?);
    }
    Ok(())
}

fn title(args: &Args) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "{} sessions, {} events of {} B, steady {}/s for {} s, {} rounds in turns; {cores} cores \
         shared by broker, clients and server, load average at the end {}",
        args.users,
        args.events,
        args.bytes,
        args.rate.rate,
        args.rate.seconds,
        args.rounds,
        load.split(' ').take(3).collect::<Vec<_>>().join(" ")
    )
}

impl Sample {
    fn add(&mut self, scenario: &'static str, report: Report) {
        eprintln!("round {}, {}, {scenario}: {}", self.round, self.kind, report.table());
        self.reports.push((scenario, report));
    }

    /// A figure of a scenario that ran without a fault.
    fn value(&self, scenario: &str, name: &str) -> Option<f64> {
        let (_, report) = self.reports.iter().find(|(key, _)| *key == scenario)?;
        report.faults().is_empty().then(|| report.get(name))?
    }

    fn faults(&self) -> impl Iterator<Item = String> + '_ {
        let place = format!("round {}, {}", self.round, self.kind);
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
            "server": self.kind.to_string(), "round": self.round,
            "scenarios": reports, "error": self.error,
        })
    }
}
