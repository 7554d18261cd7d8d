//! The connections of this node: found by session, swept for heartbeats and expired tokens, and sent away one
//! after the other when the node drains.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{metric, relay::Relay};
use crate::{
    backoff::jitter,
    event::unix_millis_now,
    ids::SessionId,
    wire::{Close, CloseCode},
};

/// How often what is due is looked for; the contract gives an expired token one second.
const SWEEP: Duration = Duration::from_millis(500);

/// The connections of this node.
pub(super) struct Registry {
    by_session: Mutex<HashMap<SessionId, Arc<Relay>>>,
    /// What is due when, in sweeps since the start: one entry for each connection, at most a heartbeat away.
    due: Mutex<BTreeMap<u64, Vec<Weak<Relay>>>>,
    heartbeat: Duration,
    start: Instant,
}

/// Removes the connection when it ends, however it ends.
pub(super) struct Registered<'a> {
    registry: &'a Registry,
    relay: Arc<Relay>,
}

impl Registry {
    pub(super) fn new(heartbeat: Duration) -> Self {
        Self { by_session: Mutex::default(), due: Mutex::default(), heartbeat, start: Instant::now() }
    }

    pub(super) fn register(&self, relay: &Arc<Relay>) -> Registered<'_> {
        self.by_session.lock().insert(relay.client.session, relay.clone());
        metric::connected(relay.protocol.name(), 1.0);
        self.schedule(relay);
        Registered { registry: self, relay: relay.clone() }
    }

    pub(super) fn find(&self, session: SessionId) -> Option<Arc<Relay>> {
        self.by_session.lock().get(&session).cloned()
    }

    fn schedule(&self, relay: &Arc<Relay>) {
        let left = u64::try_from(relay.client.expires_at - unix_millis_now()).unwrap_or(0);
        let after = self.heartbeat.min(Duration::from_millis(left));
        let at = self.sweeps(self.start.elapsed() + after) + 1;
        self.due.lock().entry(at).or_default().push(Arc::downgrade(relay));
    }

    fn sweeps(&self, time: Duration) -> u64 {
        u64::try_from(time.as_millis() / SWEEP.as_millis()).unwrap_or(u64::MAX)
    }

    /// Sends heartbeats and ends what has expired, for as long as the node runs.
    pub(super) async fn sweep(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(SWEEP);
        loop {
            ticks.tick().await;
            let now = self.sweeps(self.start.elapsed());
            let later = self.due.lock().split_off(&(now + 1));
            let due = std::mem::replace(&mut *self.due.lock(), later);
            for relay in due.into_values().flatten().filter_map(|relay| relay.upgrade()) {
                if relay.client.expires_at <= unix_millis_now() {
                    relay.close(Close::new(CloseCode::Unauthenticated, "the token has expired"));
                } else {
                    relay.beat();
                    self.schedule(&relay);
                }
            }
        }
    }

    /// Says goodbye to everyone, `per_second` at the most, each with its own time to come back, spread over
    /// `spread`; returns when all connections have ended or at the deadline.
    pub(super) async fn goodbye(&self, per_second: u32, spread: Duration, deadline: Instant) {
        const STEP: Duration = Duration::from_millis(100);
        let per_step = f64::from(per_second) * STEP.as_secs_f64();
        let (mut told, mut budget) = (HashSet::new(), 0.0);
        let mut ticks = tokio::time::interval(STEP);
        loop {
            ticks.tick().await;
            let left = deadline.saturating_duration_since(Instant::now());
            let waiting: Vec<Arc<Relay>> = {
                let all = self.by_session.lock();
                if all.is_empty() || left.is_zero() {
                    return;
                }
                all.values().filter(|relay| !told.contains(&relay.client.session)).cloned().collect()
            };
            // Half of what is left is for the goodbyes: the deadline wins over the pace.
            let steps = (left.as_secs_f64() / 2.0 / STEP.as_secs_f64()).max(1.0);
            #[expect(clippy::cast_precision_loss, reason = "a number of connections")]
            let must = waiting.len() as f64 / steps;
            budget += per_step.max(must);
            for relay in waiting {
                if budget < 1.0 {
                    break;
                }
                budget -= 1.0;
                told.insert(relay.client.session);
                relay.close_in_order(Close::come_back(CloseCode::GoingAway, "draining", jitter(spread)));
            }
        }
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        metric::connected(self.relay.protocol.name(), -1.0);
        self.registry.by_session.lock().remove(&self.relay.client.session);
    }
}
