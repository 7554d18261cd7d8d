//! The thread that looks after partitions: which there are, which of them this node reads, where each begins,
//! and the last commit of one that is let go. It may block on the broker; the poll thread never does.

mod start;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rdkafka::{
    consumer::{CommitMode, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
};
use tokio::sync::Notify;

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
    placement::handover::Pace,
    store::{self, positions::LogName},
};

/// How long one question to the broker may take.
const ASK: Duration = Duration::from_secs(10);
/// The same until a broker has answered: a node that is told to stop must not wait for one.
const FIRST_ASK: Duration = Duration::from_secs(3);
/// How often to ask while something is wrong.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How often to look whether a partition is let go: until it is, the next ones wait.
const RELEASE_POLL: Duration = Duration::from_millis(10);
/// How long the last commit of a released partition is tried; a new cluster's coordinator takes 1–2 s.
const LAST_COMMIT: Duration = Duration::from_secs(10);

/// What others see of the thread.
#[derive(Default)]
pub(super) struct Shown {
    /// When it looked last, all partitions could be read that a broker leads.
    pub(super) reaches: AtomicBool,
    /// The partitions that are read, among them those that are about to be let go.
    pub(super) held: Mutex<BTreeSet<i32>>,
    /// It goes on when another node has let go of partitions, or taken some.
    pub(super) waits: AtomicBool,
    /// It has let go of partitions, or taken some.
    pub(super) moved: Notify,
}

pub(super) struct Partitions {
    config: Config,
    consumer: Arc<EventConsumer>,
    inbox: Arc<Inbox>,
    keeper: Arc<Keeper>,
    health: Health,
    wanted: Assignment,
    /// The partitions that the topic had when the broker was asked last.
    there: Vec<i32>,
    /// The brokers that led them then, where one did.
    leaders: BTreeMap<i32, i32>,
    /// When that was. `None`: it has to be asked now.
    asked: Option<Instant>,
    held: BTreeSet<i32>,
    shown: Arc<Shown>,
    /// How partitions are given away that others should read.
    pace: Pace<i32>,
    /// Somebody else takes what this node lets go.
    others_read_on: bool,
    /// Partitions that the poll thread lets go as soon as they are settled.
    releasing: BTreeSet<i32>,
    release_done: (mpsc::Sender<Position>, mpsc::Receiver<Position>),
    /// Where partitions stood that were let go, in case the commit did not get through.
    released: BTreeMap<i32, i64>,
    /// The store may have more partitions as this node's than it reads, which nobody else takes: an answer was lost, or
    /// reading them did not begin.
    may_have_more: bool,
    /// The topic was there and is not now.
    is_gone: bool,
    /// The first look round is over: partitions that appear later are new.
    knows_topic: bool,
    connected: bool,
    warned_of_dead_letter_topic: bool,
}

