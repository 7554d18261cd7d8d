//! The log in memory: all that a durable engine promises, for as long as the process lives. Bounded per
//! user by `log.per_user_max` and over all users by `log.memory_bytes_max` (oldest first) and `log.retention`.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    future::ready,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use self::journal::{Told, Waited};
use super::{
    Acknowledgement, Answer, Appended, Entry, Grouping, Opened, Opening, Page, PageLimit, Store, Try,
    journal::Step,
    positions::{Known, LogName, Positions},
};
use crate::{
    event::{Event, Notification, UnixMillis, unix_millis_now},
    ids::{DeviceId, LogEpoch, NotificationId, Sequence, UserId},
    placement::shard,
    state::Reason,
    wire::{Gap, GapReason},
};

mod journal;

/// Parts of the log with a lock each, so that users rarely wait for one another.
const STRIPES: u16 = 16;
/// So many stale places are tolerated before a sweep.
const AGE_SLACK: usize = 1024;
/// As in the other engines.
const DEVICES_PER_USER_MAX: usize = super::DEVICES_PER_USER_MAX as usize;

/// The log's bounds.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long an event is kept.
    pub retention: Duration,
    /// Notifications a user; the oldest go first.
    pub per_user_max: usize,
    /// Within this time an id is recognised again.
    pub dedup_window: Duration,
    /// Bytes of events over all users; the oldest go first.
    pub bytes_max: usize,
}

/// The store in memory.
pub struct MemoryStore {
    config: Config,
    epoch: LogEpoch,
    stripes: Vec<Mutex<Stripe>>,
    told: Told,
}

#[derive(Default)]
struct Stripe {
    users: HashMap<UserId, Log>,
    /// What is stored, oldest first; entries that are gone already are skipped.
    age: VecDeque<(UserId, Sequence, UnixMillis)>,
    /// How many entries there are.
    entries: usize,
    bytes: usize,
}

#[derive(Default)]
struct Log {
    /// The number of the first entry kept is `lost + 1`.
    lost: Sequence,
    lost_by: Option<GapReason>,
    entries: VecDeque<Arc<Event>>,
    ids: HashMap<NotificationId, Sequence>,
    cursor: Sequence,
    /// In the order of use, the latest last.
    devices: Vec<(DeviceId, Sequence)>,
    /// Numbers that must not be delivered.
    removed: BTreeMap<Sequence, Reason>,
    /// What waits, or has ended while it waited, in the order of holding.
    waiting: Vec<Waited>,
    /// What happened, oldest first.
    steps: VecDeque<Step>,
    /// The highest number that a session was given.
    handed: Sequence,
}

impl MemoryStore {
    /// An empty log with a new epoch.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let stripes = (0..STRIPES).map(|_| Mutex::default()).collect();
        Self { config, epoch: LogEpoch::random(), stripes, told: Told::default() }
    }

    fn stripe(&self, user: &str) -> &Mutex<Stripe> {
        &self.stripes[usize::from(shard(user, STRIPES).0)]
    }

    /// A user's log loses everything behind this number, as a restored one does.
    #[cfg(test)]
    pub(crate) fn go_back(&self, user: &UserId, kept: Sequence) {
        let mut stripe = self.stripe(user).lock();
        let log = stripe.users.entry(user.clone()).or_default();
        log.entries.truncate(usize::try_from(kept - log.lost).expect("a few"));
        log.ids.retain(|_, seq| *seq <= kept);
    }

    fn append_one(&self, event: &Arc<Event>, now: UnixMillis) -> Appended {
        if event.expires_at().is_some_and(|at| at <= now) {
            return Appended::Expired;
        }
        let mut stripe = self.stripe(&event.user).lock();
        let stripe = &mut *stripe;
        let log = stripe.users.entry(event.user.clone()).or_default();
        if let Some(seq) = log.known(event, self.config.dedup_window) {
            return Appended::Duplicate(seq);
        }
        if let Some(at) = log.waiting.iter().position(|one| one.event.id == event.id) {
            if log.waiting[at].ended.is_some() {
                return Appended::Known;
            }
            log.waiting.remove(at);
        }
        log.entries.push_back(event.clone());
        let seq = log.head();
        log.ids.insert(event.id.clone(), seq);
        stripe.bytes += event.size_bytes();
        stripe.entries += 1;
        stripe.age.push_back((event.user.clone(), seq, now));
        while log.entries.len() > self.config.per_user_max {
            stripe.bytes -= log.drop_oldest(GapReason::Evicted, now, &self.told);
            stripe.entries -= 1;
        }
        stripe.forget_gone();
        stripe.enforce(&self.config, now, &self.told);
        Appended::Stored(seq)
    }

    fn open_one(&self, Opening { user, device }: &Opening) -> Opened {
        let device = device.as_ref();
        let mut stripe = self.stripe(user).lock();
        // A device that was seen keeps the cursor it started with, even when the shared one moves on.
        if device.is_some() {
            stripe.users.entry(user.clone()).or_default().acknowledge(device, 0);
        }
        let marks =
            |log: &Log| Opened { head: log.head(), cursor: log.cursor(device), acknowledged: log.acknowledged() };
        stripe.users.get(user).map_or_else(Opened::default, marks)
    }

    fn read_page(&self, user: &str, after: Sequence, limit: PageLimit, now: UnixMillis) -> Page {
        let mut stripe = self.stripe(user).lock();
        stripe.enforce(&self.config, now, &self.told);
        let Some(log) = stripe.users.get(user) else { return Page { entries: Vec::new(), covers: after } };
        log.page(after, limit, now)
    }
}

