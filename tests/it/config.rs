//! A configuration that cannot work stops the start with status 2 and is named.

use crate::harness::{
    Event, Feed, Kafka, Node,
    certs::Certs,
    command::finish,
    node::{Builder, free_ports},
    token::SECRET,
};

/// A node that needs no broker: its configuration is refused before.
fn builder() -> Builder {
    Node::builder(&Feed::named(&Kafka::at("127.0.0.1:1"), 1))
}

/// `serve` and `check-config` must both refuse, naming every one of `named`.
async fn refused(change: impl Fn(Builder) -> Builder, named: &[&str]) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let builder = change(builder());
    let path = builder.write(dir.path());
    let mut check = crate::harness::command::notifier(&["check-config", "--config"]);
    check.arg(path).envs(builder.environment());
    for (what, finished) in [("check-config", finish(check).await), ("serve", builder.fails().await)] {
        assert_eq!(finished.code(), 2, "{what}: {finished:?}");
        for name in named {
            assert!(finished.stderr.contains(name), "{what} does not name {name}: {finished:?}");
        }
        assert!(!finished.stderr.contains("panicked"), "{finished:?}");
        assert!(!finished.stderr.contains(SECRET), "{finished:?}");
    }
}

#[tokio::test]
async fn an_unknown_key_is_named() {
    refused(|builder| builder.set("client.lisen", "127.0.0.1:1"), &["client", "lisen"]).await;
    refused(|builder| builder.set("clients.listen", "127.0.0.1:1"), &["clients"]).await;
}

#[tokio::test]
async fn a_value_of_the_wrong_type_is_named() {
    refused(|builder| builder.set("sessions.window_items", "many"), &["sessions.window_items"]).await;
    refused(|builder| builder.set("sessions.heartbeat", 25), &["sessions.heartbeat"]).await;
    refused(|builder| builder.set("limits.frame_bytes_max", "64 parsecs"), &["limits.frame_bytes_max"]).await;
    refused(|builder| builder.set("client.listen", "nowhere"), &["client.listen"]).await;
    refused(|builder| builder.set("kafka.start", "middle"), &["kafka.start"]).await;
}

#[tokio::test]
async fn two_listeners_on_one_port_are_named() {
    let [port] = free_ports();
    let listen = format!("127.0.0.1:{port}");
    refused(
        |builder| builder.set("client.listen", listen.as_str()).set("admin.listen", listen.as_str()),
        &["client.listen", "admin.listen"],
    )
    .await;
}

#[tokio::test]
async fn what_is_not_there_yet_is_refused_and_not_ignored() {
    refused(|builder| builder.set("cluster.enabled", true), &["cluster.enabled", "postgres://"]).await;
}

