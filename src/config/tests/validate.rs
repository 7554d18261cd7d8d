//! Checking what types cannot say.

use super::*;

#[test]
fn impossible_configuration_is_refused_by_name() {
    for (toml, parts) in [
        ("[admin]\nlisten = \"127.0.0.1:8000\"", &["client.listen and admin.listen", "8000", "notifier.toml"][..]),
        ("[grpc]\nlisten = \"0.0.0.0:8000\"", &["client.listen and grpc.listen", "8000", "notifier.toml"]),
        ("[log]\nper_user_max = 0", &["log.per_user_max: is 0", "notifier.toml"]),
        ("[log]\nretention = \"0s\"", &["log.retention: is 0"]),
        ("[sessions]\nheartbeat = \"0s\"", &["sessions.heartbeat: is 0"]),
        ("[sessions]\nwindow_items = 0", &["sessions.window_items: is 0"]),
        ("[sessions]\nper_user_max = 0", &["sessions.per_user_max: is 0"]),
        ("[drain]\ngoodbyes_per_second = 0", &["drain.goodbyes_per_second: is 0"]),
        ("[limits]\nframe_bytes_max = 0", &["limits.frame_bytes_max: is 0"]),
        ("[kafka]\nin_flight_events = 3", &["kafka.in_flight_events:", "at least 4"]),
        ("[node]\nzone = \"a\\u0000\"", &["node.zone:", "printable"]),
        ("[kafka]\nin_flight_events = 524289", &["kafka.in_flight_events:", "at most 524288"]),
        (
            "[kafka]\nin_flight_bytes = \"1000KiB\"",
            &["kafka.in_flight_bytes:", "at least 4 times limits.payload_bytes_max"],
        ),
        (
            "[sessions]\nwindow_bytes = \"255KiB\"",
            &["sessions.window_bytes:", "limits.payload_bytes_max, which is 256KiB"],
        ),
        ("[log]\nmemory_bytes_max = 1", &["log.memory_bytes_max:"]),
        ("[kafka]\ngroup = \"\"", &["kafka.group: is empty"]),
        ("[kafka]\ntopic = \"\"", &["kafka.topic: is no topic's name"]),
        ("[kafka]\ntopic = \"a b\"", &["kafka.topic: is no topic's name"]),
        (
            "[kafka]\ndead_letter_topic = \"notifier.events.v1\"",
            &["kafka.dead_letter_topic:", "same topic as kafka.topic"],
        ),
        (
            "[client]\nallowed_origins = [\"*\", \"app.example\"]",
            &["client.allowed_origins[1]:", "\"app.example\" is no origin"],
        ),
        ("[client]\nallowed_origins = [\"https://a.example/\"]", &["client.allowed_origins[0]:"]),
        ("[auth.jwt]\nissuer = \"\"", &["auth.jwt.issuer: is empty"]),
        ("[auth.jwt]\nalgorithms = []", &["auth.jwt.algorithms: is empty"]),
        (
            "[auth.jwt]\nhs256_secret = \"-----BEGIN PUBLIC KEY-----\\nMIIB\"",
            &["auth.jwt.hs256_secret: is a PEM file", "public_key_files"],
        ),
        (
            "[[limits.delivery]]\npriority = \"low\"\n[[limits.delivery]]\npriority = \"low\"",
            &["limits.delivery[1].priority: has a limit already", "notifier.toml"],
        ),
        (
            "[[limits.delivery]]\npriority = \"critical\"",
            &["limits.delivery[0].priority: critical notifications are never limited"],
        ),
        ("[[limits.delivery]]\npriority = \"low\"\nper_second = 0", &["limits.delivery[0].per_second: expected more"]),
        ("[[limits.delivery]]\npriority = \"low\"\nburst = 0", &["limits.delivery[0].burst: is 0"]),
        ("[buffer]\nitems = 0", &["buffer.items: is 0"]),
        ("[types.a]\nttl = \"0s\"", &["types.a.ttl: is 0", "notifier.toml"]),
        (
            "[client]\ntls_cert_file = \"/nowhere/c.pem\"",
            &["client.tls_cert_file: cannot read /nowhere/c.pem", "notifier.toml"],
        ),
        ("[grpc]\ntls_key_file = \"/\"", &["grpc.tls_key_file: cannot read /"]),
        ("[cluster]\ntls_ca_file = \"/nowhere/ca\"", &["cluster.tls_ca_file: cannot read"]),
        ("[auth.jwt]\npublic_key_files = [\"/nowhere/k\"]", &["auth.jwt.public_key_files: cannot read /nowhere/k"]),
        (
            "[kafka.properties]\nssl.ca.location = \"/nowhere/ca\"",
            &["kafka.properties.ssl.ca.location: cannot read /nowhere/ca", "notifier.toml"],
        ),
        ("[kafka.properties]\nssl.key.location = \"/nowhere/k\"", &["kafka.properties.ssl.key.location: cannot read"]),
    ] {
        assert_says(&from_file(toml).expect(toml).validate().expect_err(toml), parts);
    }
}

