//! `notifier token`: a JWT for trying things out.

use std::time::Duration;

use super::{Usage, WHERE_DEV_RUNS};
use crate::{auth, config::Config, ids::UserId, node};

/// Print a token for a user, signed with the configured HS256 secret
#[derive(clap::Args)]
#[command(after_help = "Example:\n  notifier token --user 101 --ttl 15m")]
pub struct Args {
    /// Whom it lets in
    #[arg(long, value_name = "USER")]
    user: String,
    /// How long it is good for
    #[arg(long, default_value = "1h", value_parser = super::duration)]
    ttl: Duration,
    /// Print a JSON object with the expiry
    #[arg(long)]
    json: bool,
}

/// Prints the token.
///
/// # Errors
/// [`Usage`] when the user is no identifier or no secret is configured.
pub fn run(args: Args, config: &Config) -> anyhow::Result<()> {
    let user = UserId::new(args.user).map_err(|error| Usage(format!("--user {error}")))?;
    let auth = node::auth_config(config);
    let secret = auth
        .hs256_secret
        .as_deref()
        .ok_or_else(|| Usage(format!("auth.jwt.hs256_secret is not set; {WHERE_DEV_RUNS}")))?;
    let (token, expires_at) = auth::issue(&user, args.ttl, &auth, secret)?;
    if args.json {
        let expires_at = jiff::Timestamp::from_millisecond(expires_at)?;
        println!("{}", serde_json::json!({ "user": &*user, "token": token, "expires_at": expires_at.to_string() }));
    } else {
        println!("{token}");
    }
    Ok(())
}
