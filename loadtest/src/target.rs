//! The server that a scenario is measured on: one that is started for it, or one that runs already.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::admin::Admin;
use crate::client::{Endpoint, Protocol};
use crate::event::Durability;
use crate::kafka::Topic;
use crate::meter::Meter;
use crate::process::Process;
use crate::scenario::{Engine, Scenario};
use crate::server::{Program, Server};
use crate::store::{POSTGRES, SQLITE, Store};

/// Partitions of the topic that each run gets.
const PARTITIONS: i32 = 12;
const SECRET: &str = "a-secret-for-load-tests-of-32-bytes-or-more";
/// How long a server may take to take a connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// A node of Notifier, started for each run
    Notifier,
    /// The bare server, started for each run
    Floor,
    /// The server at --url
    Running,
}

/// Where servers come from.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// What is measured; several: in turns
    #[arg(long, value_enum, value_delimiter = ',', default_value = "notifier")]
    pub target: Vec<Kind>,
    /// Kafka's bootstrap servers
    #[arg(long, env = "NOTIFIER_LOADTEST_BROKERS")]
    pub brokers: Option<String>,
    /// Notifier's binary (default: the one beside this tool)
    #[arg(long, value_name = "BIN")]
    notifier: Option<PathBuf>,
    /// PostgreSQL's URL, as of a role that may create databases
    #[arg(long, value_name = "URL", env = "NOTIFIER_LOADTEST_POSTGRES")]
    postgres: Option<String>,
    /// Of a running server: its WebSocket URL, e.g. ws://127.0.0.1:8000
    #[arg(long, required_if_eq("target", "running"))]
    url: Option<String>,
    /// Of a running server: its gRPC port, e.g. http://127.0.0.1:8001
    #[arg(long)]
    grpc_url: Option<String>,
    /// Of a running server on this machine: its process id
    #[arg(long)]
    pid: Option<u32>,
    /// Of a running server: its admin port, e.g. 127.0.0.1:8002
    #[arg(long)]
    admin: Option<SocketAddr>,
    /// Of a running server: its events topic
    #[arg(long, default_value = "notifier.events.v1")]
    topic: String,
    /// Of a running server: its HS256 secret
    #[arg(long, env = "NOTIFIER_LOADTEST_SECRET", hide_env_values = true, default_value = "loadtest")]
    secret: String,
    /// Allows a running server that is not on this machine
    #[arg(long)]
    remote: bool,
}

/// A server that is up, with what was made for it. [`Self::stop`] ends it in good order.
pub struct Target {
    pub kind: Kind,
    pub endpoints: Vec<Endpoint>,
    pub meter: Meter,
    pub topic: Topic,
    pub secret: String,
    server: Option<Server>,
    store: Option<Store>,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Notifier => "notifier",
            Self::Floor => "floor",
            Self::Running => "running",
        }
    }
}

impl Args {
    /// What is wrong is known before anything is started.
    pub fn check(&self, scenario: &Scenario, kind: Kind) -> Result<()> {
        ensure!(
            self.brokers.is_some() || (scenario.events.is_none() && kind == Kind::Running),
            "--brokers is missing: Kafka's bootstrap servers"
        );
        let name = &scenario.name;
        match kind {
            Kind::Floor => {
                ensure!(
                    scenario.protocols == [Protocol::Websocket],
                    "{name}: the bare server knows one protocol, websocket"
                );
                let away = scenario.events.as_ref().is_some_and(|events| events.away.is_some());
                ensure!(!away, "{name}: the bare server keeps nothing for users who are away");
            }
            Kind::Notifier => {
                let postgres = scenario.node.store == Engine::Postgres;
                ensure!(!postgres || self.postgres.is_some(), "{name}: needs --postgres");
            }
            Kind::Running => {
                self.meter()?.check()?;
                let of_process = scenario.events.as_ref().is_some_and(|events| events.backlog.is_some());
                ensure!(
                    !of_process || self.pid.is_some(),
                    "{name}: needs --pid, since the server is stopped for a while"
                );
                let of_admin = scenario.events.as_ref().is_some_and(|events| events.away.is_some());
                ensure!(!of_admin || self.admin.is_some(), "{name}: needs --admin, which says what is stored");
                let configured = scenario.node.store != Engine::None || !scenario.node.config.is_empty();
                if configured {
                    eprintln!("{name}: its [node] is not applied to a server that runs already");
                }
            }
        }
        Ok(())
    }

    fn meter(&self) -> Result<Meter> {
        Ok(Meter { process: self.pid.map(Process::new).transpose()?, admin: self.admin.map(Admin) })
    }

