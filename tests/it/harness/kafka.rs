//! The Kafka side of a test: topics of its own, what producers write, what is in a log.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    message::{Header, Headers as _, Message as _, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, FutureProducer, FutureRecord, Producer as _},
};
use uuid::Uuid;

use super::{
    Event,
    process::required,
    wait::{DEADLINE, blocking, eventually, eventually_within, within},
};

/// What a topic that takes the largest records of the tests allows, in bytes.
pub const RECORD_BYTES_MAX: usize = 20_000_000;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A topic's copies: as many as the brokers make by themselves.
const COPIES: TopicReplication<'static> = TopicReplication::Fixed(-1);

/// A cluster, known by its bootstrap address.
#[derive(Clone)]
pub struct Kafka {
    pub bootstrap: String,
    producer: FutureProducer,
}

impl Kafka {
    /// The broker that `tests/run` started for all tests.
    pub fn shared() -> Self {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(|| Self::at(&required("NOTIFIER_TEST_KAFKA"))).clone()
    }

    /// A cluster somewhere else.
    pub fn at(bootstrap: &str) -> Self {
        Self { bootstrap: bootstrap.into(), producer: producer(bootstrap, "none") }
    }

    /// As this one, with a producer that compresses its batches.
    pub fn compressed(&self, codec: &str) -> Self {
        Self { bootstrap: self.bootstrap.clone(), producer: producer(&self.bootstrap, codec) }
    }

    /// Creates a topic with properties such as `max.message.bytes`.
    pub async fn create_topic(&self, name: &str, partitions: i32, properties: &[(&str, &str)]) {
        let topic = NewTopic::new(name, partitions, COPIES);
        self.create(properties.iter().fold(topic, |topic, (key, value)| topic.set(key, value))).await;
    }

    /// Creates a topic of which each partition is on one broker only.
    pub async fn create_topic_without_copies(&self, name: &str, partitions: i32) {
        self.create(NewTopic::new(name, partitions, TopicReplication::Fixed(1))).await;
    }

    async fn create(&self, topic: NewTopic<'_>) {
        let admin = self.admin();
        let created = within("topic created", admin.create_topics([&topic], &options())).await;
        let results = created.expect("the broker answers");
        assert!(results.iter().all(Result::is_ok), "cannot create {}: {results:?}", topic.name);
    }

    /// Deletes a topic; returns when the broker has agreed.
    pub async fn delete_topic(&self, name: &str) {
        let admin = self.admin();
        let deleted = within("topic deleted", admin.delete_topics(&[name], &options())).await;
        let results = deleted.expect("the broker answers");
        assert!(results.iter().all(Result::is_ok), "cannot delete {name}: {results:?}");
    }

    /// Creates a topic whose name was another's until a moment ago.
    pub async fn recreate_topic(&self, name: &str, partitions: i32) {
        let topic = NewTopic::new(name, partitions, COPIES);
        let admin = self.admin();
        eventually(&format!("{name} created again"), async || {
            let results = admin.create_topics([&topic], &options()).await.ok()?;
            results.iter().all(Result::is_ok).then_some(())
        })
        .await;
    }

    /// Raises a topic's number of partitions.
    pub async fn add_partitions(&self, name: &str, total: usize) {
        let wanted = NewPartitions::new(name, total);
        let admin = self.admin();
        let done = within("partitions added", admin.create_partitions([&wanted], &options()));
        let results = done.await.expect("the broker answers");
        assert!(results.iter().all(Result::is_ok), "cannot extend {name}: {results:?}");
    }

    /// Writes one record and waits for the broker's acknowledgement; its partition and offset.
    pub async fn write(&self, topic: &str, record: &Record) -> (i32, i64) {
        let written = self.write_all(topic, std::slice::from_ref(record)).await;
        written[0]
    }

    /// Writes records in order and waits until all are acknowledged.
    pub async fn write_all(&self, topic: &str, records: &[Record]) -> Vec<(i32, i64)> {
        let mut pending = Vec::with_capacity(records.len());
        for record in records {
            match self.producer.send_result(record.borrowed(topic)) {
                Ok(delivery) => pending.push(delivery),
                Err((error, _)) => panic!("cannot produce to {topic}: {error}"),
            }
        }
        // Not bounded here: a test may have stopped the broker, and the producer has its own limit.
        let reports = join_all(pending).await;
        let acknowledged = |report| match report {
            Ok(Ok(delivery)) => delivery,
            Ok(Err((error, _))) => panic!("cannot produce to {topic}: {error}"),
            Err(_) => panic!("the producer was dropped"),
        };
        let place = |delivery: rdkafka::producer::future_producer::Delivery| (delivery.partition, delivery.offset);
        reports.into_iter().map(acknowledged).map(place).collect()
    }

    /// Everything in a topic, partition by partition.
    pub async fn read_all(&self, topic: &str) -> Vec<Stored> {
        let (bootstrap, topic) = (self.bootstrap.clone(), topic.to_owned());
        blocking(move || read_all(&bootstrap, &topic)).await
    }

