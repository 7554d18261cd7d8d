//! Kafka → router. One thread polls the partitions that are assigned here, another decides which those are and
//! looks after positions; dead letters go out from the runtime. Nothing above this module knows that Kafka exists.

mod client;
mod consumer;
pub mod dead_letter;
pub mod decode;
mod inbox;
mod keeper;
pub mod ledger;
mod partitions;

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rdkafka::ClientConfig;

use self::{
    consumer::Poller,
    decode::Defaults,
    inbox::Inbox,
    keeper::Keeper,
    ledger::Credits,
    partitions::{Partitions, Shown},
};
#[cfg(feature = "faults")]
use crate::kafka;
use crate::{
    health::Health,
    ids::Incarnation,
    kafka::Fatal,
    placement::handover::Moves,
    router::{Links, Router},
    shard::Shards,
    store::{positions::Positions, writer::Lost},
};

/// Which topics, and within which bounds.
#[derive(Clone)]
pub struct Config {
    /// Properties of consumers (`kafka::consumer_config`).
    pub consumer: ClientConfig,
    /// Properties of the dead letters' producer (`kafka::producer_config`).
    pub producer: ClientConfig,
    /// Where to find the brokers, for messages.
    pub brokers: String,
    /// The topic of events.
    pub topic: String,
    /// The topic of what cannot be delivered.
    pub dead_letter_topic: String,
    /// Where a partition without a committed position begins when the node starts.
    pub from_latest: bool,
    /// The cluster is known to be a new one, so that no position can be of it.
    pub is_cluster_new: bool,
    /// How often to look for new partitions.
    pub partition_refresh: Duration,
    /// Bounds of what is read and not settled.
    pub credits: Credits,
    /// The longest payload that is delivered, in bytes.
    pub payload_bytes_max: usize,
    /// What an event's type says of its options.
    pub defaults: Defaults,
}

/// Which partitions this node reads. Somebody else decides.
#[derive(Clone)]
pub enum Assignment {
    /// All that the topic has.
    All,
    /// These, of those that the topic has.
    Only(BTreeSet<i32>),
    /// Of those that the topic has, the ones that this chooses.
    Chosen(Arc<dyn Choice>),
}

/// Chooses among the partitions of a topic.
pub trait Choice: Send + Sync {
    /// Those that this node should read.
    fn mine(&self, there: &[i32]) -> BTreeSet<i32>;

    /// Which of them move from node to node, by what everybody has now; `None`: nobody takes what this node lets go.
    fn moves(&self, there: &[i32], owners: &[(i32, Option<Incarnation>)]) -> Option<Moves<i32>>;
}

impl Assignment {
    fn of(&self, partitions: &[i32]) -> BTreeSet<i32> {
        match self {
            Self::All => partitions.iter().copied().collect(),
            Self::Only(these) => partitions.iter().copied().filter(|one| these.contains(one)).collect(),
            Self::Chosen(choice) => choice.mine(partitions),
        }
    }
}

/// Running ingest.
pub struct Ingest {
    control: mpsc::Sender<Control>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    shown: Arc<Shown>,
    keeping: tokio::task::JoinHandle<()>,
    #[cfg(feature = "faults")]
    clients: (Arc<client::EventConsumer>, kafka::Producer),
}

/// What the thread that looks after partitions can be told.
enum Control {
    Assign(Assignment),
    /// The connection may be gone: look.
    Check,
    /// Other nodes have let go of partitions, or taken some: look, the broker needs not be asked for that.
    OthersMoved,
    /// The log does not have the partition's position any more: find out where it begins.
    Restart(i32),
    /// Settle, commit and release all partitions, until then at the latest.
    Stop(Instant),
}

/// Starts to read; partitions flow as soon as a broker answers.
///
/// # Errors
/// When librdkafka refuses a property.
pub fn start(
    config: Config,
    (shards, links): (Shards, Option<Arc<dyn Links>>),
    (positions, lost): (Arc<dyn Positions>, Lost),
    health: &Health,
    fatal: Fatal,
) -> Result<Ingest, rdkafka::error::KafkaError> {
    let (control, orders) = mpsc::channel();
    let inbox = Arc::new(Inbox::default());
    let consumer = client::create(&config, &inbox, fatal.clone(), control.clone())?;
    let producer = dead_letter::producer(&config)?;
    #[cfg(feature = "faults")]
    let clients = (consumer.clone(), producer.clone());
    let dead_letters = dead_letter::start(&config.dead_letter_topic, producer, fatal);
    metric::describe();
    health.not_ready(HEALTH_PART, format!("no broker answers at {}", config.brokers));
    let progress = health.watch_loop("kafka poll thread", Duration::from_secs(30));
    let keeper = Arc::new(Keeper::new(positions, lost));
    let (keeping, client) = (keeper.clone(), Arc::downgrade(&consumer));
    let keeping = tokio::spawn(async move { keeping.run(&client).await });
    let first = if links.is_some() { Assignment::Only(BTreeSet::new()) } else { Assignment::All };
    let shown = Arc::<Shown>::default();
    let seen = (health.clone(), shown.clone());
    let partitions = Partitions::new((config.clone(), first), consumer.clone(), inbox.clone(), keeper.clone(), seen);
    let router_reports = inbox.clone();
    let poller = Poller::new(
        config,
        consumer,
        inbox,
        Router::new(shards, router_reports).with(links),
        dead_letters,
        keeper,
        progress,
    );
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
    let threads = vec![
        thread("kafka-poll").spawn(move || poller.run()).expect("the system starts threads"),
        thread("kafka-partitions").spawn(move || partitions.run(&orders)).expect("the system starts threads"),
    ];
    Ok(Ingest {
        control,
        threads: Mutex::new(threads),
        shown,
        keeping,
        #[cfg(feature = "faults")]
        clients,
    })
}

