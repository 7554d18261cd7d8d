//! Shards on their way to another node, and from one: users leave before somebody else serves them.

use std::collections::HashSet;

use ractor::ActorProcessingErr;
use tokio::{sync::oneshot, time::Instant};

use super::{
    Msg, Phase, RECOVERING_AT_ONCE, ShardRef, State,
    marks::{self, Held},
    metric,
};
use crate::{
    event::InFlight,
    ids::{Incarnation, UserId},
    placement::{
        ShardId,
        owners::{Owner, Owners},
        shard,
    },
    store::claims::Epoch,
    user::{self, Request},
};

/// Shards that a node has taken.
#[derive(Clone, Debug, Default)]
pub struct Unsealing {
    /// Which, and under which epochs.
    pub shards: Vec<(ShardId, Epoch)>,
    /// Users of theirs for whom something waits in the store; `None`: the store did not say.
    pub waiting: Option<Vec<UserId>>,
    /// Nodes that may have connections of theirs, and mark the end of the list of them.
    pub marks: Vec<Incarnation>,
}

/// Shards that other nodes serve.
#[derive(Clone, Debug, Default)]
pub struct Sealed {
    shards: HashSet<ShardId>,
    /// Into how many shards users are divided; 0: nobody else will ever serve any.
    count: u16,
}

impl Sealed {
    /// All that this node does not serve; of a node that has no others, none ever.
    #[must_use]
    pub fn by(owners: &Owners) -> Self {
        if owners.is_alone() {
            return Self::default();
        }
        let (map, count) = (owners.now(), owners.shards());
        Self { shards: (0..count).map(ShardId).filter(|shard| map.of(*shard) != Owner::Here).collect(), count }
    }

    pub(super) fn count(&self) -> u16 {
        self.count
    }

    pub(super) fn has(&self, user: &UserId) -> bool {
        !self.shards.is_empty() && self.shards.contains(&shard(user, self.count))
    }
}

/// Users who have to be gone before somebody else serves them.
pub(super) struct Leaving {
    users: HashSet<UserId>,
    done: oneshot::Sender<()>,
}

impl State {
    pub(super) fn refuses(&mut self, user: &UserId, in_flight: &InFlight) -> bool {
        if self.sealed.has(user) {
            self.refusing.refused(user, in_flight.sender);
            return true;
        }
        #[cfg(feature = "mutants")]
        if crate::mutant::is(crate::mutant::Mutant::TakesLater) {
            return false;
        }
        self.refusing.refuses(user, in_flight.sender, in_flight.first)
    }

    pub(super) fn seal(&mut self, shards: &[ShardId], done: oneshot::Sender<()>) {
        self.sealed.shards.extend(shards);
        let (count, of) = (self.sealed.count, |user: &UserId, count| shards.contains(&shard(user, count)));
        // Their connections hear that they are lost, and ask whoever is next.
        self.asleep.retain(|user, _| !of(user, count));
        self.recover.retain(|user| !of(user, count));
        self.limiters.retain(|user, _| !of(user, count));
        self.refusing.given_away(|user| of(user, count));
        let Held { attaches, events } = self.marks.forget(shards);
        // Whoever is next is asked, and sent to.
        drop(attaches);
        self.refuse(events);
        let (mut users, mut left) = (HashSet::new(), Vec::new());
        for (user, entry) in self.users.iter_mut().filter(|(user, _)| of(user, count)) {
            users.insert(user.clone());
            match std::mem::replace(&mut entry.phase, Phase::Leaving) {
                Phase::Running => _ = entry.actor.cast(user::Msg::Leave),
                // It stops with all done; what waits for its successor comes again.
                Phase::Stopping(waiting) => left.extend(waiting),
                Phase::Leaving => {}
            }
        }
        for request in left {
            if let Request::Events(events) = request {
                self.refuse(events);
            }
        }
        self.leaving.push(Leaving { users, done });
        self.note_left(None);
    }

    /// Somebody else serves these users. What their senders have sent behind these may come when this node serves them
    /// again.
    fn refuse(&mut self, events: impl IntoIterator<Item = InFlight>) {
        for in_flight in events {
            self.refusing.refused(&in_flight.event.user, in_flight.sender);
            in_flight.permit.refuse();
        }
    }

    /// Says so when nobody of those who leave is left.
    pub(super) fn note_left(&mut self, user: Option<&UserId>) {
        for leaving in &mut self.leaving {
            if let Some(user) = user {
                leaving.users.remove(user);
            }
        }
        for Leaving { done, .. } in self.leaving.extract_if(.., |leaving| leaving.users.is_empty()) {
            let _ = done.send(());
        }
    }

    pub(super) async fn unseal(&mut self, myself: &ShardRef, unsealing: Unsealing) -> Result<(), ActorProcessingErr> {
        for (shard, _) in &unsealing.shards {
            self.sealed.shards.remove(shard);
        }
        self.marks.expect(&unsealing.shards, &unsealing.marks, Instant::now());
        drop(myself.send_after(marks::PATIENCE, || Msg::MarksOverdue));
        match unsealing.waiting {
            Some(waiting) => self.recover.extend(waiting),
            None => self.recover_all = true,
        }
        for _ in 0..RECOVERING_AT_ONCE {
            self.recover_next(myself).await?;
        }
        Ok(())
    }

    /// All connections of a node have come.
    pub(super) async fn marked(
        &mut self,
        myself: &ShardRef,
        node: Incarnation,
        shards: &[(ShardId, Epoch)],
    ) -> Result<(), ActorProcessingErr> {
        let held = self.marks.marked(node, shards);
        self.go_on(myself, held).await
    }

    /// Nobody's connections come from a node that is gone.
    pub(super) async fn node_gone(&mut self, myself: &ShardRef, node: Incarnation) -> Result<(), ActorProcessingErr> {
        let held = self.marks.gone(node);
        self.go_on(myself, held).await
    }

    /// Whoever has not said so is not waited for any longer.
    pub(super) async fn marks_overdue(&mut self, myself: &ShardRef) -> Result<(), ActorProcessingErr> {
        let (shards, held) = self.marks.overdue(Instant::now());
        if shards > 0 {
            tracing::warn!(shards, "served without having heard from all nodes which connections are theirs");
            metric::unmarked(shards);
        }
        self.go_on(myself, held).await
    }

    async fn go_on(&mut self, myself: &ShardRef, held: Held) -> Result<(), ActorProcessingErr> {
        for attach in held.attaches {
            let user = attach.user.clone();
            self.tell(myself, user, Request::Attach(attach)).await?;
        }
        self.pass(myself, held.events).await
    }
}
