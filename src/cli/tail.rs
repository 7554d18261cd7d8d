//! `notifier tail`: connects as a user and prints what arrives, and comes back by itself after a loss.
//!
//! Here: what was asked for. The loop is in `follow.rs`, when to come back in `retry.rs`, and what a protocol
//! is in `connection.rs` and the files that it names.

use std::{path::PathBuf, sync::Arc};

use clap::ValueEnum;
use tokio::io::AsyncWrite;

use super::Usage;
use crate::{
    config::Config,
    ids::{DeviceId, Since, UserId},
};

mod api;
mod connection;
mod credentials;
mod endpoint;
mod follow;
mod frame;
mod grpc;
mod http;
mod output;
mod position;
mod retry;
mod sse;
mod tls;
mod websocket;

pub(super) use self::api::{Api, NoAnswer};
use self::{
    credentials::Credentials,
    endpoint::Endpoint,
    follow::{Follower, Identity},
    http::Server,
    output::{Format, Printer},
    position::Position,
};

const EXAMPLES: &str = "Examples:
  notifier tail --user 101
  notifier tail --user 101 --protocol sse --since k3f9-12 --device laptop
  notifier tail --user 101 --json | jq .payload

Notifications go to standard output, what happens to the connection to standard error. Times are
local, those of arrival; - stands for the number of a transient notification, which has none.";

/// Connect as a user and print what arrives; reconnects and resumes by itself.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Whose notifications to print
    #[arg(long, value_name = "USER")]
    user: String,
    /// How to connect
    #[arg(long, value_enum, default_value_t = Protocol::Websocket)]
    protocol: Protocol,
    /// Resume after this number, which is acknowledged thereby [default: the stored cursor]
    #[arg(long, value_name = "EPOCH-SEQ")]
    since: Option<String>,
    /// The device whose cursor moves [default: the cursor that the user's other clients share]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Acknowledge nothing, so that it all comes again for the next client; a WebSocket then gets one window's
    /// worth at the most
    #[arg(long)]
    no_ack: bool,
    /// Print each frame's JSON text as it came, one a line, control frames too
    #[arg(long)]
    json: bool,
    /// The server, such as https://notifier.example.com [default: client.listen, with gRPC grpc.listen, on this machine]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The authorities that the server's certificate may be from, a PEM file [default: the system's]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The user's token [default: a new one, signed with auth.jwt.hs256_secret]
    #[arg(long, value_name = "JWT", env = "NOTIFIER_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

/// How to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// WebSocket, subprotocol notifier.v1.json
    Websocket,
    /// Server-sent events
    Sse,
    /// gRPC, Notifier/Connect
    Grpc,
}

/// Prints what arrives until SIGTERM, SIGINT or the end of whoever reads the output.
///
/// # Errors
/// [`Usage`] for arguments that no connection can be made of; else why the server does not want this client.
pub async fn run(args: Args, config: &Config) -> anyhow::Result<()> {
    let format = if args.json { Format::Json } else { Format::for_stdout() };
    let follower = follower(args, config, Printer::new(tokio::io::stdout(), format))?;
    follower.run(super::stop_signal()).await
}

fn follower<W: AsyncWrite + Unpin>(args: Args, config: &Config, printer: Printer<W>) -> Result<Follower<W>, Usage> {
    let user = UserId::new(args.user).map_err(|problem| Usage(format!("--user {problem}")))?;
    let device = args.device.map(DeviceId::new).transpose().map_err(|problem| Usage(format!("--device {problem}")))?;
    let since = args.since.map(|since| {
        Since::parse(&since)
            .ok_or_else(|| Usage(format!("--since must be <epoch>-<seq>, such as k3f9-12, not {since}")))
    });
    let endpoint = match args.url {
        Some(url) => Endpoint::parse(&url)?,
        None if args.protocol == Protocol::Grpc => {
            Endpoint::local("grpc.listen", config.grpc.listen, config.grpc.tls_cert_file.is_some())?
        }
        None => Endpoint::local("client.listen", config.client.listen, config.client.tls_cert_file.is_some())?,
    };
    let tls = match (endpoint.is_secure(), &args.ca_file) {
        (true, ca_file) => {
            let alpn: &[u8] = if args.protocol == Protocol::Grpc { b"h2" } else { b"http/1.1" };
            Some(tls::connector(ca_file.as_deref(), alpn)?)
        }
        (false, None) => None,
        (false, Some(_)) => return Err(Usage("--ca-file is of no use without https:// or wss://".to_owned())),
    };
    let credentials = match args.token {
        Some(token) => Credentials::given(&token)?,
        None => Credentials::made_for(user.clone(), crate::node::auth_config(config))?,
    };
    Ok(Follower::new(
        Arc::new(Server { endpoint, credentials, tls }),
        args.protocol,
        Identity { user, device },
        Position::new(since.transpose()?, !args.no_ack),
        printer,
    ))
}

#[cfg(test)]
mod tests;
