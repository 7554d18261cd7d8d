//! Where a server listens, and what a client says first to be let in.

use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::codec::Protocol;

/// One way into a server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Endpoint {
    pub protocol: Protocol,
    pub address: SocketAddr,
    /// Host and port as the URL has them.
    pub host: String,
    pub path: String,
}

impl Endpoint {
    /// `scheme://host:port[/path]`: `ws://` for both WebSocket protocols, `http://` for the others. The path
    /// is the protocol's own unless given.
    ///
    /// # Errors
    ///
    /// For another scheme, or, unless `anywhere`, a host that is not this machine.
    pub fn parse(url: &str, protocol: Protocol, anywhere: bool) -> Result<Self> {
        let (scheme, path) = match protocol {
            Protocol::Websocket | Protocol::WebsocketProto => ("ws://", "/v1/connect"),
            Protocol::Sse => ("http://", "/v1/stream"),
            Protocol::Grpc => ("http://", "/atlas.notifier.v1.Notifier/Connect"),
        };
        let Some(rest) = url.strip_prefix(scheme) else {
            bail!("{url}: {protocol} needs a {scheme} URL");
        };
        let (host, path) = match rest.find('/') {
            Some(slash) if slash + 1 < rest.len() => (&rest[..slash], &rest[slash..]),
            Some(slash) => (&rest[..slash], path),
            None => (rest, path),
        };
        let address = host
            .to_socket_addrs()
            .with_context(|| format!("{url}: needs host:port"))?
            .next()
            .with_context(|| format!("{url}: no address"))?;
        ensure!(
            anywhere || address.ip().is_loopback(),
            "{url} is not a loopback address: server and clients are measured on one machine, unless --remote is given"
        );
        Ok(Self { protocol, address, host: host.to_owned(), path: path.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_get_the_default_path_and_only_loopback_is_loaded() {
        let endpoint = Endpoint::parse("ws://127.0.0.1:8000", Protocol::Websocket, false).unwrap();
        assert_eq!(endpoint.path, "/v1/connect");
        assert_eq!(endpoint.host, "127.0.0.1:8000");
        let path = |url, protocol| Endpoint::parse(url, protocol, false).map(|endpoint| endpoint.path);
        assert_eq!(path("ws://127.0.0.1:1/x?y", Protocol::WebsocketProto).unwrap(), "/x?y");
        assert_eq!(path("http://127.0.0.1:1/", Protocol::Sse).unwrap(), "/v1/stream");
        for wrong in ["http://127.0.0.1:1", "ws://127.0.0.1", "ws://192.0.2.1:80"] {
            assert!(path(wrong, Protocol::Websocket).is_err(), "{wrong}");
        }
        assert!(path("ws://127.0.0.1:1", Protocol::Grpc).is_err());
        assert!(Endpoint::parse("ws://192.0.2.1:80", Protocol::Websocket, true).is_ok());
    }
}
