//! The server that a scenario is measured on: one that is started for it, or one that runs already.

mod nodes;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::admin::Admin;
use crate::client::{Endpoint, Protocol};
use crate::event::Durability;
use crate::kafka::Topic;
use crate::membership;
use crate::meter::{Gauge, Meter};
use crate::process::Process;
use crate::scenario::{Engine, Layout, Scenario};
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

/// A server that is up, or several nodes, with what was made for them. [`Self::stop`] ends it in good order.
pub struct Target {
    pub kind: Kind,
    pub endpoints: Vec<Endpoint>,
    pub meter: Meter,
    pub topic: Topic,
    pub secret: String,
    servers: Vec<Server>,
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
    /// Whether any server is started by this process, and so may open as many files as this one.
    pub fn starts_servers(&self) -> bool {
        self.target.iter().any(|kind| *kind != Kind::Running)
    }

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
                ensure!(scenario.nodes.is_none(), "{name}: the bare server is always one");
            }
            Kind::Notifier => {
                let postgres = scenario.node.store == Engine::Postgres;
                ensure!(!postgres || self.postgres.is_some(), "{name}: needs --postgres");
            }
            Kind::Running => {
                ensure!(scenario.nodes.is_none(), "{name}: starts its own nodes: not for a server that runs already");
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
        Ok(Meter::of(self.pid.map(Process::new).transpose()?, self.admin.map(Admin)))
    }

    /// Starts it, or looks for the one that runs.
    pub fn start(&self, scenario: &Scenario, kind: Kind, layout: Layout) -> Result<Target> {
        if kind == Kind::Running {
            return self.running(scenario);
        }
        let brokers = self.brokers.clone().context("--brokers is missing")?;
        let serial = SERIAL.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("loadtest-{}-run-{serial}", std::process::id());
        let topic = Topic { brokers, name, partitions: Vec::new() };
        topic.create(PARTITIONS)?;
        let started = self.started(scenario, kind, layout, &topic, serial);
        started.inspect_err(|_| {
            // The first error is the one to know.
            let _ = topic.delete();
        })
    }

    fn started(&self, scenario: &Scenario, kind: Kind, layout: Layout, topic: &Topic, serial: u32) -> Result<Target> {
        let mut store = None;
        let servers = match kind {
            Kind::Floor => vec![Server::start(Program::Floor, topic, SECRET)?],
            _ => {
                let engine = match scenario.node.store {
                    Engine::None => "none",
                    Engine::Sqlite => SQLITE,
                    Engine::Postgres => POSTGRES,
                };
                let name = format!("notifier_loadtest_{}_run_{serial}", std::process::id());
                let kept = store.insert(Store::create(engine, self.postgres.as_deref(), name)?);
                let mut more = vec![kept.configuration()];
                if scenario.nodes.is_some() {
                    // That an event has to go from one node to another, all users are in one part.
                    more.extend(layout.hops.map(|_| "[cluster]\nshards = 1\n".to_owned()));
                    more.push(String::new());
                }
                let own = toml::to_string(&scenario.node.config).context("node.config")?;
                let binary = self.binary()?;
                let start = |number| {
                    if let Some(cluster) = more.last_mut().filter(|_| scenario.nodes.is_some()) {
                        *cluster = membership::configuration(number);
                    }
                    let more = [&more[..], std::slice::from_ref(&own)].concat();
                    Server::start(Program::Notifier { binary: &binary, more: &more }, topic, SECRET)
                };
                (0..layout.nodes).map(start).collect::<Result<Vec<_>>>()?
            }
        };
        let each = |server: &Server| -> Result<Vec<Endpoint>> {
            scenario.protocols.iter().map(|protocol| server.endpoint_for(*protocol)).collect()
        };
        let endpoints = servers.iter().map(each).collect::<Result<Vec<_>>>()?.concat();
        let gauges = servers.iter().map(|server| {
            let admin = (kind == Kind::Notifier).then(|| server.admin());
            Gauge { process: Some(server.process()), admin, ..Gauge::default() }
        });
        let (meter, secret) = (Meter(gauges.collect()), SECRET.to_owned());
        let mut target = Target { kind, endpoints, meter, topic: topic.clone(), secret, servers, store };
        match layout.hops {
            Some(hops) => target.keep_hops(hops, &scenario.protocols)?,
            None if scenario.nodes.is_some() => drop(target.settle()?),
            None => {}
        }
        Ok(target)
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
        let topic = Topic {
            brokers: self.brokers.clone().unwrap_or_default(),
            name: self.topic.clone(),
            partitions: Vec::new(),
        };
        let (meter, secret) = (self.meter()?, self.secret.clone());
        Ok(Target { kind: Kind::Running, endpoints, meter, topic, secret, servers: Vec::new(), store: None })
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

    /// The end of what each server that was started for this has written.
    pub fn log_tail(&self) -> String {
        self.servers.iter().map(Server::log_tail).collect::<Vec<_>>().join("\n")
    }

    /// Ends what was started and removes what was made.
    ///
    /// # Errors
    ///
    /// When the server had ended before or does not end well; everything is removed all the same.
    pub fn stop(mut self) -> Result<()> {
        if self.servers.is_empty() {
            return Ok(());
        }
        // All at once: one after the other would hand its users to those that stop next.
        let told: Vec<_> = self.servers.iter_mut().map(Server::tell_to_stop).collect();
        let stopped: Vec<_> = self.servers.iter_mut().map(Server::stopped).collect();
        let stopped: Result<()> = told.into_iter().chain(stopped).collect();
        self.servers.clear();
        drop(self.store.take());
        let deleted = self.topic.delete();
        stopped.and(deleted)
    }
}

/// Whether this many sessions fit, before anything is connected; how many processes of clients they take. `servers`:
/// each may get so many of them.
pub fn processes(sessions: usize, per_process: usize, servers: (&[Process], usize)) -> Result<usize> {
    let own = Process::current().sockets_max()?;
    if own == 0 {
        bail!("this process may open too few files for any session: raise the limit (`ulimit -n`)");
    }
    for server in servers.0 {
        server.check_descriptors("the server", servers.1)?;
    }
    Ok(sessions.div_ceil(per_process.clamp(1, own)))
}
