//! `notifier dev`: everything in one process, for a newcomer.

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{
    Kafka, Record,
    command::{CLIENT_DEADLINE, browser, finish, kcat, notifier},
    eventually,
    http::{Request, Response, send},
    node::free_ports,
    process::Process,
    wait::DEADLINE,
    ws::{Connect, WsClient},
};

/// A running `notifier dev`.
struct Dev {
    port: u16,
    process: Process,
    /// How long it took to say that it is ready.
    start: Duration,
}

impl Dev {
    /// Starts it in `dir` and waits for what it prints.
    async fn start(dir: &Path, port: u16) -> Self {
        let mut command = notifier(&["dev", "--port", &port.to_string(), "--data-dir"]);
        command.arg(dir);
        let started = Instant::now();
        let process = Process::spawn("notifier dev", command);
        let page = format!("http://127.0.0.1:{port}");
        let page_by_name = format!("http://localhost:{port}");
        eventually("the page's address on standard output", async || {
            let output = process.stdout();
            let ready = output.contains(&page) || output.contains(&page_by_name);
            (ready && output.contains("notifier send")).then_some(())
        })
        .await;
        Self { port, process, start: started.elapsed() }
    }

    fn addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    async fn request(&self, method: &str, path: &str, body: &str) -> Response {
        let headers = [("Content-Type", "application/json")];
        send(self.addr(), Request { method, path, headers: &headers, body }).await
    }

    /// A token from the page's own endpoint.
    async fn token(&self, user: &str) -> String {
        let answer = self.request("GET", &format!("/dev/token?user={user}"), "").await.json();
        assert_eq!(answer["user"], user, "{answer}");
        assert!(answer["expires_at"].is_string(), "{answer}");
        answer["token"].as_str().expect("a token").to_owned()
    }

    async fn connect(&self, user: &str) -> WsClient {
        Connect::bearer(self.addr(), &self.token(user).await).open().await
    }

    async fn stop(self) {
        self.process.signal("TERM");
        self.process.finish(DEADLINE).await.ok();
    }
}

/// The ports that `dev` takes are the first five from `--port`.
fn port() -> u16 {
    let [port, ..] = free_ports::<5>();
    port
}

fn data_dir() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

async fn send_by_command(dir: &Path, arguments: &[&str]) {
    let mut command = notifier(&["send", "--config"]);
    command.arg(dir.join("notifier.toml")).args(arguments);
    finish(command).await.ok();
}

