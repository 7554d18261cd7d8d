//! The metrics of users and of the actors below them.

use std::sync::LazyLock;

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

use crate::event::Priority;

const EVENTS: &str = "notifier_events_total";
const RESTARTS: &str = "notifier_actor_restarts_total";
const USERS: &str = "notifier_users_active";
const LIMITED: &str = "notifier_rate_limited_total";
const BUFFERED: &str = "notifier_buffered_notifications";
const WOKEN: &str = "notifier_user_wakeups_total";
const WAITED: &str = "notifier_buffer_outcomes_total";

static BUFFERED_OF: LazyLock<[Gauge; Priority::COUNT]> =
    LazyLock::new(|| Priority::ALL.map(|priority| gauge!(BUFFERED, "priority" => priority.as_str())));
static LIMITED_OF: LazyLock<[[Counter; 2]; Priority::COUNT]> = LazyLock::new(|| {
    let of =
        |priority: Priority, mode: &'static str| counter!(LIMITED, "priority" => priority.as_str(), "mode" => mode);
    Priority::ALL.map(|priority| [of(priority, "enforced"), of(priority, "dry_run")])
});
static WAITED_AS: LazyLock<[Counter; Waited::ALL.len()]> =
    LazyLock::new(|| Waited::ALL.map(|outcome| counter!(WAITED, "outcome" => outcome.as_str())));
static EVENT: LazyLock<[Counter; Event::ALL.len()]> =
    LazyLock::new(|| Event::ALL.map(|e| counter!(EVENTS, "outcome" => e.as_str())));
static WOKE: LazyLock<Counter> = LazyLock::new(|| counter!(WOKEN));
static ACTIVE: LazyLock<Gauge> = LazyLock::new(|| gauge!(USERS));

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// In the log, with a number.
    Stored,
    /// Found in the log: it had come before.
    Duplicate,
    /// Its time to live had ended.
    Expired,
    /// The store does not accept what is in it: a dead letter.
    Refused,
    /// Transient, handed to at least one session.
    Delivered,
    /// Transient, and no session is open.
    Away,
    /// For one session that is not there.
    NoSession,
    /// Transient, and over the user's limit.
    RateLimited,
    /// Over the user's limit: it waits, or is counted in a digest.
    Buffered,
}

impl Event {
    const ALL: [Self; 9] = [
        Self::Stored,
        Self::Duplicate,
        Self::Expired,
        Self::Refused,
        Self::Delivered,
        Self::Away,
        Self::NoSession,
        Self::RateLimited,
        Self::Buffered,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Duplicate => "duplicate",
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::Delivered => "delivered",
            Self::Away => "away",
            Self::NoSession => "no_session",
            Self::RateLimited => "rate_limited",
            Self::Buffered => "buffered",
        }
    }
}

/// What became of one that waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// It is in the log now.
    Released,
    /// A newer one took its place.
    Superseded,
    /// Its time to live ended.
    Expired,
    /// Not one of them: the digest of those for which there was no room.
    Digest,
}

impl Waited {
    const ALL: [Self; 4] = [Self::Released, Self::Superseded, Self::Expired, Self::Digest];

    fn as_str(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Superseded => "superseded",
            Self::Expired => "expired",
            Self::Digest => "digest",
        }
    }
}

/// Registers names and meanings.
pub fn describe() {
    describe_counter!(EVENTS, "Events that reached their user's actor, by what became of them");
    describe_counter!(RESTARTS, "Actors that crashed, by actor and reason");
    describe_gauge!(USERS, "Users with a running actor");
    describe_counter!(LIMITED, "Events that were over their user's limit, by whether that was only counted");
    describe_gauge!(BUFFERED, "Notifications that wait for their users' limits");
    describe_counter!(WOKEN, "Users whose sessions rested and got actors again");
    LazyLock::force(&EVENT);
    WOKE.increment(0);
    describe_counter!(WAITED, "Notifications that waited for their users' limits, by what became of them");
    LazyLock::force(&LIMITED_OF);
    LazyLock::force(&WAITED_AS);
    BUFFERED_OF.iter().for_each(|gauge| gauge.set(0.0));
    ACTIVE.set(0.0);
    for actor in ["session", "user", "shard"] {
        counter!(RESTARTS, "actor" => actor, "reason" => "crash").increment(0);
    }
}

pub(super) fn event(outcome: Event) {
    EVENT[outcome as usize].increment(1);
}

pub(super) fn rate_limited(priority: Priority, dry_run: bool) {
    LIMITED_OF[priority as usize][usize::from(dry_run)].increment(1);
}

pub(super) fn waited(outcome: Waited) {
    WAITED_AS[outcome as usize].increment(1);
}

/// A user's sessions go on after they have rested.
pub(super) fn woken() {
    WOKE.increment(1);
}

/// One more, or one less, waits.
pub(super) fn buffered(priority: Priority, change: i8) {
    BUFFERED_OF[priority as usize].increment(f64::from(change));
}

/// An actor crashed and what it stood for starts anew.
pub fn restarted(actor: &'static str) {
    counter!(RESTARTS, "actor" => actor, "reason" => "crash").increment(1);
}

/// Counts a running user actor for as long as it lives, however it ends.
pub(super) struct Active;

impl Active {
    pub(super) fn one() -> Self {
        ACTIVE.increment(1.0);
        Self
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        ACTIVE.decrement(1.0);
    }
}
