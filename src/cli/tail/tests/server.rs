//! A server that a test plays by hand, and a tail that it plays against.

use std::{future::Future, time::Duration};

use clap::Parser;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, Lines},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{ErrorResponse, Request, Response},
        protocol::CloseFrame,
    },
};

use crate::{
    cli::tail::{self, Args, Format, Printer},
    config::Config,
};

/// Nothing here takes so long unless it never comes.
pub(super) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it comes in time")
}

pub(super) struct Server(TcpListener);

/// An accepted WebSocket.
pub(super) struct WebSocket {
    pub(super) target: String,
    pub(super) authorization: String,
    socket: WebSocketStream<TcpStream>,
}

/// An accepted request that is answered by hand.
pub(super) struct Plain {
    pub(super) head: String,
    pub(super) body: String,
    socket: TcpStream,
}

impl Server {
    pub(super) async fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.0.local_addr().unwrap())
    }

    #[expect(clippy::result_large_err, reason = "the library's signature")]
    pub(super) async fn websocket(&self) -> WebSocket {
        let (socket, _) = soon(self.0.accept()).await.unwrap();
        let (mut target, mut authorization) = (String::new(), String::new());
        let note = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
            target = request.uri().to_string();
            let header = |name| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
            authorization = header("authorization").unwrap_or_default();
            assert_eq!(header("sec-websocket-protocol").as_deref(), Some("notifier.v1.json"));
            response.headers_mut().insert("sec-websocket-protocol", "notifier.v1.json".parse().unwrap());
            Ok(response)
        };
        let socket = soon(accept_hdr_async(socket, note)).await.unwrap();
        WebSocket { target, authorization, socket }
    }

    pub(super) async fn request(&self) -> Plain {
        let (mut socket, _) = soon(self.0.accept()).await.unwrap();
        let mut text = Vec::new();
        let read = async {
            loop {
                socket.read_buf(&mut text).await.unwrap();
                let text = String::from_utf8(text.clone()).unwrap();
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let head = head.to_lowercase();
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                        return (head, body.to_owned());
                    }
                }
            }
        };
        let (head, body) = soon(read).await;
        Plain { head, body, socket }
    }

    /// A request for a stream, answered with its head.
    pub(super) async fn stream(&self) -> Plain {
        let mut stream = self.request().await;
        stream.write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nretry: 1500\n\n").await;
        stream
    }
}

pub(super) fn hello(epoch: &str, heartbeat_ms: u64) -> String {
    format!(
        r#"{{"type":"$hello","payload":{{"session":"s1","user":"101","epoch":"{epoch}","head":9,"cursor":0,"heartbeat_ms":{heartbeat_ms},"reconnect_ms":1}}}}"#
    )
}

pub(super) fn notification(seq: u64) -> String {
    format!(r#"{{"target":"101","type":"t","payload":{{"n":{seq}}},"id":"i{seq}","seq":{seq}}}"#)
}

impl WebSocket {
    pub(super) async fn say(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// The next message, which must be a text.
    pub(super) async fn hear(&mut self) -> String {
        soon(self.socket.next()).await.unwrap().unwrap().into_text().unwrap().as_str().to_owned()
    }

    pub(super) async fn close(mut self, code: u16, reason: &'static str) {
        let close = CloseFrame { code: code.into(), reason: reason.into() };
        self.socket.close(Some(close)).await.unwrap();
        self.ended().await;
    }

    /// Reads the client's close.
    pub(super) async fn ended(mut self) {
        while let Some(Ok(message)) = soon(self.socket.next()).await {
            assert!(message.is_close(), "{message}");
        }
    }

    /// Ends without a word.
    pub(super) fn cut(self) {}
}

impl Plain {
    pub(super) async fn write(&mut self, text: &str) {
        self.socket.write_all(text.as_bytes()).await.unwrap();
    }

    pub(super) async fn answer(mut self, status: &str, headers: &str, body: &str) {
        self.write(&format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())).await;
    }
}

/// A tail that runs, with its output.
pub(super) struct Tail {
    output: Lines<BufReader<DuplexStream>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: Args,
}

/// The arguments of a command line, for user 101 unless the flags name another.
pub(super) fn args(flags: &[&str]) -> Args {
    let user: &[&str] = if flags.contains(&"--user") { &[] } else { &["--user", "101"] };
    Command::try_parse_from(["tail"].iter().chain(user).chain(flags)).unwrap().args
}

pub(super) fn config() -> Config {
    let mut config = Config::default();
    config.auth.jwt.hs256_secret = Some("0123456789abcdef0123456789abcdef".into());
    config
}

impl Tail {
    pub(super) fn start(server: &Server, flags: &[&str]) -> Self {
        let url = server.url();
        let args = args(&[&["--url", &url], flags].concat());
        let format = if args.json { Format::Json } else { Format::Human { colours: false } };
        let (output, input) = tokio::io::duplex(64 * 1024);
        let follower = tail::follower(args, &config(), Printer::new(input, format)).unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(follower.run(async move { _ = stopped.await }));
        Self { output: BufReader::new(output).lines(), stop, task }
    }

    /// The next line.
    pub(super) async fn line(&mut self) -> String {
        soon(self.output.next_line()).await.unwrap().expect("the output goes on")
    }

    /// The next line without the time, which it has to begin with.
    pub(super) async fn timeless(&mut self) -> String {
        let line = self.line().await;
        let (time, rest) = line.split_once("  ").unwrap();
        assert!(time.len() == 12 && time.bytes().filter(u8::is_ascii_digit).count() == 9, "{line}");
        rest.to_owned()
    }

    /// Asks it to stop; it goes on in the background.
    pub(super) fn stop(self) -> JoinHandle<anyhow::Result<()>> {
        self.stop.send(()).expect("it runs");
        self.task
    }

    /// Closes the output that it writes to.
    pub(super) fn stop_reading(self) -> JoinHandle<anyhow::Result<()>> {
        // Forgotten, so that it is the output that ends the task and not this.
        std::mem::forget(self.stop);
        self.task
    }

    /// How it ends by itself.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        soon(self.task).await.unwrap()
    }
}
