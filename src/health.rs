//! What liveness and readiness are made of: parts that say how they stand, and loops that show progress.
//! The parts write, the admin port reads.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// The state of a node's parts. Cheap to clone.
#[derive(Clone, Default)]
pub struct Health {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    parts: Mutex<BTreeMap<&'static str, Result<(), String>>>,
    loops: Mutex<Vec<Progress>>,
}

impl Health {
    /// The part serves.
    pub fn ready(&self, part: &'static str) {
        self.inner.parts.lock().insert(part, Ok(()));
    }

    /// The part cannot serve, and why.
    pub fn not_ready(&self, part: &'static str, why: impl Into<String>) {
        self.inner.parts.lock().insert(part, Err(why.into()));
    }

    /// The parts that cannot serve now, with their reasons; empty when the node is ready.
    #[must_use]
    pub fn failing(&self) -> Vec<(&'static str, String)> {
        let parts = self.inner.parts.lock();
        parts.iter().filter_map(|(part, state)| Some((*part, state.as_ref().err()?.clone()))).collect()
    }

    /// Watches a loop that must turn at least every `max_age`.
    #[must_use]
    pub fn watch_loop(&self, name: &'static str, max_age: Duration) -> Progress {
        let progress = Progress {
            name,
            max_age,
            start: Instant::now(),
            turned_ms: Arc::default(),
            #[cfg(feature = "faults")]
            stall_ms: Arc::default(),
        };
        self.inner.loops.lock().push(progress.clone());
        progress
    }

    /// The loops that stand still, with the age of their last turn.
    #[must_use]
    pub fn stuck(&self) -> Vec<(&'static str, Duration)> {
        let loops = self.inner.loops.lock();
        loops.iter().filter(|l| l.age() > l.max_age).map(|l| (l.name, l.age())).collect()
    }

    /// Test builds only: the loop stands still for `time` at its next turn; `false`: there is no such loop.
    #[cfg(feature = "faults")]
    #[must_use]
    pub fn stall(&self, name: &str, time: Duration) -> bool {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let loops = self.inner.loops.lock();
        let watched = loops.iter().find(|l| l.name == name);
        if let Some(watched) = watched {
            watched.stall_ms.store(millis, Ordering::Relaxed);
        }
        watched.is_some()
    }
}

/// Shows that a loop goes on. Cheap to clone.
#[derive(Clone)]
pub struct Progress {
    name: &'static str,
    max_age: Duration,
    start: Instant,
    turned_ms: Arc<AtomicU64>,
    #[cfg(feature = "faults")]
    stall_ms: Arc<AtomicU64>,
}

impl Progress {
    /// The loop has begun another turn.
    pub fn turn(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.turned_ms.store(now, Ordering::Relaxed);
        #[cfg(feature = "faults")]
        self.stand_still();
    }

    #[cfg(feature = "faults")]
    fn stand_still(&self) {
        let time = Duration::from_millis(self.stall_ms.swap(0, Ordering::Relaxed));
        if time.is_zero() {
            return;
        }
        let sleep = || std::thread::sleep(time);
        // A worker of the runtime hands its other tasks on first: the loop stands still, the process answers.
        match tokio::runtime::Handle::try_current() {
            Ok(_) => tokio::task::block_in_place(sleep),
            Err(_) => sleep(),
        }
    }

    /// How long ago the last turn began.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.turned_ms.load(Ordering::Relaxed)))
    }

    /// The loop ended as planned and is watched no more.
    pub fn ended(&self) {
        self.turned_ms.store(u64::MAX, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_part_is_named_until_it_is_ready() {
        let health = Health::default();
        health.not_ready("kafka", "no broker answers");
        health.ready("edge");
        assert_eq!(health.failing(), [("kafka", "no broker answers".to_owned())]);
        health.ready("kafka");
        assert!(health.failing().is_empty());
    }

    #[test]
    fn a_loop_that_stands_still_is_stuck_until_it_turns_or_ends() {
        let health = Health::default();
        let progress = health.watch_loop("poll", Duration::ZERO);
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(health.stuck().len(), 1);
        progress.ended();
        assert!(health.stuck().is_empty());
    }
}
