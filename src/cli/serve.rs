//! `notifier serve`: a production node.

use std::path::Path;

use crate::{
    cli,
    node::{Dev, Node},
    telemetry,
};

/// Run a node until SIGTERM
#[derive(clap::Args)]
#[command(after_help = "Example:\n  notifier serve --config /etc/notifier.toml")]
pub struct Args {}

/// Serves until a signal, then drains.
///
/// # Errors
/// When the configuration is refused, the node cannot start, or Kafka's client fails for good.
pub async fn run(_: Args, file: Option<&Path>) -> anyhow::Result<()> {
    telemetry::log();
    let config = cli::load_from(file)?;
    config.validate_serve()?;
    cli::check_kafka(&config)?;
    cli::check_auth(&config)?;
    config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    let node = Node::start(&config, Dev::default(), telemetry::metrics()?).await?;
    tracing::info!(clients = %node.client_address(), grpc = %node.grpc_address(), admin = %node.admin_address(), topic = config.kafka.topic, "serving");
    node.run(cli::stop_signal()).await
}
