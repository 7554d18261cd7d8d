//! Thousands of WebSocket clients on one thread: one epoll, one shared read buffer, and a few words
//! a connection.
//!
//! Knows the protocol's frames, not what is measured: texts go to a [`Sink`].

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::websocket;
use crate::workload::micros;

/// Longest frame accepted, in bytes: the contract's payload limit and some room.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// The key of RFC 6455's example, the same for every connection: the right answer is known.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// The masking key only has to be there: nothing between here and a loopback server caches.
const MASK: [u8; 4] = [0x5A, 0xC3, 0x96, 0x3C];

/// Short enough that no socket's buffer fills meanwhile.
const SWEEP_INTERVAL: Duration = Duration::from_millis(1);

/// Receives the notifications of all connections.
pub trait Sink {
    /// One text frame of connection `conn`, read at `now` (clock of [`micros`]). Returns the
    /// sequence to acknowledge, if the frame has one that shall be.
    fn text(&mut self, conn: usize, text: &[u8], now: u64) -> Option<u64>;
}

/// A sink for phases in which nothing is expected.
pub struct Ignore;

impl Sink for Ignore {
    fn text(&mut self, _: usize, _: &[u8], _: u64) -> Option<u64> {
        None
    }
}

/// A server's WebSocket endpoint.
#[derive(Debug, Clone)]
pub struct Endpoint {
    address: SocketAddr,
    host: String,
    path: String,
}

/// Open connections, by index.
pub struct Fleet {
    poll: Poll,
    events: Events,
    conns: Vec<Conn>,
    buffer: Box<[u8]>,
    out: Vec<u8>,
    open: usize,
    failures: VecDeque<String>,
    failed: usize,
}

#[derive(Default)]
struct Conn {
    stream: Option<TcpStream>,
    state: State,
    /// The start of a frame whose rest has not come yet, or the request until it is sent.
    partial: Vec<u8>,
    /// Bytes for the server that its socket did not take.
    unsent: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    Connecting,
    Upgrading,
    Greeting,
    Open,
}

impl Endpoint {
    /// `ws://host:port[/path]`; the path is `/v1/connect` unless given.
    ///
    /// # Errors
    ///
    /// For another scheme or a host that is not this machine: this tool loads loopback only.
    pub fn parse(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("ws://").with_context(|| format!("{url}: only ws:// URLs are understood"))?;
        let (host, path) = match rest.find('/') {
            Some(slash) => (&rest[..slash], &rest[slash..]),
            None => (rest, "/v1/connect"),
        };
        let address = host
            .to_socket_addrs()
            .with_context(|| format!("{url}: needs host:port"))?
            .next()
            .with_context(|| format!("{url}: no address"))?;
        ensure!(
            address.ip().is_loopback(),
            "{url} is not a loopback address: server and clients are measured on one machine"
        );
        Ok(Self { address, host: host.to_owned(), path: path.to_owned() })
    }

    fn request(&self, token: &str) -> Vec<u8> {
        format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\
             Authorization: Bearer {token}\r\n\r\n",
            self.path, self.host
        )
        .into_bytes()
    }
}

impl Fleet {
    pub fn new() -> Result<Self> {
        Ok(Self {
            poll: Poll::new().context("epoll")?,
            events: Events::with_capacity(4096),
            conns: Vec::new(),
            buffer: vec![0; 128 * 1024].into_boxed_slice(),
            out: Vec::new(),
            open: 0,
            failures: VecDeque::new(),
            failed: 0,
        })
    }

    /// Opens one connection per token, `concurrency` at a time, each until its `$hello`.
    ///
    /// # Errors
    ///
    /// When one fails, or when `limit` has passed.
    pub fn connect(
        &mut self,
        endpoint: &Endpoint,
        tokens: &[String],
        concurrency: usize,
        limit: Duration,
        sink: &mut impl Sink,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        let (first, goal) = (self.conns.len(), self.conns.len() + tokens.len());
        let already_open = self.open;
        while self.open - already_open < tokens.len() {
            while self.conns.len() < goal && self.conns.len() - self.open < concurrency {
                let request = endpoint.request(&tokens[self.conns.len() - first]);
                self.start(endpoint.address, request)?;
            }
            self.turn(Duration::from_millis(100), sink)?;
            if let Some(failure) = self.failures.front() {
                bail!("a connection failed while {} of {} were open: {failure}", self.open, tokens.len());
            }
            ensure!(
                Instant::now() < deadline,
                "only {} of {} sessions were open after {limit:?}",
                self.open - already_open,
                tokens.len()
            );
        }
        Ok(())
    }

