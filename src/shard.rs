//! The shard actors of a node: each runs a fixed part of the shards, so that one message carries the events of
//! many users. Starts a user's actor with the first event or attachment, lets it go when it is idle, and keeps
//! a crashed user's order: until the sender begins again with the lowest unsettled event, later ones are refused.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use parking_lot::RwLock;
use ractor::{
    Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent, actor::messages::BoxedState,
};
use smallvec::{SmallVec, smallvec};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    event::{InFlight, Sender},
    ids::{NotificationId, UserId},
    placement::{
        ShardId,
        owners::{Owner, Owners},
        shard,
    },
    store::{journal::Cancelled, writer::CancelReply},
    user::{self, Asleep, Attach, Request, UserRef, limiter::Limiter},
};

/// So many users' actors ask at a time what waits since before a crash.
const RECOVERING_AT_ONCE: usize = 32;
/// With so many remembered limiters, those that do not matter any more are swept out.
const LIMITERS_SWEPT_FROM: usize = 1024;

/// Room for so many users stays.
const SHRINK_FROM: usize = 256;

/// How a shard actor is spoken to.
pub type ShardRef = ActorRef<Msg>;

/// What a shard actor can be told.
pub enum Msg {
    /// Events for users of these shards, in order for each user.
    Events(Vec<InFlight>),
    /// A connection wants a session.
    Attach(Box<Attach>),
    /// A user's notification must not be delivered any more.
    Cancel(UserId, NotificationId, CancelReply),
    /// The client of a session at rest said something.
    Wake(UserId),
    /// The connection of a session at rest has ended.
    Ended(UserId),
    /// Other nodes serve these shards from here on: nothing more is taken for their users. Answered when all of them
    /// are gone, and nothing that is done for them is under way any more.
    Seal(Vec<ShardId>, oneshot::Sender<()>),
    /// This node serves these shards from here on.
    Unseal(Unsealing, oneshot::Sender<()>),
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

/// Shards that a node has taken.
#[derive(Clone, Debug, Default)]
pub struct Unsealing {
    /// Which.
    pub shards: Vec<ShardId>,
    /// Users of theirs for whom something waits in the store; `None`: the store did not say.
    pub waiting: Option<Vec<UserId>>,
}

/// What a shard actor is made of.
pub struct Args {
    /// What all users share.
    pub config: Arc<user::Config>,
    /// Users of these shards for whom something waits in the store that no actor knows of; `None`: the store did not
    /// say, so that every user's actor has to ask.
    pub waiting: Option<Vec<UserId>>,
    /// Shards that other nodes serve; default: none, and there never will be any.
    pub sealed: Sealed,
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

