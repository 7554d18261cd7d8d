//! The poll thread: reads the assigned partitions through their split queues within the ledger's credits, and
//! notes positions. It is the only thread that touches queues, ledger and router. It never pauses a
//! partition (that would throw away what is fetched): a queue without credit is just not polled.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{Consumer, base_consumer::PartitionQueue},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers as _},
};
use smallvec::SmallVec;

use super::{
    Config, Control,
    client::{Context, EventConsumer, waker},
    dead_letter::{self, DeadLetter, DeadLetters, Reason},
    decode::{Decoder, Record},
    inbox::{Command, Inbox, Position},
    keeper::Keeper,
    ledger::Ledger,
    metric,
};
use crate::{
    event::{InFlight, unix_millis_now},
    health::Progress,
    kafka,
    router::{Answer, Router},
    settlement::{Outcome, Permit, RecordRef},
};

/// Records of one partition before the next one has its turn.
const TURN_MAX: usize = 512;
const MAIN_QUEUE_LOOKS: usize = 8;
/// The longest sleep: queues are looked at without a wake-up this often.
const LOOK_AT_LEAST: Duration = Duration::from_millis(100);
/// The sleep while something waits to be sent again, or for credit.
const LOOK_SOON: Duration = Duration::from_millis(1);
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Positions that do not move are committed again: offsets of a silent partition expire after 7 days.
const COMMIT_AGAIN: Duration = Duration::from_secs(3600);
/// So many crashes of its user's actor make an event a dead letter.
const CRASHES_MAX: u8 = 5;

/// The state of the poll thread.
pub(super) struct Poller {
    config: Config,
    consumer: Arc<EventConsumer>,
    inbox: Arc<Inbox>,
    decoder: Option<Decoder>,
    queues: BTreeMap<i32, Queue>,
    ledger: Ledger,
    router: Router,
    dead_letters: DeadLetters,
    assignments: u64,
    keeper: Arc<Keeper>,
    /// The positions that the keeper was told.
    noted: BTreeMap<i32, i64>,
    reports: Vec<(RecordRef, Outcome)>,
    progress: Progress,
    kept_house_at: Instant,
    noted_all_at: Instant,
}

struct Queue {
    queue: PartitionQueue<Context>,
    /// Something may be in it.
    has: Arc<AtomicBool>,
    release: Option<mpsc::Sender<Position>>,
}

impl Poller {
    pub(super) fn new(
        config: Config,
        consumer: Arc<EventConsumer>,
        inbox: Arc<Inbox>,
        router: Router,
        dead_letters: DeadLetters,
        keeper: Arc<Keeper>,
        progress: Progress,
    ) -> Self {
        let now = Instant::now();
        Self {
            ledger: Ledger::new(config.credits),
            router,
            config,
            consumer,
            inbox,
            decoder: None,
            queues: BTreeMap::new(),
            dead_letters,
            assignments: 0,
            keeper,
            noted: BTreeMap::new(),
            reports: Vec::new(),
            progress,
            kept_house_at: now,
            noted_all_at: now,
        }
    }

    pub(super) fn run(mut self) {
        loop {
            self.progress.turn();
            let mut look_everywhere = false;
            loop {
                match self.commands() {
                    Some(stop) => return self.stop(&stop),
                    None if self.turn(look_everywhere) => look_everywhere = false,
                    None => break,
                }
                self.progress.turn();
            }
            // The last look happens after the flag is up: what arrives during it wakes the sleep.
            let waits_for_reports =
                self.queues.values().any(|queue| queue.release.is_some() || queue.has.load(Ordering::SeqCst));
            self.inbox.about_to_sleep(waits_for_reports);
            if !self.turn(false) {
                let soon = waits_for_reports || self.router.is_recovering();
                self.inbox.sleep(if soon { LOOK_SOON } else { LOOK_AT_LEAST });
                look_everywhere = true;
            }
            self.inbox.awake();
            if look_everywhere {
                self.turn(true);
            }
        }
    }

    /// One round of everything; whether anything moved.
    fn turn(&mut self, look_everywhere: bool) -> bool {
        let answered = self.reports();
        self.main_queue(look_everywhere);
        let pulled = self.pull(look_everywhere);
        self.router.flush();
        self.release();
        if self.kept_house_at.elapsed() >= HOUSEKEEPING {
            self.kept_house_at = Instant::now();
            self.main_queue(true);
            self.note_positions();
            self.measure();
        }
        answered || pulled
    }

