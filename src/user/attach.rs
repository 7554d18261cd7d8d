//! How a connection gets a session: where it begins, from what the client says and what the log knows.

use ractor::{ActorCell, ActorProcessingErr};
use tokio::time::Instant;

use super::{Msg, State, UserRef};
use crate::{
    ids::{DeviceId, Sequence, SessionId, Since, UserId},
    session::{self, Attachment, Dormant, SessionRef, Start, window::Window},
    store::{Opened, Opening},
    wire::{self, Close, CloseCode, Gap, GapReason},
};

/// What a connection of a started session hears when the session has another one.
pub(crate) const USED_BY_ANOTHER: &str = "the session is used by another connection";

/// A connection's wish for a session.
pub struct Attach {
    /// Whose it is.
    pub user: UserId,
    /// The session's id; it stays the same over all attachments of a connection.
    pub session: SessionId,
    /// The device, if the client named one.
    pub device: Option<DeviceId>,
    /// Where the session begins.
    pub from: Origin,
    /// When the connection began, which is how old its session is to others of its user.
    pub began: Instant,
    /// Whether the protocol lets the client acknowledge in-band.
    pub counts_acknowledgements: bool,
    /// Where frames go.
    pub attachment: Attachment,
}

/// Where a session begins.
pub enum Origin {
    /// After the cursor.
    Cursor,
    /// After what the client says it has seen.
    Since(Since),
    /// A connection that has had a session goes on where it was.
    Connection {
        /// The last number passed on.
        passed: Sequence,
        /// The last one acknowledged.
        acknowledged: Sequence,
    },
}

impl Origin {
    /// Whether the connection has had no session yet.
    pub(crate) fn is_new(&self) -> bool {
        !matches!(self, Self::Connection { .. })
    }
}

/// A connection's session.
pub(super) struct Attached {
    pub(super) id: SessionId,
    pub(super) began: Instant,
    pub(super) serving: Serving,
    /// Whether it has to answer whether it rests.
    pub(super) asked: bool,
    /// Whether it was told to leave.
    pub(super) leaves: bool,
}

/// Who serves a connection.
pub(super) enum Serving {
    Awake(SessionRef),
    /// Nobody, as long as nothing happens.
    Asleep(Box<Dormant>),
}

impl Serving {
    pub(super) fn dormant(self) -> Option<Box<Dormant>> {
        if let Self::Asleep(dormant) = self { Some(dormant) } else { None }
    }
}

impl Attached {
    pub(super) fn new(id: SessionId, began: Instant, serving: Serving) -> Self {
        Self { id, began, serving, asked: false, leaves: false }
    }

    /// Tells its actor something. While it has none, everything that is for sessions is held before.
    pub(super) fn cast(&self, msg: session::Msg) {
        if let Serving::Awake(actor) = &self.serving {
            let _ = actor.cast(msg);
        }
    }

    pub(super) fn is(&self, session: &ActorCell) -> bool {
        matches!(&self.serving, Serving::Awake(actor) if actor.get_id() == session.get_id())
    }
}

impl State {
    pub(super) fn attach(&mut self, myself: &UserRef, attach: Box<Attach>) {
        self.last_activity = Instant::now();
        let attach = if attach.from.is_new() {
            let Some(attach) = self.keep_behind_returning(attach) else { return };
            attach
        } else {
            self.returns();
            attach
        };
        self.pending += 1;
        let (myself, newest) = (myself.clone(), self.newest);
        let opening = Opening { user: attach.user.clone(), device: attach.device.clone() };
        let answer = move |opened| _ = myself.cast(Msg::Opened(attach, opened, newest));
        self.config.writer.open(opening, Box::new(answer));
    }

    pub(super) async fn opened(
        &mut self,
        myself: &UserRef,
        attach: Attach,
        opened: Opened,
    ) -> Result<(), ActorProcessingErr> {
        self.pending -= 1;
        let is_new = attach.from.is_new();
        self.place(myself, attach, opened, is_new).await?;
        if !is_new {
            self.returned(myself);
        }
        Ok(())
    }

