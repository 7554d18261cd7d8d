//! The session actor with an outlet that writes down what it is told, over a store in memory, on a paused clock.

pub(crate) mod outlet;

use super::*;
use crate::{
    fakes::{self, Collector, Heard, durable, settled, transient, user},
    store::{
        journal::{Journal as _, Superseding},
        tests::{Call, FaultyStore},
    },
    wire::GapReason,
};
use outlet::{FakeOutlet, Seen};

const SLOW: Duration = Duration::from_secs(30);
const ACK: Duration = Duration::from_secs(60);
const WIDE: window::Limits = window::Limits { items: 1000, bytes: 1 << 20 };

struct Setup {
    outlet: Arc<FakeOutlet>,
    store: Arc<FaultyStore>,
    window: window::Limits,
    after: Sequence,
    gap: Option<Gap>,
}

impl Setup {
    /// A session at the beginning of a log that holds so many.
    async fn with(stored: u64) -> Self {
        let store = FaultyStore::new(1000);
        for number in 1..=stored {
            store.fill(&[durable(&user(), &number.to_string())]).await;
        }
        Self { outlet: FakeOutlet::new(), store, window: WIDE, after: 0, gap: None }
    }

    async fn start(&self, head: Sequence) -> Running {
        let (outcomes, heard) = Collector::<Outcome>::spawn().await;
        let config = Config {
            window: self.window,
            slow_deadline: SLOW,
            ack_deadline: ACK,
            heartbeat: SLOW,
            reconnect: Duration::from_secs(1),
        };
        let mut window = Window::new(config.window, true);
        window.resume(self.after, self.after, Instant::now());
        let start = Start { after: self.after, window, hello: None, gap: self.gap, head };
        let args = Args {
            id: SessionId::random(),
            user: user(),
            device: None,
            attachment: Attachment::new(self.outlet.clone(), 1),
            start,
            store: self.store.clone(),
            config: Arc::new(config),
            outcomes: outcomes.get_derived(),
        };
        let actor = spawn(args, fakes::supervisor().await).await.unwrap();
        Running { actor, outlet: self.outlet.clone(), store: self.store.clone(), heard }
    }
}

struct Running {
    actor: SessionRef,
    outlet: Arc<FakeOutlet>,
    store: Arc<FaultyStore>,
    heard: Heard<Outcome>,
}

impl Running {
    /// What a user's actor does once the store has given a number.
    async fn store_and_deliver(&self, seq: Sequence) {
        self.store.fill(&[durable(&user(), &seq.to_string())]).await;
        self.deliver(Some(seq));
    }

    fn deliver(&self, seq: Option<Sequence>) {
        let id = seq.map_or("t".to_owned(), |seq| seq.to_string());
        let event = if seq.is_some() { durable(&user(), &id) } else { transient(&user(), &id) };
        let notification = Notification { seq, event };
        let frame = Frame::notification(&notification);
        self.tell(Msg::Deliver(smallvec::smallvec![(notification, frame)]));
    }

    fn tell(&self, msg: Msg) {
        self.actor.cast(msg).unwrap();
    }
}

