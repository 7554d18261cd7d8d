//! What a session tells its user's actor.

use super::Dormant;
use crate::{
    event::UnixMillis,
    ids::{DeviceId, NotificationId, Sequence, SessionId},
    wire::Gap,
};

/// Numbers that a session was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handed {
    /// The first one.
    pub first: Sequence,
    /// The last one.
    pub last: Sequence,
    /// When the first one went.
    pub at: UnixMillis,
}

/// What a session tells its user's actor.
pub struct Outcome {
    /// Who says it.
    pub session: SessionId,
    /// Whose cursor it is about.
    pub device: Option<DeviceId>,
    /// What it says.
    pub what: What,
}

/// What has happened at a session.
pub enum What {
    /// The client acknowledged up to this number.
    Acknowledged {
        /// The number.
        seq: Sequence,
        /// The numbers and ids, when all of them are known.
        ids: Option<Vec<(Sequence, NotificationId)>>,
        /// The numbers among them that the client was told will not come.
        gaps: Vec<Gap>,
        /// Those of them that were not told of.
        handed: Option<Handed>,
    },
    /// The client has these, and has not acknowledged them for a while.
    Handed(Handed),
    /// The client is gone, and had these without having acknowledged them.
    Left {
        /// The first one.
        first: Sequence,
        /// The last one.
        last: Sequence,
        /// When it was given those that were not told of, if there are any.
        handed_at: Option<UnixMillis>,
    },
    /// It has nothing to do, and has let go of its connection: this is left of it. The last thing that it says.
    Rests(Box<Dormant>),
    /// It does not rest.
    Busy,
}
