//! librdkafka clients with the properties that the promises depend on, and what the operator adds to them.

use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    consumer::ConsumerContext,
    error::{KafkaError, RDKafkaErrorCode},
    producer::FutureProducer,
};

use crate::config;

/// Logs what librdkafka says, as far as it is news: that a broker cannot be reached is said once, by whoever
/// needs it, and not at each of its attempts.
#[derive(Clone, Default)]
pub struct Log {
    /// Who hears of an error after which the client is of no use any more.
    pub fatal: Option<Fatal>,
}

/// Client errors after which nothing works: the process must end.
pub type Fatal = tokio::sync::mpsc::UnboundedSender<String>;

impl ClientContext for Log {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match &self.fatal {
            Some(fatal) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) => {
                let _ = fatal.send(format!("kafka client failed: {reason}"));
            }
            _ => tracing::debug!(%error, reason, "kafka client"),
        }
    }
}

impl ConsumerContext for Log {}

/// A producer whose answers can be awaited.
pub type Producer = FutureProducer<Log>;

/// For contexts with more to do than [`Log`].
pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    let is_connection = matches!(facility, "FAIL" | "ERROR");
    if (level as i32) <= (RDKafkaLogLevel::Warning as i32) && !is_connection {
        tracing::warn!(facility, "{message}");
    } else {
        tracing::debug!(facility, "{message}");
    }
}

fn client(kafka: &config::Kafka) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("client.id", "notifier");
    for (name, value) in kafka.properties.iter() {
        client.set(name, value);
    }
    client.set("bootstrap.servers", &kafka.brokers);
    client.set_log_level(RDKafkaLogLevel::Warning);
    client
}

/// An idempotent producer: acknowledged by all in-sync replicas, no duplicates, no reordering.
#[must_use]
pub fn producer_config(kafka: &config::Kafka) -> ClientConfig {
    let mut client = client(kafka);
    client.set("enable.idempotence", "true").set("acks", "all");
    client
}

/// A consumer of committed records that never commits or stores an offset by itself.
#[must_use]
pub fn consumer_config(kafka: &config::Kafka) -> ClientConfig {
    let mut client = client(kafka);
    // With split queues this counts per partition; the default of 64 MiB would be the node's memory.
    client.set("queued.max.messages.kbytes", "4096");
    client.set("fetch.queue.backoff.ms", "20");
    client.set("fetch.message.max.bytes", "524288");
    for (name, value) in kafka.properties.iter() {
        client.set(name, value);
    }
    client
        .set("group.id", &kafka.group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // A position that the log does not have is an event that must be seen, not a silent jump.
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("statistics.interval.ms", "1000");
    client
}
