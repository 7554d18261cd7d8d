//! In which steps shards and partitions go from node to node when somebody joins or leaves: in batches, so that nearly
//! all of them are served at any moment. It knows claims and targets, and nothing of how anything is moved.
//!
//! Every node decides by the claims alone. What has to move stands in one order for all, and what may go is what stands
//! among the first of it, as far as a batch has room beside what nobody has. What a node is just giving away stands there
//! until it is released, and keeps its place from others; so no more than a batch is on its way over the whole cluster,
//! however many give and take, as long as they know the same view and nobody has lost patience.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::ids::Incarnation;

/// A sixteenth of all is on its way at a time: a move is noticed by few, and one of three nodes comes or goes in six
/// steps.
const SHARE: usize = 16;

/// Who does not let go of what it should for so long, though it is its turn, holds up the others no more, and neither
/// does what nobody has taken for so long: they cannot just now, and a node that leaves has a deadline. One that stands
/// still is found dead in that time.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many of `count` are on their way at a time, and never more than `most`.
#[must_use]
pub fn batch(count: usize, most: usize) -> usize {
    (count / SHARE).clamp(1, most)
}

/// What is on its way and what is to go, over the whole cluster.
#[derive(Clone, Debug)]
pub struct Moves<K> {
    batch: usize,
    /// What nobody has, in order.
    free: Vec<K>,
    /// What one has and another one should have, in order.
    pending: Vec<(K, Incarnation)>,
}

impl<K: Ord + Copy> Moves<K> {
    /// Of claims in their order, each with its owner, if that one is alive, and with the one who should be it.
    #[must_use]
    pub fn new(batch: usize, claims: impl IntoIterator<Item = (K, Option<Incarnation>, Incarnation)>) -> Self {
        let (mut free, mut pending) = (Vec::new(), Vec::new());
        for (claimed, owner, target) in claims {
            match owner {
                None => free.push(claimed),
                Some(owner) if owner != target => pending.push((claimed, owner)),
                Some(_) => {}
            }
        }
        debug_assert!(free.is_sorted() && pending.is_sorted());
        Self { batch, free, pending }
    }

    /// Who has to give it away. Nobody waits for what does not have to move.
    fn giver(&self, one: &K) -> Option<Incarnation> {
        let place = self.pending.binary_search_by_key(one, |(pending, _)| *pending).ok()?;
        Some(self.pending[place].1)
    }
}

/// How one node gives away what others should have.
#[derive(Clone, Debug)]
pub struct Pace<K> {
    /// What others hold it up with, who has to let go of it (`None`: somebody has to take it), and since when.
    waits: BTreeMap<(K, Option<Incarnation>), Instant>,
}

impl<K> Default for Pace<K> {
    fn default() -> Self {
        Self { waits: BTreeMap::new() }
    }
}

impl<K: Ord + Copy> Pace<K> {
    /// What of `mine`, which others should have, is to be given away now. It must be in order.
    pub fn next(&mut self, now: Instant, mine: &[K], moves: &Moves<K>) -> Vec<K> {
        debug_assert!(mine.is_sorted());
        if mine.is_empty() {
            self.waits.clear();
            return Vec::new();
        }
        let is_mine = |one: &K| mine.binary_search(one).is_ok();
        self.waits.retain(|(one, giver), _| match giver {
            None => moves.free.binary_search(one).is_ok(),
            Some(_) => moves.giver(one) == *giver && !is_mine(one),
        });
        let late = self.waits.iter().filter(|(_, since)| now.duration_since(**since) >= PATIENCE);
        let late: BTreeSet<(K, Option<Incarnation>)> = late.map(|(wait, _)| *wait).collect();
        let slow: BTreeSet<Incarnation> = late.iter().filter_map(|(_, giver)| *giver).collect();
        let free = moves.free.iter().filter(|one| !late.contains(&(**one, None)));
        let free: Vec<_> = free.map(|one| (*one, None)).collect();
        let in_time = moves.pending.iter().filter(|(one, giver)| is_mine(one) || !slow.contains(giver));
        let turn = in_time.take(moves.batch.saturating_sub(free.len())).copied();
        let (turn, others): (Vec<_>, Vec<_>) = turn.partition(|(one, _)| is_mine(one));
        let others = others.into_iter().map(|(one, giver)| (one, Some(giver)));
        for wait in free.into_iter().chain(others) {
            self.waits.entry(wait).or_insert(now);
        }
        let goes = |one: &K| moves.giver(one).is_none() || turn.iter().any(|(next, _)| next == one);
        mine.iter().copied().filter(goes).collect()
    }
}

#[cfg(test)]
mod tests;
