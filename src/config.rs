//! The configuration: file and environment into typed values. A bad or unknown key stops the start and
//! is named, with the file or variable it came from.
//!
//! Only values: nothing here opens a socket or knows what uses a key. Every key is
//! typed and documented.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

mod auth;
mod check;
mod cluster;
mod edge;
mod error;
mod kafka;
mod load;
mod patterns;
mod reference;
mod secret;
mod shape;
mod storage;
mod value;

pub use auth::{Algorithm, ApiKey, Auth, Jwt, KeyHash, Scope};
pub use cluster::{Cluster, Node};
pub use edge::{Admin, Buffer, Client, DeliveryLimit, Drain, Grpc, Limits, Network, Sessions};
pub use error::{Error, Origin};
pub use kafka::{Kafka, Properties, Start};
pub use load::host_name;
pub use load::load;
pub use patterns::{InvalidTypes, ResolvedOptions, TypeOptions, Types};
pub use reference::reference;
pub use secret::{Secret, StoreUrl};
pub use storage::{Log, Migrate, Store};

/// The whole configuration, one field per section.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// This node.
    pub node: Node,
    /// The listener for clients: WebSocket, server-sent events, HTTP API, page.
    pub client: Client,
    /// The listener for gRPC.
    pub grpc: Grpc,
    /// The listener for operators: `/metrics`, `/livez`, `/readyz`. It asks for no credentials: keep it off public networks.
    pub admin: Admin,
    /// Several nodes that share the users out among them.
    pub cluster: Cluster,
    /// Where events come from, and where dead letters and receipts go.
    pub kafka: Kafka,
    /// Where users' logs, cursors, positions and started sessions are kept.
    pub store: Store,
    /// The users' logs of notifications.
    pub log: Log,
    /// Who may connect.
    pub auth: Auth,
    /// Sessions, from connect to close.
    pub sessions: Sessions,
    /// What a node takes from clients and producers before it says no.
    pub limits: Limits,
    /// What waits, per user, for a delivery limit; above it, a burst is folded into one digest.
    pub buffer: Buffer,
    /// Delivery options by notification type.
    #[schemars(with = "std::collections::BTreeMap<String, TypeOptions>")]
    pub types: Types,
    /// How a node stops on SIGTERM.
    pub drain: Drain,
    #[serde(skip)]
    origins: error::Origins,
}

impl Config {
    /// What is allowed and probably not meant, one sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut warn = |condition: bool, text: &str| {
            if condition {
                warnings.push(text.to_owned());
            }
        };
        let jwt = &self.auth.jwt;
        warn(jwt.issuer.is_none(), "auth.jwt.issuer is not set: tokens of every issuer are accepted");
        warn(jwt.audience.is_none(), "auth.jwt.audience is not set: tokens for every audience are accepted");
        let lists = |algorithm| jwt.algorithms.as_ref().is_none_or(|listed| listed.contains(&algorithm));
        warn(
            jwt.hs256_secret.is_some() && !lists(Algorithm::Hs256),
            "auth.jwt.algorithms does not list HS256: the secret is not used",
        );
        warn(
            jwt.jwks_url.as_ref().is_some_and(|url| url.starts_with("http:")),
            "auth.jwt.jwks_url is not https: whoever can change the answer on its way can be any user",
        );
        warn(
            self.client.allowed_origins.iter().any(|origin| origin == "*"),
            "client.allowed_origins has \"*\": every web page may connect with its visitor's token",
        );
        warn(
            self.store.url.is_none(),
            "store.url is not set: notifications are kept in memory and end with the process",
        );
        warnings
    }

    /// The configuration as TOML, secrets included: only what differs from the defaults.
    ///
    /// For a file that another process reads back; never for logs.
    #[must_use]
    pub fn to_toml_with_secrets(&self) -> String {
        let mut table = plain(self);
        self.expose_secrets(&mut table);
        remove_equal(&mut table, &plain(&Self::default()));
        toml::to_string(&table).expect("a table of plain values is TOML")
    }

    /// Puts secrets where their masks are. A secret that was read from a file stays there.
    fn expose_secrets(&self, table: &mut Table) {
        let jwt = &self.auth.jwt;
        for (path, secret, has_file) in [
            (["auth", "jwt", "hs256_secret"].as_slice(), &jwt.hs256_secret, jwt.hs256_secret_file.is_some()),
            (&["cluster", "secret"], &self.cluster.secret, self.cluster.secret_file.is_some()),
        ] {
            let shown = secret.as_ref().filter(|_| !has_file).map(|secret| Value::from(secret.expose()));
            replace(table, path, shown);
        }
        replace(table, &["store", "url"], self.store.url.as_ref().map(|url| Value::from(url.expose())));
        let properties: Table = self.kafka.properties.iter().map(|(name, value)| (name.into(), value.into())).collect();
        replace(table, &["kafka", "properties"], Some(Value::Table(properties)));
    }
}

/// The configuration in effect as TOML, defaults included and secrets masked.
#[must_use]
pub fn effective(config: &Config) -> String {
    toml::to_string(config).expect("a configuration is plain values")
}

fn plain(config: &Config) -> Table {
    Table::try_from(config).expect("a configuration is plain values")
}

/// Sets or removes the value at a path of sections that are there.
fn replace(table: &mut Table, path: &[&str], value: Option<Value>) {
    let (last, sections) = path.split_last().expect("a path has a last part");
    let section = sections.iter().try_fold(table, |table, name| table.get_mut(*name)?.as_table_mut());
    let section = section.expect("every section is written");
    match value {
        Some(value) => section.insert((*last).to_owned(), value),
        None => section.remove(*last),
    };
}

fn remove_equal(table: &mut Table, defaults: &Table) {
    table.retain(|key, value| match (value, defaults.get(key)) {
        (Value::Table(inner), Some(Value::Table(defaults))) => {
            remove_equal(inner, defaults);
            !inner.is_empty()
        }
        (value, default) => Some(&*value) != default,
    });
}

#[cfg(test)]
mod tests;
