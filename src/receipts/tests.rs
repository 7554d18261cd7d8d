//! Receipts of a journal in memory, on librdkafka's mock cluster.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::AtomicUsize,
};

use prost::Message as _;
use rdkafka::{
    Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};

use super::*;
use crate::{
    embedded_broker::EmbeddedBroker,
    event::Event,
    fakes::{durable, transient},
    ids::{NotificationId, SessionId, SessionTag, UserId},
    proto::{NotificationDelivered, NotificationState},
    receipt::Receipts as _,
    state::{Reason, State},
    store::{
        Acknowledgement, Error, Store as _, Try,
        journal::{Account, Cancelled, Mark, Superseding},
        memory::{self, MemoryStore},
    },
};

const TOPIC: &str = "receipts";
const LIMIT: Duration = Duration::from_secs(30);

/// The journal in memory, behind faults.
struct Scripted {
    memory: MemoryStore,
    /// Where Kafka is; asked whenever the mark is moved.
    bootstrap: String,
    /// Receipts that were asked for so far.
    asked: AtomicUsize,
    /// Calls still to fail.
    fail_reads: AtomicUsize,
    fail_marks: AtomicUsize,
    /// A mark is never noted.
    hang: std::sync::atomic::AtomicBool,
    /// For each mark: how many receipts it covers, and how many Kafka had.
    marked: Mutex<Vec<(usize, usize)>>,
}

impl Scripted {
    fn new(bootstrap: &str) -> Arc<Self> {
        let day = Duration::from_secs(86_400);
        let config = memory::Config { retention: 7 * day, per_user_max: 1000, dedup_window: day, bytes_max: 1 << 30 };
        Arc::new(Self {
            memory: MemoryStore::new(config),
            bootstrap: bootstrap.to_owned(),
            asked: AtomicUsize::new(0),
            fail_reads: AtomicUsize::new(0),
            fail_marks: AtomicUsize::new(0),
            hang: false.into(),
            marked: Mutex::default(),
        })
    }

    /// These are in the log and acknowledged, in one entry.
    async fn sent(&self, user: &str, ids: &[&str]) -> SessionTag {
        let user = UserId::new(user).unwrap();
        let entering: Vec<_> = ids.iter().map(|id| durable(&user, id)).collect();
        self.memory.append(&entering).await.unwrap();
        let last = self.memory.open(&user, None).await.unwrap().head;
        let session = SessionTag::from(SessionId::random());
        let step = Step {
            user: user.clone(),
            first: last + 1 - ids.len() as Sequence,
            last,
            ids: Vec::new(),
            state: State::Sent,
            reason: None,
            session: Some(session),
            device: None,
            handed_at: None,
            at: unix_millis_now(),
        };
        let acknowledgement = Acknowledgement { user, device: None, seq: last };
        self.memory.acknowledge(&[acknowledgement], &[step], Try::First).await.unwrap();
        session
    }

    fn fails(calls: &AtomicUsize) -> bool {
        calls.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    async fn marked(&self, receipts: usize) {
        until(async || self.marked.lock().last().is_some_and(|(covered, _)| *covered == receipts)).await;
    }
}

fn away<'a, T: Send + 'a>() -> Answer<'a, T> {
    Box::pin(std::future::ready(Err(Error::Unavailable { reason: "as planned".into() })))
}

impl Journal for Scripted {
    fn account<'a>(&'a self, user: &'a UserId, id: &'a NotificationId) -> Answer<'a, Option<Account>> {
        self.memory.account(user, id)
    }

    fn cancel<'a>(&'a self, user: &'a UserId, id: &'a NotificationId) -> Answer<'a, Cancelled> {
        self.memory.cancel(user, id)
    }

    fn supersede<'a>(&'a self, superseding: &'a [Superseding]) -> Answer<'a, ()> {
        self.memory.supersede(superseding)
    }

    fn ended_after<'a>(&'a self, mark: &'a Mark, limit: usize) -> Answer<'a, (Vec<Step>, Mark)> {
        if Self::fails(&self.fail_reads) {
            return away();
        }
        Box::pin(async move {
            let (steps, next) = self.memory.ended_after(mark, limit).await?;
            self.asked.fetch_add(steps.iter().map(|step| step.ids.len()).sum(), Ordering::Relaxed);
            Ok((steps, next))
        })
    }

    fn receipted(&self) -> Answer<'_, Mark> {
        if Self::fails(&self.fail_reads) {
            return away();
        }
        self.asked.store(0, Ordering::Relaxed);
        self.memory.receipted()
    }

    fn set_receipted<'a>(&'a self, mark: &'a Mark) -> Answer<'a, ()> {
        if Self::fails(&self.fail_marks) {
            return away();
        }
        Box::pin(async move {
            if self.hang.load(Ordering::Relaxed) {
                std::future::pending().await
            }
            let covered = self.asked.load(Ordering::Relaxed);
            let written = read(&self.bootstrap).await.len();
            self.marked.lock().push((covered, written));
            self.memory.set_receipted(mark).await
        })
    }
}

