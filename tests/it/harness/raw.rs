//! A WebSocket peer that does not behave: it sends what it likes and reads when it likes.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    http::{self, Request},
    wait::within,
};

/// Opcodes of RFC 6455, section 11.8.
pub mod opcode {
    pub const TEXT: u8 = 1;
    pub const CLOSE: u8 = 8;
    pub const PING: u8 = 9;
    pub const PONG: u8 = 10;
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
pub struct RawWs {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl RawWs {
    /// Shakes hands by hand.
    pub async fn open(addr: SocketAddr, token: &str) -> Self {
        let authorization = format!("Bearer {token}");
        let headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            // The sample key of the standard.
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Authorization", &authorization),
        ];
        let request = Request { method: "GET", path: "/v1/connect", headers: &headers, body: "" };
        let opened = within("an answer to the handshake", http::open(addr, request)).await;
        let opened = opened.expect("the client port answers");
        assert_eq!(opened.head.status, 101, "{:?}", opened.head);
        let accept = opened.head.header("sec-websocket-accept");
        assert_eq!(accept, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        Self { socket: opened.socket, buffer: opened.rest }
    }

    /// Sends a whole masked frame.
    pub async fn send(&mut self, opcode: u8, payload: &[u8]) {
        self.header(opcode, payload.len()).await;
        // With the mask 0 0 0 0 the bytes stay as they are.
        self.write(payload).await;
    }

    /// Sends only a frame's header, which announces that many bytes.
    pub async fn header(&mut self, opcode: u8, length: usize) {
        let length = u64::try_from(length).expect("a length");
        let mut header = vec![0x80 | opcode, 0x80 | 127];
        match (u8::try_from(length), u16::try_from(length)) {
            (Ok(short @ ..=125), _) => header[1] = 0x80 | short,
            (_, Ok(middle)) => {
                header[1] = 0x80 | 126;
                header.extend_from_slice(&middle.to_be_bytes());
            }
            _ => header.extend_from_slice(&length.to_be_bytes()),
        }
        header.extend_from_slice(&[0; 4]);
        self.write(&header).await;
    }

    /// Sends bytes as they are. That the server has closed shows at [`Self::end`].
    pub async fn write(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes).await;
    }

    /// The bare socket, for a thread that blocks on it; what was read already is dropped.
    pub fn into_blocking(self) -> std::net::TcpStream {
        let socket = self.socket.into_std().expect("a socket of the runtime");
        socket.set_nonblocking(false).expect("a socket");
        socket
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
