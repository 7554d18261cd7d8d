//! How a client reaches the port: from which address, with what before its first byte, with or without TLS.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::TcpSocket,
};
use tokio_rustls::TlsConnector;

/// What a connection is to a client.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection, whatever carries it.
pub type Socket = Box<dyn Io>;

/// A way to a port.
#[derive(Clone)]
pub struct Dial {
    to: SocketAddr,
    from: Option<IpAddr>,
    before: Vec<u8>,
    tls: Option<Arc<ClientConfig>>,
    receive_bytes: Option<u32>,
}

impl Dial {
    /// Plain TCP.
    pub fn new(to: SocketAddr) -> Self {
        Self { to, from: None, before: Vec::new(), tls: None, receive_bytes: None }
    }

    /// Comes from that address of the loopback network.
    pub fn from(mut self, address: impl Into<IpAddr>) -> Self {
        self.from = Some(address.into());
        self
    }

    /// Sends these bytes first: a PROXY header.
    pub fn before(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.before = bytes.as_ref().to_vec();
        self
    }

    /// Speaks TLS.
    pub fn tls(mut self, config: Arc<ClientConfig>) -> Self {
        self.tls = Some(config);
        self
    }

    /// Takes little from the network before it is read.
    pub fn small(mut self) -> Self {
        self.receive_bytes = Some(8 * 1024);
        self
    }

    pub fn to(&self) -> SocketAddr {
        self.to
    }

    /// Connects.
    pub async fn open(&self) -> io::Result<Socket> {
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = self.receive_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(address) = self.from {
            socket.bind(SocketAddr::from((address, 0)))?;
        }
        let mut socket = socket.connect(self.to).await?;
        socket.set_nodelay(true)?;
        socket.write_all(&self.before).await?;
        let Some(tls) = &self.tls else { return Ok(Box::new(socket)) };
        let name = ServerName::try_from("localhost").expect("a name");
        Ok(Box::new(TlsConnector::from(tls.clone()).connect(name, socket).await?))
    }
}
