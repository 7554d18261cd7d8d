//! One node: a configuration file, a process, its two ports.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::Digest as _;
use tempfile::TempDir;
use toml::{Table, Value as Toml};

use super::{
    Feed,
    http::{self, Request, Response},
    metrics::Metrics,
    process::{Finished, Process, command},
    sse::SseClient,
    token,
    wait::{DEADLINE, eventually},
    ws::{Connect, WsClient},
};

/// The program under test.
pub const NOTIFIER: &str = env!("CARGO_BIN_EXE_notifier");

/// How long one request to the admin port may take before it counts as not answered.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Consecutive free ports, below the range that outgoing connections take theirs from: a node that
/// is restarted finds its port again. A UDP socket of the same number, open until this process ends, keeps the other
/// test processes of this machine away: nothing here speaks UDP.
pub fn free_ports<const N: usize>() -> [u16; N] {
    const FIRST: u16 = 10_000;
    const SPAN: u16 = 22_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    static CLAIMED: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());
    let own = u16::try_from(std::process::id().wrapping_mul(37) % u32::from(SPAN)).expect("< SPAN");
    let length = u16::try_from(N).expect("a few ports");
    for _ in 0..SPAN / length {
        let step = NEXT.fetch_add(length, Ordering::Relaxed);
        let start = FIRST + own.wrapping_add(step) % (SPAN - length);
        let ports: [u16; N] = std::array::from_fn(|index| start + index as u16);
        let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok();
        let claim = |port: &u16| UdpSocket::bind((Ipv4Addr::LOCALHOST, *port));
        if let Ok(claims) = ports.iter().map(claim).collect::<Result<Vec<_>, _>>()
            && ports.iter().all(is_free)
        {
            CLAIMED.lock().extend(claims);
            return ports;
        }
    }
    panic!("no {N} free ports in a row");
}

/// A configuration that a test changes before the node starts.
pub struct Builder {
    config: Table,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
    client: SocketAddr,
    grpc: SocketAddr,
    admin: SocketAddr,
}

impl Builder {
    /// Sets a key by its dotted path, e.g. `sessions.heartbeat`.
    pub fn set(mut self, path: &str, value: impl Into<Toml>) -> Self {
        set(&mut self.config, path, value.into());
        self
    }

    /// Leaves a key out that the harness sets.
    pub fn without(mut self, path: &str) -> Self {
        let (sections, key) = path.rsplit_once('.').expect("a section and a key");
        let mut table = &mut self.config;
        for section in sections.split('.') {
            table = table[section].as_table_mut().expect("a section");
        }
        table.remove(key);
        self
    }

    /// Limits the notifications of this priority only.
    pub fn limit(self, priority: &str, per_second: f64, burst: i64) -> Self {
        let mut limit = Table::new();
        limit.insert("priority".into(), priority.into());
        limit.insert("per_second".into(), per_second.into());
        limit.insert("burst".into(), burst.into());
        self.set("limits.delivery", Toml::Array(vec![limit.into()]))
    }

    /// Sets a librdkafka property.
    pub fn property(mut self, name: &str, value: &str) -> Self {
        let kafka = self.config["kafka"].as_table_mut().expect("a table");
        let properties = kafka.entry("properties").or_insert_with(|| Table::new().into());
        properties.as_table_mut().expect("a table").insert(name.into(), value.into());
        self
    }

    /// Adds a service's key.
    pub fn api_key(mut self, name: &str, key: &str, scopes: &[&str]) -> Self {
        let auth = self.config.entry("auth").or_insert_with(|| Table::new().into());
        let keys = auth.as_table_mut().expect("a table").entry("api_keys").or_insert_with(|| Toml::Array(Vec::new()));
        let mut entry = Table::new();
        entry.insert("name".into(), name.into());
        entry.insert("sha256".into(), hex::encode(sha2::Sha256::digest(key)).into());
        entry.insert("scopes".into(), scopes.to_vec().into());
        keys.as_array_mut().expect("an array").push(entry.into());
        self
    }

