//! A WebSocket peer that does not behave: it sends what it likes and reads when it likes.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    dial::{Dial, Socket},
    http::{self, Opened, Request},
    wait::within,
};

/// Opcodes of RFC 6455, section 11.8.
pub mod opcode {
    pub const CONTINUATION: u8 = 0;
    pub const TEXT: u8 = 1;
    pub const BINARY: u8 = 2;
    pub const CLOSE: u8 = 8;
    pub const PING: u8 = 9;
    pub const PONG: u8 = 10;
}

/// The bit that says that a frame is its message's last (RFC 6455, 5.2).
pub const FIN: u8 = 0x80;

/// A whole frame of a client, whose first byte is `first`.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(first, payload.len() as u64);
    // With the mask 0 0 0 0 the bytes stay as they are.
    frame.extend_from_slice(payload);
    frame
}

/// Only a frame's header, which announces that many bytes.
pub fn header(first: u8, length: u64) -> Vec<u8> {
    const MASKED: u8 = 0x80;
    let mut header = vec![first, MASKED | 127];
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..=125), _) => header[1] = MASKED | short,
        (_, Ok(middle)) => {
            header[1] = MASKED | 126;
            header.extend_from_slice(&middle.to_be_bytes());
        }
        _ => header.extend_from_slice(&length.to_be_bytes()),
    }
    header.extend_from_slice(&[0; 4]);
    header
}

/// How the server ended a connection.
#[derive(Debug, PartialEq)]
pub enum End {
    /// With a close frame of this code.
    Code(u16),
    /// Without one: end of stream or reset.
    Cut,
}

/// A connection after the handshake, nothing read yet.
pub struct RawWs<S = TcpStream> {
    socket: S,
    buffer: Vec<u8>,
}

impl RawWs {
    /// Shakes hands by hand.
    pub async fn open(addr: SocketAddr, token: &str) -> Self {
        let authorization = format!("Bearer {token}");
        let headers = upgrade(&authorization);
        Self::opened(http::open(addr, request(&headers))).await
    }
}

impl RawWs<Socket> {
    /// The same over any way to the port.
    pub async fn open_over(dial: &Dial, token: &str) -> Self {
        let authorization = format!("Bearer {token}");
        let headers = upgrade(&authorization);
        Self::opened(http::open_over(dial, request(&headers))).await
    }
}

fn upgrade(authorization: &str) -> [(&str, &str); 5] {
    [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        // The sample key of the standard.
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Authorization", authorization),
    ]
}

fn request<'a>(headers: &'a [(&'a str, &'a str)]) -> Request<'a> {
    Request { method: "GET", path: "/v1/connect", headers, body: "" }
}

impl<S: AsyncRead + AsyncWrite + Unpin> RawWs<S> {
    async fn opened(opening: impl Future<Output = std::io::Result<Opened<S>>>) -> Self {
        let opened = within("an answer to the handshake", opening).await;
        let opened = opened.expect("the client port answers");
        assert_eq!(opened.head.status, 101, "{:?}", opened.head);
        let accept = opened.head.header("sec-websocket-accept");
        assert_eq!(accept, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        Self { socket: opened.socket, buffer: opened.rest }
    }

    /// The bytes on a connection that a request opened.
    pub fn from(opened: http::Opened<S>) -> Self {
        Self { socket: opened.socket, buffer: opened.rest }
    }

    /// Sends a whole masked frame.
    pub async fn send(&mut self, opcode: u8, payload: &[u8]) {
        self.write(&frame(FIN | opcode, payload)).await;
    }

    /// Sends bytes as they are. That the server has closed shows at [`Self::end`].
    pub async fn write(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes).await;
    }

    /// The next frame: its opcode and payload. Panics when the connection ends instead.
    pub async fn frame(&mut self) -> (u8, Vec<u8>) {
        within("a frame", async {
            loop {
                if let Some(frame) = self.take() {
                    return frame;
                }
                let read = self.socket.read_buf(&mut self.buffer).await;
                assert!(read.is_ok_and(|count| count > 0), "the connection ended");
            }
        })
        .await
    }

    /// Sends bytes as they are; whether the connection is still there.
    pub async fn is_taken(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).await.is_ok()
    }

    /// Reads at most so many bytes and forgets them; whether the connection is still there.
    pub async fn skip(&mut self, count: usize) -> bool {
        let mut nowhere = vec![0; count];
        self.socket.read(&mut nowhere).await.is_ok_and(|read| read > 0)
    }

    /// Reads on, answering nothing, until the server ends the connection.
    pub async fn end(&mut self) -> End {
        within("the connection's end", async {
            loop {
                while let Some((opcode, payload)) = self.take() {
                    if opcode == opcode::CLOSE {
                        let code = payload.first_chunk().expect("a close frame with a code");
                        return End::Code(u16::from_be_bytes(*code));
                    }
                }
                match self.socket.read_buf(&mut self.buffer).await {
                    Ok(0) | Err(_) => return End::Cut,
                    Ok(_) => {}
                }
            }
        })
        .await
    }

    /// The next whole frame of the buffer; a server's frames are not masked.
    fn take(&mut self) -> Option<(u8, Vec<u8>)> {
        let (&first, &second) = (self.buffer.first()?, self.buffer.get(1)?);
        assert_eq!(second & 0x80, 0, "a server must not mask");
        let (start, length) = match second {
            126 => (4, usize::from(u16::from_be_bytes(*self.buffer.get(2..4)?.first_chunk()?))),
            127 => {
                let length = u64::from_be_bytes(*self.buffer.get(2..10)?.first_chunk()?);
                (10, usize::try_from(length).expect("a length"))
            }
            short => (2, usize::from(short)),
        };
        let payload = self.buffer.get(start..start + length)?.to_vec();
        self.buffer.drain(..start + length);
        Some((first & 0x0f, payload))
    }
}
