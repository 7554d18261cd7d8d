//! What waits for a user's rate limits: which comes next, which has been overtaken by a newer one, and what is too much
//! and is only counted. Everything in it is stored before it counts as settled; this decides, and keeps the order.
//! Pure: time is passed in.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use serde::Serialize;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    limiter::{Limiter, Limits},
    metric,
};
use crate::{
    event::{Durability, Event, Options, Priority, UnixMillis},
    ids::{NotificationId, UserId},
    store::waiting::Folded,
};

/// The type of a digest.
pub const DIGEST_TYPE: &str = "notifier.digest";
/// Types that a digest counts by name; the others are counted together.
const DIGEST_TYPES_MAX: usize = 50;
/// The name of those others.
const OTHER_TYPES: &str = "…";

/// How much may wait for one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Notifications.
    pub items: usize,
    /// Bytes of events.
    pub bytes: usize,
}

/// Where an event that is over its limit goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// It waits.
    Waits,
    /// There is no room: it is counted in the digest of this id.
    Folded(NotificationId),
    /// It waits already: somebody has sent it twice.
    Known,
}

/// What waits for one user.
#[derive(Debug, Default)]
pub struct Buffer {
    /// For each priority in the order of arrival.
    queues: [VecDeque<Arc<Event>>; Priority::COUNT],
    items: usize,
    bytes: usize,
    digest: Option<Digest>,
}

#[derive(Debug)]
struct Digest {
    id: NotificationId,
    counts: BTreeMap<Box<str>, u64>,
    from: UnixMillis,
    to: UnixMillis,
}

impl Buffer {
    /// Whether nothing waits and no digest is owed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items == 0 && self.digest.is_none()
    }

    /// Whether one of this priority would overtake others if it did not wait.
    #[must_use]
    pub fn has(&self, priority: Priority) -> bool {
        !self.queues[priority as usize].is_empty()
    }

    /// The one with this id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<&Arc<Event>> {
        self.queues.iter().flatten().find(|event| *event.id == *id)
    }

    /// Takes out the one that a newer one with the same key overtakes.
    pub fn superseded_by(&mut self, newer: &Event) -> Option<Arc<Event>> {
        let key = newer.options.collapse_key.as_ref()?;
        let is_older = |event: &Arc<Event>| event.options.collapse_key.as_ref() == Some(key) && event.id != newer.id;
        let id = self.queues.iter().flatten().find(|event| is_older(event))?.id.clone();
        self.remove(&id)
    }

    /// Finds a place for an event that is over its limit.
    pub fn insert(&mut self, event: &Arc<Event>, bounds: Bounds) -> Place {
        if self.find(&event.id).is_some() {
            return Place::Known;
        }
        let bytes = event.size_bytes();
        // Once a burst is folded, the rest of it is: nobody could tell which of them are in the digest.
        if self.digest.is_some() || self.items >= bounds.items || self.bytes + bytes > bounds.bytes {
            return Place::Folded(self.fold(event));
        }
        self.items += 1;
        self.bytes += bytes;
        let priority = event.options.priority;
        metric::buffered(priority, 1);
        self.queues[priority as usize].push_back(event.clone());
        Place::Waits
    }

    fn fold(&mut self, event: &Event) -> NotificationId {
        let digest = self.digest.get_or_insert_with(|| Digest {
            id: digest_id(event),
            counts: BTreeMap::new(),
            from: event.recorded_at,
            to: event.recorded_at,
        });
        digest.count(&event.notification_type, 1);
        digest.from = digest.from.min(event.recorded_at);
        digest.to = digest.to.max(event.recorded_at);
        digest.id.clone()
    }

    /// Takes one out, whatever its place.
    pub fn remove(&mut self, id: &str) -> Option<Arc<Event>> {
        let queue = self.queues.iter_mut().find(|queue| queue.iter().any(|event| *event.id == *id))?;
        let at = queue.iter().position(|event| *event.id == *id)?;
        let event = queue.remove(at)?;
        self.forget(&event);
        Some(event)
    }

    fn forget(&mut self, event: &Event) {
        self.items -= 1;
        self.bytes -= event.size_bytes();
        metric::buffered(event.options.priority, -1);
    }

    /// Takes out what may not be delivered any more.
    pub fn expired(&mut self, now: UnixMillis) -> Vec<Arc<Event>> {
        let is_over = |event: &&Arc<Event>| event.expires_at().is_some_and(|at| at <= now);
        let over: Vec<_> = self.queues.iter().flatten().filter(is_over).map(|event| event.id.clone()).collect();
        over.iter().filter_map(|id| self.remove(id)).collect()
    }

    /// Takes out the next one that a limiter lets go: the highest priority first, in one the oldest.
    pub fn release(&mut self, limiter: &mut Limiter, limits: &Limits, now: Instant) -> Option<Arc<Event>> {
        let may_go = |priority: &Priority| self.has(*priority) && limiter.next(limits, *priority, now).is_none();
        let priority = Priority::ALL.into_iter().find(may_go)?;
        limiter.take(limits, priority, now);
        self.take(priority)
    }

    /// Takes out the next one, whatever the limits say.
    pub fn take_any(&mut self) -> Option<Arc<Event>> {
        self.take(Priority::ALL.into_iter().find(|priority| self.has(*priority))?)
    }

    fn take(&mut self, priority: Priority) -> Option<Arc<Event>> {
        let event = self.queues[priority as usize].pop_front()?;
        self.forget(&event);
        Some(event)
    }

    /// When the next one may go.
    #[must_use]
    pub fn next(&self, limiter: &Limiter, limits: &Limits, now: Instant) -> Option<Instant> {
        let waiting = Priority::ALL.into_iter().filter(|priority| self.has(*priority));
        waiting.map(|priority| limiter.next(limits, priority, now).unwrap_or(now)).min()
    }

    /// The digest that is owed, when all that came before it is gone.
    pub fn digest(&mut self, user: &UserId, now: UnixMillis) -> Option<Arc<Event>> {
        if self.items > 0 {
            return None;
        }
        let Digest { id, counts, from, to } = self.digest.take()?;
        Some(digest(user, id, counts, (from, to), now))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        for event in self.queues.iter().flatten() {
            metric::buffered(event.options.priority, -1);
        }
    }
}

