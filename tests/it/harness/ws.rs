//! A WebSocket client that behaves: it reads at once and answers pings.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{SinkExt as _, StreamExt as _, stream::SplitSink};
use tokio::sync::mpsc;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self, Message,
        client::IntoClientRequest as _,
        handshake::client::{Request, Response},
        http::{HeaderName, HeaderValue},
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use super::{
    dial::{Dial, Socket},
    frame::{Frame, Hello},
    wait::within,
};

/// The subprotocol with binary messages.
pub const PROTOBUF: &str = "notifier.v1.proto";

/// What a handshake is made of.
pub struct Connect {
    dial: Dial,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
}

/// How a server refused a handshake.
#[derive(Debug)]
pub struct Refused {
    pub status: u16,
    pub content_type: String,
}

impl Connect {
    /// A handshake without any credentials.
    pub fn anonymous(addr: SocketAddr) -> Self {
        Self { dial: Dial::new(addr), query: Vec::new(), headers: Vec::new() }
    }

    /// Takes another way to the port.
    pub fn over(mut self, dial: &Dial) -> Self {
        self.dial = dial.clone();
        self
    }

    /// One with an `Authorization` header.
    pub fn bearer(addr: SocketAddr, token: &str) -> Self {
        Self::anonymous(addr).header("Authorization", &format!("Bearer {token}"))
    }

    /// Adds a query parameter; the value must be URL-safe already.
    pub fn query(mut self, key: &str, value: &str) -> Self {
        self.query.push((key.into(), value.into()));
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    fn request(&self) -> Request {
        let pairs: Vec<_> = self.query.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let url = format!("ws://{}/v1/connect?{}", self.dial.to(), pairs.join("&"));
        let mut request = url.into_client_request().expect("a valid address");
        for (name, value) in &self.headers {
            let name = HeaderName::try_from(name.as_str()).expect("a header name");
            request.headers_mut().append(name, HeaderValue::from_str(value).expect("a header value"));
        }
        request
    }

    /// Shakes hands; the answer's headers are in the client.
    pub async fn try_open(self) -> Result<WsClient, Refused> {
        let request = self.request();
        let socket = self.dial.open().await.expect("the client port accepts");
        let done = within("an answer to the handshake", client_async_with_config(request, socket, None));
        match done.await {
            Ok((stream, response)) => Ok(WsClient::new(stream, response)),
            Err(tungstenite::Error::Http(response)) => {
                let content_type = response.headers().get("content-type");
                let content_type = content_type.and_then(|value| value.to_str().ok());
                Err(Refused {
                    status: response.status().as_u16(),
                    content_type: content_type.unwrap_or_default().to_owned(),
                })
            }
            Err(error) => panic!("the handshake broke: {error}"),
        }
    }

    /// Shakes hands and reads `$hello`, which must come first.
    pub async fn open(self) -> WsClient {
        let mut client = match self.try_open().await {
            Ok(client) => client,
            Err(refused) => panic!("refused: {refused:?}"),
        };
        client.hello = Some(Hello::from_frame(&client.next().await));
        client
    }

    /// Shakes hands with a node that may be gone, frozen or leaving: the client, which has been greeted, if there is
    /// one within `patience`.
    pub async fn attempt(self, patience: Duration) -> Option<WsClient> {
        let request = self.request();
        let greeted = async {
            let socket = self.dial.open().await.ok()?;
            let (stream, response) = client_async_with_config(request, socket, None).await.ok()?;
            let mut client = WsClient::new(stream, response);
            let Step::Frame(first) = client.step(patience).await else { return None };
            // A goodbye comes without one.
            client.hello = (first.kind == "$hello").then(|| Hello::from_frame(&first));
            client.hello.is_some().then_some(client)
        };
        tokio::time::timeout(patience, greeted).await.ok().flatten()
    }

    /// Shakes hands where that must be refused.
    pub async fn refused(self) -> Refused {
        match self.try_open().await {
            Ok(_) => panic!("the handshake was accepted"),
            Err(refused) => refused,
        }
    }
}

/// What a client meets next.
#[derive(Debug)]
pub enum Step {
    Frame(Frame),
    /// The end, with the close code; `None` when the connection just ended.
    Closed(Option<u16>),
    /// Nothing in time.
    Nothing,
}

enum Incoming {
    Frame(Frame),
    /// With the close code; `None` when the connection just ended.
    Closed(Option<u16>),
}

/// A connected client. Frames are read in the background, as long as the test awaits anything.
pub struct WsClient {
    response: Response,
    hello: Option<Hello>,
    incoming: mpsc::UnboundedReceiver<Incoming>,
    pings: Arc<AtomicUsize>,
    sink: SplitSink<WebSocketStream<Socket>, Message>,
    reading: tokio::task::JoinHandle<()>,
}

/// The reading task holds half of the socket: without this the connection would outlive the client.
impl Drop for WsClient {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl WsClient {
    fn new(stream: WebSocketStream<Socket>, response: Response) -> Self {
        let selected = response.headers().get("sec-websocket-protocol");
        let protobuf = selected.is_some_and(|name| name == PROTOBUF);
        let (sink, mut source) = stream.split();
        let (sender, incoming) = mpsc::unbounded_channel();
        let pings = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&pings);
        let reading = tokio::spawn(async move {
            let code = loop {
                match source.next().await {
                    Some(Ok(Message::Text(text))) if !protobuf => {
                        if sender.send(Incoming::Frame(Frame::parse(&text))).is_err() {
                            return;
                        }
                    }
                    Some(Ok(Message::Binary(bytes))) if protobuf => {
                        if sender.send(Incoming::Frame(Frame::decode(&bytes))).is_err() {
                            return;
                        }
                    }
                    Some(Ok(Message::Ping(_))) => {
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                    Some(Ok(Message::Close(frame))) => break frame.map(|frame| frame.code.into()),
                    Some(Ok(other)) => panic!("not in the protocol: {other:?}"),
                    Some(Err(_)) | None => break None,
                }
            };
            // The close handshake ends when the stream is read to its end.
            let _ = sender.send(Incoming::Closed(code));
            while let Some(Ok(_)) = source.next().await {}
        });
        Self { response, hello: None, incoming, pings, sink, reading }
    }

