//! The user actor with its sessions, over a store that fails or is slow, on a paused clock.

use super::*;
use crate::{
    fakes::{self, Collector, Heard, Reports, durable, settled, transient},
    health::Health,
    ids::Since,
    receipt::NoReceipts,
    session::{
        Attachment,
        tests::outlet::{FakeOutlet, Seen},
        window,
    },
    settlement::Outcome as Settlement,
    store::tests::{Call, FaultyStore},
};

mod ends;
mod limits;

pub(crate) const IDLE: Duration = Duration::from_secs(30);

/// What users of a test share.
pub(crate) fn config(store: &Arc<FaultyStore>, sessions_max: usize) -> Arc<Config> {
    let session = session::Config {
        window: window::Limits { items: 1000, bytes: 1 << 20 },
        slow_deadline: Duration::from_secs(30),
        ack_deadline: Duration::from_secs(600),
        heartbeat: Duration::from_secs(25),
        reconnect: Duration::from_secs(1),
    };
    let store = store.clone() as Arc<dyn Store>;
    let writer = Writer::start(&store, &Health::default(), &tokio::sync::mpsc::unbounded_channel().0);
    Arc::new(Config {
        session: Arc::new(session),
        sessions_max,
        idle_after: IDLE,
        dormancy: true,
        limits: Limits::default(),
        buffer: buffer::Bounds { items: 1000, bytes: 1 << 20 },
        store,
        writer,
        receipts: Arc::new(NoReceipts),
    })
}

struct Running {
    actor: UserRef,
    store: Arc<FaultyStore>,
    writer: Writer,
    reports: Arc<Reports>,
    asks: Heard<Outcome>,
    next: std::cell::Cell<i64>,
}

impl Running {
    async fn new(sessions_max: usize) -> Self {
        let store = FaultyStore::new(1000);
        Self::with(store.clone(), config(&store, sessions_max)).await
    }

    async fn with(store: Arc<FaultyStore>, config: Arc<Config>) -> Self {
        let (shard, asks) = Collector::<Outcome>::spawn().await;
        let writer = config.writer.clone();
        let args = Args {
            user: fakes::user(),
            config,
            outcomes: shard.get_derived(),
            limiter: None,
            asleep: None,
            recover: false,
        };
        let actor = spawn(args, shard.get_cell()).await.unwrap();
        Self { actor, store, writer, reports: Reports::new(), asks, next: 0.into() }
    }

    /// Sends one event, as the shard does.
    fn event(&self, event: Arc<Event>) {
        let number = self.next.get();
        self.next.set(number + 1);
        self.actor.cast(Msg::Request(Request::Events(smallvec![self.reports.in_flight(number, event)]))).unwrap();
    }

    async fn stored(&self, count: u64) {
        for number in 1..=count {
            self.store.fill(&[durable(&fakes::user(), &number.to_string())]).await;
        }
    }

    /// A connection asks for a session.
    fn attach(&self, from: Origin) -> (Arc<FakeOutlet>, SessionId) {
        let (outlet, session) = (FakeOutlet::new(), SessionId::random());
        self.attach_as(&outlet, 1, session, from);
        (outlet, session)
    }

    fn attach_as(&self, outlet: &Arc<FakeOutlet>, number: u64, session: SessionId, from: Origin) {
        self.attach_since(Instant::now(), outlet, number, session, from);
    }

