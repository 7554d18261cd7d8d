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

/// A connection's session.
pub(super) struct Attached {
    pub(super) id: SessionId,
    pub(super) serving: Serving,
    /// Whether it has to answer whether it rests.
    pub(super) asked: bool,
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
    pub(super) fn new(id: SessionId, serving: Serving) -> Self {
        Self { id, serving, asked: false }
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
        // A session of an earlier attachment of the same connection has nobody to talk to any more.
        if let Some(at) = self.sessions.iter().position(|old| old.id == attach.session)
            && let Serving::Awake(actor) = self.sessions.remove(at).serving
        {
            actor.stop(None);
        }
        let is_new = !matches!(attach.from, Origin::Connection { .. });
        if is_new && self.sessions.len() >= self.config.sessions_max {
            let oldest = self.sessions.remove(0);
            let close = Close::new(CloseCode::Replaced, "replaced by a newer session");
            oldest.cast(session::Msg::Close(close));
        }
        let start = self.start(&attach, opened);
        let args = self.session_args(myself, (attach.session, attach.device), attach.attachment, start);
        let actor = session::spawn(args, myself.get_cell()).await?;
        self.sessions.push(Attached::new(attach.session, Serving::Awake(actor)));
        Ok(())
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
                Start { after: *passed, window: window(*acknowledged, *passed), hello: None, gap: None, head }
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
