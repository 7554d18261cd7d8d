//! The shard actors of a node: each runs a fixed part of the shards, so that one message carries the events of
//! many users. Starts a user's actor with the first event or attachment, lets it go when it is idle, and keeps
//! a crashed user's order: until the sender begins again with the lowest unsettled event, later ones are refused.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ractor::{
    Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent, actor::messages::BoxedState,
};
use smallvec::{SmallVec, smallvec};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    event::{InFlight, Sender},
    ids::{Incarnation, NotificationId, UserId},
    placement::ShardId,
    store::{claims::Epoch, writer::CancelReply},
    user::{self, Asleep, Attach, Request, UserRef, limiter::Limiter},
};

mod lives;
mod marks;
mod metric;
mod moving;
mod refusing;
mod shards;

pub use self::{
    lives::Lives,
    moving::{Sealed, Unsealing},
    refusing::IN_FLIGHT_MAX,
    shards::{Elsewhere, Shards, actor_of},
};
use self::{marks::Marks, moving::Leaving, refusing::Refusing};

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
    /// All connections that a node has of users of these shards have come, if they are held under these epochs.
    Marked(Incarnation, Vec<(ShardId, Epoch)>),
    /// A node has left or died.
    NodeGone(Incarnation),
    /// Some nodes may have been waited for long enough.
    MarksOverdue,
    /// Nothing comes from this sender any more.
    Gone(Sender),
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
    /// Users whose actor crashed, or who were somebody else's: who has to begin again.
    refusing: Refusing,
    /// Shards that other nodes serve.
    sealed: Sealed,
    /// Shards whose connections have not all come.
    marks: Marks,
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
            refusing: Refusing::default(),
            marks: Marks::of(sealed.count()),
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
                if let Some(attach) = state.marks.hold_attach(attach) {
                    let user = attach.user.clone();
                    state.tell(&myself, user, Request::Attach(attach)).await?;
                }
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
            Msg::Marked(node, shards) => state.marked(&myself, node, &shards).await?,
            Msg::NodeGone(node) => state.node_gone(&myself, node).await?,
            Msg::MarksOverdue => state.marks_overdue(&myself).await?,
            Msg::Gone(sender) => {
                state.refusing.gone(sender);
                state.marks.sender_gone(sender);
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
        // All of one message are of one sender.
        if let Some(first) = events.first() {
            self.refusing.received(first.sender, events.len());
        }
        self.pass(myself, events).await
    }

    /// Passes events on to their users.
    async fn pass(&mut self, myself: &ShardRef, mut events: Vec<InFlight>) -> Result<(), ActorProcessingErr> {
        // A stable sort keeps each user's order, and makes one message and one write of a user's events.
        events.sort_by(|a, b| a.event.user.cmp(&b.event.user));
        let mut events = events.into_iter().peekable();
        while let Some(in_flight) = events.next() {
            let user = in_flight.event.user.clone();
            if self.refuses(&user, &in_flight) {
                in_flight.permit.refuse();
                continue;
            }
            let sender = in_flight.sender;
            let mut run: SmallVec<[InFlight; 1]> = smallvec![in_flight];
            while let Some(next) = events.next_if(|next| next.event.user == user && next.sender == sender) {
                run.push(next);
            }
            let run = self.marks.hold_events(&user, run);
            if !run.is_empty() {
                self.tell(myself, user, Request::Events(run)).await?;
            }
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
        let next = self.recover.iter().find(|user| !self.users.contains_key(*user) && !self.refusing.has_crashed(user));
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
        let leaves = self.users.remove(&user).is_some_and(|entry| matches!(entry.phase, Phase::Leaving));
        self.refusing.crashed(user.clone(), !leaves);
        if leaves {
            return self.note_left(Some(&user));
        }
        self.recover.insert(user);
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

#[cfg(test)]
mod tests;
