//! What is under way on a link to another node, at the end that has opened it: events with their permits, and
//! connections that the peer serves.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use tokio::sync::{mpsc, oneshot};

use super::{
    Watched,
    client::Order,
    metric,
    question::Answer,
    wire::{
        self, Acknowledged, Cancel, Disconnected, Forwarded, Hears, Look, OpenResponse, Probe, Taken, ToEdge, ToOwner,
        Unreadable, to_edge, to_owner,
    },
};
use crate::{
    event::{InFlight, Notification},
    ids::{Incarnation, Sequence},
    session::{Attachment, FarSession, Kind, Line, Msg, Outgoing, Pushed},
    settlement::{Outcome, Permit},
    store::writer::CancelReply,
    wire::Frame,
};

/// What is under way on one link. Dropped, it is lost.
pub(super) struct Link {
    peer: Incarnation,
    weak: mpsc::WeakUnboundedSender<Order>,
    watched: Arc<dyn Watched>,
    /// Which life of the link it is: events for another one are lost.
    life: u64,
    /// What is to be sent, in order.
    pub(super) out: VecDeque<ToOwner>,
    /// The last number that was given to anything. They go on from link to link: what a connection still says to its
    /// session of a former one must not meet another connection's line.
    pub(super) last: u64,
    permits: HashMap<u64, Permit>,
    cancels: HashMap<u64, CancelReply>,
    queries: HashMap<u64, oneshot::Sender<Answer>>,
    lines: HashMap<u64, Served>,
}

/// A connection of this node that the peer serves.
struct Served {
    attachment: Attachment,
    /// Frames that the connection had no room for, in order.
    waiting: VecDeque<Passing>,
}

/// A frame on its way to a connection.
struct Passing {
    frame: Frame,
    what: What,
}

