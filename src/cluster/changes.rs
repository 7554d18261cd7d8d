//! What may become of a view: each change is made of the view that was read, by a member that is alive in it, and holds
//! only if nobody was faster.

use std::time::Duration;

use super::{
    view::{Member, Node, State, Version, View, Vote},
    votes,
};
use crate::ids::{Incarnation, NodeId};

/// How long a dead member stays in the table, by the store's clock.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// One step from a view to the next. It happens whole, or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The version that it was made of: no other one may stand in the table.
    pub base: Version,
    /// Rows as they are to be, but for the counters of those that are there already.
    pub put: Vec<Member>,
    /// Rows to remove.
    pub forgotten: Vec<Incarnation>,
    /// It holds only as long as this member's counter is this.
    pub unmoved: Option<(Incarnation, u64)>,
}

/// Why a change cannot be made of a view.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Whoever wants it is dead, and ends.
    #[error("this node has been declared dead")]
    Dead,
    /// Whom it is about is dead already, or was never there.
    #[error("that member is not alive")]
    Gone,
    /// There is no such way.
    #[error("a member cannot go from {from:?} to {to:?}")]
    NoWay {
        /// Its state.
        from: State,
        /// The one that was wanted.
        to: State,
    },
    /// This incarnation is in the table.
    #[error("this incarnation has joined already")]
    Joined,
    /// A node that may be alive stands in the way.
    #[error("node {id} is there already")]
    Rival {
        /// Its name: the same as the newcomer's, unless one of the two shares its store with nobody.
        id: NodeId,
    },
}

impl View {
    /// The members that a newcomer must not meet alive: earlier incarnations of its node, and all others when it, or
    /// one of them, shares its store with nobody.
    #[must_use]
    pub fn rivals(&self, newcomer: &Node) -> Vec<&Member> {
        let is_rival = |member: &&Member| newcomer.is_alone || member.node.is_alone || member.node.id == newcomer.id;
        self.living().filter(is_rival).collect()
    }

    /// A newcomer joins. Its rivals are dead: it has seen that, and says so in the same step.
    ///
    /// # Errors
    /// When a rival is not among the dead, or it has joined already.
    pub fn join(&self, newcomer: Node, dead: &[Incarnation]) -> Result<Change, Refused> {
        if self.member(newcomer.incarnation).is_some() {
            return Err(Refused::Joined);
        }
        let rivals = self.rivals(&newcomer);
        if let Some(rival) = rivals.iter().find(|rival| !dead.contains(&rival.node.incarnation)) {
            return Err(Refused::Rival { id: rival.node.id.clone() });
        }
        let mut put: Vec<Member> = rivals.into_iter().map(buried).collect();
        put.push(Member {
            node: newcomer,
            state: State::Joining,
            joined: self.version + 1,
            counter: 0,
            votes: Vec::new(),
            dead_for: Duration::ZERO,
        });
        Ok(self.change(put))
    }

    /// A member is ready to own something.
    ///
    /// # Errors
    /// When it is dead, or has been there before.
    pub fn activate(&self, me: Incarnation) -> Result<Change, Refused> {
        self.step(me, State::Active)
    }

    /// A member is about to leave.
    ///
    /// # Errors
    /// When it is dead, or leaves already.
    pub fn drain(&self, me: Incarnation) -> Result<Change, Refused> {
        self.step(me, State::Draining)
    }

    /// A member has left: what it still owns is anybody's.
    ///
    /// # Errors
    /// When others have said so before.
    pub fn leave(&self, me: Incarnation) -> Result<Change, Refused> {
        self.step(me, State::Dead)
    }

    fn step(&self, me: Incarnation, to: State) -> Result<Change, Refused> {
        let member = self.alive(me).ok_or(Refused::Dead)?;
        if !member.state.leads_to(to) {
            return Err(Refused::NoWay { from: member.state, to });
        }
        Ok(self.change(vec![Member { state: to, ..member.clone() }]))
    }

