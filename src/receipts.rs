//! Receipts → Kafka: a record for each notification that has ended, keyed by its user. They follow the store's journal,
//! so that delivery never waits for them; a crash repeats a few and loses none. What no log keeps is handed over
//! instead, within bounds, and is lost with the process. Why something ended, nobody decides here.

mod topic;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rdkafka::{ClientConfig, error::KafkaError};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use self::topic::Topic;
use crate::{
    backoff::Backoff,
    event::unix_millis_now,
    ids::Sequence,
    kafka::{self, Fatal},
    placement::{
        ShardId,
        owners::{Owner, Owners},
    },
    receipt::{self, Receipt},
    store::{
        Answer,
        journal::{Journal, Step},
    },
};

/// Receipts of what no log keeps that may wait; more are dropped.
const UNKEPT_MAX: usize = 10_000;
/// Entries of the journal that are read at a time.
const STEPS_MAX: usize = 500;
/// How often the journal is looked at while nothing ends.
const LOOK: Duration = Duration::from_millis(250);

/// Where receipts are written.
pub struct Config {
    /// Properties of the producer (`kafka::producer_config`).
    pub producer: ClientConfig,
    /// The topic of receipts.
    pub topic: String,
    /// Of several nodes that share a journal, one writes its receipts: which shards are whose says which.
    pub owners: Owners,
}

/// Writes receipts until it is dropped; [`ReceiptWriter::finish`] writes what is left first.
pub struct ReceiptWriter {
    unkept: mpsc::Sender<Receipt>,
    finishing: watch::Sender<bool>,
    writing: Mutex<Option<JoinHandle<()>>>,
}

impl ReceiptWriter {
    /// Goes on where the journal says that receipts have been written up to. A producer that is of no use any more is
    /// reported to `fatal`.
    ///
    /// # Errors
    /// When librdkafka refuses a property.
    pub fn start(config: &Config, journal: Arc<dyn Journal>, fatal: Fatal) -> Result<Self, KafkaError> {
        metric::describe();
        let topic = Topic::new(config)?;
        let owners = config.owners.clone();
        let (unkept, handed_over) = mpsc::channel(UNKEPT_MAX);
        let (finishing, finish) = watch::channel(false);
        let writing = tokio::spawn(async move {
            let following = Following { journal: &*journal, topic: &topic, owners, oldest: AtomicI64::new(NONE) };
            let work = async {
                tokio::select! {
                    ((), ()) = async {
                        tokio::join!(following.run(finish.clone()), write_unkept(&topic, handed_over, finish.clone()))
                    } => {}
                    () = following.watch_age() => {}
                }
            };
            kafka::work(topic.producer(), &fatal, work).await;
        });
        Ok(Self { unkept, finishing, writing: Mutex::new(Some(writing)) })
    }

    /// Writes what has ended by now, and then no more; at the deadline it leaves the rest to the next start.
    pub async fn finish(&self, deadline: Instant) {
        self.finishing.send_replace(true);
        let Some(mut writing) = self.writing.lock().take() else { return };
        if tokio::time::timeout_at(deadline.into(), &mut writing).await.is_err() {
            writing.abort();
            tracing::warn!("not all receipts were written in time: the next start writes what the store has kept");
        }
    }
}

impl Drop for ReceiptWriter {
    fn drop(&mut self) {
        if let Some(writing) = self.writing.get_mut() {
            writing.abort();
        }
    }
}

impl receipt::Receipts for ReceiptWriter {
    fn hand_over(&self, receipt: Receipt) {
        let state = receipt.state;
        if self.unkept.try_send(receipt).is_err() {
            metric::receipt(state, Outcome::Dropped);
        }
    }
}

/// What became of a receipt.
#[derive(Clone, Copy)]
enum Outcome {
    /// All in-sync replicas have it.
    Written,
    /// Too many waited.
    Dropped,
    /// Kafka refuses it.
    Failed,
}

impl Outcome {
    const ALL: [Self; 3] = [Self::Written, Self::Dropped, Self::Failed];

    /// The metric's label.
    fn as_str(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Dropped => "dropped",
            Self::Failed => "failed",
        }
    }
}

/// Nothing waits.
const NONE: i64 = i64::MAX;

/// The journal's end, followed.
struct Following<'a> {
    journal: &'a dyn Journal,
    topic: &'a Topic,
    owners: Owners,
    /// When the oldest of what was read and is not written ended.
    oldest: AtomicI64,
}

