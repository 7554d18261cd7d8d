//! An event (what a producer wrote), decoded and checked, and the notification that a user gets of it.
//! Knows neither Kafka nor sockets.

use std::{sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    ids::{NotificationId, Sequence, UserId},
    settlement::Permit,
};

/// When a record's position may pass an event, and what happens for a user who is away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Not stored: handed to the sessions that are open, possibly none.
    Transient,
    /// Stored in the user's log, replayed at the next connect.
    #[default]
    Durable,
    /// Stored, and listed in the inbox until archived.
    Inbox,
}

/// The class that rate limits apply to, and the order in which held-back notifications are released.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Never held back.
    Critical,
    /// Before `normal`.
    High,
    /// The default.
    #[default]
    Normal,
    /// After all others.
    Low,
}

impl Priority {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
    /// Every priority, the highest first.
    pub const ALL: [Self; 4] = [Self::Critical, Self::High, Self::Normal, Self::Low];

    /// How the contract calls it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

/// How an event wants to be delivered: its own options over those of its type over the defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// What is promised for it.
    pub durability: Durability,
    /// Its class.
    pub priority: Priority,
    /// A newer one with the same key takes the place of an older one that still waits.
    pub collapse_key: Option<Box<str>>,
    /// After this long it is not delivered any more, counted from the record's timestamp.
    pub ttl: Option<Duration>,
}

/// Milliseconds since 1970 (Unix time, as Kafka's record timestamps).
pub type UnixMillis = i64;

/// The time now, as records are stamped.
#[must_use]
pub fn unix_millis_now() -> UnixMillis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// One decoded `NotificationDeliveryRequested`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Who it is for.
    pub user: UserId,
    /// Only this session of the user; such an event is always transient.
    pub session: Option<Box<str>>,
    /// Unique per user.
    pub id: NotificationId,
    /// What kind of notification, e.g. `update_channel`.
    pub notification_type: Box<str>,
    /// One JSON text, byte for byte as the producer wrote it.
    pub payload: Box<str>,
    /// How it wants to be delivered.
    pub options: Options,
    /// When the producer says it was created; else the record's timestamp.
    pub created_at: UnixMillis,
    /// The record's timestamp: latency and time-to-live count from here.
    pub recorded_at: UnixMillis,
}

impl Event {
    /// When it must no longer be delivered.
    #[must_use]
    pub fn expires_at(&self) -> Option<UnixMillis> {
        let ttl = i64::try_from(self.options.ttl?.as_millis()).unwrap_or(i64::MAX);
        Some(self.recorded_at.saturating_add(ttl))
    }

    /// Whether it is stored before it is pushed.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        self.session.is_none() && self.options.durability != Durability::Transient
    }

    /// About how much memory it takes, in bytes; what credits and the log's limits count.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        size_of::<Self>() + self.user.len() + self.id.len() + self.notification_type.len() + self.payload.len()
    }
}

/// An event on its way to its user, with the permit that bounds how many there are.
#[derive(Debug)]
pub struct InFlight {
    /// What is delivered.
    pub event: Arc<Event>,
    /// Given back when it is settled, or dropped.
    pub permit: Permit,
    /// The lowest unsettled event of its user at its sender: ends a refusal after a crash.
    pub first: bool,
    /// Who sends it: this node's own router, or the link it came by. Each keeps its own order.
    pub sender: Sender,
}

/// Names one of those who send events to shards, as long as the process lives. 0: this node's own router.
pub type Sender = u64;

/// What a session shows its client: an event and, when it is stored, its place in the user's order.
#[derive(Clone, Debug)]
pub struct Notification {
    /// The number; none for transient ones.
    pub seq: Option<Sequence>,
    /// The content.
    pub event: Arc<Event>,
}