    /// Gives a connection its session, if it gets one.
    async fn place(
        &mut self,
        myself: &UserRef,
        attach: Attach,
        opened: Opened,
        is_new: bool,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(at) = self.sessions.iter().position(|old| old.id == attach.session) {
            let earlier = self.sessions.remove(at);
            if is_new {
                // Of a started session, whose other connection may be on another node. (One of the same connection does
                // not hear it any more.)
                earlier.cast(session::Msg::Close(Close::new(CloseCode::Replaced, USED_BY_ANOTHER)));
            } else if let Serving::Awake(actor) = earlier.serving {
                // It has nobody to talk to any more.
                actor.stop(None);
            }
        }
        let start = self.start(&attach, opened);
        let Some((at, began)) = self.make_room(&attach, is_new) else { return Ok(()) };
        let args = self.session_args(myself, (attach.session, attach.device), attach.attachment, start);
        let actor = session::spawn(args, myself.get_cell()).await?;
        self.sessions.insert(at, Attached::new(attach.session, began, Serving::Awake(actor)));
        Ok(())
    }

    /// Where a session stands among the others, by age; the oldest of all goes when there are too many. `None`: that is
    /// the one that attaches.
    fn make_room(&mut self, attach: &Attach, is_new: bool) -> Option<(usize, Instant)> {
        let youngest = self.sessions.last().map(|youngest| youngest.began);
        // A new one is the youngest, whatever it took to come here.
        let began = youngest.filter(|_| is_new).map_or(attach.began, |youngest| youngest.max(attach.began));
        let at = self.sessions.partition_point(|other| other.began <= began);
        if self.sessions.len() < self.config.sessions_max {
            return Some((at, began));
        }
        let close = Close::new(CloseCode::Replaced, "replaced by a newer session");
        if at == 0 {
            // Newer ones came while nobody served it.
            attach.attachment.close(close);
            return None;
        }
        self.sessions.remove(0).cast(session::Msg::Close(close));
        Some((at - 1, began))
    }

    pub(super) fn session_args(
        &self,
        myself: &UserRef,
        (id, device): (SessionId, Option<DeviceId>),
        attachment: Attachment,
        start: Start,
    ) -> session::Args {
        session::Args {
            id,
            user: self.user.clone(),
            device,
            attachment,
            start,
            store: self.config.store.clone(),
            config: self.config.session.clone(),
            outcomes: myself.get_derived(),
        }
    }

    fn start(&mut self, attach: &Attach, opened: Opened) -> Start {
        let Opened { head, cursor, acknowledged } = opened;
        self.acknowledged = self.acknowledged.max(acknowledged);
        // What was stored while the store was asked found no session to be pushed to.
        let head = head.max(self.newest);
        let (user, config) = (self.user.clone(), self.config.clone());
        let hello = |cursor| {
            let times = (config.session.heartbeat, config.session.reconnect);
            Some(wire::hello(attach.session, &user, &config.store.epoch(), (head, cursor), times))
        };
        let window = |acknowledged, sent| {
            let mut window = Window::new(config.session.window, attach.counts_acknowledgements);
            window.resume(acknowledged, sent, Instant::now());
            window
        };
        match &attach.from {
            Origin::Connection { passed, acknowledged } => {
                // An actor that crashed may have taken the last acknowledgements with it.
                if *acknowledged > cursor {
                    self.acknowledged(attach.session, attach.device.clone(), *acknowledged, None, None);
                }
                let after = *passed;
                #[cfg(feature = "mutants")]
                let after = skipped(after);
                Start { after, window: window(*acknowledged, after), hello: None, gap: None, head }
            }
            Origin::Cursor => {
                Start { after: cursor, window: window(cursor, cursor), hello: hello(cursor), gap: None, head }
            }
            Origin::Since(since) if *since.epoch == *self.config.store.epoch() && since.seq <= head => {
                if since.seq > cursor {
                    self.acknowledged(attach.session, attach.device.clone(), since.seq, None, None);
                }
                let hello = hello(cursor.max(since.seq));
                Start { after: since.seq, window: window(since.seq, since.seq), hello, gap: None, head }
            }
            Origin::Since(since) => {
                // Nothing up to the cursor can be compared with what the client has.
                let restored = self.config.store.was(&since.epoch);
                let reason = if restored { GapReason::Restored } else { GapReason::Epoch };
                let gap = Gap { from: cursor.min(1), to: cursor, reason };
                let window = window(cursor, cursor);
                Start { after: cursor, window, hello: hello(cursor), gap: Some(gap), head }
            }
        }
    }
}

#[cfg(feature = "mutants")]
fn skipped(passed: Sequence) -> Sequence {
    passed + Sequence::from(crate::mutant::is(crate::mutant::Mutant::SkipsOne))
}
