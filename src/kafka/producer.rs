//! A producer whose answers can be awaited, and which costs nothing while nothing is written. `rdkafka`'s own
//! (`FutureProducer`) asks its client ten times a second, and spins for the last millisecond of each: one percent of a
//! core.

use std::{
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    thread,
    time::Duration,
};

use rdkafka::{
    ClientConfig,
    client::Client,
    error::{KafkaError, KafkaResult},
    message::ToBytes,
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext},
};
use tokio::sync::oneshot;

use super::Log;

/// How long the thread that hands out answers waits at most for one. The client outlives its producers by so much.
const WAIT: Duration = Duration::from_secs(1);

/// A record as it is handed over.
pub type Record<'a, K, P> = BaseRecord<'a, K, P>;

/// Writes records; the answers can be awaited. Clones share one client, which ends soon after the last of them.
#[derive(Clone)]
pub struct Producer(Arc<BaseProducer<Log>>);

/// Kafka's word on a record. Cancel safe: whether it is awaited or not changes nothing.
///
/// # Errors
/// When the record is not in its topic as far as is known.
pub struct Delivery(oneshot::Receiver<KafkaResult<()>>);

/// Where the word goes.
type Asked = oneshot::Sender<KafkaResult<()>>;

impl ProducerContext for Log {
    type DeliveryOpaque = Box<Asked>;

    fn delivery(&self, result: &DeliveryResult<'_>, asked: Box<Asked>) {
        let result = result.as_ref().map(drop).map_err(|(error, _)| error.clone());
        // Nobody may want to know any more.
        let _ = asked.send(result);
    }
}

impl Producer {
    /// Starts a client, and the thread that hands out its answers.
    ///
    /// # Errors
    /// When the properties are not the client's.
    ///
    /// # Panics
    /// When the system starts no thread.
    pub fn new(properties: &ClientConfig) -> KafkaResult<Self> {
        let producer = Arc::new(properties.create_with_context(Log)?);
        let answers = Arc::downgrade(&producer);
        let thread = thread::Builder::new().name("kafka-producer".into());
        thread.spawn(move || hand_out(&answers)).expect("the system starts threads");
        Ok(Self(producer))
    }

    /// Hands a record over. Records of one partition keep their order.
    ///
    /// # Errors
    /// When the client does not take it: it has too many, or the record is too large.
    pub fn send<K: ToBytes + ?Sized, P: ToBytes + ?Sized>(&self, record: Record<'_, K, P>) -> KafkaResult<Delivery> {
        let (asked, answer) = oneshot::channel();
        let Record { topic, partition, payload, key, timestamp, headers, delivery_opaque: () } = record;
        let delivery_opaque = Box::new(asked);
        let record = BaseRecord { topic, partition, payload, key, timestamp, headers, delivery_opaque };
        self.0.send(record).map(|()| Delivery(answer)).map_err(|(error, _)| error)
    }

    /// The client itself.
    #[must_use]
    pub fn client(&self) -> &Client<Log> {
        self.0.client()
    }
}

fn hand_out(answers: &Weak<BaseProducer<Log>>) {
    while let Some(producer) = answers.upgrade() {
        producer.poll(WAIT);
    }
}

impl Future for Delivery {
    type Output = KafkaResult<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // Without an answer only when the client is gone.
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or(Err(KafkaError::Canceled)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn with_the_last_producer_its_client_ends_and_what_it_still_holds_is_answered() {
        let mut properties = ClientConfig::new();
        // Nobody listens there.
        let producer = Producer::new(properties.set("bootstrap.servers", "127.0.0.1:1")).unwrap();
        let delivery = producer.clone().send(Record::to("topic").key("key").payload("value")).unwrap();
        drop(producer);
        let answer = tokio::time::timeout(Duration::from_secs(20), delivery).await;
        assert!(answer.expect("the client has ended").is_err());
    }
}