enum What {
    Notification(Notification),
    Control(&'static str, Option<Sequence>),
}

impl Link {
    pub(super) fn new(
        peer: Incarnation,
        (life, last): (u64, u64),
        weak: mpsc::WeakUnboundedSender<Order>,
        watched: Arc<dyn Watched>,
    ) -> Self {
        Self {
            peer,
            weak,
            watched,
            life,
            out: VecDeque::new(),
            last,
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
        self.last += 1;
        self.last
    }

    pub(super) fn order(&mut self, order: Order) {
        match order {
            // They were sent behind others that are lost by now, and must not come before those.
            Order::Events(life, _) if life != self.life => {}
            Order::Events(_, events) => {
                metric::sent(events.len());
                for InFlight { event, permit, first, .. } in events {
                    let number = self.number();
                    self.permits.insert(number, permit);
                    self.send(to_owner::Kind::Event(Forwarded { number, first, event: Some((&*event).into()) }));
                }
            }
            // Another one has taken its place while it waited.
            Order::Attach(attach) if !attach.attachment.is_latest() => {}
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
            Order::List(shards) => self.send(to_owner::Kind::List(wire::list(&shards))),
            // Connections that went out before, and were lost, attach again behind this.
            Order::Listed(life, _) if life != self.life => {}
            Order::Listed(_, shards) => self.send(to_owner::Kind::Listed(wire::listed(&shards))),
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

    pub(super) fn take(&mut self, response: OpenResponse) -> Result<(), Unreadable> {
        let mut taken: HashMap<u64, Passed> = HashMap::new();
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
                // Of a connection that is gone nothing is looked at.
                to_edge::Kind::Push(push) if self.lines.contains_key(&push.line) => {
                    self.push(push.line, Passing::notification(push)?, &mut taken);
                }
                to_edge::Kind::Control(control) if self.lines.contains_key(&control.line) => {
                    self.push(control.line, Passing::control(&control)?, &mut taken);
                }
                to_edge::Kind::Push(_) | to_edge::Kind::Control(_) => {}
                to_edge::Kind::Close(close) => {
                    let (line, close) = (close.line, wire::closed(close)?);
                    if let Some(served) = self.lines.get(&line) {
                        served.attachment.close(close);
                    }
                    self.forget(line);
                }
                to_edge::Kind::Lost(wire::Lost { line }) => {
                    // Somebody else may serve the user by now.
                    self.watched.look();
                    self.forget(line);
                }
                to_edge::Kind::Probed(_) => {}
                to_edge::Kind::Dead(_) => self.watched.dead(),
                to_edge::Kind::Answer(answer) => {
                    let reply = self.queries.remove(&answer.number);
                    if let (Some(reply), Some(answer)) = (reply, Answer::received(answer)?) {
                        let _ = reply.send(answer);
                    }
                }
                to_edge::Kind::Heard(wire::Heard { poll, about, hears }) => {
                    let about = Incarnation::parse(&about).ok_or(Unreadable("incarnation"))?;
                    self.watched.told(self.peer, about, poll, hears);
                }
                to_edge::Kind::Cancelled(cancelled) => {
                    if let Some(reply) = self.cancels.remove(&cancelled.number)
                        && let Some(became) = wire::became(&cancelled)
                    {
                        let _ = reply.send(became);
                    }
                }
            }
        }
        for (line, passed) in taken {
            self.tell_taken(line, passed);
        }
        Ok(())
    }

    fn tell_taken(&mut self, line: u64, Passed { frames, bytes }: Passed) {
        if frames > 0 {
            self.send(to_owner::Kind::Taken(Taken { line, frames, bytes }));
        }
    }

    fn attached(&mut self, line: u64, begins_after: u64) {
        let Some(served) = self.lines.get(&line) else { return };
        let session = Arc::new(ToSession { peer: self.peer, line, orders: self.weak.clone() });
        if !served.attachment.attached(Line::There(session), begins_after) {
            self.forget(line);
        }
    }

    /// Gives a frame to its connection, behind those that wait already.
    fn push(&mut self, line: u64, passing: Passing, taken: &mut HashMap<u64, Passed>) {
        let Some(served) = self.lines.get_mut(&line) else { return };
        if !served.waiting.is_empty() {
            return served.waiting.push_back(passing);
        }
        match passing.pass_on(&served.attachment) {
            Pushed::Taken => taken.entry(line).or_default().add(&passing.frame),
            Pushed::Full => served.waiting.push_back(passing),
            Pushed::Gone => self.forget(line),
        }
    }

    /// The connection has room again.
    fn push_waiting(&mut self, line: u64) {
        let Some(served) = self.lines.get_mut(&line) else { return };
        let mut taken = Passed::default();
        while let Some(passing) = served.waiting.front() {
            match passing.pass_on(&served.attachment) {
                Pushed::Taken => taken.add(&passing.frame),
                Pushed::Full => break,
                Pushed::Gone => return self.forget(line),
            }
            served.waiting.pop_front();
        }
        self.tell_taken(line, taken);
    }
}

/// Frames that a connection has taken, and their bytes.
#[derive(Default)]
struct Passed {
    frames: u64,
    bytes: u64,
}

impl Passed {
    fn add(&mut self, frame: &Frame) {
        self.frames += 1;
        self.bytes += frame.len() as u64;
    }
}

impl Passing {
    fn notification(push: wire::Push) -> Result<Self, Unreadable> {
        let event = wire::shared(push.event.ok_or(Unreadable("event"))?)?;
        let notification = Notification { seq: Some(push.seq).filter(|seq| *seq > 0), event };
        Ok(Self { frame: Frame::notification(&notification), what: What::Notification(notification) })
    }

    fn control(control: &wire::Control) -> Result<Self, Unreadable> {
        let name = match control.name.as_str() {
            "$hello" => "$hello",
            "$gap" => "$gap",
            _ => return Err(Unreadable("control frame's name")),
        };
        Ok(Self { frame: Frame::of_json(&control.json), what: What::Control(name, control.covers) })
    }

    fn pass_on(&self, attachment: &Attachment) -> Pushed {
        let kind = match &self.what {
            What::Notification(notification) => Kind::Notification(notification.seq, &notification.event),
            What::Control(name, covers) => Kind::Control(name, *covers),
        };
        attachment.push(&Outgoing { frame: &self.frame, kind })
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
    peer: Incarnation,
    line: u64,
    orders: mpsc::WeakUnboundedSender<Order>,
}

impl FarSession for ToSession {
    fn tell(&self, msg: Msg) -> bool {
        self.orders.upgrade().is_some_and(|orders| orders.send(Order::Line(self.line, msg)).is_ok())
    }

    fn node(&self) -> Incarnation {
        self.peer
    }
}