    /// The same of a connection that is older.
    fn attach_since(&self, began: Instant, outlet: &Arc<FakeOutlet>, number: u64, session: SessionId, from: Origin) {
        let attach = Attach {
            user: fakes::user(),
            session,
            device: None,
            from,
            began,
            counts_acknowledgements: true,
            attachment: Attachment::new(outlet.clone(), number),
        };
        self.actor.cast(Msg::Request(Request::Attach(Box::new(attach)))).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn one_session_too_many_takes_the_place_of_the_oldest() {
    let user = Running::new(2).await;
    let mut outlets = Vec::new();
    for _ in 0..3 {
        outlets.push(user.attach(Origin::Cursor).0);
        settled().await;
    }
    let closes: Vec<_> = outlets.iter().map(|outlet| outlet.closes()).collect();
    assert_eq!(closes, [vec![4003], vec![], vec![]]);
    user.event(durable(&fakes::user(), "a"));
    settled().await;
    let numbers: Vec<_> = outlets.iter().map(|outlet| outlet.numbers()).collect();
    assert_eq!(numbers, [vec![], vec![1], vec![1]]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_attaches_again_goes_on_where_it_was() {
    let user = Running::new(2).await;
    user.stored(5).await;
    let (again, _) = user.attach(Origin::Connection { passed: 3, acknowledged: 1 });
    settled().await;
    assert_eq!(again.begins_after(), 3);
    assert_eq!(again.seen(), [Seen::Numbered(4), Seen::Numbered(5)], "no second greeting, nothing twice");
    assert_eq!(user.store.cursor(&fakes::user()).await, 1, "what was acknowledged to the actor before counts");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_comes_back_misses_no_transient_event_while_the_store_is_asked() {
    let user = Running::new(2).await;
    user.store.delay(Call::Open, Duration::from_secs(1));
    let (back, _) = user.attach(Origin::Connection { passed: 0, acknowledged: 0 });
    settled().await;
    let (second, _) = user.attach(Origin::Connection { passed: 0, acknowledged: 0 });
    for id in ["a", "b"] {
        user.event(transient(&fakes::user(), id));
    }
    settled().await;
    assert_eq!(user.reports.take(), []);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(
        (back.ids(), second.ids()),
        (vec!["a".to_owned(), "b".to_owned()], vec!["a".to_owned(), "b".to_owned()])
    );
    assert_eq!(user.reports.take(), [(0, Settlement::Settled), (1, Settlement::Settled)]);
}

/// Of a started session, whose newer connection the store could tell of first.
#[tokio::test(start_paused = true)]
async fn a_new_connection_comes_behind_one_that_is_on_its_way_back() {
    let user = Running::new(8).await;
    let (back, new, session) = (FakeOutlet::new(), FakeOutlet::new(), SessionId::random());
    user.store.delay(Call::Open, Duration::from_secs(1));
    user.attach_as(&back, 1, session, Origin::Connection { passed: 0, acknowledged: 0 });
    user.attach_as(&new, 1, session, Origin::Cursor);
    settled().await;
    assert_eq!(user.store.made(Call::Open), 1, "one after the other");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((back.closes(), new.closes(), new.is_attached()), (vec![4003], vec![], true));
}

#[tokio::test(start_paused = true)]
async fn a_transient_event_does_not_wait_for_a_connection_that_has_had_nothing_yet() {
    let user = Running::new(2).await;
    user.store.delay(Call::Open, Duration::from_secs(1));
    user.attach(Origin::Cursor);
    user.event(transient(&fakes::user(), "a"));
    settled().await;
    assert_eq!(user.reports.take(), [(0, Settlement::Settled)]);
}

/// The user's former owner is gone: its connections attach in any order, and a new one comes between them.
#[tokio::test(start_paused = true)]
async fn when_connections_attach_again_the_oldest_go_whatever_the_order() {
    let again = || Origin::Connection { passed: 0, acknowledged: 0 };
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]] {
        let user = Running::new(2).await;
        let ages = [30, 20, 10].map(|seconds| Instant::now() - Duration::from_secs(seconds));
        let outlets: Vec<_> = (0..4).map(|_| FakeOutlet::new()).collect();
        for one in order {
            let (outlet, session) = (&outlets[one], SessionId::random());
            match ages.get(one) {
                Some(began) => user.attach_since(*began, outlet, 1, session, again()),
                None => user.attach_as(outlet, 1, session, Origin::Cursor),
            }
            settled().await;
        }
        let closes: Vec<_> = outlets.iter().map(|outlet| outlet.closes()).collect();
        assert_eq!(closes, [vec![4003], vec![4003], vec![], vec![]], "{order:?}");
        user.event(durable(&fakes::user(), "a"));
        settled().await;
        let numbers: Vec<_> = outlets.iter().map(|outlet| outlet.numbers()).collect();
        assert_eq!(numbers, [vec![], vec![], vec![1], vec![1]], "{order:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_session_stays_although_the_others_seem_to_be_younger() {
    let user = Running::new(2).await;
    let others = [user.attach(Origin::Cursor).0, user.attach(Origin::Cursor).0];
    settled().await;
    // It took long to come here: its link was not there.
    let (outlet, began) = (FakeOutlet::new(), Instant::now() - Duration::from_secs(20));
    user.attach_since(began, &outlet, 1, SessionId::random(), Origin::Cursor);
    settled().await;
    assert_eq!((others[0].closes(), others[1].closes(), outlet.closes()), (vec![4003], vec![], vec![]));
}

#[tokio::test(start_paused = true)]
async fn one_that_is_closed_instead_of_attached_has_not_acknowledged_in_vain() {
    let user = Running::new(1).await;
    user.stored(3).await;
    user.attach(Origin::Cursor);
    settled().await;
    let (outlet, began) = (FakeOutlet::new(), Instant::now() - Duration::from_secs(20));
    let from = Origin::Connection { passed: 3, acknowledged: 2 };
    user.attach_since(began, &outlet, 1, SessionId::random(), from);
    settled().await;
    assert_eq!((outlet.closes(), outlet.is_attached()), (vec![4003], false));
    assert_eq!(user.store.cursor(&fakes::user()).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_started_session_that_gets_another_connection_closes_the_earlier_one() {
    let user = Running::new(8).await;
    let (earlier, session) = user.attach(Origin::Cursor);
    settled().await;
    // On another node, which does not know of it.
    let later = FakeOutlet::new();
    user.attach_as(&later, 1, session, Origin::Cursor);
    settled().await;
    assert_eq!((earlier.closes(), later.closes()), (vec![4003], vec![]));
    user.event(durable(&fakes::user(), "a"));
    settled().await;
    assert_eq!((earlier.numbers(), later.numbers()), (vec![], vec![1]));
}

#[tokio::test(start_paused = true)]
async fn an_earlier_session_of_the_same_connection_is_stopped() {
    let user = Running::new(8).await;
    let (outlet, session) = user.attach(Origin::Cursor);
    settled().await;
    let earlier = outlet.session();
    let number = outlet.next_attachment();
    user.attach_as(&outlet, number, session, Origin::Connection { passed: 0, acknowledged: 0 });
    settled().await;
    assert_eq!(earlier.get_status(), ractor::ActorStatus::Stopped);
    user.event(durable(&fakes::user(), "a"));
    settled().await;
    assert_eq!((outlet.numbers(), outlet.lost_count()), (vec![1], 0));
}

/// The store says where the log ends, and is slow to say it; meanwhile something is appended, stored and pushed to
/// the sessions there are.
#[tokio::test(start_paused = true)]
async fn an_event_that_is_stored_while_a_session_opens_is_pushed_to_it() {
    for from in [Origin::Cursor, Origin::Connection { passed: 1, acknowledged: 1 }] {
        let user = Running::new(8).await;
        user.stored(1).await;
        user.store.delay(Call::Open, Duration::from_secs(1));
        let is_new = matches!(from, Origin::Cursor);
        let (outlet, _) = user.attach(from);
        settled().await;
        user.event(durable(&fakes::user(), "meanwhile"));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(user.reports.take(), [(0, Settlement::Settled)]);
        assert_eq!(outlet.numbers(), if is_new { vec![1, 2] } else { vec![2] });
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_open_a_log_is_asked_again_until_it_does() {
    let user = Running::new(8).await;
    user.store.fail(Call::Open, 2);
    let (outlet, _) = user.attach(Origin::Cursor);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((outlet.seen(), outlet.lost_count(), user.store.made(Call::Open)), (vec![Seen::Hello], 0, 3));
}

#[tokio::test(start_paused = true)]
async fn an_attachment_that_waits_for_the_store_is_lost_with_its_user() {
    let user = Running::new(8).await;
    user.store.delay(Call::Open, Duration::from_secs(1));
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    user.event(fakes::event(&fakes::user(), "x", "fault.user", crate::event::Durability::Durable));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((outlet.lost_count(), outlet.is_attached()), (1, false));
}

#[tokio::test(start_paused = true)]
async fn a_crash_of_one_session_leaves_the_others_alone() {
    let user = Running::new(8).await;
    let (crashing, _) = user.attach(Origin::Cursor);
    let (other, _) = user.attach(Origin::Cursor);
    settled().await;
    crashing.panic_next();
    user.event(durable(&fakes::user(), "a"));
    settled().await;
    user.event(durable(&fakes::user(), "b"));
    settled().await;
    assert_eq!((crashing.lost_count(), other.lost_count()), (1, 0));
    assert_eq!(other.numbers(), [1, 2]);
    assert_eq!(user.reports.take(), [(0, Settlement::Settled), (1, Settlement::Settled)]);
}

#[tokio::test(start_paused = true)]
async fn a_durable_event_is_settled_when_it_is_stored_and_not_before() {
    let user = Running::new(8).await;
    user.store.delay(Call::Append, Duration::from_secs(1));
    let (outlet, _) = user.attach(Origin::Cursor);
    user.event(durable(&fakes::user(), "a"));
    user.event(transient(&fakes::user(), "t"));
    settled().await;
    assert_eq!(user.reports.take(), [(1, Settlement::Settled)], "the transient one overtakes it");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(user.reports.take(), [(0, Settlement::Settled)]);
    assert_eq!(outlet.seen().last(), Some(&Seen::Numbered(1)), "stored first, pushed after");
}

#[tokio::test(start_paused = true)]
async fn since_of_this_epoch_acknowledges_and_any_other_is_a_gap() {
    let user = Running::new(8).await;
    user.stored(4).await;
    let epoch: Box<str> = (*user.store.epoch()).into();
    let (resumed, _) = user.attach(Origin::Since(Since { epoch: epoch.clone(), seq: 2 }));
    settled().await;
    assert_eq!(resumed.seen(), [Seen::Hello, Seen::Numbered(3), Seen::Numbered(4)]);
    assert_eq!(user.store.cursor(&fakes::user()).await, 2);
    for since in [Since { epoch: "other".into(), seq: 3 }, Since { epoch, seq: 5 }] {
        let (outlet, _) = user.attach(Origin::Since(since));
        settled().await;
        let gap = Seen::Gap(1, 2, "epoch".into());
        assert_eq!(outlet.seen(), [Seen::Hello, gap, Seen::Numbered(3), Seen::Numbered(4)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_user_asks_to_stop_only_when_nothing_is_open() {
    let user = Running::new(8).await;
    user.store.delay(Call::Append, 2 * IDLE);
    user.event(durable(&fakes::user(), "a"));
    let (outlet, _) = user.attach(Origin::Cursor);
    tokio::time::sleep(4 * IDLE).await;
    assert!(user.asks.lock().is_empty(), "a session is open");
    outlet.session().cast(session::Msg::Disconnected).unwrap();
    tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
    assert!(user.asks.lock().is_empty(), "it has just gone");
    user.event(durable(&fakes::user(), "b"));
    tokio::time::sleep(2 * IDLE).await;
    assert!(user.asks.lock().is_empty(), "an append is under way");
    tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
    assert!(user.asks.lock().is_empty(), "it has just been stored");
    // Not a sleep: the paused clock would never pass a user that keeps asking.
    tokio::time::advance(Duration::from_secs(2)).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let asks = user.asks.lock();
    assert!(matches!(asks[..], [Outcome::Idle { handled: 3, .. }]), "it asks once, until something happens: {asks:?}");
}

#[tokio::test(start_paused = true)]
async fn a_number_that_is_given_twice_is_shown_to_nobody_and_the_log_gets_another_epoch() {
    let (store, other) = (FaultyStore::new(1000), FaultyStore::new(1000));
    let (lost, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let writer = |of: &Arc<FaultyStore>| Writer::start(&(of.clone() as Arc<dyn Store>), &Health::default(), &lost);
    // What is written goes to a log that has lost what the other one, which is read, has shown.
    let config = Config { store: store.clone(), writer: writer(&other), ..(*config(&store, 8)).clone() };
    for number in 1..=3 {
        store.fill(&[durable(&fakes::user(), &number.to_string())]).await;
        other.fill(&[durable(&fakes::user(), &number.to_string())]).await;
    }
    let user = Running::with(store, Arc::new(config)).await;
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    user.event(durable(&fakes::user(), "4"));
    settled().await;
    assert_eq!(outlet.numbers(), [1, 2, 3, 4]);
    other.forget(2);
    user.event(durable(&fakes::user(), "5"));
    settled().await;
    assert_eq!(outlet.numbers(), [1, 2, 3, 4], "not 3 again");
    assert_eq!(other.made(Call::BeginEpoch), 1);
    let why = heard.try_recv().expect("the process has to begin anew").to_string();
    assert!(why.contains("ends at 3, and 4 was given"), "{why}");
    assert_eq!(user.reports.take(), [(0, Settlement::Settled), (1, Settlement::Lost)]);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_found_shorter_than_it_was_gets_another_epoch() {
    let store = FaultyStore::new(1000);
    let (lost, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let writer = Writer::start(&(store.clone() as Arc<dyn Store>), &Health::default(), &lost);
    let user = Running::with(store.clone(), Arc::new(Config { writer, ..(*config(&store, 8)).clone() })).await;
    ["1", "2", "3"].into_iter().for_each(|id| user.event(durable(&fakes::user(), id)));
    settled().await;
    store.forget(1);
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    assert!(outlet.seen().is_empty() && outlet.lost_count() == 1, "no session begins in it");
    assert!(heard.try_recv().is_ok());
}
