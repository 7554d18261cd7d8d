//! Loading, as an operator meets it: a file, variables, a message.

use std::{fs, path::PathBuf, time::Duration};

use tempfile::TempDir;

use super::*;
use crate::event::{Durability, Priority};

mod validate;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A directory with a configuration file.
struct Written {
    directory: TempDir,
}

impl Written {
    fn new(toml: &str) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        fs::write(directory.path().join("notifier.toml"), toml).expect("writes");
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn add(&self, name: &str, content: &str) -> String {
        fs::write(self.path(name), content).expect("writes");
        self.path(name).to_str().expect("a UTF-8 path").to_owned()
    }

    fn load(&self, env: &[(&str, &str)]) -> Result<Config, Error> {
        load(Some(&self.path("notifier.toml")), variables(env))
    }
}

fn variables(env: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
    env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
}

fn from_file(toml: &str) -> Result<Config, Error> {
    Written::new(toml).load(&[])
}

fn from_env(env: &[(&str, &str)]) -> Result<Config, Error> {
    load(None, variables(env))
}

/// Asserts that a message says all of this.
fn assert_says(error: &Error, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn contract_example_is_read() {
    let config = from_file(
        r#"
        [node]
        id = "notifier-0"
        [client]
        listen = "127.0.0.1:9000"
        allowed_origins = ["https://app.example.com"]
        [kafka]
        brokers = "k1:9092,k2:9092"
        start = "latest"
        in_flight_bytes = 2097152
        properties = { security.protocol = "SASL_SSL", "sasl.username" = "n", socket.keepalive.enable = true, retries = 3 }
        [log]
        retention = "30d"
        [auth.jwt]
        hs256_secret = "0123456789abcdef0123456789abcdef"
        [sessions]
        heartbeat = "250ms"
        window_bytes = "512KiB"
        [[auth.api_keys]]
        name = "billing"
        sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        scopes = ["publish", "sessions", "read"]
        [[limits.delivery]]
        priority = "normal"
        per_second = 5
        [types."billing.*"]
        durability = "inbox"
        priority = "high"
        ttl = "30d"
        "#,
    )
    .expect("a valid file");

    assert_eq!(config.node.id, "notifier-0");
    assert_eq!(config.client.listen.to_string(), "127.0.0.1:9000");
    assert_eq!(config.kafka.start, Start::Latest);
    assert_eq!(config.kafka.in_flight_bytes, 2 << 20);
    assert_eq!(
        config.kafka.properties.iter().collect::<Vec<_>>(),
        [
            ("retries", "3"),
            ("sasl.username", "n"),
            ("security.protocol", "SASL_SSL"),
            ("socket.keepalive.enable", "true")
        ],
    );
    assert_eq!(config.log.retention, Duration::from_secs(30 * 86_400));
    assert_eq!(config.sessions.heartbeat, Duration::from_millis(250));
    assert_eq!(config.sessions.window_bytes, 512 << 10);
    assert_eq!(config.auth.api_keys[0].scopes, [Scope::Publish, Scope::Sessions, Scope::Read]);
    let limit = &config.limits.delivery[0];
    assert_eq!((limit.per_second, limit.burst, limit.dry_run), (5.0, 100, false));
    assert_eq!(
        config.types.options("billing.paid"),
        ResolvedOptions {
            durability: Durability::Inbox,
            priority: Priority::High,
            ttl: Some(Duration::from_secs(30 * 86_400))
        },
    );
    // What the file leaves out.
    assert_eq!((config.sessions.per_user_max, config.kafka.topic.as_str()), (32, "notifier.events.v1"));
}

#[test]
fn nothing_set_is_the_defaults_on_this_host() {
    let config =
        from_env(&[("PATH", "/bin"), ("NOTIFIER_CONFIG", "x"), ("NOTIFIER_PORT", "tcp://1")]).expect("defaults");
    assert!(!config.node.id.is_empty());
    config.validate().expect("the defaults are valid");
    assert_eq!(effective(&Config { node: Node::default(), ..config }), effective(&Config::default()));
}

#[test]
fn variables_win_over_the_file() {
    let file = Written::new(
        "[kafka]\nbrokers = \"file:1\"\ntopic = \"kept\"\n[kafka.properties]\nsecurity.protocol = \"SSL\"",
    );
    let config = file
        .load(&[
            ("NOTIFIER__KAFKA__BROKERS", "env:1"),
            ("notifier__kafka__in_flight_events", "64"),
            ("NOTIFIER__KAFKA__PROPERTIES__SECURITY_PROTOCOL", "PLAINTEXT"),
            ("NOTIFIER__KAFKA__PROPERTIES__SASL.USERNAME", "12345"),
            ("NOTIFIER__NODE__ID", "7"),
            ("NOTIFIER__CLIENT__ALLOWED_ORIGINS", r#"["https://a.example", "https://b.example"]"#),
            ("NOTIFIER__CLIENT__LISTEN", "[::1]:9000"),
            ("NOTIFIER__SESSIONS__WINDOW_BYTES", "1048576"),
            ("NOTIFIER__SESSIONS__HEARTBEAT", "1m 30s"),
            ("NOTIFIER__CLUSTER__ENABLED", "true"),
            ("NOTIFIER__AUTH__JWT__HS256_SECRET", "123"),
            ("NOTIFIER__TYPES", r#"{"chat.*" = {durability = "transient"}}"#),
            ("NOTIFIER__LIMITS__DELIVERY", r#"[{priority = "low", dry_run = true}]"#),
            ("NOTIFIER__LOG", r#"{per_user_max = 5, retention = "1h"}"#),
            ("NOTIFIER__LOG__PER_USER_MAX", "6"),
        ])
        .expect("valid variables");

    assert_eq!((config.kafka.brokers.as_str(), config.kafka.topic.as_str()), ("env:1", "kept"));
    assert_eq!(config.kafka.in_flight_events, 64);
    assert_eq!(config.kafka.properties.get("security.protocol"), Some("PLAINTEXT"));
    assert_eq!(config.kafka.properties.get("sasl.username"), Some("12345"));
    assert_eq!(config.node.id, "7");
    assert_eq!(config.client.allowed_origins, ["https://a.example", "https://b.example"]);
    assert_eq!(config.client.listen.to_string(), "[::1]:9000");
    assert_eq!(config.sessions.window_bytes, 1 << 20);
    assert_eq!(config.sessions.heartbeat, Duration::from_secs(90));
    assert!(config.cluster.enabled);
    assert_eq!(config.auth.jwt.hs256_secret.as_ref().map(Secret::expose), Some("123"));
    assert_eq!(config.types.options("chat.1").durability, Durability::Transient);
    assert!(config.limits.delivery[0].dry_run);
    assert_eq!((config.log.per_user_max, config.log.retention), (6, Duration::from_secs(3600)));
}

#[test]
fn empty_variable_takes_back_an_optional_key() {
    let file = Written::new("[auth.jwt]\nissuer = \"me\"\n");
    let config = file.load(&[("NOTIFIER__AUTH__JWT__ISSUER", "")]).expect("valid");
    assert_eq!(config.auth.jwt.issuer, None);
    let config = from_env(&[("NOTIFIER__KAFKA__RECEIPTS_TOPIC", "")]).expect("valid");
    assert_eq!(config.kafka.receipts_topic, "");
}

#[test]
fn bad_file_is_named_with_key_and_expectation() {
    for (toml, parts) in [
        ("[kafka]\nbroker = \"x\"", &["kafka.broker:", "no such key", "notifier.toml", "brokers, "][..]),
        ("[kafkaa]\nx = 1", &["kafkaa:", "no such key", "notifier.toml"]),
        (
            "[[auth.api_keys]]\nname = \"a\"\nsha256 = \"00\"",
            &["auth.api_keys[0].sha256:", "64 hexadecimal", "notifier.toml"],
        ),
        ("[[auth.api_keys]]\nnam = 1", &["auth.api_keys[0].nam:", "no such key", "notifier.toml"]),
        ("[types.a]\ncolour = 1", &["types.a.colour:", "no such key", "notifier.toml"]),
        (
            "[kafka]\nin_flight_events = \"x\"",
            &["kafka.in_flight_events:", "notifier.toml", "invalid type: string \"x\""],
        ),
        ("[kafka]\nin_flight_events = -1", &["kafka.in_flight_events:", "`-1`, expected a whole number"]),
        ("[kafka]\nstart = \"middle\"", &["kafka.start:", "`earliest` or `latest`", "notifier.toml"]),
        ("kafka = 5", &["kafka:", "integer `5`, expected a section", "notifier.toml"]),
        ("[sessions]\nheartbeat = 25", &["sessions.heartbeat:", "a duration such as \"250ms\"", "notifier.toml"]),
        ("[sessions]\nheartbeat = \"soon\"", &["sessions.heartbeat:", "\"soon\"", "a duration such as"]),
        ("[sessions]\nwindow_bytes = \"many\"", &["sessions.window_bytes:", "\"many\"", "a size such as \"64KiB\""]),
        ("[sessions]\nwindow_bytes = -1", &["sessions.window_bytes:", "a size such as"]),
        ("[client]\nlisten = \"localhost\"", &["client.listen:", "an IP address and a port", "notifier.toml"]),
        ("[store]\nurl = \"mysql://u:hunter2@h\"", &["store.url:", "expected"]),
        ("[types.\"$bye\"]\nttl = \"1s\"", &["types:", "\"$bye\""]),
        ("[kafka.properties]\nx = [1]", &["kafka.properties.x:", "expected a string, a number"]),
        ("[[limits.delivery]]\nburst = 1", &["limits.delivery[0]", "priority"]),
        ("[kafka]\n\nbrokers = \"a\" \"b\"", &["notifier.toml, line 3:"]),
        ("[kafka]\ntopic = \"a\"\ntopic = \"b\"", &["notifier.toml, line 3:", "duplicate key"]),
    ] {
        assert_says(&from_file(toml).expect_err(toml), parts);
    }
}

#[test]
fn bad_variable_is_named_with_key_and_expectation() {
    for (variable, text, parts) in [
        ("NOTIFIER__KAFKA__BROKER", "x", &["NOTIFIER__KAFKA__BROKER", "brokers, "][..]),
        ("NOTIFIER__", "x", &["the variable NOTIFIER__ names no", "kafka"]),
        ("NOTIFIER__KAFKA__TOPIC__NAME", "x", &["NOTIFIER__KAFKA__TOPIC__NAME", "kafka.topic is not a section"]),
        ("NOTIFIER__TYPES__CHAT__TTL", "1s", &["NOTIFIER__TYPES__CHAT__TTL", "[types] is set as a whole, as TOML"]),
        ("NOTIFIER__KAFKA__PROPERTIES__", "1s", &["NOTIFIER__KAFKA__PROPERTIES__", "as TOML"]),
        ("NOTIFIER__TYPES", "{a = {colour = 1}}", &["types.a.colour:", "the variable NOTIFIER__TYPES"]),
        ("NOTIFIER__SESSIONS__WINDOW_ITEMS", "many", &["sessions.window_items:", "a number", "NOTIFIER__SESSIONS__"]),
        ("NOTIFIER__SESSIONS__WINDOW_ITEMS", "", &["sessions.window_items:", "expected a number"]),
        ("NOTIFIER__SESSIONS__WINDOW_ITEMS", "1\n[kafka]", &["sessions.window_items:", "expected a number"]),
        ("NOTIFIER__SESSIONS__WINDOW_ITEMS", "1.5", &["sessions.window_items:", "1.5", "NOTIFIER__SESSIONS__"]),
        ("NOTIFIER__CLUSTER__ENABLED", "yes", &["cluster.enabled:", "true or false", "NOTIFIER__CLUSTER__ENABLED"]),
        (
            "NOTIFIER__CLIENT__ALLOWED_ORIGINS",
            "https://a",
            &["client.allowed_origins:", "a list as TOML text, such as"],
        ),
        ("NOTIFIER__KAFKA__START", "middle", &["kafka.start:", "`earliest`", "the variable NOTIFIER__KAFKA__START"]),
    ] {
        assert_says(&from_env(&[(variable, text)]).expect_err(variable), parts);
    }
}

#[test]
fn one_key_in_two_variables_is_refused() {
    let error = from_env(&[("NOTIFIER__NODE__ID", "a"), ("notifier__node__id", "b")]).expect_err("two");
    assert_says(&error, &["node.id:", "NOTIFIER__NODE__ID", "notifier__node__id"]);
}

#[test]
fn unreadable_file_is_named() {
    let file = Written::new("");
    let missing = file.path("missing.toml");
    assert_says(&load(Some(&missing), variables(&[])).expect_err("missing"), &["missing.toml"]);
}

#[test]
fn secrets_are_read_from_files_without_their_line_end() {
    let file = Written::new("");
    let jwt = file.add("jwt", &format!("{SECRET}\n"));
    let cluster = file.add("cluster", "two lines\n\r\n");
    let password = file.add("password", " spaces stay ");
    let config = file
        .load(&[
            ("NOTIFIER__AUTH__JWT__HS256_SECRET_FILE", jwt.as_str()),
            ("NOTIFIER__CLUSTER__SECRET_FILE", &cluster),
            ("NOTIFIER__KAFKA__PROPERTIES__SASL_PASSWORD_FILE", &password),
        ])
        .expect("readable files");
    assert_eq!(config.auth.jwt.hs256_secret.as_ref().map(Secret::expose), Some(SECRET));
    assert_eq!(config.cluster.secret.as_ref().map(Secret::expose), Some("two lines\n"));
    assert_eq!(config.kafka.properties.iter().collect::<Vec<_>>(), [("sasl.password", " spaces stay ")]);
}

#[test]
fn secret_file_that_cannot_be_used_is_named() {
    for (toml, parts) in [
        ("[auth.jwt]\nhs256_secret_file = \"/nowhere/jwt\"", &["auth.jwt.hs256_secret_file:", "/nowhere/jwt"][..]),
        ("[cluster]\nsecret_file = \"/nowhere/s\"", &["cluster.secret_file:", "/nowhere/s", "notifier.toml"]),
        (
            "[kafka.properties]\n\"sasl.password_file\" = \"/nowhere/p\"",
            &["kafka.properties.sasl.password_file:", "/nowhere/p", "notifier.toml"],
        ),
        (
            "[auth.jwt]\nhs256_secret = \"a\"\nhs256_secret_file = \"b\"",
            &["auth.jwt.hs256_secret_file:", "set together with auth.jwt.hs256_secret"],
        ),
        (
            "[kafka.properties]\nsasl.password = \"a\"\nsasl.password_file = \"b\"",
            &["kafka.properties.sasl.password_file:", "set together with kafka.properties.sasl.password"],
        ),
    ] {
        assert_says(&from_file(toml).expect_err(toml), parts);
    }
}

#[test]
fn no_output_shows_a_secret() {
    let config = from_file(
        r#"
        [auth.jwt]
        hs256_secret = "hunter2-jwt"
        [cluster]
        secret = "hunter2-cluster"
        [store]
        url = "postgres://notifier:hunter2@db/notifier"
        [kafka.properties]
        sasl.password = "hunter2-sasl"
        ssl.key.password = "hunter2-ssl"
        ssl.key.pem = "hunter2-pem"
        sasl.oauthbearer.client.secret = "hunter2-oauth"
        "#,
    )
    .expect("valid");
    let shown = format!("{}{config:?}{:?}{:?}", effective(&config), config.validate(), config.warnings());
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(shown.contains(r#"hs256_secret = "***""#), "{shown}");

    // Nor does an error, which repeats other values.
    for toml in [
        "[auth.jwt]\nhs256_secret = [\"hunter2\"]",
        "[auth.jwt]\nhs256_secret = \"hunter2\" x",
        "[auth.jwt]\nhs256_secret = \"hunter2",
        "[cluster]\nsecret = { a = \"hunter2\" }",
        "[store]\nurl = \"hunter2\"",
        "[kafka.properties]\nsasl.password = [\"hunter2\"]",
    ] {
        let error = from_file(toml).expect_err(toml);
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
    let error = from_file("[auth.jwt]\nhs256_secret = 902100201").expect_err("a number");
    assert!(!error.to_string().contains("902100201"), "{error}");
}

#[test]
fn written_configuration_reads_back_with_its_secrets() {
    let mut config = Config::default();
    config.node.id = "dev".to_owned();
    config.auth.jwt.hs256_secret = Some(SECRET.into());
    config.cluster.secret = Some("c".into());
    config.store.url = Some(StoreUrl::new("postgres://u:p@h/d").expect("a URL"));
    config.kafka.properties.set("sasl.password", "p");
    config.kafka.in_flight_bytes = 5 << 20;
    config.log.retention = Duration::from_millis(1500);
    config.types = Types::new([("a.*".to_owned(), TypeOptions::default())].into()).expect("a pattern");

    let toml = config.to_toml_with_secrets();
    assert!(!toml.contains("topic"), "only what differs: {toml}");
    let read = from_file(&toml).expect("reads back");
    assert_eq!(effective(&read), effective(&config));
    assert_eq!(read.auth, config.auth);
    assert_eq!(read.cluster, config.cluster);
    assert_eq!(read.store, config.store);
    assert_eq!(read.kafka, config.kafka);
    assert_eq!(Config::default().to_toml_with_secrets(), "");
}

#[test]
fn secret_of_a_file_stays_in_its_file() {
    let file = Written::new("");
    let secret = file.add("secret", SECRET);
    let config = file.load(&[("NOTIFIER__AUTH__JWT__HS256_SECRET_FILE", &secret)]).expect("valid");
    let toml = config.to_toml_with_secrets();
    assert!(!toml.contains(SECRET), "{toml}");
    assert_eq!(from_file(&toml).expect("reads back").auth, config.auth);
}

#[test]
fn effective_configuration_reads_back() {
    let config = from_file("[kafka]\nbrokers = \"k:1\"\n[types.\"a.*\"]\nttl = \"1s\"\n").expect("valid");
    let read = from_file(&effective(&config)).expect("reads back");
    assert_eq!(effective(&read), effective(&config));
}