    /// Connections that ended since the start, and why the first of them did.
    pub fn failures(&self) -> Option<(usize, &str)> {
        self.failures.front().map(|why| (self.failed, why.as_str()))
    }

    /// Keeps the connections alive for that long.
    pub fn hold(&mut self, length: Duration, sink: &mut impl Sink) -> Result<()> {
        let end = Instant::now() + length;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.turn(left.min(Duration::from_millis(100)), sink)?;
        }
    }

    /// Sleeps for a moment, then handles whatever came, without waiting in epoll.
    ///
    /// For throughput: a thread that waits in epoll is woken inside the server's write, and that
    /// wake-up, which a remote client would not cost it, would be counted as the server's CPU.
    pub fn sweep(&mut self, sink: &mut impl Sink) -> Result<()> {
        std::thread::sleep(SWEEP_INTERVAL);
        self.turn(Duration::ZERO, sink)
    }

    /// Waits for at most `timeout` and handles whatever came.
    pub fn turn(&mut self, timeout: Duration, sink: &mut impl Sink) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other.context("epoll")?,
        }
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            let index = event.token().0;
            if let Err(why) = self.handle(index, event.is_writable(), sink) {
                self.close(index, why);
            }
        }
        self.events = events;
        Ok(())
    }

    fn start(&mut self, address: SocketAddr, request: Vec<u8>) -> Result<()> {
        let index = self.conns.len();
        let mut stream = TcpStream::connect(address).context("connect")?;
        // Edge-triggered: WRITABLE fires once at the connect and then only after a full buffer.
        self.poll
            .registry()
            .register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)
            .context("epoll")?;
        self.conns.push(Conn { stream: Some(stream), state: State::Connecting, partial: Vec::new(), unsent: request });
        Ok(())
    }

    fn close(&mut self, index: usize, why: String) {
        let conn = &mut self.conns[index];
        if conn.state == State::Open {
            self.open -= 1;
        }
        *conn = Conn::default();
        self.failed += 1;
        if self.failures.len() < 8 {
            self.failures.push_back(why);
        }
    }

    fn handle(&mut self, index: usize, writable: bool, sink: &mut impl Sink) -> Result<(), String> {
        if self.conns[index].state == State::Closed {
            return Ok(());
        }
        if self.conns[index].state == State::Connecting {
            let stream = self.conns[index].stream.as_ref().expect("not closed");
            if let Some(error) = stream.take_error().map_err(|e| e.to_string())? {
                return Err(format!("connect: {error}"));
            }
            if !writable {
                return Ok(());
            }
            // Delays of the client's acknowledgements would be measured as the server's.
            stream.set_nodelay(true).map_err(|e| e.to_string())?;
            self.conns[index].state = State::Upgrading;
        }
        if writable && !self.conns[index].unsent.is_empty() {
            let rest = std::mem::take(&mut self.conns[index].unsent);
            self.conns[index].send(&rest)?;
        }
        self.read(index, sink)
    }

    fn read(&mut self, index: usize, sink: &mut impl Sink) -> Result<(), String> {
        loop {
            let conn = &mut self.conns[index];
            let kept = conn.partial.len();
            if kept + 4096 > self.buffer.len() {
                self.buffer = vec![0; (kept + 4096) * 2].into_boxed_slice();
            }
            self.buffer[..kept].copy_from_slice(&conn.partial);
            let stream = conn.stream.as_mut().expect("an open connection has one");
            let count = match stream.read(&mut self.buffer[kept..]) {
                Ok(0) => return Err("closed by the server without a close frame".to_owned()),
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e.to_string()),
            };
            let filled = kept + count;
            let drained = filled < self.buffer.len();
            let used = self.consume(index, filled, sink)?;
            let conn = &mut self.conns[index];
            conn.partial.clear();
            if used == filled {
                conn.partial = Vec::new(); // no memory for the idle
            } else {
                conn.partial.extend_from_slice(&self.buffer[used..filled]);
            }
            // A short read has emptied a stream socket: see epoll(7) on edge triggering.
            if drained {
                return Ok(());
            }
        }
    }

    /// Handles the complete frames in the buffer and returns how many bytes they were.
    fn consume(&mut self, index: usize, filled: usize, sink: &mut impl Sink) -> Result<usize, String> {
        let conn = &mut self.conns[index];
        let bytes = &self.buffer[..filled];
        let mut at = 0;
        if conn.state == State::Upgrading {
            let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
                return Ok(0);
            };
            check_upgrade(&bytes[..end])?;
            conn.state = State::Greeting;
            at = end + 4;
        }
        let now = micros();
        let mut acknowledge = None;
        self.out.clear();
        while let Some(frame) = websocket::parse(&bytes[at..], FRAME_BYTES_MAX).map_err(|e| e.to_string())? {
            let payload = &bytes[at..][frame.payload];
            at += frame.end;
            match frame.opcode {
                websocket::TEXT if conn.state == State::Greeting => {
                    if memchr::memmem::find(payload, br#""type":"$hello""#).is_none() {
                        return Err("the first frame was not $hello".to_owned());
                    }
                    conn.state = State::Open;
                    self.open += 1;
                }
                websocket::TEXT => {
                    acknowledge = sink.text(index, payload, now).max(acknowledge);
                }
                websocket::PING => {
                    websocket::write_client_frame(&mut self.out, websocket::PONG, payload, MASK);
                }
                websocket::PONG => {}
                websocket::CLOSE => return Err(close_reason(payload)),
                websocket::BINARY => return Err("binary frame".to_owned()),
                other => return Err(format!("unknown opcode {other}")),
            }
        }
        if let Some(sequence) = acknowledge {
            let text = format!(r#"{{"ack":{sequence}}}"#);
            websocket::write_client_frame(&mut self.out, websocket::TEXT, text.as_bytes(), MASK);
        }
        if !self.out.is_empty() {
            conn.send(&self.out)?;
        }
        Ok(at)
    }
}

