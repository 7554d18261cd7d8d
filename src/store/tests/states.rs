//! What every engine promises of what waits, of what is taken back, and of the journal. Each test runs on all of them.

use std::{slice::from_ref, sync::Arc, time::Duration};

use super::{
    contract::{acknowledge, append, event, events, shape, user},
    databases::Place,
    faults::until,
};
use crate::{
    event::{Event, Options, unix_millis_now},
    ids::{DeviceId, NotificationId, Sequence, SessionId},
    state::{Reason, State},
    store::{
        Acknowledgement, Appended, Engine, PageLimit, Try,
        journal::{Account, Cancelled, Mark, Step, Superseding},
        waiting::{Ending, Folded, Held, Holding},
    },
};

const ALL: PageLimit = PageLimit { items: 1000, bytes: 1 << 20 };

pub(super) fn id(text: &str) -> NotificationId {
    NotificationId::new(text).unwrap()
}

pub(super) fn step(user_name: &str, (first, last): (Sequence, Sequence), ids: &[&str], state: State) -> Step {
    Step {
        user: user(user_name),
        first,
        last,
        ids: ids.iter().map(|text| id(text)).collect(),
        state,
        reason: None,
        session: Some(SessionId::random().into()),
        device: Some(DeviceId::new("phone").unwrap()),
        handed_at: Some(5),
        at: unix_millis_now(),
    }
}

pub(super) async fn hold(engine: &Engine, event: Event, digest: Option<&str>) -> Held {
    let holding = Holding { event: Arc::new(event), digest: digest.map(id) };
    engine.log.hold(&[holding]).await.unwrap()[0]
}

pub(super) async fn end(engine: &Engine, user_name: &str, text: &str, reason: Reason) {
    let ending = Ending { user: user(user_name), id: id(text), reason };
    engine.log.end(&[ending]).await.unwrap();
}

pub(super) async fn cancel(engine: &Engine, user_name: &str, text: &str) -> Cancelled {
    engine.log.cancel(&user(user_name), &id(text)).await.unwrap()
}

pub(super) async fn account(engine: &Engine, text: &str) -> Option<Account> {
    engine.log.account(&user("u"), &id(text)).await.unwrap()
}

/// Of user `u` and the key `k`.
pub(super) fn superseding(seq: Sequence, together_from: Sequence) -> Superseding {
    Superseding { user: user("u"), collapse_key: "k".into(), seq, together_from }
}

async fn waiting(engine: &Engine) -> Vec<String> {
    let backlog = engine.log.backlog(&user("u")).await.unwrap();
    backlog.events.iter().map(|event| event.id.to_string()).collect()
}

/// Each id that has ended after the mark with its number, state and reason, and where the tail is now.
pub(super) async fn ended(engine: &Engine, mark: &Mark, limit: usize) -> (Vec<String>, Mark) {
    let (mut told, mut mark) = (Vec::new(), mark.clone());
    loop {
        let (steps, next) = engine.log.ended_after(&mark, limit).await.unwrap();
        assert!(steps.len() <= limit);
        if next == mark {
            return (told, mark);
        }
        for step in &steps {
            let reason = step.reason.map_or("", Reason::as_str);
            told.extend(step.ids.iter().map(|id| format!("{id} {} {reason}", step.state.as_str())));
        }
        mark = next;
    }
}

/// All that has ended after the mark: what is noted last is behind everything else.
pub(super) async fn ended_since(engine: &Engine, mark: &Mark) -> Vec<String> {
    let last = format!("last-{}", SessionId::random());
    engine.log.acknowledge(&[], &[step("u", (0, 0), &[&last], State::Failed)], Try::First).await.unwrap();
    let mut told = Vec::new();
    until(async || {
        told = ended(engine, mark, 100).await.0;
        told.iter().any(|one| one.starts_with(&last))
    })
    .await;
    told.retain(|one| !one.starts_with("last-"));
    told
}

pub(super) async fn ended_all(engine: &Engine) -> Vec<String> {
    ended_since(engine, &Mark::default()).await
}