async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + LIMIT;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn broker(listen: SocketAddr) -> EmbeddedBroker {
    EmbeddedBroker::start(listen, &[(TOPIC, 3)]).await.unwrap()
}

async fn any_broker() -> EmbeddedBroker {
    broker(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await
}

/// An address where nobody answers yet.
async fn address() -> SocketAddr {
    let broker = any_broker().await;
    let address = broker.bootstrap().parse().unwrap();
    broker.stop().await;
    address
}

fn writer(journal: &Arc<Scripted>) -> ReceiptWriter {
    writer_with(journal, &[])
}

fn writer_with(journal: &Arc<Scripted>, properties: &[(&str, &str)]) -> ReceiptWriter {
    let mut producer = ClientConfig::new();
    producer.set("bootstrap.servers", &journal.bootstrap).set("enable.idempotence", "true").set("acks", "all");
    producer.set("reconnect.backoff.max.ms", "200");
    for (name, value) in properties {
        producer.set(*name, *value);
    }
    let config = Config { producer, topic: TOPIC.into(), owners: Owners::alone(1) };
    ReceiptWriter::start(&config, journal.clone(), mpsc::unbounded_channel().0).unwrap()
}

/// All receipts, each partition in its order.
async fn read(bootstrap: &str) -> Vec<NotificationDelivered> {
    let bootstrap = bootstrap.to_owned();
    let read = move || {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", bootstrap).set("group.id", "tests").set("fetch.wait.max.ms", "10");
        let consumer: BaseConsumer = config.create().unwrap();
        let mut from = TopicPartitionList::new();
        let mut count = 0;
        for partition in 0..3 {
            from.add_partition_offset(TOPIC, partition, Offset::Beginning).unwrap();
            count += consumer.fetch_watermarks(TOPIC, partition, LIMIT).unwrap().1;
        }
        consumer.assign(&from).unwrap();
        let read = |_| {
            let message = consumer.poll(LIMIT).expect("a record within the limit").unwrap();
            let receipt = NotificationDelivered::decode(message.payload().unwrap()).unwrap();
            assert_eq!(message.key().unwrap(), receipt.user_id.as_bytes());
            receipt
        };
        (0..count).map(read).collect()
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

/// The ids of each user's receipts, in their order.
fn by_user(receipts: &[NotificationDelivered]) -> BTreeMap<&str, Vec<&str>> {
    let mut users = BTreeMap::<_, Vec<_>>::new();
    for receipt in receipts {
        users.entry(&*receipt.user_id).or_default().push(&*receipt.notification_id);
    }
    users
}

fn nothing_was_marked_early(journal: &Scripted) {
    let marked = journal.marked.lock();
    assert!(marked.iter().all(|(covered, written)| written >= covered), "{marked:?}");
}

fn ids(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|n| format!("n{n}")).collect()
}

#[tokio::test]
async fn a_receipt_says_who_what_where_when_and_why() {
    let broker = any_broker().await;
    let journal = Scripted::new(&broker.bootstrap());
    let session = journal.sent("101", &["a", "b"]).await;
    let user = UserId::new("101").unwrap();
    journal.memory.append(&[durable(&user, "c")]).await.unwrap();
    journal.memory.cancel(&user, &NotificationId::new("c").unwrap()).await.unwrap();
    let unnumbered = Step {
        ids: ["x", "y"].map(|id| NotificationId::new(id).unwrap()).into(),
        ..Step::ended(&transient(&user, "x"), 0, Reason::Digested, 1_500)
    };
    journal.memory.acknowledge(&[], &[unnumbered], Try::First).await.unwrap();
    let writer = writer(&journal);
    writer.finish(Instant::now() + LIMIT).await;
    let receipts = read(&broker.bootstrap()).await;
    let say = |receipt: &NotificationDelivered| {
        assert_eq!(receipt.user_id, "101");
        (receipt.notification_id.clone(), receipt.sequence, receipt.state(), receipt.reason.clone())
    };
    let (sent, deleted) = (NotificationState::Sent, NotificationState::Deleted);
    let expected = [
        ("a", 1, sent, ""),
        ("b", 2, sent, ""),
        ("c", 3, deleted, "cancelled"),
        ("x", 0, deleted, "digested"),
        ("y", 0, deleted, "digested"),
    ];
    let expected = expected.map(|(id, seq, state, reason)| (id.to_owned(), seq, state, reason.to_owned()));
    assert_eq!(receipts.iter().map(say).collect::<Vec<_>>(), expected);
    let sessions: Vec<_> = receipts.iter().map(|receipt| receipt.session_id.clone()).collect();
    assert_eq!(sessions, [&*session.to_string(), &*session.to_string(), "", "", ""]);
    assert_eq!(receipts[3].at, Some(prost_types::Timestamp { seconds: 1, nanos: 500_000_000 }));
}

#[test]
fn a_number_is_said_only_where_it_is_known() {
    let event = |id| Event { ..(*transient(&UserId::new("101").unwrap(), id)).clone() };
    let named = |first, last, ids: &[&str]| {
        let ids = ids.iter().map(|id| NotificationId::new(*id).unwrap()).collect();
        let step = Step { first, last, ids, ..Step::ended(&event("x"), 0, Reason::Expired, 0) };
        receipts(step).map(|receipt| receipt.seq).collect::<Vec<_>>()
    };
    assert_eq!(named(7, 9, &["a", "b", "c"]), [Some(7), Some(8), Some(9)]);
    assert_eq!(named(7, 7, &["a"]), [Some(7)]);
    assert_eq!(named(7, 9, &["a", "c"]), [None, None]);
    assert_eq!(named(0, 0, &["a"]), [None]);
    assert_eq!(named(7, 9, &[]), []);
}

#[tokio::test]
async fn every_entry_gives_one_receipt_for_each_notification_in_its_users_order() {
    let broker = any_broker().await;
    let journal = Scripted::new(&broker.bootstrap());
    let ids = ids(0..60);
    // More entries than are read at a time, and some while they are written.
    let end = async |numbers: std::ops::Range<usize>| {
        for some in ids[numbers].chunks(2) {
            for user in 0..30 {
                let some: Vec<_> = some.iter().map(|id| &**id).collect();
                journal.sent(&format!("u{user}"), &some).await;
            }
        }
    };
    end(0..50).await;
    let writer = writer(&journal);
    journal.marked(30 * 50).await;
    end(50..60).await;
    journal.marked(30 * 60).await;
    writer.finish(Instant::now() + LIMIT).await;
    let receipts = read(&broker.bootstrap()).await;
    let users = by_user(&receipts);
    assert_eq!(users.len(), 30);
    assert!(users.values().all(|receipts| *receipts == ids), "{users:?}");
    nothing_was_marked_early(&journal);
}

#[tokio::test]
async fn receipts_wait_for_a_broker_that_is_away_and_come_once() {
    let address = address().await;
    let journal = Scripted::new(&address.to_string());
    let writer = writer(&journal);
    let ids = ids(0..40);
    let end = async |numbers: std::ops::Range<usize>| {
        for id in &ids[numbers] {
            journal.sent("101", &[id]).await;
        }
    };
    end(0..10).await;
    until(async || journal.asked.load(Ordering::Relaxed) > 0).await;
    let first = broker(address).await;
    end(10..20).await;
    journal.marked(20).await;
    assert_eq!(by_user(&read(&first.bootstrap()).await)["101"], ids[..20]);
    nothing_was_marked_early(&journal);
    first.stop().await;

    end(20..40).await;
    until(async || journal.asked.load(Ordering::Relaxed) > 20).await;
    // It has lost what the first one had.
    let second = broker(address).await;
    journal.marked(40).await;
    writer.finish(Instant::now() + LIMIT).await;
    assert_eq!(by_user(&read(&second.bootstrap()).await)["101"], ids[20..]);
}

#[tokio::test]
async fn a_full_queue_is_waited_out_and_the_order_stays() {
    let broker = any_broker().await;
    let journal = Scripted::new(&broker.bootstrap());
    let writer = writer_with(&journal, &[("queue.buffering.max.messages", "7"), ("linger.ms", "0")]);
    let ids = ids(0..600);
    journal.sent("101", &ids.iter().map(|id| &**id).collect::<Vec<_>>()).await;
    writer.finish(Instant::now() + LIMIT).await;
    assert_eq!(by_user(&read(&broker.bootstrap()).await)["101"], ids);
}

#[tokio::test]
async fn a_store_that_is_away_for_a_while_costs_no_receipt_and_repeats_none() {
    let broker = any_broker().await;
    let journal = Scripted::new(&broker.bootstrap());
    journal.fail_reads.store(3, Ordering::Relaxed);
    journal.fail_marks.store(3, Ordering::Relaxed);
    journal.sent("101", &["a", "b"]).await;
    let writer = writer(&journal);
    journal.marked(2).await;
    journal.fail_reads.store(2, Ordering::Relaxed);
    journal.fail_marks.store(2, Ordering::Relaxed);
    journal.sent("101", &["c"]).await;
    journal.marked(3).await;
    writer.finish(Instant::now() + LIMIT).await;
    assert_eq!(by_user(&read(&broker.bootstrap()).await)["101"], ["a", "b", "c"]);
}

#[tokio::test]
async fn a_crash_before_the_mark_is_noted_repeats_and_loses_nothing() {
    let address = address().await;
    let journal = Scripted::new(&address.to_string());
    journal.sent("101", &["a", "b"]).await;
    // Before Kafka has them: they come once.
    let crashed = writer(&journal);
    until(async || journal.asked.load(Ordering::Relaxed) > 0).await;
    drop(crashed);
    let broker = broker(address).await;
    journal.hang.store(true, Ordering::Relaxed);
    // After Kafka has them: they come again.
    let crashed = writer(&journal);
    until(async || read(&broker.bootstrap()).await.len() == 2).await;
    drop(crashed);
    journal.hang.store(false, Ordering::Relaxed);
    let writer = writer(&journal);
    journal.marked(2).await;
    writer.finish(Instant::now() + LIMIT).await;
    assert_eq!(by_user(&read(&broker.bootstrap()).await)["101"], ["a", "b", "a", "b"]);
}

#[tokio::test]
async fn what_is_left_at_the_end_is_written_and_the_next_start_repeats_nothing() {
    let broker = any_broker().await;
    let journal = Scripted::new(&broker.bootstrap());
    let first = writer(&journal);
    journal.sent("101", &["a"]).await;
    let user = UserId::new("102").unwrap();
    for id in ids(0..2500) {
        first.hand_over(Receipt::unstored(&transient(&user, &id), State::Deleted, Reason::Away));
    }
    first.finish(Instant::now() + LIMIT).await;
    writer(&journal).finish(Instant::now() + LIMIT).await;
    let receipts = read(&broker.bootstrap()).await;
    let users = by_user(&receipts);
    assert_eq!(users["101"], ["a"]);
    assert_eq!(users["102"], ids(0..2500));
    // Nobody takes it any more.
    first.hand_over(Receipt::unstored(&transient(&user, "late"), State::Deleted, Reason::Away));
}

#[tokio::test]
async fn the_end_does_not_wait_for_kafka_longer_than_it_may() {
    let journal = Scripted::new(&address().await.to_string());
    journal.sent("101", &["a"]).await;
    let writer = writer(&journal);
    let finished = writer.finish(Instant::now() + Duration::from_millis(50));
    tokio::time::timeout(LIMIT, finished).await.unwrap();
    assert_eq!(journal.memory.receipted().await.unwrap(), Mark::default());
}

#[tokio::test]
async fn what_nobody_keeps_is_dropped_above_the_bound_and_hands_over_without_waiting() {
    let address = address().await;
    let journal = Scripted::new(&address.to_string());
    let writer = writer(&journal);
    let user = UserId::new("101").unwrap();
    let ids = ids(0..UNKEPT_MAX + 2 * topic::AT_ONCE);
    for id in &ids {
        writer.hand_over(Receipt::unstored(&transient(&user, id), State::Deleted, Reason::NoSession));
    }
    let broker = broker(address).await;
    writer.finish(Instant::now() + LIMIT).await;
    let receipts = read(&broker.bootstrap()).await;
    let written = &by_user(&receipts)["101"];
    assert!((UNKEPT_MAX..=UNKEPT_MAX + topic::AT_ONCE).contains(&written.len()), "{}", written.len());
    assert_eq!(written[..UNKEPT_MAX], ids[..UNKEPT_MAX]);
}
