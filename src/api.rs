//! The HTTP API for services: events in, by `POST /v1/events`, users' logs to read, and the cluster to look at. Its routes are served on the
//! clients' port by the edge, of which it knows nothing but how to say that a caller has shown who it is; nor does it
//! know sessions.

mod batch;
pub mod cluster;
mod events;
mod idempotency;
mod notification;
mod notifications;
mod publish;
mod schema;
mod trace_context;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use rdkafka::{ClientConfig, error::KafkaError};
use tokio::sync::Semaphore;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::publish::{InFlight, Publisher};
use crate::{
    auth::Authenticator,
    event::{Options, UnixMillis, unix_millis_now},
    ingest::decode::Decoder,
    kafka::{self, Fatal},
    shard::Shards,
    store::Store,
};

/// How the API behaves.
#[derive(Clone)]
pub struct Config {
    /// Properties of its producer (`kafka::producer_config`).
    pub producer: ClientConfig,
    /// Where events go.
    pub topic: String,
    /// The longest payload that is delivered, in bytes.
    pub payload_bytes_max: usize,
    /// The longest request body, in bytes.
    pub request_bytes_max: usize,
    /// How long a caller may take to send its body.
    pub body_deadline: Duration,
    /// How long Kafka may take to acknowledge an event.
    pub publish_deadline: Duration,
    /// Bytes of bodies that are held at a time.
    pub in_flight_bytes: usize,
    /// Events that are handed to Kafka and not acknowledged, at a time.
    pub in_flight_events: usize,
}

/// A running API.
pub struct Api(Arc<Inner>);

/// What all requests share.
struct Inner {
    config: Config,
    authenticator: Arc<Authenticator>,
    decoder: Decoder,
    publisher: Arc<Publisher>,
    in_flight: InFlight,
    store: Arc<dyn Store>,
    shards: Shards,
    /// Sessions from before are lost.
    started_at: UnixMillis,
    /// Cancellations under way. Each stands alone among the writes of its user's lane, and must not hold them up.
    cancellations: Semaphore,
    cluster: OnceLock<Arc<dyn cluster::Observed>>,
}

impl Api {
    /// Starts its producer; whether a broker answers is seen with the first event. A producer that is of no use any
    /// more is reported to `fatal`.
    ///
    /// # Errors
    /// When librdkafka refuses a property.
    pub fn start(
        config: Config,
        authenticator: Arc<Authenticator>,
        (store, shards): (Arc<dyn Store>, Shards),
        fatal: Fatal,
    ) -> Result<Self, KafkaError> {
        metric::describe();
        // Only whether an event is accepted matters here: options by type are ingest's, and ids are made here.
        let decoder = Decoder::new("", &config.topic, config.payload_bytes_max, Arc::new(|_| Options::default()));
        let publisher = Arc::new(Publisher::new(&config)?);
        let producer = publisher.producer().clone();
        tokio::spawn(async move {
            tokio::select! {
                failure = kafka::failure(&producer) => drop(fatal.send(failure)),
                () = fatal.closed() => {}
            }
        });
        let in_flight = InFlight::new(&config);
        Ok(Self(Arc::new(Inner {
            config,
            authenticator,
            decoder,
            publisher,
            in_flight,
            store,
            shards,
            started_at: unix_millis_now(),
            cancellations: Semaphore::new(notification::CANCELLATIONS_MAX),
            cluster: OnceLock::new(),
        })))
    }

    /// Its routes and what they say of themselves.
    #[must_use]
    pub fn routes(&self) -> OpenApiRouter {
        OpenApiRouter::new()
            .routes(routes!(events::publish))
            .routes(routes!(notifications::read))
            .routes(routes!(notification::account, notification::cancel))
            .routes(routes!(cluster::look))
            .with_state(self.0.clone())
    }

    /// The cluster is there to be looked at; until then it is not.
    pub fn observe(&self, cluster: Arc<dyn cluster::Observed>) {
        let _ = self.0.cluster.set(cluster);
    }

    /// From here on requests are refused; those under way go on.
    pub fn refuse(&self) {
        self.0.in_flight.close();
    }

    /// Resolves when no event is under way to Kafka. Cancel safe.
    pub async fn settled(&self) {
        self.0.in_flight.settled().await;
    }
}

/// Metrics of the API.
mod metric {
    use std::{sync::LazyLock, time::Duration};

    use metrics::{Counter, Histogram, counter, describe_counter, histogram};

    use super::publish::Outcome;

    const PUBLISHED: &str = "notifier_published_events_total";
    const STAGE: &str = "notifier_stage_seconds";

    static SECONDS: LazyLock<Histogram> = LazyLock::new(|| histogram!(STAGE, "stage" => "publish"));
    static EVENTS: LazyLock<[Counter; Outcome::ALL.len()]> =
        LazyLock::new(|| Outcome::ALL.map(|outcome| counter!(PUBLISHED, "outcome" => outcome.as_str())));

    pub(super) fn describe() {
        describe_counter!(PUBLISHED, "Events that services sent over HTTP, by what became of them in Kafka");
        LazyLock::force(&SECONDS);
        LazyLock::force(&EVENTS);
    }

    pub(super) fn published(outcome: Outcome) {
        EVENTS[outcome as usize].increment(1);
    }

    /// A request's events are in Kafka, or not, so long after its body was there.
    pub(super) fn publish(time: Duration) {
        SECONDS.record(time.as_secs_f64());
    }
}

/// Fuzz builds only.
#[cfg(fuzzing)]
pub mod fuzzing {
    use std::sync::{Arc, LazyLock};

    use super::batch;
    use crate::{
        event::Options,
        ids::NotificationId,
        ingest::decode::{Decoder, Record},
    };

    static DECODER: LazyLock<Decoder> =
        LazyLock::new(|| Decoder::new("cluster", "topic", 4096, Arc::new(|_| Options::default())));

    /// A body of `POST /v1/events`: whatever is accepted must be an event of that user and id for ingest too.
    pub fn batch(body: &[u8]) {
        let id = |index| NotificationId::new(format!("made-{index}")).expect("an identifier");
        for item in batch::read(body, &DECODER, id).into_iter().flatten() {
            let value = Some(item.value.as_bytes());
            let record = Record { value, headers: &[], timestamp: Some(0), partition: 0, offset: 0 };
            let event = DECODER.decode(&record).expect("what is accepted is no dead letter");
            assert_eq!((event.user, event.id), (item.user, item.id));
        }
    }
}

#[cfg(test)]
mod tests;
