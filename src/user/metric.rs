//! The metrics of users and of the actors below them.

use std::sync::LazyLock;

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

const EVENTS: &str = "notifier_events_total";
const RESTARTS: &str = "notifier_actor_restarts_total";
const USERS: &str = "notifier_users_active";

static EVENT: LazyLock<[Counter; 7]> = LazyLock::new(|| Event::ALL.map(|e| counter!(EVENTS, "outcome" => e.as_str())));
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
}

impl Event {
    const ALL: [Self; 7] =
        [Self::Stored, Self::Duplicate, Self::Expired, Self::Refused, Self::Delivered, Self::Away, Self::NoSession];

    fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Duplicate => "duplicate",
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::Delivered => "delivered",
            Self::Away => "away",
            Self::NoSession => "no_session",
        }
    }
}

/// Registers names and meanings.
pub fn describe() {
    describe_counter!(EVENTS, "Events that reached their user's actor, by what became of them");
    describe_counter!(RESTARTS, "Actors that crashed, by actor and reason");
    describe_gauge!(USERS, "Users with a running actor");
    LazyLock::force(&EVENT);
    ACTIVE.set(0.0);
    for actor in ["session", "user", "shard"] {
        counter!(RESTARTS, "actor" => actor, "reason" => "crash").increment(0);
    }
}

pub(super) fn event(outcome: Event) {
    EVENT[outcome as usize].increment(1);
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