    /// Polls until the topic holds at least `count` records.
    pub async fn read_at_least(&self, topic: &str, count: usize) -> Vec<Stored> {
        eventually(&format!("{count} records in {topic}"), async || {
            let records = self.read_all(topic).await;
            (records.len() >= count).then_some(records)
        })
        .await
    }

    /// For each partition: what the group committed (none: `None`) and the log's end.
    pub async fn positions(&self, topic: &str, group: &str, partitions: i32) -> Vec<(Option<i64>, i64)> {
        let (bootstrap, topic) = (self.bootstrap.clone(), topic.to_owned());
        let group = group.to_owned();
        blocking(move || {
            let consumer = consumer(&bootstrap, &group);
            let mut wanted = TopicPartitionList::new();
            wanted.add_partition_range(&topic, 0, partitions - 1);
            let committed = committed(&consumer, &wanted);
            let position = |partition| {
                let offset = committed.find_partition(&topic, partition)?.offset();
                if let Offset::Offset(offset) = offset { Some(offset) } else { None }
            };
            let end = |partition| consumer.fetch_watermarks(&topic, partition, REQUEST_TIMEOUT).expect("a leader").1;
            (0..partitions).map(|partition| (position(partition), end(partition))).collect()
        })
        .await
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        config(&self.bootstrap).create().expect("a valid client configuration")
    }
}

/// One record to be written. Without a partition the key decides.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub partition: Option<i32>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since the epoch; `None`: now.
    pub timestamp: Option<i64>,
}

impl Record {
    pub fn new(value: impl Into<Vec<u8>>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }

    pub fn key(mut self, key: &str) -> Self {
        self.key = Some(key.as_bytes().to_vec());
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), Some(value.as_bytes().to_vec())));
        self
    }

    fn borrowed<'a>(&'a self, topic: &'a str) -> FutureRecord<'a, [u8], [u8]> {
        let mut record = FutureRecord::to(topic);
        record.partition = self.partition;
        record.key = self.key.as_deref();
        record.payload = self.value.as_deref();
        record.timestamp = self.timestamp;
        if !self.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(self.headers.len());
            let all = self
                .headers
                .iter()
                .fold(headers, |headers, (key, value)| headers.insert(Header { key, value: value.as_ref() }));
            record.headers = Some(all);
        }
        record
    }
}

/// A record as it stands in a log.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since the epoch.
    pub timestamp: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Stored {
    /// The text of the last header of that name.
    pub fn header(&self, name: &str) -> Option<String> {
        let (_, value) = self.headers.iter().rev().find(|(key, _)| key == name)?;
        Some(String::from_utf8_lossy(value.as_deref()?).into_owned())
    }
}

/// The topics and the group of one test.
#[derive(Clone)]
pub struct Feed {
    pub kafka: Kafka,
    pub topic: String,
    pub dead_letter_topic: String,
    pub group: String,
    pub partitions: i32,
}

impl Feed {
    /// Fresh topics on the shared broker.
    pub async fn new(partitions: i32) -> Self {
        Self::on(&Kafka::shared(), partitions).await
    }

    /// Fresh topics on that cluster.
    pub async fn on(kafka: &Kafka, partitions: i32) -> Self {
        let feed = Self::named(kafka, partitions);
        feed.create().await;
        feed
    }

    /// Names only: the topics do not exist yet.
    pub fn named(kafka: &Kafka, partitions: i32) -> Self {
        let id = Uuid::new_v4().simple();
        Self {
            kafka: kafka.clone(),
            topic: format!("events-{id}"),
            dead_letter_topic: format!("events-{id}.dlq"),
            group: format!("notifier-{id}"),
            partitions,
        }
    }

    /// Creates both topics.
    pub async fn create(&self) {
        self.kafka.create_topic(&self.topic, self.partitions, &[]).await;
        self.kafka.create_topic(&self.dead_letter_topic, 1, &[]).await;
    }

    /// Writes one event in its protobuf form, on the partition of its user.
    pub async fn send(&self, event: &Event) -> (i32, i64) {
        self.kafka.write(&self.topic, &self.record(event)).await
    }

    /// Writes events in order.
    pub async fn send_all(&self, events: &[Event]) {
        let records: Vec<_> = events.iter().map(|event| self.record(event)).collect();
        self.kafka.write_all(&self.topic, &records).await;
    }

    /// Writes any record to the events topic.
    pub async fn put(&self, record: &Record) -> (i32, i64) {
        self.kafka.write(&self.topic, record).await
    }

