//! A node that hears neither the store nor anybody else cannot know whether it is alive.

use std::time::{Duration, Instant};

/// After so long it says goodbye to its clients and ends.
const ENOUGH: Duration = Duration::from_secs(10);

/// When this node last heard of anybody.
#[derive(Clone, Copy, Debug)]
pub struct Solitude {
    contact: Instant,
}

impl Solitude {
    /// It has just begun.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { contact: now }
    }

    /// The store has answered, or another node was heard.
    pub fn contact(&mut self, now: Instant) {
        self.contact = now;
    }

    /// Whether it has lasted too long. A cluster of one goes on: nobody else could serve its clients.
    #[must_use]
    pub fn is_over(&self, now: Instant, members: usize) -> bool {
        members > 1 && now.saturating_duration_since(self.contact) >= ENOUGH
    }
}
