//! `notifier health`: whether the node on this machine is ready, for images without a shell and without curl.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use crate::config::Config;

/// The answer names a few parts; more than this is not read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Ask the node on this machine whether it is ready: 0 when it is
#[derive(clap::Args)]
#[command(after_help = "Example:\n  notifier health --config /etc/notifier.toml")]
pub struct Args {
    /// Ask whether its loops turn, ready or not
    #[arg(long)]
    live: bool,
    /// How long the answer may take
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// Asks the admin port and prints its answer.
///
/// # Errors
/// When the node is not ready, or nobody answers in time.
pub async fn run(args: Args, config: &Config) -> anyhow::Result<()> {
    let address = reachable(config.admin.listen);
    let path = if args.live { "/livez" } else { "/readyz" };
    let answer = timeout(args.timeout, ask(address, path)).await;
    let (status, body) = answer
        .with_context(|| format!("no answer from {address} within {}", humantime::format_duration(args.timeout)))?
        .with_context(|| format!("no node answers at {address} (admin.listen)"))?;
    if status != StatusCode::OK {
        bail!("{path} says {status}: {body}");
    }
    println!("{body}");
    Ok(())
}

/// Where a listener of this machine is asked: one that listens everywhere, on loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

async fn ask(address: SocketAddr, path: &str) -> anyhow::Result<(StatusCode, String)> {
    let socket = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    // Ends with the sender, whatever the server does.
    tokio::spawn(connection);
    let request = Request::get(path).header(header::HOST, address.to_string()).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    // What it is limited by is boxed, and no error that anyhow knows.
    let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_everywhere_is_asked_on_loopback() {
        for (listen, asked) in [
            ("0.0.0.0:8002", "127.0.0.1:8002"),
            ("[::]:8002", "[::1]:8002"),
            ("127.0.0.2:8002", "127.0.0.2:8002"),
            ("10.0.3.7:1", "10.0.3.7:1"),
        ] {
            let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
            assert_eq!(reachable(address(listen)), address(asked), "{listen}");
        }
    }
}
