//! Positions on their way: into the store, beside the rows that they cover, and then to Kafka as a copy for lag tools.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use rdkafka::consumer::{CommitMode, Consumer};
use tokio::{runtime::Handle, sync::Notify};

use super::{client::EventConsumer, consumer::list};
use crate::{
    ids::Incarnation,
    store::{
        Error,
        positions::{Known, LogName, Positions},
        writer::Lost,
    },
};

/// How long to wait for a store that did not take positions.
const AGAIN: Duration = Duration::from_millis(500);

/// Keeps positions. The poll thread notes them without waiting; the thread that looks after partitions waits.
pub(super) struct Keeper {
    positions: Arc<dyn Positions>,
    lost: Lost,
    runtime: Handle,
    log: OnceLock<LogName>,
    pending: Mutex<BTreeMap<i32, i64>>,
    /// Held while [`Self::run`] writes, and while partitions are given away: a write of one that is released just then
    /// would look as if somebody else had taken it.
    writing: tokio::sync::Mutex<()>,
    noted: Notify,
}

impl Keeper {
    /// Must be called inside of the runtime that the store lives in.
    pub(super) fn new(positions: Arc<dyn Positions>, lost: Lost) -> Self {
        let (log, pending, noted) = (OnceLock::new(), Mutex::default(), Notify::new());
        let writing = tokio::sync::Mutex::default();
        Self { positions, lost, runtime: Handle::current(), log, pending, writing, noted }
    }

    /// The cluster is known.
    pub(super) fn connected(&self, log: LogName) {
        let _ = self.log.set(log);
    }

    fn log(&self) -> &LogName {
        self.log.get().expect("partitions are assigned after the cluster is known")
    }

    /// Positions that have moved.
    pub(super) fn note(&self, moved: &[(i32, i64)]) {
        self.pending.lock().extend(moved.iter().copied());
        self.noted.notify_one();
    }

    /// Writes what is noted, until the consumer is gone; the store's word comes before Kafka's. It must not keep the
    /// consumer: dropping one blocks.
    pub(super) async fn run(&self, consumer: &Weak<EventConsumer>) {
        loop {
            self.noted.notified().await;
            loop {
                let writing = self.writing.lock().await;
                let moved: Vec<(i32, i64)> = self.pending.lock().iter().map(|(p, at)| (*p, *at)).collect();
                if moved.is_empty() {
                    break;
                }
                let written = self.positions.write(self.log(), &moved).await;
                drop(writing);
                if let Err(error) = written {
                    tracing::warn!(%error, "the store did not take positions, trying again");
                    self.report(&error);
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
                self.pending.lock().retain(|p, at| !moved.contains(&(*p, *at)));
                let Some(consumer) = consumer.upgrade() else { return };
                if let Err(error) = consumer.commit(&list(&self.log().topic, moved), CommitMode::Async) {
                    tracing::warn!(%error, "committing positions failed, trying again");
                    consumer.context().commit_has_failed();
                }
            }
        }
    }

    fn report(&self, error: &Error) {
        if matches!(error, Error::Lost { .. }) {
            let _ = self.lost.send(error.clone());
        }
    }

    fn wait<T>(&self, answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.runtime.block_on(answer).inspect_err(|error| self.report(error))
    }

    /// Blocks. What the store knows of these partitions, which are this process's from here on.
    pub(super) fn take(&self, partitions: &[i32]) -> Result<Vec<(i32, Known)>, Error> {
        self.wait(self.positions.take(self.log(), partitions))
    }

    /// Blocks. Who has which partition, as far as others can have any.
    pub(super) fn owners(&self) -> Result<Vec<(i32, Option<Incarnation>)>, Error> {
        self.wait(self.positions.owners(self.log()))
    }

    /// Blocks. Where taken partitions begin. What was noted before was of an earlier assignment.
    pub(super) fn begin(&self, starts: &[(i32, i64)]) -> Result<Vec<i32>, Error> {
        self.pending.lock().retain(|pending, _| !starts.iter().any(|(partition, _)| partition == pending));
        self.wait(self.positions.begin(self.log(), starts))
    }

    /// Blocks. The last positions of partitions that are let go.
    pub(super) fn write(&self, positions: &[(i32, i64)]) -> Result<(), Error> {
        self.wait(self.positions.write(self.log(), positions))
    }

    /// Blocks. Others may take all partitions of this process but these; the positions of the others are written. How many
    /// there were.
    pub(super) fn keep_only(&self, held: &BTreeSet<i32>) -> Result<usize, Error> {
        self.wait(async {
            let _writing = self.writing.lock().await;
            self.pending.lock().retain(|pending, _| held.contains(pending));
            self.positions.keep_only(self.log(), held).await
        })
    }

    /// Blocks. The topic is gone, and with it the meaning of its positions.
    pub(super) fn forget(&self) -> Result<(), Error> {
        self.pending.lock().clear();
        self.wait(self.positions.forget(self.log()))
    }

    /// Blocks. Kafka's copies are ahead of the store.
    pub(super) fn went_back(&self, copies: &[(i32, i64)]) -> Result<(), Error> {
        self.wait(self.positions.went_back(self.log(), copies))
    }
}
