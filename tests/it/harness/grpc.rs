//! A gRPC client that others wrote (tonic's), over HTTP/2 and as gRPC-Web over HTTP/1.1.

use std::{net::SocketAddr, time::Duration};

use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use notifier::proto::{
    AcknowledgeRequest, AcknowledgeResponse, ConnectionRequest, EndUserSessionRequest, EndUserSessionResponse,
    Notification, StartUserSessionRequest, StartUserSessionResponse,
};
use prost::Message;
use tonic::{
    Code, Request, Status, Streaming,
    body::Body,
    client::{Grpc, GrpcService},
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use tonic_web::{GrpcWebCall, GrpcWebClientLayer, GrpcWebClientService};
use tower::Layer as _;

use super::{
    frame::{Frame, Hello},
    wait::within,
    ws::Step,
};

const NOTIFIER: &str = "/atlas.notifier.v1.Notifier";
const COMMANDS: &str = "/atlas.notifier.v1.CommandHandler";

type Web = GrpcWebClientService<HttpClient<HttpConnector, GrpcWebCall<Body>>>;

/// A way to the services.
#[derive(Clone)]
pub enum Caller {
    Native(Grpc<Channel>),
    Web(Box<Grpc<Web>>),
}

/// A header of a call.
pub type Header<'a> = (&'static str, &'a str);

impl Caller {
    /// Over HTTP/2.
    pub fn native(addr: SocketAddr) -> Self {
        Self::native_from([127, 0, 0, 1], addr)
    }

    /// The same, from one of the machine's addresses.
    pub fn native_from(own: [u8; 4], addr: SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{addr}")).expect("an address");
        Self::Native(Grpc::new(endpoint.local_address(Some(own.into())).connect_lazy()))
    }

    /// gRPC-Web over HTTP/1.1.
    pub fn web(addr: SocketAddr) -> Self {
        let http = HttpClient::builder(TokioExecutor::new()).build(HttpConnector::new());
        let origin = format!("http://{addr}").parse().expect("an address");
        Self::Web(Box::new(Grpc::with_origin(GrpcWebClientLayer::new().layer(http), origin)))
    }

    /// `Connect`, up to the answer's head.
    pub async fn connect(&self, request: ConnectionRequest, headers: &[Header<'_>]) -> Result<GrpcClient, Status> {
        let path = path(NOTIFIER, "Connect");
        let request = with(request, headers);
        let messages = match self.clone() {
            Self::Native(grpc) => stream(grpc, request, path).await,
            Self::Web(grpc) => stream(*grpc, request, path).await,
        }?;
        Ok(GrpcClient { messages, hello: None, heartbeats: 0 })
    }

    pub async fn acknowledge(&self, request: AcknowledgeRequest, headers: &[Header<'_>]) -> Result<(), Status> {
        let answer = self.call::<_, AcknowledgeResponse>(request, headers, path(NOTIFIER, "Acknowledge")).await;
        answer.map(drop)
    }

    pub async fn start(&self, user: &str, headers: &[Header<'_>]) -> Result<StartUserSessionResponse, Status> {
        let request = StartUserSessionRequest { user_id: user.into() };
        self.call(request, headers, path(COMMANDS, "StartUserSession")).await
    }

    pub async fn end(&self, session: &str, user: &str, headers: &[Header<'_>]) -> Result<(), Status> {
        let request = EndUserSessionRequest { session_id: session.into(), user_id: user.into() };
        let answer = self.call::<_, EndUserSessionResponse>(request, headers, path(COMMANDS, "EndUserSession")).await;
        answer.map(drop)
    }

    async fn call<I, O>(&self, request: I, headers: &[Header<'_>], path: PathAndQuery) -> Result<O, Status>
    where
        I: Message + 'static,
        O: Message + Default + 'static,
    {
        let request = with(request, headers);
        match self.clone() {
            Self::Native(grpc) => unary(grpc, request, path).await,
            Self::Web(grpc) => unary(*grpc, request, path).await,
        }
    }
}

fn path(service: &str, method: &str) -> PathAndQuery {
    format!("{service}/{method}").parse().expect("a path")
}

fn with<T>(message: T, headers: &[Header<'_>]) -> Request<T> {
    let mut request = Request::new(message);
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().expect("a header value"));
    }
    request
}

async fn stream<S>(
    mut grpc: Grpc<S>,
    request: Request<ConnectionRequest>,
    path: PathAndQuery,
) -> Result<Streaming<Notification>, Status>
where
    S: GrpcService<Body>,
    S::Error: std::fmt::Debug,
    S::ResponseBody: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
    <S::ResponseBody as tonic::codegen::Body>::Error: Into<tonic::codegen::StdError>,
{
    grpc.ready().await.map_err(|_| Status::unavailable("not ready"))?;
    let codec = ProstCodec::<ConnectionRequest, Notification>::default();
    within("an answer to Connect", grpc.server_streaming(request, path, codec)).await.map(tonic::Response::into_inner)
}

async fn unary<S, I, O>(mut grpc: Grpc<S>, request: Request<I>, path: PathAndQuery) -> Result<O, Status>
where
    S: GrpcService<Body>,
    S::Error: std::fmt::Debug,
    S::ResponseBody: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
    <S::ResponseBody as tonic::codegen::Body>::Error: Into<tonic::codegen::StdError>,
    I: Message + 'static,
    O: Message + Default + 'static,
{
    grpc.ready().await.map_err(|_| Status::unavailable("not ready"))?;
    let codec = ProstCodec::<I, O>::default();
    within("an answer to a call", grpc.unary(request, path, codec)).await.map(tonic::Response::into_inner)
}

/// An open stream.
pub struct GrpcClient {
    messages: Streaming<Notification>,
    hello: Option<Hello>,
    /// How many `$heartbeat` came.
    pub heartbeats: usize,
}

impl GrpcClient {
    /// What the server said first; read by the first call.
    pub async fn hello(&mut self) -> Hello {
        if self.hello.is_none() {
            let first = self.message().await.expect("a stream that begins");
            self.hello = Some(Hello::from_frame(&first.expect("a first message")));
        }
        self.hello.clone().expect("just read")
    }

    /// The next message but heartbeats; `None`: the stream ended without an error.
    pub async fn message(&mut self) -> Result<Option<Frame>, Status> {
        within("a message of the stream", self.read()).await
    }

    /// Cancel safe.
    async fn read(&mut self) -> Result<Option<Frame>, Status> {
        loop {
            match self.messages.message().await?.map(Frame::from) {
                Some(frame) if frame.kind == "$heartbeat" => self.heartbeats += 1,
                other => return Ok(other),
            }
        }
    }

    /// What comes next, within `patience`. Cancel safe.
    pub async fn step(&mut self, patience: Duration) -> Step {
        match tokio::time::timeout(patience, self.read()).await {
            Ok(Ok(Some(frame))) => Step::Frame(frame),
            Ok(_) => Step::Closed(None),
            Err(_) => Step::Nothing,
        }
    }

    /// What a node says first that may leave instead.
    pub async fn greeting(&mut self, patience: Duration) -> Option<Hello> {
        let Step::Frame(first) = self.step(patience).await else { return None };
        self.hello = (first.kind == "$hello").then(|| Hello::from_frame(&first));
        self.hello.clone()
    }

    /// The frames before the end, and the status that ends the stream.
    pub async fn rest(&mut self) -> (Vec<Frame>, Code) {
        let mut frames = Vec::new();
        loop {
            match self.message().await {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, Code::Ok),
                Err(status) => return (frames, status.code()),
            }
        }
    }
}
