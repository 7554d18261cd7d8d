//! What waits for a user's rate limits: which comes next, which has been overtaken by a newer one, and what is too much
//! and is only counted. Everything in it is stored before it counts as settled; this decides, and keeps the order.
//! Pure: time is passed in.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use serde::Serialize;
use tokio::time::Instant;

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
    queues: [VecDeque<Item>; Priority::COUNT],
    items: usize,
    bytes: usize,
    /// The one that will tell of those for which there was no room.
    digest: Option<NotificationId>,
}

#[derive(Debug)]
struct Item {
    event: Arc<Event>,
    /// A newer one with its key is on its way into the store, and takes its place when it is there.
    overtaken: bool,
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

    fn events(&self) -> impl Iterator<Item = &Arc<Event>> {
        self.queues.iter().flatten().map(|item| &item.event)
    }

    /// The one whose place a newer one with the same key takes, if that gets into the store.
    pub fn overtaken_by(&mut self, newer: &Event) -> Option<Arc<Event>> {
        let key = newer.options.collapse_key.as_ref()?;
        let is_older = |item: &&mut Item| {
            !item.overtaken && item.event.options.collapse_key.as_ref() == Some(key) && item.event.id != newer.id
        };
        let older = self.queues.iter_mut().flatten().find(is_older)?;
        older.overtaken = true;
        Some(older.event.clone())
    }

    /// It did not: the older one stays.
    pub fn stays(&mut self, older: &Arc<Event>) {
        let same = |item: &&mut Item| Arc::ptr_eq(&item.event, older);
        if let Some(item) = self.queues.iter_mut().flatten().find(same) {
            item.overtaken = false;
        }
    }

    /// Finds a place for an event that is over its limit. `replaces`: another one goes for it.
    pub fn insert(&mut self, event: &Arc<Event>, bounds: Bounds, replaces: bool) -> Place {
        if self.events().any(|waiting| waiting.id == event.id) {
            return Place::Known;
        }
        let bytes = event.size_bytes();
        let has_room = self.digest.is_none() && self.items < bounds.items && self.bytes + bytes <= bounds.bytes;
        // Once a burst is folded, the rest of it is: a digest tells of all that came until those before it are gone.
        if !has_room && !replaces {
            return Place::Folded(self.digest.get_or_insert_with(NotificationId::time_ordered).clone());
        }
        self.items += 1;
        self.bytes += bytes;
        let priority = event.options.priority;
        metric::buffered(priority, 1);
        self.queues[priority as usize].push_back(Item { event: event.clone(), overtaken: false });
        Place::Waits
    }

    /// Takes one out, whatever its place.
    pub fn remove(&mut self, id: &str) -> Option<Arc<Event>> {
        self.take_out(|event| *event.id == *id)
    }

    /// Takes out this very one, and no copy of it.
    pub fn remove_same(&mut self, one: &Arc<Event>) -> Option<Arc<Event>> {
        self.take_out(|event| Arc::ptr_eq(event, one))
    }

    fn take_out(&mut self, is_it: impl Fn(&Arc<Event>) -> bool) -> Option<Arc<Event>> {
        for queue in &mut self.queues {
            if let Some(at) = queue.iter().position(|item| is_it(&item.event)) {
                let Item { event, .. } = queue.remove(at)?;
                self.forget(&event);
                return Some(event);
            }
        }
        None
    }

    fn forget(&mut self, event: &Event) {
        self.items -= 1;
        self.bytes -= event.size_bytes();
        metric::buffered(event.options.priority, -1);
    }

    /// Takes out what may not be delivered any more.
    pub fn expired(&mut self, now: UnixMillis) -> Vec<Arc<Event>> {
        let is_over = |event: &&Arc<Event>| event.expires_at().is_some_and(|at| at <= now);
        let over: Vec<_> = self.events().filter(is_over).cloned().collect();
        over.iter().filter_map(|event| self.remove_same(event)).collect()
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
        let Item { event, .. } = self.queues[priority as usize].pop_front()?;
        self.forget(&event);
        Some(event)
    }

    /// When the next one may go.
    #[must_use]
    pub fn next(&self, limiter: &Limiter, limits: &Limits, now: Instant) -> Option<Instant> {
        let waiting = Priority::ALL.into_iter().filter(|priority| self.has(*priority));
        waiting.map(|priority| limiter.next(limits, priority, now).unwrap_or(now)).min()
    }

    /// Whether this digest may still grow.
    #[must_use]
    pub fn is_open(&self, digest: &NotificationId) -> bool {
        self.digest.as_ref() == Some(digest)
    }

    /// Closes the digest when all that came before it is gone; whether there was one.
    pub fn close_digest(&mut self) -> bool {
        self.items == 0 && self.digest.take().is_some()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        for event in self.events() {
            metric::buffered(event.options.priority, -1);
        }
    }
}

/// What a digest says.
#[derive(Serialize)]
struct Payload<'a> {
    /// How many there are.
    count: u64,
    /// How many of each type.
    types: BTreeMap<&'a str, u64>,
    /// The first record's timestamp, in milliseconds since 1970.
    from: UnixMillis,
    /// The last record's timestamp.
    to: UnixMillis,
}

/// The digest that tells of these.
#[must_use]
pub fn digest(user: &UserId, folded: Folded, now: UnixMillis) -> Arc<Event> {
    let Folded { digest: id, counts, from, to } = folded;
    let mut types: BTreeMap<&str, u64> = BTreeMap::new();
    for (of_type, count) in &counts {
        let is_named = types.len() < DIGEST_TYPES_MAX || types.contains_key(&**of_type);
        *types.entry(if is_named { of_type } else { OTHER_TYPES }).or_default() += count;
    }
    let payload = Payload { count: types.values().sum(), types, from, to };
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

#[cfg(test)]
mod tests;
