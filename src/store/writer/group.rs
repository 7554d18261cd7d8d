//! Writes of a lane, put together: what of them stands before what.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tokio::sync::oneshot;

use super::{CancelReply, OnBacklog, Reply};
use crate::{
    event::{Event, InFlight},
    ids::{NotificationId, UserId},
    store::{Appended, journal::Superseding, waiting::Ending},
};

/// One write for a user. [`Group`] says what is done before what; of one kind, in the order given.
pub(super) enum Write {
    Hold {
        in_flight: InFlight,
        digest: Option<NotificationId>,
        reply: Reply,
    },
    Append {
        entrant: Entrant,
        reply: Reply,
    },
    End(Ending),
    Digested(UserId, NotificationId),
    Backlog(UserId, OnBacklog),
    /// Behind everything before it.
    Alone(Alone),
}

/// What is done behind all writes before it, by itself.
pub(super) enum Alone {
    Cancel(Cancelling),
    /// Answered then.
    Flushed(oneshot::Sender<()>),
}

/// A cancellation under way.
pub(super) struct Cancelling {
    pub(super) user: UserId,
    pub(super) id: NotificationId,
    pub(super) reply: CancelReply,
}

/// What enters the log.
pub(super) enum Entrant {
    /// An event of a producer's. `alone`: nobody has a session open, so that it may supersede what nobody was given.
    New { in_flight: InFlight, alone: bool },
    /// One that has waited, or a digest.
    Released(Arc<Event>),
}

impl Entrant {
    pub(super) fn event(&self) -> &Arc<Event> {
        match self {
            Self::New { in_flight, .. } => &in_flight.event,
            Self::Released(event) => event,
        }
    }
}

/// The writes of one call each, in this order.
#[derive(Default)]
pub(super) struct Group {
    /// Of users for whom nothing was held back before: were it stored after that and the process killed in between, what
    /// waits would go on before these were read again.
    pub(super) first: Vec<(Entrant, Reply)>,
    pub(super) holds: Vec<(InFlight, Option<NotificationId>, Reply)>,
    /// Whose they are.
    holding: HashSet<UserId>,
    /// What was held back may be among these.
    pub(super) appends: Vec<(Entrant, Reply)>,
    pub(super) endings: Vec<Ending>,
    pub(super) digests: Vec<(UserId, NotificationId)>,
    pub(super) superseding: HashMap<(UserId, Box<str>), Superseding>,
    pub(super) backlogs: Vec<(UserId, OnBacklog)>,
}

impl Group {
    /// Takes a write; one that has to be alone comes back.
    pub(super) fn add(&mut self, write: Write) -> Option<Alone> {
        match write {
            Write::Hold { in_flight, digest, reply } => {
                self.holding.insert(in_flight.event.user.clone());
                self.holds.push((in_flight, digest, reply));
            }
            Write::Append { entrant, reply } if self.holding.contains(&entrant.event().user) => {
                self.appends.push((entrant, reply));
            }
            Write::Append { entrant, reply } => self.first.push((entrant, reply)),
            Write::End(ending) => self.endings.push(ending),
            Write::Digested(user, digest) => self.digests.push((user, digest)),
            Write::Backlog(user, answer) => self.backlogs.push((user, answer)),
            Write::Alone(alone) => return Some(alone),
        }
        None
    }

    /// Notes whose place a new row takes, if it takes any: of those that came together, the last one counts.
    pub(super) fn supersede(&mut self, event: &Event, outcome: Appended) {
        let (Appended::Stored(seq), Some(key)) = (outcome, &event.options.collapse_key) else { return };
        let superseding = self.superseding.entry((event.user.clone(), key.clone())).or_insert_with(|| Superseding {
            user: event.user.clone(),
            collapse_key: key.clone(),
            seq,
            together_from: seq,
        });
        superseding.seq = superseding.seq.max(seq);
    }
}