    /// Starts it, or looks for the one that runs.
    pub fn start(&self, scenario: &Scenario, kind: Kind) -> Result<Target> {
        if kind == Kind::Running {
            return self.running(scenario);
        }
        let brokers = self.brokers.clone().context("--brokers is missing")?;
        let serial = SERIAL.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let topic = Topic { brokers, name: format!("loadtest-{}-run-{serial}", std::process::id()) };
        topic.create(PARTITIONS)?;
        let started = self.started(scenario, kind, &topic, serial);
        started.inspect_err(|_| {
            // The first error is the one to know.
            let _ = topic.delete();
        })
    }

    fn started(&self, scenario: &Scenario, kind: Kind, topic: &Topic, serial: u32) -> Result<Target> {
        let mut store = None;
        let server = match kind {
            Kind::Floor => Server::start(Program::Floor, topic, SECRET)?,
            _ => {
                let engine = match scenario.node.store {
                    Engine::None => "none",
                    Engine::Sqlite => SQLITE,
                    Engine::Postgres => POSTGRES,
                };
                let name = format!("notifier_loadtest_{}_run_{serial}", std::process::id());
                let kept = store.insert(Store::create(engine, self.postgres.as_deref(), name)?);
                let config = toml::to_string(&scenario.node.config).context("node.config")?;
                let more = format!("{config}\n{}", kept.configuration());
                Server::start(Program::Notifier { binary: &self.binary()?, more: &more }, topic, SECRET)?
            }
        };
        let endpoints =
            scenario.protocols.iter().map(|protocol| server.endpoint_for(*protocol)).collect::<Result<_>>()?;
        let admin = (kind == Kind::Notifier).then(|| server.admin());
        let meter = Meter { process: Some(server.process()), admin };
        Ok(Target {
            kind,
            endpoints,
            meter,
            topic: topic.clone(),
            secret: SECRET.to_owned(),
            server: Some(server),
            store,
        })
    }

    fn running(&self, scenario: &Scenario) -> Result<Target> {
        let url = self.url.as_deref().context("--url is missing")?;
        let endpoints = scenario.protocols.iter().map(|protocol| {
            let url = match protocol {
                Protocol::Websocket | Protocol::WebsocketProto => url.to_owned(),
                Protocol::Sse => url.replacen("ws://", "http://", 1),
                Protocol::Grpc => self.grpc_url.clone().context("--grpc-url is missing")?,
            };
            Endpoint::parse(&url, *protocol, self.remote)
        });
        let endpoints: Vec<_> = endpoints.collect::<Result<_>>()?;
        for Endpoint { address, protocol, .. } in &endpoints {
            TcpStream::connect_timeout(address, PATIENCE)
                .with_context(|| format!("no server answers at {address} ({protocol}): is it running?"))?;
        }
        let topic = Topic { brokers: self.brokers.clone().unwrap_or_default(), name: self.topic.clone() };
        let (meter, secret) = (self.meter()?, self.secret.clone());
        Ok(Target { kind: Kind::Running, endpoints, meter, topic, secret, server: None, store: None })
    }

    fn binary(&self) -> Result<PathBuf> {
        let path = match &self.notifier {
            Some(path) => path.clone(),
            None => std::env::current_exe().context("own binary")?.with_file_name("notifier"),
        };
        // The node runs in a directory of its own, where a relative path means something else.
        fs::canonicalize(&path)
            .with_context(|| format!("no binary at {}: build it, or give --notifier", path.display()))
    }
}

/// Tells the runs of this process apart.
static SERIAL: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

impl Target {
    /// What its clients must not be asked: the bare server keeps and numbers nothing.
    pub fn durability(&self, wanted: Durability) -> Durability {
        if self.kind == Kind::Floor { Durability::Transient } else { wanted }
    }

    /// CPU of the store's own processes so far.
    pub fn store_cpu(&self) -> Result<Option<Duration>> {
        self.store.as_ref().map_or(Ok(None), Store::cpu)
    }

    /// The end of what a server that was started for this has written.
    pub fn log_tail(&self) -> String {
        self.server.as_ref().map(Server::log_tail).unwrap_or_default()
    }

    /// Ends what was started and removes what was made.
    ///
    /// # Errors
    ///
    /// When the server had ended before or does not end well; everything is removed all the same.
    pub fn stop(mut self) -> Result<()> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        let stopped = server.stop();
        drop(server);
        drop(self.store.take());
        let deleted = self.topic.delete();
        stopped.and(deleted)
    }
}

/// Whether this many sessions fit, before anything is connected; how many processes of clients they take.
pub fn processes(sessions: usize, per_process: usize, server: Option<Process>) -> Result<usize> {
    let own = Process::current().sockets_max()?;
    if own == 0 {
        bail!("this process may open too few files for any session: raise the limit (`ulimit -n`)");
    }
    if let Some(server) = server {
        server.check_descriptors("the server", sessions)?;
    }
    Ok(sessions.div_ceil(per_process.clamp(1, own)))
}