impl Conn {
    /// Sends, or keeps for later what the socket does not take.
    fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(bytes);
            return Ok(());
        }
        let stream = self.stream.as_mut().expect("an open connection has one");
        let mut rest = bytes;
        while !rest.is_empty() {
            match stream.write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.unsent = rest.to_vec();
                    break;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.to_string()),
            }
        }
        Ok(())
    }
}

fn check_upgrade(head: &[u8]) -> Result<(), String> {
    let head = String::from_utf8_lossy(head);
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("101") {
        return Err(format!("the upgrade was refused: {status}"));
    }
    let accepted = head.lines().any(|line| {
        line.split_once(':')
            .is_some_and(|(name, value)| name.eq_ignore_ascii_case("sec-websocket-accept") && value.trim() == ACCEPT)
    });
    if !accepted {
        return Err("wrong Sec-WebSocket-Accept".to_owned());
    }
    Ok(())
}

fn close_reason(payload: &[u8]) -> String {
    match payload {
        [high, low, reason @ ..] => {
            format!("closed by the server: {} {}", u16::from_be_bytes([*high, *low]), String::from_utf8_lossy(reason))
        }
        _ => "closed by the server".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_get_the_default_path_and_only_loopback_is_loaded() {
        let endpoint = Endpoint::parse("ws://127.0.0.1:8000").unwrap();
        assert_eq!(endpoint.path, "/v1/connect");
        assert_eq!(endpoint.host, "127.0.0.1:8000");
        assert_eq!(Endpoint::parse("ws://127.0.0.1:1/x?y").unwrap().path, "/x?y");
        for wrong in ["http://127.0.0.1:1", "ws://127.0.0.1", "ws://192.0.2.1:80"] {
            assert!(Endpoint::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_101_with_the_right_key_is_an_upgrade() {
        let good = format!("HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: {ACCEPT}");
        assert_eq!(check_upgrade(good.as_bytes()), Ok(()));
        let refused = check_upgrade(b"HTTP/1.1 401 Unauthorized").unwrap_err();
        assert!(refused.contains("401"), "{refused}");
        assert!(check_upgrade(b"HTTP/1.1 101 x\r\nSec-WebSocket-Accept: no").is_err());
    }

    #[test]
    fn the_known_answer_belongs_to_the_key() {
        assert_eq!(websocket::accept_key(KEY.as_bytes()), ACCEPT);
    }

    #[test]
    fn a_close_frame_names_its_code() {
        assert_eq!(close_reason(b"\x0f\xa1gone"), "closed by the server: 4001 gone");
    }
}
