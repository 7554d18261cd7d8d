//! What types cannot say: combinations, files, and values that would stop a promise from being kept.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::Path,
    time::Duration,
};

use super::{Config, auth::Jwt, error::Error, secret::StoreUrl};
use crate::{event::Priority, shard::IN_FLIGHT_MAX};

/// HS256 is as strong as its secret: RFC 7518, section 3.2 asks for at least the hash's size.
const HS256_SECRET_BYTES_MIN: usize = 32;
/// Kafka's own limit.
const TOPIC_NAME_BYTES_MAX: usize = 249;
/// Partitions of the log are made for so long.
const RETENTION_MAX: Duration = Duration::from_secs(400 * 24 * 3600);
/// A shard's number is 16 bits long.
const SHARDS_MAX: u32 = 32_768;
/// Characters of a zone's name.
const ZONE_MAX: usize = 64;
/// A partition gets this part of a node's credits.
const PARTITION_SHARE: usize = 4;

impl Config {
    /// Checks everything that a file's types do not say.
    ///
    /// # Errors
    /// Names the first key that is impossible or refused.
    pub fn validate(&self) -> Result<(), Error> {
        self.check_files()?;
        self.check_listeners()?;
        self.check_tls()?;
        self.check_kafka()?;
        self.check_not_zero()?;
        self.check_sizes()?;
        self.check_store()?;
        self.check_cluster()?;
        self.check_clients()?;
        self.check_types()
    }

