//! The Helm chart and the program: the configuration that it writes, the probes and the end that it promises, and the
//! metrics that its alerts and dashboards name. What the chart renders, `tests/chart/check.py` looks at.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::harness::{
    Event, Feed, Node, Store,
    certs::Certs,
    command::{COMMAND_DEADLINE, finish, notifier},
    jwks::{Answer, Issuer},
    node::free_ports,
    process::{Process, command, required},
    token,
};

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Runs `tests/chart/chart.py`; what it prints.
async fn chart(arguments: &[&str]) -> String {
    let tools = PathBuf::from(required("NOTIFIER_TEST_CHART_TOOLS"));
    let mut python = command(tools.join("python/bin/python"));
    python.arg(repository().join("tests/chart/chart.py")).args(arguments);
    Process::run("chart.py", python, COMMAND_DEADLINE).await.ok()
}

/// The objects that the chart renders from a file of values.
async fn rendered(values: &Path) -> Vec<Value> {
    let values = values.to_str().expect("a path of ours");
    serde_json::from_str(&chart(&[values]).await).expect("a list of objects")
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

/// Every `notifier.toml` among the objects.
fn configurations(objects: &[Value]) -> Vec<toml::Table> {
    let texts = objects.iter().filter_map(|object| object["data"]["notifier.toml"].as_str());
    texts.map(|text| text.parse().expect("TOML")).collect()
}

/// What the pod has below `/etc/notifier`, in a directory of the test.
fn mounted(directory: &Path, certs: &Certs) {
    for (file, text) in [
        ("secrets/jwt-secret", token::SECRET),
        ("secrets/store-password", "password"),
        ("secrets/kafka-password", "password"),
        ("secrets/cluster-secret", "between nodes"),
    ] {
        write(&directory.join(file), text.as_bytes());
    }
    for (file, source) in [
        ("tls/tls.crt", certs.cert()),
        ("tls/tls.key", certs.key()),
        ("link-tls/tls.crt", certs.cert()),
        ("link-tls/tls.key", certs.key()),
        ("link-tls/ca.crt", certs.authority()),
        ("kafka-ca/ca.crt", certs.authority()),
        ("kafka-user/user.crt", certs.cert()),
        ("kafka-user/user.key", certs.key()),
    ] {
        write(&directory.join(file), &std::fs::read(source).expect("a certificate"));
    }
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("a writable directory");
    std::fs::write(path, bytes).expect("a writable directory");
}

#[tokio::test]
async fn the_program_accepts_every_configuration_that_the_chart_writes() {
    let certs = Certs::new().await;
    let directory = tempfile::tempdir().expect("a directory");
    mounted(directory.path(), &certs);
    let mut files = vec![repository().join("helm/notifier/values-production.yaml")];
    let matrix = std::fs::read_dir(repository().join("tests/chart/values")).expect("values");
    files.extend(matrix.map(|entry| entry.expect("a file").path()));
    assert!(files.len() > 5, "{files:?}");
    for values in files {
        let configurations = configurations(&rendered(&values).await);
        assert!(!configurations.is_empty(), "{}", values.display());
        for configuration in configurations {
            let finished = checked(&configuration, directory.path()).await;
            assert_eq!(finished.code(), 0, "{}: {finished:?}", values.display());
        }
    }
}

async fn checked(configuration: &toml::Table, directory: &Path) -> crate::harness::process::Finished {
    let text = toml::to_string(configuration).expect("a table");
    let file = directory.join("notifier.toml");
    write(&file, text.replace("/etc/notifier", directory.to_str().expect("UTF-8")).as_bytes());
    let mut command = notifier(&["check-config", "--config"]);
    command.arg(file);
    finish(command).await
}

#[tokio::test]
async fn a_pod_is_asked_and_ended_as_the_chart_says() {
    let directory = tempfile::tempdir().expect("a directory");
    let values = directory.path().join("values.yaml");
    let text = "config: {kafka: {brokers: k}, drain: {deadline: 3s}}\nsecrets: {jwtSecret: {existingSecret: s}}\n";
    std::fs::write(&values, text).expect("a writable directory");
    let objects = rendered(&values).await;
    let pod = &of_kind(&objects, "StatefulSet")["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let path = |probe: &str| container[probe]["httpGet"]["path"].as_str().expect("a path").to_owned();
    let grace = pod["terminationGracePeriodSeconds"].as_u64().expect("seconds");
    let pre_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().expect("seconds");
    let drain = configurations(&objects)[0]["drain"]["deadline"].as_str().expect("a duration").to_owned();

    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("drain.deadline", drain).set("drain.goodbyes_per_second", 1).start().await;
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(node.admin(&path(probe)).await.status(), 200, "{probe}");
    }
    // More goodbyes than there is time for.
    let mut clients = Vec::new();
    for n in 0..30 {
        clients.push(node.connect(&format!("u{n}")).await);
    }
    let (process, node) = node.into_process();
    let told = Instant::now();
    process.signal("TERM");
    node.unready("drain").await;
    assert_eq!(node.admin(&path("readinessProbe")).await.status(), 503);
    assert_eq!(node.admin(&path("livenessProbe")).await.status(), 200, "a node that drains is not killed for it");
    // What the kubelet leaves after the preStop hook.
    let finished = process.finish(Duration::from_secs(grace - pre_stop)).await;
    assert_eq!(finished.code(), 0, "{finished:?}");
    assert!(told.elapsed() >= Duration::from_secs(2), "there was nothing to wait for: {:?}", told.elapsed());
    for client in &mut clients {
        assert_eq!(client.closed().await.1, Some(1001));
    }
}

#[tokio::test]
async fn a_node_exports_every_metric_that_alerts_and_dashboards_name() {
    let certs = Certs::new().await;
    let issuer = Issuer::start(Answer::keys(&[])).await;
    let store = Store::postgres().await;
    let feed = Feed::new(1).await;
    let receipts = format!("{}-receipts", feed.topic);
    feed.kafka.create_topic(&receipts, 1, &[]).await;
    let builder = certs.on_port("grpc", store.of(Node::builder(&feed)));
    let files = toml::Value::Array(vec![certs.cert().display().to_string().into()]);
    let [link] = free_ports();
    let node = builder
        .set("cluster.enabled", true)
        .set("cluster.listen", format!("127.0.0.1:{link}"))
        .set("cluster.secret", "between nodes")
        .set("auth.jwt.public_key_files", files)
        .set("auth.jwt.jwks_url", issuer.url())
        .set("kafka.receipts_topic", receipts.as_str())
        .start()
        .await;
    let mut client = node.connect("101").await;
    feed.send(&Event::new("101", "t")).await;
    client.one().await;
    let named = chart(&["--metrics"]).await;
    assert!(named.lines().count() > 30, "{named}");
    let metrics = node.metrics().await;
    for name in named.lines() {
        assert!(metrics.has(name), "{name} is named and not exported");
    }
}

#[tokio::test]
async fn the_charts_own_test_sends_and_receives() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("auth.jwt.issuer", "issuer").set("auth.jwt.audience", "notifier").start().await;
    // Something that waited before is passed over.
    feed.send(&Event::new("helm-test", "older")).await;
    let send =
        ["send", "--user", "helm-test", "--type", "helm.test", "--data", "1", "--id", "uid", "--durability", "durable"];
    finish(node.command(&send)).await.ok();
    let receive = |secret: &str, audience: &str| {
        let mut receive = command("python3");
        receive.arg(repository().join("helm/notifier/files/receive.py"));
        receive.env("URL", node.http_url()).env("TEST_USER", "helm-test").env("ID", "uid");
        receive.env("JWT_SECRET", secret).env("ISSUER", "issuer").env("AUDIENCE", audience);
        Process::run("receive.py", receive, COMMAND_DEADLINE)
    };
    let finished = receive("another secret, which is long enough", "notifier").await;
    assert!(finished.code() != 0 && finished.stderr.contains("401"), "{finished:?}");
    let finished = receive(token::SECRET, "somebody else").await;
    assert!(finished.code() != 0 && finished.stderr.contains("401"), "{finished:?}");
    // A file often ends with a line end.
    let answer = receive(&format!("{}\n", token::SECRET), "notifier").await.ok();
    assert!(answer.contains("received") && answer.contains("uid"), "{answer}");
}
