//! What every engine promises. Each test runs on all of them.

use std::{sync::Arc, time::Duration};

use super::databases::Place;
use crate::{
    event::{Durability, Event, Options, Priority, UnixMillis, unix_millis_now},
    ids::{DeviceId, NotificationId, Sequence, SessionId, UserId},
    store::{
        Acknowledgement, Appended, Engine, Entry, Opened, PageLimit, Store, Try,
        positions::{Known, LogName},
        sessions::{PER_USER_MAX, Started, Starting},
    },
};

const ALL: PageLimit = PageLimit { items: 1000, bytes: 1 << 20 };
const DAY: UnixMillis = 86_400_000;

pub(super) fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

pub(super) fn event(user: &str, id: &str) -> Event {
    let now = unix_millis_now();
    Event {
        user: UserId::new(user).unwrap(),
        session: None,
        id: NotificationId::new(id).unwrap(),
        notification_type: "t".into(),
        payload: format!(r#"{{"id":"{id}"}}"#).into(),
        options: Options::default(),
        created_at: now,
        recorded_at: now,
    }
}

pub(super) fn events<I: ToString>(user: &str, ids: impl IntoIterator<Item = I>) -> Vec<Arc<Event>> {
    ids.into_iter().map(|id| Arc::new(event(user, &id.to_string()))).collect()
}

pub(super) async fn append(engine: &Engine, event: Event) -> Appended {
    engine.log.append(&[Arc::new(event)]).await.unwrap()[0]
}

pub(super) async fn acknowledge(log: &dyn Store, user: &UserId, device: Option<&DeviceId>, seq: Sequence) {
    let one = Acknowledgement { user: user.clone(), device: device.cloned(), seq };
    log.acknowledge(&[one], &[], Try::First).await.unwrap();
}

/// Numbers as they are, gaps as `from-to reason`.
pub(super) async fn shape(engine: &Engine, user_name: &str, after: Sequence, limit: PageLimit) -> Vec<String> {
    let page = engine.log.read(&user(user_name), after, limit).await.unwrap();
    let text = |entry: &Entry| match entry {
        Entry::Notification(n) => n.seq.unwrap().to_string(),
        Entry::Gap(gap) => format!("{}-{} {:?}", gap.from, gap.to, gap.reason),
    };
    page.entries.iter().map(text).collect()
}

#[tokio::test]
async fn a_group_of_many_users_is_numbered_user_by_user_in_the_order_given() {
    for place in Place::all().await {
        let engine = place.open().await;
        let group: Vec<_> = (0..300).map(|i| Arc::new(event(&format!("u{}", i % 7), &i.to_string()))).collect();
        let expected: Vec<_> = (0..300).map(|i| Appended::Stored(i / 7 + 1)).collect();
        assert_eq!(engine.log.append(&group).await.unwrap(), expected, "{}", place.name());
        assert_eq!(append(&engine, event("u0", "next")).await, Appended::Stored(44), "{}", place.name());
        let page = engine.log.read(&user("u3"), 0, ALL).await.unwrap();
        let ids = page.entries.iter().map(|entry| match entry {
            Entry::Notification(n) => n.event.id.to_string(),
            Entry::Gap(gap) => panic!("{gap:?}"),
        });
        assert_eq!(
            ids.collect::<Vec<_>>(),
            (0..300).filter(|i| i % 7 == 3).map(|i: i32| i.to_string()).collect::<Vec<_>>()
        );
    }
}

#[tokio::test]
async fn an_event_comes_back_as_it_was_whatever_is_in_it() {
    let full = Event {
        notification_type: "a.b'\"%\\用户".into(),
        payload: "\"nul \0 and \u{1F980} and \\u0000\"".into(),
        options: Options {
            durability: Durability::Inbox,
            priority: Priority::Critical,
            collapse_key: Some("k'".into()),
            ttl: Some(Duration::from_millis(86_400_001)),
        },
        created_at: -5,
        ..event("Zoë", "full")
    };
    for place in Place::all().await {
        let engine = place.open().await;
        // One NUL in 500 rows harms none of them.
        let mut group = events("many", 0..499);
        group.push(Arc::new(full.clone()));
        let outcomes = engine.log.append(&group).await.unwrap();
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Appended::Stored(_))), "{}", place.name());
        let page = engine.log.read(&full.user, 0, ALL).await.unwrap();
        let [Entry::Notification(read)] = &page.entries[..] else { panic!("{page:?}") };
        assert_eq!(*read.event, full, "{}", place.name());
    }
}

