//! When silence is death: two members say so, and each of them could say so for more than half of the view.
//!
//! Why a member that more than half of the view hears is never voted dead: before it votes, a member asks all others
//! whether they hear the silent one, and counts only itself and those who say that they do not. When those are at least
//! half of the view, at most half of it hears the silent one. So a link that is cut between two nodes costs neither its
//! life, however many such links there are, and of a view that has fallen apart only the greater part declares deaths.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use super::{
    probe::PROBE_EVERY,
    view::{Member, View, Vote},
};
use crate::ids::Incarnation;

/// So many votes make a death; one, where only one other is left.
const VOTES: usize = 2;
/// A vote is given up when its voter has renewed so often since: a voter that has not withdrawn may have died.
pub const VOTE_RENEWALS: u64 = 10;
/// How long others have for their answer: a probe of theirs, and the way there and back.
const POLL: Duration = Duration::from_millis(3 * 300);
const _: () = assert!(POLL.as_millis() == 3 * PROBE_EVERY.as_millis());

/// Whether those who do not hear a member may vote for its death: they are more than half of the view, or exactly half
/// of it with its oldest member among them. In a view of two each may.
#[must_use]
pub fn may_vote(view: &View, not_hearing: &HashSet<Incarnation>) -> bool {
    let all = view.living().count();
    let counted = view.living().filter(|member| not_hearing.contains(&member.node.incarnation)).count();
    let oldest = view.living().next().is_some_and(|oldest| not_hearing.contains(&oldest.node.incarnation));
    all == 2 || counted * 2 > all || (counted * 2 == all && oldest)
}

/// How many votes it takes in this view.
#[must_use]
pub fn votes_needed(view: &View) -> usize {
    view.living().count().saturating_sub(1).clamp(1, VOTES)
}

/// The votes against a member that still count: of members that are alive, and not too old.
pub fn standing<'v>(view: &'v View, subject: &'v Member) -> impl Iterator<Item = Vote> + 'v {
    let stands =
        |vote: &Vote| view.alive(vote.by).is_some_and(|voter| voter.counter.saturating_sub(vote.at) < VOTE_RENEWALS);
    subject.votes.iter().copied().filter(move |vote| stands(vote))
}

/// A member that finds another one silent asks everybody whether they hear it.
#[derive(Debug)]
pub struct Poll {
    started: Instant,
    not_hearing: HashSet<Incarnation>,
}

impl Poll {
    /// Begins one; `me` does not hear the subject.
    #[must_use]
    pub fn new(me: Incarnation, now: Instant) -> Self {
        Self { started: now, not_hearing: HashSet::from([me]) }
    }

    /// Somebody says whether it hears the subject. A member from which no answer comes counts as one that does.
    pub fn answer(&mut self, from: Incarnation, hears: bool) {
        if hears {
            self.not_hearing.remove(&from);
        } else {
            self.not_hearing.insert(from);
        }
    }

    /// Whether enough have answered for a vote.
    #[must_use]
    pub fn is_won(&self, view: &View) -> bool {
        may_vote(view, &self.not_hearing)
    }

    /// Whether its answers are too old to count.
    #[must_use]
    pub fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.started) >= POLL
    }
}
