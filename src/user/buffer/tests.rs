use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{event::unix_millis_now, fakes, user::limiter::Limit};

const BOUNDS: Bounds = Bounds { items: 3, bytes: 1 << 20 };

fn event(id: &str, priority: Priority) -> Arc<Event> {
    with(id, |options| options.priority = priority)
}

fn with(id: &str, set: impl FnOnce(&mut Options)) -> Arc<Event> {
    let mut event = (*fakes::durable(&fakes::user(), id)).clone();
    set(&mut event.options);
    Arc::new(event)
}

fn ids(events: impl IntoIterator<Item = Arc<Event>>) -> Vec<String> {
    events.into_iter().map(|event| event.id.to_string()).collect()
}

fn all(buffer: &mut Buffer) -> Vec<String> {
    ids(std::iter::from_fn(|| buffer.take_any()))
}

#[test]
fn the_highest_priority_goes_first_and_in_one_the_oldest() {
    let mut buffer = Buffer::default();
    let bounds = Bounds { items: 10, ..BOUNDS };
    for (id, priority) in
        [("l1", Priority::Low), ("n1", Priority::Normal), ("h1", Priority::High), ("n2", Priority::Normal)]
    {
        assert_eq!(buffer.insert(&event(id, priority), bounds, false), Place::Waits);
    }
    assert_eq!(buffer.insert(&event("n1", Priority::Normal), bounds, false), Place::Known);
    assert_eq!(all(&mut buffer), ["h1", "n1", "n2", "l1"]);
    assert!(buffer.is_empty());
}

#[test]
fn each_priority_goes_as_its_own_limit_lets_it() {
    let limit = |per_second| Limit { per_second, burst: 1, dry_run: false };
    let limits = Limits::default().with(Priority::High, limit(1.0)).with(Priority::Low, limit(2.0));
    let (mut buffer, mut limiter, start) = (Buffer::default(), Limiter::default(), Instant::now());
    let bounds = Bounds { items: 10, ..BOUNDS };
    for (id, priority) in [("l1", Priority::Low), ("l2", Priority::Low), ("h1", Priority::High), ("h2", Priority::High)]
    {
        limiter.take(&limits, priority, start);
        buffer.insert(&event(id, priority), bounds, false);
    }
    let mut released = Vec::new();
    for _ in 0..4 {
        let at = buffer.next(&limiter, &limits, start).unwrap();
        let event = buffer.release(&mut limiter, &limits, at).unwrap();
        released.push((event.id.to_string(), (at - start).as_millis()));
    }
    // Two tokens of each were taken: low ones come back twice as fast.
    let expected = [("l1", 1000), ("l2", 1500), ("h1", 2000), ("h2", 3000)];
    assert_eq!(released, expected.map(|(id, at)| (id.to_owned(), at)));
}

#[test]
fn an_older_one_with_the_same_key_goes_when_the_newer_one_is_in_the_store() {
    let keyed = |id: &str, key: &str| with(id, |options| options.collapse_key = Some(key.into()));
    let mut buffer = Buffer::default();
    for event in [keyed("a", "k"), keyed("b", "other"), keyed("c", "k2")] {
        buffer.insert(&event, BOUNDS, false);
    }
    let newer = keyed("d", "k");
    let older = buffer.overtaken_by(&newer).unwrap();
    assert_eq!(&*older.id, "a");
    assert!(buffer.overtaken_by(&keyed("e", "k")).is_none(), "one is on its way already");
    buffer.stays(&older);
    assert!(buffer.overtaken_by(&newer).is_some(), "it did not get into the store");
    assert_eq!(buffer.insert(&newer, BOUNDS, true), Place::Waits, "the older one makes room");
    assert_eq!(&*buffer.overtaken_by(&keyed("e", "k")).unwrap().id, "d", "not what is overtaken already");
    assert!(buffer.remove_same(&older).is_some() && buffer.remove_same(&older).is_none());
    assert!(buffer.remove_same(&keyed("b", "other")).is_none(), "a copy is another one");
    assert_eq!(all(&mut buffer), ["b", "c", "d"]);
}

