//! Write lanes over a store that fails or is slow, on a paused clock.

use super::*;
use crate::{
    fakes::{self, Collector, Heard, Reports, durable, settled},
    settlement::Outcome,
    store::{
        journal::Journal as _,
        tests::{Call, FaultyStore},
    },
};

struct Setup {
    store: Arc<FaultyStore>,
    writer: Writer,
    health: Health,
    reports: Arc<Reports>,
    reply: Reply,
    stored: Heard<Written>,
}

impl Setup {
    async fn new() -> Self {
        Self::over(FaultyStore::new(1000)).await
    }

    async fn over(store: Arc<FaultyStore>) -> Self {
        let health = Health::default();
        let writer = Writer::start(&(store.clone() as Arc<dyn Store>), &health, &mpsc::unbounded_channel().0);
        let (actor, stored) = Collector::<Written>::spawn().await;
        Self { store, writer, health, reports: Reports::new(), reply: actor.get_derived(), stored }
    }

    fn append(&self, number: i64) {
        let event = durable(&fakes::user(), &number.to_string());
        self.writer.append(self.reports.in_flight(number, event), true, self.reply.clone());
    }

    /// What came back: the events' ids with their numbers.
    fn answers(&self) -> Vec<(String, Appended)> {
        let answer = |written: &Written| match written {
            Written::Stored { in_flight, outcome } => (in_flight.event.id.to_string(), *outcome),
            other => panic!("{other:?}"),
        };
        self.stored.lock().iter().map(answer).collect()
    }
}

fn numbered(ids: impl IntoIterator<Item = u64>) -> Vec<(String, Appended)> {
    ids.into_iter().map(|id| (id.to_string(), Appended::Stored(id))).collect()
}

