//! This node's end of a link to another one: events and wishes go out, outcomes and frames come in. One task a peer,
//! for as long as the peer is in the view; what was under way when a link breaks is lost, and says so.

use std::{
    collections::{HashMap, VecDeque},
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
    transport::Endpoint,
};

use super::{
    Identity, Watched,
    question::{Answer, Question},
    server::{FROM, SECRET, TO, VERSION},
    wire::{
        self, Acknowledged, Cancel, Content, Disconnected, Forwarded, Hears, Look, OpenRequest, OpenResponse, Probe,
        Taken, ToEdge, ToOwner, Unreadable, service::link_client::LinkClient, to_edge, to_owner,
    },
};
use crate::{
    backoff::Backoff,
    event::{InFlight, Notification},
    ids::{Incarnation, NotificationId, UserId},
    session::{Attachment, FarSession, Kind, Line, Msg, Outgoing, Pushed},
    settlement::{Outcome, Permit},
    store::writer::CancelReply,
    user::Attach,
    wire::Frame,
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
        let (requests, mut responses) = loop {
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
        tracing::info!(peer = %self.peer, address, "link");
        let mut link = Link::new(self.weak.clone(), self.watched.clone());
        while let Some(attach) = self.waiting.pop_front() {
            link.order(Order::Attach(attach));
        }
        self.life.fetch_add(1, Ordering::AcqRel);
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
        ended
    }
}

pub(super) type Requests = mpsc::Sender<OpenRequest>;

pub(super) async fn connect(
    identity: &Identity,
    peer: Incarnation,
    address: &str,
) -> Result<(Requests, tonic::Streaming<OpenResponse>), Broken> {
    let other = |error: &dyn std::error::Error| Broken::Other(error.to_string());
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| other(&error))?;
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
    let ascii = |text: String| AsciiMetadataValue::try_from(text).expect("hexadecimal digits");
    let metadata = request.metadata_mut();
    metadata.insert(FROM, ascii(identity.me.to_string()));
    metadata.insert(TO, ascii(peer.to_string()));
    metadata.insert(VERSION, AsciiMetadataValue::from_static("1"));
    metadata.insert_bin(SECRET, BinaryMetadataValue::from_bytes(identity.secret.as_bytes()));
    let opening = LinkClient::new(channel).max_decoding_message_size(usize::MAX);
    let opened = { opening }.open(request).await.map_err(|status: Status| match status.code() {
        Code::FailedPrecondition => Broken::Refused(status.message().to_owned()),
        Code::Unauthenticated => {
            tracing::error!(%peer, address, "{}", status.message());
            Broken::Other(status.message().to_owned())
        }
        _ => Broken::Other(status.to_string()),
    })?;
    Ok((requests, opened.into_inner()))
}

fn causes<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'e (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// What is under way on one link. Dropped, it is lost.
struct Link {
    weak: mpsc::WeakUnboundedSender<Order>,
    watched: Arc<dyn Watched>,
    out: VecDeque<ToOwner>,
    next: u64,
    permits: HashMap<u64, Permit>,
    cancels: HashMap<u64, CancelReply>,
    queries: HashMap<u64, oneshot::Sender<Answer>>,
    lines: HashMap<u64, Served>,
}

/// A connection of this node that the peer serves.
struct Served {
    attachment: Attachment,
    /// Frames that the connection had no room for.
    waiting: VecDeque<(to_edge::Kind, u64)>,
}

impl Link {
    fn new(weak: mpsc::WeakUnboundedSender<Order>, watched: Arc<dyn Watched>) -> Self {
        Self {
            weak,
            watched,
            out: VecDeque::new(),
            next: 0,
            permits: HashMap::new(),
            cancels: HashMap::new(),
            queries: HashMap::new(),
            lines: HashMap::new(),
        }
    }

