//! The bare server's sockets: accepted, upgraded, found by user, written once per batch.

use std::io::{self, Read, Write};

use anyhow::{Context, Result};
use data_encoding::BASE64URL_NOPAD;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::frame::write_hello;
use crate::websocket;

const LISTENER: Token = Token(usize::MAX);
/// A request longer than this is refused.
const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// What a client that does not read may keep here before it is dropped.
const UNSENT_BYTES_MAX: usize = 4 << 20;

/// All sockets, and the buffers that one batch fills.
pub struct Sessions {
    poll: Poll,
    events: Events,
    listener: TcpListener,
    sockets: Vec<Option<Socket>>,
    free: Vec<usize>,
    by_user: FxHashMap<Box<str>, SmallVec<[u32; 2]>>,
    /// Sockets that have something in `out`.
    touched: Vec<u32>,
    /// Empty buffers that keep their capacity: no more of them than one batch touches sockets.
    spare: Vec<Vec<u8>>,
    buffer: Box<[u8]>,
}

struct Socket {
    stream: TcpStream,
    phase: Phase,
    out: Vec<u8>,
    /// The socket was full: `out` waits for it to be writable.
    blocked: bool,
}

enum Phase {
    /// Bytes of the request so far.
    Request(Vec<u8>),
    Open(Box<str>),
}

impl Sessions {
    pub fn new(mut listener: TcpListener) -> Result<Self> {
        let poll = Poll::new().context("epoll")?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE).context("epoll")?;
        Ok(Self {
            poll,
            events: Events::with_capacity(1024),
            listener,
            sockets: Vec::new(),
            free: Vec::new(),
            by_user: FxHashMap::default(),
            touched: Vec::new(),
            spare: Vec::new(),
            buffer: vec![0; 16 * 1024].into_boxed_slice(),
        })
    }

    /// Has `write` append a frame for each of the user's sockets; [`Self::flush`] sends them.
    pub fn deliver(&mut self, user: &str, mut write: impl FnMut(&mut Vec<u8>)) {
        let Some(indexes) = self.by_user.get(user) else {
            return;
        };
        for &index in indexes {
            let Some(socket) = self.sockets[index as usize].as_mut() else {
                continue;
            };
            // A blocked socket is flushed by the poll, unless it keeps too much: then it is dropped.
            if socket.out.is_empty() || socket.out.len() > UNSENT_BYTES_MAX {
                if socket.out.capacity() == 0 {
                    socket.out = self.spare.pop().unwrap_or_default();
                }
                self.touched.push(index);
            }
            write(&mut socket.out);
        }
    }

    /// One write per touched socket.
    pub fn flush(&mut self) {
        while let Some(index) = self.touched.pop() {
            self.flush_one(index as usize);
        }
    }

    fn flush_one(&mut self, index: usize) {
        let Some(socket) = self.sockets[index].as_mut() else {
            return;
        };
        if !socket.send() {
            self.close(index);
        } else if !socket.blocked {
            self.spare.push(std::mem::take(&mut socket.out));
        }
    }

    /// Accepts, reads and resumes blocked writes, without waiting. True when anything came.
    pub fn look(&mut self) -> Result<bool> {
        match self.poll.poll(&mut self.events, Some(std::time::Duration::ZERO)) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(false),
            other => other.context("epoll")?,
        }
        if self.events.is_empty() {
            return Ok(false);
        }
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            if event.token() == LISTENER {
                self.accept()?;
                continue;
            }
            let index = event.token().0;
            if event.is_writable() && self.sockets[index].as_ref().is_some_and(|s| s.blocked) {
                self.flush_one(index);
            }
            if event.is_readable() {
                self.read(index);
            }
        }
        self.events = events;
        Ok(true)
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // Out of descriptors is the one that matters: better said than looped over.
                Err(e) => return Err(e).context("accept"),
            };
            if stream.set_nodelay(true).is_err() {
                continue; // gone already
            }
            let index = self.free.pop().unwrap_or_else(|| {
                self.sockets.push(None);
                self.sockets.len() - 1
            });
            // Edge-triggered, so waiting for WRITABLE costs nothing until the socket was full.
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(index), interest).context("epoll")?;
            self.sockets[index] =
                Some(Socket { stream, phase: Phase::Request(Vec::new()), out: Vec::new(), blocked: false });
        }
    }

    fn read(&mut self, index: usize) {
        while let Some(socket) = self.sockets[index].as_mut() {
            let count = match socket.stream.read(&mut self.buffer) {
                Ok(0) => return self.close(index),
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return self.close(index),
            };
            // Acknowledgements, pongs and close frames of an open session are read and ignored.
            if let Phase::Request(request) = &mut socket.phase {
                request.extend_from_slice(&self.buffer[..count]);
                if request.ends_with(b"\r\n\r\n") {
                    let request = std::mem::take(request);
                    self.open(index, &request);
                } else if request.len() > REQUEST_BYTES_MAX {
                    return self.close(index);
                }
            }
            if count < self.buffer.len() {
                return; // a short read has emptied the socket
            }
        }
    }

    fn open(&mut self, index: usize, request: &[u8]) {
        let socket = self.sockets[index].as_mut().expect("it was just read");
        let Some(upgrade) = Upgrade::parse(request) else {
            let _ = socket.stream.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return self.close(index);
        };
        let mut answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            websocket::accept_key(upgrade.key.as_bytes())
        )
        .into_bytes();
        write_hello(&mut answer, index, &upgrade.user);
        let user = upgrade.user.into_boxed_str();
        self.by_user.entry(user.clone()).or_default().push(index as u32);
        socket.phase = Phase::Open(user);
        // The first bytes of a new socket always fit into it.
        if !matches!(socket.stream.write(&answer), Ok(count) if count == answer.len()) {
            self.close(index);
        }
    }

    fn close(&mut self, index: usize) {
        let Some(socket) = self.sockets[index].take() else {
            return;
        };
        if let Phase::Open(user) = &socket.phase
            && let Some(indexes) = self.by_user.get_mut(user)
        {
            indexes.retain(|other| *other as usize != index);
            if indexes.is_empty() {
                self.by_user.remove(user);
            }
        }
        self.free.push(index);
    }
}

