//! Which node should own which shard, and which Kafka partition: weighted rendezvous with bounded load. It knows who
//! takes part, and nothing of who owns what now. Every node computes the same from the same view, whatever its
//! version: a change here would make the nodes of a rollout fight over shards.
//!
//! Each resource goes to the node whose hash with it is the highest (Thaler and Ravishankar, "Using name-based mappings
//! to increase hit rates"), unless that node has its fill already; then to the next one (Mirrokni, Thorup and
//! Zadimoghaddam, "Consistent hashing with bounded loads"). A node of weight *w* counts as *w* nodes, without any
//! arithmetic that could differ between machines.

use std::num::NonZeroU8;

use xxhash_rust::xxh3::xxh3_64;

use super::ShardId;

/// A node may own 5/4 of its share, rounded up.
const BOUND: (u64, u64) = (5, 4);

/// A node that takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// What the node is called in all its incarnations, so that one that comes back gets back what it had.
    pub id: &'a str,
    /// How much it takes, compared with others.
    pub weight: NonZeroU8,
}

/// Who should own each shard, as indices of candidates, which may stand in any order. Empty without candidates.
#[must_use]
pub fn shards(candidates: &[Candidate<'_>], shards: u16) -> Vec<usize> {
    let keys = (0..shards).map(|shard| shard_key(ShardId(shard)));
    assign(candidates, &keys.collect::<Vec<_>>())
}

/// The same for the partitions of a topic.
#[must_use]
pub fn partitions(candidates: &[Candidate<'_>], topic: &str, partitions: u32) -> Vec<usize> {
    let keys = (0..partitions).map(|partition| partition_key(topic, partition));
    assign(candidates, &keys.collect::<Vec<_>>())
}

fn shard_key(shard: ShardId) -> u64 {
    xxh3_64(&shard.0.to_le_bytes())
}

fn partition_key(topic: &str, partition: u32) -> u64 {
    of_both(xxh3_64(topic.as_bytes()), partition.into())
}

/// Two numbers' hash. Seeds would do for neither: XXH3 adds them to the text, where a short one and another seed come
/// to the same.
fn of_both(one: u64, other: u64) -> u64 {
    xxh3_64(&(u128::from(one) << 64 | u128::from(other)).to_le_bytes())
}

/// A candidate while the resources are dealt out.
struct Bin<'a> {
    id: &'a str,
    /// One for each unit of weight.
    hashes: Vec<u64>,
    /// Its fill.
    soft: u64,
    /// What it takes when all have their fill.
    hard: u64,
    load: u64,
}

impl<'a> Bin<'a> {
    fn new(candidate: &Candidate<'a>, resources: u64, weights: u64) -> Self {
        let hash = |copy| of_both(xxh3_64(candidate.id.as_bytes()), copy);
        let hashes: Vec<u64> = (0..u64::from(candidate.weight.get())).map(hash).collect();
        // 5/4 of its share, in 2⁻³² resources. Each node rounds it at a point of its own: if all went from 13 to 14 at
        // once when one node leaves, as many resources would move as there are nodes.
        let share = (u128::from(resources) * u128::from(candidate.weight.get()) * u128::from(BOUND.0)) << 32;
        let share = share / (u128::from(weights) * u128::from(BOUND.1));
        let whole = |fixed: u128| u64::try_from(fixed >> 32).expect("no more than twice the resources");
        let soft = whole(share + u128::from(hashes[0] >> 32));
        Self { id: candidate.id, hashes, soft, hard: whole(share + u128::from(u32::MAX)), load: 0 }
    }

    fn score(&self, key: u64) -> u64 {
        self.hashes.iter().map(|hash| of_both(*hash, key)).max().expect("a weight of one at least")
    }
}

fn assign(candidates: &[Candidate<'_>], keys: &[u64]) -> Vec<usize> {
    let weights = candidates.iter().map(|candidate| u64::from(candidate.weight.get())).sum();
    let resources = u64::try_from(keys.len()).expect("a length");
    let mut bins: Vec<Bin<'_>> = candidates.iter().map(|one| Bin::new(one, resources, weights)).collect();
    let mut owners = Vec::with_capacity(keys.len());
    for key in keys {
        let scores: Vec<u64> = bins.iter().map(|bin| bin.score(*key)).collect();
        let best = |limit: fn(&Bin<'_>) -> u64| {
            let open = bins.iter().enumerate().filter(|(_, bin)| bin.load < limit(bin));
            open.max_by_key(|(at, bin)| (scores[*at], bin.id)).map(|(at, _)| at)
        };
        let Some(owner) = best(|bin| bin.soft).or_else(|| best(|bin| bin.hard)) else { return Vec::new() };
        bins[owner].load += 1;
        owners.push(owner);
    }
    owners
}

#[cfg(test)]
mod tests;
