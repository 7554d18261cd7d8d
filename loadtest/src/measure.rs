//! Drives a server that runs on this machine and measures it from outside.
//!
//! Knows the server's URL, its process and its Kafka topic, and for users who are away what it says on its
//! admin port; not what is inside.

pub mod away;
pub mod backlog;
pub mod connect;
pub mod replay;
pub mod steady;

use std::ops::Range;
use std::time::Duration;

use anyhow::Result;

use crate::client::Fleet;
use crate::event::Durability;
use crate::kafka::Topic;
use crate::process::Process;
use crate::report::Report;
use crate::token::token;
use crate::workload::Users;

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
