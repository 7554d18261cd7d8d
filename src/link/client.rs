//! This node's end of a link to another one: events and wishes go out, outcomes and frames come in. One task a peer,
//! for as long as the peer is in the view; what was under way when a link breaks is lost, and says so.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status,
    metadata::{AsciiMetadataValue, BinaryMetadataValue},
    transport::{ClientTlsConfig, Endpoint},
};

use super::{
    Identity, Tls, Watched, metric,
    question::{Answer, Question},
    server::{FROM, SECRET, TO, VERSION},
    under_way::Link,
    wire::{OpenRequest, OpenResponse, service::link_client::LinkClient},
};
use crate::{
    backoff::Backoff,
    event::InFlight,
    ids::{Incarnation, NotificationId, UserId},
    session::Msg,
    store::writer::CancelReply,
    user::Attach,
};

/// Orders of one message.
const BATCH_MAX: usize = 512;
/// Messages that the transport has not taken.
const REQUESTS: usize = 2;
/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(1);
/// HTTP/2 pings find a frozen peer: one every so often, answered in so long.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_ANSWER: Duration = Duration::from_secs(3);
/// Waits between attempts to connect: a probe's length at the most, so that a peer whose host refuses is soon known.
const AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(600));
/// What streams may have in flight, in bytes.
const WINDOW: u32 = 4 << 20;

/// What the task of a link can be told.
pub(super) enum Order {
    Events(Vec<InFlight>),
    Attach(Box<Attach>),
    /// The connection of a line has something to say.
    Line(u64, Msg),
    Probe,
    Hears {
        poll: u64,
        about: Incarnation,
    },
    Cancel(UserId, NotificationId, CancelReply),
    Look,
    Query(Question, oneshot::Sender<Answer>),
}

/// The way to one other node. Cheap to clone.
#[derive(Clone)]
pub(super) struct Peer {
    orders: mpsc::UnboundedSender<Order>,
    /// Odd while there is a link; each has a number of its own.
    life: Arc<AtomicU64>,
}

impl Peer {
    /// Starts a task, which ends with the last clone of this.
    pub(super) fn start(
        identity: Arc<Identity>,
        peer: Incarnation,
        addresses: Vec<String>,
        watched: Arc<dyn Watched>,
    ) -> Self {
        let (orders, queue) = mpsc::unbounded_channel();
        let life = Arc::new(AtomicU64::new(0));
        let task = Task {
            identity,
            peer,
            addresses,
            watched,
            life: life.clone(),
            queue,
            weak: orders.downgrade(),
            waiting: VecDeque::new(),
        };
        tokio::spawn(task.run());
        Self { orders, life }
    }

    pub(super) fn life(&self) -> Option<u64> {
        Some(self.life.load(Ordering::Acquire)).filter(|life| life % 2 == 1)
    }

    pub(super) fn order(&self, order: Order) {
        // A task that is gone drops the order, and whatever is in it says so.
        let _ = self.orders.send(order);
    }
}

struct Task {
    identity: Arc<Identity>,
    peer: Incarnation,
    addresses: Vec<String>,
    watched: Arc<dyn Watched>,
    life: Arc<AtomicU64>,
    queue: mpsc::UnboundedReceiver<Order>,
    /// For lines, which must not keep the task going.
    weak: mpsc::WeakUnboundedSender<Order>,
    /// Wishes that came while there was no link.
    waiting: VecDeque<Box<Attach>>,
}

/// Why there is no link any more.
enum Ended {
    /// Nobody wants it.
    Unwanted,
    Broken(Broken),
}

pub(super) enum Broken {
    /// Nothing listens there, or somebody else answers.
    Refused(String),
    /// This node was declared dead, says the peer.
    Dead,
    /// The two do not know the same secret.
    Stranger,
    /// The two do not speak a version in common.
    Foreign(String),
    Other(String),
}

impl Task {
    async fn run(mut self) {
        let mut backoff = Backoff::new(AGAIN.0, AGAIN.1);
        loop {
            for address in self.addresses.clone() {
                let broken = match self.serve(&address, &mut backoff).await {
                    Ended::Unwanted => return,
                    Ended::Broken(broken) => broken,
                };
                match broken {
                    Broken::Refused(why) => {
                        tracing::debug!(peer = %self.peer, why, "refused");
                        self.watched.refused(self.peer);
                    }
                    Broken::Dead => self.watched.dead(),
                    Broken::Stranger | Broken::Foreign(_) => {}
                    Broken::Other(why) => tracing::debug!(peer = %self.peer, why, "no link"),
                }
            }
            if !self.pause(backoff.next_wait()).await {
                return;
            }
        }
    }

    /// Waits, and keeps what can wait; `false`: nobody wants the link any more.
    async fn pause(&mut self, wait: Duration) -> bool {
        let until = tokio::time::Instant::now() + wait;
        loop {
            match tokio::time::timeout_at(until, self.queue.recv()).await {
                Err(_) => return true,
                Ok(None) => return false,
                Ok(Some(Order::Attach(attach))) => self.waiting.push_back(attach),
                // Events and questions are lost, and say so; lines are of a link that is broken.
                Ok(Some(_)) => {}
            }
        }
    }