    fn has(&self, user: &UserId) -> bool {
        !self.shards.is_empty() && self.shards.contains(&shard(user, self.count))
    }
}

/// Starts a shard actor under the node's root.
///
/// # Errors
/// When the supervisor is already stopping.
pub async fn spawn(args: Args, supervisor: ActorCell) -> Result<ShardRef, SpawnErr> {
    let (shard, _) = Actor::spawn_linked(None, Shard, args, supervisor).await?;
    Ok(shard)
}

struct Shard;

struct State {
    config: Arc<user::Config>,
    users: HashMap<UserId, Entry>,
    by_actor: HashMap<ActorId, UserId>,
    /// Users without an actor whose clients are connected.
    asleep: HashMap<UserId, Box<Asleep>>,
    /// Users whose actor crashed, or who were somebody else's: nothing is taken from a sender before its first
    /// unsettled event. Those who have begun again are named.
    refusing: HashMap<UserId, SmallVec<[Sender; 1]>>,
    /// Shards that other nodes serve.
    sealed: Sealed,
    /// Shards whose users are leaving, and who waits for that.
    leaving: Vec<Leaving>,
    /// Users whose next actor has to look for what waits in the store.
    recover: HashSet<UserId>,
    /// That is every user.
    recover_all: bool,
    /// What actors that have stopped had let go, until that does not matter any more.
    limiters: HashMap<UserId, Limiter>,
    /// When there are so many, those that do not matter any more are swept out.
    limiters_swept_at: usize,
}

/// Users who have to be gone before somebody else serves them.
struct Leaving {
    users: HashSet<UserId>,
    done: oneshot::Sender<()>,
}

struct Entry {
    actor: UserRef,
    sent: u64,
    phase: Phase,
}

enum Phase {
    Running,
    /// Told to stop; what comes meanwhile waits for the successor.
    Stopping(Vec<Request>),
    /// Told to leave: somebody else serves the user next.
    Leaving,
}

impl Actor for Shard {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(
        &self,
        myself: ShardRef,
        Args { config, waiting, sealed }: Args,
    ) -> Result<State, ActorProcessingErr> {
        let mut state = State {
            config,
            users: HashMap::new(),
            by_actor: HashMap::new(),
            asleep: HashMap::new(),
            refusing: HashMap::new(),
            sealed,
            leaving: Vec::new(),
            recover_all: waiting.is_none(),
            recover: waiting.into_iter().flatten().collect(),
            limiters: HashMap::new(),
            limiters_swept_at: LIMITERS_SWEPT_FROM,
        };
        for _ in 0..RECOVERING_AT_ONCE {
            state.recover_next(&myself).await?;
        }
        Ok(state)
    }

    async fn handle(&self, myself: ShardRef, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Events(events) => state.events(&myself, events).await?,
            // Dropped, it is lost: the connection asks again, whoever serves the user then.
            Msg::Attach(attach) if state.sealed.has(&attach.user) => drop(attach),
            Msg::Attach(attach) => {
                let user = attach.user.clone();
                state.tell(&myself, user, Request::Attach(attach)).await?;
            }
            Msg::Cancel(user, ..) if state.sealed.has(&user) => {}
            Msg::Cancel(user, id, reply) => state.tell(&myself, user, Request::Cancel(id, reply)).await?,
            Msg::Wake(user) => state.wake(&myself, user).await?,
            Msg::Ended(user) => state.ended(&user),
            Msg::Seal(shards, done) => state.seal(&shards, done),
            Msg::Unseal(unsealing, done) => {
                state.unseal(&myself, unsealing).await?;
                let _ = done.send(());
            }
            Msg::User(user::Outcome::Idle { user, handled, limiter }) => state.idle(user, handled, limiter),
            Msg::User(user::Outcome::Recovered) => state.recover_next(&myself).await?,
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
            SupervisionEvent::ActorTerminated(user, left, _) => state.stopped(&myself, &user, left).await?,
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
            if self.refuses(&user, &in_flight) {
                in_flight.permit.refuse();
                continue;
            }
            let mut run: SmallVec<[InFlight; 1]> = smallvec![in_flight];
            while let Some(next) = events.next_if(|next| next.event.user == user) {
                run.push(next);
            }
            self.tell(myself, user, Request::Events(run)).await?;
        }
        Ok(())
    }

    fn refuses(&mut self, user: &UserId, in_flight: &InFlight) -> bool {
        if self.sealed.has(user) {
            self.refusing.entry(user.clone()).or_default().retain(|sender| *sender != in_flight.sender);
            return true;
        }
        if self.refusing.is_empty() {
            return false;
        }
        let Some(begun) = self.refusing.get_mut(user) else { return false };
        if in_flight.first && self.sealed.count == 0 {
            // There is only one sender.
            self.refusing.remove(user);
            return false;
        }
        if in_flight.first && !begun.contains(&in_flight.sender) {
            begun.push(in_flight.sender);
        }
        !begun.contains(&in_flight.sender)
    }

