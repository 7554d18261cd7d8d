//! Users that sleep while their clients are connected, and what wakes them: over a real user and real sessions.

use std::sync::Mutex;

use super::*;
use crate::{
    ids::NotificationId,
    receipt::{Receipt, Receipts},
    session::{Attachment, tests::outlet::Seen},
    state::{Reason, State as Became},
    store::journal::Journal as _,
    user::{
        Origin,
        limiter::{Limit, Limits},
    },
};

mod steps;

/// Longer than a user stays awake.
const ASLEEP: Duration = Duration::from_secs(40);

impl Running {
    async fn of(change: impl FnOnce(&mut user::Config)) -> Self {
        let store = FaultyStore::new(10_000);
        let mut config = (*config(&store, 2)).clone();
        change(&mut config);
        let args = Args { config: Arc::new(config), waiting: Some(Vec::new()), sealed: Sealed::default() };
        let shard = spawn(args, fakes::supervisor().await).await.unwrap();
        Self::with(store, shard)
    }

    fn connect(&self) -> Arc<FakeOutlet> {
        let outlet = FakeOutlet::new();
        self.shard.cast(Msg::Attach(attach("101", &outlet))).unwrap();
        outlet
    }

    /// A client that cannot acknowledge where it reads.
    fn stream(&self) -> Arc<FakeOutlet> {
        let outlet = FakeOutlet::new();
        let attach = Attach { counts_acknowledgements: false, ..*attach("101", &outlet) };
        self.shard.cast(Msg::Attach(Box::new(attach))).unwrap();
        outlet
    }

    /// As its connection does that has noticed that nobody serves it.
    fn attach_again(&self, outlet: &Arc<FakeOutlet>, passed: u64, acknowledged: u64) {
        let attachment = Attachment::new(outlet.clone(), outlet.next_attachment());
        let from = Origin::Connection { passed, acknowledged };
        let attach = Attach { from, attachment, ..*attach("101", outlet) };
        self.shard.cast(Msg::Attach(Box::new(attach))).unwrap();
    }

    fn durable(&self, number: i64) {
        self.send(number, durable(&fakes::user(), &number.to_string()), false);
    }

    fn transient(&self, number: i64) {
        self.send(number, fakes::transient(&fakes::user(), &number.to_string()), false);
    }

    /// The client of a session at rest acknowledges, as its connection does.
    fn acknowledge(&self, outlet: &FakeOutlet, seq: u64) {
        if !outlet.acknowledge(seq) {
            self.shard.cast(Msg::Wake(fakes::user())).unwrap();
        }
    }

    /// A client leaves, as its connection does.
    fn leave(&self, outlet: &FakeOutlet) {
        let rests = outlet.is_at_rest();
        outlet.leave();
        if rests {
            self.shard.cast(Msg::Ended(fakes::user())).unwrap();
        }
    }

    async fn asleep(&self) {
        tokio::time::sleep(ASLEEP).await;
        assert_eq!(self.users(), 0, "asleep");
    }

    async fn stands(&self, id: &str) -> (Became, Option<Reason>) {
        let account = self.store.account(&fakes::user(), &NotificationId::new(id).unwrap()).await.unwrap().unwrap();
        let last = account.history(crate::event::unix_millis_now(), 0);
        let last = last.last().unwrap();
        (last.state, last.reason)
    }
}

