//! The session's metrics.

use std::sync::LazyLock;

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

const SLOW_CONSUMERS: &str = "notifier_slow_consumers_total";
const SESSIONS: &str = "notifier_sessions";
const CONFLATED: &str = "notifier_conflated_total";

static SLOW: LazyLock<Counter> = LazyLock::new(|| counter!(SLOW_CONSUMERS));
static REPLACED: LazyLock<Counter> = LazyLock::new(|| counter!(CONFLATED));
static SESSIONS_AS: LazyLock<[Gauge; 2]> =
    LazyLock::new(|| ["active", "dormant"].map(|state| gauge!(SESSIONS, "state" => state)));

/// Registers names and meanings.
pub fn describe() {
    describe_counter!(SLOW_CONSUMERS, "Sessions closed because they read or acknowledged too slowly");
    describe_gauge!(SESSIONS, "Sessions of connected clients, by whether an actor runs for them");
    describe_counter!(CONFLATED, "Transient notifications that newer ones replaced while their session was slow");
    SLOW.increment(0);
    REPLACED.increment(0);
    SESSIONS_AS.iter().for_each(|gauge| gauge.set(0.0));
}

pub(super) fn conflated() {
    REPLACED.increment(1);
}

pub(super) fn slow_consumer() {
    SLOW.increment(1);
}

/// What a session is counted as.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// An actor runs for it.
    Active,
    /// None does.
    Dormant,
}

/// Counts a session for as long as it lives, however it ends.
pub(super) struct Counted(Kind);

impl Counted {
    pub(super) fn one(kind: Kind) -> Self {
        SESSIONS_AS[kind as usize].increment(1.0);
        Self(kind)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        SESSIONS_AS[self.0 as usize].decrement(1.0);
    }
}
