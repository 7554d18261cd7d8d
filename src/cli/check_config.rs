//! `notifier check-config`: what a node would run with.

use std::path::Path;

use anyhow::Context as _;

use crate::{cli, config, node};

/// Check the configuration and print it as it takes effect, secrets masked
#[derive(clap::Args)]
#[command(after_help = "Example:\n  notifier check-config --config /etc/notifier.toml")]
pub struct Args {
    /// Print the reference of all keys as Markdown instead
    #[arg(long)]
    reference: bool,
    /// Print JSON instead of TOML
    #[arg(long)]
    json: bool,
}

/// Checks and prints.
///
/// # Errors
/// Names the first key that is wrong.
pub fn run(args: &Args, file: Option<&Path>) -> anyhow::Result<()> {
    if args.reference {
        print!("{}", config::reference());
        return Ok(());
    }
    let config = cli::load(file)?;
    cli::check_kafka(&config)?;
    node::client_tls(&config)?;
    node::grpc_tls(&config)?;
    cli::check_auth(&config)?;
    if let Err(error) = config.validate_serve() {
        eprintln!("warning: `notifier serve` refuses this: {error}");
    }
    config.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
    if args.json {
        let effective: toml::Table = config::effective(&config).parse().context("the configuration is TOML")?;
        println!("{}", serde_json::to_string_pretty(&effective)?);
    } else {
        print!("{}", config::effective(&config));
    }
    Ok(())
}