    fn commands(&mut self) -> Option<mpsc::Sender<Position>> {
        for command in self.inbox.take_commands() {
            match command {
                Command::Decode(decoder) => self.decoder = Some(decoder),
                Command::Assign { partition, start, end } => {
                    self.assign(partition, start);
                    self.consumer.context().ends.lock().insert(partition, end);
                    self.measure();
                }
                Command::Release { partition, done } => match self.queues.get_mut(&partition) {
                    Some(queue) => queue.release = Some(done),
                    None => drop(done),
                },
                Command::Bury { record, message, reason, detail } => {
                    if self.ledger.get_mut(record).is_some() {
                        let permit = Permit::new(self.inbox.clone(), record);
                        self.dead_letters.send(DeadLetter { permit, message, reason, detail });
                    }
                }
                Command::Stop { done } => return Some(done),
            }
        }
        None
    }

    fn assign(&mut self, partition: i32, start: i64) {
        self.assignments += 1;
        self.ledger.assign(partition, self.assignments, start);
        // The old queue's handle must be gone before there is a new one: dropping it later silences both.
        self.queues.remove(&partition);
        let topic = &self.config.topic;
        let fatal = &self.consumer.context().fatal;
        let Some(mut queue) = self.consumer.split_partition_queue(topic, partition) else {
            let _ = fatal.send(format!("kafka client has no queue for partition {partition}"));
            return;
        };
        let has = Arc::new(AtomicBool::new(true));
        queue.set_nonempty_callback(waker(&self.inbox, has.clone()));
        self.queues.insert(partition, Queue { queue, has, release: None });
        if let Err(error) = self.consumer.incremental_assign(&list(topic, [(partition, start)])) {
            let _ = fatal.send(format!("kafka client cannot assign partition {partition}: {error}"));
        }
    }

    /// Serves callbacks; splitting the queues leaves no records in this one.
    fn main_queue(&mut self, look: bool) {
        let has = &self.consumer.context().main_queue_has;
        if !has.swap(false, Ordering::SeqCst) && !look {
            return;
        }
        // A served callback looks like an empty queue: only several looks in a row empty it.
        for _ in 0..MAIN_QUEUE_LOOKS {
            match self.consumer.poll(Duration::ZERO) {
                None => {}
                Some(Ok(message)) => tracing::error!(partition = message.partition(), "a record outside of its queue"),
                Some(Err(KafkaError::MessageConsumptionFatal(_))) => {
                    let failure = kafka::fatal_error(self.consumer.client());
                    let _ = self.consumer.context().fatal.send(failure.unwrap_or_else(|| "kafka client failed".into()));
                }
                Some(Err(error)) => tracing::debug!(%error, "kafka consumer"),
            }
        }
    }

    fn pull(&mut self, look_everywhere: bool) -> bool {
        let Self { queues, ledger, router, dead_letters, inbox, decoder, consumer, .. } = self;
        let Some(decoder) = decoder else { return false };
        let mut pulled = false;
        for (partition, queue) in queues.iter().filter(|(_, queue)| queue.release.is_none()) {
            if !queue.has.swap(false, Ordering::SeqCst) && !look_everywhere {
                continue;
            }
            let mut left = TURN_MAX;
            loop {
                if left == 0 || !ledger.may_read(*partition) {
                    queue.has.store(true, Ordering::SeqCst);
                    break;
                }
                match queue.queue.poll(Duration::ZERO) {
                    None => break,
                    Some(Err(error)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) => {
                        tracing::error!(partition, "the log does not have our position any more");
                        let _ = consumer.context().control.lock().send(Control::Restart(*partition));
                        break;
                    }
                    Some(Err(error)) => tracing::warn!(partition, %error, "reading the partition"),
                    Some(Ok(message)) => {
                        take(&message, decoder, ledger, router, dead_letters, inbox);
                        left -= 1;
                        pulled = true;
                    }
                }
            }
        }
        pulled
    }

    fn reports(&mut self) -> bool {
        let mut reports = std::mem::take(&mut self.reports);
        self.inbox.take_reports(&mut reports);
        let any = !reports.is_empty();
        for (record, outcome) in reports.drain(..) {
            self.report(record, outcome);
        }
        self.reports = reports;
        any
    }

    fn report(&mut self, record: RecordRef, mut outcome: Outcome) {
        let Some(entry) = self.ledger.get_mut(record) else { return };
        let number = entry.number;
        let Some(event) = entry.event.clone() else {
            // A dead letter that arrived, or one that its task dropped when the node ends.
            if outcome == Outcome::Settled {
                self.ledger.settle(record);
            }
            return;
        };
        if outcome == Outcome::Buried {
            entry.event = None;
            outcome = Outcome::Settled;
            dead_letter::read_again(&self.config, &self.inbox, record, Reason::Unstorable);
        } else if outcome == Outcome::Crashed {
            entry.crashes += 1;
            if entry.crashes >= CRASHES_MAX {
                entry.event = None;
                outcome = Outcome::Settled;
                tracing::error!(
                    partition = record.partition,
                    offset = record.offset,
                    "event crashed its actor too often"
                );
                dead_letter::read_again(&self.config, &self.inbox, record, Reason::Poison);
            } else if entry.crashes == 1 {
                tracing::warn!(partition = record.partition, offset = record.offset, "event was under way in a crash");
            }
        } else if outcome == Outcome::Settled {
            self.ledger.settle(record);
        }
        let ledger = &self.ledger;
        let answer = Answer { record, number, event: &event, outcome };
        self.router.answered(&answer, || ledger.unsettled_of_user(&event.user).saturating_sub(1));
    }

