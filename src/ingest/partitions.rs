//! The thread that looks after partitions: which there are, which of them this node reads, where each begins,
//! and the last commit of one that is let go. It may block on the broker; the poll thread never does.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rdkafka::{
    Offset,
    consumer::{CommitMode, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
};

use super::{
    Assignment, Config, Control, HEALTH_PART,
    client::EventConsumer,
    consumer::list,
    decode::Decoder,
    inbox::{Command, Inbox, Position},
    keeper::Keeper,
};
use crate::{
    health::Health,
    store::{
        self,
        positions::{Known, LogName},
    },
};

/// How long one question to the broker may take.
const ASK: Duration = Duration::from_secs(10);
/// The same until a broker has answered: a node that is told to stop must not wait for one.
const FIRST_ASK: Duration = Duration::from_secs(3);
/// How often to ask while something is wrong.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How often to look whether a partition is let go.
const RELEASE_POLL: Duration = Duration::from_millis(50);
/// How long the last commit of a released partition is tried; a new cluster's coordinator takes 1–2 s.
const LAST_COMMIT: Duration = Duration::from_secs(10);

pub(super) struct Partitions {
    config: Config,
    consumer: Arc<EventConsumer>,
    inbox: Arc<Inbox>,
    keeper: Arc<Keeper>,
    health: Health,
    wanted: Assignment,
    held: BTreeSet<i32>,
    /// The same, for others to see.
    shown: Arc<Mutex<BTreeSet<i32>>>,
    /// Partitions that the poll thread lets go as soon as they are settled.
    releasing: BTreeSet<i32>,
    release_done: (mpsc::Sender<Position>, mpsc::Receiver<Position>),
    /// Where partitions stood that were let go, in case the commit did not get through.
    released: BTreeMap<i32, i64>,
    /// Partitions that were let go without the store's having heard of it: nobody else takes them before it has.
    unreleased: BTreeSet<i32>,
    /// The topic was there and is not now.
    is_gone: bool,
    /// The first look round is over: partitions that appear later are new.
    knows_topic: bool,
    connected: bool,
    is_missing_some: bool,
    warned_of_dead_letter_topic: bool,
}

