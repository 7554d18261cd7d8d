//! The session's metrics.

use std::sync::LazyLock;

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

const SLOW_CONSUMERS: &str = "notifier_slow_consumers_total";
const SESSIONS: &str = "notifier_sessions";
const CONFLATED: &str = "notifier_conflated_total";

static SLOW: LazyLock<Counter> = LazyLock::new(|| counter!(SLOW_CONSUMERS));
static REPLACED: LazyLock<Counter> = LazyLock::new(|| counter!(CONFLATED));
static ACTIVE: LazyLock<Gauge> = LazyLock::new(|| gauge!(SESSIONS, "state" => "active"));

/// Registers names and meanings.
pub fn describe() {
    describe_counter!(SLOW_CONSUMERS, "Sessions closed because they read or acknowledged too slowly");
    describe_gauge!(SESSIONS, "Sessions of connected clients, by whether an actor runs for them");
    describe_counter!(CONFLATED, "Transient notifications that newer ones replaced while their session was slow");
    SLOW.increment(0);
    REPLACED.increment(0);
    ACTIVE.set(0.0);
    gauge!(SESSIONS, "state" => "dormant").set(0.0);
}

pub(super) fn conflated() {
    REPLACED.increment(1);
}

pub(super) fn slow_consumer() {
    SLOW.increment(1);
}

/// Counts a running session actor for as long as it lives, however it ends.
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
