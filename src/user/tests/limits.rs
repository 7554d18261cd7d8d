//! What limits do to a user's events, over a store that remembers, on a paused clock.

use std::sync::Mutex as StdMutex;

use super::*;
use crate::{
    event::{Options, Priority},
    state::State as Became,
    store::{
        journal::{Cancelled, Journal as _, standing},
        waiting::Waiting as _,
    },
    user::{buffer::DIGEST_TYPE, limiter::Limit},
};

/// One normal notification a second, two at once; three may wait.
fn limited(store: &Arc<FaultyStore>) -> Config {
    let limit = Limit { per_second: 1.0, burst: 2, dry_run: false };
    Config {
        limits: Limits::default().with(Priority::Normal, limit).with(Priority::Low, limit),
        buffer: buffer::Bounds { items: 3, bytes: 1 << 20 },
        ..(*config(store, 8)).clone()
    }
}

pub(super) async fn running(set: impl FnOnce(&mut Config)) -> Running {
    let store = FaultyStore::new(1000);
    let mut config = limited(&store);
    set(&mut config);
    Running::with(store, Arc::new(config)).await
}

pub(super) fn event(id: &str, set: impl FnOnce(&mut Options)) -> Arc<Event> {
    let mut event = (*durable(&fakes::user(), id)).clone();
    set(&mut event.options);
    Arc::new(event)
}

pub(super) fn normal(id: &str) -> Arc<Event> {
    event(id, |_| {})
}

impl Running {
    pub(super) fn send(&self, ids: &[&str]) {
        ids.iter().for_each(|id| self.event(normal(id)));
    }

    pub(super) fn settled_now(&self) -> usize {
        let reports = self.reports.take();
        assert!(reports.iter().all(|(_, outcome)| *outcome == Settlement::Settled), "{reports:?}");
        reports.len()
    }

    pub(super) async fn stands(&self, id: &str) -> (Became, Option<Reason>) {
        let id = NotificationId::new(id).unwrap();
        let account = self.store.account(&fakes::user(), &id).await.unwrap().expect("it is known");
        standing(&account.history(crate::event::unix_millis_now(), 0))
    }

    pub(super) async fn waiting(&self) -> Vec<String> {
        let backlog = self.store.backlog(&fakes::user()).await.unwrap();
        backlog.events.iter().map(|event| event.id.to_string()).collect()
    }

    pub(super) fn cancel(&self, id: &str) -> tokio::sync::oneshot::Receiver<Cancelled> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.actor.cast(Msg::Request(Request::Cancel(NotificationId::new(id).unwrap(), reply))).unwrap();
        answer
    }
}

pub(super) fn ids(outlet: &FakeOutlet) -> Vec<String> {
    outlet.ids()
}

