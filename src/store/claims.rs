//! Who owns which shard and which Kafka partition. Every claim has an epoch, which rises with each owner, and each
//! take names the epoch that it has read: of two takers one gets it. Only an active member gets anything, and only what
//! is nobody's, its own, or of one that is not alive in the table of members.

use super::{Answer, positions::LogName};
use crate::{ids::Incarnation, placement::ShardId};

/// Rises with every owner.
pub type Epoch = i64;

/// A shard's claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardClaim {
    /// The shard.
    pub shard: ShardId,
    /// Who owns it, alive or not; none: it was released, or never taken.
    pub owner: Option<Incarnation>,
    /// What the next take names.
    pub epoch: Epoch,
}

/// A partition's claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionClaim {
    /// The partition.
    pub partition: i32,
    /// Who owns it, alive or not; none: it was released.
    pub owner: Option<Incarnation>,
    /// What the next take names.
    pub epoch: Epoch,
    /// Kafka's own name for the cluster that the position belongs to.
    pub cluster: String,
    /// Everything before this offset is settled.
    pub position: i64,
    /// Kafka's copy when it was last found ahead, which is no news any more.
    pub ahead: Option<i64>,
}

/// Where a partition is to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// The partition.
    pub partition: i32,
    /// The epoch under which the beginner holds it; 0: nobody has ever read it.
    pub epoch: Epoch,
    /// The first offset to read.
    pub position: i64,
}

/// Keeps claims. Every call is one statement: what is not in its answer was another's, or has moved on.
pub trait Claims: Send + Sync + 'static {
    /// All shards.
    fn shards(&self) -> Answer<'_, Vec<ShardClaim>>;

    /// Takes shards whose epochs are as named. The answer has those that were taken, with their new epochs; where
    /// users' logs end is to be read after it.
    fn take_shards<'a>(&'a self, me: Incarnation, wanted: &'a [(ShardId, Epoch)]) -> Answer<'a, Vec<(ShardId, Epoch)>>;

    /// Gives shards away that this member holds under these epochs: nothing is written under them any more. The answer
    /// has those that it did hold.
    fn release_shards<'a>(&'a self, me: Incarnation, held: &'a [(ShardId, Epoch)]) -> Answer<'a, Vec<ShardId>>;

    /// All partitions of a topic that anybody has ever read.
    fn partitions<'a>(&'a self, topic: &'a str) -> Answer<'a, Vec<PartitionClaim>>;

    /// Takes partitions whose epochs are as named. The answer has those that were taken, as they are now.
    fn take_partitions<'a>(
        &'a self,
        me: Incarnation,
        topic: &'a str,
        wanted: &'a [(i32, Epoch)],
    ) -> Answer<'a, Vec<PartitionClaim>>;

    /// Takes partitions that nobody has ever read, and sets where those begin that this member holds. The answer has
    /// those of which that is true now, with their new epochs.
    fn begin_partitions<'a>(
        &'a self,
        me: Incarnation,
        log: &'a LogName,
        beginnings: &'a [Beginning],
    ) -> Answer<'a, Vec<(i32, Epoch)>>;

    /// Gives partitions away. Their positions were written before. The answer has those that this member did hold.
    fn release_partitions<'a>(
        &'a self,
        me: Incarnation,
        topic: &'a str,
        held: &'a [(i32, Epoch)],
    ) -> Answer<'a, Vec<i32>>;
}
