//! The one consumer of a node: how it is made, and what librdkafka calls back.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use parking_lot::Mutex;
use rdkafka::{
    ClientContext, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, ConsumerContext},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};
use serde::Deserialize;

use super::{Config, Control, inbox::Inbox};
use crate::kafka::{self, Fatal};

pub(super) type EventConsumer = BaseConsumer<Context>;

/// What librdkafka calls back.
pub(super) struct Context {
    topic: String,
    pub(super) fatal: Fatal,
    pub(super) control: Mutex<mpsc::Sender<Control>>,
    /// The end of each partition's committed records, as the last statistics had it.
    pub(super) ends: Mutex<BTreeMap<i32, i64>>,
    pub(super) commit_failed: AtomicBool,
    pub(super) main_queue_has: Arc<AtomicBool>,
}

impl Context {
    /// Positions are to be committed again.
    pub(super) fn commit_has_failed(&self) {
        self.commit_failed.store(true, Ordering::Relaxed);
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        kafka::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => {
                // The thread that looks after partitions says so once, if it is still true when it asks.
                tracing::debug!(reason, "no kafka broker can be reached");
                let _ = self.control.lock().send(Control::Check);
            }
            // Waiting does not help against these: somebody must act. librdkafka suppresses most repetitions.
            Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL) => {
                tracing::error!(reason, "kafka does not let us in");
            }
            _ => tracing::debug!(%error, reason, "kafka client"),
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        #[derive(Deserialize)]
        struct Statistics {
            topics: BTreeMap<String, Topic>,
        }
        #[derive(Deserialize)]
        struct Topic {
            partitions: BTreeMap<i32, Partition>,
        }
        #[derive(Deserialize)]
        struct Partition {
            ls_offset: i64,
        }
        let Ok(mut statistics) = serde_json::from_slice::<Statistics>(statistics) else { return };
        if let Some(topic) = statistics.topics.remove(&self.topic) {
            let known = topic.partitions.into_iter().filter(|(id, p)| *id >= 0 && p.ls_offset >= 0);
            *self.ends.lock() = known.map(|(id, p)| (id, p.ls_offset)).collect();
        }
    }
}

impl ConsumerContext for Context {
    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        let Err(error) = result else { return };
        self.commit_has_failed();
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::UnknownMemberId | RDKafkaErrorCode::IllegalGeneration) => tracing::error!(
                "committing failed: a consumer has subscribed with our name in kafka.group; this name must be ours alone"
            ),
            Some(RDKafkaErrorCode::NoOffset) => {}
            _ => tracing::warn!(%error, "committing positions failed, trying again"),
        }
    }
}

/// Creates the one consumer of this node. It joins no group.
pub(super) fn create(
    config: &Config,
    inbox: &Arc<Inbox>,
    fatal: Fatal,
    control: mpsc::Sender<Control>,
) -> KafkaResult<Arc<EventConsumer>> {
    let main_queue_has = Arc::new(AtomicBool::new(true));
    let context = Context {
        topic: config.topic.clone(),
        fatal,
        control: Mutex::new(control),
        ends: Mutex::default(),
        commit_failed: AtomicBool::new(false),
        main_queue_has: main_queue_has.clone(),
    };
    let mut consumer: EventConsumer = config.consumer.create_with_context(context)?;
    consumer.set_nonempty_callback(waker(inbox, main_queue_has));
    Ok(Arc::new(consumer))
}

pub(super) fn waker(inbox: &Arc<Inbox>, has: Arc<AtomicBool>) -> impl Fn() + Send + Sync + 'static {
    let inbox = inbox.clone();
    move || {
        has.store(true, Ordering::SeqCst);
        inbox.wake();
    }
}