    /// Lets go of partitions that are settled.
    fn release(&mut self) {
        let settled =
            |(partition, queue): &(&i32, &Queue)| queue.release.is_some() && self.ledger.unsettled_of(**partition) == 0;
        let partitions: SmallVec<[i32; 4]> =
            self.queues.iter().filter(settled).map(|(partition, _)| *partition).collect();
        for partition in partitions {
            self.let_go(partition);
        }
    }

    fn let_go(&mut self, partition: i32) {
        let Some(Queue { queue, release, .. }) = self.queues.remove(&partition) else { return };
        let position = self.ledger.position(partition).unwrap_or_default();
        if let Err(error) = self.consumer.incremental_unassign(&list(&self.config.topic, [(partition, position)])) {
            tracing::error!(partition, %error, "unassigning the partition failed");
        }
        drop(queue);
        self.ledger.remove(partition);
        self.noted.remove(&partition);
        metric::lag(partition, 0, 0.0);
        if let Some(done) = release {
            let _ = done.send((partition, position));
        }
    }

    fn note_positions(&mut self) {
        let failed = self.consumer.context().commit_failed.swap(false, Ordering::Relaxed);
        if failed || self.noted_all_at.elapsed() >= COMMIT_AGAIN {
            self.noted_all_at = Instant::now();
            self.noted.clear();
        }
        let positions = self.ledger.partitions().filter_map(|p| Some((p, self.ledger.position(p)?)));
        let moved: Vec<_> = positions.filter(|(p, at)| self.noted.get(p) != Some(at)).collect();
        if !moved.is_empty() {
            self.keeper.note(&moved);
            self.noted.extend(moved);
        }
    }

    fn measure(&self) {
        metric::unsettled(self.ledger.unsettled());
        let ends = self.consumer.context().ends.lock();
        for partition in self.ledger.partitions() {
            let (Some(end), Some(position)) = (ends.get(&partition), self.ledger.position(partition)) else { continue };
            let records = (end - position).max(0);
            let age = self.ledger.oldest(partition).filter(|_| records > 0).map_or(0, |at| unix_millis_now() - at);
            metric::lag(partition, records, Duration::from_millis(u64::try_from(age).unwrap_or(0)).as_secs_f64());
        }
    }

    fn stop(mut self, done: &mpsc::Sender<Position>) {
        let held: Vec<i32> = self.queues.keys().copied().collect();
        for partition in held {
            if let Some(queue) = self.queues.get_mut(&partition) {
                queue.release = Some(done.clone());
            }
            self.let_go(partition);
        }
        self.progress.ended();
    }
}

/// Partitions with an offset each, as librdkafka wants them.
pub(super) fn list(topic: &str, offsets: impl IntoIterator<Item = (i32, i64)>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in offsets {
        let added = list.add_partition_offset(topic, partition, Offset::Offset(offset));
        debug_assert!(added.is_ok(), "a plain offset is always accepted");
    }
    list
}

/// Decodes one record and sends it on its way, or to the dead letters.
fn take(
    message: &BorrowedMessage<'_>,
    decoder: &Decoder,
    ledger: &mut Ledger,
    router: &mut Router,
    dead_letters: &DeadLetters,
    inbox: &Arc<Inbox>,
) {
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    let headers: SmallVec<[_; 8]> = headers.map(|header| (header.key, header.value)).collect();
    let (partition, offset) = (message.partition(), message.offset());
    let timestamp = message.timestamp().to_millis();
    let record = Record { value: message.payload(), headers: &headers, timestamp, partition, offset };
    let bytes = message.payload_len() + message.key_len();
    let recorded_at = timestamp.unwrap_or_default();
    match decoder.decode(&record) {
        Ok(event) => {
            let event = Arc::new(event);
            let Some((record, number)) = ledger.read(partition, offset, recorded_at, bytes, Some(event.clone())) else {
                return;
            };
            let permit = Permit::new(inbox.clone(), record);
            router.route(number, InFlight { event, permit, first: false, sender: 0 });
        }
        Err(rejected) => {
            let Some((record, _)) = ledger.read(partition, offset, recorded_at, bytes, None) else { return };
            let permit = Permit::new(inbox.clone(), record);
            let reason = Reason::Rejected(rejected.reason);
            let detail = rejected.to_string();
            dead_letters.send(DeadLetter { permit, message: message.detach(), reason, detail });
        }
    }
}