    /// Sets an environment variable of the process.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Starts the program by another one, which gets the whole command behind its own arguments.
    pub fn wrapped(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// The environment variables set so far.
    pub fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The client port's address.
    pub fn client(&self) -> SocketAddr {
        self.client
    }

    /// Starts the node and waits until it is ready.
    pub async fn start(self) -> Node {
        let node = self.start_unready();
        node.ready().await;
        node
    }

    /// Starts the node and does not wait.
    pub fn start_unready(self) -> Node {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config_path = self.write(dir.path());
        let Self { environment, wrapper, client, grpc, admin, .. } = self;
        let program = NOTIFIER.to_owned();
        let mut node =
            Node { client, grpc, admin, config_path, environment, wrapper, program, _dir: dir, process: None };
        node.start_again();
        node
    }

    /// Starts a node that must end by itself.
    pub async fn fails(self) -> Finished {
        let mut node = self.start_unready();
        let process = node.process.take().expect("started");
        process.finish(DEADLINE).await
    }

    /// Writes the file into `dir`.
    pub fn write(&self, dir: &Path) -> PathBuf {
        let path = dir.join("notifier.toml");
        let text = toml::to_string(&self.config).expect("a table");
        std::fs::write(&path, text).expect("a writable directory");
        path
    }
}

/// A `notifier serve` process.
pub struct Node {
    client: SocketAddr,
    grpc: SocketAddr,
    admin: SocketAddr,
    config_path: PathBuf,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
    program: String,
    _dir: TempDir,
    process: Option<Process>,
}

impl Node {
    /// A node on that feed with the tests' defaults.
    pub fn builder(feed: &Feed) -> Builder {
        let [client, grpc, admin] = free_ports().map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let builder =
            Builder { config: Table::new(), environment: Vec::new(), wrapper: Vec::new(), client, grpc, admin };
        builder
            .set("node.id", "test")
            .set("client.listen", client.to_string())
            .set("grpc.listen", grpc.to_string())
            .set("admin.listen", admin.to_string())
            .set("kafka.brokers", feed.kafka.bootstrap.as_str())
            .set("kafka.topic", feed.topic.as_str())
            .set("kafka.group", feed.group.as_str())
            .set("kafka.dead_letter_topic", feed.dead_letter_topic.as_str())
            .set("kafka.receipts_topic", "")
            .set("auth.jwt.hs256_secret", token::SECRET)
            // With one priority named the others have no limit.
            .limit("low", 1e9, 1_000_000_000)
    }

    /// A ready node with nothing special.
    pub async fn start(feed: &Feed) -> Self {
        Self::builder(feed).start().await
    }

