//! gRPC's `Connect`, whose notifications become the frames that the other protocols carry.

use std::{sync::Arc, time::Duration};

use hyper::{StatusCode, Uri, http::uri::PathAndQuery};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::timeout;
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc as Caller,
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::{
    connection::{Received, Wanted},
    http::{ANSWER, Server, chain},
    retry::Failure,
};
use crate::{
    ids::Sequence,
    proto::{AcknowledgeRequest, AcknowledgeResponse, ConnectionRequest, Notification},
    wire::timestamp_text,
};

const CONNECT: PathAndQuery = PathAndQuery::from_static("/atlas.notifier.v1.Notifier/Connect");
const ACKNOWLEDGE: PathAndQuery = PathAndQuery::from_static("/atlas.notifier.v1.Notifier/Acknowledge");
/// A notification is as large as the server's limits let it be.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// An open stream.
pub(super) struct Grpc {
    caller: Caller<Channel>,
    messages: Streaming<Notification>,
    server: Arc<Server>,
}

impl Grpc {
    /// Connects.
    ///
    /// # Errors
    /// Says why there is no connection.
    pub(super) async fn open(server: &Arc<Server>, wanted: &Wanted<'_>) -> Result<Self, Failure> {
        // The connector has its own idea of TLS; the scheme is only for the request's head.
        let endpoint = Endpoint::from_shared(format!("http://{}", server.endpoint.host()));
        let endpoint = endpoint.map_err(|error| Failure::Unreachable(chain(&error)))?.connect_timeout(ANSWER);
        let connecting = {
            let server = server.clone();
            service_fn(move |_: Uri| {
                let server = server.clone();
                async move { server.connect().await.map(TokioIo::new) }
            })
        };
        let channel = endpoint.connect_with_connector(connecting).await;
        let channel = channel.map_err(|error| Failure::Unreachable(chain(&error)))?;
        let mut caller = Caller::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let asked = ConnectionRequest {
            device: wanted.device.map(ToString::to_string).unwrap_or_default(),
            since: wanted.since.unwrap_or_default().to_owned(),
            ..ConnectionRequest::default()
        };
        let asked = authorized(server, asked)?;
        caller.ready().await.map_err(|error| Failure::Unreachable(chain(&error)))?;
        let codec = ProstCodec::<ConnectionRequest, Notification>::default();
        let answer = timeout(ANSWER, caller.server_streaming(asked, CONNECT, codec)).await;
        let answer = answer.map_err(|_| Failure::Unreachable(format!("no answer within {} s", ANSWER.as_secs())))?;
        let messages = answer.map_err(refused)?.into_inner();
        Ok(Self { caller, messages, server: server.clone() })
    }

    /// The next thing that comes. Cancel safe.
    ///
    /// # Errors
    /// When nothing more will.
    pub(super) async fn next(&mut self) -> Result<Received, Failure> {
        match self.messages.message().await {
            Ok(Some(notification)) if notification.notification_type == "$heartbeat" => Ok(Received::SignOfLife),
            Ok(Some(notification)) => frame(&notification).map(Received::Frame),
            Ok(None) => Err(Failure::Lost("the server ended the stream".to_owned())),
            // `$bye` came before, with its code.
            Err(status) => Err(Failure::Lost(words(&status))),
        }
    }

    /// Acknowledges everything up to `seq` for `session`, and waits for the answer.
    ///
    /// # Errors
    /// When it is not taken.
    pub(super) async fn acknowledge(&mut self, session: &str, seq: Sequence) -> Result<(), Failure> {
        let asked = AcknowledgeRequest { session_id: session.to_owned(), sequence: seq };
        let asked = authorized(&self.server, asked)?;
        self.caller.ready().await.map_err(|error| Failure::Lost(chain(&error)))?;
        let codec = ProstCodec::<AcknowledgeRequest, AcknowledgeResponse>::default();
        match timeout(ANSWER, self.caller.unary(asked, ACKNOWLEDGE, codec)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(Failure::Lost(words(&status))),
            Err(_) => Err(Failure::Lost("an acknowledgement was not answered".to_owned())),
        }
    }
}

fn authorized<T>(server: &Server, message: T) -> Result<Request<T>, Failure> {
    let unusable = |error: String| Failure::Unreachable(error);
    let header = server.credentials.header().map_err(|error| unusable(error.to_string()))?;
    let value = AsciiMetadataValue::try_from(header.as_bytes()).map_err(|error| unusable(error.to_string()))?;
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", value);
    Ok(request)
}

fn words(status: &Status) -> String {
    if status.message().is_empty() { status.code().to_string() } else { status.message().to_owned() }
}

/// A refusal as HTTP would have said it: what follows from it is the same.
fn refused(status: Status) -> Failure {
    let http = match status.code() {
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unavailable | Code::Internal | Code::Unknown | Code::DeadlineExceeded => StatusCode::SERVICE_UNAVAILABLE,
        _ => return Failure::Foreign(format!("its answer is {}", words(&status))),
    };
    let pushback = status.metadata().get("grpc-retry-pushback-ms").and_then(|value| value.to_str().ok()?.parse().ok());
    Failure::Refused { status: http, detail: words(&status), retry_after: pushback.map(Duration::from_millis) }
}

/// The frame that WebSocket carries for it (contract, "Sessions"), but for the user, whom this client knows.
fn frame(notification: &Notification) -> Result<String, Failure> {
    #[derive(Serialize)]
    struct Frame<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        payload: &'a RawValue,
        #[serde(skip_serializing_if = "str::is_empty")]
        id: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        seq: Option<Sequence>,
        #[serde(skip_serializing_if = "Option::is_none")]
        ts: Option<String>,
    }
    let foreign = |error: serde_json::Error| Failure::Foreign(format!("a payload is no JSON: {error}"));
    let data = if notification.data.is_empty() { "null" } else { &notification.data };
    let created_at = notification.created_at.as_ref();
    let frame = Frame {
        kind: &notification.notification_type,
        payload: serde_json::from_str(data).map_err(foreign)?,
        id: &notification.notification_id,
        seq: Some(notification.sequence).filter(|seq| *seq > 0),
        ts: created_at.map(|at| timestamp_text(at.seconds.saturating_mul(1000) + i64::from(at.nanos / 1_000_000))),
    };
    serde_json::to_string(&frame).map_err(foreign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_becomes_the_frame_of_the_other_protocols() {
        let notification = Notification {
            notification_type: "t".into(),
            data: r#"{"n": 12345678901234567890123}"#.into(),
            notification_id: "i".into(),
            sequence: 7,
            created_at: Some(crate::wire::protobuf_time(1_795_251_600_123)),
        };
        let expected =
            r#"{"type":"t","payload":{"n": 12345678901234567890123},"id":"i","seq":7,"ts":"2026-11-21T09:00:00.123Z"}"#;
        assert_eq!(frame(&notification).unwrap(), expected);
        let hello = Notification { notification_type: "$hello".into(), data: "{}".into(), ..Notification::default() };
        assert_eq!(frame(&hello).unwrap(), r#"{"type":"$hello","payload":{}}"#);
    }

    #[test]
    fn a_refusal_means_what_it_means_over_http() {
        let mut busy = Status::unavailable("too many connects at the moment");
        busy.metadata_mut().insert("grpc-retry-pushback-ms", 700.into());
        let Failure::Refused { status, retry_after, .. } = refused(busy) else { panic!("a refusal") };
        assert_eq!((status, retry_after), (StatusCode::SERVICE_UNAVAILABLE, Some(Duration::from_millis(700))));
        assert!(matches!(refused(Status::unimplemented("")), Failure::Foreign(_)));
    }
}
