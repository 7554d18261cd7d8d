//! The programs of `examples/`, started as their users start them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Json, Router, http::header, routing::get};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    Node,
    command::{CLIENT_DEADLINE, browser},
    process::{Finished, Process, command, required},
    token,
};

/// The origin of the page in which the browser's client runs.
pub const ORIGIN: &str = "https://app.example";
/// The user whose notifications the clients receive.
pub const USER: &str = "101";
/// The device that they name.
pub const DEVICE: &str = "example";

/// How long a build may take when nothing of it, nor of the standard library, has been built here before.
const BUILD_DEADLINE: Duration = Duration::from_secs(600);

/// A client.
#[derive(Clone, Copy, Debug)]
pub enum Client {
    Python,
    Node,
    Browser,
    Go,
    Grpc,
}

/// A client that runs.
pub struct Running {
    process: Process,
    _built: TempDir,
}

impl Client {
    /// The node's port that it connects to.
    pub fn port(self, node: &Node) -> SocketAddr {
        if matches!(self, Self::Grpc) { node.grpc_addr() } else { node.addr() }
    }

    /// Builds and starts it.
    pub async fn start(self, server: SocketAddr, tokens: &Tokens) -> Running {
        let built = tempfile::tempdir().expect("a temporary directory");
        let dir = built.path();
        let mut command = match self {
            Self::Python => {
                let mut command = command(required("NOTIFIER_TEST_PYTHON"));
                command.arg("-B").arg(examples().join("python/main.py"));
                command
            }
            Self::Grpc => {
                let mut command = command(required("NOTIFIER_TEST_PYTHON"));
                command.arg("-B").arg(examples().join("python/grpc_client.py"));
                command
            }
            Self::Node => {
                compile(dir).await;
                // Node 22 has WebSocket; for older ones this brings it.
                let import = format!("{}/tests/clients/websocket.mjs", env!("CARGO_MANIFEST_DIR"));
                let mut command = command("node");
                command.args(["--import", &import]).arg(dir.join("main.js"));
                command.env("NOTIFIER_TEST_NODE_MODULES", required("NOTIFIER_TEST_NODE_MODULES"));
                command
            }
            Self::Browser => {
                compile(dir).await;
                let mut command = browser("example.mjs");
                command.arg(dir).arg(ORIGIN);
                command
            }
            Self::Go => {
                let client = dir.join("client");
                let mut build = command("go");
                build.args(["build", "-buildvcs=false", "-o"]).arg(&client).arg(".").current_dir(examples().join("go"));
                Process::run("go build", build, BUILD_DEADLINE).await.ok();
                command(client)
            }
        };
        let server = match self {
            Self::Grpc => server.to_string(),
            Self::Go => format!("http://{server}"),
            Self::Python | Self::Node | Self::Browser => format!("ws://{server}"),
        };
        command.args([&server, &tokens.url(), DEVICE]);
        Running { process: Process::spawn(&format!("{self:?}"), command), _built: built }
    }
}

/// Type checks the TypeScript client and makes JavaScript of it.
async fn compile(dir: &Path) {
    let tsc = Path::new(&required("NOTIFIER_TEST_NODE_MODULES")).join(".bin/tsc");
    let mut tsc = command(tsc);
    tsc.arg("-p").arg(examples().join("typescript")).arg("--outDir").arg(dir);
    Process::run("tsc", tsc, CLIENT_DEADLINE).await.ok();
    std::fs::copy(examples().join("typescript/package.json"), dir.join("package.json")).expect("a writable directory");
}

impl Running {
    /// What it has printed: for each notification the number in its payload, `None` for "fetch everything".
    pub fn printed(&self) -> Vec<Option<u64>> {
        let stdout = self.process.stdout();
        let number = |line: &str| {
            if line == "fetch everything" {
                return None;
            }
            let parsed = line.split_once(' ').and_then(|(kind, payload)| {
                let payload: Value = serde_json::from_str(payload).ok()?;
                (kind == "greeting").then(|| payload["n"].as_u64())?
            });
            Some(parsed.unwrap_or_else(|| panic!("not a line of an example: {line}")))
        };
        stdout.lines().map(number).collect()
    }

    /// Waits until it has printed exactly that.
    pub async fn has_printed(&self, expected: &[Option<u64>]) {
        super::wait::eventually_within(CLIENT_DEADLINE, &format!("{expected:?} printed"), async || {
            let printed = self.printed();
            assert!(expected.starts_with(&printed), "printed {printed:?}, expected {expected:?}");
            (printed.len() == expected.len()).then_some(())
        })
        .await;
    }

    /// Waits until it has ended by itself.
    pub async fn ended(self) -> Finished {
        self.process.finish(CLIENT_DEADLINE).await
    }
}

/// A producer.
#[derive(Clone, Copy, Debug)]
pub enum Producer {
    Python,
    Java,
}

impl Producer {
    /// Writes a `greeting` for the user with each of those payloads.
    pub async fn run(self, bootstrap: &str, topic: &str, payloads: &[String]) -> Finished {
        let mut command = match self {
            Self::Python => {
                let mut command = command(required("NOTIFIER_TEST_PYTHON"));
                command.arg("-B").arg(examples().join("python/producer.py"));
                command
            }
            Self::Java => {
                let libs = required("NOTIFIER_TEST_JAVA_LIBS");
                let mut command = command(required("KAFKA_JAVA"));
                command.args(["-cp", &format!("{libs}/*")]).arg(examples().join("java/Producer.java"));
                command
            }
        };
        command.args([bootstrap, topic, USER, "greeting"]).args(payloads);
        Process::run(&format!("{self:?}"), command, CLIENT_DEADLINE).await
    }
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// Where clients get their tokens: what a product's own backend would be.
pub struct Tokens {
    addr: SocketAddr,
    asked: Arc<AtomicUsize>,
    seconds: Arc<AtomicI64>,
    serving: tokio::task::JoinHandle<()>,
}

impl Tokens {
    /// Gives tokens that are good for so long.
    pub async fn start(good_for: Duration) -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let seconds = Arc::new(AtomicI64::new(seconds(good_for)));
        let (counter, lifetime) = (asked.clone(), seconds.clone());
        let token = async move || {
            counter.fetch_add(1, Ordering::Relaxed);
            let exp = token::now_secs().saturating_add_signed(lifetime.load(Ordering::Relaxed));
            let token = token::signed(&json!({"sub": USER, "exp": exp}), token::SECRET);
            ([(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")], Json(json!({ "token": token })))
        };
        let router = Router::new().route("/token", get(token));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let addr = listener.local_addr().expect("a bound socket");
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("never ends") });
        Self { addr, asked, seconds, serving }
    }

    fn url(&self) -> String {
        format!("http://{}/token", self.addr)
    }

    /// How many tokens were asked for.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// From now on tokens are good for so long.
    pub fn good_for(&self, time: Duration) {
        self.seconds.store(seconds(time), Ordering::Relaxed);
    }

    /// From now on tokens have expired already.
    pub fn good_for_nothing(&self) {
        self.seconds.store(-60, Ordering::Relaxed);
    }
}

fn seconds(time: Duration) -> i64 {
    time.as_secs().try_into().expect("less than an age")
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