fn millis(time: Duration) -> UnixMillis {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

impl Stripe {
    /// Entries that a user's own cap took leave `age` only when they come to its front, which one old entry of a
    /// quiet user can put off for the whole retention: now and then they are swept out.
    fn forget_gone(&mut self) {
        if self.age.len() > 2 * self.entries + AGE_SLACK {
            let users = &self.users;
            self.age.retain(|(user, seq, _)| users.get(user).is_some_and(|log| log.lost < *seq));
        }
    }

    /// Lets the oldest go until the bounds over all users hold.
    fn enforce(&mut self, config: &Config, now: UnixMillis, told: &Told) {
        let bytes_max = config.bytes_max / usize::from(STRIPES);
        let oldest_kept = now.saturating_sub(millis(config.retention));
        while let Some((user, seq, stored_at)) = self.age.front() {
            let log = self.users.get_mut(user).filter(|log| log.lost < *seq);
            let reason = if *stored_at < oldest_kept { GapReason::Expired } else { GapReason::Evicted };
            match log {
                None => {}
                Some(_) if reason == GapReason::Evicted && self.bytes <= bytes_max => return,
                Some(log) => {
                    self.bytes -= log.drop_oldest(reason, now, told);
                    self.entries -= 1;
                }
            }
            self.age.pop_front();
        }
    }
}

impl Log {
    fn head(&self) -> Sequence {
        self.lost + self.entries.len() as Sequence
    }

    fn get(&self, seq: Sequence) -> Option<&Arc<Event>> {
        self.entries.get(usize::try_from(seq.checked_sub(self.lost + 1)?).ok()?)
    }

    /// The number of an event with the same id.
    fn known(&self, event: &Event, dedup_window: Duration) -> Option<Sequence> {
        let seq = *self.ids.get(&event.id)?;
        let age = event.recorded_at.saturating_sub(self.get(seq)?.recorded_at);
        (age <= millis(dedup_window)).then_some(seq)
    }

    /// The highest number that any device has acknowledged.
    fn acknowledged(&self) -> Sequence {
        self.devices.iter().map(|(_, cursor)| *cursor).fold(self.cursor, Sequence::max)
    }

    /// Forgets the oldest entry and says how many bytes that were.
    fn drop_oldest(&mut self, reason: GapReason, now: UnixMillis, told: &Told) -> usize {
        let Some(event) = self.entries.pop_front() else { return 0 };
        self.lost += 1;
        self.lost_by = Some(reason);
        if self.removed.remove(&self.lost).is_none() && self.acknowledged() < self.lost {
            let has_expired = reason == GapReason::Expired || event.expires_at().is_some_and(|at| at <= now);
            let reason = if has_expired { Reason::Expired } else { Reason::Evicted };
            self.tell(Step::ended(&event, self.lost, reason, now), told);
        }
        if self.ids.get(&event.id) == Some(&self.lost) {
            self.ids.remove(&event.id);
        }
        event.size_bytes()
    }

    fn page(&self, after: Sequence, limit: PageLimit, now: UnixMillis) -> Page {
        let mut page = Page { entries: Vec::new(), covers: after };
        if after < self.lost {
            let reason = self.lost_by.unwrap_or(GapReason::Expired);
            page.entries.push(Entry::Gap(Gap { from: after + 1, to: self.lost, reason }));
            page.covers = self.lost;
        }
        let mut left = limit;
        while let Some(event) = self.get(page.covers + 1) {
            let seq = page.covers + 1;
            let removed = self.removed.get(&seq);
            if removed == Some(&Reason::Cancelled) {
                page.push_missing(seq, GapReason::Cancelled);
            } else if removed.is_some() {
                // Superseded: a newer one says what it would have said.
            } else if event.expires_at().is_some_and(|at| at <= now) {
                page.push_missing(seq, GapReason::Expired);
            } else {
                let first = left == limit;
                let fits = left.items > 0 && left.bytes >= event.size_bytes();
                if !first && !fits {
                    break;
                }
                left.items = left.items.saturating_sub(1);
                left.bytes = left.bytes.saturating_sub(event.size_bytes());
                page.entries.push(Entry::Notification(Notification { seq: Some(seq), event: event.clone() }));
            }
            page.covers = seq;
        }
        page
    }

    fn cursor(&self, device: Option<&DeviceId>) -> Sequence {
        let own = device.and_then(|device| self.devices.iter().find(|(name, _)| name == device));
        own.map_or(self.cursor, |(_, cursor)| *cursor)
    }

    fn acknowledge(&mut self, device: Option<&DeviceId>, seq: Sequence) {
        let seq = seq.min(self.head()).max(self.cursor(device));
        match device {
            None => self.cursor = seq,
            Some(device) => {
                self.devices.retain(|(name, _)| name != device);
                if self.devices.len() >= DEVICES_PER_USER_MAX {
                    self.devices.remove(0);
                }
                self.devices.push((device.clone(), seq));
            }
        }
    }
}

impl Page {
    /// Notes one number that will not come, joined to the gap before it.
    fn push_missing(&mut self, seq: Sequence, reason: GapReason) {
        match self.entries.last_mut() {
            Some(Entry::Gap(gap)) if gap.reason == reason && gap.to + 1 == seq => gap.to = seq,
            _ => self.entries.push(Entry::Gap(Gap { from: seq, to: seq, reason })),
        }
    }
}

impl Store for MemoryStore {
    fn grouping(&self) -> Grouping {
        Grouping { lanes: 4, interval: Duration::ZERO }
    }

    fn epoch(&self) -> LogEpoch {
        self.epoch.clone()
    }

    fn open_all<'a>(&'a self, opening: &'a [Opening]) -> Answer<'a, Vec<Opened>> {
        Box::pin(ready(Ok(opening.iter().map(|one| self.open_one(one)).collect())))
    }

    fn append<'a>(&'a self, events: &'a [Arc<Event>]) -> Answer<'a, Vec<Appended>> {
        let now = unix_millis_now();
        Box::pin(ready(Ok(events.iter().map(|one| self.append_one(one, now)).collect())))
    }

    fn read<'a>(&'a self, user: &'a UserId, after: Sequence, limit: PageLimit) -> Answer<'a, Page> {
        Box::pin(ready(Ok(self.read_page(user, after, limit, unix_millis_now()))))
    }

    fn acknowledge<'a>(&'a self, acknowledged: &'a [Acknowledgement], steps: &'a [Step], _: Try) -> Answer<'a, ()> {
        for Acknowledgement { user, device, seq } in acknowledged {
            if let Some(log) = self.stripe(user).lock().users.get_mut(user) {
                log.acknowledge(device.as_ref(), *seq);
            }
        }
        for step in steps {
            if let Some(log) = self.stripe(&step.user).lock().users.get_mut(&step.user) {
                log.tell(step.clone(), &self.told);
            }
        }
        Box::pin(ready(Ok(())))
    }

    fn was(&self, _: &str) -> bool {
        false
    }

    /// It never lacks what it had.
    fn begin_epoch(&self) -> Answer<'_, ()> {
        Box::pin(ready(Ok(())))
    }

    fn check(&self) -> Answer<'_, ()> {
        Box::pin(ready(Ok(())))
    }

    fn tidy(&self) -> Answer<'_, ()> {
        Box::pin(ready(Ok(())))
    }
}

/// Rows end with the process, so positions are worth nothing here: what is committed to Kafka counts.
impl Positions for MemoryStore {
    fn take<'a>(&'a self, _: &'a LogName, partitions: &'a [i32]) -> Answer<'a, Vec<(i32, Known)>> {
        Box::pin(ready(Ok(partitions.iter().map(|partition| (*partition, Known::Nothing)).collect())))
    }

    fn begin<'a>(&'a self, _: &'a LogName, positions: &'a [(i32, i64)]) -> Answer<'a, Vec<i32>> {
        Box::pin(ready(Ok(positions.iter().map(|(partition, _)| *partition).collect())))
    }

    fn write<'a>(&'a self, _: &'a LogName, _: &'a [(i32, i64)]) -> Answer<'a, ()> {
        Box::pin(ready(Ok(())))
    }

    fn forget<'a>(&'a self, _: &'a LogName) -> Answer<'a, ()> {
        Box::pin(ready(Ok(())))
    }

    fn went_back<'a>(&'a self, _: &'a LogName, _: &'a [(i32, i64)]) -> Answer<'a, ()> {
        Box::pin(ready(Ok(())))
    }
}

#[cfg(test)]
mod tests;
