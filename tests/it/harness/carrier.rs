//! One client over any protocol: what a session means is the same for all, and tests say it once.

use notifier::proto::{AcknowledgeRequest, ConnectionRequest};
use tonic::Code;

use super::{
    Node,
    dial::Dial,
    frame::{Frame, Hello},
    grpc::{Caller, GrpcClient},
    http::{self, Request},
    sse::SseClient,
    ws::{Connect, PROTOBUF, WsClient},
};

/// A protocol with its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    WebSocketJson,
    WebSocketProtobuf,
    Sse,
    Grpc,
    GrpcWeb,
}

impl Carrier {
    pub const ALL: [Self; 5] = [Self::WebSocketJson, Self::WebSocketProtobuf, Self::Sse, Self::Grpc, Self::GrpcWeb];
}

/// What a client shows and asks for.
#[derive(Clone, Default)]
pub struct Ask {
    pub token: Option<String>,
    pub session: Option<String>,
    pub user: Option<String>,
    pub device: Option<String>,
    pub since: Option<String>,
}

impl Ask {
    pub fn token(token: &str) -> Self {
        Self { token: Some(token.into()), ..Self::default() }
    }

    pub fn session(session: &str) -> Self {
        Self { session: Some(session.into()), ..Self::default() }
    }

    fn query(&self) -> String {
        let pairs =
            [("session_id", &self.session), ("user_id", &self.user), ("device", &self.device), ("since", &self.since)];
        let pairs = pairs.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value.as_ref()?)));
        pairs.collect::<Vec<_>>().join("&")
    }

    fn bearer(&self) -> Option<String> {
        self.token.as_ref().map(|token| format!("Bearer {token}"))
    }
}

/// A connected client.
pub struct Client {
    carried: Carried,
    hello: Hello,
    node: std::net::SocketAddr,
    caller: Caller,
}

enum Carried {
    WebSocket(WsClient),
    Protobuf(WsClient),
    Sse(SseClient),
    Grpc(GrpcClient),
}

/// Tries to connect; the HTTP status of a refusal, or the one that the gRPC status stands for.
pub async fn open(node: &Node, carrier: Carrier, ask: &Ask) -> Result<Client, u16> {
    let bearer = ask.bearer();
    let caller = match carrier {
        Carrier::GrpcWeb => Caller::web(node.addr()),
        _ => Caller::native(node.grpc_addr()),
    };
    let (carried, hello) = match carrier {
        Carrier::WebSocketJson | Carrier::WebSocketProtobuf => {
            let mut connect = Connect::anonymous(node.addr());
            if let Some(bearer) = &bearer {
                connect = connect.header("Authorization", bearer);
            }
            for pair in ask.query().split('&').filter(|pair| !pair.is_empty()) {
                let (key, value) = pair.split_once('=').expect("a pair");
                connect = connect.query(key, value);
            }
            if carrier == Carrier::WebSocketProtobuf {
                connect = connect.header("Sec-WebSocket-Protocol", PROTOBUF);
            }
            let mut client = connect.try_open().await.map_err(|refused| refused.status)?;
            let hello = Hello::from_frame(&client.next().await);
            let protobuf = carrier == Carrier::WebSocketProtobuf;
            (if protobuf { Carried::Protobuf(client) } else { Carried::WebSocket(client) }, hello)
        }
        Carrier::Sse => {
            let headers: Vec<_> = bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
            let client = SseClient::try_open(&Dial::new(node.addr()), &ask.query(), &headers).await?;
            let hello = client.hello();
            (Carried::Sse(client), hello)
        }
        Carrier::Grpc | Carrier::GrpcWeb => {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            let request = ConnectionRequest {
                session_id: text(&ask.session),
                user_id: text(&ask.user),
                device: text(&ask.device),
                since: text(&ask.since),
            };
            let headers: Vec<_> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
            let mut client = caller.connect(request, &headers).await.map_err(|status| http_status(status.code()))?;
            let hello = client.hello().await;
            (Carried::Grpc(client), hello)
        }
    };
    Ok(Client { carried, hello, node: node.addr(), caller })
}

/// The HTTP status that says the same.
fn http_status(code: Code) -> u16 {
    match code {
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::InvalidArgument => 400,
        Code::NotFound => 404,
        Code::ResourceExhausted => 429,
        Code::Unavailable => 503,
        other => panic!("no HTTP status for {other:?}"),
    }
}

impl Client {
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The next frame of any kind.
    pub async fn next(&mut self) -> Frame {
        match &mut self.carried {
            Carried::WebSocket(client) | Carried::Protobuf(client) => client.next().await,
            Carried::Sse(client) => client.next().await.frame(),
            Carried::Grpc(client) => client.message().await.expect("a stream that goes on").expect("a message"),
        }
    }

    /// The next `count` frames, which must all be notifications.
    pub async fn expect(&mut self, count: usize) -> Vec<Frame> {
        let mut frames = Vec::with_capacity(count);
        while frames.len() < count {
            let frame = self.next().await;
            assert!(!frame.is_control(), "{frame:?}");
            frames.push(frame);
        }
        frames
    }

    /// Acknowledges as the protocol does it; the HTTP status of a refusal where there is an answer.
    pub async fn ack(&mut self, seq: u64) -> Result<(), u16> {
        let session = self.hello.session.clone();
        let request = AcknowledgeRequest { session_id: session.clone(), sequence: seq };
        match &mut self.carried {
            Carried::WebSocket(client) => client.ack(seq).await,
            Carried::Protobuf(client) => {
                client.binary(prost::Message::encode_to_vec(&request)).await;
            }
            Carried::Sse(_) => {
                let (path, body) = (format!("/v1/sessions/{session}/ack"), format!("{{\"ack\":{seq}}}"));
                let headers = [("Content-Type", "application/json")];
                let request = Request { method: "POST", path: &path, headers: &headers, body: &body };
                let status = http::send(self.node, request).await.status();
                return if status == 204 { Ok(()) } else { Err(status) };
            }
            Carried::Grpc(_) => {
                let done = self.caller.acknowledge(request, &[]).await;
                return done.map_err(|status| http_status(status.code()));
            }
        }
        Ok(())
    }

    /// Reads to the end; the code that the `$bye` before it names.
    pub async fn bye(&mut self) -> u64 {
        loop {
            let frame = self.next().await;
            if frame.kind == "$bye" {
                return frame.payload()["code"].as_u64().expect("a code");
            }
        }
    }

    /// The status that ends a gRPC stream.
    pub async fn status(&mut self) -> Option<Code> {
        match &mut self.carried {
            Carried::Grpc(client) => Some(client.rest().await.1),
            _ => None,
        }
    }
}
