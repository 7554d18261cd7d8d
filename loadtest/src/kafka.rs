//! Kafka as the generator needs it: a producer that counts its delivery reports, and fresh topics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
use rdkafka::{ClientContext, util::Timeout};
use rustc_hash::FxBuildHasher;
use std::hash::BuildHasher as _;

use crate::latency::histogram;
use crate::workload::micros;

/// How long an administrative request or the last delivery reports may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where events are written.
#[derive(Debug, Clone)]
pub struct Topic {
    /// `host:port`, comma-separated.
    pub brokers: String,
    pub name: String,
    /// Where events are written; empty: to all partitions, by their key.
    pub partitions: Vec<i32>,
}

/// Writes records to one topic, in order per key, and counts what the broker confirmed.
pub struct Producer {
    inner: BaseProducer<Reports>,
    topic: String,
    partitions: Vec<i32>,
    sent: u64,
    /// When the broker was given something to confirm, having confirmed all before; as all times here, on the clock of
    /// `workload::micros`.
    waits_since: u64,
}

struct Reports {
    confirmed: AtomicU64,
    failed: AtomicU64,
    /// When the last confirmation was seen.
    last: AtomicU64,
    /// The longest that one took so far.
    slowest: AtomicU64,
    /// From when each record was handed over until its confirmation was seen, in microseconds.
    times: Mutex<Histogram<u64>>,
}

impl Topic {
    /// Creates it.
    ///
    /// # Errors
    ///
    /// When the broker refuses or does not answer; also when the topic exists.
    pub fn create(&self, partitions: i32) -> Result<()> {
        let client: AdminClient<DefaultClientContext> = self.client().create()?;
        let topic = NewTopic::new(&self.name, partitions, TopicReplication::Fixed(1));
        let options = AdminOptions::new().operation_timeout(Some(Timeout::After(PATIENCE)));
        let results = futures_executor::block_on(client.create_topics([&topic], &options))
            .context(format!("creating topic {} at {} failed", self.name, self.brokers))?;
        for result in results {
            result.map_err(|(name, code)| anyhow::anyhow!("creating topic {name}: {code}"))?;
        }
        Ok(())
    }

    /// Removes it with everything in it.
    pub fn delete(&self) -> Result<()> {
        let client: AdminClient<DefaultClientContext> = self.client().create()?;
        let options = AdminOptions::new().operation_timeout(Some(Timeout::After(PATIENCE)));
        let results = futures_executor::block_on(client.delete_topics(&[&self.name], &options))?;
        for result in results {
            result.map_err(|(name, code)| anyhow::anyhow!("deleting topic {name}: {code}"))?;
        }
        Ok(())
    }

    /// A producer that holds records back for at most `linger` to send them in batches.
    ///
    /// # Errors
    ///
    /// When the topic is not there.
    pub fn producer(&self, linger: Duration) -> Result<Producer> {
        let inner: BaseProducer<Reports> = self
            .client()
            .set("acks", "all")
            // Keeps each partition's order over retries, which the clients' check relies on.
            .set("enable.idempotence", "true")
            .set("linger.ms", linger.as_millis().to_string())
            .set("queue.buffering.max.messages", "1000000")
            .set("queue.buffering.max.kbytes", "1048576")
            .set("message.timeout.ms", PATIENCE.as_millis().to_string())
            .create_with_context(Reports::new()?)?;
        let metadata = inner
            .client()
            .fetch_metadata(Some(&self.name), PATIENCE)
            .with_context(|| format!("no answer from Kafka at {}", self.brokers))?;
        let known = metadata.topics().iter().find(|t| t.name() == self.name);
        ensure!(
            known.is_some_and(|t| t.error().is_none() && !t.partitions().is_empty()),
            "topic {} is not there: create it first",
            self.name
        );
        Ok(Producer { inner, topic: self.name.clone(), partitions: self.partitions.clone(), sent: 0, waits_since: 0 })
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config
    }
}

impl Producer {
    /// Hands a record over, with the present time as its timestamp; waits while the queue is full.
    pub fn send(&mut self, key: &str, value: &[u8]) -> Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock is before 1970")?;
        let handed = micros();
        let record = BaseRecord::with_opaque_to(&self.topic, handed as usize);
        let mut record = record.key(key).payload(value).timestamp(now.as_millis() as i64);
        if !self.partitions.is_empty() {
            // All of a key in one, as Kafka's own choice would be.
            let hash = FxBuildHasher.hash_one(key);
            record = record.partition(self.partitions[hash as usize % self.partitions.len()]);
        }
        let deadline = Instant::now() + PATIENCE;
        while let Err((error, back)) = self.inner.send(record) {
            let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
            if error != full || Instant::now() > deadline {
                return Err(error).context("the producer refused a record");
            }
            record = back;
            self.inner.poll(Duration::from_millis(10));
        }
        if self.unconfirmed() == 0 {
            self.waits_since = handed;
        }
        self.sent += 1;
        // A record stays in memory until its report is taken, and one look takes those of one batch.
        self.inner.poll(Duration::ZERO);
        Ok(())
    }

    /// Takes in confirmations for that long.
    pub fn wait(&self, length: Duration) {
        self.inner.poll(length);
    }

    /// Records that were handed over and are not confirmed.
    pub fn unconfirmed(&self) -> u64 {
        self.sent.saturating_sub(self.inner.context().confirmed.load(Ordering::Relaxed))
    }

    /// How long the broker keeps records waiting: the longest that a confirmation has taken, or the time since the last
    /// one while some are due.
    pub fn held_up(&self) -> Duration {
        let reports = self.inner.context();
        let silence = match self.unconfirmed() {
            0 => 0,
            _ => micros().saturating_sub(reports.last.load(Ordering::Relaxed).max(self.waits_since)),
        };
        Duration::from_micros(silence.max(reports.slowest.load(Ordering::Relaxed)))
    }

    /// From when each record was handed over until the broker had confirmed it, in microseconds.
    pub fn confirmation_times(&self) -> Histogram<u64> {
        self.inner.context().times.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the broker has confirmed every record.
    ///
    /// # Errors
    ///
    /// When some are not confirmed in time: then nothing measured with them can be trusted.
    pub fn finish(&self) -> Result<()> {
        self.inner.flush(PATIENCE).context("records not flushed")?;
        let reports = self.inner.context();
        let confirmed = reports.confirmed.load(Ordering::Relaxed);
        let failed = reports.failed.load(Ordering::Relaxed);
        if confirmed != self.sent {
            bail!("Kafka confirmed {confirmed} of {} records, refused {failed}", self.sent);
        }
        Ok(())
    }
}

impl Reports {
    fn new() -> Result<Self> {
        let [confirmed, failed, last, slowest] = [0; 4].map(AtomicU64::new);
        Ok(Self { confirmed, failed, last, slowest, times: Mutex::new(histogram()?) })
    }
}

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    /// When the record was handed over.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, handed: usize) {
        if result.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let now = micros();
        let time = now.saturating_sub(handed as u64);
        self.confirmed.fetch_add(1, Ordering::Relaxed);
        self.last.store(now, Ordering::Relaxed);
        self.slowest.fetch_max(time, Ordering::Relaxed);
        self.times.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(time);
    }
}
