//! Shard actors as the router sees them, with a script for what they do to events. One actor stands for a shard
//! and its users: a crash of a user loses what that user holds, and later events of it are refused until one comes
//! that is marked as its first (see [`crate::shard`]).

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef};

use crate::{
    event::InFlight,
    ids::UserId,
    shard::{Msg, ShardRef},
    user,
};

/// What happens to an event that reaches its user.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    /// Taken and settled at once.
    Settle,
    /// Taken, and settled later, as later ones of its user are.
    Hold,
    /// Sent back, as after a crash.
    Refuse,
    /// Lost with its user, which nobody had heard of before.
    Lose,
    /// Taken, but its user crashes before it is settled; so many later ones are lost before the shard knows.
    StoreAndLoseUser { blind: u8 },
    /// Its user crashes on it; so many later ones are lost before the shard knows.
    Crash { blind: u8 },
    /// The whole shard actor dies on it.
    KillShard,
}

/// An event that a user got, for the first time.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) user: UserId,
    pub(super) number: u64,
}

/// What outlives the actors: the script, and the log.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Inner>>);

struct Inner {
    fates: VecDeque<Fate>,
    taken: Vec<Taken>,
    known: BTreeSet<u64>,
    dead: Vec<ActorId>,
}

impl Shared {
    pub(super) fn new(fates: Vec<Fate>) -> Self {
        let inner = Inner { fates: fates.into(), taken: Vec::new(), known: BTreeSet::new(), dead: Vec::new() };
        Self(Arc::new(Mutex::new(inner)))
    }

    fn next_fate(&self) -> Fate {
        self.0.lock().fates.pop_front().unwrap_or(Fate::Settle)
    }

    /// Stores an event as the log does: one that is there already stays where it is.
    fn take(&self, in_flight: &InFlight) {
        let number = in_flight.event.id.parse().unwrap();
        let mut inner = self.0.lock();
        if inner.known.insert(number) {
            inner.taken.push(Taken { user: in_flight.event.user.clone(), number });
        }
    }

    pub(super) fn taken(&self) -> Vec<Taken> {
        std::mem::take(&mut self.0.lock().taken)
    }

    pub(super) fn take_dead(&self) -> Vec<ActorId> {
        std::mem::take(&mut self.0.lock().dead)
    }
}

pub(super) async fn spawn(shared: &Shared) -> ShardRef {
    Actor::spawn(None, ModelShard, shared.clone()).await.unwrap().0
}

/// The message by which the test lets every user settle the oldest event that it holds.
pub(super) fn settle_one() -> Msg {
    Msg::User(user::Outcome::Idle { user: UserId::new("all").unwrap(), handled: 0, limiter: None })
}

struct ModelShard;

struct State {
    shared: Shared,
    held: HashMap<UserId, VecDeque<InFlight>>,
    refusing: HashSet<UserId>,
    /// Users whose crash the shard has not heard of: so many events are still sent to the dead.
    blind: HashMap<UserId, u8>,
}

impl Actor for ModelShard {
    type Msg = Msg;
    type State = State;
    type Arguments = Shared;

    async fn pre_start(&self, _: ActorRef<Msg>, shared: Shared) -> Result<State, ActorProcessingErr> {
        Ok(State { shared, held: HashMap::new(), refusing: HashSet::new(), blind: HashMap::new() })
    }

    async fn handle(&self, myself: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Events(events) => {
                for in_flight in events {
                    if !state.event(in_flight) {
                        state.shared.0.lock().dead.push(myself.get_id());
                        return Err("killed by the script".into());
                    }
                }
            }
            Msg::User(_) => state.held.values_mut().filter_map(VecDeque::pop_front).for_each(|it| it.permit.settle()),
            Msg::Attach(_)
            | Msg::Cancel(..)
            | Msg::Wake(_)
            | Msg::Ended(_)
            | Msg::Gone(_)
            | Msg::Seal(..)
            | Msg::Unseal(..)
            | Msg::Marked(..)
            | Msg::NodeGone(_)
            | Msg::MarksOverdue => {
                unreachable!("a router only brings events")
            }
        }
        Ok(())
    }
}

impl State {
    /// `false`: the actor dies.
    fn event(&mut self, mut in_flight: InFlight) -> bool {
        let user = in_flight.event.user.clone();
        if let Some(left) = self.blind.get_mut(&user) {
            if *left > 0 {
                *left -= 1;
                return true;
            }
            self.blind.remove(&user);
            self.refusing.insert(user.clone());
        }
        if in_flight.first {
            self.refusing.remove(&user);
        }
        if self.refusing.contains(&user) {
            in_flight.permit.refuse();
            return true;
        }
        match self.shared.next_fate() {
            Fate::Settle | Fate::Hold if self.held.get(&user).is_some_and(|held| !held.is_empty()) => {
                self.hold(in_flight);
            }
            Fate::Settle => {
                self.shared.take(&in_flight);
                in_flight.permit.settle();
            }
            Fate::Hold => self.hold(in_flight),
            Fate::Refuse => {
                self.refusing.insert(user);
                in_flight.permit.refuse();
            }
            Fate::Lose => {
                drop(in_flight);
                self.crashed(user, 0);
            }
            Fate::StoreAndLoseUser { blind } => {
                self.shared.take(&in_flight);
                drop(in_flight);
                self.crashed(user, blind);
            }
            Fate::Crash { blind } => {
                in_flight.permit.begin();
                drop(in_flight);
                self.crashed(user, blind);
            }
            Fate::KillShard => return false,
        }
        true
    }

    fn hold(&mut self, in_flight: InFlight) {
        self.shared.take(&in_flight);
        self.held.entry(in_flight.event.user.clone()).or_default().push_back(in_flight);
    }

    fn crashed(&mut self, user: UserId, blind: u8) {
        self.held.remove(&user);
        self.blind.insert(user, blind);
    }
}