#[tokio::test]
async fn dev_prints_where_to_connect_although_nobody_is_at_a_terminal() {
    let dir = data_dir();
    let dev = Dev::start(dir.path(), port()).await;
    assert!(dev.start < Duration::from_secs(10), "ready after {:?}", dev.start);
    let output = dev.process.stdout();
    let has_socket = output.contains("ws://") && output.contains("/v1/connect");
    assert!(has_socket, "no WebSocket address: {output}");
    // The token that it prints is a good one.
    let token = output
        .split(|c: char| c.is_whitespace() || "\"'=?&".contains(c))
        .find(|word| word.starts_with("eyJ") && word.matches('.').count() == 2)
        .unwrap_or_else(|| panic!("no token: {output}"));
    Connect::bearer(dev.addr(), token).open().await;
    assert!(output.contains("notifier send --"), "no command that sends: {output}");
    // They hold what lets in whoever reads it.
    for file in ["notifier.toml", "api-key"] {
        let mode = dir.path().join(file).metadata().expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    dev.stop().await;
}

#[tokio::test]
async fn dev_started_and_stopped_again_in_one_directory_delivers_what_is_sent_after_each_start() {
    let dir = data_dir();
    let port = port();
    for start in 0..3 {
        let dev = Dev::start(dir.path(), port).await;
        let mut client = dev.connect("101").await;
        for n in 0..3 {
            let kind = format!("start-{start}-{n}");
            send_by_command(dir.path(), &["--user", "101", "--type", &kind, "--data", "{}"]).await;
            assert_eq!(client.expect_acked(1).await[0].kind, kind);
        }
        // What is not acknowledged comes again, and the numbers go on from start to start.
        let cursor = async || dev.connect("101").await.hello().cursor;
        eventually("a stored cursor", async || (cursor().await == 3 * (start + 1)).then_some(())).await;
        dev.stop().await;
    }
}

/// Everything in the directory that `dev` writes, but the database, which lives.
fn written(dir: &Path) -> Vec<String> {
    ["notifier.toml", "api-key", "lock"].map(|file| std::fs::read_to_string(dir.join(file)).expect("a file")).into()
}

#[tokio::test]
async fn a_second_dev_in_one_directory_touches_nothing_and_says_which_process_has_it() {
    let dir = data_dir();
    let mut dev = Dev::start(dir.path(), port()).await;
    let before = written(dir.path());
    let mut command = notifier(&["dev", "--port", &port().to_string(), "--data-dir"]);
    command.arg(dir.path());
    let second = Process::run("a second notifier dev", command, CLIENT_DEADLINE).await;
    assert_eq!(second.code(), 2, "{second:?}");
    for said in ["--data-dir", dir.path().to_str().expect("UTF-8"), &dev.process.id().to_string()] {
        assert!(second.stderr.contains(said), "{said} in {}", second.stderr);
    }
    assert_eq!(written(dir.path()), before);
    // The first goes on, and what it stores is delivered.
    let mut client = dev.connect("101").await;
    send_by_command(dir.path(), &["--user", "101", "--type", "still", "--data", "{}"]).await;
    assert_eq!(client.one().await.kind, "still");
    // Killed, it keeps nobody from the directory.
    dev.process.kill();
    let again = Dev::start(dir.path(), port()).await;
    let mut client = again.connect("102").await;
    send_by_command(dir.path(), &["--user", "102", "--type", "again", "--data", "{}"]).await;
    assert_eq!(client.one().await.kind, "again");
    // Its broker is a new one each time: nothing to be warned of.
    assert!(!again.process.stderr().contains("another cluster"), "{}", again.process.stderr());
    again.stop().await;
}

#[tokio::test]
async fn dev_refuses_a_bad_value_by_its_key() {
    let dir = data_dir();
    let mut command = notifier(&["dev", "--port", &port().to_string(), "--data-dir"]);
    command.arg(dir.path()).env("NOTIFIER__BUFFER__ITEMS", "0");
    let ended = Process::run("notifier dev", command, CLIENT_DEADLINE).await;
    assert_eq!(ended.code(), 2, "{ended:?}");
    assert!(ended.stderr.contains("buffer.items: "), "{}", ended.stderr);
    assert!(ended.stderr.contains("NOTIFIER__BUFFER__ITEMS"), "{}", ended.stderr);
}

#[tokio::test]
async fn dev_takes_events_from_the_form_and_by_the_short_json() {
    let dir = data_dir();
    let dev = Dev::start(dir.path(), port()).await;
    let mut client = dev.connect("101").await;
    let event = r#"{"target":"101","type":"form","payload":{"big":9007199254740993},"durability":"durable"}"#;
    // As the page does it; the key is also in the file that `dev` keeps.
    let key = dev.request("GET", "/dev/token?user=101", "").await.json()["api_key"].clone();
    let key = key.as_str().expect("a key");
    let kept = std::fs::read_to_string(dir.path().join("api-key")).expect("a file with the key");
    assert_eq!(kept.trim(), key);
    assert!(dev.process.stdout().contains(&format!("X-API-Key: {key}")), "no command that sends over HTTP");
    let headers = [("Content-Type", "application/json"), ("X-API-Key", key)];
    let post =
        async |body| send(dev.addr(), Request { method: "POST", path: "/v1/events", headers: &headers, body }).await;
    let answer = post(event).await;
    assert_eq!(answer.status(), 202, "{answer:?}");
    let ids = answer.json()["ids"].clone();
    let frame = client.one().await;
    assert_eq!(ids, json!([frame.id.as_deref()]));
    assert_eq!(frame.raw(), r#"{"big":9007199254740993}"#);
    let refused = post(r#"{"target":"101"}"#).await;
    refused.problem(400);
    assert!(refused.json()["detail"].is_string(), "{refused:?}");
    dev.stop().await;
}

#[tokio::test]
async fn devs_embedded_broker_takes_records_from_kcat_and_from_a_library() {
    let dir = data_dir();
    let dev = Dev::start(dir.path(), port()).await;
    let mut client = dev.connect("101").await;
    let broker = format!("127.0.0.1:{}", dev.port + 4);
    let event = r#"{"target":"101","type":"greeting","payload":{"hello":"kcat"}}"#;
    let arguments = ["-P", "-b", &broker, "-t", "notifier.events.v1"];
    Process::run("kcat", kcat(&arguments, event), CLIENT_DEADLINE).await.ok();
    let frame = client.one().await;
    assert_eq!((frame.kind.as_str(), frame.raw()), ("greeting", r#"{"hello":"kcat"}"#));
    let library = Record::new(r#"{"target":101,"type":"library","payload":1}"#).key("101");
    Kafka::at(&broker).write("notifier.events.v1", &library).await;
    assert_eq!(client.one().await.kind, "library");
    dev.stop().await;
}

#[tokio::test]
async fn the_other_commands_find_devs_configuration_by_themselves() {
    let dir = data_dir();
    let data = dir.path().join(".notifier");
    let dev = Dev::start(&data, port()).await;
    let mut client = dev.connect("101").await;
    let mut command = notifier(&["send", "--user", "101", "--type", "found", "--data", "{}"]);
    command.current_dir(dir.path());
    finish(command).await.ok();
    assert_eq!(client.one().await.kind, "found");
    dev.stop().await;
}

#[tokio::test]
async fn the_page_works_in_a_real_browser() {
    let dir = data_dir();
    let dev = Dev::start(dir.path(), port()).await;
    let pictures = data_dir();
    let mut command = browser("page.mjs");
    command.arg(format!("http://127.0.0.1:{}", dev.port)).arg(pictures.path());
    let output = Process::run("page.mjs", command, CLIENT_DEADLINE).await.ok();
    let summary: Value = serde_json::from_str(output.trim()).expect("a summary");
    for name in ["light.png", "dark.png", "phone.png"] {
        let picture = std::fs::read(pictures.path().join(name)).expect("a picture");
        assert!(picture.len() > 5_000, "{name} shows nothing: {summary}");
    }
    dev.stop().await;
}