#[tokio::test]
async fn an_id_is_recognised_again_inside_of_the_window_in_one_group_or_in_two() {
    for place in Place::all().await {
        let engine = place.open().await;
        let name = place.name();
        let twice = engine.log.append(&events("u", ["a", "b", "a"])).await.unwrap();
        assert_eq!(twice, [Appended::Stored(1), Appended::Stored(2), Appended::Duplicate(1)], "{name}");
        let again = engine.log.append(&events("u", ["c", "b", "d", "a"])).await.unwrap();
        let expected = [Appended::Stored(3), Appended::Duplicate(2), Appended::Stored(4), Appended::Duplicate(1)];
        assert_eq!(again, expected, "{name}");
        assert_eq!(append(&engine, event("other", "a")).await, Appended::Stored(1), "ids are unique per user: {name}");
        let later = Event { recorded_at: unix_millis_now() + 2 * DAY, ..event("u", "a") };
        assert_eq!(append(&engine, later).await, Appended::Stored(5), "after the window: {name}");
    }
}

#[tokio::test]
async fn a_timestamp_that_makes_no_sense_is_delivered_and_recognised_again() {
    for place in Place::all().await {
        let engine = place.open().await;
        let now = unix_millis_now();
        for (number, recorded_at) in
            (1..).zip([-1, 0, 4_102_444_800_000, i64::MAX, i64::MIN, now - 6 * DAY, now - 30 * DAY])
        {
            let strange = Event { recorded_at, ..event("u", &format!("at {recorded_at}")) };
            assert_eq!(
                append(&engine, strange.clone()).await,
                Appended::Stored(number),
                "{recorded_at} {}",
                place.name()
            );
            assert_eq!(append(&engine, strange).await, Appended::Duplicate(number), "{recorded_at} {}", place.name());
        }
        assert_eq!(shape(&engine, "u", 0, ALL).await, ["1", "2", "3", "4", "5", "6", "7"], "{}", place.name());
    }
}

#[tokio::test]
async fn pages_follow_each_other_without_holes_and_one_comes_in_any_case() {
    for place in Place::all().await {
        let engine = place.open().await;
        engine.log.append(&events("u", 0..7)).await.unwrap();
        let limit = PageLimit { items: 3, ..ALL };
        let (mut after, mut seen) = (0, Vec::new());
        for _ in 0..4 {
            seen.push(shape(&engine, "u", after, limit).await);
            after = engine.log.read(&user("u"), after, limit).await.unwrap().covers;
        }
        assert_eq!(seen, [vec!["1", "2", "3"], vec!["4", "5", "6"], vec!["7"], vec![]], "{}", place.name());
        assert_eq!(shape(&engine, "u", 2, PageLimit { items: 10, bytes: 1 }).await, ["3"], "{}", place.name());
        assert!(shape(&engine, "nobody", 0, ALL).await.is_empty(), "{}", place.name());
    }
}

#[tokio::test]
async fn what_the_cap_took_is_a_gap_and_numbers_go_on() {
    for place in Place::all().await {
        let engine = place.open_with(&crate::store::Config { per_user_max: 2, ..place.config() }).await;
        engine.log.append(&events("u", 0..5)).await.unwrap();
        assert_eq!(shape(&engine, "u", 1, ALL).await, ["2-3 Evicted", "4", "5"], "{}", place.name());
        append(&engine, event("u", "next")).await;
        assert_eq!(shape(&engine, "u", 0, ALL).await, ["1-4 Evicted", "5", "6"], "{}", place.name());
    }
}

