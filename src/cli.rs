//! The commands. Each is a file; what they share is which configuration they read and how they fail.

mod check_config;
mod cluster;
mod dev;
mod health;
mod migrate;
mod send;
mod serve;
mod tail;
mod token;

use std::{
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory as _, Parser, Subcommand};
use rdkafka::error::KafkaError;

use crate::{
    auth,
    config::{self, Config},
    kafka,
    member::JoinError,
    node,
    store::{self, schema::SchemaError},
};

/// Delivers notifications from Kafka to every open session of a user.
#[derive(Parser)]
#[command(name = "notifier", version, max_term_width = 100)]
struct Cli {
    /// The configuration file; without one, send, tail, cluster, token, health and check-config read .notifier/notifier.toml
    /// if `notifier dev` has written it
    #[arg(long, short, global = true, value_name = "FILE", env = "NOTIFIER_CONFIG")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Dev(dev::Args),
    Serve(serve::Args),
    Send(send::Args),
    Tail(tail::Args),
    Cluster(cluster::Args),
    Token(token::Args),
    Migrate(migrate::Args),
    Health(health::Args),
    CheckConfig(check_config::Args),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  notifier completions bash > /etc/bash_completion.d/notifier")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Bad usage: exit code 2 instead of 1. The text names the flag or key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Runs the command that the process was started with.
pub async fn run() -> ExitCode {
    let cli = Cli::parse();
    match cli.run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("notifier: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

/// 2: bad usage or configuration, which starting again does not mend; 3: start me again; 1: anything else.
fn exit_code(error: &anyhow::Error) -> u8 {
    let is_refused = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<Usage>()
            || cause.is::<config::Error>()
            || cause.downcast_ref::<SchemaError>().is_some_and(SchemaError::is_refusal)
            || matches!(
                cause.downcast_ref(),
                Some(JoinError::Occupied(_) | JoinError::Alone(_) | JoinError::Secret(_) | JoinError::Versions(..))
            )
    };
    let is_lost = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<store::Error>().is_some_and(|error| matches!(error, store::Error::Lost { .. }))
    };
    match error {
        error if error.chain().any(is_refused) => 2,
        error if error.chain().any(is_lost) => 3,
        _ => 1,
    }
}

impl Cli {
    async fn run(self) -> anyhow::Result<()> {
        let file = self.config;
        match self.command {
            Command::Dev(args) => dev::run(args, file.as_deref()).await,
            Command::Serve(args) => serve::run(args, file.as_deref()).await,
            Command::Send(args) => send::run(args, &load(file.as_deref())?).await,
            Command::Tail(args) => tail::run(args, &load(file.as_deref())?).await,
            Command::Cluster(args) => cluster::run(args, &load(file.as_deref())?).await,
            Command::Token(args) => token::run(args, &load(file.as_deref())?),
            Command::Migrate(args) => migrate::run(args, &load(file.as_deref())?).await,
            Command::Health(args) => health::run(args, &load(file.as_deref())?).await,
            Command::CheckConfig(args) => check_config::run(&args, file.as_deref()),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Self::command(), "notifier", &mut script);
                match std::io::stdout().write_all(&script) {
                    Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
                    _ => Ok(()),
                }
            }
        }
    }
}

/// What helps whoever has no configuration here.
const WHERE_DEV_RUNS: &str = "run this where `notifier dev` runs, or give --config";
/// The file that `notifier dev` writes into its data directory.
const DEV_FILE: &str = "notifier.toml";
/// The data directory of `notifier dev`, unless it is told another.
const DEV_DIRECTORY: &str = ".notifier";

/// The configuration for a command: the given file, else the one that `notifier dev` wrote here, if it is there.
fn load(file: Option<&Path>) -> Result<Config, config::Error> {
    let written_by_dev = Path::new(DEV_DIRECTORY).join(DEV_FILE);
    let file = file.or_else(|| Some(&*written_by_dev).filter(|file| file.is_file()));
    let config = load_from(file)?;
    config.validate()?;
    Ok(config)
}

fn load_from(file: Option<&Path>) -> Result<Config, config::Error> {
    // Names and values that are not UTF-8 cannot be ours.
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    config::load(file, variables)
}

/// Reads a duration that stands on the command line.
///
/// # Errors
/// What was expected, with examples.
fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "a duration has a unit, such as 5s, 10m or 1h".to_owned())
}

/// Lets librdkafka look at the properties: it knows best which there are.
fn check_kafka(config: &Config) -> Result<(), Usage> {
    let refused = |error: KafkaError| match error {
        // The value may be a secret whose name was mistyped.
        KafkaError::ClientConfig(_, what, name, _) => Usage(format!("kafka.properties.{name}: {what}")),
        error => Usage(format!("kafka.properties: {error}")),
    };
    kafka::consumer_config(&config.kafka).create_native_config().map(drop).map_err(refused)
}

/// Reads the files that hold keys: what is in them, the configuration's own checks do not know.
fn check_auth(config: &Config) -> Result<(), Usage> {
    auth::validate(&node::auth_config(config)).map_err(|error| Usage(error.to_string()))
}

/// Resolves with the first SIGTERM or SIGINT; a second one ends the process at once.
async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be listened to");
    let mut interrupt = signal(SignalKind::interrupt()).expect("signals can be listened to");
    let mut next = async move || {
        tokio::select! {
            _ = terminate.recv() => 143,
            _ = interrupt.recv() => 130,
        }
    };
    next().await;
    tokio::spawn(async move {
        let code = next().await;
        tracing::warn!("second signal: ending at once");
        std::process::exit(code);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_that_is_no_duration_says_what_is_expected() {
        let send = ["notifier", "send", "--user", "1", "--type", "t", "--data", "1", "--ttl"];
        let token = ["notifier", "token", "--user", "1", "--ttl"];
        for command in [&send[..], &token] {
            for text in ["5", "5x", "soon", ""] {
                let line = [command, &[text]].concat();
                let refused = Cli::try_parse_from(line).err().unwrap_or_else(|| panic!("{command:?} takes {text:?}"));
                let refused = refused.to_string();
                assert!(refused.contains("--ttl") && refused.contains("such as 5s, 10m or 1h"), "{text:?}: {refused}");
            }
            assert!(Cli::try_parse_from([command, &["1h 30m"]].concat()).is_ok());
        }
    }
}
