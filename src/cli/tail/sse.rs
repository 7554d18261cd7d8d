//! Server-sent events, and acknowledgements beside them.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream::BoxStream};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode, header};
use sse_stream::SseByteStream;
use tokio::{sync::watch, task::JoinSet, time::timeout};

use super::{
    connection::{FAREWELL, Received, Wanted},
    http::{Server, chain},
    output::status,
    retry::Failure,
};
use crate::ids::Sequence;

type Events = BoxStream<'static, Result<sse_stream::Sse, sse_stream::Error>>;

/// An open stream of events.
pub(super) struct Sse {
    events: Events,
    /// Bytes came since the last look: comments, which the parser swallows, are the server's heartbeat.
    heard: Arc<AtomicBool>,
    latest: watch::Sender<Option<Acknowledgement>>,
    acknowledging: JoinSet<()>,
}

/// A number to acknowledge for a session.
#[derive(Clone)]
struct Acknowledgement {
    session: String,
    seq: Sequence,
}

impl Sse {
    /// Connects.
    ///
    /// # Errors
    /// Says why there is no connection.
    pub(super) async fn open(server: &Arc<Server>, wanted: &Wanted<'_>) -> Result<Self, Failure> {
        let request = Request::get(server.endpoint.target("/v1/stream", &wanted.query()))
            .header(header::ACCEPT, "text/event-stream")
            .header(header::CACHE_CONTROL, "no-store");
        let response = server.request(request, Full::default(), StatusCode::OK).await?;
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if kind.split(';').next() != Some("text/event-stream") {
            return Err(Failure::Foreign(format!("its answer is no event stream but {kind:?}")));
        }
        let heard = Arc::new(AtomicBool::new(false));
        let events = events(response.into_body().into_data_stream(), heard.clone());
        let (latest, acknowledgements) = watch::channel(None);
        let mut acknowledging = JoinSet::new();
        acknowledging.spawn(acknowledge(server.clone(), acknowledgements));
        Ok(Self { events, heard, latest, acknowledging })
    }

    /// The next thing that comes. Cancel safe.
    ///
    /// # Errors
    /// When nothing more will.
    pub(super) async fn next(&mut self) -> Result<Received, Failure> {
        let (events, heard) = (&mut self.events, &self.heard);
        let next = poll_fn(|cx| match events.poll_next_unpin(cx) {
            Poll::Ready(event) => Poll::Ready(Some(event)),
            Poll::Pending if heard.swap(false, Ordering::Relaxed) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        match next.await {
            Some(Some(Ok(event))) => Ok(event.data.map_or(Received::SignOfLife, Received::Frame)),
            Some(Some(Err(error))) => Err(Failure::Lost(chain(&error))),
            Some(None) => Err(Failure::Lost("the server ended the stream".to_owned())),
            None => Ok(Received::SignOfLife),
        }
    }

    /// Acknowledges in the background; a later number takes the place of an earlier one that waits.
    pub(super) fn acknowledge(&self, session: &str, seq: Sequence) {
        self.latest.send_replace(Some(Acknowledgement { session: session.to_owned(), seq }));
    }

    /// Lets the last acknowledgement arrive before the stream, and the session with it, ends.
    pub(super) async fn close(self) {
        let Self { events, latest, mut acknowledging, .. } = self;
        drop(latest);
        let _ = timeout(FAREWELL, acknowledging.join_next()).await;
        drop(events);
    }
}

fn events<S, E>(body: S, heard: Arc<AtomicBool>) -> Events
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    SseByteStream::new(body.inspect_ok(move |_| heard.store(true, Ordering::Relaxed))).boxed()
}

/// Acknowledges the latest number, one request after the other, until the stream's end.
async fn acknowledge(server: Arc<Server>, mut latest: watch::Receiver<Option<Acknowledgement>>) {
    while latest.changed().await.is_ok() {
        let Some(Acknowledgement { session, seq }) = latest.borrow_and_update().clone() else { continue };
        let request = Request::post(server.endpoint.target(&format!("/v1/sessions/{session}/ack"), &[]))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close");
        let body = Full::from(format!(r#"{{"ack":{seq}}}"#));
        if let Err(failure) = server.request(request, body, StatusCode::NO_CONTENT).await {
            // The stream says what follows from it; the next number is tried again.
            status(&format!("not acknowledged: {failure}"));
        }
    }
}
