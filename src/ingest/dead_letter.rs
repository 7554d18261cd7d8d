//! Records that cannot be delivered: written to the dead-letter topic with their key, value and headers as they
//! were, and settled only when Kafka has confirmed that.

use std::{sync::Arc, time::Duration};

use rdkafka::{
    Message, Offset, Timestamp, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaResult,
    message::{Header, Headers as _, OwnedHeaders, OwnedMessage},
};
use tokio::sync::mpsc;

use super::{
    Config,
    decode::Reason as RejectReason,
    inbox::{Command, Inbox},
    metric,
};
use crate::{
    backoff::Backoff,
    kafka::{self, Delivery, Fatal, Log, Producer, Record},
    settlement::{Permit, RecordRef},
};

/// How long to wait for a record that is read once more.
const READ_AGAIN: Duration = Duration::from_secs(30);

/// Why a record is a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It cannot be decoded or breaks a rule.
    Rejected(RejectReason),
    /// Its user's actor crashed on it again and again.
    Poison,
    /// The store does not accept what is in it.
    Unstorable,
}

impl Reason {
    /// Every reason there is.
    pub const ALL: [Self; RejectReason::ALL.len() + 2] = {
        let mut all = [Self::Poison; RejectReason::ALL.len() + 2];
        all[RejectReason::ALL.len() + 1] = Self::Unstorable;
        let mut i = 0;
        while i < RejectReason::ALL.len() {
            all[i] = Self::Rejected(RejectReason::ALL[i]);
            i += 1;
        }
        all
    };

    /// The metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rejected(reason) => reason.as_str(),
            Self::Poison => "poison",
            Self::Unstorable => "unstorable",
        }
    }
}

/// A record on its way to the dead-letter topic.
pub(super) struct DeadLetter {
    pub(super) permit: Permit,
    pub(super) message: OwnedMessage,
    pub(super) reason: Reason,
    pub(super) detail: String,
}

/// The way to the dead-letter topic. Bounded by the ledger's credits: each letter holds its record's permit.
#[derive(Clone)]
pub(super) struct DeadLetters(mpsc::UnboundedSender<DeadLetter>);

impl DeadLetters {
    pub(super) fn send(&self, letter: DeadLetter) {
        let _ = self.0.send(letter);
    }
}

/// A producer for dead letters.
pub(super) fn producer(config: &Config) -> KafkaResult<Producer> {
    let mut properties = config.producer.clone();
    // A record that was small enough for its own topic must not fail here first; the topic decides.
    properties.set("message.max.bytes", "100000000");
    Producer::new(&properties)
}

/// Starts the task that writes dead letters; it ends with the last sender.
pub(super) fn start(topic: &str, producer: Producer, fatal: Fatal) -> DeadLetters {
    let topic: Arc<str> = topic.into();
    let (sender, mut letters) = mpsc::unbounded_channel::<DeadLetter>();
    tokio::spawn(async move {
        let delivering = async {
            while let Some(letter) = letters.recv().await {
                // Handed over here, so that letters keep their order unless one fails.
                let attempt = producer.send(letter.record(&topic, &letter.headers(false), true));
                let (producer, topic) = (producer.clone(), topic.clone());
                tokio::spawn(async move {
                    letter.deliver(&producer, &topic, attempt).await;
                });
            }
        };
        kafka::work(&producer, &fatal, delivering).await;
    });
    DeadLetters(sender)
}

impl DeadLetter {
    fn record<'a>(&'a self, topic: &'a str, headers: &OwnedHeaders, with_value: bool) -> Record<'a, [u8], [u8]> {
        let mut record = Record::to(topic).headers(headers.clone());
        record.key = self.message.key();
        record.payload = self.message.payload().filter(|_| with_value);
        record
    }

    /// Waits for Kafka's word on the first attempt, and makes others until it is yes.
    async fn deliver(self, producer: &Producer, topic: &str, first: KafkaResult<Delivery>) {
        let (partition, offset) = (self.message.partition(), self.message.offset());
        tracing::warn!(partition, offset, reason = self.reason.as_str(), detail = self.detail, "dead letter");
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        let mut with_value = true;
        let mut attempt = first;
        loop {
            match kafka::confirmed(attempt).await {
                Ok(()) => break,
                Err(error) if kafka::is_refused(&error) && with_value => {
                    tracing::warn!(
                        partition,
                        offset,
                        "the dead-letter topic refuses the value's size: sent without it"
                    );
                    with_value = false;
                }
                Err(error) => {
                    tracing::warn!(partition, offset, %error, topic, "writing a dead letter failed, trying again");
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
            let record = self.record(topic, &self.headers(!with_value), with_value);
            attempt = producer.send(record);
        }
        metric::dead_letter(self.reason);
        self.permit.settle();
    }

    /// The record's own headers, then why and whence.
    fn headers(&self, without_value: bool) -> OwnedHeaders {
        let message = &self.message;
        let mut headers = OwnedHeaders::new();
        for header in message.headers().iter().flat_map(|headers| headers.iter()) {
            headers = headers.insert(header);
        }
        let timestamp = message.timestamp().to_millis().unwrap_or(-1).to_string();
        let origin = [
            ("notifier-error", &*self.detail),
            ("notifier-origin-topic", message.topic()),
            ("notifier-origin-partition", &message.partition().to_string()),
            ("notifier-origin-offset", &message.offset().to_string()),
            ("notifier-origin-timestamp", &timestamp),
        ];
        for (key, value) in origin {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        match message.payload() {
            Some(value) if without_value => {
                headers.insert(Header { key: "notifier-value-omitted", value: Some(&format!("{} bytes", value.len())) })
            }
            _ => headers,
        }
    }
}

/// Reads a poisonous event's record once more, as it was written, and hands it to the poll thread. On a thread
/// of its own: it is rare, and waiting for the broker must not hold up the others.
pub(super) fn read_again(config: &Config, inbox: &Arc<Inbox>, record: RecordRef, reason: Reason) {
    let (config, inbox) = (config.clone(), inbox.clone());
    let read = move || {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            match read_record(&config, record) {
                Ok(message) => {
                    let detail = match reason {
                        Reason::Unstorable => "unstorable: the store does not accept what is in the event",
                        _ => "poison: the event crashed its user's actor again and again",
                    };
                    return inbox.command(Command::Bury { record, message, reason, detail: detail.to_owned() });
                }
                Err(error) => {
                    tracing::warn!(partition = record.partition, offset = record.offset, %error, "reading again failed");
                    std::thread::sleep(backoff.next_wait());
                }
            }
        }
    };
    std::thread::Builder::new().name("kafka-read-again".into()).spawn(read).expect("the system starts threads");
}

fn read_record(config: &Config, record: RecordRef) -> KafkaResult<OwnedMessage> {
    let mut properties = config.consumer.clone();
    properties.set("statistics.interval.ms", "0");
    let consumer: BaseConsumer<Log> = properties.create_with_context(Log)?;
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(&config.topic, record.partition, Offset::Offset(record.offset))?;
    consumer.assign(&assignment)?;
    let message = consumer.poll(READ_AGAIN).transpose()?.map(|message| message.detach());
    if let Some(message) = message.filter(|message| message.offset() == record.offset) {
        return Ok(message);
    }
    // Retention or compaction took it: the letter says at least where it was.
    tracing::warn!(partition = record.partition, offset = record.offset, "the record is gone from its topic");
    let (topic, at) = (config.topic.clone(), Timestamp::NotAvailable);
    Ok(OwnedMessage::new(None, None, topic, at, record.partition, record.offset, None))
}
