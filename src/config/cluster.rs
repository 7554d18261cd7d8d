//! This node among others: `[node]`, `[cluster]`.

use std::{net::SocketAddr, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{edge::everywhere, secret::Secret};

/// This node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// Names this node, uniquely in its cluster. Empty: the host name.
    pub id: String,
    /// Where it runs: an availability zone, a rack. Shown in `GET /v1/cluster`; decides nothing.
    pub zone: String,
}

/// Several nodes that share the users out among them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// Whether this node works with others.
    pub enabled: bool,
    /// IP address and port that other nodes connect to.
    #[schemars(extend("format" = "address"))]
    pub listen: SocketAddr,
    /// Host and port at which other nodes reach this one. Empty: the host name and the port of `listen`.
    pub advertise: String,
    /// What the nodes of a cluster know each other by. Required when `listen` is not on loopback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// A file that holds `secret`; a line end after it is cut off.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "file"))]
    pub secret_file: Option<PathBuf>,
    /// How many parts the users are divided into. Fixed when the store is created.
    pub shards: u32,
    /// TLS certificate chain between nodes, a PEM file.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "file"))]
    pub tls_cert_file: Option<PathBuf>,
    /// Private key of the certificate, a PEM file.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "file"))]
    pub tls_key_file: Option<PathBuf>,
    /// Certificates that other nodes' certificates are checked against, a PEM file.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "file"))]
    pub tls_ca_file: Option<PathBuf>,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            enabled: false,
            listen: everywhere(8003),
            advertise: String::new(),
            secret: None,
            secret_file: None,
            shards: 1024,
            tls_cert_file: None,
            tls_key_file: None,
            tls_ca_file: None,
        }
    }
}
