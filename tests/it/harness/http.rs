//! A small HTTP/1.1 client: one request on one connection, nothing hidden.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    dial::{Dial, Socket},
    wait::within,
};

/// A status line and headers.
#[derive(Debug)]
pub struct Head {
    pub status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    /// The first header of that name (any case).
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some(value)
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Response {
    pub head: Head,
    pub body: String,
}

impl Response {
    pub fn status(&self) -> u16 {
        self.head.status
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_str(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("not JSON ({error}): {self:?}"),
        }
    }

    /// Fails unless this is an RFC 9457 problem with that status.
    #[track_caller]
    pub fn problem(&self, status: u16) {
        assert_eq!(self.status(), status, "{self:?}");
        assert_eq!(self.head.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], status, "{problem}");
        assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()), "{problem}");
    }
}

/// A request that is written as it stands.
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    pub body: &'a str,
}

impl Request<'_> {
    fn text(&self, addr: SocketAddr) -> String {
        let Self { method, path, headers, body } = self;
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\n");
        for (name, value) in *headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        text.push_str(body);
        text
    }
}

/// A connection whose answer's head was read; what follows is in `rest` and on the socket.
pub struct Opened<S = TcpStream> {
    pub head: Head,
    pub socket: S,
    pub rest: Vec<u8>,
}

/// Sends the request and reads up to the end of the answer's head.
pub async fn open(addr: SocketAddr, request: Request<'_>) -> std::io::Result<Opened> {
    open_on(TcpStream::connect(addr).await?, addr, request).await
}

/// The same over any way to the port.
pub async fn open_over(dial: &Dial, request: Request<'_>) -> std::io::Result<Opened<Socket>> {
    open_on(dial.open().await?, dial.to(), request).await
}

async fn open_on<S>(mut socket: S, addr: SocketAddr, request: Request<'_>) -> std::io::Result<Opened<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    socket.write_all(request.text(addr).as_bytes()).await?;
    answered(socket).await
}

/// Reads up to the end of the head of the answer to a request that was written.
pub async fn answered<S: AsyncRead + Unpin>(mut socket: S) -> std::io::Result<Opened<S>> {
    let mut rest = Vec::new();
    let end = loop {
        if let Some(at) = rest.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if socket.read_buf(&mut rest).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = parse_head(&String::from_utf8_lossy(&rest[..end]));
    rest.drain(..end + 4);
    Ok(Opened { head, socket, rest })
}

/// Sends the request and reads the whole answer; `None` while nobody answers at `addr`.
pub async fn try_send(addr: SocketAddr, mut request: Request<'_>) -> Option<Response> {
    let mut headers = vec![("Connection", "close")];
    headers.extend_from_slice(request.headers);
    request.headers = &headers;
    whole(open(addr, request).await).await
}

/// The whole answer to a request that asked for the connection to be closed.
pub async fn whole(opened: std::io::Result<Opened>) -> Option<Response> {
    let mut opened = opened.ok()?;
    // With `Connection: close` the end of the stream is the end of the body.
    opened.socket.read_to_end(&mut opened.rest).await.ok()?;
    let chunked = opened.head.header("transfer-encoding").is_some_and(|value| value == "chunked");
    let body = if chunked { Dechunker::default().push(&opened.rest) } else { opened.rest };
    Some(Response { head: opened.head, body: String::from_utf8_lossy(&body).into_owned() })
}

/// As [`try_send`] for a server that must answer.
pub async fn send(addr: SocketAddr, request: Request<'_>) -> Response {
    let what = format!("an answer to {} {}", request.method, request.path);
    match within(&what, try_send(addr, request)).await {
        Some(response) => response,
        None => panic!("nobody answers at {addr}: {what}"),
    }
}

/// A plain GET.
pub async fn get(addr: SocketAddr, path: &str) -> Response {
    send(addr, Request { method: "GET", path, headers: &[], body: "" }).await
}

fn parse_head(text: &str) -> Head {
    let mut lines = text.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    match status {
        Some(status) => Head { status, headers },
        None => panic!("no HTTP status line: {text:?}"),
    }
}

/// Incremental decoder of the chunked transfer coding.
#[derive(Default)]
pub struct Dechunker {
    buffer: Vec<u8>,
    /// Whether the chunk of length zero has come.
    pub finished: bool,
}

impl Dechunker {
    /// Takes bytes from the socket and gives the data of the chunks that are complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.buffer.extend_from_slice(bytes);
        let mut data = Vec::new();
        while !self.finished {
            let Some(line) = self.buffer.windows(2).position(|window| window == b"\r\n") else {
                break;
            };
            let size = String::from_utf8_lossy(&self.buffer[..line]).into_owned();
            let digits = size.split(';').next().unwrap_or_default().trim();
            let length = usize::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("no chunk length: {size:?}"));
            let end = line + 2 + length;
            if self.buffer.len() < end + 2 {
                break;
            }
            data.extend_from_slice(&self.buffer[line + 2..end]);
            self.buffer.drain(..end + 2);
            self.finished = length == 0;
        }
        data
    }
}