#[tokio::test(start_paused = true)]
async fn what_is_over_the_limit_waits_stored_and_comes_in_order_with_the_numbers_of_its_release() {
    let user = running(|_| ()).await;
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    user.send(&["1", "2", "3", "4"]);
    user.event(event("c", |options| options.priority = Priority::Critical));
    settled().await;
    assert_eq!(ids(&outlet), ["1", "2", "c"], "critical passes");
    assert_eq!(outlet.numbers(), [1, 2, 3]);
    assert_eq!(user.settled_now(), 5, "what waits is stored, and so settled");
    assert_eq!(user.waiting().await, ["3", "4"]);
    assert_eq!(user.stands("3").await, (Became::Pending, None));
    tokio::time::sleep(Duration::from_millis(1010)).await;
    assert_eq!(ids(&outlet), ["1", "2", "c", "3"]);
    user.send(&["5"]);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(ids(&outlet), ["1", "2", "c", "3", "4", "5"]);
    assert_eq!(outlet.numbers(), [1, 2, 3, 4, 5, 6]);
    assert!(user.waiting().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_with_tokens_does_not_overtake_those_of_its_priority_that_wait() {
    let user = running(|_| ()).await;
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    user.send(&["1", "2", "3"]);
    settled().await;
    user.store.delay(Call::Append, Duration::from_secs(3));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    // The token that came back went to 3, whose release the slow store has not answered yet.
    user.send(&["4"]);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(ids(&outlet), ["1", "2", "3", "4"]);
}

#[tokio::test(start_paused = true)]
async fn all_that_waits_gets_its_number_when_the_last_session_leaves_and_nobody_is_limited_then() {
    let user = running(|_| ()).await;
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    user.send(&["1", "2", "3", "4"]);
    settled().await;
    outlet.session().stop(None);
    settled().await;
    assert!(user.waiting().await.is_empty());
    user.send(&["5", "6", "7"]);
    settled().await;
    let (again, _) = user.attach(Origin::Cursor);
    settled().await;
    assert_eq!(ids(&again), ["1", "2", "3", "4", "5", "6", "7"], "replay is not counted");
}

#[tokio::test(start_paused = true)]
async fn a_crash_loses_nothing_that_waits_and_nothing_overtakes_it() {
    let user = running(|_| ()).await;
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    user.send(&["1", "2", "3", "4"]);
    user.event(event("l", |options| options.priority = Priority::Low));
    user.event(event("l2", |options| options.priority = Priority::Low));
    user.event(event("l3", |options| options.priority = Priority::Low));
    user.event(event("h", |options| options.priority = Priority::Critical));
    settled().await;
    assert_eq!((ids(&outlet).len(), user.waiting().await.len()), (5, 3));
    user.actor.kill();
    settled().await;

    user.store.delay(Call::Backlog, Duration::from_secs(2));
    let (shard, _) = Collector::<Outcome>::spawn().await;
    let config = Arc::new(limited(&user.store));
    let args =
        Args { user: fakes::user(), config, outcomes: shard.get_derived(), limiter: None, asleep: None, recover: true };
    let next = Running { actor: spawn(args, shard.get_cell()).await.unwrap(), ..user };
    next.send(&["5"]);
    next.event(transient(&fakes::user(), "t"));
    settled().await;
    assert_eq!(next.settled_now(), 8 + 1, "a transient one does not wait for the store");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(next.settled_now(), 1);
    let (again, _) = next.attach(Origin::Cursor);
    settled().await;
    assert_eq!(ids(&again), ["1", "2", "l", "l2", "h", "3", "4", "l3", "5"]);
    assert_eq!(again.numbers(), (1..=9).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn what_has_no_room_ends_in_one_digest_and_stays_readable() {
    let user = running(|_| ()).await;
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    user.send(&["1", "2", "3", "4", "5", "6", "7"]);
    settled().await;
    assert_eq!(user.settled_now(), 7);
    assert_eq!(user.stands("6").await, (Became::Deleted, Some(Reason::Digested)));
    tokio::time::sleep(Duration::from_secs(20)).await;
    let got = ids(&outlet);
    assert_eq!((&got[..5], got.len()), (&["1", "2", "3", "4", "5"].map(String::from)[..], 6));
    let digest = outlet.events().pop().unwrap();
    let payload: serde_json::Value = serde_json::from_str(&digest.payload).unwrap();
    assert_eq!((&*digest.notification_type, &payload["count"]), (DIGEST_TYPE, &2.into()));
    assert!(user.store.users_waiting().await.unwrap().is_empty(), "no digest is owed any more");
    // A producer that sends one of them again does not bring it back.
    user.send(&["6"]);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(ids(&outlet), got);
}

#[tokio::test(start_paused = true)]
async fn a_newer_one_with_the_same_key_is_delivered_in_the_place_of_one_that_waits() {
    let user = running(|_| ()).await;
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    user.send(&["1", "2"]);
    for id in ["a", "b", "c"] {
        user.event(event(id, |options| options.collapse_key = Some("score".into())));
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(ids(&outlet), ["1", "2", "c"]);
    assert_eq!(outlet.numbers(), [1, 2, 3], "what never had a number leaves no hole");
    assert_eq!(user.stands("a").await, (Became::Deleted, Some(Reason::Superseded)));
}

#[tokio::test(start_paused = true)]
async fn among_what_nobody_was_given_a_newer_one_supersedes_and_what_somebody_was_given_stays() {
    let user = running(|_| ()).await;
    let keyed = |id: &str| event(id, |options| options.collapse_key = Some("score".into()));
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    user.event(keyed("given"));
    tokio::time::sleep(Duration::from_secs(2)).await;
    outlet.session().stop(None);
    settled().await;
    ["a", "b", "c"].into_iter().for_each(|id| user.event(keyed(id)));
    settled().await;
    let (again, _) = user.attach(Origin::Cursor);
    settled().await;
    assert_eq!(ids(&again), ["given", "c"]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(user.stands("b").await, (Became::Deleted, Some(Reason::Superseded)));
    assert_eq!(user.stands("given").await.0, Became::Active, "given again");
}

#[tokio::test(start_paused = true)]
async fn one_that_expires_while_it_waits_is_not_delivered() {
    let user = running(|config| {
        config.limits = Limits::default().with(Priority::Normal, Limit { per_second: 0.1, burst: 1, dry_run: false });
    })
    .await;
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    let mut old = (*event("2", |options| options.ttl = Some(Duration::from_millis(1)))).clone();
    old.recorded_at += 20;
    user.send(&["1"]);
    user.event(Arc::new(old));
    user.send(&["3"]);
    settled().await;
    // Times to live are of the world's clock, which does not stand still here.
    std::thread::sleep(Duration::from_millis(30));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(ids(&outlet), ["1", "3"]);
    assert_eq!(user.stands("2").await, (Became::Deleted, Some(Reason::Expired)));
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_holds_nothing_back() {
    let user = running(|config| {
        config.limits = Limits::default().with(Priority::Normal, Limit { per_second: 1.0, burst: 1, dry_run: true });
    })
    .await;
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    user.send(&["1", "2", "3", "4"]);
    settled().await;
    assert_eq!(ids(&outlet), ["1", "2", "3", "4"]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_settles_nothing_that_waits() {
    let user = running(|_| ()).await;
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    user.send(&["1", "2"]);
    settled().await;
    assert_eq!(user.settled_now(), 2);
    user.store.fail(Call::Hold, 3);
    user.send(&["3", "4"]);
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    assert_eq!(user.settled_now(), 0);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(user.settled_now(), 2);
    assert_eq!(ids(&outlet), ["1", "2", "3", "4"]);
}

#[tokio::test(start_paused = true)]
async fn transient_ones_over_the_limit_are_dropped_and_told_of() {
    #[derive(Default)]
    struct Told(StdMutex<Vec<Receipt>>);
    impl Receipts for Told {
        fn hand_over(&self, receipt: Receipt) {
            self.0.lock().unwrap().push(receipt);
        }
    }
    let told = Arc::new(Told::default());
    let receipts = told.clone();
    let user = running(|config| config.receipts = receipts).await;
    user.event(transient(&fakes::user(), "nobody-there"));
    settled().await;
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    ["1", "2", "3"].into_iter().for_each(|id| user.event(transient(&fakes::user(), id)));
    settled().await;
    assert_eq!(ids(&outlet), ["1", "2"]);
    assert_eq!(user.settled_now(), 4);
    let told: Vec<_> = told.0.lock().unwrap().iter().map(|told| (told.id.to_string(), told.reason)).collect();
    let expected = [("nobody-there", Some(Reason::Away)), ("3", Some(Reason::RateLimited))];
    assert_eq!(told, expected.map(|(id, reason)| (id.to_owned(), reason)));
}

#[tokio::test(start_paused = true)]
async fn copies_of_one_that_waits_change_nothing() {
    let user = running(|_| ()).await;
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    user.send(&["1", "2", "3", "3", "3"]);
    settled().await;
    assert_eq!(user.settled_now(), 5);
    assert_eq!(user.waiting().await, ["3"]);
    // Sent again as one that passes: it gets its number with that, once.
    user.event(event("3", |options| options.priority = Priority::Critical));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!((ids(&outlet), outlet.numbers()), (["1", "2", "3"].map(String::from).into(), vec![1, 2, 3]));
    assert_eq!(user.store.made(Call::BeginEpoch), 0);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_released_and_sent_again_in_the_same_moment_comes_once() {
    let user = running(|_| ()).await;
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    user.send(&["1", "2", "3", "4"]);
    settled().await;
    user.store.delay(Call::Append, Duration::from_secs(5));
    user.send(&["busy"]);
    user.event(event("3", |options| options.priority = Priority::Critical));
    outlet.session().stop(None);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let (again, _) = user.attach(Origin::Cursor);
    settled().await;
    assert_eq!(ids(&again), ["1", "2", "3", "4", "busy"]);
    assert_eq!(user.store.made(Call::BeginEpoch), 0, "no number was given twice");
}

#[tokio::test(start_paused = true)]
async fn a_crash_with_writes_under_way_loses_nothing_that_waits_and_owes_its_digest() {
    let user = running(|_| ()).await;
    let (_outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    user.send(&["1", "2"]);
    settled().await;
    assert_eq!(user.settled_now(), 2);
    user.store.delay(Call::Hold, Duration::from_secs(3));
    user.send(&["3", "4", "5", "6", "7"]);
    settled().await;
    user.actor.kill();
    let (shard, _) = Collector::<Outcome>::spawn().await;
    let config = Arc::new(Config { writer: user.writer.clone(), ..limited(&user.store) });
    let args =
        Args { user: fakes::user(), config, outcomes: shard.get_derived(), limiter: None, asleep: None, recover: true };
    let next = Running { actor: spawn(args, shard.get_cell()).await.unwrap(), ..user };
    tokio::time::sleep(Duration::from_secs(10)).await;
    // What was under way comes again: its permits were lost with the actor.
    let mut lost: Vec<_> = next.reports.take().into_iter().map(|(_, outcome)| outcome).collect();
    lost.dedup();
    assert_eq!(lost, [Settlement::Lost]);
    next.send(&["3", "4", "5", "6", "7"]);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(next.settled_now(), 5);
    let (again, _) = next.attach(Origin::Cursor);
    settled().await;
    assert_eq!(ids(&again)[..5], ["1", "2", "3", "4", "5"]);
    let digest = again.events().pop().unwrap();
    let payload: serde_json::Value = serde_json::from_str(&digest.payload).unwrap();
    assert_eq!((&*digest.notification_type, &payload["count"]), (DIGEST_TYPE, &2.into()));
    assert!(next.store.users_waiting().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn transient_ones_do_not_take_the_tokens_of_those_that_wait() {
    let user = running(|_| ()).await;
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    user.send(&["1", "2", "3"]);
    for n in 0..400 {
        user.event(transient(&fakes::user(), &format!("t{n}")));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(ids(&outlet).contains(&"3".to_owned()), "after two seconds: {:?}", ids(&outlet));
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_an_old_one_takes_nobodys_place() {
    let user = running(|_| ()).await;
    let keyed = |id: &str| event(id, |options| options.collapse_key = Some("score".into()));
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    user.event(keyed("old"));
    user.send(&["1"]);
    user.event(keyed("new"));
    settled().await;
    user.event(keyed("old"));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(ids(&outlet), ["old", "1", "new"]);
}
