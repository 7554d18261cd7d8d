//! Whom a connection comes from when proxies stand in between: the PROXY protocol's header, and `X-Forwarded-For`
//! of those that are trusted.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use axum::http::HeaderMap;
use ipnet::IpNet;
use ppp::{HeaderResult, v1, v2};
use tokio::{io::AsyncReadExt as _, net::TcpStream};

const FORWARDED_FOR: &str = "x-forwarded-for";
/// The text form, line end included, has no more.
const TEXT_BYTES_MAX: usize = 107;
const TEXT_START: &[u8] = b"PROXY ";
/// Signature, version, family and length of the binary form.
const BINARY_START_BYTES: usize = 16;
/// The binary form may be 64 KiB; balancers add less than 1 KiB to the addresses.
const BINARY_BYTES_MAX: usize = 2048;

/// The proxies whose word counts.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Vec<IpNet>);

/// What limits per address count a request under that a trusted proxy sends for somebody else; an extension of it.
#[derive(Clone, Copy)]
pub(super) struct Forwarded(pub(super) IpAddr);

impl TrustedProxies {
    /// These networks.
    #[must_use]
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Whether this is one of them.
    pub(super) fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// What limits per address count a connection under; `None`: a proxy, which stands for many clients.
    pub(super) fn counted(&self, address: IpAddr) -> Option<IpAddr> {
        (!self.trusts(address)).then(|| match address {
            IpAddr::V4(_) => address,
            // Whoever has one address of such a network has all of them (RFC 4291, 2.5.4).
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        })
    }

    /// The client that a request comes from by way of the proxy `peer`: the last address in `X-Forwarded-For` that
    /// is not a proxy's own. Everything before it may be invented by the client.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer;
        if !self.trusts(peer) {
            return client;
        }
        let lines = headers.get_all(FORWARDED_FOR).into_iter().rev();
        let hops = lines.flat_map(|line| line.to_str().unwrap_or_default().rsplit(','));
        for hop in hops {
            let Some(address) = address(hop.trim()) else { break };
            client = address;
            if !self.trusts(address) {
                break;
            }
        }
        client
    }
}

/// An address as proxies write it, some with a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