impl Following<'_> {
    /// The mark moves only over what Kafka has confirmed, or refused for good.
    async fn run(&self, mut finish: watch::Receiver<bool>) {
        let mut mark = answered(|| self.journal.receipted()).await;
        loop {
            while !self.is_mine() {
                self.oldest.store(NONE, Ordering::Relaxed);
                if tokio::time::timeout(LOOK, finish.wait_for(|finish| *finish)).await.is_ok() {
                    return;
                }
                if self.is_mine() {
                    mark = answered(|| self.journal.receipted()).await;
                }
            }
            // Asked before reading: what ended until then is in what is read.
            let is_last = *finish.borrow();
            let (steps, next) = answered(|| self.journal.ended_after(&mark, STEPS_MAX)).await;
            let is_end = steps.len() < STEPS_MAX;
            if let Some(oldest) = steps.first() {
                self.oldest.store(oldest.at, Ordering::Relaxed);
                let receipts: Vec<Receipt> = steps.into_iter().flat_map(receipts).collect();
                self.topic.write(&receipts).await;
                mark = next;
                answered(|| self.journal.set_receipted(&mark)).await;
            }
            if is_end {
                self.oldest.store(NONE, Ordering::Relaxed);
                if is_last {
                    return;
                }
                let _ = tokio::time::timeout(LOOK, finish.wait_for(|finish| *finish)).await;
            }
        }
    }

    /// Whether this node writes what the journal has: whoever serves the first shard does. While that moves, two may
    /// write the same.
    fn is_mine(&self) -> bool {
        self.owners.now().of(ShardId(0)) == Owner::Here
    }

    /// Never ends. Cancel safe.
    async fn watch_age(&self) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        loop {
            ticks.tick().await;
            metric::age(unix_millis_now().saturating_sub(self.oldest.load(Ordering::Relaxed)).max(0));
        }
    }
}

async fn write_unkept(topic: &Topic, mut handed_over: mpsc::Receiver<Receipt>, mut finish: watch::Receiver<bool>) {
    let mut receipts = Vec::new();
    loop {
        tokio::select! {
            biased;
            count = handed_over.recv_many(&mut receipts, topic::AT_ONCE) => if count == 0 {
                return;
            },
            _ = finish.wait_for(|finish| *finish), if !handed_over.is_closed() => handed_over.close(),
        }
        topic.write(&receipts).await;
        receipts.clear();
    }
}

/// Asks the store until it answers.
async fn answered<'a, T>(ask: impl Fn() -> Answer<'a, T>) -> T {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    let mut is_news = true;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) if std::mem::take(&mut is_news) => {
                tracing::warn!(%error, "receipts wait for the store");
            }
            Err(error) => tracing::debug!(%error, "receipts wait for the store"),
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// One for each notification of an entry. Its number is known where no number of the entry is without an id.
fn receipts(step: Step) -> impl Iterator<Item = Receipt> {
    let Step { user, first, last, ids, state, reason, session, at, .. } = step;
    let is_whole = first > 0 && last.checked_sub(first).is_some_and(|more| more + 1 == ids.len() as Sequence);
    (0..).zip(ids).map(move |(place, id)| Receipt {
        user: user.clone(),
        id,
        session,
        seq: is_whole.then_some(first + place),
        state,
        reason,
        at,
    })
}

/// Metrics of receipts.
mod metric {
    use std::sync::LazyLock;

    use metrics::{Counter, counter, describe_counter, describe_gauge, gauge};

    use super::Outcome;
    use crate::{event::UnixMillis, state::State};

    const RECEIPTS: &str = "notifier_receipts_total";
    const AGE: &str = "notifier_receipts_age_seconds";

    static COUNTERS: LazyLock<Vec<(State, [Counter; Outcome::ALL.len()])>> = LazyLock::new(|| {
        let ends = State::ALL.into_iter().filter(|state| state.is_end());
        let counter = |state: State, outcome: Outcome| counter!(RECEIPTS, "state" => state.as_str(), "outcome" => outcome.as_str());
        ends.map(|state| (state, Outcome::ALL.map(|outcome| counter(state, outcome)))).collect()
    });

    pub(super) fn describe() {
        describe_counter!(
            RECEIPTS,
            "Receipts of notifications that have ended, by what became of the receipt in Kafka"
        );
        describe_gauge!(AGE, "Age of the oldest receipt that the journal has and Kafka has not");
        LazyLock::force(&COUNTERS);
        gauge!(AGE).set(0.0);
    }

    pub(super) fn receipt(state: State, outcome: Outcome) {
        if let Some((_, outcomes)) = COUNTERS.iter().find(|(end, _)| *end == state) {
            outcomes[outcome as usize].increment(1);
        }
    }

    pub(super) fn age(millis: UnixMillis) {
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        gauge!(AGE).set(millis as f64 / 1000.0);
    }
}

#[cfg(test)]
mod tests;