    /// Writes events in a transaction of their own, which is committed or aborted.
    pub async fn transaction(&self, events: &[Event], commit: bool) {
        let records: Vec<_> = events.iter().map(|event| self.record(event)).collect();
        let (bootstrap, topic) = (self.kafka.bootstrap.clone(), self.topic.clone());
        blocking(move || {
            let producer: BaseProducer = config(&bootstrap)
                .set("transactional.id", Uuid::new_v4().to_string())
                .create()
                .expect("a valid client configuration");
            producer.init_transactions(REQUEST_TIMEOUT).expect("the coordinator answers");
            producer.begin_transaction().expect("no other transaction");
            for record in &records {
                let mut written = BaseRecord::<[u8], [u8]>::to(&topic);
                written.partition = record.partition;
                written.payload = record.value.as_deref();
                assert!(producer.send(written).is_ok(), "the queue is not full");
            }
            // In both cases the records reach the log first.
            producer.flush(REQUEST_TIMEOUT).expect("the broker answers");
            let ended = if commit {
                producer.commit_transaction(REQUEST_TIMEOUT)
            } else {
                producer.abort_transaction(REQUEST_TIMEOUT)
            };
            ended.expect("the coordinator answers");
        })
        .await;
    }

    /// Waits for dead letters.
    pub async fn dead_letters(&self, count: usize) -> Vec<Stored> {
        self.kafka.read_at_least(&self.dead_letter_topic, count).await
    }

    /// Waits until the group's committed offsets are the ends of the logs.
    pub async fn all_committed(&self) {
        self.all_committed_within(DEADLINE).await;
    }

    /// As [`Self::all_committed`], with a deadline of its own.
    pub async fn all_committed_within(&self, deadline: Duration) {
        eventually_within(deadline, "all offsets committed", async || {
            let all = self.kafka.positions(&self.topic, &self.group, self.partitions).await;
            let done = |(position, end): &(Option<i64>, i64)| position.unwrap_or(0) == *end;
            all.iter().all(done).then_some(())
        })
        .await;
    }

    /// The partition on which this feed puts a user's events.
    pub fn partition_of(&self, user: &str) -> i32 {
        let sum: u32 = user.bytes().fold(7, |sum, byte| sum.wrapping_mul(31) + u32::from(byte));
        i32::try_from(sum % self.partitions.unsigned_abs()).expect("a small number")
    }

    fn record(&self, event: &Event) -> Record {
        let partition = Some(self.partition_of(&event.user));
        Record { partition, ..Record::new(event.protobuf()).key(&event.user) }
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(REQUEST_TIMEOUT))
}

fn config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("reconnect.backoff.max.ms", "500");
    config
}

fn producer(bootstrap: &str, codec: &str) -> FutureProducer {
    config(bootstrap)
        .set("enable.idempotence", "true")
        .set("linger.ms", "1")
        .set("message.timeout.ms", "120000")
        .set("message.max.bytes", RECORD_BYTES_MAX.to_string())
        .set("compression.type", codec)
        .create()
        .expect("a valid client configuration")
}

fn consumer(bootstrap: &str, group: &str) -> BaseConsumer {
    config(bootstrap)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("fetch.message.max.bytes", RECORD_BYTES_MAX.to_string())
        .create()
        .expect("a valid client configuration")
}

/// What the group has committed. A cluster that has just started has no coordinator at first.
fn committed(consumer: &BaseConsumer, wanted: &TopicPartitionList) -> TopicPartitionList {
    let started = Instant::now();
    loop {
        match consumer.committed_offsets(wanted.clone(), REQUEST_TIMEOUT) {
            Ok(committed) => return committed,
            Err(error) => {
                assert!(started.elapsed() < DEADLINE, "cannot read the group's offsets: {error}")
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn read_all(bootstrap: &str, topic: &str) -> Vec<Stored> {
    let consumer = consumer(bootstrap, "reader");
    let metadata = consumer.fetch_metadata(Some(topic), REQUEST_TIMEOUT).expect("the broker");
    let mut wanted = TopicPartitionList::new();
    let mut expected = 0;
    for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        let ends = consumer.fetch_watermarks(topic, partition.id(), REQUEST_TIMEOUT);
        let (low, high) = ends.expect("a leader");
        if high > low {
            wanted.add_partition_offset(topic, partition.id(), Offset::Beginning).expect("a valid offset");
            expected += usize::try_from(high - low).expect("a small log");
        }
    }
    consumer.assign(&wanted).expect("partitions that exist");
    let mut records = Vec::with_capacity(expected);
    while records.len() < expected {
        let message = match consumer.poll(REQUEST_TIMEOUT) {
            Some(Ok(message)) => message,
            Some(Err(error)) => panic!("cannot read {topic}: {error}"),
            None => panic!("{topic}: {} of {expected} records", records.len()),
        };
        let headers = message.headers().map(|headers| {
            let owned = |header: Header<'_, &[u8]>| (header.key.to_owned(), header.value.map(<[u8]>::to_vec));
            headers.iter().map(owned).collect()
        });
        records.push(Stored {
            partition: message.partition(),
            offset: message.offset(),
            timestamp: message.timestamp().to_millis().unwrap_or_default(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.unwrap_or_default(),
        });
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    records
}
