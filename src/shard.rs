//! The shard actors of a node: each runs a fixed part of the shards, so that one message carries the events of
//! many users. Starts a user's actor with the first event or attachment, lets it go when it is idle, and keeps
//! a crashed user's order: until the sender begins again with the lowest unsettled event, later ones are refused.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use parking_lot::RwLock;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use smallvec::{SmallVec, smallvec};

use crate::{
    event::InFlight,
    ids::UserId,
    placement::shard,
    user::{self, Attach, UserRef},
};

/// How a shard actor is spoken to.
pub type ShardRef = ActorRef<Msg>;

/// What a shard actor can be told.
pub enum Msg {
    /// Events for users of these shards, in order for each user.
    Events(Vec<InFlight>),
    /// A connection wants a session.
    Attach(Box<Attach>),
    /// A user has something to say.
    User(user::Outcome),
}

impl From<user::Outcome> for Msg {
    fn from(outcome: user::Outcome) -> Self {
        Self::User(outcome)
    }
}

impl TryFrom<Msg> for user::Outcome {
    type Error = ();
    fn try_from(msg: Msg) -> Result<Self, ()> {
        if let Msg::User(outcome) = msg { Ok(outcome) } else { Err(()) }
    }
}

/// Starts a shard actor under the node's root.
///
/// # Errors
/// When the supervisor is already stopping.
pub async fn spawn(config: Arc<user::Config>, supervisor: ActorCell) -> Result<ShardRef, SpawnErr> {
    let (shard, _) = Actor::spawn_linked(None, Shard, config, supervisor).await?;
    Ok(shard)
}

struct Shard;

struct State {
    config: Arc<user::Config>,
    users: HashMap<UserId, Entry>,
    by_actor: HashMap<ActorId, UserId>,
    /// Users whose actor crashed: nothing is taken before the sender's first unsettled event.
    refusing: HashSet<UserId>,
}

struct Entry {
    actor: UserRef,
    sent: u64,
    phase: Phase,
}

enum Phase {
    Running,
    /// Told to stop; what comes meanwhile waits for the successor.
    Stopping(Vec<user::Msg>),
}

impl Actor for Shard {
    type Msg = Msg;
    type State = State;
    type Arguments = Arc<user::Config>;

    async fn pre_start(&self, _: ShardRef, config: Arc<user::Config>) -> Result<State, ActorProcessingErr> {
        Ok(State { config, users: HashMap::new(), by_actor: HashMap::new(), refusing: HashSet::new() })
    }

    async fn handle(&self, myself: ShardRef, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Events(events) => state.events(&myself, events).await?,
            Msg::Attach(attach) => {
                let user = attach.user.clone();
                state.tell(&myself, user, user::Msg::Attach(attach)).await?;
            }
            Msg::User(user::Outcome::Idle { user, handled }) => state.idle(&user, handled),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ShardRef,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(user, error) => state.crashed(&user, &error),
            SupervisionEvent::ActorTerminated(user, ..) => state.stopped(&myself, &user).await?,
            _ => {}
        }
        Ok(())
    }
}

impl State {
    async fn events(&mut self, myself: &ShardRef, mut events: Vec<InFlight>) -> Result<(), ActorProcessingErr> {
        fault(&mut events);
        // A stable sort keeps each user's order, and makes one message and one write of a user's events.
        events.sort_by(|a, b| a.event.user.cmp(&b.event.user));
        let mut events = events.into_iter().peekable();
        while let Some(in_flight) = events.next() {
            let user = in_flight.event.user.clone();
            if !self.refusing.is_empty() && self.refuses(&user, in_flight.first) {
                in_flight.permit.refuse();
                continue;
            }
            let mut run: SmallVec<[InFlight; 1]> = smallvec![in_flight];
            while let Some(next) = events.next_if(|next| next.event.user == user) {
                run.push(next);
            }
            self.tell(myself, user, user::Msg::Events(run)).await?;
        }
        Ok(())
    }

    fn refuses(&mut self, user: &UserId, first: bool) -> bool {
        if first {
            self.refusing.remove(user);
        }
        self.refusing.contains(user)
    }

