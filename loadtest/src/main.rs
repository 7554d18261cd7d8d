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

mod floor;
mod measure;

mod compare;

use std::process::ExitCode;

use clap::Parser;

// The product's allocator, so that the bare server has no advantage or disadvantage by it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Load generator and measuring tool for Notifier
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  notifier-loadtest compare-floor --notifier target/release/notifier \
                  --brokers 127.0.0.1:9092"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// The bare server: one thread, no actors, no authentication, no log
    Floor(floor::Args),
    /// Measures a running server on this machine
    #[command(subcommand)]
    Measure(measure::Scenario),
    /// Measures the bare server and the product in turns and prints their ratios
    CompareFloor(compare::floor::Args),
    /// Measures what keeping events costs: SQLite and PostgreSQL beside transient events, in turns
    CompareDurability(compare::durability::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Floor(args) => floor::run(&args),
        Command::Measure(scenario) => interrupt::watch().and_then(|()| scenario.run()),
        Command::CompareFloor(args) => interrupt::watch().and_then(|()| compare::floor::run(&args)),
        Command::CompareDurability(args) => interrupt::watch().and_then(|()| compare::durability::run(&args)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
