//! Which shard a user belongs to, and which node should own which shard. Pure, and fixed for ever: a cluster's
//! nodes, old and new, must agree. And in which steps what has to move goes there.

pub mod assignment;
pub mod handover;
pub mod owners;

use xxhash_rust::xxh3::xxh3_64;

/// One of a fixed number of shards; each user belongs to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

/// The user's shard: XXH3-64 of the id, modulo the number of shards.
#[must_use]
pub fn shard(user: &str, shards: u16) -> ShardId {
    let hash = xxh3_64(user.as_bytes()) % u64::from(shards.max(1));
    ShardId(u16::try_from(hash).expect("a remainder below a u16 fits one"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_shard_never_changes() {
        // From the reference implementation of XXH3, in Python.
        for (user, expected) in [("101", 82), ("alice", 688), ("用户", 111), ("", 194)] {
            assert_eq!(shard(user, 1024).0, expected, "{user}");
        }
    }

    #[test]
    fn users_spread_over_all_shards() {
        let mut counts = vec![0u32; 256];
        for user in 0..256_000 {
            counts[usize::from(shard(&user.to_string(), 256).0)] += 1;
        }
        let (low, high) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*low > 850 && *high < 1150, "{low}..{high} users a shard, 1000 expected");
    }
}
