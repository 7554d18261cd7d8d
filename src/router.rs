//! Takes events to the shard actor that owns their user, in batches, and keeps each user's order when some
//! come back: as soon as one event of a user was lost or refused, nothing of that user is sent until all that
//! is under way has been answered; then everything that was not settled goes again, in the order it was read.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    event::{Event, InFlight},
    ids::UserId,
    settlement::{Outcome, Permit, RecordRef, Report},
    shard::{Msg, Shards},
};

/// Events of one message to a shard actor.
const BATCH_MAX: usize = 512;
/// Waits before an event goes again: what was merely lost or refused, and what crashed an actor.
const AGAIN_AFTER: Duration = Duration::from_millis(5);
const AGAIN_AFTER_CRASH: Duration = Duration::from_millis(100);

/// The sender's side of the way to the shards. Owned by one thread.
pub struct Router {
    shards: Shards,
    reports: Arc<dyn Report>,
    lanes: Vec<Lane>,
    recovering: HashMap<UserId, Recovery>,
}

/// The way to one shard actor.
#[derive(Default)]
struct Lane {
    /// The life of the actor that the unanswered events went to.
    life: u64,
    unanswered: usize,
    batch: Vec<Numbered>,
}

/// An event with its place in the order in which events were read.
struct Numbered {
    number: u64,
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
        let lanes = (0..shards.actors()).map(|_| Lane::default()).collect();
        Self { shards, reports, lanes, recovering: HashMap::new() }
    }

    /// Takes an event; it leaves with the next [`Self::flush`], or when its user's earlier ones have.
    pub fn route(&mut self, number: u64, in_flight: InFlight) {
        if !self.recovering.is_empty()
            && let Some(recovery) = self.recovering.get_mut(&in_flight.event.user)
        {
            recovery.waiting.insert(number, in_flight);
            return;
        }
        let index = self.shards.actor_of(&in_flight.event.user);
        self.lanes[index].batch.push(Numbered { number, in_flight });
        if self.lanes[index].batch.len() >= BATCH_MAX {
            self.flush_lane(index);
        }
    }

    /// Sends what was taken, and what may go again.
    pub fn flush(&mut self) {
        if !self.recovering.is_empty() {
            self.send_again(Instant::now());
        }
        (0..self.lanes.len()).for_each(|index| self.flush_lane(index));
    }

    fn flush_lane(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        if lane.batch.is_empty() {
            return;
        }
        let (actor, life) = self.shards.get(index);
        if life != lane.life {
            // A successor must not get newer events before the lost ones are known to be lost.
            if lane.unanswered > 0 {
                return;
            }
            lane.life = life;
        }
        let mut events = Vec::with_capacity(lane.batch.len());
        for Numbered { number, in_flight } in lane.batch.drain(..) {
            match self.recovering.get_mut(&in_flight.event.user) {
                Some(recovery) if !in_flight.first => _ = recovery.waiting.insert(number, in_flight),
                _ => events.push(in_flight),
            }
        }
        lane.unanswered += events.len();
        // An actor that is gone drops the message; every permit in it says so.
        let _ = actor.cast(Msg::Events(events));
    }

    /// Notes what became of an event. `under_way` counts, when asked, the unsettled events of its user that
    /// this router was given, this one not included.
    pub fn answered(&mut self, answer: &Answer<'_>, under_way: impl FnOnce() -> usize) {
        let index = self.shards.actor_of(&answer.event.user);
        let lane = &mut self.lanes[index];
        lane.unanswered = lane.unanswered.saturating_sub(1);
        let user = &answer.event.user;
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
                let waiting: BTreeMap<_, _> = unsent.map(|unsent| (unsent.number, unsent.in_flight)).collect();
                let unanswered = under_way().saturating_sub(waiting.len());
                self.recovering.entry(user.clone()).or_insert(Recovery { unanswered, waiting, not_before: None })
            }
        };
        let wait = if answer.outcome == Outcome::Crashed { AGAIN_AFTER_CRASH } else { AGAIN_AFTER };
        recovery.not_before = recovery.not_before.max(Some(Instant::now() + wait));
        let permit = Permit::new(reports.clone(), answer.record);
        let again = InFlight { event: answer.event.clone(), permit, first: false };
        recovery.waiting.insert(answer.number, again);
    }

    fn send_again(&mut self, now: Instant) {
        let due = self
            .recovering
            .extract_if(|_, recovery| recovery.unanswered == 0 && recovery.not_before.is_none_or(|at| at <= now));
        for (user, recovery) in due.collect::<Vec<_>>() {
            let index = self.shards.actor_of(&user);
            for (at, (number, mut in_flight)) in recovery.waiting.into_iter().enumerate() {
                in_flight.first = at == 0;
                self.lanes[index].batch.push(Numbered { number, in_flight });
            }
        }
    }

    /// Whether events wait to go again: somebody should call [`Self::flush`] soon.
    #[must_use]
    pub fn is_recovering(&self) -> bool {
        !self.recovering.is_empty() || self.lanes.iter().any(|lane| !lane.batch.is_empty())
    }
}

#[cfg(test)]
mod tests;