/// The health part that says whether partitions are read.
const HEALTH_PART: &str = "kafka";

impl Ingest {
    /// Sets which partitions this node reads. Those that it no longer reads are released in good order.
    pub fn assign(&self, assignment: Assignment) {
        let _ = self.control.send(Control::Assign(assignment));
    }

    /// The partitions that it reads, in order; among them those that it is about to let go.
    #[must_use]
    pub fn partitions(&self) -> Vec<i32> {
        self.shown.held.lock().iter().copied().collect()
    }

    /// Whether all of the topic that a broker leads could be read here, when it was last looked.
    #[must_use]
    pub fn reaches(&self) -> bool {
        self.shown.reaches.load(Ordering::Relaxed)
    }

    /// Returns when this node has let go of partitions, or taken some: others may go on. Cancel safe.
    pub async fn has_moved_some(&self) {
        self.shown.moved.notified().await;
    }

    /// Says that other nodes may have let go of partitions, or taken some.
    pub fn others_may_have_moved(&self) {
        if self.shown.waits.load(Ordering::SeqCst) {
            let _ = self.control.send(Control::OthersMoved);
        }
    }

    /// Test builds only: the consumer, or else the producer of dead letters, reports that it is of no use any more.
    #[cfg(feature = "faults")]
    pub fn fail(&self, consumer: bool) {
        if consumer {
            kafka::fail(rdkafka::consumer::Consumer::client(&*self.clients.0));
        } else {
            kafka::fail(self.clients.1.client());
        }
    }

    /// Stops reading, waits until what was read is settled, commits, and releases the partitions; at the
    /// deadline it leaves the rest to the next reader. Not cancel safe.
    pub async fn drain(&self, deadline: Instant) {
        let _ = self.control.send(Control::Stop(deadline));
        let threads = std::mem::take(&mut *self.threads.lock());
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().for_each(|thread| _ = thread.join()));
        let grace = deadline.saturating_duration_since(Instant::now()) + Duration::from_secs(1);
        if tokio::time::timeout(grace, joined).await.is_err() {
            tracing::warn!("kafka did not let go in time; positions that were not committed are read again");
        }
        self.keeping.abort();
    }
}

/// Metrics of ingest.
mod metric {
    use metrics::{counter, describe_counter, describe_gauge, gauge};

    use crate::ingest::dead_letter::Reason;

    const LAG_RECORDS: &str = "notifier_ingest_lag_records";
    const LAG_SECONDS: &str = "notifier_ingest_lag_seconds";
    const UNSETTLED: &str = "notifier_unsettled_events";
    const DEAD_LETTERS: &str = "notifier_dead_letters_total";

    pub(super) fn describe() {
        describe_gauge!(LAG_RECORDS, "Records of a partition that are written and not settled");
        describe_gauge!(LAG_SECONDS, "Age of a partition's oldest record that is not settled");
        describe_gauge!(UNSETTLED, "Events that were read and are not settled");
        describe_counter!(DEAD_LETTERS, "Records sent to the dead-letter topic, by reason");
        gauge!(UNSETTLED).set(0.0);
        for reason in Reason::ALL {
            counter!(DEAD_LETTERS, "reason" => reason.as_str()).increment(0);
        }
    }

    pub(super) fn lag(partition: i32, records: i64, seconds: f64) {
        let partition = partition.to_string();
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        gauge!(LAG_RECORDS, "partition" => partition.clone()).set(records as f64);
        gauge!(LAG_SECONDS, "partition" => partition).set(seconds);
    }

    pub(super) fn unsettled(events: usize) {
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        gauge!(UNSETTLED).set(events as f64);
    }

    pub(super) fn dead_letter(reason: Reason) {
        counter!(DEAD_LETTERS, "reason" => reason.as_str()).increment(1);
    }
}