#[tokio::test]
async fn an_unreadable_certificate_is_named() {
    for key in ["client.tls_cert_file", "grpc.tls_cert_file", "grpc.tls_key_file"] {
        let missing = "/nonexistent/notifier.pem";
        refused(|builder| builder.without("auth.jwt.hs256_secret").set(key, missing), &[key, missing]).await;
    }
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_named() {
    let (certs, other) = (Certs::new().await, Certs::new().await);
    let text = |path: std::path::PathBuf| path.to_str().expect("UTF-8").to_owned();
    let (cert, key) = ("client.tls_cert_file", "client.tls_key_file");
    refused(|builder| builder.set(cert, text(certs.cert())), &[key, "is not set"]).await;
    refused(|builder| builder.set(key, text(certs.key())), &[cert, "is not set"]).await;
    // Two files that are there and are something else.
    let pair = |cert_file: String, key_file: String| {
        move |builder: Builder| builder.set(cert, cert_file.as_str()).set(key, key_file.as_str())
    };
    refused(pair(text(certs.key()), text(certs.key())), &["client.tls_cert_file: ", "holds no certificate"]).await;
    refused(pair(text(certs.cert()), text(certs.cert())), &["client.tls_key_file: ", "no private key"]).await;
    refused(pair(text(certs.cert()), text(other.key())), &["client.tls_key_file: ", "is not the key of"]).await;
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(other.cert(), broken).expect("a writable file");
    refused(pair(text(other.cert()), text(other.key())), &["client.tls_cert_file: ", "cannot be read"]).await;
}

#[tokio::test]
async fn a_network_that_is_none_is_named() {
    for bad in ["10.0.0.0/33", "localhost", "10.0.0", ""] {
        let proxies = vec!["192.0.2.1", bad];
        refused(
            |builder| builder.set("client.trusted_proxies", proxies.clone()),
            &["client.trusted_proxies", "expected such as"],
        )
        .await;
    }
}

#[tokio::test]
async fn kafka_properties_that_safety_depends_on_are_refused_by_name() {
    for (name, value) in [
        ("enable.auto.offset.store", "true"),
        ("enable.auto.commit", "true"),
        ("group.id", "another"),
        ("isolation.level", "read_uncommitted"),
        ("auto.offset.reset", "latest"),
        ("acks", "0"),
    ] {
        refused(|builder| builder.property(name, value), &["kafka.properties", name]).await;
    }
}

#[tokio::test]
async fn a_kafka_property_that_librdkafka_does_not_know_is_named() {
    refused_by_serve(|builder| builder.property("no.such.property", "1"), "no.such.property").await;
}

/// For what only the library itself can know.
async fn refused_by_serve(change: impl Fn(Builder) -> Builder, named: &str) {
    let finished = change(builder()).fails().await;
    assert_eq!(finished.code(), 2, "{finished:?}");
    assert!(finished.stderr.contains(named), "{finished:?}");
}

#[tokio::test]
async fn a_short_or_missing_secret_is_refused() {
    refused_by_serve(|builder| builder.set("auth.jwt.hs256_secret", "short"), "hs256_secret").await;
    let missing = "/nonexistent/secret";
    let key = "auth.jwt.hs256_secret_file";
    refused(|builder| builder.without("auth.jwt.hs256_secret").set(key, missing), &[key, missing]).await;
}

#[tokio::test]
async fn a_file_that_is_missing_or_no_toml_is_named() {
    let missing = finish(crate::harness::command::notifier(&["serve", "--config", "/nonexistent.toml"]));
    let missing = missing.await;
    assert_eq!(missing.code(), 2, "{missing:?}");
    assert!(missing.stderr.contains("/nonexistent.toml"), "{missing:?}");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("broken.toml");
    std::fs::write(&path, "[client\nlisten = 3").expect("a writable directory");
    let mut command = crate::harness::command::notifier(&["serve", "--config"]);
    command.arg(&path);
    let broken = finish(command).await;
    assert_eq!(broken.code(), 2, "{broken:?}");
    assert!(broken.stderr.contains("broken.toml"), "{broken:?}");
}

#[tokio::test]
async fn the_environment_overrides_the_file() {
    let feed = Feed::new(1).await;
    // The file's own port is not the one that is used.
    let [other] = free_ports();
    let builder = Node::builder(&feed);
    let listen = builder.client().to_string();
    let node = builder
        .set("client.listen", format!("127.0.0.1:{other}"))
        .env("NOTIFIER__CLIENT__LISTEN", &listen)
        .env("NOTIFIER__SESSIONS__HEARTBEAT", "9s")
        .env("NOTIFIER__AUTH__JWT__HS256_SECRET", SECRET)
        .start()
        .await;
    let mut client = node.connect("101").await;
    assert_eq!(client.hello().heartbeat_ms, 9_000);
    feed.send(&Event::new("101", "t")).await;
    client.one().await;
    assert!(std::net::TcpStream::connect(("127.0.0.1", other)).is_err(), "the file's port is open");
}

#[tokio::test]
async fn a_bad_environment_variable_is_named() {
    refused(|builder| builder.env("NOTIFIER__CLIENT__LISTEN", "nowhere"), &["NOTIFIER__CLIENT__LISTEN"]).await;
    refused(|builder| builder.env("NOTIFIER__CLIENT__LISEN", "x"), &["NOTIFIER__CLIENT__LISEN"]).await;
}

#[tokio::test]
async fn a_node_without_a_store_says_that_nothing_outlives_it() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).start().await;
    let log = node.log();
    assert!(log.to_lowercase().contains("warn") && log.contains("store.url is not set"), "{log}");
}

#[tokio::test]
async fn check_config_prints_what_applies_and_masks_secrets() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let builder = builder()
        .set("sessions.heartbeat", "11s")
        .property("sasl.password", "hunter2hunter2")
        .property("client.id", "visible");
    let path = builder.write(dir.path());
    let mut command = crate::harness::command::notifier(&["check-config", "--config"]);
    command.arg(&path).env("NOTIFIER__SESSIONS__PER_USER_MAX", "7");
    let finished = finish(command).await;
    let output = format!("{}{}", finished.stdout, finished.stderr);
    assert!(!output.contains(SECRET) && !output.contains("hunter2"), "{output}");
    let text = finished.ok();
    for wanted in ["heartbeat", "11s", "per_user_max = 7", "hs256_secret", "window_items", "visible"] {
        assert!(text.contains(wanted), "{wanted} is missing: {text}");
    }
    text.parse::<toml::Table>().expect("the output is TOML itself");
}
