//! How far each Kafka partition is settled, kept beside the rows that it covers. Engines that keep rows over a
//! restart keep positions too; then they are the truth, and what is committed to Kafka is a copy for lag tools.

use std::collections::{BTreeSet, HashMap};

use parking_lot::Mutex;

use super::{Answer, Error};
use crate::ids::Incarnation;

/// A log of records that positions belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogName {
    /// Kafka's own name for the cluster.
    pub cluster: String,
    /// The topic.
    pub topic: String,
}

/// Keeps positions.
pub trait Positions: Send + Sync + 'static {
    /// Takes partitions for this process, and says where each that is known stands. What another cluster's topic of
    /// the same name left is [`Known::Foreign`]. What another node reads is not in the answer.
    fn take<'a>(&'a self, log: &'a LogName, partitions: &'a [i32]) -> Answer<'a, Vec<(i32, Known)>>;

    /// Sets where taken partitions begin, whatever stood there before. The answer has those that are this process's: of
    /// two nodes that begin with one that nobody has ever read, one gets it.
    fn begin<'a>(&'a self, log: &'a LogName, positions: &'a [(i32, i64)]) -> Answer<'a, Vec<i32>>;

    /// Raises positions of partitions that this process has taken. [`super::Error::Lost`] when one of them is no
    /// longer what it was: somebody else has it, or the store went back.
    fn write<'a>(&'a self, log: &'a LogName, positions: &'a [(i32, i64)]) -> Answer<'a, ()>;

    /// Who has which partition that anybody has ever read, dead or alive, in their order. Nothing where no other node
    /// can have any.
    fn owners<'a>(&'a self, _log: &'a LogName) -> Answer<'a, Vec<(i32, Option<Incarnation>)>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// Gives all partitions away that are this process's, but these: other nodes may read on where the others stand.
    /// Also those of which this process does not know, because the answer to a take was lost. How many there were.
    fn keep_only<'a>(&'a self, _log: &'a LogName, _held: &'a BTreeSet<i32>) -> Answer<'a, usize> {
        Box::pin(std::future::ready(Ok(0)))
    }

    /// Forgets a topic that is gone.
    fn forget<'a>(&'a self, log: &'a LogName) -> Answer<'a, ()>;

    /// Kafka's copies are ahead of what the store knows, so it has lost commits: its log begins a new epoch. The
    /// answer is always an error, [`super::Error::Lost`] when that is done: the process has to begin anew.
    fn went_back<'a>(&'a self, log: &'a LogName, copies: &'a [(i32, i64)]) -> Answer<'a, ()>;
}

/// What the store knows of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing: this store has never read it.
    Nothing,
    /// It was of another cluster.
    Foreign,
    /// Everything before `position` is settled.
    At {
        /// The offset to read next.
        position: i64,
        /// Kafka's copy when it was last found ahead, which is no news any more.
        ahead: Option<i64>,
    },
}

/// A partition that this process has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// The claim's epoch.
    pub(super) epoch: i64,
    /// The last position that was written.
    pub(super) position: i64,
}

/// Why a position did not move.
pub(super) enum Unmoved {
    /// A later write of ours was first, or the partition has begun anew: nothing is wrong.
    Passed,
    /// It stands where it stood before the last write.
    WentBack(Error),
    /// Somebody else has it.
    Taken(Error),
}

impl Held {
    /// Why its position did not move, from the owner, the epoch and the position that are found.
    pub(super) fn explain(self, partition: i32, owner: &str, found: Option<(String, i64, i64)>) -> Unmoved {
        let lost = |reason| Error::Lost { reason };
        let taken = |now: String| {
            let held = format!("this process, {owner}, had it under epoch {}", self.epoch);
            Unmoved::Taken(lost(format!("partition {partition} is not this process's any more: {now}; {held}")))
        };
        match found {
            None => taken("nobody has it".to_owned()),
            Some((found, epoch, _)) if found != owner || epoch < self.epoch => {
                taken(format!("'{found}' has it under epoch {epoch}"))
            }
            Some((_, epoch, position)) if epoch == self.epoch && position < self.position => {
                Unmoved::WentBack(lost(format!("the store went back: partition {partition} was at {}", self.position)))
            }
            Some(_) => Unmoved::Passed,
        }
    }
}

/// Whether a partition, of those found with their epochs and positions, stands before what was written.
pub(super) fn behind(written: &HashMap<i32, Held>, found: &[(i32, i64, i64)]) -> Option<Error> {
    let is_behind = |(partition, epoch, position): &&(i32, i64, i64)| {
        written.get(partition).is_some_and(|held| held.epoch == *epoch && *position < held.position)
    };
    let (partition, _, position) = found.iter().find(is_behind)?;
    Some(Error::Lost { reason: format!("the store went back: partition {partition} is at {position} again") })
}

/// What [`Positions::went_back`] comes to when it is done.
pub(super) fn behind_its_copies() -> Error {
    Error::Lost { reason: "the store went back: Kafka's copies of positions are ahead of its own".into() }
}

/// The partitions that this process has taken: what they must still look like when a position is written.
#[derive(Default)]
pub(super) struct HeldPartitions(Mutex<HashMap<i32, Held>>);

impl HeldPartitions {
    pub(super) fn hold(&self, partition: i32, held: Held) {
        self.0.lock().insert(partition, held);
    }

    /// How a partition is held, if it is.
    pub(super) fn held(&self, partition: i32) -> Option<Held> {
        self.0.lock().get(&partition).copied()
    }

    /// The others are not this process's any more.
    pub(super) fn keep_only(&self, kept: &BTreeSet<i32>) {
        self.0.lock().retain(|partition, _| kept.contains(partition));
    }

    /// The positions that are above the last ones written, with what they follow.
    pub(super) fn moved(&self, positions: &[(i32, i64)]) -> Vec<(i32, Held, i64)> {
        let held = self.0.lock();
        let moved = |(partition, position): &(i32, i64)| {
            let held = held.get(partition).filter(|held| held.position < *position)?;
            Some((*partition, *held, *position))
        };
        positions.iter().filter_map(moved).collect()
    }

    /// Notes what was written while the partition was held like this.
    pub(super) fn written(&self, partition: i32, then: Held, position: i64) {
        if let Some(held) = self.0.lock().get_mut(&partition).filter(|held| held.epoch == then.epoch) {
            held.position = held.position.max(position);
        }
    }

    /// What must be found at least, by whoever looks afterwards.
    pub(super) fn written_by_now(&self) -> HashMap<i32, Held> {
        self.0.lock().clone()
    }

    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}