    /// The hosts of these members say that nothing listens there, or something else does.
    ///
    /// # Errors
    /// When this member is dead itself, or all of them are.
    pub fn declare_refused(&self, me: Incarnation, refused: &[Incarnation]) -> Result<Change, Refused> {
        self.alive(me).ok_or(Refused::Dead)?;
        let others = refused.iter().filter(|one| **one != me).filter_map(|one| self.alive(*one));
        let put: Vec<Member> = others.map(buried).collect();
        if put.is_empty() { Err(Refused::Gone) } else { Ok(self.change(put)) }
    }

    /// A member votes against one that is silent; the last vote that it takes is its death. None: its vote stands.
    ///
    /// # Errors
    /// When one of the two is dead.
    pub fn vote(&self, me: Incarnation, silent: Incarnation) -> Result<Option<Change>, Refused> {
        let voter = self.alive(me).ok_or(Refused::Dead)?;
        let subject = self.alive(silent).filter(|_| silent != me).ok_or(Refused::Gone)?;
        let mut votes: Vec<Vote> = votes::standing(self, subject).collect();
        let has_voted = votes.iter().any(|vote| vote.by == me);
        if !has_voted {
            votes.push(Vote { by: me, at: voter.counter });
        }
        if votes.len() >= votes::votes_needed(self) {
            return Ok(Some(self.change(vec![Member { votes, ..buried(subject) }])));
        }
        Ok((!has_voted).then(|| self.change(vec![Member { votes, ..subject.clone() }])))
    }

    /// A member hears again whom it has voted against. None: no vote of its stands.
    ///
    /// # Errors
    /// When one of the two is dead.
    pub fn withdraw(&self, me: Incarnation, heard: Incarnation) -> Result<Option<Change>, Refused> {
        self.alive(me).ok_or(Refused::Dead)?;
        let subject = self.alive(heard).ok_or(Refused::Gone)?;
        if !votes::standing(self, subject).any(|vote| vote.by == me) {
            return Ok(None);
        }
        let votes = votes::standing(self, subject).filter(|vote| vote.by != me).collect();
        Ok(Some(self.change(vec![Member { votes, ..subject.clone() }])))
    }

    /// A member's counter has not moved for so long that it is dead, if it has not moved by now either.
    ///
    /// # Errors
    /// When one of the two is dead.
    pub fn declare_stale(&self, me: Incarnation, stale: Incarnation, counter: u64) -> Result<Change, Refused> {
        self.alive(me).ok_or(Refused::Dead)?;
        let subject = self.alive(stale).filter(|_| stale != me).ok_or(Refused::Gone)?;
        Ok(Change { unmoved: Some((stale, counter)), ..self.change(vec![buried(subject)]) })
    }

    /// What has been dead for a day goes. None: nothing has.
    #[must_use]
    pub fn forget(&self) -> Option<Change> {
        let over = self.members.iter().filter(|member| !member.is_alive() && member.dead_for >= KEPT);
        let forgotten: Vec<Incarnation> = over.map(|member| member.node.incarnation).collect();
        (!forgotten.is_empty()).then(|| Change { forgotten, ..self.change(Vec::new()) })
    }

    fn change(&self, put: Vec<Member>) -> Change {
        Change { base: self.version, put, forgotten: Vec::new(), unmoved: None }
    }

    /// The view that a change leads to, if it was made of this one.
    #[must_use]
    pub fn after(&self, change: &Change) -> Option<Self> {
        if change.base != self.version {
            return None;
        }
        let mut next = self.clone();
        next.version += 1;
        next.members.retain(|member| !change.forgotten.contains(&member.node.incarnation));
        for put in &change.put {
            match next.members.iter_mut().find(|member| member.node.incarnation == put.node.incarnation) {
                Some(member) => *member = Member { counter: member.counter, ..put.clone() },
                None => next.members.push(put.clone()),
            }
        }
        Some(next)
    }
}

fn buried(member: &Member) -> Member {
    Member { state: State::Dead, ..member.clone() }
}
