//! `notifier migrate`: brings the store's schema up, before a new version of the program starts.

use super::Usage;
use crate::{config::Config, node, store, telemetry};

/// Bring the store's schema up to what this program needs
#[derive(clap::Args)]
#[command(after_help = "Example:\n  notifier migrate --config /etc/notifier.toml")]
pub struct Args {}

/// Brings it up and says what was done.
///
/// # Errors
/// [`Usage`] when no store is set; else when the store does not answer or its schema is newer than this program.
pub async fn run(_: Args, config: &Config) -> anyhow::Result<()> {
    telemetry::log();
    let Some(store) = node::store_config(config) else {
        return Err(Usage("store.url is not set: there is nothing to bring up".into()).into());
    };
    match store::migrate(&store).await? {
        0 => println!("The store's schema is up to date."),
        applied => println!("The store's schema was brought up by {applied} version(s)."),
    }
    Ok(())
}
