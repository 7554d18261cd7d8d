//! Drives a server that runs on this machine and measures it from outside.
//!
//! Knows the server's URL, its process and its Kafka topic, and for users who are away what it says on its
//! admin port; not what is inside.

pub mod away;
pub mod backlog;
pub mod connect;
pub mod idle;
pub mod replay;
pub mod steady;

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::client::{Endpoint, Fleet, Protocol};
use crate::event::Durability;
use crate::kafka::Topic;
use crate::process::Process;
use crate::report::{self, Report};
use crate::token::token;
use crate::workload::Users;

/// The scenarios.
#[derive(Debug, clap::Subcommand)]
pub enum Scenario {
    /// A backlog written while the server stands still, then drained: CPU per delivery
    Backlog {
        #[command(flatten)]
        server: ServerArgs,
        #[command(flatten)]
        load: LoadArgs,
        /// Events of the backlog
        #[arg(long, default_value_t = 300_000)]
        events: u64,
    },
    /// A fixed rate that waits for nobody: latency and CPU per delivery
    Steady {
        #[command(flatten)]
        server: ServerArgs,
        #[command(flatten)]
        load: LoadArgs,
        #[command(flatten)]
        rate: RateArgs,
    },
    /// Sessions that do nothing: memory per session, CPU
    Idle {
        #[command(flatten)]
        server: ServerArgs,
        #[command(flatten)]
        idle: IdleArgs,
    },
    /// Sessions opened with a token: CPU per connect
    Connect {
        #[command(flatten)]
        server: ServerArgs,
    },
}

/// The server under test and its clients.
#[derive(Debug, Clone, clap::Args)]
pub struct ServerArgs {
    /// WebSocket URL on loopback, e.g. ws://127.0.0.1:8000
    #[arg(long)]
    url: String,
    /// The server's process id
    #[arg(long)]
    pid: u32,
    /// HS256 secret that the clients' tokens are signed with
    #[arg(long, env = "NOTIFIER_LOADTEST_SECRET", default_value = "loadtest")]
    secret: String,
    /// Sessions, each of its own user
    #[arg(long, default_value_t = 10_000)]
    users: usize,
    /// Connects in progress at one time
    #[arg(long, default_value_t = 50)]
    concurrency: usize,
    /// Writes the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What is written to Kafka.
#[derive(Debug, Clone, clap::Args)]
pub struct LoadArgs {
    /// Kafka's bootstrap servers
    #[arg(long)]
    brokers: String,
    /// Events topic of the server
    #[arg(long)]
    topic: String,
    /// Size of each event's `data`
    #[arg(long, default_value_t = 512)]
    bytes: usize,
    /// Durability that each event asks for
    #[arg(long, value_enum, default_value = "transient")]
    durability: Durability,
    /// Clients acknowledge the highest sequence of each read (default with durable)
    #[arg(long, overrides_with = "no_ack")]
    ack: bool,
    /// Clients acknowledge nothing
    #[arg(long, overrides_with = "ack")]
    no_ack: bool,
    /// How long the producer collects a batch, in milliseconds
    #[arg(long, default_value_t = 5)]
    linger_ms: u64,
}

/// An open-model rate.
#[derive(Debug, Clone, clap::Args)]
pub struct RateArgs {
    /// Events a second
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,
    /// Length of the measured part
    #[arg(long, default_value_t = 30)]
    pub seconds: u64,
    /// Length of the part before it, at the same rate
    #[arg(long, default_value_t = 3)]
    pub warmup: u64,
    /// The run counts only if the generator's own lateness stays below this at its 99th percentile
    #[arg(long, default_value_t = 10)]
    pub lateness_max_ms: u64,
}

/// An idle period.
#[derive(Debug, Clone, clap::Args)]
pub struct IdleArgs {
    /// Seconds between the last connect and the reading of memory
    #[arg(long, default_value_t = 5)]
    pub settle: u64,
    /// Seconds of idling over which CPU is taken; memory is read again at their end
    #[arg(long, default_value_t = 30)]
    pub seconds: u64,
}

/// What the load scenarios send.
#[derive(Debug, Clone)]
pub struct Load {
    pub topic: Topic,
    pub users: Users,
    pub bytes: usize,
    pub durability: Durability,
    pub acknowledge: bool,
    pub linger: Duration,
}

impl LoadArgs {
    fn load(&self, users: usize) -> Load {
        Load {
            topic: Topic { brokers: self.brokers.clone(), name: self.topic.clone() },
            users: Users::at_random(users),
            bytes: self.bytes,
            durability: self.durability,
            acknowledge: !self.no_ack && (self.ack || self.durability == Durability::Durable),
            linger: Duration::from_millis(self.linger_ms),
        }
    }
}

impl Scenario {
    /// Runs it, prints the figures.
    ///
    /// # Errors
    ///
    /// Also when events were lost, doubled or out of order, or when the rate could not be made:
    /// then the figures are printed with what is wrong about them.
    pub fn run(&self) -> Result<()> {
        let (Self::Backlog { server, .. }
        | Self::Steady { server, .. }
        | Self::Idle { server, .. }
        | Self::Connect { server }) = self;
        let process = Process::new(server.pid)?;
        let endpoint = Endpoint::parse(&server.url, Protocol::Websocket, false)?;
        check_descriptors(&process, server.users)?;
        let tokens = tokens(&server.secret, 0..server.users)?;
        let (mut fleet, connected) = connect::run(&process, &endpoint, &tokens, server.concurrency)?;
        let report = match self {
            Self::Connect { .. } => connected,
            Self::Idle { idle, .. } => {
                let before = connected.get(connect::RSS_BEFORE).unwrap_or(0.0);
                idle::run(&process, &mut fleet, server.users, before, idle)?
            }
            Self::Backlog { load, events, .. } => {
                backlog::run(&process, &mut fleet, &load.load(server.users), *events)?
            }
            Self::Steady { load, rate, .. } => steady::run(&process, &mut fleet, &load.load(server.users), rate)?,
        };
        print!("{}", report.table());
        if let Some(path) = &server.json {
            report::write_json(path, &report.json())?;
        }
        judge(&report)
    }
}

/// An error when the report holds a fault.
pub fn judge(report: &Report) -> Result<()> {
    match report.faults() {
        [] => Ok(()),
        faults => bail!("the measurement does not count: {}", faults.join("; ")),
    }
}

/// Both ends need a descriptor for each session: said before anything is started.
pub fn check_descriptors(server: &Process, sessions: usize) -> Result<()> {
    Process::current().check_descriptors("this process", sessions)?;
    server.check_descriptors("the server", sessions)
}

/// One token for each of the users with these indexes.
pub fn tokens(secret: &str, users: Range<usize>) -> Result<Vec<String>> {
    users.map(|user| token(secret, user)).collect()
}

/// Notes the connections that ended while they should not have.
fn note_failures(report: &mut Report, fleet: &Fleet) {
    if let Some((count, first)) = fleet.failures() {
        report.fault(format!("{count} connections ended, the first: {first}"));
    }
}

fn per(total: Duration, count: u64) -> f64 {
    total.as_secs_f64() * 1e6 / count.max(1) as f64
}