    /// Starts the process (again) with the same configuration.
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "the node runs already");
        self.process = Some(Process::spawn("notifier serve", self.serve()));
    }

    /// From its next start on it is that program, with one more environment variable.
    pub fn becomes(&mut self, program: &str, (name, value): (&str, &str)) {
        program.clone_into(&mut self.program);
        self.environment.retain(|(one, _)| one != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Starts it once more beside the process that runs; that one must end by itself.
    pub async fn twin(&self) -> Finished {
        Process::run("a second notifier serve", self.serve(), DEADLINE).await
    }

    fn serve(&self) -> Command {
        let mut words = self.wrapper.iter().map(String::as_str).chain([self.program.as_str()]);
        let mut command = command(words.next().expect("the program"));
        command.args(words).args(["serve", "--config"]).arg(&self.config_path);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Waits for readiness.
    pub async fn ready(&self) {
        eventually("readiness", async || {
            let answer = self.try_admin("/readyz").await?;
            (answer.status() == 200).then_some(())
        })
        .await;
    }

    /// Waits until the node runs and says that it is not ready, with `part` in its answer.
    pub async fn unready(&self, part: &str) -> String {
        eventually(&format!("readiness that names {part}"), async || {
            let answer = self.try_admin("/readyz").await?;
            (answer.status() == 503 && answer.body.contains(part)).then_some(answer.body)
        })
        .await
    }

    /// The clients' address.
    pub fn addr(&self) -> SocketAddr {
        self.client
    }

    /// The gRPC port's address.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc
    }

    /// The admin port's address.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin
    }

    pub fn ws_url(&self) -> String {
        format!("ws://{}/v1/connect", self.client)
    }

    pub fn http_url(&self) -> String {
        format!("http://{}", self.client)
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the node runs")
    }

    /// Whether it was started and has not ended.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::running)
    }

    /// The process, which is not this value's any more.
    pub fn take(&mut self) -> Process {
        self.process.take().expect("the node runs")
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.process.as_ref().expect("the node runs").stderr()
    }

    /// A good token for `user`.
    pub fn token(&self, user: &str) -> String {
        token::valid(user)
    }

    /// A handshake with a good token.
    pub fn ws(&self, user: &str) -> Connect {
        Connect::bearer(self.client, &self.token(user))
    }

    /// An open WebSocket of `user`.
    pub async fn connect(&self, user: &str) -> WsClient {
        self.ws(user).open().await
    }

    /// An open event stream of `user`; `query` as in `device=a`.
    pub async fn stream(&self, user: &str, query: &str) -> SseClient {
        let authorization = format!("Bearer {}", self.token(user));
        SseClient::open(self.client, query, &[("Authorization", &authorization)]).await
    }

    /// A request to the client port.
    pub async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
        http::send(self.client, Request { method, path, headers, body }).await
    }

    /// A GET on the admin port; `None` when nobody answers.
    pub async fn try_admin(&self, path: &str) -> Option<Response> {
        let request = Request { method: "GET", path, headers: &[], body: "" };
        let answer = http::try_send(self.admin, request);
        tokio::time::timeout(ADMIN_TIMEOUT, answer).await.ok().flatten()
    }

    /// A GET on the admin port.
    pub async fn admin(&self, path: &str) -> Response {
        http::get(self.admin, path).await
    }

    /// The metrics page.
    pub async fn metrics(&self) -> Metrics {
        let answer = self.admin("/metrics").await;
        assert_eq!(answer.status(), 200, "{answer:?}");
        Metrics::new(answer.body)
    }

    /// Waits until a metric's sum reaches a value.
    pub async fn metric_reaches(&self, name: &str, value: f64) {
        let what = format!("{name} >= {value}");
        eventually(&what, async || (self.metrics().await.sum(name) >= value).then_some(())).await;
    }

    /// Waits until `count` events were taken in and none is unsettled.
    pub async fn settled(&self, count: usize) {
        eventually(&format!("{count} events settled"), async || {
            let metrics = self.metrics().await;
            let taken = metrics.sum("notifier_events_total") >= count as f64;
            (taken && metrics.sum("notifier_unsettled_events") == 0.0).then_some(())
        })
        .await;
    }

    /// Waits until a new connection of `user` without a device starts after `cursor`: an acknowledgement counts
    /// once it is stored, which may be after the connection that sent it has closed.
    pub async fn acknowledged(&self, user: &str, cursor: u64) {
        eventually(&format!("cursor {cursor} of {user}"), async || {
            (self.connect(user).await.hello().cursor == cursor).then_some(())
        })
        .await;
    }

    /// Takes Kafka partitions away or gives them back; returns when the node has begun to.
    pub async fn assign(&self, partitions: Value) {
        self.fault("/faults/assignment", &json!({ "partitions": partitions })).await;
    }

    /// Makes one of the loops that liveness watches stand still for a while.
    pub async fn stall(&self, watched: &str, seconds: u64) {
        self.fault("/faults/stall", &json!({ "loop": watched, "seconds": seconds })).await;
    }

    /// Makes librdkafka report that the consumer, or else the producer of dead letters, is of no use any more.
    pub async fn fail_kafka(&self, consumer: bool) {
        self.fault("/faults/kafka", &json!({ "consumer": consumer })).await;
    }

    async fn fault(&self, path: &str, body: &Value) {
        let headers = [("Content-Type", "application/json")];
        let body = body.to_string();
        let request = Request { method: "POST", path, headers: &headers, body: &body };
        let answer = http::send(self.admin, request).await;
        assert_eq!(answer.status(), 204, "{answer:?}");
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(&mut self) -> Finished {
        let process = self.process.take().expect("the node runs");
        process.signal("TERM");
        process.finish(DEADLINE).await
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.take().expect("the node runs").kill();
    }

    /// Waits until the process ends by itself; its exit code.
    pub async fn ends(&mut self) -> i32 {
        self.process.take().expect("the node runs").finish(DEADLINE).await.code()
    }

    /// SIGTERM, and starts it again on the same ports.
    pub async fn restart(&mut self) {
        self.stop().await.ok();
        self.start_again();
        self.ready().await;
    }

    /// The process as it stands, to be waited for by the test.
    pub fn into_process(mut self) -> (Process, Self) {
        (self.process.take().expect("the node runs"), self)
    }

    /// Another command of the program, with this node's configuration.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(NOTIFIER);
        command.args(arguments).arg("--config").arg(&self.config_path);
        command
    }
}

fn set(table: &mut Table, path: &str, value: Toml) {
    match path.split_once('.') {
        None => {
            table.insert(path.into(), value);
        }
        Some((section, rest)) => {
            let inner = table.entry(section).or_insert_with(|| Table::new().into());
            set(inner.as_table_mut().expect("a section"), rest, value);
        }
    }
}
