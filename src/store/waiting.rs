//! Notifications that wait for a user's rate limit: stored, and so settled, but without a number. Releasing one is
//! appending it. What ends while it waits stays readable until it expires.

use std::sync::Arc;

use super::Answer;
use crate::{
    event::{Event, UnixMillis},
    ids::{NotificationId, Sequence, UserId},
    state::Reason,
};

/// One event to be held back.
#[derive(Clone, Debug)]
pub struct Holding {
    /// The event.
    pub event: Arc<Event>,
    /// Too many wait: it ends at once as [`Reason::Digested`], counted in the digest of this id.
    pub digest: Option<NotificationId>,
}

/// What became of an event that was to be held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It waits (or is counted in its digest), and survives a crash.
    Waiting,
    /// An event with its id is in the log already.
    Duplicate(Sequence),
    /// An event with its id waits, or has ended while it waited.
    Known,
    /// Its time to live had ended before it came.
    Expired,
    /// The engine does not accept what is in it, and never will.
    Refused,
}

/// The end of one that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Whose.
    pub user: UserId,
    /// Which.
    pub id: NotificationId,
    /// Why it is deleted.
    pub reason: Reason,
}

/// Folded notifications that no digest has told of yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folded {
    /// The id that the digest will have.
    pub digest: NotificationId,
    /// How many there are of each type.
    pub counts: Vec<(Box<str>, u64)>,
    /// The first record's timestamp.
    pub from: UnixMillis,
    /// The last record's timestamp.
    pub to: UnixMillis,
}

/// What waits for a user.
#[derive(Clone, Debug, Default)]
pub struct Backlog {
    /// In the order in which they were held back.
    pub events: Vec<Arc<Event>>,
    /// Digests that are owed.
    pub folded: Vec<Folded>,
}

/// Keeps what waits.
pub trait Waiting: Send + Sync + 'static {
    /// Stores events without a number; the answer has one entry for each.
    fn hold<'a>(&'a self, holding: &'a [Holding]) -> Answer<'a, Vec<Held>>;

    /// Ends some that wait, and notes that in the journal. Those that do not wait any more stay as they are.
    fn end<'a>(&'a self, endings: &'a [Ending]) -> Answer<'a, ()>;

    /// These digests are in their users' logs: they are not owed any more.
    fn digested<'a>(&'a self, digests: &'a [(UserId, NotificationId)]) -> Answer<'a, ()>;

    /// What waits for a user.
    fn backlog<'a>(&'a self, user: &'a UserId) -> Answer<'a, Backlog>;

    /// Users for whom something waits, or to whom a digest is owed.
    fn users_waiting(&self) -> Answer<'_, Vec<UserId>>;
}