#[tokio::test(start_paused = true)]
async fn a_quiet_user_sleeps_with_its_clients_connected_and_every_event_finds_them() {
    let shard = Running::of(|_| ()).await;
    let outlet = shard.connect();
    settled().await;
    assert_eq!(shard.users(), 1);
    for round in 0..3 {
        shard.asleep().await;
        assert!(outlet.is_at_rest());
        shard.transient(2 * round);
        settled().await;
        assert_eq!(shard.users(), 1, "awake");
        shard.durable(2 * round + 1);
        settled().await;
        shard.acknowledge(&outlet, outlet.numbers().len() as u64);
    }
    assert_eq!(outlet.ids(), ["0", "1", "2", "3", "4", "5"], "nothing lost, nothing twice");
    assert_eq!(outlet.seen()[0], Seen::Hello);
    assert_eq!(outlet.seen().iter().filter(|seen| **seen == Seen::Hello).count(), 1, "the client notices nothing");
    assert_eq!(outlet.lost_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn whoever_is_switched_off_never_sleeps() {
    let shard = Running::of(|config| config.dormancy = false).await;
    let outlet = shard.connect();
    tokio::time::sleep(10 * ASLEEP).await;
    assert!(shard.users() == 1 && !outlet.is_at_rest());
    shard.leave(&outlet);
    shard.asleep().await;
}

#[tokio::test(start_paused = true)]
async fn who_has_not_acknowledged_or_takes_nothing_or_waits_for_a_limit_does_not_sleep() {
    let unacknowledged = Running::of(|_| ()).await;
    let one = unacknowledged.connect();
    settled().await;
    unacknowledged.durable(0);
    tokio::time::sleep(4 * ASLEEP).await;
    assert!(unacknowledged.users() == 1 && !one.is_at_rest());
    unacknowledged.acknowledge(&one, 1);
    unacknowledged.asleep().await;

    let full = Running::of(|_| ()).await;
    let stream = full.stream();
    settled().await;
    stream.room(0);
    full.durable(0);
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert!(!stream.is_at_rest() && stream.refused() > 0);

    let limit = Limit { per_second: 0.01, burst: 1, dry_run: false };
    let limits = Limits::default().with(crate::event::Priority::Normal, limit);
    let limited = Running::of(|config| config.limits = limits).await;
    let stream = limited.stream();
    settled().await;
    ["0", "1"].iter().for_each(|id| limited.durable(id.parse().unwrap()));
    tokio::time::sleep(2 * ASLEEP).await;
    assert_eq!((limited.users(), stream.ids()), (1, vec!["0".to_owned()]), "one waits");
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(stream.ids(), ["0", "1"]);
    limited.asleep().await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_session_keeps_the_users_others_awake() {
    let shard = Running::of(|_| ()).await;
    let (busy, quiet) = (shard.connect(), shard.stream());
    settled().await;
    shard.durable(0);
    tokio::time::sleep(3 * ASLEEP).await;
    assert_eq!((shard.users(), busy.is_at_rest(), quiet.is_at_rest()), (1, false, false));
    shard.transient(1);
    settled().await;
    assert_eq!([busy.ids(), quiet.ids()], [["0", "1"], ["0", "1"]]);
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_of_a_client_at_rest_counts() {
    let shard = Running::of(|_| ()).await;
    let stream = shard.stream();
    settled().await;
    shard.durable(0);
    shard.asleep().await;
    assert_eq!(shard.stands("0").await.0, Became::Active);
    shard.acknowledge(&stream, 1);
    settled().await;
    assert_eq!(shard.users(), 1, "awake");
    assert_eq!(shard.store.cursor(&fakes::user()).await, 1);
    assert_eq!(shard.stands("0").await.0, Became::Sent);
}

#[tokio::test(start_paused = true)]
async fn a_new_session_wakes_the_others_and_the_limit_stays_exact() {
    let shard = Running::of(|_| ()).await;
    let outlets = [shard.connect(), shard.connect()];
    shard.asleep().await;
    let third = shard.connect();
    settled().await;
    assert_eq!(outlets.each_ref().map(|outlet| outlet.closes()), [vec![4003], vec![]], "the oldest goes");
    shard.transient(0);
    settled().await;
    assert_eq!([&outlets[1], &third].map(|outlet| outlet.ids()), [["0"], ["0"]]);
    outlets.iter().for_each(|outlet| shard.leave(outlet));
    shard.acknowledge(&third, 0);
    shard.asleep().await;
    shard.leave(&third);
    settled().await;
    let last = [shard.connect(), shard.connect()];
    settled().await;
    assert!(last.iter().all(|outlet| outlet.closes().is_empty()), "who left asleep does not count");
    assert!(third.closes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_asleep_wakes_nobody_and_what_it_had_is_stale() {
    let shard = Running::of(|_| ()).await;
    let (stream, other) = (shard.stream(), shard.stream());
    settled().await;
    shard.durable(0);
    shard.asleep().await;
    shard.leave(&stream);
    settled().await;
    assert_eq!((shard.users(), other.is_at_rest()), (0, true));
    assert_eq!(shard.stands("0").await.0, Became::Stale);
    shard.leave(&other);
    settled().await;
    shard.transient(1);
    settled().await;
    assert!(stream.ids() == ["0"] && other.ids() == ["0"]);
    assert_eq!((stream.lost_count(), other.lost_count()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_left_is_given_nothing_before_its_connection_has_said_so() {
    #[derive(Default)]
    struct Told(Mutex<Vec<Option<Reason>>>);
    impl Receipts for Told {
        fn hand_over(&self, receipt: Receipt) {
            self.0.lock().unwrap().push(receipt.reason);
        }
    }
    let told = Arc::new(Told::default());
    let shard = Running::of(|config| config.receipts = told.clone()).await;
    let stream = shard.stream();
    settled().await;
    shard.durable(0);
    shard.asleep().await;
    stream.leave();
    shard.transient(1);
    settled().await;
    assert_eq!(*told.0.lock().unwrap(), [Some(Reason::Away)]);
    assert_eq!(shard.stands("0").await.0, Became::Stale);
}

#[tokio::test(start_paused = true)]
async fn what_limits_have_let_go_and_gaps_survive_sleep() {
    let limit = Limit { per_second: 0.01, burst: 1, dry_run: false };
    let limits = Limits::default().with(crate::event::Priority::Normal, limit);
    let shard = Running::of(|config| config.limits = limits).await;
    let mut expired = (*durable(&fakes::user(), "gone")).clone();
    expired.options.ttl = Some(Duration::from_millis(100));
    shard.store.fill(&[Arc::new(expired)]).await;
    std::thread::sleep(Duration::from_millis(150));
    let outlet = shard.connect();
    settled().await;
    assert_eq!(outlet.seen()[1..], [Seen::Gap(1, 1, "expired".into())]);
    shard.durable(0);
    settled().await;
    shard.acknowledge(&outlet, 0);
    settled().await;
    assert_eq!(outlet.numbers(), [2]);
    // Only the gap is acknowledged by nobody; it cannot be.
    let again = shard.stream();
    settled().await;
    shard.leave(&outlet);
    shard.asleep().await;
    shard.durable(1);
    settled().await;
    assert!(!again.ids().contains(&"1".to_owned()), "the burst was used up before it slept");
    shard.acknowledge(&again, 2);
    settled().await;
    assert_eq!(shard.stands("gone").await, (Became::Deleted, Some(Reason::Expired)), "told of before it slept");
}

#[tokio::test(start_paused = true)]
async fn numbers_that_a_client_cannot_acknowledge_are_not_waited_for_after_sleep() {
    let shard = Running::of(|config| {
        let session = crate::session::Config { ack_deadline: Duration::from_secs(60), ..(*config.session).clone() };
        config.session = Arc::new(session);
    })
    .await;
    let mut expired = (*durable(&fakes::user(), "gone")).clone();
    expired.options.ttl = Some(Duration::from_millis(100));
    shard.store.fill(&[Arc::new(expired)]).await;
    std::thread::sleep(Duration::from_millis(150));
    let outlet = shard.connect();
    for number in 0..5 {
        shard.asleep().await;
        shard.transient(number);
        settled().await;
    }
    assert_eq!((outlet.ids().len(), outlet.closes()), (5, vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_at_wake_up_holds_back_only_what_it_has_to_keep() {
    let shard = Running::of(|_| ()).await;
    let outlet = shard.connect();
    shard.asleep().await;
    shard.store.fail(Call::Open, 5);
    shard.store.fail(Call::Append, 5);
    shard.transient(0);
    shard.durable(1);
    settled().await;
    assert_eq!(outlet.ids(), ["0"]);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(outlet.ids(), ["0", "1"]);
    assert_eq!(shard.reports.take(), [(0, Outcome::Settled), (1, Outcome::Settled)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_while_the_logs_end_is_read_again_is_given_once_and_is_no_sign_of_another_log() {
    let shard = Running::of(|_| ()).await;
    let stream = shard.stream();
    shard.asleep().await;
    // What the log holds is heard of before what has become of the write.
    shard.store.fail(Call::Open, 1);
    shard.store.delay(Call::Append, Duration::from_secs(10));
    shard.durable(0);
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!((stream.ids(), shard.reports.take()), (vec!["0".to_owned()], vec![]));
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!((stream.ids(), shard.reports.take()), (vec!["0".to_owned()], vec![(0, Outcome::Settled)]));
}

/// A user who was given three notifications, by events or out of the log, has slept, and its log has lost two of them.
async fn hears_of_a_shorter_log(live: bool) -> bool {
    let (lost, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let store = FaultyStore::new(1000);
    let writer = crate::store::writer::Writer::start(
        &(store.clone() as Arc<dyn crate::store::Store>),
        &crate::health::Health::default(),
        &lost,
    );
    let config = Arc::new(user::Config { writer, ..(*config(&store, 8)).clone() });
    let args = Args { config, waiting: Some(Vec::new()), sealed: Sealed::default() };
    let shard = Running::with(store, spawn(args, fakes::supervisor().await).await.unwrap());
    if !live {
        shard.store.fill(&["0", "1", "2"].map(|id| durable(&fakes::user(), id))).await;
    }
    let stream = shard.stream();
    settled().await;
    if live {
        (0..3).for_each(|number| shard.durable(number));
    }
    shard.asleep().await;
    shard.store.forget(1);
    shard.transient(3);
    settled().await;
    assert_eq!(stream.ids(), ["0", "1", "2", "3"]);
    heard.try_recv().is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_shorter_than_before_sleep_is_noticed() {
    assert!(hears_of_a_shorter_log(true).await);
    assert!(hears_of_a_shorter_log(false).await);
}

#[tokio::test(start_paused = true)]
async fn whoever_reads_or_has_something_to_say_of_what_was_given_does_not_sleep() {
    let shard = Running::of(|config| config.idle_after = Duration::from_millis(300)).await;
    let stream = shard.stream();
    settled().await;
    shard.durable(0);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(stream.is_at_rest());
    assert_eq!(shard.stands("0").await.0, Became::Active);
    shard.store.delay(Call::Read, Duration::from_secs(60));
    let late = shard.stream();
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert!(!late.is_at_rest() && late.ids().is_empty());
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(late.is_at_rest() && late.ids() == ["0"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_stored_behind_a_sleeping_users_back_comes_when_it_wakes() {
    let shard = Running::of(|_| ()).await;
    let outlet = shard.connect();
    shard.asleep().await;
    shard.store.fill(&[durable(&fakes::user(), "a")]).await;
    shard.transient(0);
    settled().await;
    assert_eq!(outlet.ids(), ["0", "a"]);
}

#[tokio::test(start_paused = true)]
async fn a_crash_while_asleep_or_while_waking_is_noticed_by_the_connection() {
    let waking = Running::of(|_| ()).await;
    let outlet = waking.connect();
    waking.asleep().await;
    waking.send(0, faulty(&fakes::user()), false);
    settled().await;
    assert_eq!((outlet.lost_count(), waking.reports.take()), (1, vec![(0, Outcome::Crashed)]));
    waking.attach_again(&outlet, 0, 0);
    waking.send(0, durable(&fakes::user(), "0"), true);
    settled().await;
    assert_eq!(outlet.numbers(), [1]);

    let asleep = Running::of(|_| ()).await;
    let outlet = asleep.connect();
    asleep.asleep().await;
    asleep.shard.kill();
    settled().await;
    assert_eq!(outlet.lost_count(), 1, "its shard's actor was all that knew of it");

    let session = Running::of(|_| ()).await;
    let outlet = session.connect();
    session.asleep().await;
    outlet.panic_next();
    session.transient(0);
    settled().await;
    assert_eq!((outlet.lost_count(), session.users()), (1, 1));
}
