//! A reader of server-sent events (HTML standard, section 9.2), field by field.

use std::{net::SocketAddr, time::Duration};

use tokio::io::AsyncReadExt as _;

use super::{
    dial::{Dial, Socket},
    frame::{Frame, Hello},
    http::{self, Dechunker, Head, Opened, Request, Response},
    wait::within,
    ws::Step,
};

/// One block of the stream, up to its blank line.
#[derive(Clone, Debug, Default)]
pub struct Block {
    pub id: Option<String>,
    pub event: Option<String>,
    pub retry_ms: Option<u64>,
    pub comments: usize,
    data: Vec<String>,
}

impl Block {
    fn parse(text: &str) -> Self {
        let mut block = Self::default();
        for line in text.lines() {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" => block.comments += 1,
                "id" => block.id = Some(value.into()),
                "event" => block.event = Some(value.into()),
                "data" => block.data.push(value.into()),
                "retry" => block.retry_ms = Some(value.parse().expect("milliseconds")),
                other => panic!("unknown field {other:?} in {text:?}"),
            }
        }
        block
    }

    /// The frame in `data:`.
    #[track_caller]
    pub fn frame(&self) -> Frame {
        Frame::parse(&self.data.join("\n"))
    }
}

/// An open stream.
pub struct SseClient {
    head: Head,
    socket: Socket,
    chunks: Dechunker,
    text: Vec<u8>,
    /// The `$hello` block.
    pub first: Block,
    /// The largest `retry:` seen, in milliseconds.
    pub retry_ms: Option<u64>,
    /// How many comments came so far: the heartbeat.
    pub comments: usize,
}

impl SseClient {
    /// Opens `GET /v1/stream?query` and reads `$hello`.
    pub async fn open(addr: SocketAddr, query: &str, headers: &[(&str, &str)]) -> Self {
        Self::open_over(&Dial::new(addr), query, headers).await
    }

    /// The same over any way to the port.
    pub async fn open_over(dial: &Dial, query: &str, headers: &[(&str, &str)]) -> Self {
        match Self::try_open(dial, query, headers).await {
            Ok(client) => client,
            Err(status) => panic!("refused with {status}"),
        }
    }

    /// The same; or the status of the refusal.
    pub async fn try_open(dial: &Dial, query: &str, headers: &[(&str, &str)]) -> Result<Self, u16> {
        let path = format!("/v1/stream?{query}");
        let request = Request { method: "GET", path: &path, headers, body: "" };
        let opened = within("an answer to the stream request", http::open_over(dial, request)).await;
        let opened = opened.expect("the client port answers");
        if opened.head.status != 200 {
            return Err(opened.head.status);
        }
        let mut client = Self::of(opened);
        client.first = client.next().await;
        client.hello();
        Ok(client)
    }

    /// The same at a node that may be gone or leaving; `None`: it has not greeted. Waits for as long as it takes.
    pub async fn attempt(dial: &Dial, query: &str, headers: &[(&str, &str)]) -> Option<Self> {
        let path = format!("/v1/stream?{query}");
        let request = Request { method: "GET", path: &path, headers, body: "" };
        let opened = http::open_over(dial, request).await.ok().filter(|opened| opened.head.status == 200)?;
        let mut client = Self::of(opened);
        client.first = client.read().await?;
        // A goodbye comes without one.
        (client.first.frame().kind == "$hello").then_some(client)
    }

    fn of(opened: Opened<Socket>) -> Self {
        let mut chunks = Dechunker::default();
        // Without chunks the stream ends with the connection.
        let chunked = opened.head.header("transfer-encoding").is_some();
        let text = if chunked { chunks.push(&opened.rest) } else { opened.rest };
        Self {
            head: opened.head,
            socket: opened.socket,
            chunks,
            text,
            first: Block::default(),
            retry_ms: None,
            comments: 0,
        }
    }

    /// Asks for a stream that must be refused.
    pub async fn refused(addr: SocketAddr, query: &str, headers: &[(&str, &str)]) -> Response {
        let path = format!("/v1/stream?{query}");
        http::send(addr, Request { method: "GET", path: &path, headers, body: "" }).await
    }

    /// What the server said first.
    #[track_caller]
    pub fn hello(&self) -> Hello {
        Hello::from_frame(&self.first.frame())
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// The next block with data; panics when the stream ends instead.
    pub async fn next(&mut self) -> Block {
        match within("an event of the stream", self.read()).await {
            Some(block) => block,
            None => panic!("the stream ended"),
        }
    }

    /// What comes next, within `patience`. Cancel safe.
    pub async fn step(&mut self, patience: Duration) -> Step {
        match tokio::time::timeout(patience, self.read()).await {
            Ok(Some(block)) => Step::Frame(block.frame()),
            Ok(None) => Step::Closed(None),
            Err(_) => Step::Nothing,
        }
    }

    /// The next `count` notifications.
    pub async fn expect(&mut self, count: usize) -> Vec<Block> {
        let mut blocks = Vec::with_capacity(count);
        while blocks.len() < count {
            let block = self.next().await;
            assert!(!block.frame().is_control(), "{block:?}");
            blocks.push(block);
        }
        blocks
    }

    /// The blocks up to the end of the stream.
    pub async fn rest(&mut self) -> Vec<Block> {
        let mut blocks = Vec::new();
        while let Some(block) = within("the stream's end", self.read()).await {
            blocks.push(block);
        }
        blocks
    }

    /// Reads for a while and keeps only the counters (comments, `retry:`); no data may come.
    pub async fn idle(&mut self, time: Duration) {
        if let Ok(block) = tokio::time::timeout(time, self.read()).await {
            panic!("not idle: {block:?}");
        }
    }

    /// Cancel-safe: what was read stays in the buffers.
    async fn read(&mut self) -> Option<Block> {
        loop {
            while let Some(end) = self.text.windows(2).position(|window| window == b"\n\n") {
                let text: Vec<u8> = self.text.drain(..end + 2).collect();
                let block = Block::parse(std::str::from_utf8(&text[..end]).expect("UTF-8"));
                self.comments += block.comments;
                self.retry_ms = self.retry_ms.max(block.retry_ms);
                if !block.data.is_empty() {
                    return Some(block);
                }
            }
            if self.chunks.finished {
                return None;
            }
            let mut bytes = Vec::new();
            match self.socket.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => return None,
                Ok(_) if self.header("transfer-encoding").is_some() => {
                    let data = self.chunks.push(&bytes);
                    self.text.extend(data);
                }
                Ok(_) => self.text.append(&mut bytes),
            }
        }
    }
}
