//! What moves next; and nodes that come and go while everybody gives and takes in any order.

use std::{collections::BTreeSet, num::NonZeroU8};

use proptest::prelude::*;

use super::*;
use crate::placement::assignment::{self, Candidate};

const SHARDS: u16 = 256;

#[test]
fn a_batch_is_a_share_of_all_and_bounded() {
    assert_eq!([1, 6, 16, 31, 64, 1024, 16_384].map(|count| batch(count, 64)), [1, 1, 1, 1, 4, 64, 64]);
    assert_eq!([12, 32, 1024].map(|count| batch(count, 8)), [1, 2, 8]);
}

#[test]
fn what_nobody_has_takes_up_room() {
    let [a, b] = [Incarnation::random(), Incarnation::random()];
    let claims = |free: u16| (0..10).map(move |one: u16| (one, (one >= free).then_some(a), b));
    let mine: Vec<u16> = (0..10).collect();
    let next = |free| Pace::default().next(Instant::now(), &mine[usize::from(free)..], &Moves::new(4, claims(free)));
    assert_eq!(next(0), [0, 1, 2, 3]);
    assert_eq!(next(1), [1, 2, 3]);
    assert_eq!(next(3), [3]);
    assert!(next(4).is_empty() && next(7).is_empty());
}

#[test]
fn what_another_one_gives_away_just_now_keeps_its_place() {
    let [a, b, c] = [(); 3].map(|()| Incarnation::random());
    // Who gives what does not show before it is released.
    let claims = (0..8u16).map(|one| (one, Some(if one % 2 == 0 { a } else { b }), c));
    let moves = Moves::new(4, claims);
    assert_eq!(Pace::default().next(Instant::now(), &[0, 2, 4, 6], &moves), [0, 2]);
    assert_eq!(Pace::default().next(Instant::now(), &[1, 3, 5, 7], &moves), [1, 3]);
}

#[test]
fn what_the_claims_do_not_have_waits_for_nobody() {
    let a = Incarnation::random();
    let moves = Moves::new(1, (0..4u16).map(|one| (one, None, a)));
    assert_eq!(Pace::default().next(Instant::now(), &[9], &moves), [9]);
}

#[test]
fn what_nobody_takes_holds_up_the_rest_for_a_while_only() {
    let [a, b] = [Incarnation::random(), Incarnation::random()];
    let moves = |free: u16| Moves::new(2, (0..8).map(move |one: u16| (one, (one >= free).then_some(a), b)));
    let (mut pace, began) = (Pace::default(), Instant::now());
    let mine: Vec<u16> = (2..8).collect();
    assert!(pace.next(began, &mine, &moves(2)).is_empty());
    assert!(pace.next(began + PATIENCE / 2, &mine, &moves(2)).is_empty());
    let late = began + PATIENCE;
    assert_eq!(pace.next(late, &mine, &moves(2)), [2, 3], "one batch");
    assert!(pace.next(late, &mine[2..], &moves(4)).is_empty(), "and the next one when that is taken, or as long after");
    assert_eq!(pace.next(late + PATIENCE, &mine[2..], &moves(4)), [4, 5]);
    assert!(pace.next(late + PATIENCE, &[], &moves(4)).is_empty());
    assert!(pace.next(late + 4 * PATIENCE, &mine[2..], &moves(4)).is_empty(), "nothing to give: that time counts not");
}

#[test]
fn who_does_not_let_go_holds_up_the_others_for_a_while_and_once() {
    let [a, slow, c] = [(); 3].map(|()| Incarnation::random());
    let given = |given: u16| {
        (0..10).map(move |one| {
            (
                one,
                Some(if one < 6 {
                    slow
                } else if one < given {
                    c
                } else {
                    a
                }),
                c,
            )
        })
    };
    let moves = |already| Moves::new(2, given(already));
    let (mut pace, began) = (Pace::default(), Instant::now());
    assert!(pace.next(began, &[6, 7, 8, 9], &moves(6)).is_empty());
    let late = began + PATIENCE;
    assert_eq!(pace.next(late, &[6, 7, 8, 9], &moves(6)), [6, 7], "a batch");
    assert_eq!(pace.next(late, &[8, 9], &moves(8)), [8, 9], "and the next one as soon as that is taken");
    // It has let go of what stood still, and has its turn again.
    let moves = Moves::new(2, given(6).filter(|(one, ..)| *one >= 2));
    assert!(pace.next(late, &[6, 7, 8, 9], &moves).is_empty());
}

#[test]
fn what_a_node_cannot_let_go_itself_holds_up_the_rest_of_its_own_for_a_while_only() {
    let [a, b] = [Incarnation::random(), Incarnation::random()];
    let moves = Moves::new(2, (0..6u16).map(|one| (one, Some(a), b)));
    let (mut pace, began) = (Pace::default(), Instant::now());
    assert!(pace.next(began, &[2, 3, 4, 5], &moves).is_empty());
    assert_eq!(pace.next(began + PATIENCE, &[2, 3, 4, 5], &moves), [2, 3]);
}

