//! The shard actors of a node as others reach them: one for each user, here, or the way to another node.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use parking_lot::RwLock;
use ractor::ActorId;
use tokio::sync::oneshot;

use super::{Msg, ShardRef, Unsealing, metric};
use crate::{
    event::Sender,
    ids::{Incarnation, NotificationId, UserId},
    placement::{
        ShardId,
        owners::{Owner, Owners},
        shard,
    },
    store::{claims::Epoch, journal::Cancelled, writer::CancelReply},
    user::Attach,
};

/// How often to look for the successor of an actor that crashed.
const SUCCESSOR_LOOK: Duration = Duration::from_millis(5);

/// Which of so many shard actors runs the user's shard, of so many shards.
#[must_use]
pub fn actor_of(user: &str, shards: u16, actors: usize) -> usize {
    usize::from(shard(user, shards).0) % actors
}

/// The shard actors of this node, as routers and connections reach them. Cheap to clone.
#[derive(Clone)]
pub struct Shards {
    slots: Arc<[RwLock<Slot>]>,
    owners: Owners,
    elsewhere: Option<Arc<dyn Elsewhere>>,
}

/// The way to users that other nodes serve, or that nobody serves just now.
pub trait Elsewhere: Send + Sync + 'static {
    /// Asks for a session, as soon as somebody serves the user.
    fn attach(&self, attach: Box<Attach>);

    /// Asks that a notification is not delivered. The answer is dropped when that cannot be said.
    fn cancel(&self, user: UserId, id: NotificationId, reply: CancelReply);
}

#[derive(Clone)]
struct Slot {
    actor: ShardRef,
    life: u64,
}

impl Shards {
    /// `actors` share `count` shards, which nobody else serves.
    #[must_use]
    pub fn new(actors: Vec<ShardRef>, count: u16) -> Self {
        Self::of(actors, Owners::alone(count))
    }

    /// `actors` share those shards that this node serves.
    #[must_use]
    pub fn of(actors: Vec<ShardRef>, owners: Owners) -> Self {
        metric::describe();
        let slots = actors.into_iter().map(|actor| RwLock::new(Slot { actor, life: 0 })).collect();
        Self { slots, owners, elsewhere: None }
    }

    /// The same, with a way to those that other nodes serve.
    #[must_use]
    pub fn and(self, elsewhere: Arc<dyn Elsewhere>) -> Self {
        Self { elsewhere: Some(elsewhere), ..self }
    }

    /// Who serves which shard.
    #[must_use]
    pub fn owners(&self) -> &Owners {
        &self.owners
    }

    /// The way to another node, if this one does not serve the user.
    fn elsewhere(&self, user: &UserId) -> Option<&Arc<dyn Elsewhere>> {
        self.elsewhere.as_ref().filter(|_| self.owners.of(user) != Owner::Here)
    }

    /// Lets go of shards: answers when nothing is done for their users any more.
    pub async fn seal(&self, shards: &[ShardId]) {
        let by_actor = self.by_actor(shards, |shard| *shard).into_iter();
        join_all(by_actor.map(|(index, shards)| self.told(index, move |done| Msg::Seal(shards.clone(), done)))).await;
    }

    /// Serves shards from here on.
    pub async fn unseal(&self, unsealing: Unsealing) {
        let Unsealing { shards, waiting, marks } = unsealing;
        let of_actor = |(index, shards): (usize, Vec<(ShardId, Epoch)>)| {
            let is_theirs = |user: &&UserId| {
                let its = self.owners.shard(user);
                shards.iter().any(|(shard, _)| *shard == its)
            };
            let waiting = waiting.as_ref().map(|users| users.iter().filter(is_theirs).cloned().collect());
            let unsealing = Unsealing { shards, waiting, marks: marks.clone() };
            self.told(index, move |done| Msg::Unseal(unsealing.clone(), done))
        };
        join_all(self.by_actor(&shards, |(shard, _)| *shard).into_iter().map(of_actor)).await;
    }

    /// Tells an actor until it, or the successor of one that crashed meanwhile, has answered.
    async fn told(&self, index: usize, msg: impl Fn(oneshot::Sender<()>) -> Msg) {
        loop {
            let (actor, life) = self.get(index);
            let (done, answered) = oneshot::channel();
            let _ = actor.cast(msg(done));
            if answered.await.is_ok() {
                return;
            }
            while self.get(index).1 == life {
                tokio::time::sleep(SUCCESSOR_LOOK).await;
            }
        }
    }

