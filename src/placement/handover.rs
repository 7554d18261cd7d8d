//! In which steps shards and partitions go from node to node when somebody joins or leaves: in batches, so that nearly
//! all of them are served at any moment. It knows claims and targets, and nothing of how anything is moved.
//!
//! Every node decides by the claims alone. What has to move stands in one order for all, and what may go is what stands
//! among the first of it, as far as a batch has room beside what nobody has. What a node is just giving away stands there
//! until it is released, and keeps its place from others; so no more than a batch is on its way over the whole cluster,
//! however many give and take, as long as they know the same view.

use std::time::{Duration, Instant};

use crate::ids::Incarnation;

/// A sixteenth of all is on its way at a time: a move is noticed by few, and one of three nodes comes or goes in six
/// steps.
const SHARE: usize = 16;

/// What has been on its way for so long holds up the rest no more: whoever should let go of it, or take it, cannot just
/// now, and a node that leaves has a deadline. One that stands still is found dead in that time.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How many of `count` are on their way at a time, and never more than `most`.
#[must_use]
pub fn batch(count: usize, most: usize) -> usize {
    (count / SHARE).clamp(1, most)
}

/// What is on its way and what is to go, over the whole cluster.
#[derive(Clone, Debug)]
pub struct Moves<K> {
    batch: usize,
    /// So many more may be on their way.
    room: usize,
    /// What one has and another one should have, in order.
    pending: Vec<K>,
}

impl<K: Ord + Copy> Moves<K> {
    /// Of claims in their order, each with its owner, if that one is alive, and with the one who should be it.
    #[must_use]
    pub fn new(batch: usize, claims: impl IntoIterator<Item = (K, Option<Incarnation>, Incarnation)>) -> Self {
        let (mut free, mut pending) = (0, Vec::new());
        for (claimed, owner, target) in claims {
            match owner {
                None => free += 1,
                Some(owner) if owner != target => pending.push(claimed),
                Some(_) => {}
            }
        }
        debug_assert!(pending.is_sorted());
        Self { batch, room: batch.saturating_sub(free), pending }
    }

    /// Whether it is its turn. Nobody waits for what does not have to move.
    fn may_go(&self, one: &K) -> bool {
        self.pending.binary_search(one).map_or(true, |place| place < self.room)
    }
}

/// How one node gives away what others should have.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// When something was given last, or there has been something to give since.
    since: Option<Instant>,
}

impl Pace {
    /// What of `mine`, which others should have, is to be given away now.
    pub fn next<K: Ord + Copy>(&mut self, now: Instant, mine: &[K], moves: &Moves<K>) -> Vec<K> {
        if mine.is_empty() {
            self.since = None;
            return Vec::new();
        }
        let since = *self.since.get_or_insert(now);
        let mut next: Vec<K> = mine.iter().copied().filter(|one| moves.may_go(one)).collect();
        if next.is_empty() && now.duration_since(since) >= PATIENCE {
            next = mine.iter().copied().take(moves.batch).collect();
        }
        if !next.is_empty() {
            self.since = Some(now);
        }
        next
    }
}

#[cfg(test)]
mod tests;