#[tokio::test]
async fn what_waits_keeps_its_order_and_gets_its_number_when_it_is_released() {
    for place in Place::all().await {
        let engine = place.open().await;
        let name = place.name();
        let options = Options { collapse_key: Some("k".into()), ..Options::default() };
        let full = Event { options, payload: "\"nul \0\"".into(), created_at: -5, ..event("u", "b") };
        let held =
            [event("u", "a"), full.clone(), event("u", "c")].map(|event| Holding { event: event.into(), digest: None });
        assert_eq!(engine.log.hold(&held).await.unwrap(), [Held::Waiting; 3], "{name}");
        assert_eq!(waiting(&engine).await, ["a", "b", "c"], "{name}");
        assert_eq!(*engine.log.backlog(&user("u")).await.unwrap().events[1], full, "{name}");
        assert_eq!(engine.log.users_waiting().await.unwrap(), [user("u")], "{name}");
        assert_eq!(engine.log.open(&user("u"), None).await.unwrap().head, 0, "no number: {name}");
        assert_eq!(hold(&engine, event("u", "a"), None).await, Held::Waiting, "a retry: {name}");
        let account = account(&engine, "a").await.unwrap();
        assert_eq!((account.seq, account.steps.len()), (None, 0), "{name}");
        assert_eq!(append(&engine, event("other", "a")).await, Appended::Stored(1), "ids are unique per user: {name}");
        assert_eq!(append(&engine, event("u", "first")).await, Appended::Stored(1), "{name}");
        assert_eq!(append(&engine, full.clone()).await, Appended::Stored(2), "{name}");
        assert_eq!(append(&engine, event("u", "a")).await, Appended::Stored(3), "{name}");
        assert_eq!(append(&engine, full.clone()).await, Appended::Duplicate(2), "a retry: {name}");
        assert_eq!(hold(&engine, full, None).await, Held::Duplicate(2), "{name}");
        assert_eq!(waiting(&engine).await, ["c"], "{name}");
        assert_eq!(append(&engine, event("u", "tidied")).await, Appended::Stored(4), "{name}");
        assert_eq!(shape(&engine, "u", 0, ALL).await, ["1", "2", "3", "4"], "{name}");
    }
}

#[tokio::test]
async fn a_copy_in_the_same_group_gets_no_number_and_no_row_of_its_own() {
    for place in Place::all().await {
        let engine = place.open().await;
        let name = place.name();
        let copies = ["a", "a"].map(|text| Holding { event: event("u", text).into(), digest: None });
        assert_eq!(engine.log.hold(&copies).await.unwrap(), [Held::Waiting; 2], "{name}");
        assert_eq!(waiting(&engine).await, ["a"], "{name}");
        let released = engine.log.append(&events("u", ["a", "a"])).await.unwrap();
        assert_eq!(released, [Appended::Stored(1), Appended::Duplicate(1)], "{name}");
        assert!(waiting(&engine).await.is_empty(), "{name}");
        let fresh = engine.log.append(&events("u", ["b", "b"])).await.unwrap();
        assert_eq!(fresh, [Appended::Stored(2), Appended::Duplicate(2)], "{name}");
    }
}

#[tokio::test]
async fn whoever_appends_what_waits_releases_it() {
    for place in Place::all().await {
        let engine = place.open().await;
        let name = place.name();
        hold(&engine, event("u", "a"), None).await;
        // A record that is read again, in a group with others.
        let outcomes = engine.log.append(&events("u", ["x", "a", "y"])).await.unwrap();
        assert_eq!(outcomes, [1, 2, 3].map(Appended::Stored), "{name}");
        assert!(waiting(&engine).await.is_empty(), "{name}");
        assert!(engine.log.users_waiting().await.unwrap().is_empty(), "{name}");
        let rows = "select count(*) from waiting";
        let left: i64 = match &place {
            Place::Memory => 0,
            Place::File(_) => sqlx::query_scalar(rows).fetch_one(&mut place.sqlite().await).await.unwrap(),
            Place::Database(_) => sqlx::query_scalar(rows).fetch_one(&mut place.postgres().await).await.unwrap(),
        };
        assert_eq!(left, 0, "{name}");
        assert_eq!(account(&engine, "a").await.unwrap().seq, Some(2), "{name}");
        assert_eq!(append(&engine, event("u", "a")).await, Appended::Duplicate(2), "{name}");
    }
}