/// Reads the PROXY protocol's header, and nothing behind it. The client that it names; `None`: the proxy speaks for
/// itself, as health checks do. Waits for as long as it is polled.
///
/// # Errors
/// When there is none, or it cannot be read.
pub(super) async fn read_header(socket: &mut TcpStream) -> io::Result<Option<IpAddr>> {
    let mut header = vec![0; BINARY_BYTES_MAX];
    let mut taken = 0;
    loop {
        let seen = taken + socket.peek(&mut header[taken..]).await?;
        if seen == taken {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let end = end(&header[..seen])?;
        // Looked at first, taken only then: what follows is the client's.
        let known = end.unwrap_or(seen);
        socket.read_exact(&mut header[taken..known]).await?;
        if end.is_some() {
            return client(&header[..known]);
        }
        taken = known;
    }
}

/// Where the header ends, if all of it is there.
pub(super) fn end(bytes: &[u8]) -> io::Result<Option<usize>> {
    let begins = |start: &[u8]| bytes.iter().zip(start).all(|(one, other)| one == other);
    if begins(v2::PROTOCOL_PREFIX) {
        let Some(start) = bytes.first_chunk::<BINARY_START_BYTES>() else { return Ok(None) };
        let length = BINARY_START_BYTES + usize::from(u16::from_be_bytes([start[14], start[15]]));
        if length > BINARY_BYTES_MAX {
            return Err(invalid("the header is too long"));
        }
        return Ok((bytes.len() >= length).then_some(length));
    }
    if !begins(TEXT_START) {
        return Err(invalid("no PROXY protocol header"));
    }
    let end = bytes.iter().take(TEXT_BYTES_MAX).position(|byte| *byte == b'\n').map(|at| at + 1);
    if end.is_none() && bytes.len() >= TEXT_BYTES_MAX {
        return Err(invalid("the header is too long"));
    }
    Ok(end)
}

/// The client that a whole header names.
pub(super) fn client(header: &[u8]) -> io::Result<Option<IpAddr>> {
    let address: Option<IpAddr> = match HeaderResult::parse(header) {
        HeaderResult::V1(Ok(header)) => match header.addresses {
            v1::Addresses::Tcp4(addresses) => Some(addresses.source_address.into()),
            v1::Addresses::Tcp6(addresses) => Some(addresses.source_address.into()),
            v1::Addresses::Unknown => None,
        },
        HeaderResult::V2(Ok(header)) => match (header.command, header.addresses) {
            (v2::Command::Proxy, v2::Addresses::IPv4(addresses)) => Some(addresses.source_address.into()),
            (v2::Command::Proxy, v2::Addresses::IPv6(addresses)) => Some(addresses.source_address.into()),
            _ => None,
        },
        HeaderResult::V1(Err(error)) => return Err(invalid(error)),
        HeaderResult::V2(Err(error)) => return Err(invalid(error)),
    };
    Ok(address.map(|address| address.to_canonical()))
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;

    fn proxies() -> TrustedProxies {
        TrustedProxies::new(["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"].map(|text| text.parse().unwrap()).into())
    }

    fn client_of(peer: &str, lines: &[&str]) -> String {
        let headers = lines.iter().map(|line| (FORWARDED_FOR.parse().unwrap(), line.parse().unwrap()));
        proxies().client(peer.parse().unwrap(), &headers.collect()).to_string()
    }

    #[test]
    fn the_last_address_that_is_no_proxy_is_the_client() {
        for (lines, client) in [
            (&["203.0.113.5"][..], "203.0.113.5"),
            (&["1.1.1.1, 203.0.113.5, 10.9.9.9"], "203.0.113.5"),
            (&["1.1.1.1", "203.0.113.5,192.0.2.7"], "203.0.113.5"),
            (&["203.0.113.5:4711"], "203.0.113.5"),
            (&["[2001:db8::1]:4711"], "2001:db8::1"),
            (&["[2001:db8::1]"], "2001:db8::1"),
            (&["::ffff:203.0.113.5"], "203.0.113.5"),
            (&["10.1.1.1, 10.2.2.2"], "10.1.1.1"),
            // What cannot be read ends what is known.
            (&["203.0.113.5, unknown, 10.2.2.2"], "10.2.2.2"),
            (&["garbage"], "10.0.0.1"),
            (&[""], "10.0.0.1"),
            (&[], "10.0.0.1"),
        ] {
            assert_eq!(client_of("10.0.0.1", lines), client, "{lines:?}");
        }
    }

    #[test]
    fn who_is_not_trusted_speaks_for_itself_only() {
        assert_eq!(client_of("198.51.100.1", &["203.0.113.5"]), "198.51.100.1");
    }

    #[test]
    fn a_proxy_is_not_counted_and_a_network_of_version_6_is_one_address() {
        let counted = |text: &str| proxies().counted(text.parse().unwrap()).map(|address| address.to_string());
        assert_eq!(counted("10.1.2.3"), None);
        assert_eq!(counted("203.0.113.5").as_deref(), Some("203.0.113.5"));
        assert_eq!(counted("2001:db8:1:2:3:4:5:6").as_deref(), Some("2001:db8:1:2::"));
    }

    /// Sends the pieces, each on its own, with `rest` behind the last; what was read, and what was left.
    async fn read(pieces: &[&[u8]]) -> (io::Result<Option<IpAddr>>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        sender.set_nodelay(true).unwrap();
        let (mut socket, _) = listener.accept().await.unwrap();
        let sending = async {
            for piece in pieces {
                sender.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            sender.shutdown().await.unwrap();
        };
        let (read, ()) = tokio::join!(read_header(&mut socket), sending);
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest).await;
        (read, rest)
    }

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [v2::PROTOCOL_PREFIX, &[command, family], &length, body].concat()
    }

    #[tokio::test]
    async fn a_header_names_the_client_and_what_follows_is_left() {
        let v4 = binary(0x21, 0x11, &[203, 0, 113, 5, 10, 0, 0, 1, 0, 80, 1, 187]);
        let mut with_more = [203, 0, 113, 5, 10, 0, 0, 1, 0, 80, 1, 187].to_vec();
        with_more.extend([4, 0, 3, 1, 2, 3]);
        let with_more = binary(0x21, 0x11, &with_more);
        let health_check = binary(0x20, 0x00, &[]);
        for (header, client) in [
            (&b"PROXY TCP4 203.0.113.5 10.0.0.1 4711 443\r\n"[..], Some("203.0.113.5")),
            (b"PROXY TCP6 2001:db8::1 fd00::1 4711 443\r\n", Some("2001:db8::1")),
            (b"PROXY UNKNOWN\r\n", None),
            (&v4, Some("203.0.113.5")),
            (&with_more, Some("203.0.113.5")),
            (&health_check, None),
        ] {
            let expected = client.map(|client| client.parse().unwrap());
            let whole = [header, b"GET /"].concat();
            let (read_whole, rest) = read(&[&whole]).await;
            assert_eq!((read_whole.unwrap(), &rest[..]), (expected, &b"GET /"[..]));
            let bytes: Vec<&[u8]> = whole.chunks(1).collect();
            let (read_bytes, rest) = read(&bytes).await;
            assert_eq!((read_bytes.unwrap(), &rest[..]), (expected, &b"GET /"[..]), "byte by byte");
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let too_long_text = [&b"PROXY UNKNOWN "[..], &[b'x'; 200], b"\r\n"].concat();
        let too_long = binary(0x21, 0x11, &[0; 4000]);
        let short_addresses = binary(0x21, 0x11, &[1, 2, 3]);
        for header in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"PROXY TCP4 nonsense 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 203.0.113.5 10.0.0.1 4711\r\n",
            b"PROXY TCP4 203.0.113.5 10.0.0.1 4711 443\n",
            b"PROXY ",
            b"",
            &too_long_text,
            &too_long,
            &short_addresses,
            &binary(0x31, 0x11, &[0; 12]),
        ] {
            assert!(read(&[header]).await.0.is_err(), "{:?}", String::from_utf8_lossy(header));
        }
    }
}
