//! `notifier dev`: one node with everything it needs in one process, and a page to look at.

mod api_key;
mod lock;
mod routes;

use std::{
    fs,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use uuid::Uuid;

use super::{DEV_DIRECTORY, DEV_FILE, Usage};
use crate::{
    auth, cli,
    config::{Config, Secret, StoreUrl},
    embedded_broker::EmbeddedBroker,
    ids::UserId,
    node::{self, Dev, Node},
    telemetry,
};

/// The user of the first notification.
const USER: &str = "101";
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
const PARTITIONS: i32 = 4;
/// The file in the data directory that notifications are kept in.
const DATABASE: &str = "notifier.db";

/// Run one node with an embedded broker and a page to look at
#[derive(clap::Args)]
#[command(after_help = "Example:\n  notifier dev\n  notifier dev --port 9000 --kafka localhost:9092")]
pub struct Args {
    /// The clients' port; +1 gRPC, +2 admin, +4 embedded broker
    #[arg(long, default_value_t = 8000, value_parser = clap::value_parser!(u16).range(1..=65531))]
    port: u16,
    /// Where the configuration that it runs with is written
    #[arg(long, default_value = DEV_DIRECTORY, value_name = "DIR")]
    data_dir: PathBuf,
    /// A real Kafka instead of the embedded broker
    #[arg(long, value_name = "HOST:PORT")]
    kafka: Option<String>,
    /// A PostgreSQL or another file, instead of an SQLite file in the data directory
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Serves until a signal.
///
/// # Errors
/// When a port is taken, or the data directory cannot be written or is another process's.
pub async fn run(args: Args, file: Option<&Path>) -> anyhow::Result<()> {
    telemetry::log();
    let local = |offset: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, args.port + offset));
    let mut config = cli::load_from(file)?;
    config.client.listen = local(0);
    config.grpc.listen = local(1);
    config.admin.listen = local(2);
    let written = args.data_dir.join(DEV_FILE);
    fs::create_dir_all(&args.data_dir)
        .with_context(|| format!("--data-dir: cannot make {}", args.data_dir.display()))?;
    let _lock = lock::take(&args.data_dir)?;
    let url = args.store.clone().unwrap_or_else(|| format!("sqlite:{}", args.data_dir.join(DATABASE).display()));
    config.store.url = Some(StoreUrl::new(url).map_err(|expected| Usage(format!("--store: expected {expected}")))?);
    config.auth.jwt.hs256_secret.get_or_insert_with(|| earlier_secret(&written).unwrap_or_else(new_secret));
    let api_key = api_key::establish(&mut config, &args.data_dir)?;
    let broker = match &args.kafka {
        Some(brokers) => {
            config.kafka.brokers.clone_from(brokers);
            None
        }
        None => Some(start_broker(&mut config, local(4)).await?),
    };
    // Before anything is touched that another start would trip over.
    config.validate()?;
    let routes = routes::routes(&config, &api_key)?;
    let mut running = config.clone();
    if broker.is_some() {
        // The mock cluster answers a fetch only when its time is over, records or not.
        running.kafka.properties.set("fetch.wait.max.ms", "10");
    }
    let dev = Dev { routes, embedded_broker: broker.is_some() };
    let node = Node::start(&running, dev, telemetry::metrics()?).await?;
    write_config(&config, &args.data_dir, &written)?;
    wait_until_ready(&node).await;
    greet(&args, &config, &api_key, &node)?;
    node.run(cli::stop_signal()).await?;
    if let Some(broker) = broker {
        broker.stop().await;
    }
    Ok(())
}

/// What to type to start this program again: its name where the shell finds it, else its path.
fn command_name() -> String {
    let Ok(program) = std::env::current_exe() else { return "notifier".into() };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("notifier")).find(|file| file.is_file());
    if found.and_then(|file| file.canonicalize().ok()) == program.canonicalize().ok() {
        return "notifier".into();
    }
    let here = std::env::current_dir().unwrap_or_default();
    program.strip_prefix(&here).unwrap_or(&program).display().to_string()
}

