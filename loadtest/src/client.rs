//! Thousands of clients on one thread: one epoll, one shared read buffer, and a few words a connection.
//!
//! Knows sockets; the protocols are the codecs', and what is measured is the [`Sink`]'s.

mod codec;
mod endpoint;
mod grpc;
mod sse;
mod websocket;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Socket, Type};

use crate::workload::micros;
use codec::Codec;
pub use codec::{Message, Protocol};
pub use endpoint::Endpoint;

/// What connections from an address of their own come from, in turns.
const PORTS: RangeInclusive<u16> = 10_000..=64_999;
/// Short enough that no socket's buffer fills meanwhile.
const SWEEP_INTERVAL: Duration = Duration::from_millis(1);

/// Receives the messages of all connections.
pub trait Sink {
    /// The session of connection `conn` is open: this is its `$hello`, which came at `now` (clock of [`micros`]).
    fn opened(&mut self, _conn: usize, _hello: &Message<'_>, _now: u64) {}

    /// One message behind the `$hello`. Returns the sequence to acknowledge, if it has one that shall be.
    fn message(&mut self, conn: usize, message: &Message<'_>, now: u64) -> Option<u64>;
}

/// A sink for phases in which nothing is expected.
pub struct Ignore;

impl Sink for Ignore {
    fn message(&mut self, _: usize, _: &Message<'_>, _: u64) -> Option<u64> {
        None
    }
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
    /// Connections that ended and may come back, with why; `None`: those that end have failed.
    ended: Option<Vec<(usize, String)>>,
    /// The address that connections come from, on loopback, and the port that the next one tries. The kernel's own choice
    /// of a port for a given address gets slow when half of them are taken, or were a minute ago.
    source: Option<(Ipv4Addr, u16)>,
}

struct Conn {
    stream: Option<TcpStream>,
    state: State,
    codec: Option<Codec>,
    /// The start of a frame whose rest has not come yet.
    partial: Vec<u8>,
    /// Bytes for the server that its socket did not take, the request first.
    unsent: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    Connecting,
    Greeting,
    Open,
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
            ended: None,
            source: None,
        })
    }

    /// Connects to loopback from this address of it, which nobody else uses: an address has only so many ports.
    pub fn from(source: Ipv4Addr) -> Result<Self> {
        Ok(Self { source: Some((source, *PORTS.start())), ..Self::new()? })
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
                self.start(endpoint, &tokens[self.conns.len() - first])?;
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

    /// Sessions that are open now.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Connections that were started, also those that have ended.
    pub fn started(&self) -> usize {
        self.conns.len()
    }

    /// From now on reads nothing of this connection, as a client that hangs.
    pub fn stall(&mut self, index: usize) -> Result<()> {
        match &mut self.conns[index].stream {
            Some(stream) => self.poll.registry().deregister(stream).context("epoll"),
            None => Ok(()),
        }
    }

    /// From now on connections that end have not failed: [`Self::take_ended`] has them.
    pub fn may_end(&mut self) {
        self.ended.get_or_insert_default();
    }

    /// Connections that ended since the last time, with why. Each may be started [`Self::again`].
    pub fn take_ended(&mut self) -> Vec<(usize, String)> {
        self.ended.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// One that ended will not come back.
    pub fn give_up(&mut self, why: String) {
        self.failed += 1;
        if self.failures.len() < 8 {
            self.failures.push_back(why);
        }
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

    /// Begins to connect. The connection's index is the number of those started before.
    pub fn start(&mut self, endpoint: &Endpoint, token: &str) -> Result<()> {
        let conn = self.connecting(self.conns.len(), endpoint, token, None)?;
        self.conns.push(conn);
        Ok(())
    }

    /// Begins to connect one that has ended. `since`: where it goes on, `<epoch>-<sequence>`.
    pub fn again(&mut self, index: usize, endpoint: &Endpoint, token: &str, since: Option<&str>) -> Result<()> {
        self.conns[index] = self.connecting(index, endpoint, token, since)?;
        Ok(())
    }

    fn connecting(&mut self, index: usize, endpoint: &Endpoint, token: &str, since: Option<&str>) -> Result<Conn> {
        let mut stream = self.socket(endpoint.address).context("connect")?;
        // Edge-triggered: WRITABLE fires once at the connect and then only after a full buffer.
        self.poll
            .registry()
            .register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)
            .context("epoll")?;
        let codec = Codec::new(endpoint);
        let unsent = codec.request(endpoint, token, since);
        let (state, codec) = (State::Connecting, Some(codec));
        Ok(Conn { stream: Some(stream), state, codec, partial: Vec::new(), unsent })
    }

    fn socket(&mut self, address: SocketAddr) -> io::Result<TcpStream> {
        let Some((source, next)) = self.source.as_mut().filter(|_| address.ip().is_loopback() && address.is_ipv4())
        else {
            return TcpStream::connect(address);
        };
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
        // One that was closed a minute ago may be taken again.
        socket.set_reuse_address(true)?;
        let mut tries = PORTS.len();
        loop {
            let port = *next;
            *next = if port == *PORTS.end() { *PORTS.start() } else { port + 1 };
            tries -= 1;
            match socket.bind(&SocketAddr::from((*source, port)).into()) {
                Err(e) if e.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
                bound => break bound?,
            }
        }
        match socket.connect(&address.into()) {
            Err(e) if e.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => return Err(e),
            _ => {}
        }
        Ok(TcpStream::from_std(socket.into()))
    }

    fn close(&mut self, index: usize, why: String) {
        let conn = &mut self.conns[index];
        if conn.state == State::Open {
            self.open -= 1;
        }
        *conn = Conn { stream: None, state: State::Closed, codec: None, partial: Vec::new(), unsent: Vec::new() };
        match &mut self.ended {
            Some(ended) => ended.push((index, why)),
            None => self.give_up(why),
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
            self.conns[index].state = State::Greeting;
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
                Ok(0) => return Err("closed by the server without a goodbye".to_owned()),
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
        let Conn { state, codec, .. } = &mut self.conns[index];
        let codec = codec.as_mut().expect("an open connection has one");
        let now = micros();
        let (mut acknowledge, mut opened) = (None, false);
        self.out.clear();
        let used = codec.read(&self.buffer[..filled], &mut self.out, &mut |message| {
            if *state == State::Open {
                acknowledge = sink.message(index, &message, now).max(acknowledge);
                return Ok(());
            }
            if message.control().as_deref() != Some("$hello") {
                return Err("the first frame was not $hello".to_owned());
            }
            *state = State::Open;
            opened = true;
            sink.opened(index, &message, now);
            Ok(())
        });
        self.open += usize::from(opened);
        let used = used?;
        if let Some(sequence) = acknowledge {
            codec.acknowledge(sequence, &mut self.out);
        }
        if !self.out.is_empty() {
            self.conns[index].send(&self.out)?;
        }
        Ok(used)
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