/// Why partitions cannot be read now; the text goes into readiness.
#[derive(Debug, thiserror::Error)]
enum Obstacle {
    #[error("no broker answers at {brokers}")]
    NoBroker { brokers: String },
    #[error("topic {topic} (kafka.topic) does not exist")]
    NoTopic { topic: String },
    #[error("asking the broker failed: {0}")]
    Broker(#[from] KafkaError),
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Partitions {
    pub(super) fn new(
        (config, wanted): (Config, Assignment),
        consumer: Arc<EventConsumer>,
        inbox: Arc<Inbox>,
        keeper: Arc<Keeper>,
        (health, shown): (Health, Arc<Mutex<BTreeSet<i32>>>),
    ) -> Self {
        Self {
            config,
            consumer,
            inbox,
            keeper,
            health,
            wanted,
            held: BTreeSet::new(),
            shown,
            releasing: BTreeSet::new(),
            release_done: mpsc::channel(),
            released: BTreeMap::new(),
            unreleased: BTreeSet::new(),
            is_gone: false,
            knows_topic: false,
            connected: false,
            is_missing_some: false,
            warned_of_dead_letter_topic: false,
        }
    }

    pub(super) fn run(mut self, orders: &mpsc::Receiver<Control>) {
        let mut last_obstacle = None;
        loop {
            let wait = match self.look() {
                Ok(()) => {
                    if last_obstacle.take().is_some() {
                        tracing::info!(topic = self.config.topic, "kafka is back");
                    }
                    self.health.ready(HEALTH_PART);
                    // Another node has not let go of them yet, or this one.
                    if self.is_missing_some || !self.unreleased.is_empty() {
                        ASK_AGAIN
                    } else {
                        self.config.partition_refresh
                    }
                }
                Err(obstacle) => {
                    let text = obstacle.to_string();
                    self.health.not_ready(HEALTH_PART, text.clone());
                    if last_obstacle.as_ref() != Some(&text) {
                        tracing::warn!("{text}; asking again every {ASK_AGAIN:?}");
                    }
                    last_obstacle = Some(text);
                    ASK_AGAIN
                }
            };
            match self.next_order(orders, wait) {
                Some(Control::Assign(wanted)) => self.wanted = wanted,
                Some(Control::Restart(partition)) => self.release(&[partition]),
                Some(Control::Check) | None => {}
                Some(Control::Stop(deadline)) => return self.stop(deadline),
            }
        }
    }

    /// Waits for an order, or until it is time to look again: a partition that was let go may be taken again.
    fn next_order(&mut self, orders: &mpsc::Receiver<Control>, wait: Duration) -> Option<Control> {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let step = if self.releasing.is_empty() { left } else { left.min(RELEASE_POLL) };
            match orders.recv_timeout(step) {
                Ok(order) => return Some(latest(order, orders)),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Some(Control::Stop(Instant::now())),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            let released: BTreeMap<i32, i64> = self.release_done.1.try_iter().collect();
            if self.note_released(released) || Instant::now() >= until {
                return None;
            }
        }
    }

    /// Compares what is wanted with what is held, and moves towards it.
    fn look(&mut self) -> Result<(), Obstacle> {
        self.release_left_over();
        let there = self.ask_for_partitions()?;
        let wanted = self.wanted.of(there);
        let surplus: Vec<i32> = self.held.difference(&wanted).copied().collect();
        self.release(&surplus);
        let missing: Vec<i32> = wanted.difference(&self.held).copied().collect();
        for (partition, start, end) in self.starts(&missing)? {
            tracing::info!(partition, start, "partition assigned");
            self.inbox.command(Command::Assign { partition, start, end });
            self.held.insert(partition);
        }
        self.show();
        self.knows_topic = true;
        self.is_missing_some = !wanted.is_subset(&self.held);
        Ok(())
    }

    fn ask_for_partitions(&mut self) -> Result<Vec<i32>, Obstacle> {
        let Config { topic, brokers, .. } = &self.config;
        let no_broker = || Obstacle::NoBroker { brokers: brokers.clone() };
        // Asking for a topic makes librdkafka connect at once; asking for the cluster alone would wait for it.
        let patience = if self.connected { ASK } else { FIRST_ASK };
        let metadata = self.consumer.fetch_metadata(Some(topic), patience).map_err(|error| match error {
            KafkaError::MetadataFetch(
                RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::OperationTimedOut,
            ) => no_broker(),
            other => other.into(),
        })?;
        if !self.connected {
            let cluster = self.consumer.client().fetch_cluster_id(FIRST_ASK).ok_or_else(no_broker)?;
            let decoder = Decoder::new(&cluster, topic, self.config.payload_bytes_max, self.config.defaults.clone());
            self.inbox.command(Command::Decode(decoder));
            self.keeper.connected(LogName { cluster, topic: topic.clone() });
            self.connected = true;
        }
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let partitions: Vec<i32> = found.iter().flat_map(|found| found.partitions()).map(|p| p.id()).collect();
        if partitions.is_empty() {
            let topic = topic.clone();
            self.topic_is_gone()?;
            return Err(Obstacle::NoTopic { topic });
        }
        self.is_gone = false;
        self.check_dead_letter_topic();
        Ok(partitions)
    }

    fn check_dead_letter_topic(&mut self) {
        if self.warned_of_dead_letter_topic {
            return;
        }
        self.warned_of_dead_letter_topic = true;
        let topic = &self.config.dead_letter_topic;
        if let Ok(metadata) = self.consumer.fetch_metadata(Some(topic), ASK)
            && metadata.topics().iter().all(|found| found.partitions().is_empty())
        {
            tracing::warn!(
                topic,
                "the dead-letter topic does not exist: records that cannot be delivered stay unsettled"
            );
        }
    }

    /// Where each of these partitions begins for us, and where it ends now.
    fn starts(&self, partitions: &[i32]) -> Result<Vec<(i32, i64, i64)>, Obstacle> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let topic = &self.config.topic;
        let asked = list(topic, partitions.iter().map(|p| (*p, 0)));
        let committed = self.consumer.committed_offsets(asked, ASK)?;
        let copy = |partition| match committed.find_partition(topic, partition)?.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        let taken = self.keeper.take(partitions)?;
        let ahead = taken.iter().filter_map(|(partition, known)| Some((*partition, ahead(*known, copy(*partition))?)));
        let ahead: Vec<_> = ahead.collect();
        if !ahead.is_empty() {
            tracing::error!(partitions = ?ahead, "positions committed to kafka are ahead of the store's: it has lost commits");
            self.keeper.went_back(&ahead)?;
        }
        let mut starts = Vec::with_capacity(partitions.len());
        for (partition, known) in taken {
            let (low, high) = self.consumer.fetch_watermarks(topic, partition, ASK)?;
            let position = match known {
                Known::At { position, .. } => Some(position),
                Known::Foreign => {
                    if self.config.is_cluster_new {
                        tracing::debug!(partition, "a new cluster: beginning at the log's start");
                    } else {
                        tracing::warn!(partition, "the position was of another cluster: beginning at the log's start");
                    }
                    Some(low)
                }
                Known::Nothing => copy(partition).max(self.released.get(&partition).copied()),
            };
            let from_latest = self.config.from_latest && !self.knows_topic;
            starts.push((partition, start(partition, position, (low, high), from_latest), high));
        }
        let begin: Vec<_> = starts.iter().map(|(partition, start, _)| (*partition, *start)).collect();
        let begun = self.keeper.begin(&begin)?;
        starts.retain(|(partition, ..)| begun.contains(partition));
        Ok(starts)
    }

    /// Takes partitions away in good order: stop, settle, let go, commit. What cannot be settled now holds up
    /// nothing else: the end is noted when it comes.
    fn release(&mut self, partitions: &[i32]) {
        for &partition in partitions {
            if self.held.contains(&partition) && self.releasing.insert(partition) {
                self.inbox.command(Command::Release { partition, done: self.release_done.0.clone() });
            }
        }
    }

    /// A topic that comes back under its name is another log: our positions mean nothing in it. Kafka forgets the
    /// committed ones with the topic.
    fn topic_is_gone(&mut self) -> Result<(), Obstacle> {
        if !self.held.is_empty() && !std::mem::replace(&mut self.is_gone, true) {
            tracing::error!(topic = self.config.topic, "the topic is gone; if it comes back it is read from its start");
            let held: Vec<i32> = self.held.iter().copied().collect();
            self.release(&held);
        }
        self.released.clear();
        // As often as it is asked for: a position of the lost log must not outlive it because the store was away.
        Ok(self.keeper.forget()?)
    }

    /// Commits where released partitions stood; whether there were any.
    fn note_released(&mut self, positions: BTreeMap<i32, i64>) -> bool {
        for (partition, position) in &positions {
            tracing::info!(partition, position, "partition released");
            self.held.remove(partition);
            self.releasing.remove(partition);
        }
        self.show();
        let any = !positions.is_empty();
        if !self.is_gone {
            self.commit(&positions);
            self.released.extend(positions);
        }
        any
    }

    /// Releases what was let go before, without the store's having heard of it.
    fn release_left_over(&mut self) {
        self.unreleased.retain(|partition| !self.held.contains(partition));
        let left_over: Vec<i32> = self.unreleased.iter().copied().collect();
        if !left_over.is_empty() && self.keeper.release(&left_over).is_ok() {
            self.unreleased.clear();
        }
    }

    fn show(&self) {
        self.shown.lock().clone_from(&self.held);
    }

    fn commit(&mut self, positions: &BTreeMap<i32, i64>) {
        if positions.is_empty() {
            return;
        }
        let positions: Vec<(i32, i64)> = positions.iter().map(|(p, at)| (*p, *at)).collect();
        let give_up_at = Instant::now() + LAST_COMMIT;
        let partitions: Vec<i32> = positions.iter().map(|(partition, _)| *partition).collect();
        while let Err(error) = self.keeper.write(&positions) {
            if Instant::now() >= give_up_at || matches!(error, store::Error::Lost { .. }) {
                self.unreleased.extend(partitions);
                return tracing::error!(%error, "the last positions were not stored; what lies behind is read again");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        // Kafka's copy comes later: nobody waits for it.
        if let Err(error) = self.keeper.release(&partitions) {
            tracing::warn!(%error, "the partitions' claims were not released; trying again");
            self.unreleased.extend(partitions);
        }
        let offsets = list(&self.config.topic, positions.iter().copied());
        while let Err(error) = self.consumer.commit(&offsets, CommitMode::Sync) {
            if Instant::now() >= give_up_at {
                tracing::error!(%error, "the last positions were not committed; what lies behind is read again");
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn stop(mut self, deadline: Instant) {
        let held: Vec<i32> = self.held.iter().copied().collect();
        self.release(&held);
        while !self.held.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok((partition, position)) = self.release_done.1.recv_timeout(left) else { break };
            let more = self.release_done.1.try_iter();
            let positions = std::iter::once((partition, position)).chain(more).collect();
            self.note_released(positions);
        }
        let (done, rest) = mpsc::channel();
        self.inbox.command(Command::Stop { done });
        let rest: BTreeMap<i32, i64> = rest.iter().collect();
        if !rest.is_empty() {
            tracing::warn!(partitions = ?rest.keys(), "not everything was settled in time");
        }
        self.commit(&rest);
    }
}

/// Looking once is enough: a broker that is away asks for it again and again, and an order behind must not wait for
/// each of them.
fn latest(order: Control, orders: &mpsc::Receiver<Control>) -> Control {
    match order {
        Control::Check => orders.try_iter().find(|order| !matches!(order, Control::Check)).unwrap_or(Control::Check),
        order => order,
    }
}

/// Kafka's copy, when it is ahead of what the store knows and that is news: it is written after the store's.
fn ahead(known: Known, copy: Option<i64>) -> Option<i64> {
    let Known::At { position, ahead } = known else { return None };
    copy.filter(|copy| *copy > position && Some(*copy) > ahead)
}

/// The contract's rule: the stored position; one that the log does not have any more, or not yet, is replaced.
fn start(partition: i32, known: Option<i64>, (low, high): (i64, i64), from_latest: bool) -> i64 {
    match known {
        None if from_latest => high,
        None => low,
        Some(position) if position > high => {
            tracing::error!(
                partition,
                position,
                high,
                "the log ends before our position: beginning again at its start"
            );
            low
        }
        Some(position) if position < low => {
            tracing::error!(partition, position, low, "records were deleted before they were read");
            low
        }
        Some(position) => position,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_does_not_wait_behind_looks_that_say_the_same() {
        let (sender, orders) = mpsc::channel();
        for order in [Control::Check, Control::Check, Control::Restart(3), Control::Check] {
            sender.send(order).unwrap();
        }
        let first = orders.recv().unwrap();
        assert!(matches!(latest(first, &orders), Control::Restart(3)));
        let next = orders.recv().unwrap();
        assert!(matches!(latest(next, &orders), Control::Check));
        assert!(orders.try_recv().is_err());
    }

    #[test]
    fn a_copy_ahead_of_the_stores_position_is_noticed_once() {
        let at = |position, ahead| Known::At { position, ahead };
        assert_eq!(ahead(at(10, None), Some(12)), Some(12));
        assert_eq!(ahead(at(10, None), Some(10)), None);
        assert_eq!(ahead(at(10, None), None), None);
        assert_eq!(ahead(at(10, Some(12)), Some(12)), None, "seen before");
        assert_eq!(ahead(at(10, Some(12)), Some(13)), Some(13));
        assert_eq!(ahead(Known::Nothing, Some(5)), None, "a new store begins at the copy");
    }

    #[test]
    fn a_partition_begins_at_its_position_when_the_log_has_it() {
        let log = (10, 20);
        assert_eq!(start(0, Some(15), log, false), 15);
        assert_eq!(start(0, Some(20), log, true), 20);
        assert_eq!(start(0, None, log, false), 10);
        assert_eq!(start(0, None, log, true), 20);
        assert_eq!(start(0, Some(21), log, true), 10, "a position beyond the end is another log's");
        assert_eq!(start(0, Some(3), log, true), 10);
    }
}
