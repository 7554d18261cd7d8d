//! `Notifier`: a client's stream, and its acknowledgements.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, task::AtomicWaker};
use tonic::{Request, Response, Status};

use super::{credential, ended, field, generated::notifier_server};
use crate::{
    edge::{
        Shared,
        carrier::Carrier,
        connection,
        entry::Wish,
        protocol::{Grpc, Protocol},
        proxy::Forwarded,
        relay::{Relay, Sink},
    },
    proto::{AcknowledgeRequest, AcknowledgeResponse, ConnectionRequest},
};

/// How long after its end a stream may be there, of a client that does not read it.
const UNREAD_END: Duration = Duration::from_secs(5);

/// The service, over one carrier.
pub(super) struct Notifier {
    shared: Arc<Shared>,
    carrier: Grpc,
}

impl Notifier {
    pub(super) fn new(shared: Arc<Shared>, carrier: Grpc) -> Self {
        Self { shared, carrier }
    }
}

#[tonic::async_trait]
impl notifier_server::Notifier for Notifier {
    type ConnectStream = Messages;

    async fn connect(&self, request: Request<ConnectionRequest>) -> Result<Response<Messages>, Status> {
        let (metadata, extensions, asked) = request.into_parts();
        let carrier = extensions.get::<Carrier>().cloned().unwrap_or_default();
        let entered = self
            .shared
            .enter(&Wish {
                token: credential(&metadata),
                session: field(&asked.session_id),
                user: field(&asked.user_id),
                device: field(&asked.device),
                since: field(&asked.since),
            })
            .await?;
        // One connection of HTTP/2 carries many streams, and each costs what a client costs.
        let admitted = match self.carrier {
            Grpc::Native => Some(self.shared.take_stream(extensions.get().map(|Forwarded(client)| *client))?),
            Grpc::Web => None,
        };
        carrier.identify();
        let shared = &self.shared;
        let relay = Arc::new(Relay::new(
            entered.client,
            Protocol::Grpc(self.carrier),
            Sink::Stream(AtomicWaker::new()),
            shared.queue_limits(),
            shared.config.epoch.clone(),
            shared.flusher.clone(),
        ));
        let reader = Arc::new(());
        let messages = Messages { relay: relay.clone(), has_ended: false, _reader: reader.clone() };
        let held = (carrier.carries(), admitted);
        let running = connection::run(relay, shared.clone(), entered.since, Vec::new(), held);
        tokio::spawn(async move {
            running.await;
            // Who takes nothing does not see the stream's end, and holds it open.
            tokio::time::sleep(UNREAD_END).await;
            if Arc::strong_count(&reader) > 1 {
                carrier.hang_up();
            }
        });
        Ok(Response::new(messages))
    }

    /// The session's id is the right to acknowledge for it; a token, when there is one, must be its user's.
    async fn acknowledge(&self, request: Request<AcknowledgeRequest>) -> Result<Response<AcknowledgeResponse>, Status> {
        let (metadata, extensions, AcknowledgeRequest { session_id, sequence }) = request.into_parts();
        let holder = self.shared.holder(&session_id, credential(&metadata)).await?;
        let is_taken = self.shared.acknowledge(&holder, sequence).await?;
        extensions.get::<Carrier>().inspect(|carrier| carrier.identify());
        if !is_taken {
            return Err(Status::invalid_argument("sequence is above the highest number sent on this session"));
        }
        Ok(Response::new(AcknowledgeResponse {}))
    }
}

/// What a client's stream carries. When it is dropped, the client is gone.
pub(super) struct Messages {
    relay: Arc<Relay>,
    has_ended: bool,
    /// Shows that somebody still has the stream.
    _reader: Arc<()>,
}

impl Stream for Messages {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        match self.relay.poll_message(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(message)) => Poll::Ready(Some(Ok(message))),
            Poll::Ready(None) => {
                self.has_ended = true;
                Poll::Ready(Some(Err(ended(self.relay.close_reason()))))
            }
        }
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        self.relay.end();
    }
}
