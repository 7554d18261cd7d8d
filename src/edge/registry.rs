//! The connections of this node: found by session, swept for heartbeats and expired tokens, and sent away one
//! after the other when the node drains.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::{
    metric,
    relay::{Client, Relay},
};
use crate::{
    backoff::jitter,
    event::unix_millis_now,
    ids::{SessionId, UserId},
    user,
    wire::{Close, CloseCode},
};

/// How often what is due is looked for; the contract gives an expired token one second.
const SWEEP: Duration = Duration::from_millis(500);

/// The connections of this node.
pub(super) struct Registry {
    known: Mutex<Known>,
    /// What is due when, in sweeps since the start: one entry for each connection, at most a heartbeat away.
    due: Mutex<BTreeMap<u64, Vec<Weak<Relay>>>>,
    heartbeat: Duration,
    start: Instant,
}

#[derive(Default)]
struct Known {
    by_session: HashMap<SessionId, Arc<Relay>>,
    by_user: HashMap<UserId, SmallVec<[SessionId; 1]>>,
}

impl Known {
    fn insert(&mut self, relay: &Arc<Relay>) -> Option<Arc<Relay>> {
        let former = self.by_session.insert(relay.client.session, relay.clone());
        if former.is_none() {
            self.by_user.entry(relay.client.user.clone()).or_default().push(relay.client.session);
        }
        former
    }

    fn remove(&mut self, relay: &Arc<Relay>) {
        let Client { session, user, .. } = &relay.client;
        // A later connection of the same session has its place.
        if self.by_session.get(session).is_none_or(|known| !Arc::ptr_eq(known, relay)) {
            return;
        }
        self.by_session.remove(session);
        if let Some(of_user) = self.by_user.get_mut(user) {
            of_user.retain(|one| one != session);
            if of_user.is_empty() {
                self.by_user.remove(user);
            }
        }
    }
}

/// Removes the connection when it ends, however it ends.
pub(super) struct Registered {
    registry: Arc<Registry>,
    relay: Arc<Relay>,
}

impl Registry {
    pub(super) fn new(heartbeat: Duration) -> Self {
        Self { known: Mutex::default(), due: Mutex::default(), heartbeat, start: Instant::now() }
    }

    pub(super) fn register(self: &Arc<Self>, relay: &Arc<Relay>) -> Registered {
        let former = self.known.lock().insert(relay);
        if let Some(former) = former {
            // A started session serves one connection at a time: the newest.
            former.close(Close::new(CloseCode::Replaced, user::USED_BY_ANOTHER));
        }
        metric::connected(relay.protocol, 1.0);
        self.schedule(relay);
        Registered { registry: self.clone(), relay: relay.clone() }
    }

    pub(super) fn count(&self) -> usize {
        self.known.lock().by_session.len()
    }

    pub(super) fn find(&self, session: SessionId) -> Option<Arc<Relay>> {
        self.known.lock().by_session.get(&session).cloned()
    }

    /// The connections of one user, the oldest first.
    pub(super) fn of_user(&self, user: &UserId) -> Vec<Arc<Relay>> {
        let known = self.known.lock();
        let sessions = known.by_user.get(user).into_iter().flatten();
        sessions.filter_map(|session| known.by_session.get(session).cloned()).collect()
    }

    /// The connections of these users.
    pub(super) fn of_users(&self, is_theirs: impl Fn(&UserId) -> bool) -> Vec<Arc<Relay>> {
        let known = self.known.lock();
        let sessions = known.by_user.iter().filter(|(user, _)| is_theirs(user)).flat_map(|(_, sessions)| sessions);
        sessions.filter_map(|session| known.by_session.get(session).cloned()).collect()
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
                let all = &self.known.lock().by_session;
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

impl Drop for Registered {
    fn drop(&mut self) {
        metric::connected(self.relay.protocol, -1.0);
        self.registry.known.lock().remove(&self.relay);
    }
}

#[cfg(test)]
mod tests;
