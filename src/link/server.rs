//! The owner's end of a link: events and wishes come in, outcomes and frames go out.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{Stream, StreamExt as _};
use subtle::ConstantTimeEq as _;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use super::{
    Identity, Inner, NotVersions, Versions, Watched,
    dial::{self, Call},
    metric,
    mirror::{Far, Limits, Mirror},
    question::{Answer, Answering, Question},
    wire::{
        self, Forwarded, Heard, OpenRequest, OpenResponse, Outcome, ToEdge, Unreadable, service::link_server::Link,
        to_edge, to_owner,
    },
};
use crate::{
    event::{InFlight, Sender},
    ids::{Incarnation, NotificationId, UserId},
    session::Attachment,
    settlement::{self, Permit, RecordRef},
    shard::{Lives, Msg, Shards},
    user::Attach,
};

/// Messages of one answer.
const BATCH_MAX: usize = 512;
/// Answers that the transport has not taken: the rest stays in the queue, whose messages are bounded by what they
/// answer.
const ANSWERS: usize = 2;
/// Who the caller is, whom it wants, and what it knows.
pub(super) const FROM: &str = "x-notifier-from";
pub(super) const TO: &str = "x-notifier-to";
/// Who is to pass the call on, which is for another node.
pub(super) const THROUGH: &str = "x-notifier-through";
pub(super) const SECRET: &str = "x-notifier-secret-bin";
/// Which versions the caller speaks; in the answer, the one that is spoken from here on.
pub(super) const VERSION: &str = "x-notifier-link";