    fn seal(&mut self, shards: &[ShardId], done: oneshot::Sender<()>) {
        self.sealed.shards.extend(shards);
        let (count, of) = (self.sealed.count, |user: &UserId, count| shards.contains(&shard(user, count)));
        // Their connections hear that they are lost, and ask whoever is next.
        self.asleep.retain(|user, _| !of(user, count));
        self.recover.retain(|user| !of(user, count));
        self.limiters.retain(|user, _| !of(user, count));
        self.refusing.retain(|user, _| !of(user, count));
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
    fn note_left(&mut self, user: Option<&UserId>) {
        for leaving in &mut self.leaving {
            if let Some(user) = user {
                leaving.users.remove(user);
            }
        }
        for Leaving { done, .. } in self.leaving.extract_if(.., |leaving| leaving.users.is_empty()) {
            let _ = done.send(());
        }
    }

    async fn unseal(&mut self, myself: &ShardRef, unsealing: Unsealing) -> Result<(), ActorProcessingErr> {
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

    /// Passes a request on to the user's actor, which is started when there is none.
    async fn tell(&mut self, myself: &ShardRef, user: UserId, request: Request) -> Result<(), ActorProcessingErr> {
        if let Some(entry) = self.users.get_mut(&user) {
            match &mut entry.phase {
                Phase::Stopping(waiting) => waiting.push(request),
                Phase::Leaving => drop(request),
                Phase::Running => {
                    entry.sent += 1;
                    // A failed actor drops the message, and with it its permits and attachment, which report that.
                    let _ = entry.actor.cast(user::Msg::Request(request));
                }
            }
            return Ok(());
        }
        Box::pin(self.start(myself, user, std::iter::once(request))).await
    }

    async fn start(
        &mut self,
        myself: &ShardRef,
        user: UserId,
        requests: impl Iterator<Item = Request>,
    ) -> Result<(), ActorProcessingErr> {
        let args = user::Args {
            user: user.clone(),
            config: self.config.clone(),
            outcomes: myself.get_derived(),
            limiter: self.limiters.remove(&user),
            asleep: self.asleep.remove(&user),
            recover: self.recover.remove(&user) || self.recover_all,
        };
        let actor = user::spawn(args, myself.get_cell()).await?;
        let mut sent = 0;
        for request in requests {
            sent += 1;
            let _ = actor.cast(user::Msg::Request(request));
        }
        self.by_actor.insert(actor.get_id(), user.clone());
        self.users.insert(user, Entry { actor, sent, phase: Phase::Running });
        Ok(())
    }

    /// A connection of the user's has something for its session. Unknown users have none that rests.
    async fn wake(&mut self, myself: &ShardRef, user: UserId) -> Result<(), ActorProcessingErr> {
        if self.users.contains_key(&user) || self.asleep.contains_key(&user) {
            self.tell(myself, user, Request::Wake).await?;
        }
        Ok(())
    }

    /// Nobody is woken only because a connection has ended.
    fn ended(&mut self, user: &UserId) {
        match self.users.get_mut(user) {
            Some(Entry { actor, sent, phase: Phase::Running }) => {
                *sent += 1;
                let _ = actor.cast(user::Msg::Request(Request::Ended));
            }
            // Its sessions are looked through when it has stopped.
            Some(Entry { phase: Phase::Stopping(_) | Phase::Leaving, .. }) => {}
            None => {
                if self.asleep.get_mut(user).is_some_and(|asleep| !asleep.forget_ended(user, &self.config)) {
                    self.asleep.remove(user);
                }
            }
        }
    }

    /// Starts one more of those for whom something waits. One that crashed comes with its next message.
    async fn recover_next(&mut self, myself: &ShardRef) -> Result<(), ActorProcessingErr> {
        let next = self.recover.iter().find(|user| {
            !self.users.contains_key(*user) && self.refusing.get(*user).is_none_or(|begun| !begun.is_empty())
        });
        match next.cloned() {
            Some(user) => Box::pin(self.start(myself, user, std::iter::empty())).await,
            None => Ok(()),
        }
    }

    /// A user may stop when it has handled all that was sent to it.
    fn idle(&mut self, user: UserId, handled: u64, limiter: Option<Limiter>) {
        if let Some(entry) = self.users.get_mut(&user)
            && matches!(entry.phase, Phase::Running)
            && entry.sent == handled
        {
            entry.phase = Phase::Stopping(Vec::new());
            entry.actor.stop(None);
            if let Some(limiter) = limiter {
                self.remember(user, limiter);
            }
        }
    }

    /// Keeps what a user's limits have let go, as long as it matters.
    fn remember(&mut self, user: UserId, limiter: Limiter) {
        self.limiters.insert(user, limiter);
        if self.limiters.len() >= self.limiters_swept_at {
            let now = Instant::now();
            self.limiters.retain(|_, limiter| !limiter.is_rested(now));
            self.limiters_swept_at = LIMITERS_SWEPT_FROM.max(2 * self.limiters.len());
        }
    }

    /// Whoever sleeps must not leave room behind where actors were.
    fn shrink(&mut self) {
        if self.users.capacity() > SHRINK_FROM.max(4 * self.users.len()) {
            self.users.shrink_to(2 * self.users.len());
            self.by_actor.shrink_to(2 * self.users.len());
        }
    }

    fn crashed(&mut self, actor: &ActorCell, error: &ActorProcessingErr) {
        let Some(user) = self.by_actor.remove(&actor.get_id()) else { return };
        user::metric::restarted("user");
        tracing::error!(%user, %error, "user actor crashed");
        let left = self.users.remove(&user).is_some_and(|entry| matches!(entry.phase, Phase::Leaving));
        if left {
            return self.note_left(Some(&user));
        }
        self.recover.insert(user.clone());
        self.refusing.insert(user, SmallVec::new());
    }

    async fn stopped(
        &mut self,
        myself: &ShardRef,
        actor: &ActorCell,
        left: Option<BoxedState>,
    ) -> Result<(), ActorProcessingErr> {
        let Some(user) = self.by_actor.remove(&actor.get_id()) else { return Ok(()) };
        let waiting = match self.users.remove(&user).map(|entry| entry.phase) {
            Some(Phase::Stopping(waiting)) => waiting,
            Some(Phase::Leaving) => {
                self.note_left(Some(&user));
                return Ok(());
            }
            Some(Phase::Running) | None => return Ok(()),
        };
        if let Some(mut asleep) = user::left_by(left).map(Box::new)
            && asleep.forget_ended(&user, &self.config)
        {
            self.asleep.insert(user.clone(), asleep);
        }
        if waiting.is_empty() {
            self.shrink();
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
        let mut waits = Vec::new();
        for (index, shards) in self.by_actor(shards) {
            let (done, wait) = oneshot::channel();
            let _ = self.get(index).0.cast(Msg::Seal(shards, done));
            waits.push(wait);
        }
        for wait in waits {
            // An actor that crashed has nobody left either.
            let _ = wait.await;
        }
    }

    /// Serves shards from here on; `waiting` are users for whom something waits, if that is known.
    pub async fn unseal(&self, shards: &[ShardId], waiting: Option<&[UserId]>) {
        let mut waits = Vec::new();
        for (index, shards) in self.by_actor(shards) {
            let is_theirs = |user: &&UserId| shards.contains(&self.owners.shard(user));
            let waiting = waiting.map(|users| users.iter().filter(is_theirs).cloned().collect());
            let (done, wait) = oneshot::channel();
            let _ = self.get(index).0.cast(Msg::Unseal(Unsealing { shards, waiting }, done));
            waits.push(wait);
        }
        for wait in waits {
            let _ = wait.await;
        }
    }

    fn by_actor(&self, shards: &[ShardId]) -> HashMap<usize, Vec<ShardId>> {
        let mut by_actor: HashMap<usize, Vec<ShardId>> = HashMap::new();
        for shard in shards {
            by_actor.entry(usize::from(shard.0) % self.slots.len()).or_default().push(*shard);
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

#[cfg(test)]
mod tests;
