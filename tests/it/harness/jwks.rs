//! An issuer: a server that publishes a JSON Web Key Set, well or badly, and notes when it was asked.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What the server answers.
#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: String,
    pub body: String,
    pub delay: Duration,
}

impl Answer {
    /// A set of these keys.
    pub fn keys(keys: &[Value]) -> Self {
        Self::text(200, &json!({ "keys": keys }).to_string())
    }

    /// Any text.
    pub fn text(status: u16, body: &str) -> Self {
        Self { status, headers: String::new(), body: body.into(), delay: Duration::ZERO }
    }

    fn bytes(&self) -> Vec<u8> {
        let Self { status, headers, body, .. } = self;
        format!(
            "HTTP/1.1 {status} Some\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\
             {headers}\r\n{body}",
            body.len(),
        )
        .into_bytes()
    }
}

/// A running server; it ends with the value.
pub struct Issuer {
    addr: SocketAddr,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<Mutex<Vec<Instant>>>,
    serving: JoinHandle<()>,
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Issuer {
    /// Publishes at a port of the system's choice.
    pub async fn start(answer: Answer) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), answer).await
    }

    /// Publishes there.
    pub async fn start_at(addr: SocketAddr, answer: Answer) -> Self {
        let listener = TcpListener::bind(addr).await.expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let (answer, asked) = (Arc::new(Mutex::new(answer)), Arc::new(Mutex::new(Vec::new())));
        let serving = tokio::spawn(serve(listener, answer.clone(), asked.clone()));
        Self { addr, answer, asked, serving }
    }

    pub fn url(&self) -> String {
        format!("http://{}/keys", self.addr)
    }

    /// Answers so from now on.
    pub fn publish(&self, answer: Answer) {
        *self.answer.lock() = answer;
    }

    /// When it was asked.
    pub fn asked(&self) -> Vec<Instant> {
        self.asked.lock().clone()
    }
}

async fn serve(listener: TcpListener, answer: Arc<Mutex<Answer>>, asked: Arc<Mutex<Vec<Instant>>>) {
    loop {
        let Ok((socket, _)) = listener.accept().await else { return };
        let (answer, asked) = (answer.clone(), asked.clone());
        // A client that goes away is its own affair.
        tokio::spawn(async move { respond(socket, &answer, &asked).await.ok() });
    }
}

async fn respond(mut socket: TcpStream, answer: &Mutex<Answer>, asked: &Mutex<Vec<Instant>>) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if socket.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    asked.lock().push(Instant::now());
    let answer = answer.lock().clone();
    tokio::time::sleep(answer.delay).await;
    socket.write_all(&answer.bytes()).await?;
    socket.shutdown().await
}
