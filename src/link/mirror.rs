//! A connection of another node, as the session's actor sees it here: frames go over the link, and what the connection
//! says comes back over it. Bounded by what the connection has not taken yet.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::wire::{self, Attached, Lost, Push, ToEdge, to_edge};
use crate::{
    ids::{Sequence, UserId},
    session::{Kind, Line, Msg, Outgoing, Outlet, Pushed},
    shard::Shards,
    wire::Close,
};

/// Bounds of what a connection has not taken yet.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Frames.
    pub frames: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// Another node's connection.
pub(super) struct Mirror {
    line: u64,
    user: UserId,
    limits: Limits,
    shards: Shards,
    to_edge: mpsc::UnboundedSender<ToEdge>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Counted here: the other node knows of one.
    attachment: u64,
    session: Option<Line>,
    acknowledged: Sequence,
    untaken: Untaken,
    /// A session was told that there is no room.
    refused: bool,
    announced: bool,
    rests: bool,
    /// The session was told to end the connection.
    closing: bool,
    ended: bool,
}

#[derive(Clone, Copy, Default)]
struct Untaken {
    frames: u64,
    bytes: u64,
}

impl Mirror {
    pub(super) fn new(
        (line, user): (u64, UserId),
        limits: Limits,
        shards: Shards,
        to_edge: mpsc::UnboundedSender<ToEdge>,
    ) -> Arc<Self> {
        let state = Mutex::new(State { attachment: 1, ..State::default() });
        Arc::new(Self { line, user, limits, shards, to_edge, state })
    }

    fn send(&self, kind: to_edge::Kind) {
        let _ = self.to_edge.send(ToEdge { kind: Some(kind) });
    }

    /// The client has acknowledged.
    pub(super) fn acknowledged(&self, seq: Sequence) {
        let mut state = self.state.lock();
        if seq <= state.acknowledged {
            return;
        }
        state.acknowledged = seq;
        match &state.session {
            Some(session) => _ = session.cast(Msg::Acknowledged(seq)),
            None if state.rests => self.shards.wake(&self.user),
            // Whoever attaches asks what was acknowledged.
            None => {}
        }
    }

    /// The connection has taken frames.
    pub(super) fn taken(&self, frames: u64, bytes: u64) {
        let mut state = self.state.lock();
        let Untaken { frames: held, bytes: held_bytes } = state.untaken;
        state.untaken = Untaken { frames: held.saturating_sub(frames), bytes: held_bytes.saturating_sub(bytes) };
        let has_room = state.untaken.frames * 2 <= self.limits.frames && state.untaken.bytes * 2 <= self.limits.bytes;
        if state.refused && has_room {
            state.refused = false;
            if let Some(session) = &state.session {
                session.cast(Msg::Drained);
            }
        }
    }

    /// The connection is to end behind everything that its session has been given.
    pub(super) fn close(&self, close: Close) {
        let mut state = self.state.lock();
        state.closing = true;
        if state.session.as_ref().is_none_or(|session| !session.cast(Msg::Close(close.clone()))) {
            drop(state);
            self.send(to_edge::Kind::Close(wire::close(self.line, &close)));
            self.end();
        }
    }

    /// The connection is gone, or the link to it.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        if let Some(session) = state.session.take() {
            session.cast(Msg::Disconnected);
        }
        if std::mem::take(&mut state.rests) {
            drop(state);
            self.shards.ended(&self.user);
        }
    }
}

/// What the session is asked to hold as an outlet.
pub(super) struct Far(pub(super) Arc<Mirror>);

impl Outlet for Far {
    fn push(&self, attachment: u64, outgoing: &Outgoing<'_>) -> Pushed {
        let mirror = &*self.0;
        let mut state = mirror.state.lock();
        if state.attachment != attachment || state.ended {
            return Pushed::Gone;
        }
        if state.untaken.frames >= mirror.limits.frames || state.untaken.bytes >= mirror.limits.bytes {
            state.refused = true;
            return Pushed::Full;
        }
        state.untaken.frames += 1;
        state.untaken.bytes += outgoing.frame.len() as u64;
        let line = mirror.line;
        mirror.send(match outgoing.kind {
            Kind::Notification(seq, event) => {
                to_edge::Kind::Push(Push { line, seq: seq.unwrap_or_default(), event: Some(event.into()) })
            }
            Kind::Control(name, covers) => to_edge::Kind::Control(wire::control(line, name, covers, outgoing.frame)),
        });
        Pushed::Taken
    }

    fn close(&self, attachment: u64, close: Close) {
        let state = self.0.state.lock();
        if state.attachment == attachment && !state.ended {
            self.0.send(to_edge::Kind::Close(wire::close(self.0.line, &close)));
        }
    }

    fn attached(&self, attachment: u64, session: Line, begins_after: Sequence) -> bool {
        let mut state = self.0.state.lock();
        if state.attachment != attachment || state.ended {
            return false;
        }
        if !std::mem::replace(&mut state.announced, true) {
            self.0.send(to_edge::Kind::Attached(Attached { line: self.0.line, begins_after }));
        }
        session.cast(Msg::Acknowledged(state.acknowledged));
        state.session = Some(session);
        state.rests = false;
        true
    }

    fn rest(&self, attachment: u64, acknowledged: Sequence) -> Option<u64> {
        let mut state = self.0.state.lock();
        let has_news = state.acknowledged > acknowledged || state.refused || state.untaken.frames > 0;
        if state.attachment != attachment || state.ended || state.closing || has_news {
            return None;
        }
        state.session = None;
        state.rests = true;
        state.attachment += 1;
        Some(state.attachment)
    }

    fn rests(&self, attachment: u64) -> bool {
        let state = self.0.state.lock();
        state.attachment == attachment && state.rests && !state.ended
    }

    fn is_latest(&self, attachment: u64) -> bool {
        self.0.state.lock().attachment == attachment
    }

    fn lost(&self, attachment: u64) {
        let mut state = self.0.state.lock();
        if state.attachment == attachment && !state.ended {
            state.ended = true;
            state.session = None;
            state.rests = false;
            self.0.send(to_edge::Kind::Lost(Lost { line: self.0.line }));
        }
    }
}