/// Why partitions cannot be read now; the text goes into readiness.
#[derive(Debug, thiserror::Error)]
enum Obstacle {
    #[error("no broker answers at {brokers}")]
    NoBroker { brokers: String },
    #[error("topic {topic} (kafka.topic) does not exist")]
    NoTopic { topic: String },
    #[error("no broker leads partitions {partitions:?} of topic {topic}")]
    NoLeader { topic: String, partitions: Vec<i32> },
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
        (health, shown): (Health, Arc<Shown>),
    ) -> Self {
        Self {
            config,
            consumer,
            inbox,
            keeper,
            health,
            wanted,
            there: Vec::new(),
            leaders: BTreeMap::new(),
            asked: None,
            held: BTreeSet::new(),
            shown,
            pace: Pace::default(),
            others_read_on: false,
            releasing: BTreeSet::new(),
            release_done: mpsc::channel(),
            released: BTreeMap::new(),
            may_have_more: false,
            is_gone: false,
            knows_topic: false,
            connected: false,
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
                    self.shown.reaches.store(true, Ordering::Relaxed);
                    // Another node has not let go of partitions yet, or not taken any, or this one has not.
                    if self.shown.waits.load(Ordering::Relaxed) || self.may_have_more {
                        ASK_AGAIN
                    } else {
                        self.config.partition_refresh
                    }
                }
                Err(obstacle) => {
                    self.asked = None;
                    self.shown.reaches.store(false, Ordering::Relaxed);
                    let text = obstacle.to_string();
                    self.health.not_ready(HEALTH_PART, text.clone());
                    if last_obstacle.as_ref() != Some(&text) {
                        tracing::warn!("{text}; asking again every {ASK_AGAIN:?}");
                    }
                    last_obstacle = Some(text);
                    ASK_AGAIN
                }
            };
            let order = self.next_order(orders, wait);
            if !matches!(order, Some(Control::OthersMoved) | None) {
                self.asked = None;
            }
            match order {
                Some(Control::Assign(wanted)) => self.wanted = wanted,
                Some(Control::Restart(partition)) => self.release(&[partition]),
                Some(Control::Check | Control::OthersMoved) | None => {}
                Some(Control::Stop(deadline)) => return self.stop(deadline, orders),
            }
        }
    }

    /// Waits for an order, or until it is time to look again: a partition that was let go may be taken again.
    fn next_order(&mut self, orders: &mpsc::Receiver<Control>, wait: Duration) -> Option<Control> {
        let until = Instant::now() + wait;
        loop {
            let released: BTreeMap<i32, i64> = self.release_done.1.try_iter().collect();
            if self.note_released(released) {
                return None;
            }
            let left = until.saturating_duration_since(Instant::now());
            let step = if self.releasing.is_empty() { left } else { left.min(RELEASE_POLL) };
            match orders.recv_timeout(step) {
                Ok(order) => return Some(latest(order, orders)),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Some(Control::Stop(Instant::now())),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            if Instant::now() >= until {
                return None;
            }
        }
    }

    /// Compares what is wanted with what is held, and moves towards it. What should be read here is taken at once, as
    /// far as nobody has it: it is not read meanwhile. Of a member that lives it is no more than a batch, for
    /// [`Self::give`] lets go of no more; of one that died it is all.
    fn look(&mut self) -> Result<(), Obstacle> {
        let is_due = self.asked.is_none_or(|at| at.elapsed() >= self.config.partition_refresh);
        if self.may_have_more || is_due {
            self.release_left_over();
        }
        // A broker that has nothing to send answers a question behind a fetch, half a second later.
        if is_due {
            self.there = self.ask_for_partitions()?;
            self.asked = Some(Instant::now());
        }
        let wanted = self.wanted.of(&self.there);
        let surplus: Vec<i32> = self.held.difference(&wanted).copied().collect();
        let missing: Vec<i32> = wanted.difference(&self.held).copied().collect();
        // What others do from here on may be news.
        self.shown.waits.store(self.waits(&surplus, &missing), Ordering::SeqCst);
        self.give(&surplus)?;
        let (led, leaderless): (Vec<i32>, Vec<i32>) = missing.iter().partition(|one| self.leaders.contains_key(one));
        // Before others give it any.
        if matches!(self.wanted, Assignment::Only(_)) && !self.shown.reaches.load(Ordering::Relaxed) {
            self.try_all()?;
        }
        let (starts, unanswered) = self.starts(&led)?;
        for (partition, start, end) in starts {
            tracing::info!(partition, start, "partition assigned");
            self.inbox.command(Command::Assign { partition, start, end });
            self.held.insert(partition);
            self.shown.moved.notify_one();
        }
        self.show();
        self.knows_topic = true;
        let missing: Vec<i32> = wanted.difference(&self.held).copied().collect();
        self.shown.waits.store(self.waits(&surplus, &missing), Ordering::SeqCst);
        if let Some(error) = unanswered {
            return Err(error.into());
        }
        if leaderless.is_empty() {
            return Ok(());
        }
        Err(Obstacle::NoLeader { topic: self.config.topic.clone(), partitions: leaderless })
    }

    /// Whether another node has to do something first.
    fn waits(&self, surplus: &[i32], missing: &[i32]) -> bool {
        !missing.is_empty() || surplus.iter().any(|partition| !self.releasing.contains(partition))
    }

    /// Lets go of what others should read, one batch after another: the next one when the last one is settled, let go
    /// and taken. At once, if there is nobody who would take it.
    fn give(&mut self, surplus: &[i32]) -> Result<(), store::Error> {
        let left: Vec<i32> = surplus.iter().copied().filter(|one| !self.releasing.contains(one)).collect();
        if left.is_empty() {
            self.pace = Pace::default();
            return Ok(());
        }
        let moves = match &self.wanted {
            Assignment::All | Assignment::Only(_) => None,
            Assignment::Chosen(choice) => {
                let mut owners = self.keeper.owners()?;
                // Already on its way, also what should be read here again by now.
                for (_, owner) in owners.iter_mut().filter(|(partition, _)| self.releasing.contains(partition)) {
                    *owner = None;
                }
                choice.moves(&self.there, &owners)
            }
        };
        self.others_read_on = moves.is_some();
        let next = match moves {
            Some(moves) => self.pace.next(Instant::now(), &left, &moves),
            None => left,
        };
        self.release(&next);
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
        let led = found.iter().flat_map(|found| found.partitions()).filter(|p| p.leader() >= 0);
        self.leaders = led.map(|p| (p.id(), p.leader())).collect();
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

    /// Has the store know that this node has no more than it reads, or is to read.
    fn release_left_over(&mut self) {
        if !self.connected {
            return;
        }
        let kept = self.held.union(&self.wanted.of(&self.there)).copied().collect();
        match self.keeper.keep_only(&kept) {
            Ok(released) => {
                self.may_have_more = false;
                if released > 0 {
                    self.shown.moved.notify_one();
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.may_have_more, true) {
                    tracing::warn!(%error, "claims of partitions cannot be looked at or released now; trying again");
                }
            }
        }
    }

    fn show(&self) {
        self.shown.held.lock().clone_from(&self.held);
    }

    fn commit(&mut self, positions: &BTreeMap<i32, i64>) {
        if positions.is_empty() {
            return;
        }
        let positions: Vec<(i32, i64)> = positions.iter().map(|(p, at)| (*p, *at)).collect();
        let give_up_at = Instant::now() + LAST_COMMIT;
        while let Err(error) = self.keeper.write(&positions) {
            if Instant::now() >= give_up_at || matches!(error, store::Error::Lost { .. }) {
                self.may_have_more = true;
                return tracing::error!(%error, "the last positions were not stored; what lies behind is read again");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        // Kafka's copy comes later: nobody waits for it.
        self.release_left_over();
        let offsets = list(&self.config.topic, positions.iter().copied());
        while let Err(error) = self.consumer.commit(&offsets, CommitMode::Sync) {
            if self.others_read_on {
                tracing::debug!(%error, "whoever reads on commits the last positions");
                break;
            }
            if Instant::now() >= give_up_at {
                tracing::error!(%error, "the last positions were not committed; what lies behind is read again");
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn stop(mut self, deadline: Instant, orders: &mpsc::Receiver<Control>) {
        let left = || deadline.saturating_duration_since(Instant::now());
        let view_by = Instant::now() + left() / 2;
        while !self.held.is_empty() && !left().is_zero() {
            if self.may_have_more {
                self.release_left_over();
            }
            let stays = match &self.wanted {
                // As long as the view has this node as one that stays, nobody takes them. It comes soon, or not at all.
                Assignment::Chosen(choice) if Instant::now() < view_by => choice.mine(&self.there),
                _ => BTreeSet::new(),
            };
            let held: Vec<i32> = self.held.difference(&stays).copied().collect();
            self.shown.waits.store(true, Ordering::SeqCst);
            if self.give(&held).is_err() {
                // Without the store nobody takes anything either.
                self.release(&held);
            }
            match self.next_order(orders, left().min(ASK_AGAIN)) {
                Some(Control::Assign(wanted)) => self.wanted = wanted,
                Some(Control::Stop(_)) => break,
                Some(Control::Check | Control::OthersMoved | Control::Restart(_)) | None => {}
            }
        }
        let (done, rest) = mpsc::channel();
        self.inbox.command(Command::Stop { done });
        let mut rest: BTreeMap<i32, i64> = rest.iter().collect();
        if !rest.is_empty() {
            tracing::warn!(partitions = ?rest.keys(), "not everything was settled in time");
        }
        // Let go of in the last moment.
        rest.extend(self.release_done.1.try_iter());
        self.held.clear();
        self.wanted = Assignment::Only(BTreeSet::new());
        self.commit(&rest);
        if self.may_have_more {
            self.release_left_over();
        }
    }
}

/// Looking once is enough: a broker that is away asks for it again and again, other nodes do, and an order behind must
/// not wait for each of them.
fn latest(order: Control, orders: &mpsc::Receiver<Control>) -> Control {
    let mut latest = order;
    while let Control::Check | Control::OthersMoved = latest {
        match orders.try_recv() {
            Ok(Control::OthersMoved) => {}
            Ok(order) => latest = order,
            Err(_) => break,
        }
    }
    latest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_does_not_wait_behind_looks_that_say_the_same() {
        let (sender, orders) = mpsc::channel();
        let others = || Control::OthersMoved;
        for order in [Control::Check, others(), Control::Check, Control::Restart(3), others(), Control::Check, others()]
        {
            sender.send(order).unwrap();
        }
        let first = orders.recv().unwrap();
        assert!(matches!(latest(first, &orders), Control::Restart(3)));
        let next = orders.recv().unwrap();
        assert!(matches!(latest(next, &orders), Control::Check), "the one that asks the broker");
        assert!(orders.try_recv().is_err());
    }
}
