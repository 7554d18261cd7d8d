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
        self, Acknowledged, Cancel, Content, Disconnected, Forwarded, Hears, Look, OpenResponse, Probe, Taken, ToEdge,
        ToOwner, Unreadable, to_edge, to_owner,
    },
};
use crate::{
    event::{InFlight, Notification},
    ids::Incarnation,
    session::{Attachment, FarSession, Kind, Line, Msg, Outgoing, Pushed},
    settlement::{Outcome, Permit},
    store::writer::CancelReply,
    wire::Frame,
};

/// What is under way on one link. Dropped, it is lost.
pub(super) struct Link {
    weak: mpsc::WeakUnboundedSender<Order>,
    watched: Arc<dyn Watched>,
    /// What is to be sent, in order.
    pub(super) out: VecDeque<ToOwner>,
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
    pub(super) fn new(weak: mpsc::WeakUnboundedSender<Order>, watched: Arc<dyn Watched>) -> Self {
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

    pub(super) fn order(&mut self, order: Order) {
        match order {
            Order::Events(events) => {
                metric::sent(events.len());
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

    pub(super) fn take(&mut self, peer: Incarnation, response: OpenResponse) -> Result<(), Unreadable> {
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
                    self.watched.told(peer, about, poll, hears);
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
