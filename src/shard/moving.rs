//! Shards on their way to another node, and from one: users leave before somebody else serves them.

use std::collections::HashSet;

use ractor::ActorProcessingErr;
use tokio::sync::oneshot;

use super::{Phase, RECOVERING_AT_ONCE, ShardRef, State};
use crate::{
    event::InFlight,
    ids::UserId,
    placement::{
        ShardId,
        owners::{Owner, Owners},
        shard,
    },
    user,
};

/// Shards that a node has taken.
#[derive(Clone, Debug, Default)]
pub struct Unsealing {
    /// Which.
    pub shards: Vec<ShardId>,
    /// Users of theirs for whom something waits in the store; `None`: the store did not say.
    pub waiting: Option<Vec<UserId>>,
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
        self.refusing.forget(|user| of(user, count));
        let mut users = HashSet::new();
        for (user, entry) in self.users.iter_mut().filter(|(user, _)| of(user, count)) {
            users.insert(user.clone());
            // One that is stopping does so with all done; what waits for its successor is lost, and comes again.
            if let Phase::Running = std::mem::replace(&mut entry.phase, Phase::Leaving) {
                let _ = entry.actor.cast(user::Msg::Leave);
            }
        }
        self.leaving.push(Leaving { users, done });
        self.note_left(None);
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
        for shard in &unsealing.shards {
            self.sealed.shards.remove(shard);
        }
        match unsealing.waiting {
            Some(waiting) => self.recover.extend(waiting),
            None => self.recover_all = true,
        }
        for _ in 0..RECOVERING_AT_ONCE {
            self.recover_next(myself).await?;
        }
        Ok(())
    }
}
