//! Measures Notifier, or any server that speaks its WebSocket protocol, from outside; and is itself
//! the bare server that the figures are compared with.

#![forbid(unsafe_code)]

mod event;
mod interrupt;
mod order;
mod process;
mod report;
mod schedule;
mod websocket;
mod workload;

mod admin;
mod client;
mod kafka;
mod latency;
mod membership;
mod server;
mod store;
mod token;

mod feed;
mod meter;
mod receiver;

mod floor;
mod measure;

mod scenario;
mod target;
mod worker;
mod workers;

mod results;

mod bench;

mod capacity;
mod compare;
mod run;

use std::process::ExitCode;

use clap::Parser;

// The product's allocator, so that the bare server has no advantage or disadvantage by it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Load generator and measuring tool for Notifier
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  notifier-loadtest run personal-transient backlog --target floor,notifier --rounds 3 \
                  --brokers 127.0.0.1:9092 --html results.html"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Runs scenarios on servers, in turns
    Run(Box<run::Args>),
    /// Lists the scenarios that come with this tool
    Scenarios,
    /// Grows the load until an objective breaks: what a core carries
    Capacity(Box<capacity::Args>),
    /// Says what changed between two files of results, beyond the noise
    Compare(run::CompareArgs),
    /// Makes one HTML page of files of results
    Page(run::PageArgs),
    /// The bare server: one thread, no actors, no authentication, no log
    Floor(floor::Args),
    /// Measures what keeping events costs: SQLite and PostgreSQL beside transient events, in turns
    CompareDurability(compare::durability::Args),
    /// A process of clients, started by the others
    #[command(hide = true)]
    Clients(worker::Args),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    if !matches!(command, Command::Clients(_) | Command::Floor(_))
        && let Err(error) = interrupt::watch()
    {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    let done = |()| ExitCode::SUCCESS;
    let result = match command {
        Command::Run(args) => run::run(&args),
        Command::Scenarios => run::list(),
        Command::Capacity(args) => capacity::run(&args),
        Command::Compare(args) => run::compare(&args),
        Command::Page(args) => run::page(&args),
        Command::Floor(args) => floor::run(&args).map(done),
        Command::CompareDurability(args) => compare::durability::run(&args).map(done),
        Command::Clients(args) => worker::run(&args).map(done),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
