//! Write lanes: group commit between actors and the store. Each shard belongs to one lane; a lane has one
//! call to the store under way, and takes everything that came meanwhile into the next. So rows of one
//! user stay in order, and a slow store makes larger groups instead of longer queues.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ractor::DerivedActorRef;
use tokio::sync::mpsc;

use super::{Acknowledgement, Appended, Error, Store};
use crate::{
    backoff::Backoff,
    event::InFlight,
    health::Health,
    ids::{DeviceId, Sequence, UserId},
    placement::shard,
};

/// The most rows of one call to the store.
const GROUP_MAX: usize = 512;
/// The health part that says whether the store answers.
const HEALTH_PART: &str = "store";

/// Hands writes to their lanes. Cheap to clone. The queues need no bound of their own: every append holds a
/// permit, and acknowledgements of one cursor are bounded by the session's window.
#[derive(Clone)]
pub struct Writer {
    lanes: Arc<[mpsc::UnboundedSender<Write>]>,
}

enum Write {
    Append { in_flight: InFlight, reply: DerivedActorRef<Stored> },
    Acknowledge(Acknowledgement),
}

/// The answer to an append: the event with its permit comes back.
#[derive(Debug)]
pub struct Stored {
    /// What was appended.
    pub in_flight: InFlight,
    /// What became of it.
    pub outcome: Appended,
}

impl Writer {
    /// Starts `lanes` lanes; they end when the last clone of the writer is dropped and all is written.
    #[must_use]
    pub fn start(store: &Arc<dyn Store>, lanes: u16, health: &Health, lost: &Lost) -> Self {
        health.ready(HEALTH_PART);
        let lanes = (0..lanes.max(1)).map(|_| {
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(Lane { store: store.clone(), health: health.clone(), lost: lost.clone() }.run(receiver));
            sender
        });
        Self { lanes: lanes.collect() }
    }

    fn send(&self, user: &str, write: Write) {
        let count = u16::try_from(self.lanes.len()).expect("started with a u16");
        // A lane that is gone drops the write, and with it the permit, which reports the event as lost.
        let _ = self.lanes[usize::from(shard(user, count).0)].send(write);
    }

    /// Stores an event; `reply` gets it back with its number, in the order in which this was called.
    pub fn append(&self, mut in_flight: InFlight, reply: DerivedActorRef<Stored>) {
        in_flight.permit.pause();
        let user = in_flight.event.user.clone();
        self.send(&user, Write::Append { in_flight, reply });
    }

    /// Raises a cursor, after the appends before it.
    pub fn acknowledge(&self, user: UserId, device: Option<DeviceId>, seq: Sequence) {
        self.send(&user.clone(), Write::Acknowledge(Acknowledgement { user, device, seq }));
    }
}

/// Hears why the store is not this process's any more.
pub type Lost = mpsc::UnboundedSender<Error>;

struct Lane {
    store: Arc<dyn Store>,
    health: Health,
    lost: Lost,
}

impl Lane {
    async fn run(self, mut queue: mpsc::UnboundedReceiver<Write>) {
        let mut group = Vec::with_capacity(GROUP_MAX);
        while queue.recv_many(&mut group, GROUP_MAX).await > 0 {
            let (mut appends, mut acknowledged) = (Vec::with_capacity(group.len()), Vec::new());
            for write in group.drain(..) {
                match write {
                    Write::Append { in_flight, reply } => appends.push((in_flight, reply)),
                    Write::Acknowledge(acknowledgement) => acknowledged.push(acknowledgement),
                }
            }
            self.append(appends).await;
            if !acknowledged.is_empty() {
                let acknowledged = highest(acknowledged);
                self.until_done(|| self.store.acknowledge(&acknowledged)).await;
            }
        }
    }

    async fn append(&self, appends: Vec<(InFlight, DerivedActorRef<Stored>)>) {
        if appends.is_empty() {
            return;
        }
        let events: Vec<_> = appends.iter().map(|(in_flight, _)| in_flight.event.clone()).collect();
        let began = Instant::now();
        let outcomes = self.until_done(|| self.store.append(&events)).await;
        metric::wrote(events.len(), began.elapsed());
        for ((in_flight, reply), outcome) in appends.into_iter().zip(outcomes) {
            // An actor that is gone leaves the permit to its Drop: the event comes again and finds its row.
            let _ = reply.send_message(Stored { in_flight, outcome });
        }
    }

    /// Calls until the store answers; what waits here holds its credit, so that reading stops.
    async fn until_done<'a, T>(&self, call: impl Fn() -> super::Answer<'a, T>) -> T {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
        let mut failed = false;
        loop {
            match call().await {
                Ok(answer) => {
                    if failed {
                        self.health.ready(HEALTH_PART);
                    }
                    return answer;
                }
                Err(error @ Error::Lost { .. }) => {
                    // What waits here keeps its permits: nobody may believe that it is settled.
                    self.health.not_ready(HEALTH_PART, error.to_string());
                    let _ = self.lost.send(error);
                    std::future::pending::<()>().await;
                }
                Err(error @ Error::Unavailable { .. }) => {
                    failed = true;
                    metric::failed();
                    tracing::warn!(%error, "store write failed, trying again");
                    self.health.not_ready(HEALTH_PART, error.to_string());
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        }
    }
}

/// Each cursor once, with the highest number that was acknowledged.
fn highest(mut acknowledged: Vec<Acknowledgement>) -> Vec<Acknowledgement> {
    acknowledged.sort_by(|a, b| (&a.user, &a.device, b.seq).cmp(&(&b.user, &b.device, a.seq)));
    acknowledged.dedup_by(|later, first| later.user == first.user && later.device == first.device);
    acknowledged
}

/// Metrics of writes.
pub mod metric {
    use std::{sync::LazyLock, time::Duration};

    use metrics::{Histogram, counter, describe_counter, describe_histogram, histogram};

    const SECONDS: &str = "notifier_store_write_seconds";
    const ROWS: &str = "notifier_store_batch_rows";
    const ERRORS: &str = "notifier_store_errors_total";

    static WRITE: LazyLock<[Histogram; 2]> = LazyLock::new(|| [histogram!(SECONDS), histogram!(ROWS)]);

    /// Registers names and meanings.
    pub fn describe() {
        describe_histogram!(SECONDS, "Time that a group of rows took until the store had committed it");
        describe_histogram!(ROWS, "Rows of one group");
        describe_counter!(ERRORS, "Calls that the store did not answer");
        LazyLock::force(&WRITE);
        counter!(ERRORS, "operation" => "write").increment(0);
    }

    pub(super) fn wrote(rows: usize, time: Duration) {
        WRITE[0].record(time.as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "a group has at most 512 rows")]
        WRITE[1].record(rows as f64);
    }

    pub(super) fn failed() {
        counter!(ERRORS, "operation" => "write").increment(1);
    }
}

#[cfg(test)]
mod tests;