    /// One link, from its beginning to its end.
    async fn serve(&mut self, address: &str, backoff: &mut Backoff) -> Ended {
        let connect = connect(&self.identity, self.peer, address);
        tokio::pin!(connect);
        let (requests, mut responses, version) = loop {
            tokio::select! {
                made = &mut connect => match made {
                    Ok(made) => break made,
                    Err(broken) => return Ended::Broken(broken),
                },
                order = self.queue.recv() => match order {
                    None => return Ended::Unwanted,
                    Some(Order::Attach(attach)) => self.waiting.push_back(attach),
                    Some(_) => {}
                },
            }
        };
        backoff.reset();
        tracing::info!(peer = %self.peer, address, version, "link");
        let mut link = Link::new(self.weak.clone(), self.watched.clone());
        while let Some(attach) = self.waiting.pop_front() {
            link.order(Order::Attach(attach));
        }
        self.life.fetch_add(1, Ordering::AcqRel);
        metric::opened();
        self.watched.heard(self.peer);
        let mut orders = Vec::with_capacity(BATCH_MAX);
        let ended = loop {
            tokio::select! {
                biased;
                response = responses.next() => match response {
                    Some(Ok(response)) => {
                        self.watched.heard(self.peer);
                        if let Err(error) = link.take(self.peer, response) {
                            break Ended::Broken(Broken::Other(error.to_string()));
                        }
                    }
                    Some(Err(status)) => break Ended::Broken(Broken::Other(status.to_string())),
                    None => break Ended::Broken(Broken::Other("the peer has closed it".into())),
                },
                room = requests.reserve(), if !link.out.is_empty() => match room {
                    Ok(room) => {
                        let most = link.out.len().min(BATCH_MAX);
                        room.send(OpenRequest { messages: link.out.drain(..most).collect() });
                    }
                    Err(_) => break Ended::Broken(Broken::Other("the connection is gone".into())),
                },
                taken = self.queue.recv_many(&mut orders, BATCH_MAX) => {
                    if taken == 0 {
                        break Ended::Unwanted;
                    }
                    orders.drain(..).for_each(|order| link.order(order));
                }
            }
        };
        // Before permits and attachments say that they are lost: nothing more goes out under this number.
        self.life.fetch_add(1, Ordering::AcqRel);
        metric::closed(matches!(ended, Ended::Broken(_)));
        ended
    }
}

pub(super) type Requests = mpsc::Sender<OpenRequest>;

pub(super) async fn connect(
    identity: &Identity,
    peer: Incarnation,
    address: &str,
) -> Result<(Requests, tonic::Streaming<OpenResponse>, u32), Broken> {
    let other = |error: &dyn std::error::Error| Broken::Other(error.to_string());
    let scheme = if identity.tls.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(|error| other(&error))?;
    if let Some(Tls { identity, authority }) = &identity.tls {
        let tls = ClientTlsConfig::new().identity(identity.clone()).ca_certificate(authority.clone());
        endpoint = endpoint.tls_config(tls).map_err(|error| other(&error))?;
    }
    let endpoint = endpoint
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    let channel = endpoint.connect().await.map_err(|error| {
        let refused = causes(&error).any(|cause| {
            cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        });
        if refused { Broken::Refused(error.to_string()) } else { other(&error) }
    })?;
    let (requests, queue) = mpsc::channel(REQUESTS);
    let mut request = Request::new(ReceiverStream::new(queue));
    let ascii = |text: String| AsciiMetadataValue::try_from(text).expect("digits");
    let metadata = request.metadata_mut();
    metadata.insert(FROM, ascii(identity.me.to_string()));
    metadata.insert(TO, ascii(peer.to_string()));
    metadata.insert(VERSION, ascii(identity.versions.to_string()));
    metadata.insert_bin(SECRET, BinaryMetadataValue::from_bytes(identity.secret.as_bytes()));
    let opening = LinkClient::new(channel).max_decoding_message_size(usize::MAX);
    let opened = { opening }.open(request).await.map_err(|status: Status| match status.code() {
        Code::FailedPrecondition => Broken::Refused(status.message().to_owned()),
        Code::PermissionDenied => Broken::Dead,
        Code::Unauthenticated => {
            tracing::error!(%peer, address, "{}", status.message());
            Broken::Stranger
        }
        Code::Unimplemented if status.metadata().contains_key(VERSION) => {
            tracing::error!(%peer, address, "{}", status.message());
            Broken::Foreign(status.message().to_owned())
        }
        _ => Broken::Other(status.to_string()),
    })?;
    let version = opened.metadata().get(VERSION).and_then(|text| text.to_str().ok()?.parse().ok());
    // Who does not say it is of the first release, which had one version.
    Ok((requests, opened.into_inner(), version.unwrap_or(1)))
}

fn causes<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'e (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}
