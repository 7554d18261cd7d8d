//! The bare server: what a delivery costs at least on this machine, in the same run as the product.
//!
//! One thread, no actors, no authentication, no acknowledgements: a consumer, a hash map from user
//! to sockets, one non-blocking write per wake-up and socket, and no allocation per delivery. It
//! speaks as much of the protocol as the clients need, so that both servers meet the same clients.
//! It is not a product: it loses what a closed socket was sent, and commits nothing.

mod frame;
mod sessions;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpListener;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use crate::event;
use frame::FrameWriter;
use sessions::Sessions;

/// How often sockets are looked at while records keep coming.
const SOCKET_INTERVAL: Duration = Duration::from_millis(1);
/// How long one wait for Kafka may last, and with it a new connection: short while clients come,
/// long when nothing happens.
const WAIT_ACTIVE: Duration = Duration::from_millis(1);
const WAIT_IDLE: Duration = Duration::from_millis(10);
/// How long after the last sign of a client the short wait is kept.
const ACTIVE_FOR: Duration = Duration::from_millis(200);
const METADATA_TIMEOUT: Duration = Duration::from_secs(30);

/// What `notifier-loadtest floor` is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address for WebSocket clients, on loopback
    #[arg(long)]
    listen: SocketAddr,
    /// Kafka's bootstrap servers
    #[arg(long, env = "NOTIFIER_LOADTEST_BROKERS")]
    brokers: String,
    /// Events topic; all its partitions are consumed from their beginning
    #[arg(long)]
    topic: String,
    /// Name of the consumer group (nothing is committed)
    #[arg(long, default_value = "notifier-floor")]
    group: String,
    /// Records consumed at most before the touched sockets are written: what comes for one user
    /// within a batch is one write
    #[arg(long, default_value_t = 4096)]
    batch: usize,
}

/// Serves until the process is ended.
///
/// # Errors
///
/// When the address or the topic is not to be had, or on a fatal error of the consumer.
pub fn run(args: &Args) -> Result<()> {
    ensure!(args.listen.ip().is_loopback(), "the bare server has no authentication: it listens on loopback only");
    let consumer = consumer(args)?;
    let listener = TcpListener::bind(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    let mut sessions = Sessions::new(listener)?;
    let mut writer = FrameWriter::default();
    let mut last_client = Instant::now();
    let mut last_look = Instant::now();
    loop {
        let mut wait = if last_client.elapsed() < ACTIVE_FOR { WAIT_ACTIVE } else { WAIT_IDLE };
        for _ in 0..args.batch {
            match consumer.poll(wait) {
                None => break,
                Some(Ok(record)) => deliver(&record, &mut sessions, &mut writer),
                Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                    bail!("fatal error of the consumer: {code}")
                }
                // Everything else is librdkafka's to retry; the clients' check notices a loss.
                Some(Err(error)) => eprintln!("consumer: {error}"),
            }
            wait = Duration::ZERO;
        }
        sessions.flush();
        if last_look.elapsed() >= SOCKET_INTERVAL {
            last_look = Instant::now();
            if sessions.look()? {
                last_client = last_look;
            }
        }
    }
}

fn deliver(record: &impl Message, sessions: &mut Sessions, writer: &mut FrameWriter) {
    let Some(event) = record.payload().and_then(event::decode) else {
        return;
    };
    sessions.deliver(event.user, |out| {
        writer.notification(
            out,
            &event,
            (record.partition(), record.offset()),
            record.timestamp().to_millis().unwrap_or(0),
        );
    });
}

/// All partitions assigned by hand, from the beginning.
fn consumer(args: &Args) -> Result<BaseConsumer> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &args.brokers)
        .set("group.id", &args.group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // Bounds the memory of a backlog, as the product does.
        .set("queued.max.messages.kbytes", "16384")
        .set("fetch.message.max.bytes", "524288")
        .set("fetch.queue.backoff.ms", "20")
        .create()
        .context("consumer")?;
    let metadata = consumer
        .fetch_metadata(Some(&args.topic), METADATA_TIMEOUT)
        .with_context(|| format!("no answer from Kafka at {}", args.brokers))?;
    let mut assignment = TopicPartitionList::new();
    for topic in metadata.topics() {
        for partition in topic.partitions() {
            assignment.add_partition_offset(topic.name(), partition.id(), Offset::Beginning)?;
        }
    }
    ensure!(assignment.count() > 0, "topic {} is not there", args.topic);
    consumer.assign(&assignment)?;
    Ok(consumer)
}
