//! Takes events to whoever serves their user, in batches: to a shard actor of this node, or over a link to another one.
//! It keeps each user's order when some come back: as soon as one event of a user was lost or refused, nothing of that
//! user is sent until all that is under way has been answered; then everything that was not settled goes again, in the
//! order it was read. It keeps it, too, when a shard moves: nothing goes to the next owner before all that went to the
//! former one has been answered. What nobody serves waits, under its permits.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    event::{Event, InFlight},
    ids::{Incarnation, UserId},
    placement::{
        ShardId,
        owners::{Map, Owner},
    },
    settlement::{Outcome, Permit, RecordRef, Report},
    shard::{Msg, ShardRef, Shards},
};

/// Events of one message to a shard actor.
const BATCH_MAX: usize = 512;
/// Waits before an event goes again: what was merely lost or refused, and what crashed an actor.
const AGAIN_AFTER: Duration = Duration::from_millis(5);
const AGAIN_AFTER_CRASH: Duration = Duration::from_millis(100);

/// The links to other nodes, as events take them.
pub trait Links: Send + Sync + 'static {
    /// Which life of the link to a node this is; what was sent in an earlier one is lost, and its permits have said so.
    /// `None`: there is none now.
    fn life(&self, node: Incarnation) -> Option<u64>;

    /// Sends events, in order, in that life of the link or not at all. If they are lost on their way, their permits say so.
    fn send(&self, node: Incarnation, life: u64, events: Vec<InFlight>);
}

/// The sender's side of the way to the shards. Owned by one thread.
pub struct Router {
    shards: Shards,
    links: Option<Arc<dyn Links>>,
    reports: Arc<dyn Report>,
    map: Arc<Map>,
    /// Those to this node's shard actors first.
    lanes: Vec<Lane>,
    to_nodes: HashMap<Incarnation, usize>,
    /// By shard.
    ways: Vec<Way>,
    /// Of shards that nobody serves, or whose next owner has to wait for the former one.
    held: HashMap<ShardId, BTreeMap<u64, InFlight>>,
    recovering: HashMap<UserId, Recovery>,
}

/// The way to one shard actor, or to one node.
struct Lane {
    to: To,
    /// The life of the actor, or of the link, that the unanswered events went to.
    life: u64,
    unanswered: usize,
    batch: Vec<Numbered>,
}

#[derive(Clone, Copy)]
enum To {
    Actor(usize),
    Node(Incarnation),
}

/// Whom a lane reaches now, in one life: whoever has taken its place meanwhile gets nothing that was meant for it.
enum Target<'l> {
    Actor(ShardRef),
    Node(&'l dyn Links, Incarnation),
}

impl<'l> Target<'l> {
    fn of(to: To, shards: &Shards, links: Option<&'l dyn Links>) -> Option<(Self, u64)> {
        match to {
            To::Actor(actor) => {
                let (actor, life) = shards.get(actor);
                Some((Self::Actor(actor), life))
            }
            To::Node(node) => {
                let links = links?;
                Some((Self::Node(links, node), links.life(node)?))
            }
        }
    }
}

impl Lane {
    fn new(to: To) -> Self {
        Self { to, life: 0, unanswered: 0, batch: Vec::new() }
    }
}

/// Which lane the events of a shard are in that were not answered yet.
#[derive(Clone, Copy, Default)]
struct Way {
    lane: usize,
    /// Put into the lane and not answered.
    out: usize,
}

/// An event with its place in the order in which events were read.
struct Numbered {
    number: u64,
    shard: ShardId,
    in_flight: InFlight,
}

#[derive(Default)]
struct Recovery {
    /// Sent before the loss was known, not answered yet.
    unanswered: usize,
    waiting: BTreeMap<u64, InFlight>,
    not_before: Option<Instant>,
}

/// What came back of an event that was sent.
pub struct Answer<'a> {
    /// The record that the permit named.
    pub record: RecordRef,
    /// Its place in the order of reading.
    pub number: u64,
    /// The event itself.
    pub event: &'a Arc<Event>,
    /// What became of it; an event that will not be sent again counts as settled.
    pub outcome: Outcome,
}

