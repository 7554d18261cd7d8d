//! What one version of the table says: its members, and who of them is alive. How it changes is in
//! [`super::changes`].

use std::{num::NonZeroU8, time::Duration};

use crate::{
    ids::{Incarnation, NodeId},
    placement::assignment::Candidate,
};

/// A view's number: each change makes the next one.
pub type Version = u64;

/// What a member is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// It has started, and owns nothing yet.
    Joining,
    /// It takes what it should own.
    Active,
    /// It gives away what it owns.
    Draining,
    /// It owns nothing, for ever.
    Dead,
}

impl State {
    /// Whether a member may go from here to there. There is no way back, and none out of death.
    #[must_use]
    pub fn leads_to(self, next: Self) -> bool {
        use State::{Active, Dead, Draining, Joining};
        matches!((self, next), (Joining, Active) | (Joining | Active, Draining) | (Joining | Active | Draining, Dead))
    }
}

/// What a node says of itself when it joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub id: NodeId,
    /// This life of it.
    pub incarnation: Incarnation,
    /// Where its link listens: `host:port`, the best first. None when it takes part in no cluster.
    pub addresses: Vec<String>,
    /// What fails together; empty: not said.
    pub zone: String,
    /// How much it takes, compared with others.
    pub weight: NonZeroU8,
    /// It shares its store with nobody: the cluster is disabled in its configuration.
    pub is_alone: bool,
}

/// A member's word that another one is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// Who says so.
    pub by: Incarnation,
    /// The voter's own counter when it said so: the vote's age is the voter's renewals since.
    pub at: u64,
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who it is.
    pub node: Node,
    /// What it is about to do.
    pub state: State,
    /// The version that it joined with: the lower, the older. No two members have the same.
    pub joined: Version,
    /// How often it has renewed its row. Not part of what a version says: it moves without one.
    pub counter: u64,
    /// Who says that it is silent.
    pub votes: Vec<Vote>,
    /// How long it has been dead, by the store's clock when it was read.
    pub dead_for: Duration,
}

impl Member {
    /// Whether it may own anything, renews, votes and is probed.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.state != State::Dead
    }
}

/// The table, at one version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Its number; 0: nobody has ever joined.
    pub version: Version,
    /// In the order in which they joined.
    pub members: Vec<Member>,
}

impl View {
    /// A member that is not removed yet, alive or dead.
    #[must_use]
    pub fn member(&self, incarnation: Incarnation) -> Option<&Member> {
        self.members.iter().find(|member| member.node.incarnation == incarnation)
    }

    /// A member, unless it is dead. A node for which this is none has been declared dead, or was removed since: it
    /// stops serving and ends.
    #[must_use]
    pub fn alive(&self, incarnation: Incarnation) -> Option<&Member> {
        self.member(incarnation).filter(|member| member.is_alive())
    }

    /// All that are alive, the oldest first.
    pub fn living(&self) -> impl Iterator<Item = &Member> + Clone {
        self.members.iter().filter(|member| member.is_alive())
    }

    /// Those that should own something: what [`crate::placement::assignment`] shares out to.
    #[must_use]
    pub fn candidates(&self) -> Vec<Candidate<'_>> {
        let active = self.members.iter().filter(|member| member.state == State::Active);
        active.map(|member| Candidate { id: &member.node.id, weight: member.node.weight }).collect()
    }

    /// The active incarnation of a node.
    #[must_use]
    pub fn active(&self, id: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.state == State::Active && &*member.node.id == id)
    }
}
