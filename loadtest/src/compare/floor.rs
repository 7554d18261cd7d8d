//! The bare server and the product in turns.

mod table;

use std::path::Path;

use anyhow::{Context, Result};

use super::{CommonArgs, SECRET, Sample, finish, in_turns};
use crate::event::Durability;
use crate::kafka::Topic;
use crate::measure::{IdleArgs, Load, backlog, check_descriptors, connect, idle, steady, tokens};
use crate::server::{Program, Server};
use crate::workload::Users;

const FLOOR: &str = "floor";
const NOTIFIER: &str = "notifier";

/// What `notifier-loadtest compare-floor` is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: CommonArgs,
    /// Seconds between the last connect and the reading of memory
    #[arg(long, default_value_t = 5)]
    settle: u64,
    /// Seconds of idling over which CPU is taken; memory is read again at their end (0: not taken)
    #[arg(long, default_value_t = 0)]
    idle_seconds: u64,
    /// Leaves out the durable backlog
    #[arg(long)]
    skip_durable: bool,
}

/// Runs all rounds and prints the table; a run that fails is named below it and the rest is kept.
///
/// # Errors
///
/// When any run failed or found a fault, after the table is printed.
pub fn run(args: &Args) -> Result<()> {
    let samples = in_turns(&args.common, &[FLOOR, NOTIFIER], |notifier, sample| {
        let place = format!("{}-{}", sample.server, sample.round);
        args.common.on_fresh_topic(&place, |topic| measure(args, notifier, sample, topic))
    })?;
    println!("{}", table::markdown(&samples, &args.common.title()));
    finish(&args.common, &samples)
}

fn measure(args: &Args, notifier: &Path, sample: &mut Sample, topic: &Topic) -> Result<()> {
    let users = args.common.users;
    let mut load = args.common.load(topic, Users::at_random(users), Durability::Transient);
    let program = match sample.server {
        FLOOR => Program::Floor,
        _ => Program::Notifier { binary: notifier, more: "" },
    };
    let mut server = Server::start(program, topic, SECRET)?;
    check_descriptors(&server.process(), users)?;
    let tokens = tokens(SECRET, 0..users)?;
    // Closes its sessions at its end, so that the server need not say goodbye to each.
    let result = scenarios(args, sample, &server, &mut load, &tokens);
    let stopped = server.stop();
    result.with_context(|| server.log_tail()).and(stopped)
}

fn scenarios(args: &Args, sample: &mut Sample, server: &Server, load: &mut Load, tokens: &[String]) -> Result<()> {
    let (process, common) = (server.process(), &args.common);
    let (mut fleet, connected) = connect::run(&process, server.endpoint(), tokens, common.concurrency)?;
    let rss_before = connected.get(connect::RSS_BEFORE).unwrap_or(0.0);
    sample.add("connect", connected);
    let idle_args = IdleArgs { settle: args.settle, seconds: args.idle_seconds };
    let idle = idle::run(&process, &mut fleet, common.users, rss_before, &idle_args)?;
    sample.add("idle", idle);
    sample.add("steady", steady::run(&process, &mut fleet, load, &common.rate)?);
    sample.add("transient", backlog::run(&process, &mut fleet, load, common.events)?);
    // The bare server knows no durability: its transient backlog is what both are compared with.
    if sample.server == NOTIFIER && !args.skip_durable {
        load.durability = Durability::Durable;
        load.acknowledge = true;
        sample.add("durable", backlog::run(&process, &mut fleet, load, common.events)?);
    }
    Ok(())
}