#[test]
fn dangerous_kafka_properties_are_refused_by_name() {
    for name in "bootstrap.servers metadata.broker.list group.id group.instance.id group.protocol enable.auto.commit \
                 auto.commit.enable enable.auto.offset.store auto.offset.reset isolation.level enable.partition.eof \
                 partition.assignment.strategy enable.idempotence acks request.required.acks statistics.interval.ms \
                 plugin.library.paths transactional.id topic.acks topic.auto.offset.reset"
        .split_whitespace()
    {
        let config = from_file(&format!("[kafka.properties]\n{name} = \"1\"")).expect(name);
        assert_says(&config.validate().expect_err(name), &[&format!("kafka.properties.{name}:"), "is set by Notifier"]);
    }
    let config = from_file("[kafka.properties]\ngroup.id = \"x\"").expect("read");
    assert_says(&config.validate().expect_err("refused"), &["use kafka.group"]);
}

#[test]
fn harmless_settings_are_accepted() {
    let file = Written::new("");
    let ca = file.add("ca.pem", "x");
    for toml in [
        "[kafka.properties]\nqueued.max.messages.kbytes = 1024\nsecurity.protocol = \"SASL_SSL\"".to_owned(),
        format!("[kafka.properties]\nssl.ca.location = \"{ca}\""),
        "[kafka.properties]\nssl.ca.location = \"probe\"".to_owned(),
        "[kafka]\nreceipts_topic = \"\"".to_owned(),
        "[kafka]\nreceipts_topic = \"receipts\"".to_owned(),
        "[[limits.delivery]]\npriority = \"normal\"".to_owned(),
        "[log]\ndedup_window = \"1h\"".to_owned(),
        "[types.\"*\"]\ndurability = \"transient\"\npriority = \"low\"\nttl = \"1h\"".to_owned(),
        "[client]\nlisten = \"127.0.0.1:8002\"\n[admin]\nlisten = \"127.0.0.2:8002\"".to_owned(),
        "[client]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"".to_owned(),
        "[limits]\nconnections_max = 0\nconnects_per_second = 0\nconnections_per_address = 0".to_owned(),
        "[auth.jwt]\nalgorithms = [\"HS256\", \"RS256\"]\njwks_url = \"https://login.example/keys\"".to_owned(),
        "[cluster]\nenabled = false\nshards = 1024\n[buffer]\nitems = 1".to_owned(),
        "[client]\nallowed_origins = [\"*\", \"http://localhost:3000\", \"https://app.example.com\"]".to_owned(),
    ] {
        if let Err(error) = from_file(&toml).expect(&toml).validate() {
            panic!("{toml}: {error}");
        }
    }
}

