//! The session's side of a relay: it pushes frames, which are queued within bounds and written by the flusher.

use std::{collections::VecDeque, sync::Arc};

use super::{Chunk, FLUSH_AT_ITEMS, Relay, State};
use crate::{
    edge::metric::{self, Delivery},
    ids::{Incarnation, Sequence},
    session::{self, Kind, Line, Outgoing, Outlet, Pushed},
    wire::Close,
};

impl Outlet for Arc<Relay> {
    fn push(&self, attachment: u64, outgoing: &Outgoing<'_>) -> Pushed {
        let mut state = self.state.lock();
        if state.attachment != attachment || state.ended || state.close.is_some() {
            return Pushed::Gone;
        }
        let (covers, recorded_at, may_wait) = match outgoing.kind {
            // A session keeps those with a key for later.
            Kind::Notification(seq, event) => {
                (seq, Some(event.recorded_at), seq.is_some() || event.options.collapse_key.is_some())
            }
            Kind::Control(_, covers) => (covers, None, true),
        };
        if covers.is_some_and(|seq| seq <= state.passed) && recorded_at.is_some() {
            // The client has it: a number is never sent twice on one connection.
            return Pushed::Taken;
        }
        if state.queue.len() >= FLUSH_AT_ITEMS {
            // A burst for one socket must not count as a slow reader before the flusher has had its turn. An error
            // here is met again by the connection's task.
            let _ = self.write_queue(&mut state);
        }
        if state.queue.len() >= self.limits.items || state.queued_bytes >= self.limits.bytes {
            state.refused = true;
            if !may_wait {
                metric::delivery(self.protocol, Delivery::Dropped);
            }
            return Pushed::Full;
        }
        let bytes = self.protocol.encode(&self.epoch, outgoing);
        if let Some(seq) = covers {
            state.passed = state.passed.max(seq);
        }
        state.queued_bytes += bytes.len();
        state.queue.push_back(Chunk { bytes, recorded_at, is_control: false });
        if !std::mem::replace(&mut state.dirty, true) {
            drop(state);
            self.flusher.add(self.clone());
        }
        Pushed::Taken
    }

    fn close(&self, attachment: u64, close: Close) {
        if self.state.lock().attachment == attachment {
            Relay::close(self, close);
        }
    }

    fn attached(&self, attachment: u64, session: Line, begins_after: Sequence) -> bool {
        let mut state = self.state.lock();
        if state.attachment != attachment || state.ended || state.close.is_some() {
            return false;
        }
        // What the client had before it came counts as passed on: it may acknowledge that.
        state.passed = state.passed.max(begins_after);
        // What was acknowledged while nobody served the connection.
        let _ = session.cast(session::Msg::Acknowledged(state.acknowledged));
        state.session = Some(session);
        state.rests = false;
        state.greeted = true;
        true
    }

    fn rest(&self, attachment: u64, acknowledged: Sequence) -> Option<u64> {
        let mut state = self.state.lock();
        let has_news = state.acknowledged > acknowledged || state.refused || !state.queue.is_empty();
        if state.attachment != attachment || state.is_ending() || has_news {
            return None;
        }
        state.queue = VecDeque::new();
        state.session = None;
        state.rests = true;
        state.attachment += 1;
        Some(state.attachment)
    }

    fn rests(&self, attachment: u64) -> bool {
        let state = self.state.lock();
        state.attachment == attachment && state.rests && state.close.is_none() && !state.ended
    }

    fn is_latest(&self, attachment: u64) -> bool {
        self.state.lock().attachment == attachment
    }

    fn lost(&self, attachment: u64) {
        let mut state = self.state.lock();
        if state.attachment == attachment && state.close.is_none() && !state.ended {
            state.session = None;
            state.rests = false;
            if let Some(close) = state.closing.take() {
                // Whoever was to close behind the last frame is gone, and has no successor that knows.
                drop(state);
                return Relay::close(self, close);
            }
            state.lost = true;
            drop(state);
            self.woken.notify_one();
        }
    }
}

/// Who serves a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::edge) enum Standing {
    /// That node, by this attachment. `None`: this one.
    Served(u64, Option<Incarnation>),
    /// Nobody any more, since this attachment.
    Lost(u64),
    /// Nobody has ever served it, or it ends.
    Apart,
}

impl State {
    fn next_attachment(&mut self) -> (u64, Sequence, Sequence) {
        self.attachment += 1;
        self.session = None;
        self.lost = false;
        self.rests = false;
        self.refused = false;
        (self.attachment, self.passed, self.acknowledged)
    }

    fn is_ending(&self) -> bool {
        self.ended || self.closing.is_some() || self.close.is_some()
    }
}

impl Relay {
    /// Begins another attachment; earlier ones do not count any more. The number, and the last numbers passed
    /// on and acknowledged.
    pub(in crate::edge) fn next_attachment(&self) -> (u64, Sequence, Sequence) {
        self.state.lock().next_attachment()
    }

    /// The same, if nothing has come after that attachment. `None`: another has, or the connection ends.
    pub(in crate::edge) fn next_attachment_after(&self, attachment: u64) -> Option<(u64, Sequence, Sequence)> {
        let mut state = self.state.lock();
        (state.attachment == attachment && !state.is_ending()).then(|| state.next_attachment())
    }

    /// Who serves the connection, or did.
    pub(in crate::edge) fn standing(&self) -> Standing {
        let state = self.state.lock();
        if !state.greeted || state.is_ending() {
            return Standing::Apart;
        }
        let by = state.session.as_ref().map(Line::node);
        match by.or(state.rests.then_some(None)) {
            Some(by) => Standing::Served(state.attachment, by),
            None => Standing::Lost(state.attachment),
        }
    }

    /// The last number passed on.
    pub(in crate::edge) fn passed(&self) -> Sequence {
        self.state.lock().passed
    }

    /// Whether a session has ever served the connection.
    pub(in crate::edge) fn is_greeted(&self) -> bool {
        self.state.lock().greeted
    }

    /// Whether it has ended with its session at rest, so that nobody else says so; true once.
    pub(in crate::edge) fn ended_at_rest(&self) -> bool {
        let mut state = self.state.lock();
        (state.ended || state.close.is_some()) && std::mem::take(&mut state.rests)
    }
}