#[test]
fn what_has_no_room_goes_into_one_digest_until_all_before_it_is_gone() {
    let mut buffer = Buffer::default();
    (0..3).for_each(|n| _ = buffer.insert(&event(&n.to_string(), Priority::Normal), BOUNDS, false));
    let Place::Folded(digest) = buffer.insert(&event("x", Priority::Normal), BOUNDS, false) else { panic!("it waits") };
    buffer.take_any();
    for id in ["y", "z"] {
        let place = buffer.insert(&event(id, Priority::Normal), BOUNDS, false);
        assert_eq!(place, Place::Folded(digest.clone()), "the rest of the burst");
    }
    assert!(buffer.is_open(&digest) && !buffer.close_digest(), "not before those that wait");
    assert_eq!(all(&mut buffer), ["1", "2"]);
    assert!(!buffer.is_empty(), "the digest is owed");
    assert!(buffer.close_digest() && !buffer.is_open(&digest));
    assert!(buffer.is_empty() && !buffer.close_digest());
    (0..3).for_each(|n| _ = buffer.insert(&event(&n.to_string(), Priority::Normal), BOUNDS, false));
    assert_ne!(buffer.insert(&event("x", Priority::Normal), BOUNDS, false), Place::Folded(digest), "another burst");
}

#[test]
fn a_digest_says_how_many_there_are_of_each_type() {
    let id = NotificationId::new("d").unwrap();
    let folded = Folded { digest: id.clone(), counts: vec![("chat".into(), 2), ("mail".into(), 1)], from: 40, to: 70 };
    let made = digest(&fakes::user(), folded, 5);
    assert_eq!((&made.id, &*made.notification_type), (&id, DIGEST_TYPE));
    let payload: serde_json::Value = serde_json::from_str(&made.payload).unwrap();
    assert_eq!(payload, serde_json::json!({"count": 3, "types": {"chat": 2, "mail": 1}, "from": 40, "to": 70}));
}

#[test]
fn a_digest_names_so_many_types_and_counts_the_others_together() {
    let counts = (0..200).map(|n| (format!("type{n:03}").into(), 1)).collect();
    let id = NotificationId::new("d").unwrap();
    let made = digest(&fakes::user(), Folded { digest: id, counts, from: 0, to: 0 }, 0);
    let payload: serde_json::Value = serde_json::from_str(&made.payload).unwrap();
    assert_eq!((&payload["count"], &payload["types"][OTHER_TYPES]), (&200.into(), &150.into()));
}

#[test]
fn bytes_are_bounded_too() {
    let mut buffer = Buffer::default();
    let one = event("a", Priority::Normal);
    let bounds = Bounds { items: 100, bytes: one.size_bytes() * 2 };
    assert_eq!(buffer.insert(&one, bounds, false), Place::Waits);
    assert_eq!(buffer.insert(&event("b", Priority::Low), bounds, false), Place::Waits);
    assert!(matches!(buffer.insert(&event("c", Priority::High), bounds, false), Place::Folded(_)));
}

#[test]
fn what_has_expired_goes_wherever_it_stands() {
    let now = unix_millis_now();
    let short = |id| with(id, |options| options.ttl = Some(Duration::from_secs(5)));
    let mut buffer = Buffer::default();
    for event in [event("a", Priority::Normal), short("b"), event("c", Priority::Normal)] {
        buffer.insert(&event, BOUNDS, false);
    }
    assert!(buffer.expired(now).is_empty());
    assert_eq!(ids(buffer.expired(now + 6000)), ["b"]);
    assert_eq!(all(&mut buffer), ["a", "c"]);
}

proptest! {
    /// Whatever comes and goes: nothing is in it twice or too much, and nothing vanishes.
    #[test]
    fn everything_waits_or_is_folded_and_bounds_hold(
        steps in prop::collection::vec((0usize..4, any::<bool>()), 1..200), items in 1usize..10,
    ) {
        let bounds = Bounds { items, bytes: 1 << 20 };
        let (mut buffer, mut waiting, mut is_folding) = (Buffer::default(), Vec::new(), false);
        for (n, (priority, insert)) in steps.into_iter().enumerate() {
            if insert {
                let event = event(&n.to_string(), Priority::ALL[priority]);
                match buffer.insert(&event, bounds, false) {
                    Place::Waits => waiting.push((event.id.clone(), event.options.priority)),
                    Place::Folded(_) => is_folding = true,
                    Place::Known => prop_assert!(false, "every id is new"),
                }
            } else if let Some(event) = buffer.take_any() {
                let highest = waiting.iter().map(|(_, priority)| *priority).min().unwrap();
                let at = waiting.iter().position(|(_, priority)| *priority == highest).unwrap();
                prop_assert_eq!(waiting.remove(at).0, event.id.clone());
            }
            if buffer.close_digest() {
                prop_assert!(waiting.is_empty() && std::mem::take(&mut is_folding));
            }
            prop_assert_eq!(buffer.items, waiting.len());
            prop_assert!(buffer.items <= items);
        }
        prop_assert_eq!(all(&mut buffer).len(), waiting.len());
        prop_assert_eq!(buffer.bytes, 0);
    }
}
