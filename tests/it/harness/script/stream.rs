//! The script as server-sent events, with acknowledgements beside the stream.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    http::{HeaderMap, StatusCode, Uri, header},
    response::IntoResponse,
    routing::{get, post},
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinHandle,
};

/// What a body is made of.
type Chunk = Result<String, Infallible>;
type Acks = Arc<Mutex<mpsc::UnboundedReceiver<Value>>>;

pub struct Server {
    addr: SocketAddr,
    lines: Mutex<mpsc::UnboundedReceiver<(Vec<String>, mpsc::UnboundedSender<Chunk>)>>,
    acks: Acks,
    serving: JoinHandle<()>,
}

/// An open stream. Dropped, it ends within a notification, as behind a proxy when a node crashes.
pub struct Line {
    body: mpsc::UnboundedSender<Chunk>,
    acks: Acks,
    epoch: String,
    has_said_bye: bool,
    is_closed: bool,
}

impl Server {
    pub async fn start() -> Self {
        let (opened, lines) = mpsc::unbounded_channel();
        let (acked, acks) = mpsc::unbounded_channel();
        let stream = async move |uri: Uri, headers: HeaderMap| {
            let mut asked: Vec<String> = uri.query().unwrap_or_default().split('&').map(str::to_owned).collect();
            let since = headers.get("last-event-id").map(|id| id.to_str().expect("text"));
            asked.extend(since.filter(|id| !id.is_empty()).map(|id| format!("since={id}")));
            let (body, mut chunks) = mpsc::unbounded_channel::<Chunk>();
            // As a node begins: with the time to wait, and a heartbeat.
            body.send(Ok("retry: 400\n\n:\n\n".into())).expect("the receiver is here");
            opened.send((asked, body)).expect("the test is running");
            let body = Body::from_stream(stream::poll_fn(move |context| chunks.poll_recv(context)));
            ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
        };
        let acknowledge = async move |Json(ack): Json<Value>| {
            acked.send(ack).expect("the test is running");
            StatusCode::NO_CONTENT
        };
        // The session that the test's `$hello` names; others are not found.
        let router = Router::new().route("/v1/stream", get(stream)).route("/v1/sessions/s/ack", post(acknowledge));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let addr = listener.local_addr().expect("a bound socket");
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("never ends") });
        Self { addr, lines: Mutex::new(lines), acks: Arc::new(Mutex::new(acks)), serving }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The next stream, and what its query and its header say.
    pub async fn accept(&self) -> (Vec<String>, Line) {
        let (asked, body) = self.lines.lock().await.recv().await.expect("a server");
        let (acks, epoch) = (self.acks.clone(), String::new());
        (asked, Line { body, acks, epoch, has_said_bye: false, is_closed: false })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Line {
    /// As a node writes a frame: a name when it is about the session, an id when it has a number.
    pub fn say(&mut self, text: &str) {
        let frame: Value = serde_json::from_str(text).expect("JSON");
        let kind = frame["type"].as_str().expect("a type");
        let mut fields = String::new();
        if kind.starts_with('$') {
            fields += &format!("event: {kind}\n");
        }
        if let Some(epoch) = frame["payload"]["epoch"].as_str() {
            self.epoch = epoch.into();
        }
        if let Some(seq) = frame["seq"].as_u64() {
            fields += &format!("id: {}-{seq}\n", self.epoch);
        }
        self.has_said_bye |= kind == "$bye";
        self.body.send(Ok(format!("{fields}data: {text}\n\n"))).expect("an open stream");
    }

    /// The next acknowledgement.
    pub async fn hear(&mut self) -> Value {
        self.acks.lock().await.recv().await.expect("a server")
    }

    pub fn close(mut self, code: u16) {
        if !self.has_said_bye {
            self.say(&json!({"type": "$bye", "payload": {"code": code, "reason": "as the test says"}}).to_string());
        }
        self.is_closed = true;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.is_closed {
            let half =
                format!("id: {}-99\ndata: {{\"type\":\"greeting\",\"seq\":99,\"payload\":{{\ndata: \"n\"", self.epoch);
            let _ = self.body.send(Ok(half));
        }
    }
}
