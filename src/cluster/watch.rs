//! What one member makes of all it sees: whom it probes and asks, and which change of the view it wants. The one who
//! does its I/O calls [`Watch::turn`] every [`super::probe::PROBE_EVERY`] and does what it says, tells of every answer,
//! and, as soon as [`Watch::wants`] wants something of the view it knows, reads the view, asks again, and tries that
//! change.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use super::{
    changes::Change,
    probe::{self, Prober},
    stale::Staleness,
    view::{Member, State, View},
    votes::Poll,
};
use crate::ids::Incarnation;

/// A question to another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Is it there? Any answer is told by [`Watch::heard`], and "nothing listens here" by [`Watch::refused`].
    Probe(Incarnation),
    /// Does it hear another one? It probes that one, waits for [`probe::PROBE_EVERY`], and says so: [`Watch::told`].
    Hears {
        /// Who is asked.
        whom: Incarnation,
        /// The one that is silent here.
        about: Incarnation,
        /// Goes with the answer.
        poll: u64,
    },
}

/// One member's watch over the others.
#[derive(Debug)]
pub struct Watch {
    me: Incarnation,
    prober: Prober,
    polls: HashMap<Incarnation, (u64, Poll)>,
    polls_begun: u64,
    refused: HashSet<Incarnation>,
    staleness: Staleness,
    living: HashSet<Incarnation>,
}

impl Watch {
    /// Of a member that has joined.
    #[must_use]
    pub fn new(me: Incarnation) -> Self {
        Self {
            me,
            prober: Prober::default(),
            polls: HashMap::new(),
            polls_begun: 0,
            refused: HashSet::new(),
            staleness: Staleness::default(),
            living: HashSet::new(),
        }
    }

    /// The next turn: what to ask now.
    #[must_use]
    pub fn turn(&mut self, now: Instant, view: &View) -> Vec<Question> {
        self.note(view);
        let targets = probe::targets(view, self.me);
        self.prober.turn(now, &targets);
        let prober = &self.prober;
        self.polls.retain(|subject, (_, poll)| prober.is_silent(*subject) && !poll.is_over(now));
        let mut questions: Vec<Question> = targets.iter().copied().map(Question::Probe).collect();
        for about in targets {
            if self.prober.is_silent(about) && !self.polls.contains_key(&about) {
                self.polls_begun += 1;
                let poll = self.polls_begun;
                self.polls.insert(about, (poll, Poll::new(self.me, now)));
                let others = view.living().map(|member| member.node.incarnation);
                let others = others.filter(|one| *one != self.me && *one != about);
                questions.extend(others.map(|whom| Question::Hears { whom, about, poll }));
            }
        }
        questions
    }

    /// A member has answered a probe, or has sent anything else.
    pub fn heard(&mut self, from: Incarnation) {
        self.prober.heard(from);
        self.polls.remove(&from);
        self.refused.remove(&from);
    }

    /// A member's host says that nothing listens there, or somebody else answers in its place.
    pub fn refused(&mut self, member: Incarnation) {
        self.refused.insert(member);
    }

    /// A member has said whether it hears another one.
    pub fn told(&mut self, from: Incarnation, about: Incarnation, poll: u64, hears: bool) {
        if let Some((_, current)) = self.polls.get_mut(&about).filter(|(number, _)| *number == poll) {
            current.answer(from, hears);
        }
    }

    /// This member has renewed its row.
    pub fn renewed(&mut self, now: Instant, counters: &[(Incarnation, u64)]) {
        self.staleness.renewed(now, counters);
    }

    /// The change that this member wants of a view: deaths that it may declare, its votes, what is to be forgotten.
    #[must_use]
    pub fn wants(&mut self, now: Instant, view: &View) -> Option<Change> {
        self.note(view);
        view.alive(self.me)?;
        self.wants_refused(view)
            .or_else(|| self.wants_vote(now, view))
            .or_else(|| self.wants_withdrawal(view))
            .or_else(|| self.wants_stale(view))
            .or_else(|| view.forget())
    }

    fn wants_refused(&self, view: &View) -> Option<Change> {
        let mut refused: Vec<Incarnation> = self.refused.iter().copied().collect();
        refused.sort_unstable();
        view.declare_refused(self.me, &refused).ok()
    }

    /// Who is not active yet votes against nobody: it may be itself that nobody reaches, and in a view of two each may
    /// vote alone.
    fn wants_vote(&self, now: Instant, view: &View) -> Option<Change> {
        view.alive(self.me).filter(|me| me.state != State::Joining)?;
        let won = |member: &&Member| {
            let poll = self.polls.get(&member.node.incarnation);
            poll.is_some_and(|(_, poll)| !poll.is_over(now) && poll.is_won(view))
        };
        view.living().filter(won).find_map(|member| view.vote(self.me, member.node.incarnation).ok().flatten())
    }

    fn wants_withdrawal(&self, view: &View) -> Option<Change> {
        let heard = view.living().map(|member| member.node.incarnation).filter(|one| self.prober.is_heard(*one));
        heard.clone().find_map(|one| view.withdraw(self.me, one).ok().flatten())
    }

    fn wants_stale(&self, view: &View) -> Option<Change> {
        let (one, counter) = self.staleness.stale(view, self.me)?;
        view.declare_stale(self.me, one, counter).ok()
    }

    /// Whoever declares deaths, they come one after the other: each gives the next stale one its time.
    fn note(&mut self, view: &View) {
        let living: HashSet<Incarnation> = view.living().map(|member| member.node.incarnation).collect();
        if self.living.iter().any(|one| !living.contains(one)) {
            self.staleness.declared();
        }
        self.refused.retain(|one| living.contains(one));
        self.polls.retain(|one, _| living.contains(one));
        self.living = living;
    }
}