impl Socket {
    /// Writes what it has; false when the connection is to be given up.
    fn send(&mut self) -> bool {
        let mut written = 0;
        // Until the socket is full: only then does the edge-triggered poll say when it has room.
        while written < self.out.len() {
            match self.stream.write(&self.out[written..]) {
                Ok(count) => written += count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.blocked = written < self.out.len();
        if self.blocked {
            self.out.drain(..written);
            return self.out.len() <= UNSENT_BYTES_MAX;
        }
        self.out.clear();
        true
    }
}

/// What is needed of a client's request. Nothing is checked beyond that.
#[derive(Debug, PartialEq, Eq)]
struct Upgrade {
    user: String,
    key: String,
}

impl Upgrade {
    /// The user is `?user=`, or the `sub` of the bearer token, whose signature is not checked.
    fn parse(request: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(request).ok()?;
        let mut lines = text.split("\r\n");
        let target = lines.next()?.strip_prefix("GET ")?.split(' ').next()?;
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let mut user = query.split('&').find_map(|pair| pair.strip_prefix("user=")).map(str::to_owned);
        let mut key = None;
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            if name.eq_ignore_ascii_case("sec-websocket-key") {
                key = Some(value.to_owned());
            } else if name.eq_ignore_ascii_case("authorization") && user.is_none() {
                user = subject(value.strip_prefix("Bearer ")?);
            }
        }
        Some(Self { user: user?, key: key? })
    }
}

fn subject(token: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Claims {
        sub: String,
    }
    let claims = BASE64URL_NOPAD.decode(token.split('.').nth(1)?.as_bytes()).ok()?;
    serde_json::from_slice::<Claims>(&claims).ok().map(|claims| claims.sub)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_comes_from_the_query_or_the_token() {
        let claims = BASE64URL_NOPAD.encode(br#"{"sub":"load-3","exp":1}"#);
        let token = format!(
            "GET /v1/connect HTTP/1.1\r\nHost: h\r\nauthorization: Bearer x.{claims}.y\r\n\
             Sec-WebSocket-Key: k==\r\n\r\n"
        );
        let upgrade = Upgrade::parse(token.as_bytes()).expect("complete");
        assert_eq!((&*upgrade.user, &*upgrade.key), ("load-3", "k=="));
        let query = "GET /v1/connect?a=b&user=load-4 HTTP/1.1\r\nsec-websocket-key: k\r\n\r\n";
        assert_eq!(Upgrade::parse(query.as_bytes()).expect("complete").user, "load-4");
    }

    #[test]
    fn a_request_without_user_or_key_is_none() {
        for request in [
            "GET / HTTP/1.1\r\nSec-WebSocket-Key: k\r\n\r\n",
            "GET /?user=a HTTP/1.1\r\n\r\n",
            "POST /?user=a HTTP/1.1\r\nSec-WebSocket-Key: k\r\n\r\n",
            "GET / HTTP/1.1\r\nSec-WebSocket-Key: k\r\nAuthorization: Bearer a.!.c\r\n\r\n",
        ] {
            assert_eq!(Upgrade::parse(request.as_bytes()), None, "{request}");
        }
    }
}
