//! gRPC as one more protocol of the same connections: `Connect` streams what a relay queues, and the calls beside it
//! do what their HTTP counterparts do.

mod commands;
mod notifier;
pub(super) mod server;

use std::sync::Arc;

use axum::Router;
use bytes::{BufMut as _, Bytes};
use tonic::{
    Code, Status,
    codec::{BufferSettings, Codec, EncodeBuf, Encoder},
    metadata::{MetadataMap, MetadataValue},
};
use tonic_prost::ProstDecoder;
use tonic_web::GrpcWebLayer;
use tower::Layer as _;

use self::{
    commands::Commands,
    generated::{command_handler_server::CommandHandlerServer, notifier_server::NotifierServer},
    notifier::Notifier,
};
use super::{Shared, entry::Refused, protocol::Grpc};
use crate::{
    auth::Denied,
    credential,
    proto::ConnectionRequest,
    wire::{Close, CloseCode},
};

/// What tonic makes of the services in `build.rs`.
#[allow(clippy::all, clippy::pedantic, reason = "generated code")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/atlas.notifier.v1.Notifier.rs"));
    include!(concat!(env!("OUT_DIR"), "/atlas.notifier.v1.CommandHandler.rs"));
}

const NOTIFIER: &str = "/atlas.notifier.v1.Notifier/{method}";
const COMMANDS: &str = "/atlas.notifier.v1.CommandHandler/{method}";
/// All paths of gRPC-Web begin so.
pub(super) const PREFIX: &str = "/atlas.notifier.v1.";
/// The longest request: some ids and a position.
const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// A stream's buffer to begin with, and what is gathered before it is written: tonic's own are several KB each.
const BUFFER_BYTES: usize = 1024;

/// The contract's services.
fn services(shared: &Arc<Shared>, carrier: Grpc) -> (NotifierServer<Notifier>, CommandHandlerServer<Commands>) {
    let notifier = NotifierServer::new(Notifier::new(shared.clone(), carrier));
    let commands = CommandHandlerServer::new(Commands::new(shared.clone()));
    (notifier.max_decoding_message_size(REQUEST_BYTES_MAX), commands.max_decoding_message_size(REQUEST_BYTES_MAX))
}

/// gRPC-Web, for the client port.
pub(super) fn web(shared: &Arc<Shared>) -> Router {
    let (notifier, commands) = services(shared, Grpc::Web);
    let web = GrpcWebLayer::new();
    Router::new().route_service(NOTIFIER, web.layer(notifier)).route_service(COMMANDS, web.layer(commands))
}

/// The codec of `Connect`: notifications are encoded already and go out as they are.
#[derive(Debug, Default)]
pub(crate) struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = ConnectionRequest;
    type Encoder = Self;
    type Decoder = ProstDecoder<ConnectionRequest>;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::default()
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, BUFFER_BYTES)
    }
}

/// What a caller shows: a token or an API key.
fn credential(metadata: &MetadataMap) -> Option<&str> {
    credential::shown(metadata.as_ref())
}

/// Fields that are not set are empty in protobuf.
fn field(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let code = match &refused {
            Refused::Denied(Denied::Scope(_)) | Refused::NotYours(_) => Code::PermissionDenied,
            Refused::Denied(Denied::NoKeys) => Code::Unavailable,
            Refused::Denied(_) | Refused::NoSession => Code::Unauthenticated,
            Refused::Unknown => Code::NotFound,
            Refused::Invalid(_) => Code::InvalidArgument,
            Refused::TooManySessions => Code::ResourceExhausted,
            Refused::TooManyConnections
            | Refused::TooManyOfAddress
            | Refused::Draining
            | Refused::Busy(_)
            | Refused::Silent(_)
            | Refused::Store => Code::Unavailable,
        };
        let text = match &refused {
            Refused::Denied(Denied::Missing(_)) => format!("{refused}, as metadata: authorization, Bearer"),
            _ => refused.to_string(),
        };
        let mut status = Self::new(code, text);
        if let Some(wait) = refused.retry_after() {
            // Clients that retry by themselves obey it (gRFC A6).
            let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            status.metadata_mut().insert("grpc-retry-pushback-ms", MetadataValue::from(millis));
        }
        status
    }
}

/// How a stream ends whose connection was closed; clients come back after UNAVAILABLE and RESOURCE_EXHAUSTED.
fn ended(close: Option<Close>) -> Status {
    let Some(close) = close else { return Status::unavailable("the connection was lost") };
    let code = match close.code {
        CloseCode::Normal | CloseCode::GoingAway | CloseCode::TryAgainLater => Code::Unavailable,
        CloseCode::Unauthenticated => Code::Unauthenticated,
        CloseCode::SlowConsumer => Code::ResourceExhausted,
        CloseCode::Replaced => Code::Aborted,
        CloseCode::Policy => Code::PermissionDenied,
        CloseCode::BadFrame | CloseCode::ProtocolError | CloseCode::NotUtf8 | CloseCode::TooBig => {
            Code::InvalidArgument
        }
    };
    Status::new(code, close.reason)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_refusal_that_passes_says_when_to_come_back() {
        let status = Status::from(Refused::Busy(Duration::from_millis(1200)));
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "1200");
        assert!(Status::from(Refused::NoSession).metadata().is_empty());
    }
}
