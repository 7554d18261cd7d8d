//! librdkafka clients with the properties that the promises depend on, and what the operator adds to them.

use std::time::Duration;

use rdkafka::{
    ClientConfig, ClientContext,
    client::Client,
    config::RDKafkaLogLevel,
    consumer::ConsumerContext,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};

use crate::config;

mod producer;

pub use producer::{Delivery, Producer, Record};

/// Logs what librdkafka says, as far as it is news: that a broker cannot be reached is said once, by whoever
/// needs it, and not at each of its attempts.
#[derive(Clone, Default)]
pub struct Log;

/// Client errors after which nothing works: the process must end.
pub type Fatal = tokio::sync::mpsc::UnboundedSender<String>;

impl ClientContext for Log {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka client");
    }
}

impl ConsumerContext for Log {}

/// Why a client is of no use any more, if so. Callbacks cannot tell: the event of a fatal error carries the code of
/// whatever led to it.
#[must_use]
pub fn fatal_error<C: ClientContext>(client: &Client<C>) -> Option<String> {
    let (code, reason) = client.fatal_error()?;
    Some(format!("kafka client failed: {reason} ({code})"))
}

/// Resolves, with the reason, when the producer is of no use any more; it looks once a second. Cancel safe.
pub async fn failure(producer: &Producer) -> String {
    loop {
        if let Some(failure) = fatal_error(producer.client()) {
            return failure;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Does the work of a producer until it is done, or the producer is of no use any more, which is reported. Cancel safe if
/// the work is.
pub async fn work(producer: &Producer, fatal: &Fatal, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        failure = failure(producer) => drop(fatal.send(failure)),
    }
}

/// Waits for Kafka's word on a record that was handed over. Cancel safe.
///
/// # Errors
/// When the record was not taken, or is not in its topic as far as is known.
pub async fn confirmed(attempt: KafkaResult<Delivery>) -> KafkaResult<()> {
    attempt?.await
}

/// Whether the topic does not take that record, or the batch that it was in, now and later.
#[must_use]
pub fn is_refused(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{InvalidMessageSize, InvalidRecord, MessageSizeTooLarge};
    matches!(error.rdkafka_error_code(), Some(MessageSizeTooLarge | InvalidMessageSize | InvalidRecord))
}

/// For contexts with more to do than [`Log`].
pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    let is_connection = matches!(facility, "FAIL" | "ERROR");
    // `kafka.properties` are for consumers and producers alike.
    let is_for_others = facility == "CONFWARN" && message.contains("will be ignored by this");
    if (level as i32) <= (RDKafkaLogLevel::Warning as i32) && !is_connection && !is_for_others {
        tracing::warn!(facility, "{message}");
    } else {
        tracing::debug!(facility, "{message}");
    }
}

/// Test builds only: the client reports an error that librdkafka calls fatal.
#[cfg(feature = "faults")]
#[expect(unsafe_code, reason = "librdkafka's function for tests has no safe name")]
pub(crate) fn fail<C: ClientContext>(client: &Client<C>) {
    let code = rdkafka::bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    // SAFETY: the client lives as long as the reference, and librdkafka copies the text.
    unsafe { rdkafka::bindings::rd_kafka_test_fatal_error(client.native_ptr(), code, c"as planned".as_ptr()) };
}

/// A client with `defaults`, which the operator's properties may change.
fn client(kafka: &config::Kafka, defaults: &[(&str, &str)]) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("client.id", "notifier");
    for (name, value) in defaults {
        client.set(*name, *value);
    }
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
    let mut client = client(kafka, &[]);
    client.set("enable.idempotence", "true").set("acks", "all");
    client
}

/// A consumer of committed records that never commits or stores an offset by itself.
#[must_use]
pub fn consumer_config(kafka: &config::Kafka) -> ClientConfig {
    let defaults = [
        // With split queues this counts per partition; the default of 64 MiB would be the node's memory.
        ("queued.max.messages.kbytes", "4096"),
        ("fetch.queue.backoff.ms", "20"),
        ("fetch.message.max.bytes", "524288"),
    ];
    let mut client = client(kafka, &defaults);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_promises_depend_on_is_set_whatever_the_operator_sets() {
        let mut kafka = config::Kafka { brokers: "broker:9092".into(), group: "g".into(), ..config::Kafka::default() };
        let consumer = [
            ("bootstrap.servers", "broker:9092"),
            ("group.id", "g"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("isolation.level", "read_committed"),
        ];
        let producer = [("bootstrap.servers", "broker:9092"), ("enable.idempotence", "true"), ("acks", "all")];
        for (name, _) in consumer.iter().chain(&producer) {
            kafka.properties.set(*name, "another");
        }
        kafka.properties.set("security.protocol", "SASL_SSL");
        for (client, expected) in [(consumer_config(&kafka), &consumer[..]), (producer_config(&kafka), &producer[..])] {
            for (name, value) in expected {
                assert_eq!(client.get(name), Some(*value), "{name}");
            }
            assert_eq!(client.get("security.protocol"), Some("SASL_SSL"));
        }
    }
}
