//! The log in memory: all that a durable engine promises, for as long as the process lives. Bounded per
//! user by `log.per_user_max` and over all users by `log.memory_bytes_max` (oldest first) and `log.retention`.

use std::{
    collections::{HashMap, VecDeque},
    future::ready,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    Acknowledgement, Answer, Appended, Entry, Opened, Page, PageLimit, Store,
    positions::{Known, LogName, Positions},
};
use crate::{
    event::{Event, Notification, UnixMillis, unix_millis_now},
    ids::{DeviceId, LogEpoch, NotificationId, Sequence, UserId},
    placement::shard,
    wire::{Gap, GapReason},
};

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
}

impl MemoryStore {
    /// An empty log with a new epoch.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config, epoch: LogEpoch::random(), stripes: (0..STRIPES).map(|_| Mutex::default()).collect() }
    }

    fn stripe(&self, user: &str) -> &Mutex<Stripe> {
        &self.stripes[usize::from(shard(user, STRIPES).0)]
    }

    fn append_one(&self, event: &Arc<Event>, now: UnixMillis) -> Appended {
        if event.expires_at().is_some_and(|at| at <= now) {
            return Appended::Expired;
        }
        let mut stripe = self.stripe(&event.user).lock();
        let stripe = &mut *stripe;
        let log = stripe.users.entry(event.user.clone()).or_default();
        if let Some(seq) = log.ids.get(&event.id).copied()
            && log.get(seq).is_some_and(|old| {
                event.recorded_at.saturating_sub(old.recorded_at) <= millis(self.config.dedup_window)
            })
        {
            return Appended::Duplicate(seq);
        }
        log.entries.push_back(event.clone());
        let seq = log.head();
        log.ids.insert(event.id.clone(), seq);
        stripe.bytes += event.size_bytes();
        stripe.entries += 1;
        stripe.age.push_back((event.user.clone(), seq, now));
        while log.entries.len() > self.config.per_user_max {
            stripe.bytes -= log.drop_oldest(GapReason::Evicted);
            stripe.entries -= 1;
        }
        stripe.forget_gone();
        stripe.enforce(&self.config, now);
        Appended::Stored(seq)
    }

    fn read_page(&self, user: &str, after: Sequence, limit: PageLimit, now: UnixMillis) -> Page {
        let mut stripe = self.stripe(user).lock();
        stripe.enforce(&self.config, now);
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
    fn enforce(&mut self, config: &Config, now: UnixMillis) {
        let bytes_max = config.bytes_max / usize::from(STRIPES);
        let oldest_kept = now.saturating_sub(millis(config.retention));
        while let Some((user, seq, stored_at)) = self.age.front() {
            let log = self.users.get_mut(user).filter(|log| log.lost < *seq);
            let reason = if *stored_at < oldest_kept { GapReason::Expired } else { GapReason::Evicted };
            match log {
                None => {}
                Some(_) if reason == GapReason::Evicted && self.bytes <= bytes_max => return,
                Some(log) => {
                    self.bytes -= log.drop_oldest(reason);
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

    /// Forgets the oldest entry and says how many bytes that were.
    fn drop_oldest(&mut self, reason: GapReason) -> usize {
        let Some(event) = self.entries.pop_front() else { return 0 };
        self.lost += 1;
        self.lost_by = Some(reason);
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
            if event.expires_at().is_some_and(|at| at <= now) {
                page.push_expired(seq);
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
    /// Notes one expired number, joined to the gap before it.
    fn push_expired(&mut self, seq: Sequence) {
        match self.entries.last_mut() {
            Some(Entry::Gap(gap)) if gap.reason == GapReason::Expired && gap.to + 1 == seq => gap.to = seq,
            _ => self.entries.push(Entry::Gap(Gap { from: seq, to: seq, reason: GapReason::Expired })),
        }
    }
}

impl Store for MemoryStore {
    fn epoch(&self) -> LogEpoch {
        self.epoch.clone()
    }

    fn open<'a>(&'a self, user: &'a UserId, device: Option<&'a DeviceId>) -> Answer<'a, Opened> {
        let mut stripe = self.stripe(user).lock();
        // A device that was seen keeps the cursor it started with, even when the shared one moves on.
        if device.is_some() {
            stripe.users.entry(user.clone()).or_default().acknowledge(device, 0);
        }
        let opened = stripe
            .users
            .get(user)
            .map_or_else(Opened::default, |log| Opened { head: log.head(), cursor: log.cursor(device) });
        Box::pin(ready(Ok(opened)))
    }

    fn append<'a>(&'a self, events: &'a [Arc<Event>]) -> Answer<'a, Vec<Appended>> {
        let now = unix_millis_now();
        Box::pin(ready(Ok(events.iter().map(|event| self.append_one(event, now)).collect())))
    }

    fn read<'a>(&'a self, user: &'a UserId, after: Sequence, limit: PageLimit) -> Answer<'a, Page> {
        Box::pin(ready(Ok(self.read_page(user, after, limit, unix_millis_now()))))
    }

    fn acknowledge<'a>(&'a self, acknowledged: &'a [Acknowledgement]) -> Answer<'a, ()> {
        for Acknowledgement { user, device, seq } in acknowledged {
            if let Some(log) = self.stripe(user).lock().users.get_mut(user) {
                log.acknowledge(device.as_ref(), *seq);
            }
        }
        Box::pin(ready(Ok(())))
    }

    fn was(&self, _: &str) -> bool {
        false
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

    fn begin<'a>(&'a self, _: &'a LogName, _: &'a [(i32, i64)]) -> Answer<'a, ()> {
        Box::pin(ready(Ok(())))
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::Options;

    const ALL: PageLimit = PageLimit { items: 1000, bytes: 1 << 20 };

    fn store(per_user_max: usize, bytes_max: usize) -> MemoryStore {
        let day = Duration::from_secs(86_400);
        MemoryStore::new(Config { retention: 7 * day, per_user_max, dedup_window: day, bytes_max })
    }

    fn event(user: &str, id: &str, ttl: Option<Duration>) -> Arc<Event> {
        let now = unix_millis_now();
        Arc::new(Event {
            user: UserId::new(user).unwrap(),
            session: None,
            id: NotificationId::new(id).unwrap(),
            notification_type: "t".into(),
            payload: "1".into(),
            options: Options { ttl, ..Options::default() },
            created_at: now,
            recorded_at: now,
        })
    }

    fn append(store: &MemoryStore, id: &str) -> Appended {
        store.append_one(&event("u", id, None), unix_millis_now())
    }

    async fn acknowledge(store: &MemoryStore, user: &UserId, device: Option<&DeviceId>, seq: Sequence) {
        let one = Acknowledgement { user: user.clone(), device: device.cloned(), seq };
        store.acknowledge(&[one]).await.unwrap();
    }

    /// Numbers as they are, gaps as `from-to reason`.
    fn shape(page: &Page) -> Vec<String> {
        let text = |entry: &Entry| match entry {
            Entry::Notification(n) => n.seq.unwrap().to_string(),
            Entry::Gap(gap) => format!("{}-{} {:?}", gap.from, gap.to, gap.reason),
        };
        page.entries.iter().map(text).collect()
    }

    #[test]
    fn numbers_begin_at_one_and_an_id_is_recognised_again() {
        let store = store(10, 1 << 20);
        assert_eq!(append(&store, "a"), Appended::Stored(1));
        assert_eq!(append(&store, "b"), Appended::Stored(2));
        assert_eq!(append(&store, "a"), Appended::Duplicate(1));
        assert_eq!(append(&store, "c"), Appended::Stored(3));
    }

    #[test]
    fn pages_follow_each_other_without_holes() {
        let store = store(10, 1 << 20);
        (0..7).for_each(|i| _ = append(&store, &i.to_string()));
        let limit = PageLimit { items: 3, ..ALL };
        let mut after = 0;
        let mut seen = Vec::new();
        for _ in 0..4 {
            let page = store.read_page("u", after, limit, unix_millis_now());
            after = page.covers;
            seen.push(shape(&page));
        }
        assert_eq!(seen, [vec!["1", "2", "3"], vec!["4", "5", "6"], vec!["7"], vec![]]);
    }

    #[test]
    fn a_notification_larger_than_the_page_still_comes() {
        let store = store(10, 1 << 20);
        append(&store, "a");
        append(&store, "b");
        let page = store.read_page("u", 0, PageLimit { items: 10, bytes: 1 }, unix_millis_now());
        assert_eq!(shape(&page), ["1"]);
    }

    #[test]
    fn what_a_users_cap_took_is_a_gap_and_numbers_go_on() {
        let store = store(2, 1 << 20);
        (0..5).for_each(|i| _ = append(&store, &i.to_string()));
        let page = store.read_page("u", 1, ALL, unix_millis_now());
        assert_eq!(shape(&page), ["2-3 Evicted", "4", "5"]);
    }

    #[test]
    fn retention_takes_the_oldest_and_the_head_stays() {
        let store = store(10, 1 << 20);
        append(&store, "a");
        let much_later = unix_millis_now() + millis(Duration::from_secs(8 * 86_400));
        let page = store.read_page("u", 0, ALL, much_later);
        assert_eq!(shape(&page), ["1-1 Expired"]);
        assert_eq!(append(&store, "b"), Appended::Stored(2));
    }

    #[test]
    fn the_bytes_of_all_users_are_bounded_oldest_first() {
        let one = event("u", "00", None).size_bytes();
        let store = store(1000, (one * 3 + one / 2) * usize::from(STRIPES));
        (10..20).for_each(|i| _ = append(&store, &i.to_string()));
        assert_eq!(shape(&store.read_page("u", 0, ALL, unix_millis_now())), ["1-7 Evicted", "8", "9", "10"]);
        assert!(store.stripe("u").lock().bytes <= one * 4);
    }

    #[test]
    fn expired_ones_are_announced_and_those_that_come_expired_get_no_number() {
        let store = store(10, 1 << 20);
        let now = unix_millis_now();
        let minute = Some(Duration::from_secs(60));
        for (id, ttl) in [("a", None), ("b", minute), ("c", minute), ("d", None)] {
            store.append_one(&event("u", id, ttl), now);
        }
        assert_eq!(shape(&store.read_page("u", 0, ALL, now + 61_000)), ["1", "2-3 Expired", "4"]);
        assert_eq!(store.append_one(&event("u", "e", minute), now + 61_000), Appended::Expired);
    }

    #[tokio::test]
    async fn cursors_rise_only_and_a_new_device_starts_at_the_shared_one() {
        let store = store(10, 1 << 20);
        (0..5).for_each(|i| _ = append(&store, &i.to_string()));
        let user = UserId::new("u").unwrap();
        let (phone, laptop) = (DeviceId::new("phone").unwrap(), DeviceId::new("laptop").unwrap());
        let cursor = async |device| store.open(&user, device).await.unwrap().cursor;
        acknowledge(&store, &user, None, 2).await;
        acknowledge(&store, &user, None, 1).await;
        assert_eq!(cursor(None).await, 2);
        assert_eq!(cursor(Some(&phone)).await, 2);
        acknowledge(&store, &user, Some(&phone), 4).await;
        acknowledge(&store, &user, None, 99).await;
        assert_eq!((cursor(None).await, cursor(Some(&phone)).await, cursor(Some(&laptop)).await), (5, 4, 5));
    }

    #[tokio::test]
    async fn a_device_that_came_before_the_first_notification_has_a_cursor_of_its_own() {
        let store = store(10, 1 << 20);
        let (user, phone) = (UserId::new("u").unwrap(), DeviceId::new("phone").unwrap());
        assert_eq!(store.open(&user, Some(&phone)).await.unwrap(), Opened::default());
        append(&store, "a");
        acknowledge(&store, &user, None, 1).await;
        assert_eq!(store.open(&user, Some(&phone)).await.unwrap(), Opened { head: 1, cursor: 0 });
    }

    #[test]
    fn what_a_cap_took_does_not_pile_up_behind_a_quiet_users_entry() {
        let store = store(2, 1 << 20);
        store.append_one(&event("quiet", "a", None), unix_millis_now());
        let stripe_of = |user: &str| shard(user, STRIPES);
        let busy = (0..).map(|i| i.to_string()).find(|user| stripe_of(user) == stripe_of("quiet")).unwrap();
        for i in 0..5000 {
            store.append_one(&event(&busy, &i.to_string(), None), unix_millis_now());
        }
        let stripe = store.stripe("quiet").lock();
        assert!(stripe.age.len() <= 2 * 3 + AGE_SLACK + 1 && stripe.entries == 3, "{}", stripe.age.len());
    }

    #[tokio::test]
    async fn a_user_cannot_fill_the_memory_with_devices() {
        let store = store(10, 1 << 20);
        append(&store, "a");
        let user = UserId::new("u").unwrap();
        for i in 0..500 {
            let device = DeviceId::new(format!("d{i}")).unwrap();
            acknowledge(&store, &user, Some(&device), 1).await;
        }
        assert_eq!(store.stripe("u").lock().users["u"].devices.len(), DEVICES_PER_USER_MAX);
    }

    proptest! {
        /// Whatever is kept or lost, reading covers every number exactly once, in order.
        #[test]
        fn reading_accounts_for_every_number(count in 1u64..60, cap in 1usize..20, items in 1usize..8, after in 0u64..60) {
            let store = store(cap, 1 << 20);
            (0..count).for_each(|i| _ = append(&store, &i.to_string()));
            let (mut at, mut covered) = (after.min(count), Vec::new());
            let start = at;
            loop {
                let page = store.read_page("u", at, PageLimit { items, ..ALL }, unix_millis_now());
                if page.covers == at { break }
                at = page.covers;
                for entry in page.entries {
                    match entry {
                        Entry::Notification(n) => covered.push(n.seq.unwrap()),
                        Entry::Gap(gap) => covered.extend(gap.from..=gap.to),
                    }
                }
            }
            prop_assert_eq!(covered, (start + 1..=count).collect::<Vec<_>>());
        }
    }
}