    /// Passes a message on to the user's actor, which is started when there is none.
    async fn tell(&mut self, myself: &ShardRef, user: UserId, msg: user::Msg) -> Result<(), ActorProcessingErr> {
        if let Some(entry) = self.users.get_mut(&user) {
            match &mut entry.phase {
                Phase::Stopping(waiting) => waiting.push(msg),
                Phase::Running => {
                    entry.sent += 1;
                    // A failed actor drops the message, and with it its permits and attachment, which report that.
                    let _ = entry.actor.cast(msg);
                }
            }
            return Ok(());
        }
        Box::pin(self.start(myself, user, std::iter::once(msg))).await
    }

    async fn start(
        &mut self,
        myself: &ShardRef,
        user: UserId,
        msgs: impl Iterator<Item = user::Msg>,
    ) -> Result<(), ActorProcessingErr> {
        let args = user::Args { user: user.clone(), config: self.config.clone(), outcomes: myself.get_derived() };
        let actor = user::spawn(args, myself.get_cell()).await?;
        let mut sent = 0;
        for msg in msgs {
            sent += 1;
            let _ = actor.cast(msg);
        }
        self.by_actor.insert(actor.get_id(), user.clone());
        self.users.insert(user, Entry { actor, sent, phase: Phase::Running });
        Ok(())
    }

    /// A user may stop when it has handled all that was sent to it.
    fn idle(&mut self, user: &UserId, handled: u64) {
        if let Some(entry) = self.users.get_mut(user)
            && matches!(entry.phase, Phase::Running)
            && entry.sent == handled
        {
            entry.phase = Phase::Stopping(Vec::new());
            entry.actor.stop(None);
        }
    }

    fn crashed(&mut self, actor: &ActorCell, error: &ActorProcessingErr) {
        let Some(user) = self.by_actor.remove(&actor.get_id()) else { return };
        user::metric::restarted("user");
        tracing::error!(%user, %error, "user actor crashed");
        self.users.remove(&user);
        self.refusing.insert(user);
    }

    async fn stopped(&mut self, myself: &ShardRef, actor: &ActorCell) -> Result<(), ActorProcessingErr> {
        let Some(user) = self.by_actor.remove(&actor.get_id()) else { return Ok(()) };
        let Some(Entry { phase: Phase::Stopping(waiting), .. }) = self.users.remove(&user) else { return Ok(()) };
        if waiting.is_empty() {
            return Ok(());
        }
        self.start(myself, user, waiting.into_iter()).await
    }
}

/// Test builds only: an event of type `fault.shard` crashes its shard's actor.
#[cfg_attr(not(feature = "faults"), expect(unused_variables, reason = "release builds have no faults"))]
fn fault(events: &mut [InFlight]) {
    #[cfg(feature = "faults")]
    if let Some(faulty) = events.iter_mut().find(|faulty| &*faulty.event.notification_type == "fault.shard") {
        faulty.permit.begin();
        panic!("fault.shard");
    }
}

/// The shard actors of this node, as routers and connections reach them. Cheap to clone.
#[derive(Clone)]
pub struct Shards {
    slots: Arc<[RwLock<Slot>]>,
    count: u16,
}

#[derive(Clone)]
struct Slot {
    actor: ShardRef,
    life: u64,
}

impl Shards {
    /// `actors` share `count` shards.
    #[must_use]
    pub fn new(actors: Vec<ShardRef>, count: u16) -> Self {
        let slots = actors.into_iter().map(|actor| RwLock::new(Slot { actor, life: 0 })).collect();
        Self { slots, count }
    }

    /// How many shard actors there are.
    #[must_use]
    pub fn actors(&self) -> usize {
        self.slots.len()
    }

    /// Which of them runs the user's shard.
    #[must_use]
    pub fn actor_of(&self, user: &str) -> usize {
        usize::from(shard(user, self.count).0) % self.slots.len()
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

    /// Asks for a session. If the request is lost on its way, its attachment reports that.
    pub fn attach(&self, attach: Box<Attach>) {
        let (actor, _) = self.get(self.actor_of(&attach.user));
        let _ = actor.cast(Msg::Attach(attach));
    }
}

#[cfg(test)]
mod tests;