impl Digest {
    fn count(&mut self, of_type: &str, count: u64) {
        let known = self.counts.len() < DIGEST_TYPES_MAX || self.counts.contains_key(of_type);
        let name = if known { of_type } else { OTHER_TYPES };
        *self.counts.entry(name.into()).or_default() += count;
    }
}

/// The same burst has the same digest, whoever makes it: a digest that was made twice is delivered once.
fn digest_id(first: &Event) -> NotificationId {
    let name = format!("{}\u{1f}{}", first.user, first.id);
    NotificationId::of_uuid(Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()))
}

/// What a digest says.
#[derive(Serialize)]
struct Payload<'a> {
    /// How many there are.
    count: u64,
    /// How many of each type.
    types: &'a BTreeMap<Box<str>, u64>,
    /// The first record's timestamp, in milliseconds since 1970.
    from: UnixMillis,
    /// The last record's timestamp.
    to: UnixMillis,
}

fn digest(
    user: &UserId,
    id: NotificationId,
    counts: BTreeMap<Box<str>, u64>,
    (from, to): (UnixMillis, UnixMillis),
    now: UnixMillis,
) -> Arc<Event> {
    let payload = Payload { count: counts.values().sum(), types: &counts, from, to };
    Arc::new(Event {
        user: user.clone(),
        session: None,
        id,
        notification_type: DIGEST_TYPE.into(),
        payload: serde_json::to_string(&payload).expect("plain values").into(),
        options: Options { durability: Durability::Durable, ..Options::default() },
        created_at: now,
        recorded_at: now,
    })
}

/// A digest that is owed since before a crash.
#[must_use]
pub fn owed(user: &UserId, folded: Folded, now: UnixMillis) -> Arc<Event> {
    let Folded { digest: id, counts, from, to } = folded;
    let mut made = Digest { id, counts: BTreeMap::new(), from, to };
    counts.iter().for_each(|(of_type, count)| made.count(of_type, *count));
    digest(user, made.id, made.counts, (from, to), now)
}

#[cfg(test)]
mod tests;