#[tokio::test]
async fn one_that_ended_while_it_waited_stays_ended_and_readable() {
    for place in Place::all().await {
        let engine = place.open().await;
        let name = place.name();
        for reason in Reason::ALL {
            let text = reason.as_str();
            hold(&engine, event("u", text), None).await;
            end(&engine, "u", text, reason).await;
            end(&engine, "u", text, Reason::Expired).await;
            let account = account(&engine, text).await.unwrap();
            assert_eq!((account.seq, account.event.id), (None, id(text)), "{name}");
            let steps: Vec<_> =
                account.steps.iter().map(|step| (step.first, step.last, step.state, step.reason)).collect();
            assert_eq!(steps, [(0, 0, State::Deleted, Some(reason))], "{name}");
            assert_eq!(hold(&engine, event("u", text), None).await, Held::Known, "{name}");
            assert_eq!(append(&engine, event("u", text)).await, Appended::Known, "{name}");
            assert_eq!(cancel(&engine, "u", text).await, Cancelled::Ended(State::Deleted), "{name}");
        }
        end(&engine, "u", "unknown", Reason::Expired).await;
        assert!(waiting(&engine).await.is_empty() && engine.log.users_waiting().await.unwrap().is_empty(), "{name}");
        let expected: Vec<_> = Reason::ALL.iter().map(|reason| format!("{0} deleted {0}", reason.as_str())).collect();
        assert_eq!(ended_all(&engine).await, expected, "{name}");
        assert_eq!(engine.log.open(&user("u"), None).await.unwrap().head, 0, "{name}");
    }
}

#[tokio::test]
async fn folded_ones_end_at_once_and_are_counted_until_their_digest_is_there() {
    for place in Place::all().await {
        let engine = place.open().await;
        let name = place.name();
        let typed = |text: &str, of_type: &str, later: i64| Event {
            notification_type: of_type.into(),
            recorded_at: unix_millis_now() + later,
            ..event("u", text)
        };
        let (first, last) = (typed("a", "t", -5), typed("c", "t", 5));
        let group =
            [(first.clone(), "d1"), (typed("b", "s", 0), "d1"), (last.clone(), "d1"), (typed("e", "t", 0), "d2")]
                .map(|(event, digest)| Holding { event: event.into(), digest: Some(id(digest)) });
        assert_eq!(engine.log.hold(&group).await.unwrap(), [Held::Waiting; 4], "{name}");
        assert_eq!(engine.log.hold(&group).await.unwrap(), [Held::Waiting; 4], "a retry: {name}");
        assert_eq!(hold(&engine, first.clone(), Some("d2")).await, Held::Known, "{name}");
        assert_eq!(hold(&engine, first.clone(), None).await, Held::Known, "{name}");
        assert_eq!(append(&engine, first.clone()).await, Appended::Known, "{name}");
        let backlog = engine.log.backlog(&user("u")).await.unwrap();
        assert!(backlog.events.is_empty(), "{name}");
        let one = Folded {
            digest: id("d1"),
            counts: vec![("s".into(), 1), ("t".into(), 2)],
            from: first.recorded_at,
            to: last.recorded_at,
        };
        assert_eq!((backlog.folded.len(), &backlog.folded[0]), (2, &one), "{name}");
        assert_eq!(engine.log.users_waiting().await.unwrap(), [user("u")], "{name}");
        let told = ended_all(&engine).await;
        assert_eq!(told, ["a", "b", "c", "e"].map(|text| format!("{text} deleted digested")), "{name}");
        engine.log.digested(&[(user("u"), id("d1"))]).await.unwrap();
        let left = engine.log.backlog(&user("u")).await.unwrap().folded;
        assert_eq!(left.iter().map(|folded| &folded.digest).collect::<Vec<_>>(), [&id("d2")], "{name}");
        engine.log.digested(&[(user("u"), id("d2"))]).await.unwrap();
        assert!(engine.log.users_waiting().await.unwrap().is_empty(), "{name}");
        assert_eq!(account(&engine, "a").await.unwrap().steps.len(), 1, "{name}");
    }
}

