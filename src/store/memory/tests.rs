//! What is the memory engine's own; what every engine promises stands in `store/tests/contract.rs`.

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
    let event = Event {
        user: UserId::new(user).unwrap(),
        session: None,
        id: NotificationId::new(id).unwrap(),
        notification_type: "t".into(),
        payload: "1".into(),
        options: Options { ttl, ..Options::default() },
        created_at: now,
        recorded_at: now,
    };
    Arc::new(event)
}

fn append(store: &MemoryStore, id: &str) -> Appended {
    store.append_one(&event("u", id, None), unix_millis_now())
}

async fn acknowledge(store: &MemoryStore, user: &UserId, device: Option<&DeviceId>, seq: Sequence) {
    let one = Acknowledgement { user: user.clone(), device: device.cloned(), seq };
    store.acknowledge(&[one], &[], Try::First).await.unwrap();
}

/// Head and cursor.
async fn marks(store: &MemoryStore, user: &UserId, device: Option<&DeviceId>) -> (Sequence, Sequence) {
    let opened = store.open(user, device).await.unwrap();
    (opened.head, opened.cursor)
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
    assert_eq!(marks(&store, &user, Some(&phone)).await, (1, 0));
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
