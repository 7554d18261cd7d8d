//! One client over any protocol: what a session means is the same for all, and tests say it once.

use std::{net::SocketAddr, time::Duration};

use notifier::proto::{AcknowledgeRequest, ConnectionRequest};
use tonic::Code;

use super::{
    Node,
    dial::Dial,
    frame::{Frame, Hello},
    grpc::{Caller, GrpcClient},
    http::{self, Request, Response},
    sse::SseClient,
    wait::within,
    ws::{Connect, PROTOBUF, Step, WsClient},
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

    fn request(&self) -> ConnectionRequest {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        ConnectionRequest {
            session_id: text(&self.session),
            user_id: text(&self.user),
            device: text(&self.device),
            since: text(&self.since),
        }
    }

    fn websocket(&self, addr: SocketAddr, carrier: Carrier) -> Connect {
        let mut connect = Connect::anonymous(addr);
        if let Some(bearer) = self.bearer() {
            connect = connect.header("Authorization", &bearer);
        }
        for pair in self.query().split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').expect("a pair");
            connect = connect.query(key, value);
        }
        match carrier {
            Carrier::WebSocketProtobuf => connect.header("Sec-WebSocket-Protocol", PROTOBUF),
            _ => connect,
        }
    }
}

/// Where a node's clients knock.
#[derive(Clone, Copy)]
pub struct Doors {
    pub client: SocketAddr,
    pub grpc: SocketAddr,
}

impl Doors {
    pub fn of(node: &Node) -> Self {
        Self { client: node.addr(), grpc: node.grpc_addr() }
    }

    fn caller(&self, carrier: Carrier) -> Caller {
        match carrier {
            Carrier::GrpcWeb => Caller::web(self.client),
            _ => Caller::native(self.grpc),
        }
    }
}

/// How long an acknowledgement is tried for whose answer nobody waits for.
const UNHEARD: Duration = Duration::from_secs(10);

/// A connected client.
pub struct Client {
    carried: Carried,
    hello: Hello,
    node: SocketAddr,
    caller: Caller,
}

enum Carried {
    WebSocket(WsClient),
    Protobuf(WsClient),
    Sse(SseClient),
    Grpc(GrpcClient),
}

impl Carried {
    fn socket(client: WsClient, carrier: Carrier) -> Self {
        if carrier == Carrier::WebSocketProtobuf { Self::Protobuf(client) } else { Self::WebSocket(client) }
    }
}

/// Tries to connect; the HTTP status of a refusal, or the one that the gRPC status stands for.
pub async fn open(node: &Node, carrier: Carrier, ask: &Ask) -> Result<Client, u16> {
    let bearer = ask.bearer();
    let caller = Doors::of(node).caller(carrier);
    let (carried, hello) = match carrier {
        Carrier::WebSocketJson | Carrier::WebSocketProtobuf => {
            let connect = ask.websocket(node.addr(), carrier);
            let mut client = connect.try_open().await.map_err(|refused| refused.status)?;
            let hello = Hello::from_frame(&client.next().await);
            (Carried::socket(client, carrier), hello)
        }
        Carrier::Sse => {
            let headers: Vec<_> = bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
            let client = SseClient::try_open(&Dial::new(node.addr()), &ask.query(), &headers).await?;
            let hello = client.hello();
            (Carried::Sse(client), hello)
        }
        Carrier::Grpc | Carrier::GrpcWeb => {
            let headers: Vec<_> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
            let connected = caller.connect(ask.request(), &headers).await;
            let mut client = connected.map_err(|status| http_status(status.code()))?;
            let hello = client.hello().await;
            (Carried::Grpc(client), hello)
        }
    };
    Ok(Client { carried, hello, node: node.addr(), caller })
}

/// Tries a node that may be gone, frozen or leaving: the client, which has been greeted, if there is one within
/// `patience`.
pub async fn attempt(doors: Doors, carrier: Carrier, ask: &Ask, patience: Duration) -> Option<Client> {
    tokio::time::timeout(patience, greeted(doors, carrier, ask, patience)).await.ok().flatten()
}

async fn greeted(doors: Doors, carrier: Carrier, ask: &Ask, patience: Duration) -> Option<Client> {
    let (bearer, caller) = (ask.bearer(), doors.caller(carrier));
    let (carried, hello) = match carrier {
        Carrier::WebSocketJson | Carrier::WebSocketProtobuf => {
            let client = ask.websocket(doors.client, carrier).attempt(patience).await?;
            let hello = client.hello().clone();
            (Carried::socket(client, carrier), hello)
        }
        Carrier::Sse => {
            let headers: Vec<_> = bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
            let client = SseClient::attempt(&Dial::new(doors.client), &ask.query(), &headers).await?;
            let hello = client.hello();
            (Carried::Sse(client), hello)
        }
        Carrier::Grpc | Carrier::GrpcWeb => {
            let headers: Vec<_> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
            let mut client = caller.connect(ask.request(), &headers).await.ok()?;
            let hello = client.greeting(patience).await?;
            (Carried::Grpc(client), hello)
        }
    };
    Some(Client { carried, hello, node: doors.client, caller })
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

/// Acknowledges beside the stream; `None`: nobody answers.
async fn acknowledge(node: SocketAddr, session: &str, seq: u64) -> Option<Response> {
    let (path, body) = (format!("/v1/sessions/{session}/ack"), format!("{{\"ack\":{seq}}}"));
    let headers = [("Content-Type", "application/json")];
    http::try_send(node, Request { method: "POST", path: &path, headers: &headers, body: &body }).await
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

    /// What comes next, within `patience`. Cancel safe. Only a WebSocket's end has a code.
    pub async fn step(&mut self, patience: Duration) -> Step {
        match &mut self.carried {
            Carried::WebSocket(client) | Carried::Protobuf(client) => client.step(patience).await,
            Carried::Sse(client) => client.step(patience).await,
            Carried::Grpc(client) => client.step(patience).await,
        }
    }

    /// Acknowledges to a node that may be gone, and waits for no answer.
    pub async fn ack_unheard(&mut self, seq: u64) {
        let (node, session) = (self.node, self.hello.session.clone());
        match &mut self.carried {
            Carried::WebSocket(_) | Carried::Protobuf(_) => self.ack(seq).await.expect("nobody answers"),
            Carried::Sse(_) => {
                tokio::spawn(tokio::time::timeout(UNHEARD, async move { acknowledge(node, &session, seq).await }));
            }
            Carried::Grpc(_) => {
                let (caller, request) =
                    (self.caller.clone(), AcknowledgeRequest { session_id: session, sequence: seq });
                let call = async move { caller.acknowledge(request, &[]).await.is_ok() };
                tokio::spawn(tokio::time::timeout(UNHEARD, call));
            }
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
                let answer = within("an answer to an acknowledgement", acknowledge(self.node, &session, seq)).await;
                let status = answer.expect("somebody answers").status();
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
