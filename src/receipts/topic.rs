//! The topic that receipts go to: in their order, each until Kafka has it or refuses it for good.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use prost::Message as _;
use rdkafka::{
    ClientConfig,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};

use super::{Config, Outcome, metric};
use crate::{
    backoff::Backoff,
    kafka::{self, Producer, Record},
    proto::{NotificationDelivered, NotificationState},
    receipt::Receipt,
    state::State,
    wire::protobuf_time,
};

/// Receipts that are under way at a time: they share batches, and bound what is held twice.
pub(super) const AT_ONCE: usize = 1000;

pub(super) struct Topic {
    producer: Producer,
    name: String,
    /// It did not take receipts when it was last asked to, and that was said.
    is_troubled: AtomicBool,
}

impl Topic {
    pub(super) fn new(config: &Config) -> KafkaResult<Self> {
        let producer = Producer::new(&properties(&config.producer))?;
        Ok(Self { producer, name: config.topic.clone(), is_troubled: AtomicBool::new(false) })
    }

    pub(super) fn producer(&self) -> &Producer {
        &self.producer
    }

    /// Returns when Kafka has confirmed each, or refused it for good. Dropped on its way, it leaves some written and
    /// some not.
    pub(super) async fn write(&self, receipts: &[Receipt]) {
        for together in receipts.chunks(AT_ONCE) {
            self.write_together(together.iter().collect()).await;
        }
    }

    async fn write_together(&self, mut left: Vec<&Receipt>) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        let mut at_once = AT_ONCE;
        while !left.is_empty() {
            let tried = left.len().min(at_once);
            let results = self.attempt(&left[..tried]).await;
            let behind = left.split_off(results.len());
            let before = left.len() + behind.len();
            let mut trouble = None;
            left = left
                .into_iter()
                .zip(results)
                .filter_map(|(receipt, result)| match result {
                    Ok(()) => {
                        metric::receipt(receipt.state, Outcome::Written);
                        None
                    }
                    Err(error) if kafka::is_refused(&error) && tried == 1 => {
                        tracing::error!(%error, topic = self.name, id = %receipt.id, "kafka refuses a receipt: it is left out");
                        metric::receipt(receipt.state, Outcome::Failed);
                        None
                    }
                    // A batch is refused as a whole.
                    Err(error) if kafka::is_refused(&error) => {
                        at_once = (tried / 2).max(1);
                        Some(receipt)
                    }
                    Err(error) => {
                        trouble.get_or_insert(error);
                        Some(receipt)
                    }
                })
                .chain(behind)
                .collect();
            if left.len() < before {
                backoff.reset();
            }
            match trouble {
                Some(error) => {
                    self.note(&error);
                    tokio::time::sleep(backoff.next_wait()).await;
                }
                None => self.is_troubled.store(false, Ordering::Relaxed),
            }
        }
    }

    /// Hands them over in their order, up to the first one that is not taken, and waits for Kafka's word on each.
    async fn attempt(&self, receipts: &[&Receipt]) -> Vec<KafkaResult<()>> {
        let mut attempts = Vec::with_capacity(receipts.len());
        for receipt in receipts {
            let value = message(receipt).encode_to_vec();
            let record = Record::<str, [u8]>::to(&self.name).key(&receipt.user).payload(&value);
            let attempt = self.producer.send(record);
            let is_taken = attempt.is_ok();
            attempts.push(attempt);
            if !is_taken {
                break;
            }
        }
        let mut results = Vec::with_capacity(attempts.len());
        for attempt in attempts {
            results.push(kafka::confirmed(attempt).await);
        }
        results
    }

    /// Said once for as long as it lasts.
    fn note(&self, error: &KafkaError) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) {
            return;
        }
        if self.is_troubled.swap(true, Ordering::Relaxed) {
            tracing::debug!(%error, topic = self.name, "kafka does not take receipts");
        } else {
            tracing::warn!(%error, topic = self.name, "kafka does not take receipts: they wait in the store until it does");
        }
    }
}

fn properties(producer: &ClientConfig) -> ClientConfig {
    let mut properties = producer.clone();
    // What librdkafka gives up may be in Kafka all the same: writing it again would be a second receipt. So it never
    // gives up.
    properties.remove("delivery.timeout.ms");
    properties.set("message.timeout.ms", "0");
    // That the topic is missing should be said soon; who says it tries again.
    properties.set("topic.metadata.propagation.max.ms", "2000");
    properties
}

fn message(receipt: &Receipt) -> NotificationDelivered {
    NotificationDelivered {
        user_id: receipt.user.to_string(),
        notification_id: receipt.id.to_string(),
        session_id: receipt.session.map(|session| session.to_string()).unwrap_or_default(),
        sequence: receipt.seq.unwrap_or_default(),
        state: state(receipt.state).into(),
        at: Some(protobuf_time(receipt.at)),
        reason: receipt.reason.map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
    }
}

fn state(state: State) -> NotificationState {
    match state {
        State::Pending => NotificationState::Pending,
        State::Active => NotificationState::Active,
        State::Stale => NotificationState::Stale,
        State::Sent => NotificationState::Sent,
        State::Failed => NotificationState::Failed,
        State::Deleted => NotificationState::Deleted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn librdkafka_never_gives_a_receipt_up_whatever_the_operator_sets() {
        let mut producer = ClientConfig::new();
        producer.set("message.timeout.ms", "1000").set("delivery.timeout.ms", "1000").set("client.id", "n");
        let properties = properties(&producer);
        assert_eq!(properties.get("message.timeout.ms"), Some("0"));
        assert_eq!(properties.get("delivery.timeout.ms"), None);
        assert_eq!(properties.get("client.id"), Some("n"));
    }
}
