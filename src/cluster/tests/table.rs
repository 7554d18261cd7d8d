//! What the table in the store does, without the store: the pattern for engines, and the truth in simulations.

use std::{collections::HashMap, time::Duration};

use crate::{
    cluster::{
        changes::Change,
        table::{Changed, Renewed},
        view::View,
    },
    ids::Incarnation,
};

/// The table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    view: View,
    died: HashMap<Incarnation, Duration>,
}

impl Table {
    /// Its view, at a time of the store's clock.
    pub(crate) fn view(&self, now: Duration) -> View {
        let mut view = self.view.clone();
        for member in &mut view.members {
            let died = self.died.get(&member.node.incarnation);
            member.dead_for = died.map_or(Duration::ZERO, |died| now.saturating_sub(*died));
        }
        view
    }

    /// Changes it, if the change was made of what stands there.
    pub(crate) fn change(&mut self, change: &Change, now: Duration) -> Changed {
        let moved = |(one, counter): (Incarnation, u64)| self.view.member(one).is_none_or(|it| it.counter != counter);
        if change.unmoved.is_some_and(moved) {
            return Changed::Overtaken;
        }
        let Some(next) = self.view.after(change) else { return Changed::Overtaken };
        for member in next.members.iter().filter(|member| !member.is_alive()) {
            self.died.entry(member.node.incarnation).or_insert(now);
        }
        self.died.retain(|one, _| next.member(*one).is_some());
        self.view = next;
        Changed::Done(self.view.version)
    }

    /// Raises a living member's counter.
    pub(crate) fn renew(&mut self, me: Incarnation) -> Renewed {
        let mine = self.view.members.iter_mut().find(|member| member.node.incarnation == me && member.is_alive());
        let is_alive = mine.map(|member| member.counter += 1).is_some();
        let counters = self.view.living().map(|member| (member.node.incarnation, member.counter)).collect();
        Renewed { version: self.view.version, is_alive, counters }
    }
}