/// A claim as the store has it.
#[derive(Clone, Copy)]
struct Claim {
    owner: Option<Incarnation>,
    epoch: u64,
}

/// Nodes that give and take by what they have read, each step after the other, in any order among each other.
struct World {
    names: Vec<(String, Incarnation)>,
    claims: Vec<Claim>,
    targets: Vec<Incarnation>,
    nodes: Vec<Node>,
    now: Instant,
}

#[derive(Clone, Default)]
struct Node {
    pace: Pace<u16>,
    /// What it has read, until it has given and taken by it.
    read: Option<Vec<Claim>>,
    giving: BTreeSet<u16>,
}

impl World {
    /// Everything is where it should be among the first `count` of so many nodes.
    fn settled(names: usize, count: usize) -> Self {
        let names: Vec<_> = (0..names).map(|n| (format!("n{n}"), Incarnation::random())).collect();
        let nodes = vec![Node::default(); names.len()];
        let mut world = Self { names, claims: Vec::new(), targets: Vec::new(), nodes, now: Instant::now() };
        world.aim(0..count);
        world.claims = world.targets.iter().map(|owner| Claim { owner: Some(*owner), epoch: 1 }).collect();
        world
    }

    fn aim(&mut self, nodes: std::ops::Range<usize>) {
        let names = &self.names[nodes];
        let candidates: Vec<_> = names.iter().map(|(id, _)| Candidate { id, weight: NonZeroU8::MIN }).collect();
        self.targets = assignment::shards(&candidates, SHARDS).into_iter().map(|at| names[at].1).collect();
    }

    /// The next step of one node: it reads the claims and begins to give away, has given away, takes.
    fn step(&mut self, node: usize) {
        let me = self.names[node].1;
        let state = &mut self.nodes[node];
        if !state.giving.is_empty() {
            for one in std::mem::take(&mut state.giving) {
                self.claims[usize::from(one)].owner = None;
            }
            return;
        }
        let Some(read) = state.read.take() else {
            state.read = Some(self.claims.clone());
            let claims = (0..SHARDS).zip(&self.claims).zip(&self.targets);
            let claims: Vec<_> = claims.map(|((one, claim), target)| (one, claim.owner, *target)).collect();
            let is_mine =
                |(_, owner, target): &&(u16, Option<Incarnation>, Incarnation)| *owner == Some(me) && *target != me;
            let mine: Vec<u16> = claims.iter().filter(is_mine).map(|(one, ..)| *one).collect();
            let moves = Moves::new(batch(claims.len(), 64), claims);
            state.giving = state.pace.next(self.now, &mine, &moves).into_iter().collect();
            return;
        };
        for (at, claim) in
            read.iter().enumerate().filter(|(at, claim)| claim.owner.is_none() && self.targets[*at] == me)
        {
            if self.claims[at].epoch == claim.epoch && self.claims[at].owner.is_none() {
                self.claims[at] = Claim { owner: Some(me), epoch: claim.epoch + 1 };
            }
        }
    }

    fn on_the_way(&self) -> usize {
        let giving: usize = self.nodes.iter().map(|node| node.giving.len()).sum();
        giving + self.claims.iter().filter(|claim| claim.owner.is_none()).count()
    }

    fn is_settled(&self) -> bool {
        self.claims.iter().zip(&self.targets).all(|(claim, target)| claim.owner == Some(*target))
    }

    /// Takes steps in this order, over and over, until all is settled; the most that was ever on its way.
    fn settle(&mut self, order: &[usize]) -> usize {
        let mut most = 0;
        for round in 0.. {
            assert!(round < 1000, "it stands still");
            let steps = order.iter().copied().chain(0..self.nodes.len());
            for node in steps.collect::<Vec<_>>() {
                self.step(node);
                most = most.max(self.on_the_way());
            }
            if self.is_settled() {
                return most;
            }
        }
        unreachable!("it has counted for ever")
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However the nodes' steps fall between each other, no more than a batch is on its way, and all of it arrives.
    #[test]
    fn a_join_and_a_leave_move_one_batch_at_a_time(
        count in 2..6usize,
        order in proptest::collection::vec(0..6usize, 0..60),
    ) {
        let most = batch(usize::from(SHARDS), 64);
        let order: Vec<usize> = order.into_iter().map(|node| node % (count + 1)).collect();
        let mut world = World::settled(count + 1, count);
        let before = world.targets.clone();
        world.aim(0..count + 1);
        let moved = before.iter().zip(&world.targets).filter(|(from, to)| from != to).count();
        prop_assert!(moved > most, "{moved} move: more than one batch");
        let joined = world.settle(&order);
        prop_assert!(joined <= most, "{joined} at once when one joined");
        world.aim(1..count + 1);
        let left = world.settle(&order);
        prop_assert!(left <= most, "{left} at once when one left");
        prop_assert!(joined > 0 && left > 0);
    }
}
