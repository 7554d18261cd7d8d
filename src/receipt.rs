//! What producers are told of their events: one receipt for each that has ended. Who writes them, and where, is not
//! known here.

use crate::{
    event::{Event, UnixMillis, unix_millis_now},
    ids::{NotificationId, Sequence, SessionTag, UserId},
    state::{Reason, State},
};

/// One notification has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Whose it was.
    pub user: UserId,
    /// Which.
    pub id: NotificationId,
    /// On which session, if on one.
    pub session: Option<SessionTag>,
    /// Its number, if it had one.
    pub seq: Option<Sequence>,
    /// How it ended.
    pub state: State,
    /// Why.
    pub reason: Option<Reason>,
    /// When.
    pub at: UnixMillis,
}

impl Receipt {
    /// An event that never was in a log has ended.
    #[must_use]
    pub fn unstored(event: &Event, state: State, reason: Reason) -> Self {
        Self {
            user: event.user.clone(),
            id: event.id.clone(),
            session: None,
            seq: None,
            state,
            reason: Some(reason),
            at: unix_millis_now(),
        }
    }
}

/// Takes receipts of events that no log knows, which are lost with the process. Must not block.
pub trait Receipts: Send + Sync {
    /// Hands one over.
    fn hand_over(&self, receipt: Receipt);
}

/// For whom nobody wants receipts.
pub struct NoReceipts;

impl Receipts for NoReceipts {
    fn hand_over(&self, _: Receipt) {}
}