fn up_to(last: Sequence) -> Vec<Sequence> {
    (1..=last).collect()
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_behind_catches_up_in_pages() {
    let session = Setup::with(200).await.start(200).await;
    settled().await;
    assert_eq!(session.outlet.numbers(), up_to(200));
    assert_eq!(session.store.made(Call::Read), 4, "pages of 64");
}

#[tokio::test(start_paused = true)]
async fn what_arrives_never_overtakes_what_is_pending() {
    let setup = Setup::with(3).await;
    setup.store.delay(Call::Read, Duration::from_secs(1));
    let session = setup.start(3).await;
    session.store_and_deliver(4).await;
    settled().await;
    assert_eq!(session.outlet.numbers(), [0u64; 0], "the first page is under way");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(session.outlet.numbers(), up_to(4));
}

#[tokio::test(start_paused = true)]
async fn a_number_that_is_read_and_arrives_meanwhile_is_sent_once() {
    let setup = Setup::with(1).await;
    setup.store.delay(Call::Read, Duration::from_secs(1));
    let session = setup.start(1).await;
    session.deliver(Some(1));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(session.outlet.numbers(), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_number_that_did_not_arrive_is_read_before_the_next_one_is_sent() {
    let session = Setup::with(0).await.start(0).await;
    session.store.fill(&[durable(&user(), "1")]).await;
    session.store_and_deliver(2).await;
    settled().await;
    assert_eq!(session.outlet.numbers(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_a_read_is_asked_again_every_half_second() {
    let setup = Setup::with(2).await;
    setup.store.fail(Call::Read, 2);
    let session = setup.start(2).await;
    session.store_and_deliver(3).await;
    tokio::time::sleep(Duration::from_millis(990)).await;
    assert_eq!((session.outlet.numbers().len(), session.store.made(Call::Read)), (0, 2));
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!((session.outlet.numbers(), session.store.made(Call::Read)), (up_to(3), 3));
}

#[tokio::test(start_paused = true)]
async fn a_full_outlet_is_left_alone_until_it_has_drained() {
    let session = Setup::with(0).await.start(0).await;
    session.outlet.room(2);
    for seq in 1..=5 {
        session.store_and_deliver(seq).await;
    }
    settled().await;
    assert_eq!((session.outlet.numbers(), session.outlet.refused()), (up_to(2), 1));
    session.outlet.room(100);
    settled().await;
    assert_eq!(session.outlet.numbers(), up_to(2), "nobody said that there is room");
    session.tell(Msg::Drained);
    settled().await;
    assert_eq!((session.outlet.numbers(), session.outlet.refused()), (up_to(5), 1));
}

#[tokio::test(start_paused = true)]
async fn an_outlet_that_stays_full_is_closed_after_the_slow_deadline() {
    let session = Setup::with(0).await.start(0).await;
    session.outlet.room(0);
    session.store_and_deliver(1).await;
    tokio::time::sleep(SLOW - Duration::from_secs(1)).await;
    session.tell(Msg::Drained);
    tokio::time::sleep(SLOW - Duration::from_secs(1)).await;
    assert_eq!(session.outlet.closes(), [0u16; 0], "it had drained, and then not stood still for so long");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(session.outlet.closes(), [4002]);
}

#[tokio::test(start_paused = true)]
async fn a_full_window_waits_for_an_acknowledgement_and_is_slow_without_one() {
    let mut setup = Setup::with(0).await;
    setup.window = window::Limits { items: 2, bytes: 1 << 20 };
    let session = setup.start(0).await;
    for seq in 1..=4 {
        session.store_and_deliver(seq).await;
    }
    settled().await;
    assert_eq!(session.outlet.numbers(), [1, 2]);
    tokio::time::sleep(SLOW - Duration::from_secs(1)).await;
    session.tell(Msg::Acknowledged(1));
    settled().await;
    assert_eq!(session.outlet.numbers(), [1, 2, 3]);
    tokio::time::sleep(SLOW - Duration::from_secs(1)).await;
    assert_eq!(session.outlet.closes(), [0u16; 0], "an acknowledgement is progress");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(session.outlet.closes(), [4002]);
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_past_its_deadline_closes_the_session() {
    let session = Setup::with(0).await.start(0).await;
    session.store_and_deliver(1).await;
    tokio::time::sleep(ACK / 2).await;
    session.store_and_deliver(2).await;
    session.tell(Msg::Acknowledged(1));
    tokio::time::sleep(ACK - Duration::from_secs(1)).await;
    assert_eq!(session.outlet.closes(), [0u16; 0], "the second one's time is not over");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(session.outlet.closes(), [4002]);
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_client_acknowledges_everything_stays_open() {
    let session = Setup::with(0).await.start(0).await;
    session.store_and_deliver(1).await;
    session.tell(Msg::Acknowledged(1));
    session.tell(Msg::Acknowledged(1));
    tokio::time::sleep(10 * ACK).await;
    assert_eq!(session.outlet.closes(), [0u16; 0]);
    assert_eq!(session.heard.lock().len(), 1, "the same acknowledgement is no news the second time");
}

#[tokio::test(start_paused = true)]
async fn that_it_rests_is_the_last_thing_that_a_session_says() {
    let session = Setup::with(0).await.start(0).await;
    session.store_and_deliver(1).await;
    settled().await;
    session.tell(Msg::Rest);
    settled().await;
    assert!(matches!(session.heard.lock().pop().unwrap().what, What::Busy));
    session.tell(Msg::Acknowledged(1));
    session.tell(Msg::Rest);
    session.tell(Msg::Disconnected);
    session.deliver(None);
    settled().await;
    session.actor.stop(None);
    settled().await;
    assert!(matches!(session.heard.lock().last().unwrap().what, What::Rests(_)));
    assert_eq!(session.outlet.ids(), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn a_gap_is_announced_once_and_what_follows_is_sent() {
    let mut setup = Setup::with(0).await;
    setup.store = FaultyStore::new(3);
    for number in 1..=5 {
        setup.store.fill(&[durable(&user(), &number.to_string())]).await;
    }
    let session = setup.start(5).await;
    settled().await;
    session.store_and_deliver(6).await;
    settled().await;
    let gap = Seen::Gap(1, 2, "evicted".into());
    let expected = [gap, Seen::Numbered(3), Seen::Numbered(4), Seen::Numbered(5), Seen::Numbered(6)];
    assert_eq!(session.outlet.seen(), expected);
}

#[tokio::test(start_paused = true)]
async fn an_outlet_that_is_full_before_or_after_a_gap_hears_of_it_once() {
    for room in [0, 1] {
        let mut setup = Setup::with(0).await;
        setup.store = FaultyStore::new(1);
        for number in 1..=2 {
            setup.store.fill(&[durable(&user(), &number.to_string())]).await;
        }
        setup.outlet.room(room);
        let session = setup.start(2).await;
        settled().await;
        assert_eq!(session.outlet.seen().len(), room);
        session.outlet.room(100);
        session.tell(Msg::Drained);
        settled().await;
        assert_eq!(session.outlet.seen(), [Seen::Gap(1, 1, "evicted".into()), Seen::Numbered(2)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_starts_with_a_gap_says_so_before_anything_else() {
    let mut setup = Setup::with(3).await;
    setup.after = 2;
    setup.gap = Some(Gap { from: 1, to: 2, reason: GapReason::Epoch });
    let session = setup.start(3).await;
    settled().await;
    assert_eq!(session.outlet.seen(), [Seen::Gap(1, 2, "epoch".into()), Seen::Numbered(3)]);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_crashes_reports_its_attachment_as_lost() {
    let session = Setup::with(0).await.start(0).await;
    session.outlet.panic_next();
    session.deliver(None);
    settled().await;
    assert_eq!((session.outlet.lost_count(), session.outlet.closes()), (1, vec![]));
}

#[tokio::test(start_paused = true)]
async fn an_attachment_that_nobody_takes_up_is_lost() {
    let outlet = FakeOutlet::new();
    drop(Attachment::new(outlet.clone(), 1));
    assert_eq!(outlet.lost_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_transient_one_that_finds_the_outlet_full_is_not_sent_later() {
    let session = Setup::with(0).await.start(0).await;
    session.outlet.room(0);
    session.deliver(None);
    settled().await;
    session.outlet.room(100);
    session.tell(Msg::Drained);
    session.store_and_deliver(1).await;
    settled().await;
    assert_eq!(session.outlet.seen(), [Seen::Numbered(1)]);
}

#[tokio::test(start_paused = true)]
async fn of_transient_ones_with_a_key_the_latest_waits_for_room() {
    let session = Setup::with(0).await.start(0).await;
    let keyed = |id: &str, key: &str| {
        let mut event = (*crate::fakes::transient(&user(), id)).clone();
        event.options.collapse_key = Some(key.into());
        let notification = Notification { seq: None, event: Arc::new(event) };
        let frame = Frame::notification(&notification);
        session.tell(Msg::Deliver(smallvec::smallvec![(notification, frame)]));
    };
    session.outlet.room(0);
    for (id, key) in [("1", "a"), ("2", "b"), ("3", "a")] {
        keyed(id, key);
    }
    settled().await;
    assert_eq!((session.outlet.refused(), session.outlet.seen()), (1, vec![]), "it has said that it is full");
    session.outlet.room(1);
    session.tell(Msg::Drained);
    settled().await;
    assert_eq!(session.outlet.seen(), [Seen::Transient("2".into())]);
    keyed("4", "b");
    session.outlet.room(100);
    session.tell(Msg::Drained);
    keyed("5", "b");
    settled().await;
    assert_eq!(session.outlet.ids(), ["2", "3", "4", "5"], "in order, and nothing is kept any more");
}

#[tokio::test(start_paused = true)]
async fn superseded_numbers_are_passed_over_even_at_the_end() {
    let setup = Setup::with(0).await;
    for (number, key) in [(1, "a"), (2, "b"), (3, "b"), (4, "a"), (5, "c")] {
        let mut event = (*durable(&user(), &number.to_string())).clone();
        event.options.collapse_key = Some(key.into());
        setup.store.fill(&[Arc::new(event)]).await;
    }
    let older = |key: &str, seq| Superseding { user: user(), collapse_key: key.into(), seq, together_from: 1 };
    setup.store.supersede(&[older("a", 4), older("b", 3), older("c", 6)]).await.unwrap();
    let session = setup.start(5).await;
    settled().await;
    assert_eq!(session.outlet.seen(), [Seen::Numbered(3), Seen::Numbered(4)]);
    let reads = session.store.made(Call::Read);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(session.store.made(Call::Read), reads, "it does not ask again and again");
    session.store_and_deliver(6).await;
    settled().await;
    assert_eq!(session.outlet.numbers(), [3, 4, 6]);
}