#[test]
fn a_cluster_without_what_it_needs_is_refused() {
    const SHARED: &str = "[store]\nurl = \"postgres://h/d\"\n[cluster]\nenabled = true\n";
    let file = Written::new("");
    let pem = file.add("some.pem", "x");
    for (key, toml) in [
        ("cluster.enabled: needs a postgres:// URL in store.url", "[cluster]\nenabled = true".to_owned()),
        (
            "cluster.enabled: needs a postgres:// URL in store.url",
            "[store]\nurl = \"sqlite:n.db\"\n[cluster]\nenabled = true".to_owned(),
        ),
        ("cluster.secret: is required when cluster.listen is not on loopback", SHARED.to_owned()),
        ("cluster.tls_cert_file: is missing", format!("{SHARED}secret = \"x\"\ntls_ca_file = \"{pem}\"")),
    ] {
        let error = from_file(&toml).expect(&toml).validate().expect_err(&toml);
        assert_says(&error, &[key]);
    }
    from_file(&format!("{SHARED}secret = \"x\"")).expect("typed").validate().expect("nothing is missing");
}

#[test]
fn variable_of_a_refused_value_is_named() {
    let config = from_env(&[("NOTIFIER__CLUSTER__ENABLED", "true")]).expect("typed");
    assert_says(
        &config.validate().expect_err("refused"),
        &["cluster.enabled:", "the variable NOTIFIER__CLUSTER__ENABLED"],
    );
}

#[test]
fn serve_needs_brokers_and_a_long_secret() {
    for (brokers, secret, says) in [
        ("", SECRET, Some("kafka.brokers: is not set")),
        ("k:9092", "", Some("auth.jwt.hs256_secret: is not set")),
        ("k:9092", &SECRET[1..], Some("auth.jwt.hs256_secret: the secret is too short; expected at least 32 bytes")),
        ("k:9092", SECRET, None),
    ] {
        let mut config = Config::default();
        config.kafka.brokers = brokers.to_owned();
        config.auth.jwt.hs256_secret = Some(secret).filter(|secret| !secret.is_empty()).map(Secret::from);
        config.validate().expect("other commands need neither");
        match (config.validate_serve(), says) {
            (Ok(()), None) => {}
            (Err(error), Some(says)) => assert_says(&error, &[says]),
            (result, says) => panic!("{result:?} instead of {says:?}"),
        }
    }
}

#[test]
fn serve_needs_keys_from_one_source_of_any_kind() {
    for toml in [
        "hs256_secret = \"0123456789abcdef0123456789abcdef\"",
        "public_key_files = [\"some.pem\"]",
        "jwks_url = \"https://login.example/keys\"",
    ] {
        let mut config = from_file(&format!("[kafka]\nbrokers = \"k:9092\"\n[auth.jwt]\n{toml}")).expect(toml);
        // Whether it is there is another question.
        config.auth.jwt.public_key_files.iter_mut().for_each(|path| *path = file!().into());
        assert!(config.validate_serve().is_ok(), "{toml}");
    }
}

#[test]
fn warnings_name_what_is_probably_not_meant() {
    let warns = |toml: &str, key: &str| {
        from_file(toml).expect(toml).warnings().iter().filter(|warning| warning.starts_with(key)).count()
    };
    assert_eq!(warns("", "auth.jwt.issuer"), 1);
    assert_eq!(warns("", "auth.jwt.audience"), 1);
    assert_eq!(warns("", "store.url"), 1);
    assert_eq!(warns("[store]\nurl = \"sqlite:x.db\"", "store.url"), 0);
    assert_eq!(warns("[client]\nallowed_origins = [\"*\"]", "client.allowed_origins"), 1);
    assert_eq!(warns("[auth.jwt]\nissuer = \"i\"\naudience = \"a\"", "auth.jwt"), 0);
    assert_eq!(warns("[auth.jwt]\njwks_url = \"http://login.example/keys\"", "auth.jwt.jwks_url is not https"), 1);
    assert_eq!(warns("[auth.jwt]\njwks_url = \"https://login.example/keys\"", "auth.jwt.jwks_url"), 0);
    let unused = |listed: &str| format!("[auth.jwt]\nhs256_secret = \"s\"\nalgorithms = [\"{listed}\"]");
    assert_eq!(warns(&unused("RS256"), "auth.jwt.algorithms does not list HS256"), 1);
    assert_eq!(warns(&unused("HS256"), "auth.jwt.algorithms"), 0);
}