impl Router {
    /// A router to these shards; permits of events that go again report to `reports`.
    #[must_use]
    pub fn new(shards: Shards, reports: Arc<dyn Report>) -> Self {
        let lanes = (0..shards.actors()).map(|actor| Lane::new(To::Actor(actor))).collect();
        let ways = vec![Way::default(); usize::from(shards.owners().shards())];
        let map = Arc::clone(&shards.owners().now());
        let (to_nodes, held, recovering) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { shards, links: None, reports, map, lanes, to_nodes, ways, held, recovering }
    }

    /// The same, with a way to other nodes.
    #[must_use]
    pub fn with(self, links: Option<Arc<dyn Links>>) -> Self {
        Self { links, ..self }
    }

    /// Takes an event; it leaves with the next [`Self::flush`], or when its user's earlier ones have.
    pub fn route(&mut self, number: u64, in_flight: InFlight) {
        if !self.recovering.is_empty()
            && let Some(recovery) = self.recovering.get_mut(&in_flight.event.user)
        {
            recovery.waiting.insert(number, in_flight);
            return;
        }
        let shard = self.shards.owners().shard(&in_flight.event.user);
        if !self.held.is_empty()
            && let Some(held) = self.held.get_mut(&shard)
        {
            held.insert(number, in_flight);
            return;
        }
        self.place(Numbered { number, shard, in_flight });
    }

    /// Puts an event into the lane of whoever serves its shard, or holds it back.
    fn place(&mut self, event: Numbered) {
        let lane = self.lane_of(event.shard);
        let way = &mut self.ways[usize::from(event.shard.0)];
        let Some(lane) = lane.filter(|lane| way.out == 0 || way.lane == *lane) else {
            self.held.entry(event.shard).or_default().insert(event.number, event.in_flight);
            return;
        };
        *way = Way { lane, out: way.out + 1 };
        self.lanes[lane].batch.push(event);
        if self.lanes[lane].batch.len() >= BATCH_MAX {
            self.flush_lane(lane);
        }
    }

    fn lane_of(&mut self, shard: ShardId) -> Option<usize> {
        match self.map.of(shard) {
            Owner::Here => Some(usize::from(shard.0) % self.shards.actors()),
            Owner::Nobody => None,
            Owner::There(node) => {
                let lanes = &mut self.lanes;
                Some(*self.to_nodes.entry(node).or_insert_with(|| {
                    lanes.push(Lane::new(To::Node(node)));
                    lanes.len() - 1
                }))
            }
        }
    }

    /// Sends what was taken, and what may go again.
    pub fn flush(&mut self) {
        self.look_at_map();
        if !self.recovering.is_empty() {
            self.send_again(Instant::now());
        }
        (0..self.lanes.len()).for_each(|index| self.flush_lane(index));
    }

    /// Follows shards to their new owners.
    fn look_at_map(&mut self) {
        let now = self.shards.owners().now();
        if !Arc::ptr_eq(&now, &self.map) {
            self.map = Arc::clone(&now);
            drop(now);
            // What was not sent yet goes to whoever is next.
            for index in 0..self.lanes.len() {
                for event in std::mem::take(&mut self.lanes[index].batch) {
                    if self.lane_of(event.shard) == Some(index) {
                        self.lanes[index].batch.push(event);
                    } else {
                        self.ways[usize::from(event.shard.0)].out -= 1;
                        self.held.entry(event.shard).or_default().insert(event.number, event.in_flight);
                    }
                }
            }
        }
        if self.held.is_empty() {
            return;
        }
        let shards: Vec<ShardId> = self.held.keys().copied().collect();
        for shard in shards {
            let lane = self.lane_of(shard);
            let way = self.ways[usize::from(shard.0)];
            if lane.is_some_and(|lane| way.out == 0 || way.lane == lane) {
                for (number, in_flight) in self.held.remove(&shard).into_iter().flatten() {
                    self.place(Numbered { number, shard, in_flight });
                }
            }
        }
    }

