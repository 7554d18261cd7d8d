//! The store as the rest sees it: a log per user, and cursors. Engines are behind [`Store`]; the one that
//! exists keeps everything in memory, for as long as the process lives.

pub mod memory;
pub mod sessions;
pub mod writer;

use std::{future::Future, pin::Pin, sync::Arc};

use crate::{
    event::{Event, Notification},
    ids::{DeviceId, LogEpoch, Sequence, UserId},
    wire::Gap,
};

/// What a call to the store comes to. Dropping it abandons the answer; a write may still happen.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// Why the store did not answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// It is away or overloaded: the same call may succeed later.
    #[error("the store is unavailable: {reason}")]
    Unavailable {
        /// What the engine said.
        reason: String,
    },
}

/// Keeps users' logs and cursors. Every promise is per user; calls for different users are independent.
pub trait Store: Send + Sync + 'static {
    /// Names this life of the log. Numbers of another epoch mean nothing here.
    fn epoch(&self) -> LogEpoch;

    /// Where a user's log ends and what a device has acknowledged.
    fn open<'a>(&'a self, user: &'a UserId, device: Option<&'a DeviceId>) -> Answer<'a, Opened>;

    /// Appends events to their users' logs, in the order given; the answer has one entry for each.
    fn append<'a>(&'a self, events: &'a [Arc<Event>]) -> Answer<'a, Vec<Appended>>;

    /// What follows `after` in a user's log, oldest first.
    fn read<'a>(&'a self, user: &'a UserId, after: Sequence, limit: PageLimit) -> Answer<'a, Page>;

    /// Raises a cursor. It never goes down, and never passes the head.
    fn acknowledge<'a>(&'a self, user: &'a UserId, device: Option<&'a DeviceId>, seq: Sequence) -> Answer<'a, ()>;
}

/// The two marks of a user's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// The highest number given; 0: none yet.
    pub head: Sequence,
    /// The highest number that the device has acknowledged (a new device: the user's shared cursor).
    pub cursor: Sequence,
}

/// What became of an appended event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It has this number now.
    Stored(Sequence),
    /// An event with its id had this number already.
    Duplicate(Sequence),
    /// Its time to live had ended before it came; it got no number.
    Expired,
}

/// The most that one page may hold; at least one notification comes in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimit {
    /// Notifications.
    pub items: usize,
    /// Bytes of events.
    pub bytes: usize,
}

/// A stretch of a user's log.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// What it holds, in the order of numbers.
    pub entries: Vec<Entry>,
    /// The last number that it covers: the next page begins after it.
    pub covers: Sequence,
}

/// One place in a page.
#[derive(Clone, Debug)]
pub enum Entry {
    /// To be delivered.
    Notification(Notification),
    /// Numbers that will not come.
    Gap(Gap),
}

#[cfg(test)]
pub(crate) mod tests;
