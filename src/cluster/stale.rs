//! Whose row has not moved: the way out when nobody may vote, since most members died at once.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{RENEW_EVERY, view::View};
use crate::ids::Incarnation;

/// So many renewals of one's own without one of the other.
const RENEWALS: u64 = 5;
/// Renewals that follow each other faster count as one: after the store stood still, everybody gets its time.
const APART: Duration = RENEW_EVERY.saturating_mul(4).checked_div(5).expect("not by zero");

/// What a member sees of the others' counters, measured by its own renewals.
#[derive(Debug, Default)]
pub struct Staleness {
    renewals: u64,
    last: Option<Instant>,
    /// Each one's counter, and the first renewal that saw it.
    seen: HashMap<Incarnation, (u64, u64)>,
    declared: Option<u64>,
}

impl Staleness {
    /// This member has renewed its row, and seen these counters in the same moment.
    pub fn renewed(&mut self, now: Instant, counters: &[(Incarnation, u64)]) {
        if self.last.is_none_or(|last| now.saturating_duration_since(last) >= APART) {
            self.renewals += 1;
            self.last = Some(now);
        }
        self.seen.retain(|one, _| counters.iter().any(|(other, _)| other == one));
        for (one, counter) in counters {
            let seen = self.seen.entry(*one).or_insert((*counter, self.renewals));
            if seen.0 != *counter {
                *seen = (*counter, self.renewals);
            }
        }
    }

    /// The member that may be declared dead now, with the counter that it must still have: the one that has not moved
    /// for longest, and the oldest of those. The renewal that saw a counter move for the last time came after the move,
    /// so it is the first that counts.
    #[must_use]
    pub fn stale(&self, view: &View, me: Incarnation) -> Option<(Incarnation, u64)> {
        if self.declared.is_some_and(|at| self.renewals < at + RENEWALS) {
            return None;
        }
        let others = view.living().map(|member| member.node.incarnation).filter(|one| *one != me);
        let seen = others.filter_map(|one| self.seen.get(&one).map(|(counter, at)| (one, *counter, *at)));
        let stale = seen.filter(|(_, _, at)| self.renewals + 1 >= at + RENEWALS).min_by_key(|(_, _, at)| *at);
        stale.map(|(one, counter, _)| (one, counter))
    }

    /// One was declared dead: the next has time until as many renewals have passed.
    pub fn declared(&mut self) {
        self.declared = Some(self.renewals);
    }
}