/// Serves the nodes of the cluster.
pub(super) struct Server {
    pub(super) identity: Arc<Identity>,
    pub(super) shards: Shards,
    pub(super) limits: Limits,
    pub(super) watched: Arc<dyn Watched>,
    pub(super) answering: Arc<OnceLock<Arc<dyn Answering>>>,
    /// To pass calls on.
    pub(super) links: Weak<Inner>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<OpenResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Link for Server {
    type OpenStream = Answers;

    async fn open(&self, request: Request<Streaming<OpenRequest>>) -> Result<Response<Answers>, Status> {
        let call = self.identity.check(request.metadata())?;
        if self.watched.is_dead(call.from) {
            return Err(Status::permission_denied("declared dead by others"));
        }
        if call.to != self.identity.me {
            return self.pass_on(call, request.into_inner()).await;
        }
        self.watched.called(call.from);
        let (to_edge, queue) = mpsc::unbounded_channel();
        let peer = Peer {
            from: call.from,
            sender: next_sender(),
            lives: Lives::default(),
            shards: self.shards.clone(),
            limits: self.limits,
            watched: self.watched.clone(),
            answering: self.answering.clone(),
            reports: Arc::new(Reports { to_edge: to_edge.clone() }),
            to_edge,
            lines: HashMap::new(),
        };
        tokio::spawn(peer.run(request.into_inner()));
        Ok(answer(Box::pin(ReceiverStream::new(batched(queue))), call.versions.newest()))
    }
}

impl Server {
    /// A node that the caller does not reach is called for it, once: whoever is called so passes nothing on.
    async fn pass_on(&self, call: Call, requests: Streaming<OpenRequest>) -> Result<Response<Answers>, Status> {
        let Call { from, to, .. } = call;
        let addresses = self.links.upgrade().and_then(|links| links.addresses(to));
        let addresses = addresses.ok_or_else(|| Status::unavailable(format!("{to} is not known here")))?;
        let (responses, version) = dial::pass_on(&self.identity, call, &addresses, requests).await?;
        tracing::info!(%from, %to, "passing a link on");
        Ok(answer(Box::pin(responses), version))
    }
}

fn answer(answers: Answers, version: u32) -> Response<Answers> {
    let mut response = Response::new(answers);
    response.metadata_mut().insert(VERSION, version.into());
    response
}

/// 0 is this node's own router.
fn next_sender() -> Sender {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Identity {
    /// Who calls whom, if it may: this node, or another one through this. What is spoken, all of them speak.
    fn check(&self, metadata: &MetadataMap) -> Result<Call, Status> {
        let secret = metadata.get_bin(SECRET).and_then(|secret| secret.to_bytes().ok()).unwrap_or_default();
        if !bool::from(secret.as_ref().ct_eq(self.secret.as_bytes())) {
            return Err(Status::unauthenticated("cluster.secret is another one here"));
        }
        let incarnation = |name| metadata.get(name).and_then(|text| Incarnation::parse(text.to_str().ok()?));
        let is_here = |to: &Incarnation| *to == self.me || incarnation(THROUGH) == Some(self.me);
        let to = incarnation(TO).filter(is_here);
        let to = to.ok_or_else(|| Status::failed_precondition(format!("this is incarnation {}", self.me)))?;
        let from =
            incarnation(FROM).ok_or_else(|| Status::invalid_argument(format!("{FROM} is not an incarnation")))?;
        let theirs = metadata.get(VERSION).and_then(|text| text.to_str().ok()?.parse::<Versions>().ok());
        let theirs = theirs.ok_or_else(|| Status::invalid_argument(format!("{VERSION}: {NotVersions}")))?;
        let ours = self.versions;
        let versions = ours.common(theirs).ok_or_else(|| {
            let mut status = Status::unimplemented(format!("it speaks version {ours} of the link, this node {theirs}"));
            status.metadata_mut().insert(VERSION, ours.header());
            status
        })?;
        Ok(Call { from, to, through: None, versions })
    }
}

/// What the queue holds goes out at once, as one message; nothing is waited for.
fn batched(mut queue: mpsc::UnboundedReceiver<ToEdge>) -> mpsc::Receiver<Result<OpenResponse, Status>> {
    let (out, answers) = mpsc::channel(ANSWERS);
    tokio::spawn(async move {
        while let Ok(room) = out.reserve().await {
            let mut messages = Vec::new();
            if queue.recv_many(&mut messages, BATCH_MAX).await == 0 {
                return;
            }
            room.send(Ok(OpenResponse { messages }));
        }
    });
    answers
}

/// Says on the link what became of its events.
struct Reports {
    to_edge: mpsc::UnboundedSender<ToEdge>,
}

impl settlement::Report for Reports {
    fn report(&self, record: RecordRef, outcome: settlement::Outcome) {
        let number = u64::try_from(record.offset).unwrap_or_default();
        let outcome = Outcome { number, outcome: wire::outcome_number(outcome) };
        let _ = self.to_edge.send(ToEdge { kind: Some(to_edge::Kind::Outcome(outcome)) });
    }
}

/// A node that has this one serve users for it.
struct Peer {
    from: Incarnation,
    sender: Sender,
    shards: Shards,
    /// Of the shard actors that its events go to.
    lives: Lives,
    limits: Limits,
    watched: Arc<dyn Watched>,
    answering: Arc<OnceLock<Arc<dyn Answering>>>,
    reports: Arc<Reports>,
    to_edge: mpsc::UnboundedSender<ToEdge>,
    lines: HashMap<u64, Arc<Mirror>>,
}

impl Peer {
    async fn run(mut self, mut requests: Streaming<OpenRequest>) {
        loop {
            match requests.next().await {
                // It may hear of that from nobody else: it asks again and again, and gets this for an answer.
                Some(Ok(_)) if self.watched.is_dead(self.from) => {
                    let _ = self.to_edge.send(ToEdge { kind: Some(to_edge::Kind::Dead(wire::Dead {})) });
                    break;
                }
                Some(Ok(request)) => {
                    self.watched.called(self.from);
                    if let Err(error) = self.take(request) {
                        tracing::error!(peer = %self.from, %error, "the link is closed");
                        break;
                    }
                }
                Some(Err(status)) => {
                    tracing::debug!(peer = %self.from, %status, "the link is broken");
                    break;
                }
                None => break,
            }
        }
        // Its connections are with it, or come to whoever serves them next.
        self.lines.values().for_each(|line| line.end());
        self.shards.gone(self.sender);
    }

    fn take(&mut self, request: OpenRequest) -> Result<(), Unreadable> {
        let mut events: HashMap<usize, Vec<InFlight>> = HashMap::new();
        for message in request.messages {
            match message.kind {
                Some(to_owner::Kind::Event(forwarded)) => {
                    let in_flight = self.in_flight(forwarded)?;
                    events.entry(self.shards.actor_of(&in_flight.event.user)).or_default().push(in_flight);
                }
                Some(other) => {
                    // It is about what came before.
                    if let to_owner::Kind::Cancel(_) = other {
                        self.pass(&mut events);
                    }
                    self.take_other(other)?;
                }
                // Of a later release, which knows that this one does not understand it.
                None => {}
            }
        }
        self.pass(&mut events);
        Ok(())
    }

    fn pass(&mut self, events: &mut HashMap<usize, Vec<InFlight>>) {
        for (index, events) in events.drain() {
            metric::received(events.len());
            let (actor, life) = self.shards.get(index);
            let _ = actor.cast(Msg::Events(self.lives.admit(index, life, events)));
        }
    }

    fn in_flight(&self, Forwarded { number, first, event }: Forwarded) -> Result<InFlight, Unreadable> {
        let offset = i64::try_from(number).map_err(|_| Unreadable("event's number"))?;
        let permit = Permit::new(self.reports.clone(), RecordRef { partition: 0, assignment: 0, offset });
        let event = wire::shared(event.ok_or(Unreadable("event"))?)?;
        Ok(InFlight { event, permit, first, sender: self.sender })
    }

    fn take_other(&mut self, kind: to_owner::Kind) -> Result<(), Unreadable> {
        match kind {
            to_owner::Kind::Event(_) => {}
            to_owner::Kind::Attach(attach) => self.attach(attach)?,
            to_owner::Kind::Acknowledged(wire::Acknowledged { line, seq }) => {
                self.tell(line, |line| line.acknowledged(seq));
            }
            to_owner::Kind::Taken(wire::Taken { line, frames, bytes }) => {
                self.tell(line, |line| line.taken(frames, bytes));
            }
            to_owner::Kind::Close(close) => {
                let (line, close) = (close.line, wire::closed(close)?);
                self.tell(line, |line| line.close(close));
            }
            to_owner::Kind::Disconnected(wire::Disconnected { line }) => {
                if let Some(line) = self.lines.remove(&line) {
                    line.end();
                }
            }
            to_owner::Kind::Probe(probe) => {
                let _ = self.to_edge.send(ToEdge { kind: Some(to_edge::Kind::Probed(probe)) });
            }
            to_owner::Kind::Hears(wire::Hears { poll, about }) => {
                let about_whom = Incarnation::parse(&about).ok_or(Unreadable("incarnation"))?;
                let (watched, to_edge) = (self.watched.clone(), self.to_edge.clone());
                tokio::spawn(async move {
                    let hears = watched.hears(about_whom).await;
                    let _ = to_edge.send(ToEdge { kind: Some(to_edge::Kind::Heard(Heard { poll, about, hears })) });
                });
            }
            to_owner::Kind::Cancel(cancel) => self.cancel(cancel)?,
            to_owner::Kind::Look(_) => self.watched.look(),
            to_owner::Kind::List(list) => self.watched.wants(self.from, wire::held(list.claims)?),
            to_owner::Kind::Listed(listed) => self.shards.marked(self.from, &wire::held(listed.claims)?),
            to_owner::Kind::Ask(ask) => {
                let (number, question) = Question::received(ask)?;
                let answering = self.answering.get().zip(question);
                let answer = answering.and_then(|(answering, question)| answering.answer(question));
                let _ = self.to_edge.send(ToEdge { kind: Some(to_edge::Kind::Answer(Answer::sent(number, answer))) });
            }
        }
        Ok(())
    }

    fn tell(&self, line: u64, say: impl FnOnce(&Mirror)) {
        if let Some(line) = self.lines.get(&line) {
            say(line);
        }
    }

    fn attach(&mut self, attach: wire::Attach) -> Result<(), Unreadable> {
        let (line, counts_acknowledgements) = (attach.line, attach.counts_acknowledgements);
        let wire::Wish { user, session, device, from, began } = wire::wish(attach)?;
        let mirror = Mirror::new((line, user.clone()), self.limits, self.shards.clone(), self.to_edge.clone());
        self.lines.insert(line, mirror.clone());
        let attachment = Attachment::new(Arc::new(Far(mirror)), 1);
        let attach = Attach { user, session, device, from, began, counts_acknowledgements, attachment };
        // If this node does not serve the user, the attachment is dropped, and the other one asks again.
        self.shards.attach_here(Box::new(attach));
        Ok(())
    }

    fn cancel(&self, wire::Cancel { number, user, id }: wire::Cancel) -> Result<(), Unreadable> {
        let user = UserId::new(user).map_err(|_| Unreadable("user"))?;
        let id = NotificationId::new(id).map_err(|_| Unreadable("notification id"))?;
        let (reply, answer) = oneshot::channel();
        self.shards.cancel_here(user, id, reply);
        let to_edge = self.to_edge.clone();
        tokio::spawn(async move {
            let cancelled = wire::cancelled(number, answer.await.ok());
            let _ = to_edge.send(ToEdge { kind: Some(to_edge::Kind::Cancelled(cancelled)) });
        });
        Ok(())
    }
}
