//! Writing to Kafka: every event acknowledged by all in-sync replicas before the request is answered, within bounds
//! and within a deadline.

use std::{sync::Arc, time::Duration};

use rdkafka::{
    error::{KafkaError, KafkaResult},
    message::{Header, OwnedHeaders},
};
use serde::Serialize;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError},
    time::{Instant, timeout_at},
};
use utoipa::ToSchema;

use super::{Config, batch::Item, metric, trace_context::TraceContext};
use crate::{
    ids::NotificationId,
    kafka::{self, Delivery, Producer, Record},
};

/// What became of one event of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// All in-sync replicas have it.
    Written,
    /// Kafka did not answer in time: it may have it or not.
    Unconfirmed,
    /// It was not handed to Kafka.
    NotWritten,
    /// Kafka refuses a record of its size, now and later.
    TooLarge,
}

impl Outcome {
    pub(super) const ALL: [Self; 4] = [Self::Written, Self::Unconfirmed, Self::NotWritten, Self::TooLarge];

    /// The metric's label.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Unconfirmed => "unconfirmed",
            Self::NotWritten => "not_written",
            Self::TooLarge => "too_large",
        }
    }
}

/// One event of a request and what became of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ItemResult {
    /// The event's id: to repeat it, send it with this one.
    #[schema(value_type = String, example = "0199b1c2-6f3e-7d51-9c2a-4b0d8e7f6a51")]
    #[serde(serialize_with = "as_text")]
    id: NotificationId,
    state: Outcome,
}

fn as_text<S: serde::Serializer>(id: &NotificationId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(id)
}

impl ItemResult {
    pub(super) fn id(&self) -> &NotificationId {
        &self.id
    }

    pub(super) fn state(&self) -> Outcome {
        self.state
    }
}

/// Writes events to one topic.
pub(super) struct Publisher {
    producer: Producer,
    topic: String,
    deadline: Duration,
}

impl Publisher {
    pub(super) fn new(config: &Config) -> Result<Self, KafkaError> {
        let mut properties = config.producer.clone();
        properties
            // It takes up to some seconds longer to notice; so the deadline is held here too.
            .set("message.timeout.ms", config.publish_deadline.as_millis().to_string())
            // What is too large for the topic is the topic's decision.
            .set("message.max.bytes", "100000000");
        let producer = Producer::new(&properties)?;
        Ok(Self { producer, topic: config.topic.clone(), deadline: config.publish_deadline })
    }

    pub(super) fn producer(&self) -> &Producer {
        &self.producer
    }

    /// Hands the events over to Kafka in their order, and waits for its word on each until the deadline. What it has
    /// not said by then is [`Pending`].
    pub(super) async fn write(&self, items: Vec<Item>, trace: &TraceContext) -> (Vec<ItemResult>, Pending) {
        let deadline = Instant::now() + self.deadline;
        let mut headers = OwnedHeaders::new();
        for (key, value) in trace.headers() {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        // All are handed over before the first is waited for: they share batches.
        let mut attempts = Vec::with_capacity(items.len());
        let mut is_refused = false;
        for item in &items {
            // Behind one that was not taken nothing is handed over, or a user's later event would come before it.
            let attempt = (!is_refused).then(|| {
                let record = Record::to(&self.topic).key(&*item.user).payload(&item.value);
                self.producer.send(record.headers(headers.clone()))
            });
            is_refused |= !matches!(attempt, Some(Ok(_)));
            attempts.push(attempt);
        }
        let mut results = Vec::with_capacity(items.len());
        let mut pending = Vec::new();
        for (item, attempt) in items.into_iter().zip(attempts) {
            let state = match attempt {
                None => Outcome::NotWritten,
                Some(Ok(mut delivery)) => match timeout_at(deadline, &mut delivery).await {
                    Ok(report) => reported(report),
                    Err(_) => {
                        pending.push(delivery);
                        Outcome::Unconfirmed
                    }
                },
                Some(Err(error)) => {
                    tracing::warn!(%error, "an event was not handed to Kafka");
                    if kafka::is_refused(&error) { Outcome::TooLarge } else { Outcome::NotWritten }
                }
            };
            metric::published(state);
            results.push(ItemResult { id: item.id, state });
        }
        (results, Pending(pending))
    }
}

/// Events that librdkafka still holds, or whose report is late.
pub(super) struct Pending(Vec<Delivery>);

impl Pending {
    /// Resolves when it has let go of all.
    pub(super) async fn settled(self) {
        for delivery in self.0 {
            let _ = delivery.await;
        }
    }
}

fn reported(report: KafkaResult<()>) -> Outcome {
    match report {
        Ok(()) => Outcome::Written,
        Err(error) => {
            tracing::debug!(%error, "an event was not confirmed");
            if kafka::is_refused(&error) { Outcome::TooLarge } else { Outcome::Unconfirmed }
        }
    }
}

/// What requests may hold at a time, all together: bytes of bodies from before they are read, and events from before
/// they are written, both until Kafka has answered.
pub(super) struct InFlight {
    bytes: Arc<Semaphore>,
    events: Arc<Semaphore>,
    events_max: u32,
}

/// There is no room.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// At the moment.
    Full,
    /// Ever again: the node is going away.
    Closed,
}

impl From<TryAcquireError> for NoRoom {
    fn from(error: TryAcquireError) -> Self {
        match error {
            TryAcquireError::NoPermits => Self::Full,
            TryAcquireError::Closed => Self::Closed,
        }
    }
}

impl InFlight {
    pub(super) fn new(config: &Config) -> Self {
        // One request has room in any case.
        let bytes = config.in_flight_bytes.max(config.request_bytes_max).min(u32::MAX as usize);
        let events = config.in_flight_events.max(super::batch::EVENTS_MAX);
        Self {
            bytes: Arc::new(Semaphore::new(bytes)),
            events: Arc::new(Semaphore::new(events)),
            events_max: u32::try_from(events).expect("a number of events"),
        }
    }

    pub(super) fn bytes(&self, count: usize) -> Result<OwnedSemaphorePermit, NoRoom> {
        Ok(self.bytes.clone().try_acquire_many_owned(u32::try_from(count).unwrap_or(u32::MAX))?)
    }

    pub(super) fn events(&self, count: usize) -> Result<OwnedSemaphorePermit, NoRoom> {
        Ok(self.events.clone().try_acquire_many_owned(u32::try_from(count).unwrap_or(u32::MAX))?)
    }

    /// Takes no further request from here on.
    pub(super) fn close(&self) {
        self.bytes.close();
    }

    /// Resolves when Kafka has answered for every event. Cancel safe.
    pub(super) async fn settled(&self) {
        let all = self.events.acquire_many(self.events_max).await;
        all.expect("events are never closed").forget();
        // Whose body was still being read does not begin to write either.
        self.events.close();
    }
}