async fn start_broker(config: &mut Config, listen: SocketAddr) -> anyhow::Result<EmbeddedBroker> {
    let kafka = &mut config.kafka;
    let topics = [(&*kafka.topic, PARTITIONS), (&*kafka.dead_letter_topic, 1), (&*kafka.receipts_topic, PARTITIONS)];
    let named: Vec<_> = topics.into_iter().filter(|(topic, _)| !topic.is_empty()).collect();
    let broker = EmbeddedBroker::start(listen, &named).await?;
    kafka.brokers = broker.bootstrap();
    Ok(broker)
}

/// The secret of the last run in this directory, so that tokens stay good.
fn earlier_secret(written: &Path) -> Option<Secret> {
    if !written.is_file() {
        return None;
    }
    crate::config::load(Some(written), std::iter::empty()).ok()?.auth.jwt.hs256_secret
}

fn new_secret() -> Secret {
    Secret::from(format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()))
}

/// The other commands read this file.
fn write_config(config: &Config, directory: &Path, file: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(directory)?;
        // It holds the secret that tokens are signed with.
        let mut options = fs::OpenOptions::new();
        let mut out = options.write(true).create(true).truncate(true).mode(0o600).open(file)?;
        writeln!(
            out,
            "# Written by `notifier dev` at each start: what is changed here is lost. `notifier dev -c FILE` takes yours.\n"
        )?;
        out.write_all(config.to_toml_with_secrets().as_bytes())
    };
    write().with_context(|| format!("--data-dir: cannot write {}", file.display()))
}

/// What is printed should work at once; without a broker it is printed all the same after a moment.
async fn wait_until_ready(node: &Node) {
    for _ in 0..150 {
        if node.health().failing().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tracing::warn!(failing = ?node.health().failing(), "not ready yet");
}

fn greet(args: &Args, config: &Config, api_key: &str, node: &Node) -> anyhow::Result<()> {
    let auth = node::auth_config(config);
    let secret = auth.hs256_secret.as_deref().context("dev always has a secret")?;
    let (token, _) = auth::issue(&UserId::new(USER)?, TOKEN_TTL, &auth, secret)?;
    let address = node.client_address();
    let (page, websocket) = (format!("http://{address}/"), format!("ws://{address}/v1/connect"));
    let file = args.data_dir.join(DEV_FILE);
    let elsewhere = args.data_dir != Path::new(DEV_DIRECTORY);
    let option = if elsewhere { format!(" --config {}", file.display()) } else { String::new() };
    let notifier = command_name();
    let send = format!(r#"{notifier} send{option} --user {USER} --type greeting --data '{{"hello":"world"}}'"#);
    let event = format!(r#"{{"target":"{USER}","type":"greeting","payload":{{"hello":"curl"}}}}"#);
    let curl = format!("curl --json '{event}' -H 'X-API-Key: {api_key}' http://{address}/v1/events");
    let brokers = &config.kafka.brokers;
    let mut out = std::io::stdout().lock();
    if args.json {
        let metrics = format!("http://{}/metrics", node.admin_address());
        let object = serde_json::json!({ "page": page, "websocket": websocket, "user": USER, "token": token,
            "grpc": node.grpc_address().to_string(), "kafka": brokers, "metrics": metrics, "config": file, "api_key": api_key, "send": send, "curl": curl });
        writeln!(out, "{object}")?;
        return Ok(out.flush()?);
    }
    let store = config.store.url.as_ref().map(StoreUrl::redacted).unwrap_or_default();
    let storage = format!("Notifications are kept in {store}.");
    let records = "The broker's records are kept in memory: what is not delivered or stored ends with this process.";
    writeln!(out, "notifier is ready.\n")?;
    writeln!(out, "  Page       {page}")?;
    writeln!(out, "  WebSocket  {websocket}")?;
    writeln!(out, "  gRPC       {}", node.grpc_address())?;
    writeln!(out, "  Kafka      {brokers}, topic {}", config.kafka.topic)?;
    writeln!(out, "  Metrics    http://{}/metrics", node.admin_address())?;
    writeln!(out, "  Token      {token}")?;
    writeln!(out, "             for user {USER}, good for a day")?;
    writeln!(out, "\nSend a first notification from another terminal:\n\n  {send}\n\nor over HTTP:\n\n  {curl}\n")?;
    writeln!(out, "{storage}")?;
    if args.kafka.is_none() {
        writeln!(out, "{records}")?;
    }
    Ok(out.flush()?)
}