#[tokio::test(start_paused = true)]
async fn a_write_is_repeated_until_the_store_answers_and_health_says_so_meanwhile() {
    let setup = Setup::new().await;
    assert!(setup.health.failing().is_empty());
    // Eight failures: waits with full jitter add up to at most 20 + 40 + … + 2000 ms, and can hardly add up to none.
    setup.store.fail(Call::Append, 8);
    (1..=3).for_each(|number| setup.append(number));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let failing = setup.health.failing();
    assert!(failing.len() == 1 && failing[0].0 == "store" && failing[0].1.contains("as planned"), "{failing:?}");
    assert!(setup.answers().is_empty() && setup.reports.take().is_empty());
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(setup.answers(), numbered(1..=3));
    assert!(setup.health.failing().is_empty(), "it answers again");
    assert_eq!(setup.store.made(Call::Append), 9);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_at_once_and_not_again_leaves_the_node_ready_and_a_slow_one_does_not() {
    let setup = Setup::new().await;
    setup.store.fail(Call::Append, 1);
    setup.append(1);
    while setup.store.made(Call::Append) < 2 {
        assert!(setup.health.failing().is_empty());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    setup.store.fail(Call::Append, 1);
    setup.store.delay(Call::Append, Duration::from_secs(5));
    setup.append(2);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(setup.health.failing().len(), 1, "it took five seconds to fail");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!((setup.answers(), setup.health.failing().len()), (numbered(1..=2), 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_superseded_is_so_however_often_the_store_fails_meanwhile() {
    let setup = Setup::new().await;
    setup.store.fail(Call::Supersede, 3);
    for id in 1..=2 {
        let mut event = Event::clone(&durable(&fakes::user(), &id.to_string()));
        event.options.collapse_key = Some("k".into());
        setup.writer.append(setup.reports.in_flight(id, event.into()), true, setup.reply.clone());
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    let state_of = async |id: &str| {
        let account = setup.store.account(&fakes::user(), &NotificationId::new(id).unwrap()).await.unwrap().unwrap();
        account.ended.map(|(reason, _)| reason)
    };
    assert_eq!((state_of("1").await, state_of("2").await), (Some(Reason::Superseded), None));
}

#[tokio::test(start_paused = true)]
async fn what_comes_while_a_call_is_under_way_goes_into_the_next_one_together_and_in_order() {
    let setup = Setup::new().await;
    setup.store.delay(Call::Append, Duration::from_secs(1));
    setup.append(1);
    settled().await;
    (2..=20).for_each(|number| setup.append(number));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((setup.answers(), setup.store.made(Call::Append)), (numbered(1..=20), 2));
}

/// Or a process that is killed in between would go on with what waits before it reads the others again.
#[tokio::test(start_paused = true)]
async fn nothing_is_held_back_before_what_came_earlier_is_stored_and_nothing_goes_on_before_it_is_held_back() {
    let setup = Setup::new().await;
    setup.store.delay(Call::Append, Duration::from_secs(1));
    setup.store.delay(Call::Hold, Duration::from_secs(1));
    setup.append(1);
    let waits = durable(&fakes::user(), "2");
    setup.writer.hold(setup.reports.in_flight(2, waits.clone()), None, setup.reply.clone());
    setup.writer.release(waits, setup.reply.clone());
    let made = |call| setup.store.made(call);
    let mut steps = Vec::new();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        steps.push((made(Call::Append), made(Call::Hold)));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(steps, [(1, 0), (1, 1), (2, 1)]);
    assert_eq!(setup.store.open(&fakes::user(), None).await.unwrap().head, 2);
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_that_the_store_did_not_take_is_repeated() {
    let setup = Setup::new().await;
    setup.append(1);
    setup.store.fail(Call::Acknowledge, 3);
    setup.writer.acknowledge(Acknowledgement { user: fakes::user(), device: None, seq: 1 }, Vec::new());
    settled().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!((setup.store.cursor(&fakes::user()).await, setup.store.made(Call::Acknowledge)), (1, 4));
}

impl Setup {
    fn acknowledge(&self, seq: u64) {
        self.writer.acknowledge(Acknowledgement { user: fakes::user(), device: None, seq }, Vec::new());
    }
}

#[tokio::test(start_paused = true)]
async fn no_event_waits_for_acknowledgements_and_those_of_a_moment_go_together() {
    let setup = Setup::new().await;
    (1..=20).for_each(|number| setup.append(number));
    settled().await;
    setup.store.delay(Call::Acknowledge, Duration::from_secs(60));
    for seq in 1..=10 {
        setup.acknowledge(seq);
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    settled().await;
    assert_eq!(setup.store.made(Call::Acknowledge), 1, "within a moment");
    setup.append(21);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(setup.answers().len(), 21, "the acknowledgements are still under way");
    (11..=20).for_each(|seq| setup.acknowledge(seq));
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!((setup.store.cursor(&fakes::user()).await, setup.store.made(Call::Acknowledge)), (20, 2));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_notes_does_not_wait_for_others_to_come() {
    let setup = Setup::new().await;
    setup.append(1);
    settled().await;
    setup.acknowledge(1);
    let began = tokio::time::Instant::now();
    setup.writer.noted().await;
    assert_eq!(setup.store.cursor(&fakes::user()).await, 1);
    assert_eq!(began.elapsed(), Duration::ZERO);
    setup.writer.noted().await;
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_sees_what_was_acknowledged_before_it() {
    let setup = Setup::new().await;
    setup.append(1);
    settled().await;
    setup.store.delay(Call::Acknowledge, Duration::from_secs(1));
    setup.acknowledge(1);
    let (reply, cancelled) = oneshot::channel();
    setup.writer.cancel(fakes::user(), NotificationId::new("1").unwrap(), reply);
    assert_eq!(cancelled.await.unwrap(), Cancelled::Ended(State::Sent));
}

/// The marks of the user's log, as they are opened now.
async fn opened(writer: &Writer, device: Option<&str>) -> Opened {
    let device = device.map(|device| crate::ids::DeviceId::new(device).unwrap());
    let (answer, opened) = oneshot::channel();
    let on_opened = Box::new(|marks| _ = answer.send(marks));
    writer.open(Opening { user: fakes::user(), device }, on_opened);
    opened.await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn who_opens_a_log_waits_for_what_its_user_has_acknowledged_to_be_stored() {
    let setup = Setup::new().await;
    (1..=5).for_each(|number| setup.append(number));
    settled().await;
    setup.store.delay(Call::Acknowledge, Duration::from_secs(1));
    for device in [None, Some("new")] {
        let before = opened(&setup.writer, None).await;
        setup.acknowledge(before.cursor + 2);
        setup.acknowledge(before.cursor + 1);
        let (began, cursor) = (Instant::now(), before.cursor + 2);
        assert_eq!(opened(&setup.writer, device).await, Opened { head: 5, cursor, acknowledged: cursor });
        assert!(began.elapsed() >= Duration::from_secs(1), "it was not stored before");
        let began = Instant::now();
        assert_eq!(opened(&setup.writer, None).await.cursor, cursor);
        assert_eq!(began.elapsed(), Duration::ZERO, "nothing is under way any more");
    }
}

#[tokio::test(start_paused = true)]
async fn appends_wait_while_very_many_notes_do() {
    let setup = Setup::new().await;
    setup.append(1);
    settled().await;
    setup.store.delay(Call::Acknowledge, Duration::from_secs(1));
    (0..12_000).for_each(|_| setup.acknowledge(1));
    setup.append(2);
    settled().await;
    assert_eq!(setup.answers().len(), 1, "it waits");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(setup.answers().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_event_whose_actor_is_gone_is_reported_as_lost_and_not_as_crashed() {
    let setup = Setup::new().await;
    let (gone, _) = Collector::<Written>::spawn().await;
    gone.stop(None);
    settled().await;
    let mut in_flight = setup.reports.in_flight(7, durable(&fakes::user(), "7"));
    in_flight.permit.begin();
    setup.writer.append(in_flight, true, gone.get_derived());
    settled().await;
    assert_eq!(setup.reports.take(), [(7, Outcome::Lost)]);
}

#[tokio::test(start_paused = true)]
async fn what_was_queued_is_written_after_the_last_writer_is_gone() {
    let setup = Setup::new().await;
    setup.append(1);
    let Setup { writer, stored, .. } = setup;
    drop(writer);
    settled().await;
    assert_eq!(stored.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn many_logs_are_opened_in_one_query_and_do_not_wait_for_writes_that_fail() {
    let setup = Setup::new().await;
    setup.store.fail(Call::Append, usize::MAX);
    setup.append(1);
    setup.store.delay(Call::Open, Duration::from_secs(1));
    let opened = Arc::new(parking_lot::Mutex::new(0));
    for n in 0..100 {
        let opening = Opening { user: UserId::new(format!("u{n}")).unwrap(), device: None };
        let opened = opened.clone();
        setup.writer.open(opening, Box::new(move |_| *opened.lock() += 1));
        if n == 0 {
            tokio::task::yield_now().await;
        }
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((*opened.lock(), setup.store.made(Call::Open)), (100, 2), "those that came meanwhile in one query");
}

#[tokio::test(start_paused = true)]
async fn a_group_is_what_comes_before_its_first_has_waited_or_is_full_or_somebody_waits_for_it() {
    let (sender, mut queue) = mpsc::unbounded_channel();
    let mut group = Vec::new();
    let wait = Duration::from_millis(10);
    tokio::spawn(async move {
        for n in [1, 2, 3] {
            sender.send(n).unwrap();
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        (0..GROUP_MAX + 1).for_each(|n| sender.send(n).unwrap());
        tokio::time::sleep(Duration::from_millis(50)).await;
        (0..3).for_each(|_| sender.send(0).unwrap());
        tokio::time::sleep(Duration::from_secs(1)).await;
    });
    assert!(gather(&mut queue, &mut group, || Instant::now() + wait, |_| false).await);
    assert_eq!(std::mem::take(&mut group), [1, 2, 3]);
    assert!(gather(&mut queue, &mut group, || Instant::now() + wait, |_| false).await);
    assert_eq!((std::mem::take(&mut group).len(), queue.len()), (GROUP_MAX, 1), "full");
    assert!(gather(&mut queue, &mut group, || Instant::now() + wait, |_| false).await);
    assert_eq!(std::mem::take(&mut group), [GROUP_MAX]);
    let before = Instant::now();
    assert!(gather(&mut queue, &mut group, || Instant::now() + wait, |_| true).await);
    assert_eq!(group, [0, 0, 0]);
    assert!(
        before.elapsed() <= Duration::from_millis(50),
        "nobody waits longer than for the first: {:?}",
        before.elapsed()
    );
    assert!(!gather(&mut queue, &mut group, || Instant::now() + wait, |_| false).await, "the end");
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_has_rested_writes_at_once_and_begins_no_two_calls_close_together() {
    let store = FaultyStore::new(1000);
    store.begin_no_two_calls_within(Duration::from_millis(20));
    let setup = Setup::over(store).await;
    let calls_after = async |wait_ms: u64| {
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        setup.store.made(Call::Append)
    };
    assert_eq!(calls_after(50).await, 0);
    setup.append(1);
    assert_eq!(calls_after(1).await, 1, "at once");
    setup.append(2);
    assert_eq!(calls_after(10).await, 1, "too soon");
    setup.append(3);
    assert_eq!(calls_after(5).await, 1, "too soon");
    assert_eq!(calls_after(10).await, 2, "both together");
    assert_eq!(setup.answers(), numbered(1..=3));
}
