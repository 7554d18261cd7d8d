//! What clients see: `[client]`, `[grpc]`, `[admin]`, `[sessions]`, `[limits]`, `[buffer]`, `[drain]`.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::value::{DurationText, SizeText, duration, size};
use crate::event::Priority;

/// The listener for clients: WebSocket, server-sent events, HTTP API, page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Client {
    /// IP address and port that clients connect to.
    #[schemars(extend("format" = "address"))]
    pub listen: SocketAddr,
    /// Web origins that may connect and read, such as `"https://app.example.com"`. Empty: the server's own host, and clients that send no `Origin`. `["*"]`: all. The same list answers CORS requests.
    pub allowed_origins: Vec<String>,
    /// TLS certificate chain, a PEM file, read again when it changes. Together with `tls_key_file`; without both, clients connect in plain text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "file"))]
    pub tls_cert_file: Option<PathBuf>,
    /// Private key of the certificate, a PEM file, read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "file"))]
    pub tls_key_file: Option<PathBuf>,
    /// Addresses or networks of proxies whose `X-Forwarded-For` names the client, such as `"10.0.0.0/8"`. The last address in it that is not one of these is the client's. Limits per address do not hold for the proxies themselves.
    pub trusted_proxies: Vec<Network>,
    /// Whether every connection begins with a PROXY protocol header (version 1 or 2) that names the client; those without one are closed. Only the balancer may be able to reach the port then. List it in `trusted_proxies` too, so that its connections do not count as one client's until their header is read.
    pub proxy_protocol: bool,
}

/// A network, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Network(IpNet);

impl Network {
    /// The network itself.
    #[must_use]
    pub fn net(self) -> IpNet {
        self.0
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map(|net: IpNet| Self(net.trunc()))
            .map_err(|_| format!(r#"{text:?} is no network; expected such as "10.0.0.0/8" or "192.0.2.7""#))
    }
}

impl From<Network> for String {
    fn from(Network(net): Network) -> Self {
        if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
    }
}

/// The listener for gRPC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Grpc {
    /// IP address and port that gRPC clients connect to.
    #[schemars(extend("format" = "address"))]
    pub listen: SocketAddr,
    /// TLS certificate chain, a PEM file, read again when it changes. Together with `tls_key_file`; without both, clients connect in plain text, whatever the client port does.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "file"))]
    pub tls_cert_file: Option<PathBuf>,
    /// Private key of the certificate, a PEM file, read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "file"))]
    pub tls_key_file: Option<PathBuf>,
    /// Addresses or networks of proxies whose `X-Forwarded-For` names the client of each call, as `client.trusted_proxies` says of the client port. Each stream counts as a connection of its client then.
    pub trusted_proxies: Vec<Network>,
    /// Whether every connection begins with a PROXY protocol header, as `client.proxy_protocol` says.
    pub proxy_protocol: bool,
}

/// The listener for operators: `/metrics`, `/livez`, `/readyz`. It asks for no credentials: keep it off public networks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// IP address and port for probes and scrapers.
    #[schemars(extend("format" = "address"))]
    pub listen: SocketAddr,
}

/// Sessions, from connect to close.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sessions {
    /// How often an idle connection is checked: a WebSocket ping, a comment on a server-sent event stream. Keep it below the idle timeout of any proxy on the way.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub heartbeat: Duration,
    /// How many sessions a user can have open; one more closes the oldest (4003).
    pub per_user_max: usize,
    /// After this long without traffic, a user's actors stop and give their memory back; the connections stay, and the next notification or acknowledgement starts them again. `"0s"`: they run as long as a session is open.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub idle_after: Duration,
    /// How many notifications can be unacknowledged at a session before it is sent no more.
    pub window_items: usize,
    /// How many bytes of notifications can be unacknowledged at a session before it is sent no more. At least `limits.payload_bytes_max`.
    #[serde(with = "size")]
    #[schemars(with = "SizeText")]
    pub window_bytes: usize,
    /// How long a session's window may stay full before it is closed as a slow consumer (4002); it resumes where it was.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub slow_deadline: Duration,
    /// How long a session that was started ahead of its connection is accepted.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub issued_ttl: Duration,
}