#[tokio::test]
async fn expired_ones_are_announced_and_those_that_come_expired_get_no_number() {
    for place in Place::all().await {
        let engine = place.open().await;
        let short = |id: &str| {
            let options = Options { ttl: Some(Duration::from_millis(300)), ..Options::default() };
            Event { options, ..event("u", id) }
        };
        let group = [event("u", "a"), short("b"), short("c"), event("u", "d")].map(Arc::new);
        engine.log.append(&group).await.unwrap();
        crate::store::tests::faults::until(async || shape(&engine, "u", 0, ALL).await == ["1", "2-3 Expired", "4"])
            .await;
        engine.log.tidy().await.unwrap();
        assert_eq!(shape(&engine, "u", 0, ALL).await, ["1", "2-3 Expired", "4"], "{}", place.name());
        let late = Event { recorded_at: unix_millis_now() - 1000, ..short("late") };
        assert_eq!(append(&engine, late).await, Appended::Expired, "{}", place.name());
    }
}

#[tokio::test]
async fn a_log_that_has_expired_as_a_whole_goes_on_with_its_numbers() {
    for place in Place::all().await {
        let engine = place.open().await;
        let options = Options { ttl: Some(Duration::from_millis(100)), ..Options::default() };
        let group = ["a", "b", "c"].map(|id| Arc::new(Event { options: options.clone(), ..event("u", id) }));
        engine.log.append(&group).await.unwrap();
        crate::store::tests::faults::until(async || shape(&engine, "u", 0, ALL).await == ["1-3 Expired"]).await;
        engine.log.tidy().await.unwrap();
        assert_eq!(shape(&engine, "u", 0, ALL).await, ["1-3 Expired"], "{}", place.name());
        assert_eq!(engine.log.open(&user("u"), None).await.unwrap().head, 3, "{}", place.name());
        assert_eq!(append(&engine, event("u", "next")).await, Appended::Stored(4), "{}", place.name());
        assert_eq!(shape(&engine, "u", 0, ALL).await, ["1-3 Expired", "4"], "{}", place.name());
    }
}

#[tokio::test]
async fn cursors_rise_only_and_a_new_device_starts_at_the_shared_one() {
    for place in Place::all().await {
        let engine = place.open().await;
        let log = &*engine.log;
        let name = place.name();
        let u = user("u");
        let (phone, laptop) = (DeviceId::new("phone").unwrap(), DeviceId::new("laptop").unwrap());
        assert_eq!(log.open(&u, Some(&phone)).await.unwrap(), Opened::default(), "{name}");
        log.append(&events("u", 0..5)).await.unwrap();
        let cursor = async |device| log.open(&u, device).await.unwrap().cursor;
        for seq in [2, 1] {
            acknowledge(log, &u, None, seq).await;
        }
        assert_eq!((cursor(None).await, cursor(Some(&phone)).await), (2, 0), "a device that came before: {name}");
        assert_eq!(cursor(Some(&laptop)).await, 2, "{name}");
        acknowledge(log, &u, Some(&phone), 4).await;
        acknowledge(log, &u, None, 99).await;
        let cursors = (cursor(None).await, cursor(Some(&phone)).await, cursor(Some(&laptop)).await);
        assert_eq!(cursors, (5, 4, 2), "{name}");
    }
}

#[tokio::test]
async fn a_user_cannot_fill_the_store_with_devices() {
    for place in Place::durable().await {
        let engine = place.open().await;
        let u = user("u");
        engine.log.append(&events("u", 0..3)).await.unwrap();
        for i in 0..70 {
            let device = DeviceId::new(format!("d{i}")).unwrap();
            engine.log.open(&u, Some(&device)).await.unwrap();
            acknowledge(&*engine.log, &u, Some(&device), 1).await;
        }
        acknowledge(&*engine.log, &u, None, 3).await;
        let gone = DeviceId::new("d0").unwrap();
        assert_eq!(engine.log.open(&u, Some(&gone)).await.unwrap().cursor, 3, "forgotten: {}", place.name());
        let kept = DeviceId::new("d69").unwrap();
        assert_eq!(engine.log.open(&u, Some(&kept)).await.unwrap().cursor, 1, "{}", place.name());
    }
}