#[tokio::test]
async fn what_is_cancelled_never_comes_unless_it_had_ended() {
    for place in Place::all().await {
        let engine = place.open().await;
        let name = place.name();
        let soon = Options { ttl: Some(Duration::from_millis(300)), ..Options::default() };
        let mut group = events("u", ["acked", "a", "b"]);
        group.push(Arc::new(Event { options: soon, ..event("u", "expired") }));
        engine.log.append(&group).await.unwrap();
        hold(&engine, event("u", "waits"), None).await;
        acknowledge(&*engine.log, &user("u"), Some(&DeviceId::new("phone").unwrap()), 1).await;
        assert_eq!(cancel(&engine, "u", "nothing").await, Cancelled::Unknown, "{name}");
        assert_eq!(cancel(&engine, "nobody", "a").await, Cancelled::Unknown, "{name}");
        assert_eq!(cancel(&engine, "u", "acked").await, Cancelled::Ended(State::Sent), "{name}");
        assert_eq!(cancel(&engine, "u", "waits").await, Cancelled::Done(None), "{name}");
        assert_eq!(cancel(&engine, "u", "a").await, Cancelled::Done(Some(2)), "{name}");
        for text in ["a", "waits"] {
            assert_eq!(cancel(&engine, "u", text).await, Cancelled::Ended(State::Deleted), "{text} {name}");
        }
        assert_eq!(append(&engine, event("u", "waits")).await, Appended::Known, "{name}");
        assert_eq!(append(&engine, event("u", "a")).await, Appended::Duplicate(2), "{name}");
        until(async || shape(&engine, "u", 0, ALL).await == ["1", "2-2 Cancelled", "3", "4-4 Expired"]).await;
        assert_eq!(cancel(&engine, "u", "expired").await, Cancelled::Ended(State::Deleted), "{name}");
        let reasons: Vec<_> = account(&engine, "a").await.unwrap().steps.iter().map(|step| step.reason).collect();
        assert_eq!(reasons, [Some(Reason::Cancelled)], "{name}");
        assert_eq!(ended_all(&engine).await, ["waits deleted cancelled", "a deleted cancelled"], "{name}");
    }
}

#[tokio::test]
async fn one_is_superseded_only_while_nobody_was_given_it() {
    for place in Place::all().await {
        let engine = place.open().await;
        let name = place.name();
        let keyed = |text: &str, key: &str| {
            let options = Options { collapse_key: Some(key.into()), ..Options::default() };
            Arc::new(Event { options, ..event("u", text) })
        };
        let keys =
            [("acked", "k"), ("handed", "k"), ("a", "k"), ("other", "o"), ("b", "k"), ("gone", "k"), ("new", "k")];
        let group: Vec<_> = keys.iter().map(|(text, key)| keyed(text, key)).collect();
        engine.log.append(&group).await.unwrap();
        acknowledge(&*engine.log, &user("u"), None, 1).await;
        engine.log.acknowledge(&[], &[step("u", (2, 2), &[], State::Active)], Try::First).await.unwrap();
        cancel(&engine, "u", "gone").await;
        let superseding = [superseding(7, 1)];
        engine.log.supersede(&superseding).await.unwrap();
        engine.log.supersede(&superseding).await.unwrap();
        assert_eq!(shape(&engine, "u", 0, ALL).await, ["1", "2", "4", "6-6 Cancelled", "7"], "{name}");
        let told = ended_all(&engine).await;
        assert_eq!(told, ["gone deleted cancelled", "a deleted superseded", "b deleted superseded"], "{name}");
        assert_eq!(cancel(&engine, "u", "a").await, Cancelled::Ended(State::Deleted), "{name}");
        assert_eq!(append(&engine, event("u", "a")).await, Appended::Duplicate(3), "{name}");
    }
}