    fn send(&mut self, kind: to_owner::Kind) {
        self.out.push_back(ToOwner { kind: Some(kind) });
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Events(events) => {
                for InFlight { event, permit, first, .. } in events {
                    let number = self.number();
                    self.permits.insert(number, permit);
                    self.send(to_owner::Kind::Event(Forwarded { number, first, event: Some((&*event).into()) }));
                }
            }
            Order::Attach(attach) => {
                let line = self.number();
                self.send(to_owner::Kind::Attach(wire::attach(line, &attach)));
                self.lines.insert(line, Served { attachment: attach.attachment, waiting: VecDeque::new() });
            }
            Order::Line(line, msg) => self.said(line, msg),
            Order::Probe => self.send(to_owner::Kind::Probe(Probe { number: 0 })),
            Order::Hears { poll, about } => self.send(to_owner::Kind::Hears(Hears { poll, about: about.to_string() })),
            Order::Cancel(user, id, reply) => {
                let number = self.number();
                self.cancels.insert(number, reply);
                self.send(to_owner::Kind::Cancel(Cancel { number, user: user.to_string(), id: id.to_string() }));
            }
            Order::Look => self.send(to_owner::Kind::Look(Look {})),
            Order::Query(question, reply) => {
                // Those whose callers wait no more, and which a peer of another release may never answer.
                self.queries.retain(|_, reply| !reply.is_closed());
                let number = self.number();
                self.queries.insert(number, reply);
                self.send(to_owner::Kind::Ask(question.sent(number)));
            }
        }
    }

    /// A connection has something to say to its session.
    fn said(&mut self, line: u64, msg: Msg) {
        if !self.lines.contains_key(&line) {
            return;
        }
        match msg {
            Msg::Acknowledged(seq) => self.send(to_owner::Kind::Acknowledged(Acknowledged { line, seq })),
            Msg::Drained => self.push_waiting(line),
            Msg::Close(close) => self.send(to_owner::Kind::Close(wire::close(line, &close))),
            Msg::Disconnected => self.forget(line),
            _ => {}
        }
    }

    /// A line is over; its attachment says so to the connection, if that is not the one who knows.
    fn forget(&mut self, line: u64) {
        if self.lines.remove(&line).is_some() {
            self.send(to_owner::Kind::Disconnected(Disconnected { line }));
        }
    }

    fn take(&mut self, peer: Incarnation, response: OpenResponse) -> Result<(), Unreadable> {
        let mut taken = HashMap::new();
        for ToEdge { kind } in response.messages {
            // Of a later release, which knows that this one does not understand it.
            let Some(kind) = kind else { continue };
            match kind {
                to_edge::Kind::Outcome(wire::Outcome { number, outcome }) => {
                    let outcome = wire::outcome(outcome)?;
                    if let Some(permit) = self.permits.remove(&number) {
                        end(permit, outcome);
                    }
                }
                to_edge::Kind::Attached(wire::Attached { line, begins_after }) => self.attached(line, begins_after),
                to_edge::Kind::Push(wire::Push { line, .. }) | to_edge::Kind::Control(wire::Control { line, .. }) => {
                    let bytes = self.push(line, kind)?;
                    let (frames, sum) = taken.entry(line).or_insert((0, 0));
                    if let Some(bytes) = bytes {
                        *frames += 1;
                        *sum += bytes;
                    }
                }
                to_edge::Kind::Close(close) => {
                    let (line, close) = (close.line, wire::closed(close)?);
                    if let Some(served) = self.lines.get(&line) {
                        served.attachment.close(close);
                    }
                    self.forget(line);
                }
                to_edge::Kind::Lost(wire::Lost { line }) => self.forget(line),
                to_edge::Kind::Probed(_) => {}
                to_edge::Kind::Heard(wire::Heard { poll, about, hears }) => {
                    let about = Incarnation::parse(&about).ok_or(Unreadable("incarnation"))?;
                    self.watched.told(peer, about, poll, hears);
                }
                to_edge::Kind::Cancelled(cancelled) => {
                    if let Some(reply) = self.cancels.remove(&cancelled.number)
                        && let Some(became) = wire::became(&cancelled)
                    {
                        let _ = reply.send(became);
                    }
                }
                to_edge::Kind::Answer(answer) => {
                    let reply = self.queries.remove(&answer.number);
                    if let (Some(reply), Some(answer)) = (reply, Answer::received(answer)?) {
                        let _ = reply.send(answer);
                    }
                }
            }
        }
        for (line, (frames, bytes)) in taken.into_iter().filter(|(_, (frames, _))| *frames > 0) {
            self.send(to_owner::Kind::Taken(Taken { line, frames, bytes }));
        }
        Ok(())
    }

    fn attached(&mut self, line: u64, begins_after: u64) {
        let Some(served) = self.lines.get(&line) else { return };
        let session = Arc::new(ToSession { line, orders: self.weak.clone() });
        if !served.attachment.attached(Line::There(session), begins_after) {
            self.forget(line);
        }
    }

    /// Gives a frame to its connection; its bytes, when it was taken.
    fn push(&mut self, line: u64, kind: to_edge::Kind) -> Result<Option<u64>, Unreadable> {
        let Some(served) = self.lines.get_mut(&line) else { return Ok(None) };
        if !served.waiting.is_empty() {
            served.waiting.push_back((kind, 0));
            return Ok(None);
        }
        let (pushed, bytes) = pass_on(&served.attachment, &kind)?;
        match pushed {
            Pushed::Taken => return Ok(Some(bytes)),
            Pushed::Full => served.waiting.push_back((kind, bytes)),
            Pushed::Gone => self.forget(line),
        }
        Ok(None)
    }

    /// The connection has room again.
    fn push_waiting(&mut self, line: u64) {
        let Some(served) = self.lines.get_mut(&line) else { return };
        let (mut frames, mut sum) = (0, 0);
        while let Some((kind, _)) = served.waiting.front() {
            match pass_on(&served.attachment, kind) {
                Ok((Pushed::Taken, bytes)) => {
                    frames += 1;
                    sum += bytes;
                    served.waiting.pop_front();
                }
                Ok((Pushed::Full, _)) => break,
                Ok((Pushed::Gone, _)) | Err(_) => return self.forget(line),
            }
        }
        if frames > 0 {
            self.send(to_owner::Kind::Taken(Taken { line, frames, bytes: sum }));
        }
    }
}

