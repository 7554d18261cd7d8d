//! Where a session's frames go.

use std::sync::Arc;

use super::{Msg, SessionRef};
use crate::{
    event::Event,
    ids::{Incarnation, Sequence},
    wire::{Close, Frame},
};

/// Where a session's frames go: a connection, here or on another node. Calls never block.
pub trait Outlet: Send + Sync {
    /// Passes one frame on. Frames of an attachment that is not the latest are [`Pushed::Gone`].
    fn push(&self, attachment: u64, outgoing: &Outgoing<'_>) -> Pushed;
    /// The session decided to end the connection.
    fn close(&self, attachment: u64, close: Close);
    /// The session serves the connection from here on, with what follows the number; `false`: it is gone.
    fn attached(&self, attachment: u64, session: Line, begins_after: Sequence) -> bool;
    /// Nobody serves the connection until it is attached again, by the number that this gives. `None`: it is busy, or
    /// has news: more than this was acknowledged, or it ends.
    fn rest(&self, attachment: u64, acknowledged: Sequence) -> Option<u64>;
    /// Whether it rests since that number was given, and is not ending.
    fn rests(&self, attachment: u64) -> bool;
    /// Whether no later attachment has taken this one's place.
    fn is_latest(&self, attachment: u64) -> bool;
    /// Whoever held the attachment is gone without a close: attach again.
    fn lost(&self, attachment: u64);
}

/// The way from an outlet to its session, which may be on another node.
#[derive(Clone)]
pub enum Line {
    /// The session's actor.
    Here(SessionRef),
    /// The link to the node that runs it.
    There(Arc<dyn FarSession>),
}

/// A session on another node.
pub trait FarSession: Send + Sync {
    /// Tells it what an outlet has to say: acknowledgements, room, ends. Never blocks, and never calls the outlet.
    /// `false`: the way is gone.
    fn tell(&self, msg: Msg) -> bool;
    /// The node that runs it.
    fn node(&self) -> Incarnation;
}

impl From<SessionRef> for Line {
    fn from(session: SessionRef) -> Self {
        Self::Here(session)
    }
}

impl Line {
    /// The node that runs it, if that is another one.
    #[must_use]
    pub fn node(&self) -> Option<Incarnation> {
        if let Self::There(session) = self { Some(session.node()) } else { None }
    }

    /// Tells the session something; `false`: it is gone.
    pub fn cast(&self, msg: Msg) -> bool {
        match self {
            Self::Here(session) => session.cast(msg).is_ok(),
            Self::There(session) => session.tell(msg),
        }
    }
}

/// One frame with what an outlet wants to know of it.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// The encoded frame.
    pub frame: &'a Frame,
    /// What it is.
    pub kind: Kind<'a>,
}

/// What a frame is.
#[derive(Clone, Copy, Debug)]
pub enum Kind<'a> {
    /// A notification with its place in the log, if it has one.
    Notification(Option<Sequence>, &'a Event),
    /// A control frame that says that numbers up to this one are accounted for, if it does.
    Control(&'static str, Option<Sequence>),
}

/// What an outlet did with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// Taken: written, or queued within the bounds.
    Taken,
    /// Not taken: too much waits. [`super::Msg::Drained`] follows when there is room again.
    Full,
    /// Not taken: this attachment does not count any more.
    Gone,
}

/// One attempt to connect an outlet with a session. If it is dropped, the outlet hears that it is lost, so
/// that a crash anywhere between connection and session is noticed.
pub struct Attachment {
    pub(super) outlet: Arc<dyn Outlet>,
    pub(super) number: u64,
}

impl Attachment {
    /// The `number`-th attachment of this outlet.
    #[must_use]
    pub fn new(outlet: Arc<dyn Outlet>, number: u64) -> Self {
        Self { outlet, number }
    }

    /// Ends the connection, before or instead of a session.
    pub fn close(&self, close: Close) {
        self.outlet.close(self.number, close);
    }

    /// Whether no later one has taken its place.
    #[must_use]
    pub fn is_latest(&self) -> bool {
        self.outlet.is_latest(self.number)
    }

    /// Passes one frame on.
    pub fn push(&self, outgoing: &Outgoing<'_>) -> Pushed {
        self.outlet.push(self.number, outgoing)
    }

    /// A session serves the connection from here on, with what follows the number; `false`: it is gone.
    pub fn attached(&self, session: Line, begins_after: Sequence) -> bool {
        self.outlet.attached(self.number, session, begins_after)
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.outlet.lost(self.number);
    }
}