#[tokio::test]
async fn started_sessions_are_found_until_they_end_or_expire_and_one_user_has_a_limit() {
    for place in Place::all().await {
        let sessions = place.open().await.sessions;
        let started = |user_name: &str, expires_in| Started {
            session: SessionId::random(),
            user: user(user_name),
            expires_at: unix_millis_now() + expires_in,
        };
        let (one, other, over) = (started("u", 60_000), started("u", 50_000), started("u", 0));
        for each in [&one, &other, &over] {
            assert_eq!(sessions.start(each.clone()).await.unwrap(), Starting::Done, "{}", place.name());
        }
        assert_eq!(sessions.find(over.session).await.unwrap(), None, "{}", place.name());
        assert_eq!(sessions.of_user(&one.user).await.unwrap(), [other.clone(), one.clone()], "{}", place.name());
        assert!(sessions.end(one.session).await.unwrap() && !sessions.end(one.session).await.unwrap());
        assert_eq!(sessions.find(one.session).await.unwrap(), None, "{}", place.name());
        assert_eq!(sessions.find(other.session).await.unwrap(), Some(other.clone()), "{}", place.name());
        for _ in 1..PER_USER_MAX {
            assert_eq!(sessions.start(started("u", 60_000)).await.unwrap(), Starting::Done);
        }
        assert_eq!(sessions.start(started("u", 60_000)).await.unwrap(), Starting::TooManyOfUser, "{}", place.name());
        assert_eq!(sessions.start(started("v", 60_000)).await.unwrap(), Starting::Done, "{}", place.name());
    }
}

#[tokio::test]
async fn all_of_it_is_there_when_the_store_is_opened_again() {
    for place in Place::durable().await {
        let name = place.name();
        let log = LogName { cluster: "c".into(), topic: "t".into() };
        let started = Started { session: SessionId::random(), user: user("u"), expires_at: unix_millis_now() + 60_000 };
        let epoch = {
            let engine = place.open().await;
            engine.log.append(&events("u", 0..5)).await.unwrap();
            acknowledge(&*engine.log, &user("u"), None, 3).await;
            engine.sessions.start(started.clone()).await.unwrap();
            assert_eq!(engine.positions.take(&log, &[0]).await.unwrap(), [(0, Known::Nothing)], "{name}");
            engine.positions.begin(&log, &[(0, 10)]).await.unwrap();
            engine.positions.write(&log, &[(0, 15)]).await.unwrap();
            engine.log.epoch().to_string()
        };
        let engine = place.open().await;
        assert_eq!(*engine.log.epoch(), *epoch, "{name}");
        assert_eq!(
            engine.log.open(&user("u"), None).await.unwrap(),
            Opened { head: 5, cursor: 3, acknowledged: 3 },
            "{name}"
        );
        assert_eq!(append(&engine, event("u", "next")).await, Appended::Stored(6), "{name}");
        assert_eq!(append(&engine, event("u", "2")).await, Appended::Duplicate(3), "{name}");
        assert_eq!(engine.sessions.find(started.session).await.unwrap(), Some(started), "{name}");
        let known = engine.positions.take(&log, &[0, 1]).await.unwrap();
        assert_eq!(known, [(0, Known::At { position: 15, ahead: None }), (1, Known::Nothing)], "{name}");
        let elsewhere = LogName { cluster: "another".into(), ..log };
        assert_eq!(engine.positions.take(&elsewhere, &[0]).await.unwrap(), [(0, Known::Foreign)], "{name}");
    }
}
