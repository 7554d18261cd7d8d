//! Logs and metrics: the tracing subscriber and the Prometheus recorder.

use std::{io::IsTerminal as _, time::Duration};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, filter::Directive};

use crate::{session, store, user};

/// The environment variable for log levels, in the syntax of `tracing_subscriber::EnvFilter`.
pub const LOG_VARIABLE: &str = "NOTIFIER_LOG";

/// Logs to standard error: for people on a terminal, as JSON otherwise. `NOTIFIER_LOG` (or `RUST_LOG`) sets levels.
pub fn log() {
    // An INFO subscriber costs every actor 350 bytes for its span.
    let quiet: Directive = "ractor=warn".parse().expect("a constant directive");
    // PostgreSQL's notices are that something is there already.
    let notices: Directive = "sqlx::postgres::notice=warn".parse().expect("a constant directive");
    let levels = std::env::var(LOG_VARIABLE).or_else(|_| std::env::var("RUST_LOG"));
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .parse_lossy(levels.unwrap_or_default())
        .add_directive(quiet)
        .add_directive(notices);
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        subscriber.with_target(false).init();
    } else {
        subscriber.json().flatten_event(true).init();
    }
    #[cfg(feature = "faults")]
    tracing::warn!(
        "a build for tests: its admin port and some events can break it; build without the feature `faults`"
    );
}

/// Installs the recorder and keeps it in order for as long as the process runs.
///
/// # Errors
/// When a recorder is installed already.
pub fn metrics() -> Result<PrometheusHandle, BuildError> {
    const LATENCY: &[f64] =
        &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0];
    const STAGE: &[f64] = &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];
    const ROWS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
    let full = |name: &str| Matcher::Full(name.to_owned());
    let handle = PrometheusBuilder::new()
        .set_buckets(STAGE)?
        .set_buckets_for_metric(full("notifier_delivery_latency_seconds"), LATENCY)?
        .set_buckets_for_metric(full("notifier_store_batch_rows"), ROWS)?
        .install_recorder()?;
    describe();
    let upkeep = handle.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        loop {
            ticks.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

fn describe() {
    session::metric::describe();
    user::metric::describe();
    store::metric::describe();
    metrics_process::Collector::default().describe();
    metrics::describe_gauge!("notifier_build_info", "Always 1; the labels say what is running");
    metrics::gauge!("notifier_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}