    fn flush_lane(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        if lane.batch.is_empty() {
            return;
        }
        let Some((target, life)) = Target::of(lane.to, &self.shards, self.links.as_deref()) else { return };
        if life != lane.life {
            // A successor must not get newer events before the lost ones are known to be lost.
            if lane.unanswered > 0 {
                return;
            }
            lane.life = life;
        }
        let mut events = Vec::with_capacity(lane.batch.len());
        for Numbered { number, shard, in_flight } in lane.batch.drain(..) {
            match self.recovering.get_mut(&in_flight.event.user) {
                Some(recovery) if !in_flight.first => {
                    self.ways[usize::from(shard.0)].out -= 1;
                    recovery.waiting.insert(number, in_flight);
                }
                _ => events.push(in_flight),
            }
        }
        lane.unanswered += events.len();
        match target {
            // An actor that is gone drops the message; every permit in it says so.
            Target::Actor(actor) => _ = actor.cast(Msg::Events(events)),
            Target::Node(links, node) => links.send(node, life, events),
        }
    }

    /// Notes what became of an event. `under_way` counts, when asked, the unsettled events of its user that
    /// this router was given, this one not included.
    pub fn answered(&mut self, answer: &Answer<'_>, under_way: impl FnOnce() -> usize) {
        let user = &answer.event.user;
        let shard = self.shards.owners().shard(user);
        let way = &mut self.ways[usize::from(shard.0)];
        way.out = way.out.saturating_sub(1);
        let lane = &mut self.lanes[way.lane];
        lane.unanswered = lane.unanswered.saturating_sub(1);
        if answer.outcome == Outcome::Settled {
            if !self.recovering.is_empty()
                && let Some(recovery) = self.recovering.get_mut(user)
            {
                recovery.unanswered = recovery.unanswered.saturating_sub(1);
            }
            return;
        }
        let reports = &self.reports;
        let recovery = match self.recovering.get_mut(user) {
            Some(recovery) => {
                recovery.unanswered = recovery.unanswered.saturating_sub(1);
                recovery
            }
            None => {
                let unsent = lane.batch.extract_if(.., |unsent| unsent.in_flight.event.user == *user);
                let mut waiting: BTreeMap<_, _> = unsent.map(|unsent| (unsent.number, unsent.in_flight)).collect();
                way.out -= waiting.len();
                if let Some(held) = self.held.get_mut(&shard) {
                    waiting.extend(held.extract_if(.., |_, held| held.event.user == *user));
                }
                let unanswered = under_way().saturating_sub(waiting.len());
                self.recovering.entry(user.clone()).or_insert(Recovery { unanswered, waiting, not_before: None })
            }
        };
        let wait = if answer.outcome == Outcome::Crashed { AGAIN_AFTER_CRASH } else { AGAIN_AFTER };
        recovery.not_before = recovery.not_before.max(Some(Instant::now() + wait));
        let permit = Permit::new(reports.clone(), answer.record);
        let again = InFlight { event: answer.event.clone(), permit, first: false, sender: 0 };
        recovery.waiting.insert(answer.number, again);
    }

    fn send_again(&mut self, now: Instant) {
        let due = self
            .recovering
            .extract_if(|_, recovery| recovery.unanswered == 0 && recovery.not_before.is_none_or(|at| at <= now));
        for (user, recovery) in due.collect::<Vec<_>>() {
            let shard = self.shards.owners().shard(&user);
            for (at, (number, mut in_flight)) in recovery.waiting.into_iter().enumerate() {
                in_flight.first = at == 0;
                match self.held.get_mut(&shard) {
                    Some(held) => _ = held.insert(number, in_flight),
                    None => self.place(Numbered { number, shard, in_flight }),
                }
            }
        }
    }

    /// Whether events wait to go again: somebody should call [`Self::flush`] soon.
    #[must_use]
    pub fn is_recovering(&self) -> bool {
        !self.recovering.is_empty() || !self.held.is_empty() || self.lanes.iter().any(|lane| !lane.batch.is_empty())
    }
}

#[cfg(test)]
mod tests;