    /// Checks what a production node needs besides [`Config::validate`].
    ///
    /// # Errors
    /// Names the first key that is missing or too weak.
    pub fn validate_serve(&self) -> Result<(), Error> {
        self.validate()?;
        if self.kafka.brokers.trim().is_empty() {
            return Err(self.wrong("kafka.brokers", r#"is not set; expected "HOST:PORT,…""#));
        }
        let jwt = &self.auth.jwt;
        match &jwt.hs256_secret {
            None if jwt.public_key_files.is_empty() && jwt.jwks_url.is_none() => Err(self.wrong(
                "auth.jwt.hs256_secret",
                "is not set, nor are public_key_files and jwks_url, so that nobody could connect",
            )),
            None => Ok(()),
            Some(secret) if secret.expose().len() < HS256_SECRET_BYTES_MIN => {
                let reason = format!("the secret is too short; expected at least {HS256_SECRET_BYTES_MIN} bytes");
                Err(self.wrong(secret_key(jwt), reason))
            }
            Some(_) => Ok(()),
        }
    }

    pub(crate) fn wrong(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::Value { key: key.to_owned(), reason: reason.into(), origin: self.origins.of(key) }
    }

    fn check_files(&self) -> Result<(), Error> {
        let Self { client, grpc, cluster, auth, store, .. } = self;
        let pairs = [
            ("client.tls_cert_file", &client.tls_cert_file),
            ("client.tls_key_file", &client.tls_key_file),
            ("grpc.tls_cert_file", &grpc.tls_cert_file),
            ("grpc.tls_key_file", &grpc.tls_key_file),
            ("cluster.tls_cert_file", &cluster.tls_cert_file),
            ("cluster.tls_key_file", &cluster.tls_key_file),
            ("cluster.tls_ca_file", &cluster.tls_ca_file),
            ("store.password_file", &store.password_file),
        ];
        let keys = auth.jwt.public_key_files.iter().map(|path| ("auth.jwt.public_key_files", path));
        for (key, path) in pairs.into_iter().filter_map(|(key, path)| Some((key, path.as_ref()?))).chain(keys) {
            // Read, not only opened: a directory opens.
            fs::read(path).map_err(|source| self.unreadable(key, path, source))?;
        }
        for (name, path) in self.kafka.properties.files() {
            let path = Path::new(path);
            // Certificate authorities may be a directory.
            File::open(path).map_err(|source| self.unreadable(&format!("kafka.properties.{name}"), path, source))?;
        }
        Ok(())
    }

    fn unreadable(&self, key: &str, path: &Path, source: std::io::Error) -> Error {
        Error::Unreadable { key: key.to_owned(), path: path.to_owned(), source, origin: self.origins.of(key) }
    }

    fn check_listeners(&self) -> Result<(), Error> {
        let mut listeners = vec![
            ("client.listen", self.client.listen),
            ("grpc.listen", self.grpc.listen),
            ("admin.listen", self.admin.listen),
        ];
        if self.cluster.enabled {
            listeners.push(("cluster.listen", self.cluster.listen));
        }
        for (index, (second, address)) in listeners.iter().enumerate() {
            if let Some((first, _)) = listeners[..index].iter().find(|(_, other)| overlap(*other, *address)) {
                let origin = self.origins.of(second);
                return Err(Error::SamePort { first, second, port: address.port(), origin });
            }
        }
        Ok(())
    }

    fn check_tls(&self) -> Result<(), Error> {
        let Self { client, grpc, .. } = self;
        for (section, cert, key) in
            [("client", &client.tls_cert_file, &client.tls_key_file), ("grpc", &grpc.tls_cert_file, &grpc.tls_key_file)]
        {
            let (missing, set) = match (cert, key) {
                (Some(_), None) => ("key", "cert"),
                (None, Some(_)) => ("cert", "key"),
                _ => continue,
            };
            let reason = format!("is not set; {section}.tls_{set}_file is of no use without it");
            return Err(self.wrong(&format!("{section}.tls_{missing}_file"), reason));
        }
        Ok(())
    }

    fn check_kafka(&self) -> Result<(), Error> {
        let kafka = &self.kafka;
        if let Some((name, instead)) = kafka.properties.refused() {
            let instead = instead.map(|key| format!("; use {key}")).unwrap_or_default();
            let reason = format!("is set by Notifier, whose promises depend on it{instead}");
            return Err(self.wrong(&format!("kafka.properties.{name}"), reason));
        }
        if kafka.group.is_empty() {
            return Err(self.wrong("kafka.group", "is empty"));
        }
        let topics = [
            ("kafka.topic", &kafka.topic),
            ("kafka.dead_letter_topic", &kafka.dead_letter_topic),
            ("kafka.receipts_topic", &kafka.receipts_topic),
        ];
        for (index, (key, topic)) in topics.iter().enumerate() {
            if topic.is_empty() && *key == "kafka.receipts_topic" {
                continue;
            }
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            let named = (1..=TOPIC_NAME_BYTES_MAX).contains(&topic.len()) && topic.bytes().all(allowed);
            if !named || *topic == "." || *topic == ".." {
                let reason = format!(
                    "is no topic's name; expected 1 to {TOPIC_NAME_BYTES_MAX} of the characters a-z A-Z 0-9 . _ -"
                );
                return Err(self.wrong(key, reason));
            }
            // What is written there would be read again as events, for ever.
            if let Some((other, _)) = topics[..index].iter().find(|(_, other)| other == topic) {
                return Err(self.wrong(key, format!("is the same topic as {other}")));
            }
        }
        Ok(())
    }

    fn check_not_zero(&self) -> Result<(), Error> {
        let Self { kafka, log, sessions, limits, buffer, drain, cluster, .. } = self;
        let durations = [
            ("kafka.partition_refresh", kafka.partition_refresh),
            ("log.retention", log.retention),
            ("log.dedup_window", log.dedup_window),
            ("log.ack_deadline", log.ack_deadline),
            ("sessions.heartbeat", sessions.heartbeat),
            ("sessions.slow_deadline", sessions.slow_deadline),
            ("sessions.issued_ttl", sessions.issued_ttl),
            ("limits.handshake_deadline", limits.handshake_deadline),
            ("drain.deadline", drain.deadline),
        ]
        .map(|(key, duration)| (key, duration == Duration::ZERO));
        let numbers = [
            ("log.per_user_max", log.per_user_max),
            ("sessions.per_user_max", sessions.per_user_max),
            ("sessions.window_items", sessions.window_items),
            ("limits.handshakes_max", limits.handshakes_max),
            ("limits.handshakes_per_address", limits.handshakes_per_address),
            ("limits.frame_bytes_max", limits.frame_bytes_max),
            ("limits.payload_bytes_max", limits.payload_bytes_max),
            ("limits.request_bytes_max", limits.request_bytes_max),
            ("buffer.items", buffer.items),
            ("buffer.bytes", buffer.bytes),
            ("drain.goodbyes_per_second", drain.goodbyes_per_second as usize),
            ("cluster.shards", cluster.shards as usize),
        ]
        .map(|(key, number)| (key, number == 0));
        match durations.into_iter().chain(numbers).find(|(_, zero)| *zero) {
            Some((key, _)) => Err(self.wrong(key, "is 0; expected more")),
            None => Ok(()),
        }
    }

    fn check_sizes(&self) -> Result<(), Error> {
        let Self { kafka, log, sessions, limits, .. } = self;
        if kafka.in_flight_events < PARTITION_SHARE {
            let reason = format!("expected at least {PARTITION_SHARE}, one for each partition's share");
            return Err(self.wrong("kafka.in_flight_events", reason));
        }
        if kafka.in_flight_events > IN_FLIGHT_MAX {
            let reason = format!("expected at most {IN_FLIGHT_MAX}");
            return Err(self.wrong("kafka.in_flight_events", reason));
        }
        let payload = limits.payload_bytes_max;
        // Each has to hold the largest event, or that event would wait for room for ever.
        for (key, bytes, factor) in [
            ("kafka.in_flight_bytes", kafka.in_flight_bytes, PARTITION_SHARE),
            ("log.memory_bytes_max", log.memory_bytes_max, 1),
            ("sessions.window_bytes", sessions.window_bytes, 1),
        ] {
            if bytes / factor < payload {
                let times = if factor == 1 { String::new() } else { format!("{factor} times ") };
                let payload = super::value::size_text(payload);
                let reason = format!("expected at least {times}limits.payload_bytes_max, which is {payload}");
                return Err(self.wrong(key, reason));
            }
        }
        Ok(())
    }

    /// A cluster's nodes share a database, and know each other.
    fn check_cluster(&self) -> Result<(), Error> {
        let Self { node, store, cluster, .. } = self;
        if node.zone.chars().count() > ZONE_MAX || node.zone.contains(char::is_control) {
            return Err(self.wrong("node.zone", format!("expected at most {ZONE_MAX} characters, all printable")));
        }
        if !cluster.enabled {
            return Ok(());
        }
        if store.url.as_ref().is_none_or(StoreUrl::is_sqlite) {
            return Err(self.wrong("cluster.enabled", "needs a postgres:// URL in store.url"));
        }
        let files = [&cluster.tls_cert_file, &cluster.tls_key_file, &cluster.tls_ca_file];
        let named = ["cluster.tls_cert_file", "cluster.tls_key_file", "cluster.tls_ca_file"];
        if let Some(missing) = files.iter().position(|file| file.is_none())
            && files.iter().any(|file| file.is_some())
        {
            return Err(self.wrong(named[missing], "is missing: certificate, key and authority go together"));
        }
        if cluster.secret.is_none() && !cluster.listen.ip().is_loopback() {
            return Err(self.wrong("cluster.secret", "is required when cluster.listen is not on loopback"));
        }
        Ok(())
    }

    fn check_store(&self) -> Result<(), Error> {
        let Self { store, log, cluster, .. } = self;
        if store.password_file.is_some() && store.url.as_ref().is_none_or(StoreUrl::is_sqlite) {
            return Err(self.wrong("store.password_file", "is of use only with a postgres:// URL in store.url"));
        }
        if log.retention > RETENTION_MAX {
            return Err(self.wrong("log.retention", "is more than 400 days"));
        }
        if cluster.shards > SHARDS_MAX {
            return Err(self.wrong("cluster.shards", format!("expected at most {SHARDS_MAX}")));
        }
        Ok(())
    }

    fn check_clients(&self) -> Result<(), Error> {
        for (index, origin) in self.client.allowed_origins.iter().enumerate() {
            let host = origin.split_once("://").map_or("", |(_, host)| host);
            if origin != "*" && (host.is_empty() || host.contains(['/', '?', '#', '*', ' '])) {
                let reason = format!(r#"{origin:?} is no origin; expected "https://HOST", "https://HOST:PORT" or "*""#);
                return Err(self.wrong(&format!("client.allowed_origins[{index}]"), reason));
            }
        }
        let jwt = &self.auth.jwt;
        for (key, claim) in [("auth.jwt.issuer", &jwt.issuer), ("auth.jwt.audience", &jwt.audience)] {
            if claim.as_deref() == Some("") {
                return Err(self.wrong(key, "is empty; leave it out to have the claim not checked"));
            }
        }
        // Whoever configures a public key as the secret lets everybody who has read it sign.
        if jwt.hs256_secret.as_ref().is_some_and(|secret| secret.expose().starts_with("-----BEGIN ")) {
            let reason = "is a PEM file; expected a secret (public keys belong into auth.jwt.public_key_files)";
            return Err(self.wrong(secret_key(jwt), reason));
        }
        if jwt.algorithms.as_ref().is_some_and(Vec::is_empty) {
            return Err(self.wrong("auth.jwt.algorithms", "is empty, so that nobody could connect"));
        }
        for (index, limit) in self.limits.delivery.iter().enumerate() {
            let key = format!("limits.delivery[{index}]");
            if limit.priority == Priority::Critical {
                return Err(self.wrong(&format!("{key}.priority"), "critical notifications are never limited"));
            }
            if self.limits.delivery[..index].iter().any(|earlier| earlier.priority == limit.priority) {
                return Err(self.wrong(&format!("{key}.priority"), "has a limit already: one entry for each priority"));
            }
            if limit.per_second <= 0.0 || !limit.per_second.is_finite() {
                return Err(self.wrong(&format!("{key}.per_second"), "expected more than 0"));
            }
            if limit.burst == 0 {
                return Err(self.wrong(&format!("{key}.burst"), "is 0; expected more"));
            }
        }
        Ok(())
    }

    fn check_types(&self) -> Result<(), Error> {
        match self.types.by_pattern().iter().find(|(_, options)| options.ttl == Some(Duration::ZERO)) {
            Some((pattern, _)) => Err(self.wrong(&format!("types.{pattern}.ttl"), "is 0; expected more")),
            None => Ok(()),
        }
    }
}

/// The key that the secret came from.
fn secret_key(jwt: &Jwt) -> &'static str {
    match jwt.hs256_secret_file {
        Some(_) => "auth.jwt.hs256_secret_file",
        None => "auth.jwt.hs256_secret",
    }
}

/// Whether two listeners would ask for the same port of the same address. Port 0 is any free one.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && (any || one.ip() == other.ip())
}