/// What a node takes from clients and producers before it says no.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Authenticated connects accepted per second; those above it are told when to come back. 0: no limit.
    pub connects_per_second: u32,
    /// Connections open at a time. 0: as many as memory and file descriptors allow.
    pub connections_max: usize,
    /// Connections that are not authenticated yet, at a time.
    pub handshakes_max: usize,
    /// The same, of one client address.
    pub handshakes_per_address: usize,
    /// Connections of one client address. 0: no limit.
    pub connections_per_address: usize,
    /// Memory of the process: from nine tenths of it on, new connections are refused. 0: what the control group or the machine has.
    #[serde(with = "size")]
    #[schemars(with = "SizeText")]
    pub memory_bytes_max: usize,
    /// How long a client may take from connecting to being authenticated; PROXY header and TLS handshake count.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub handshake_deadline: Duration,
    /// The largest frame that a client may send (1009 above it).
    #[serde(with = "size")]
    #[schemars(with = "SizeText")]
    pub frame_bytes_max: usize,
    /// The largest payload of an event; a larger one goes to the dead-letter topic.
    #[serde(with = "size")]
    #[schemars(with = "SizeText")]
    pub payload_bytes_max: usize,
    /// The largest body of an HTTP request (413 above it).
    #[serde(with = "size")]
    #[schemars(with = "SizeText")]
    pub request_bytes_max: usize,
    /// Delivery rate limits of a user, by priority. Without any, `high`, `normal` and `low` have the defaults below, each; with some, priorities that are not named have none.
    pub delivery: Vec<DeliveryLimit>,
}

/// A rate limit that holds for each user, over all producers, while the user has a session open. Repeat the section for each priority.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeliveryLimit {
    /// Which notifications it limits: `high`, `normal` or `low` (`critical` is never limited).
    pub priority: Priority,
    /// Notifications per second in the long run.
    #[serde(default = "DeliveryLimit::default_per_second")]
    pub per_second: f64,
    /// How many may go at once after a quiet time.
    #[serde(default = "DeliveryLimit::default_burst")]
    pub burst: u32,
    /// Counts what it would hold back, and holds nothing back.
    #[serde(default)]
    pub dry_run: bool,
}

/// What waits, per user, for a delivery limit; above it, a burst is folded into one digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Buffer {
    /// How many notifications wait.
    pub items: usize,
    /// How many bytes of notifications wait.
    #[serde(with = "size")]
    #[schemars(with = "SizeText")]
    pub bytes: usize,
}

/// How a node stops on SIGTERM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Drain {
    /// How long it takes at most; what is not done by then is cut. Keep it below the supervisor's own grace period.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub deadline: Duration,
    /// How many clients are told to reconnect per second, so that they do not arrive elsewhere all at once.
    pub goodbyes_per_second: u32,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            listen: everywhere(8000),
            allowed_origins: Vec::new(),
            tls_cert_file: None,
            tls_key_file: None,
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
        }
    }
}

impl Default for Grpc {
    fn default() -> Self {
        Self {
            listen: everywhere(8001),
            tls_cert_file: None,
            tls_key_file: None,
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: everywhere(8002) }
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(25),
            per_user_max: 32,
            idle_after: Duration::from_secs(30),
            window_items: 256,
            window_bytes: 1 << 20,
            slow_deadline: Duration::from_secs(30),
            issued_ttl: Duration::from_secs(24 * 3600),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connects_per_second: 2000,
            connections_max: 0,
            handshakes_max: 512,
            handshakes_per_address: 64,
            connections_per_address: 0,
            memory_bytes_max: 0,
            handshake_deadline: Duration::from_secs(10),
            frame_bytes_max: 64 << 10,
            payload_bytes_max: 256 << 10,
            request_bytes_max: 1 << 20,
            delivery: Vec::new(),
        }
    }
}

impl DeliveryLimit {
    /// The default for a priority.
    #[must_use]
    pub fn of(priority: Priority) -> Self {
        Self { priority, per_second: Self::default_per_second(), burst: Self::default_burst(), dry_run: false }
    }

    fn default_per_second() -> f64 {
        20.0
    }

    fn default_burst() -> u32 {
        100
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self { items: 1000, bytes: 1 << 20 }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(60), goodbyes_per_second: 500 }
    }
}

/// A port on all of the host's IPv4 addresses.
pub(super) fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
}
