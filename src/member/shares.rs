//! Which partitions this node should read, as one view has it, and which of all move next.

use std::{collections::BTreeSet, sync::Arc};

use super::ownership::incarnations;
use crate::{
    cluster::view::View,
    ids::Incarnation,
    ingest::Choice,
    placement::{
        assignment,
        handover::{self, Moves},
    },
};

/// No more partitions than this are on their way at a time, of all nodes': nobody reads them meanwhile. Each batch costs
/// some statements and questions to Kafka, some tens of milliseconds; of 128 partitions it is a sixteenth.
const PARTITIONS_AT_ONCE: usize = 8;

/// What the members of a view share out among them.
pub(super) struct Shares {
    pub(super) me: Incarnation,
    pub(super) topic: String,
    pub(super) view: Arc<View>,
}

impl Shares {
    /// Who should read each partition. Empty: nobody can.
    fn targets(&self, there: &[i32]) -> Vec<Incarnation> {
        let count = there.iter().max().map_or(0, |last| last.unsigned_abs() + 1);
        let candidates = self.view.candidates();
        incarnations(&self.view, &candidates, assignment::partitions(&candidates, &self.topic, count))
    }
}

fn of(targets: &[Incarnation], partition: i32) -> Option<Incarnation> {
    targets.get(usize::try_from(partition).ok()?).copied()
}

impl Choice for Shares {
    fn mine(&self, there: &[i32]) -> BTreeSet<i32> {
        let targets = self.targets(there);
        there.iter().copied().filter(|partition| of(&targets, *partition) == Some(self.me)).collect()
    }

    fn moves(&self, there: &[i32], owners: &[(i32, Option<Incarnation>)]) -> Option<Moves<i32>> {
        let targets = self.targets(there);
        if targets.is_empty() {
            return None;
        }
        let alive = |owner: &Incarnation| self.view.alive(*owner).is_some();
        let claims = owners
            .iter()
            .filter_map(|(partition, owner)| Some((*partition, owner.filter(alive), of(&targets, *partition)?)));
        Some(Moves::new(handover::batch(there.len(), PARTITIONS_AT_ONCE), claims))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU8;

    use super::*;
    use crate::{
        cluster::view::{Member, Node, State},
        ids::NodeId,
        placement::handover::Pace,
    };

    fn member(id: &str, state: State) -> Member {
        let (id, incarnation, addresses) = (NodeId::new(id).unwrap(), Incarnation::random(), Vec::new());
        let node = Node { id, incarnation, addresses, zone: String::new(), weight: NonZeroU8::MIN, is_alone: false };
        Member { node, state, joined: 1, counter: 0, votes: Vec::new(), dead_for: std::time::Duration::ZERO }
    }

    fn shares(members: &[Member], me: usize) -> Shares {
        let view = Arc::new(View { version: 7, members: members.to_vec() });
        Shares { me: members[me].node.incarnation, topic: "t".to_owned(), view }
    }

    /// Of a node that leaves one batch is let go, and nothing more before that one is taken.
    #[test]
    fn partitions_of_a_node_that_leaves_go_in_batches() {
        let members = [member("a", State::Draining), member("b", State::Active), member("c", State::Active)];
        let leaving = shares(&members, 0);
        let there: Vec<i32> = (0..64).collect();
        assert!(leaving.mine(&there).is_empty());
        let mut owners: Vec<_> = there.iter().map(|one| (*one, Some(leaving.me))).collect();
        let mut held = there.clone();
        let mut pace = Pace::default();
        let mut batches = 0;
        while !held.is_empty() {
            let mut next = |owners: &[_], held: &[i32]| {
                pace.next(std::time::Instant::now(), held, &leaving.moves(&there, owners).expect("there are others"))
            };
            let batch = next(&owners, &held);
            assert_eq!(batch.len(), 4, "a sixteenth of 64");
            held.retain(|one| !batch.contains(one));
            batch.iter().for_each(|one| owners[*one as usize].1 = None);
            assert!(next(&owners, &held).is_empty(), "nobody has taken them yet");
            let taker = |one: &i32| [1, 2].into_iter().find(|at| shares(&members, *at).mine(&there).contains(one));
            batch.iter().for_each(|one| owners[*one as usize].1 = Some(members[taker(one).unwrap()].node.incarnation));
            batches += 1;
        }
        assert_eq!(batches, 16);
    }

    /// What a dead member had is nobody's; where nobody is left, nobody is waited for.
    #[test]
    fn the_dead_own_nothing_and_the_last_one_waits_for_nobody() {
        let members = [member("a", State::Draining), member("b", State::Dead), member("c", State::Active)];
        let there: Vec<i32> = (0..16).collect();
        let owner = |one: i32| Some(members[usize::from(one == 3)].node.incarnation);
        let owners: Vec<_> = there.iter().map(|one| (*one, owner(*one))).collect();
        let moves = shares(&members, 0).moves(&there, &owners).expect("there is another one");
        assert!(Pace::default().next(std::time::Instant::now(), &[0], &moves).is_empty(), "3 is on its way");
        assert!(shares(&members[..2], 0).moves(&there, &owners).is_none());
    }
}
