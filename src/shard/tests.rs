//! The shard actor with real users below it: refusals after a crash, and users that come and go without losing
//! anything, on a paused clock.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{
    event::{Durability, Event},
    fakes::{self, Reports, durable, event, settled, transient},
    session::tests::outlet::FakeOutlet,
    settlement::Outcome,
    store::{
        tests::{Call, FaultyStore},
        waiting::Waiting as _,
    },
    user::tests::{IDLE, config},
};

mod moving;
mod sleep;

struct Running {
    shard: ShardRef,
    store: Arc<FaultyStore>,
    reports: Arc<Reports>,
}

impl Running {
    async fn new() -> Self {
        let store = FaultyStore::new(10_000);
        let shard = spawn(
            Args { config: config(&store, 8), waiting: Some(Vec::new()), sealed: Sealed::default() },
            fakes::supervisor().await,
        )
        .await
        .unwrap();
        Self::with(store, shard)
    }

    fn with(store: Arc<FaultyStore>, shard: ShardRef) -> Self {
        Self { shard, store, reports: Reports::new() }
    }

    fn send(&self, number: i64, event: Arc<Event>, first: bool) {
        let in_flight = InFlight { first, ..self.reports.in_flight(number, event) };
        self.shard.cast(Msg::Events(vec![in_flight])).unwrap();
    }

    /// How many users have an actor.
    fn users(&self) -> usize {
        self.shard.get_cell().get_children().len()
    }

    fn idle(&self, handled: u64) {
        self.shard.cast(Msg::User(user::Outcome::Idle { user: fakes::user(), handled, limiter: None })).unwrap();
    }
}

fn faulty(user: &UserId) -> Arc<Event> {
    event(user, "faulty", "fault.user", Durability::Durable)
}