/// What became of a frame, and its bytes.
fn pass_on(attachment: &Attachment, kind: &to_edge::Kind) -> Result<(Pushed, u64), Unreadable> {
    match kind {
        to_edge::Kind::Push(wire::Push { seq, event, .. }) => {
            let event: Content = event.clone().ok_or(Unreadable("event"))?;
            let notification = Notification { seq: Some(*seq).filter(|seq| *seq > 0), event: wire::shared(event)? };
            let frame = Frame::notification(&notification);
            let kind = Kind::Notification(notification.seq, &notification.event);
            Ok((attachment.push(&Outgoing { frame: &frame, kind }), frame.len() as u64))
        }
        to_edge::Kind::Control(wire::Control { name, covers, json, .. }) => {
            let name = match name.as_str() {
                "$hello" => "$hello",
                "$gap" => "$gap",
                _ => return Err(Unreadable("control frame's name")),
            };
            let frame = Frame::of_json(json);
            let outgoing = Outgoing { frame: &frame, kind: Kind::Control(name, *covers) };
            Ok((attachment.push(&outgoing), frame.len() as u64))
        }
        _ => Err(Unreadable("frame")),
    }
}

fn end(mut permit: Permit, outcome: Outcome) {
    match outcome {
        Outcome::Settled => permit.settle(),
        Outcome::Refused => permit.refuse(),
        Outcome::Buried => permit.bury(),
        Outcome::Lost => drop(permit),
        Outcome::Crashed => {
            permit.begin();
            drop(permit);
        }
    }
}

/// The way of a connection to its session at the peer.
struct ToSession {
    line: u64,
    orders: mpsc::WeakUnboundedSender<Order>,
}

impl FarSession for ToSession {
    fn tell(&self, msg: Msg) -> bool {
        self.orders.upgrade().is_some_and(|orders| orders.send(Order::Line(self.line, msg)).is_ok())
    }
}