    /// What the server said first.
    pub fn hello(&self) -> &Hello {
        self.hello.as_ref().expect("opened with `open`")
    }

    /// A header of the answer to the handshake.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// How many pings came so far.
    pub fn pings(&self) -> usize {
        self.pings.load(Ordering::Relaxed)
    }

    /// The next frame of any kind; panics when the connection closes instead.
    pub async fn next(&mut self) -> Frame {
        match within("a frame", self.incoming.recv()).await {
            Some(Incoming::Frame(frame)) => frame,
            Some(Incoming::Closed(code)) => panic!("closed with {code:?} instead of a frame"),
            None => panic!("read past the end"),
        }
    }

    /// The next frame, which must be that control frame.
    pub async fn control(&mut self, kind: &str) -> Frame {
        let frame = self.next().await;
        assert_eq!(frame.kind, kind, "{frame:?}");
        frame
    }

    /// The next `count` frames, which must all be notifications.
    pub async fn expect(&mut self, count: usize) -> Vec<Frame> {
        let mut frames = Vec::with_capacity(count);
        while frames.len() < count {
            let frame = self.next().await;
            assert!(!frame.is_control(), "after {} notifications: {frame:?}", frames.len());
            frames.push(frame);
        }
        frames
    }

    /// The next frame, which must be a notification.
    pub async fn one(&mut self) -> Frame {
        self.expect(1).await.remove(0)
    }

    /// As [`Self::expect`], acknowledging each: for more than a window holds.
    pub async fn expect_acked(&mut self, count: usize) -> Vec<Frame> {
        let mut frames = Vec::with_capacity(count);
        for _ in 0..count {
            let frame = self.one().await;
            if let Some(seq) = frame.seq {
                self.ack(seq).await;
            }
            frames.push(frame);
        }
        frames
    }

    /// A notification that is there already or comes within `patience`.
    pub async fn poll(&mut self, patience: Duration) -> Option<Frame> {
        match tokio::time::timeout(patience, self.incoming.recv()).await {
            Ok(Some(Incoming::Frame(frame))) => Some(frame),
            Ok(Some(Incoming::Closed(code))) => panic!("closed with {code:?}"),
            Ok(None) => panic!("read past the end"),
            Err(_) => None,
        }
    }

    /// What comes next, within `patience`. Cancel safe.
    pub async fn step(&mut self, patience: Duration) -> Step {
        match tokio::time::timeout(patience, self.incoming.recv()).await {
            Ok(Some(Incoming::Frame(frame))) => Step::Frame(frame),
            Ok(Some(Incoming::Closed(code))) => Step::Closed(code),
            Ok(None) => panic!("read past the end"),
            Err(_) => Step::Nothing,
        }
    }

    /// Acknowledges everything up to `seq`.
    pub async fn ack(&mut self, seq: u64) {
        self.text(&format!("{{\"ack\":{seq}}}")).await;
    }

    /// Sends a binary frame.
    pub async fn binary(&mut self, bytes: Vec<u8>) {
        let _ = self.sink.send(Message::Binary(bytes.into())).await;
    }

    /// Sends any text frame; that the peer is gone shows at the next read.
    pub async fn text(&mut self, text: &str) {
        let _ = self.sink.send(Message::text(text)).await;
    }

    /// Reads to the end: the frames before it and the close code.
    pub async fn closed(&mut self) -> (Vec<Frame>, Option<u16>) {
        let mut frames = Vec::new();
        loop {
            match within("the connection's end", self.incoming.recv()).await {
                Some(Incoming::Frame(frame)) => frames.push(frame),
                Some(Incoming::Closed(code)) => return (frames, code),
                None => panic!("read past the end"),
            }
        }
    }

    /// The close code, with which the server must end the connection.
    pub async fn close_code(&mut self) -> u16 {
        let (frames, code) = self.closed().await;
        match code {
            Some(code) => code,
            None => panic!("ended without a close frame after {frames:?}"),
        }
    }

    /// Says goodbye and waits until the server has closed too.
    pub async fn leave(mut self) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = self.sink.send(Message::Close(Some(frame))).await;
        self.closed().await;
    }
}