fn attach(user: &str, outlet: &Arc<FakeOutlet>) -> Box<Attach> {
    Box::new(Attach {
        user: UserId::new(user).unwrap(),
        session: crate::ids::SessionId::random(),
        device: None,
        from: user::Origin::Cursor,
        began: Instant::now(),
        counts_acknowledgements: true,
        attachment: crate::session::Attachment::new(outlet.clone(), 1),
    })
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_events_are_refused_until_the_senders_first_one_comes() {
    let shard = Running::new().await;
    let (user, other) = (fakes::user(), UserId::new("other").unwrap());
    shard.send(0, faulty(&user), false);
    settled().await;
    assert_eq!(shard.reports.take(), [(0, Outcome::Crashed)]);
    shard.send(1, durable(&user, "1"), false);
    shard.send(2, durable(&other, "2"), false);
    settled().await;
    assert_eq!(shard.reports.take(), [(1, Outcome::Refused), (2, Outcome::Settled)], "only that user's");
    shard.send(0, durable(&user, "0"), true);
    shard.send(1, durable(&user, "1"), false);
    settled().await;
    assert_eq!(shard.reports.take(), [(0, Outcome::Settled), (1, Outcome::Settled)]);
}

#[tokio::test(start_paused = true)]
async fn what_a_crashed_user_had_not_begun_is_lost_and_not_blamed() {
    let shard = Running::new().await;
    let user = fakes::user();
    shard.store.delay(Call::Append, Duration::from_secs(1));
    // The first waits for the store, the second crashes, the third is still in the mailbox.
    for (number, event) in [(0, durable(&user, "0")), (1, faulty(&user)), (2, durable(&user, "2"))] {
        shard.send(number, event, false);
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut reports = shard.reports.take();
    reports.sort_by_key(|(number, _)| *number);
    assert_eq!(reports, [(0, Outcome::Lost), (1, Outcome::Crashed), (2, Outcome::Lost)]);
}

#[tokio::test(start_paused = true)]
async fn a_crashed_users_sessions_are_lost_and_another_users_are_not() {
    let shard = Running::new().await;
    let outlets = ["101", "other"].map(|user| {
        let outlet = FakeOutlet::new();
        shard.shard.cast(Msg::Attach(attach(user, &outlet))).unwrap();
        outlet
    });
    settled().await;
    shard.send(0, faulty(&fakes::user()), false);
    settled().await;
    assert_eq!(outlets.map(|outlet| outlet.lost_count()), [1, 0]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_users_actor_stops_and_the_next_event_starts_another() {
    let shard = Running::new().await;
    shard.send(0, durable(&fakes::user(), "0"), false);
    tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
    assert_eq!(shard.users(), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(shard.users(), 0);
    shard.send(1, durable(&fakes::user(), "1"), false);
    settled().await;
    assert_eq!(shard.users(), 1);
    assert_eq!(
        shard.reports.take(),
        [(0, Outcome::Settled), (1, Outcome::Settled)],
        "nothing is refused: nobody crashed"
    );
}

#[tokio::test(start_paused = true)]
async fn what_limits_have_let_go_survives_sleep_as_long_as_it_matters() {
    let store = FaultyStore::new(1000);
    let limit = crate::user::limiter::Limit { per_second: 0.02, burst: 2, dry_run: false };
    let limits = crate::user::limiter::Limits::default().with(crate::event::Priority::Normal, limit);
    let config = Arc::new(user::Config { limits, ..(*config(&store, 8)).clone() });
    let args = Args { config, waiting: Some(Vec::new()), sealed: Sealed::default() };
    let shard = Running::with(store, spawn(args, fakes::supervisor().await).await.unwrap());
    let session = |outlet: &Arc<FakeOutlet>| {
        let attach = attach("101", outlet);
        shard.shard.cast(Msg::Attach(attach)).unwrap();
    };
    let [first, second, third] = [(); 3].map(|()| FakeOutlet::new());
    session(&first);
    settled().await;
    ["0", "1"].into_iter().for_each(|id| shard.send(id.parse().unwrap(), durable(&fakes::user(), id), false));
    settled().await;
    assert_eq!(first.numbers(), [1, 2]);
    first.session().stop(None);
    tokio::time::sleep(IDLE + Duration::from_secs(1)).await;
    assert_eq!(shard.users(), 0, "asleep");
    session(&second);
    settled().await;
    shard.send(2, durable(&fakes::user(), "2"), false);
    settled().await;
    assert_eq!(second.numbers(), [1, 2], "the burst was used up before it slept");
    second.session().stop(None);
    tokio::time::sleep(Duration::from_secs(200)).await;
    session(&third);
    settled().await;
    shard.send(3, durable(&fakes::user(), "3"), false);
    settled().await;
    assert_eq!(third.numbers(), [1, 2, 3, 4], "it has come back meanwhile");
}

#[tokio::test(start_paused = true)]
async fn what_waited_when_a_user_crashed_or_before_the_node_started_gets_its_number() {
    let store = FaultyStore::new(1000);
    let hold = |id: &str| crate::store::waiting::Holding { event: durable(&fakes::user(), id), digest: None };
    store.hold(&[hold("a")]).await.unwrap();
    let args = Args { config: config(&store, 8), waiting: Some(vec![fakes::user()]), sealed: Sealed::default() };
    let shard = Running::with(store.clone(), spawn(args, fakes::supervisor().await).await.unwrap());
    settled().await;
    assert!(store.users_waiting().await.unwrap().is_empty(), "before anything came for it");
    shard.send(0, faulty(&fakes::user()), false);
    store.hold(&[hold("b")]).await.unwrap();
    settled().await;
    shard.send(1, durable(&fakes::user(), "c"), true);
    settled().await;
    let outlet = FakeOutlet::new();
    shard.shard.cast(Msg::Attach(attach("101", &outlet))).unwrap();
    settled().await;
    assert_eq!(outlet.ids(), ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_user_that_was_sent_more_than_it_had_handled_does_not_stop() {
    let shard = Running::new().await;
    shard.send(0, durable(&fakes::user(), "0"), false);
    settled().await;
    // It asked after the first message; the second is on its way.
    shard.send(1, durable(&fakes::user(), "1"), false);
    shard.idle(1);
    settled().await;
    assert_eq!(shard.reports.take(), [(0, Outcome::Settled), (1, Outcome::Settled)]);
    assert_eq!(shard.users(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_comes_while_a_user_stops_waits_for_its_successor() {
    let shard = Running::new().await;
    shard.send(0, durable(&fakes::user(), "0"), false);
    settled().await;
    let predecessor = shard.shard.get_cell().get_children()[0].get_id();
    shard.idle(1);
    for number in 1..4 {
        shard.send(number, durable(&fakes::user(), &number.to_string()), false);
    }
    settled().await;
    assert_eq!(shard.reports.take(), [0, 1, 2, 3].map(|number| (number, Outcome::Settled)));
    let users = shard.shard.get_cell().get_children();
    assert!(users.len() == 1 && users[0].get_id() != predecessor);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Events with pauses around the time after which a user stops: none is lost or refused, all are in order.
    #[test]
    fn nothing_is_lost_between_a_user_and_its_successor(pauses in prop::collection::vec((0u64..3, 1usize..4), 1..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let reports = runtime.block_on(async {
            let shard = Running::new().await;
            let mut number = 0;
            for (pause, events) in &pauses {
                // A timer of the user's fires in the same millisecond, just before or just after.
                tokio::time::sleep(IDLE - Duration::from_millis(1) + Duration::from_millis(*pause)).await;
                for _ in 0..*events {
                    shard.send(number, durable(&fakes::user(), &number.to_string()), false);
                    number += 1;
                    tokio::task::yield_now().await;
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            (number, shard.reports.take())
        });
        let expected: Vec<_> = (0..reports.0).map(|number| (number, Outcome::Settled)).collect();
        prop_assert_eq!(reports.1, expected);
    }
}