#[tokio::test]
async fn pages_account_for_numbers_that_were_taken_back_or_passed_over() {
    for place in Place::all().await {
        let engine = place.open().await;
        let keyed = |text: &str| {
            let options = Options { collapse_key: Some("k".into()), ..Options::default() };
            Arc::new(Event { options, ..event("u", text) })
        };
        // 1, 2 and 5, 6 cancelled; 3, 4 and 8 superseded by 9.
        let group = (1..=10).map(|n: u64| match n {
            3 | 4 | 8 | 9 => keyed(&n.to_string()),
            _ => Arc::new(event("u", &n.to_string())),
        });
        engine.log.append(&group.collect::<Vec<_>>()).await.unwrap();
        for text in ["1", "2", "5", "6"] {
            cancel(&engine, "u", text).await;
        }
        engine.log.supersede(&[superseding(9, 1)]).await.unwrap();
        let expected = ["1-2 Cancelled", "5-6 Cancelled", "7", "9", "10"];
        assert_eq!(shape(&engine, "u", 0, ALL).await, expected, "{}", place.name());
        for items in 1..=10 {
            let (mut after, mut numbers) = (0, Vec::new());
            loop {
                let page = engine.log.read(&user("u"), after, PageLimit { items, ..ALL }).await.unwrap();
                if page.covers == after {
                    break;
                }
                after = page.covers;
                numbers.extend(page.entries.iter().flat_map(|entry| match entry {
                    crate::store::Entry::Notification(n) => vec![n.seq.unwrap()],
                    crate::store::Entry::Gap(gap) => (gap.from..=gap.to).collect(),
                }));
            }
            assert_eq!((after, numbers), (10, vec![1, 2, 5, 6, 7, 9, 10]), "{items} {}", place.name());
        }
    }
}

#[tokio::test]
async fn what_happened_is_read_in_order_and_what_ended_is_told_of_by_its_ids() {
    for place in Place::all().await {
        let engine = place.open().await;
        let name = place.name();
        engine.log.append(&events("u", ["1", "2", "3", "4", "5"])).await.unwrap();
        let handed = Step { at: unix_millis_now() - 2, ..step("u", (1, 4), &[], State::Active) };
        engine.log.acknowledge(&[], from_ref(&handed), Try::First).await.unwrap();
        cancel(&engine, "u", "2").await;
        let acknowledged = Acknowledgement { user: user("u"), device: handed.device.clone(), seq: 3 };
        let sent = Step { at: unix_millis_now() + 2, ..step("u", (1, 3), &[], State::Sent) };
        engine.log.acknowledge(from_ref(&acknowledged), from_ref(&sent), Try::First).await.unwrap();
        assert_eq!(engine.log.open(&user("u"), None).await.unwrap().acknowledged, 3, "{name}");
        let named = step("u", (4, 5), &["4", "5"], State::Sent);
        let unnumbered = Step { reason: Some(Reason::Away), ..step("u", (0, 0), &["x", "y"], State::Failed) };
        let acknowledged = Acknowledgement { seq: 5, device: None, ..acknowledged };
        engine.log.acknowledge(&[acknowledged], &[named, unnumbered], Try::First).await.unwrap();
        let first = account(&engine, "1").await.unwrap();
        assert_eq!(first.steps, [handed, sent], "{name}");
        assert_eq!((first.seq, first.acknowledged, first.evicted), (Some(1), true, false), "{name}");
        assert_eq!(account(&engine, "5").await.unwrap().steps.len(), 1, "{name}");
        assert!(account(&engine, "nothing").await.is_none(), "{name}");
        let expected =
            ["2 deleted cancelled", "1 sent ", "3 sent ", "4 sent ", "5 sent ", "x failed away", "y failed away"];
        assert_eq!(ended_all(&engine).await, expected, "{name}");
        for limit in 1..4 {
            let told = ended(&engine, &Mark::default(), limit).await.0;
            assert_eq!(told[..expected.len()], expected, "{limit} {name}");
        }
        let (_, mark) = ended(&engine, &Mark::default(), 100).await;
        assert!(ended(&engine, &mark, 100).await.0.is_empty(), "{name}");
        end(&engine, "u", "nothing", Reason::Expired).await;
        hold(&engine, event("u", "later"), Some("d")).await;
        assert_eq!(ended_since(&engine, &mark).await, ["later deleted digested"], "{name}");
    }
}
