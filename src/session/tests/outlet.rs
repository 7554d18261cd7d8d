//! An outlet that writes down what it is told.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::{
    event::Event,
    ids::Sequence,
    session::{Kind, Line, Outgoing, Outlet, Pushed, SessionRef},
    wire::Close,
};

/// A frame that an outlet took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Hello,
    /// A gap with its bounds and its reason.
    Gap(Sequence, Sequence, String),
    Numbered(Sequence),
    /// One without a number, by its id.
    Transient(String),
}

/// Writes down what it is told, and takes as many frames as it has room for.
#[derive(Default)]
pub(crate) struct FakeOutlet {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    attachment: u64,
    room: Option<usize>,
    panics: bool,
    seen: Vec<Seen>,
    events: Vec<Event>,
    refused: usize,
    closes: Vec<Close>,
    lost: usize,
    rests: bool,
    acknowledged: Sequence,
    session: Option<Line>,
    begins_after: Sequence,
}

impl FakeOutlet {
    /// An outlet whose first attachment counts.
    pub(crate) fn new() -> Arc<Self> {
        let outlet = Self::default();
        outlet.state.lock().attachment = 1;
        Arc::new(outlet)
    }

    /// Takes so many more frames; then it is full.
    pub(crate) fn room(&self, frames: usize) {
        self.state.lock().room = Some(frames);
    }

    /// Panics with the next frame.
    pub(crate) fn panic_next(&self) {
        self.state.lock().panics = true;
    }

    /// Whatever was attached before does not count any more.
    pub(crate) fn next_attachment(&self) -> u64 {
        let mut state = self.state.lock();
        state.attachment += 1;
        state.attachment
    }

    /// The frames taken, in order.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.lock().seen.clone()
    }

    /// What was taken, in order.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.state.lock().events.clone()
    }

    /// The ids taken, in order.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.state.lock().events.iter().map(|event| event.id.to_string()).collect()
    }

    /// The numbers taken, in order.
    pub(crate) fn numbers(&self) -> Vec<Sequence> {
        let number = |seen: &Seen| if let Seen::Numbered(seq) = seen { Some(*seq) } else { None };
        self.state.lock().seen.iter().filter_map(number).collect()
    }

    /// How often it said that it is full.
    pub(crate) fn refused(&self) -> usize {
        self.state.lock().refused
    }

    /// The codes it was closed with.
    pub(crate) fn closes(&self) -> Vec<u16> {
        self.state.lock().closes.iter().map(|close| close.code as u16).collect()
    }

    /// How often an attachment that counts was lost.
    pub(crate) fn lost_count(&self) -> usize {
        self.state.lock().lost
    }

    /// Its client acknowledges, as a connection tells its session; whether one serves it.
    pub(crate) fn acknowledge(&self, seq: Sequence) -> bool {
        let mut state = self.state.lock();
        state.acknowledged = seq;
        let session = state.session.as_ref();
        session.is_some_and(|session| session.cast(crate::session::Msg::Acknowledged(seq)))
    }

    /// Its client has gone.
    pub(crate) fn leave(&self) {
        let mut state = self.state.lock();
        state.rests = false;
        // Nobody attaches again.
        state.attachment += 1;
        if let Some(session) = state.session.take() {
            let _ = session.cast(crate::session::Msg::Disconnected);
        }
    }

    /// Whether nobody serves it because there is nothing to do.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.state.lock().rests
    }

    /// The session that serves it.
    pub(crate) fn session(&self) -> SessionRef {
        match self.state.lock().session.clone() {
            Some(Line::Here(session)) => session,
            _ => panic!("a session was attached"),
        }
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.state.lock().session.is_some()
    }

    /// Where its session began.
    pub(crate) fn begins_after(&self) -> Sequence {
        self.state.lock().begins_after
    }
}

fn seen(outgoing: &Outgoing<'_>) -> Seen {
    match outgoing.kind {
        Kind::Notification(Some(seq), _) => Seen::Numbered(seq),
        Kind::Notification(None, event) => Seen::Transient(event.id.to_string()),
        Kind::Control("$hello", _) => Seen::Hello,
        Kind::Control(_, _) => {
            let frame: serde_json::Value = serde_json::from_slice(outgoing.frame.json()).unwrap();
            let gap = &frame["payload"];
            let number = |key| gap[key].as_u64().unwrap();
            Seen::Gap(number("from"), number("to"), gap["reason"].as_str().unwrap().to_owned())
        }
    }
}

impl Outlet for FakeOutlet {
    fn push(&self, attachment: u64, outgoing: &Outgoing<'_>) -> Pushed {
        let mut state = self.state.lock();
        assert!(!std::mem::take(&mut state.panics), "as planned");
        if state.attachment != attachment {
            return Pushed::Gone;
        }
        match &mut state.room {
            Some(0) => {
                state.refused += 1;
                assert!(state.refused < 100, "asked again and again, without having said that there is room");
                return Pushed::Full;
            }
            Some(room) => *room -= 1,
            None => {}
        }
        if let Kind::Notification(_, event) = outgoing.kind {
            state.events.push(event.clone());
        }
        state.seen.push(seen(outgoing));
        Pushed::Taken
    }

    fn close(&self, attachment: u64, close: Close) {
        let mut state = self.state.lock();
        if state.attachment == attachment {
            state.closes.push(close);
        }
    }

    fn attached(&self, attachment: u64, session: Line, begins_after: Sequence) -> bool {
        let mut state = self.state.lock();
        if state.attachment != attachment {
            return false;
        }
        let _ = session.cast(crate::session::Msg::Acknowledged(state.acknowledged));
        state.session = Some(session);
        state.rests = false;
        state.begins_after = begins_after;
        true
    }

    fn rest(&self, attachment: u64, acknowledged: Sequence) -> Option<u64> {
        let mut state = self.state.lock();
        if state.attachment != attachment || state.acknowledged > acknowledged || state.room == Some(0) {
            return None;
        }
        state.session = None;
        state.rests = true;
        state.attachment += 1;
        Some(state.attachment)
    }

    fn rests(&self, attachment: u64) -> bool {
        let state = self.state.lock();
        state.attachment == attachment && state.rests
    }

    fn is_latest(&self, attachment: u64) -> bool {
        self.state.lock().attachment == attachment
    }

    fn lost(&self, attachment: u64) {
        let mut state = self.state.lock();
        if state.attachment == attachment {
            state.lost += 1;
        }
    }
}