    /// Says that all connections have come that a node has of users of these shards, under these epochs.
    pub fn marked(&self, node: Incarnation, shards: &[(ShardId, Epoch)]) {
        for (index, shards) in self.by_actor(shards, |(shard, _)| *shard) {
            let _ = self.get(index).0.cast(Msg::Marked(node, shards));
        }
    }

    fn by_actor<T: Copy>(&self, shards: &[T], id: impl Fn(&T) -> ShardId) -> HashMap<usize, Vec<T>> {
        let mut by_actor: HashMap<usize, Vec<T>> = HashMap::new();
        for shard in shards {
            by_actor.entry(usize::from(id(shard).0) % self.slots.len()).or_default().push(*shard);
        }
        by_actor
    }

    /// How many shard actors there are.
    #[must_use]
    pub fn actors(&self) -> usize {
        self.slots.len()
    }

    /// Which of them runs the user's shard.
    #[must_use]
    pub fn actor_of(&self, user: &str) -> usize {
        actor_of(user, self.owners.shards(), self.slots.len())
    }

    /// The actor at `index`, and which life of it that is.
    #[must_use]
    pub fn get(&self, index: usize) -> (ShardRef, u64) {
        let slot = self.slots[index].read();
        (slot.actor.clone(), slot.life)
    }

    /// The place of an actor, if it is one of these.
    pub fn index_of(&self, crashed: ActorId) -> Option<usize> {
        self.slots.iter().position(|slot| slot.read().actor.get_id() == crashed)
    }

    /// Puts a successor in the place of a crashed actor.
    pub fn replace(&self, index: usize, successor: ShardRef) {
        let mut slot = self.slots[index].write();
        slot.life += 1;
        slot.actor = successor;
    }

    /// Asks that a notification is not delivered; `None`: an actor crashed meanwhile.
    pub async fn cancel(&self, user: &UserId, id: NotificationId) -> Option<Cancelled> {
        let (reply, answer) = oneshot::channel();
        match self.elsewhere(user) {
            Some(elsewhere) => elsewhere.cancel(user.clone(), id, reply),
            None => self.cancel_here(user.clone(), id, reply),
        }
        answer.await.ok()
    }

    /// The same of a user that this node serves.
    pub fn cancel_here(&self, user: UserId, id: NotificationId, reply: CancelReply) {
        let (actor, _) = self.get(self.actor_of(&user));
        let _ = actor.cast(Msg::Cancel(user, id, reply));
    }

    /// Says that the client of a session at rest said something. If that is lost on its way, so is the attachment.
    pub fn wake(&self, user: &UserId) {
        let (actor, _) = self.get(self.actor_of(user));
        let _ = actor.cast(Msg::Wake(user.clone()));
    }

    /// Says that nothing comes from this sender any more.
    pub fn gone(&self, sender: Sender) {
        self.tell_all(|| Msg::Gone(sender));
    }

    /// Says that a node has left or died.
    pub fn node_gone(&self, node: Incarnation) {
        self.tell_all(|| Msg::NodeGone(node));
    }

    fn tell_all(&self, msg: impl Fn() -> Msg) {
        for index in 0..self.actors() {
            let _ = self.get(index).0.cast(msg());
        }
    }

    /// Says that the connection of a session at rest has ended.
    pub fn ended(&self, user: &UserId) {
        let (actor, _) = self.get(self.actor_of(user));
        let _ = actor.cast(Msg::Ended(user.clone()));
    }

    /// Asks for a session. If the request is lost on its way, its attachment reports that.
    pub fn attach(&self, attach: Box<Attach>) {
        match self.elsewhere(&attach.user) {
            Some(elsewhere) => elsewhere.attach(attach),
            None => self.attach_here(attach),
        }
    }

    /// The same of a user that this node serves.
    pub fn attach_here(&self, attach: Box<Attach>) {
        let (actor, _) = self.get(self.actor_of(&attach.user));
        let _ = actor.cast(Msg::Attach(attach));
    }
}
