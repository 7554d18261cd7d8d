//! `notifier send`: writes events to Kafka, in any of the forms that the cluster reads.

use std::{
    future::Future,
    io,
    pin::Pin,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use clap::ValueEnum;
use futures_util::{StreamExt as _, stream::FuturesOrdered};
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    producer::{FutureProducer, FutureRecord, Producer as _},
};
use serde::Serialize;
use tokio::time::{Instant as TokioInstant, sleep_until};

use crate::{
    cli::{Usage, WHERE_DEV_RUNS},
    config::{self, Config},
    event::unix_millis_now,
    ids,
    kafka::{self, Log},
    proto,
};

mod encode;

use encode::Encoded;
pub use encode::Format;

/// How long the brokers may take to describe the topic, and to take one event.
const KAFKA_DEADLINE: Duration = Duration::from_secs(10);
/// Events written but not acknowledged yet, at most.
const IN_FLIGHT_MAX: usize = 10_000;
/// From more events than this on, a summary says how fast they were.
const SUMMARY_ABOVE: u64 = 10;

const EXAMPLES: &str = r#"Examples:
  notifier send --user 101 --type greeting --data '{"hello":"world"}'
  notifier send --user 101 --type invoice --data @invoice.json --durability inbox --ttl 30d
  notifier send --user 101 --type tick --data 1 --count 1000 --rate 100 --json"#;

/// Write events to Kafka and print where they stand.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Who gets it
    #[arg(long, value_name = "USER")]
    user: String,
    /// What kind of notification it is
    #[arg(long = "type", value_name = "TYPE")]
    notification_type: String,
    /// The payload, a JSON text; `@FILE` reads a file, `-` standard input
    #[arg(long, value_name = "JSON", allow_hyphen_values = true)]
    data: String,
    /// Its id, unique per user [default: a new one]; with --count, I-1, I-2 …
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// What is kept for a user who is away [default: as configured for the type]
    #[arg(long)]
    durability: Option<Durability>,
    /// What goes first when a rate limit makes some wait [default: as configured for the type]
    #[arg(long)]
    priority: Option<Priority>,
    /// Takes the place of an earlier one with this key that still waits
    #[arg(long, value_name = "KEY")]
    collapse_key: Option<String>,
    /// Not delivered any more after this long, such as 1h
    #[arg(long, value_parser = super::duration)]
    ttl: Option<Duration>,
    /// Only this session of the user; always transient
    #[arg(long)]
    session: Option<String>,
    /// How many to send
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// How many a second, at most [default: as fast as Kafka takes them]
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,
    /// The form that they are written in
    #[arg(long, value_enum, default_value_t = Format::Protobuf)]
    format: Format,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Durability {
    Transient,
    Durable,
    Inbox,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Priority {
    Critical,
    High,
    Normal,
    Low,
}

/// Where an event stands.
#[derive(Debug, Serialize)]
struct Written {
    id: String,
    partition: i32,
    offset: i64,
}

/// An event on its way to Kafka.
type Delivery = Pin<Box<dyn Future<Output = anyhow::Result<Written>> + Send>>;

/// Sends what `args` say and prints id, partition and offset of each event once Kafka has it.
///
/// # Errors
/// [`Usage`] for arguments that no event can be made of; else Kafka's reason for the first event that
/// was not taken.
pub async fn run(args: Args, config: &Config) -> anyhow::Result<()> {
    let (kafka, payload_bytes_max) = (&config.kafka, config.limits.payload_bytes_max);
    let args = Args { data: read_data(&args.data, io::stdin())?, ..args };
    check(&args)?;
    if args.data.len() > payload_bytes_max {
        let size = args.data.len();
        return Err(Usage(format!("--data has {size} bytes; limits.payload_bytes_max is {payload_bytes_max}")).into());
    }
    if kafka.brokers.trim().is_empty() {
        return Err(Usage(format!("kafka.brokers is not set; {WHERE_DEV_RUNS}")).into());
    }
    let mut client = kafka::producer_config(kafka);
    if client.get("message.timeout.ms").is_none() {
        client.set("message.timeout.ms", KAFKA_DEADLINE.as_millis().to_string());
    }
    let producer: FutureProducer<Log> = client.create_with_context(Log).context("cannot start the Kafka client")?;
    check_topic(&producer, kafka).await?;

    let began = Instant::now();
    let mut output = io::stdout();
    let write = async |number| {
        let id = id(&args, number);
        let encoded = encode::encode(args.format, &event(&args, id.clone()));
        enqueue(&producer, &kafka.topic, &args.user, &encoded, id).await
    };
    send_all(&args, write, |written| report(&args, &written, &mut output)).await?;
    if args.count > SUMMARY_ABOVE && !args.json {
        summary(args.count, began.elapsed(), &mut output)?;
    }
    Ok(())
}

/// The payload itself, or what the file or standard input that it names holds.
fn read_data(data: &str, mut stdin: impl io::Read) -> anyhow::Result<String> {
    let mut text = String::new();
    let (from, read) = match data.strip_prefix('@') {
        Some(path) => (path, std::fs::read_to_string(path).map(|content| text = content)),
        None if data == "-" => ("standard input", stdin.read_to_string(&mut text).map(drop)),
        None => return Ok(data.to_owned()),
    };
    read.map_err(|error| Usage(format!("--data: cannot read {from}: {error}")))?;
    Ok(text)
}

/// Refuses what would end as a dead letter.
fn check(args: &Args) -> Result<(), Usage> {
    let mut texts = vec![("--user", &args.user), ("--type", &args.notification_type)];
    let optional = [("--id", &args.id), ("--collapse-key", &args.collapse_key), ("--session", &args.session)];
    texts.extend(optional.into_iter().filter_map(|(flag, text)| Some((flag, text.as_ref()?))));
    for (flag, text) in texts {
        ids::check(text).map_err(|problem| Usage(format!("{flag} {problem}")))?;
    }
    // The number that --count adds has to fit too.
    ids::check(&id(args, args.count)).map_err(|problem| Usage(format!("--id {problem}")))?;
    if args.notification_type.starts_with('$') {
        return Err(Usage("--type starts with $, as only control frames do".to_owned()));
    }
    if args.ttl.is_some_and(|ttl| ttl.is_zero()) {
        return Err(Usage("--ttl is zero".to_owned()));
    }
    serde_json::from_str::<&serde_json::value::RawValue>(&args.data).map_err(|problem| {
        Usage(format!("--data is no JSON text: {problem}; a plain text needs quotes: '\"text\"'"))
    })?;
    Ok(())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    // Slower than this, the wait for the next event no longer fits a clock.
    if rate.is_finite() && rate >= 1e-6 { Ok(rate) } else { Err("not a rate above 0".to_owned()) }
}

/// Asks for the topic before anything is written: "message timed out" would not say what is wrong.
async fn check_topic(producer: &FutureProducer<Log>, kafka: &config::Kafka) -> anyhow::Result<()> {
    let (asking, topic) = (producer.clone(), kafka.topic.clone());
    let metadata =
        tokio::task::spawn_blocking(move || asking.client().fetch_metadata(Some(&topic), KAFKA_DEADLINE)).await?;
    let metadata =
        metadata.map_err(|error| anyhow!("no Kafka broker answers at {}: {}", kafka.brokers, reason(&error)))?;
    let topic = metadata.topics().iter().find(|topic| topic.name() == kafka.topic);
    if let Some(error) = topic.and_then(rdkafka::metadata::MetadataTopic::error) {
        bail!("topic {} at {}: {}", kafka.topic, kafka.brokers, RDKafkaErrorCode::from(error));
    }
    Ok(())
}

/// Kafka's own words, without the client's about which call they came from.
fn reason(error: &KafkaError) -> String {
    error.rdkafka_error_code().map_or_else(|| error.to_string(), |code| code.to_string())
}

/// Has the events written in order, by their numbers and at their rate, and hands each to `written` once Kafka has it.
async fn send_all(
    args: &Args,
    mut write: impl AsyncFnMut(u64) -> anyhow::Result<Delivery>,
    mut written: impl FnMut(Written) -> io::Result<()>,
) -> anyhow::Result<()> {
    let began = TokioInstant::now();
    let mut in_flight = FuturesOrdered::<Delivery>::new();
    for number in 1..=args.count {
        let due = args.rate.map(|rate| began + Duration::from_secs_f64((number - 1) as f64 / rate));
        loop {
            let is_full = in_flight.len() >= IN_FLIGHT_MAX;
            tokio::select! {
                // Results first, so that a broken connection ends the command at once.
                biased;
                Some(result) = in_flight.next(), if !in_flight.is_empty() => written(result?)?,
                () = until(due), if !is_full => break,
            }
        }
        in_flight.push_back(write(number).await?);
    }
    while let Some(result) = in_flight.next().await {
        written(result?)?;
    }
    Ok(())
}

async fn until(due: Option<TokioInstant>) {
    if let Some(due) = due {
        sleep_until(due).await;
    }
}

/// Hands one event to the client, when it has room.
async fn enqueue(
    producer: &FutureProducer<Log>,
    topic: &str,
    user: &str,
    encoded: &Encoded,
    id: String,
) -> anyhow::Result<Delivery> {
    let mut record = FutureRecord::to(topic).key(user).payload(&encoded.value).headers(encoded.headers());
    let delivery = loop {
        match producer.send_result(record) {
            Ok(delivery) => break delivery,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) => {
                record = refused;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err((error, _)) => bail!("event {id} was not written: {}", reason(&error)),
        }
    };
    Ok(Box::pin(async move {
        let delivered = delivery.await.context("the Kafka client ended")?;
        match delivered {
            Ok(place) => Ok(Written { id, partition: place.partition, offset: place.offset }),
            Err((error, _)) => bail!("event {id} was not written: {}", reason(&error)),
        }
    }))
}

/// The id of event `number`, counted from 1.
fn id(args: &Args, number: u64) -> String {
    match &args.id {
        Some(id) if args.count == 1 => id.clone(),
        Some(id) => format!("{id}-{number}"),
        None => ids::NotificationId::time_ordered().to_string(),
    }
}

fn event(args: &Args, id: String) -> proto::NotificationDeliveryRequested {
    let now = unix_millis_now();
    let has_options =
        args.durability.is_some() || args.priority.is_some() || args.collapse_key.is_some() || args.ttl.is_some();
    let options = has_options.then(|| proto::DeliveryOptions {
        durability: args.durability.map_or(proto::Durability::Unspecified, Into::into).into(),
        priority: args.priority.map_or(proto::Priority::Unspecified, Into::into).into(),
        collapse_key: args.collapse_key.clone().unwrap_or_default(),
        ttl: args.ttl.and_then(|ttl| ttl.try_into().ok()),
    });
    proto::NotificationDeliveryRequested {
        user_id: args.user.clone(),
        session_id: args.session.clone().unwrap_or_default(),
        notification: Some(proto::Notification {
            notification_type: args.notification_type.clone(),
            data: args.data.clone(),
            ..proto::Notification::default()
        }),
        notification_id: id,
        options,
        requested_at: Some(prost_types::Timestamp {
            seconds: now.div_euclid(1000),
            nanos: i32::try_from(now.rem_euclid(1000)).expect("less than 1000") * 1_000_000,
        }),
    }
}

impl From<Durability> for proto::Durability {
    fn from(durability: Durability) -> Self {
        match durability {
            Durability::Transient => Self::Transient,
            Durability::Durable => Self::Durable,
            Durability::Inbox => Self::Inbox,
        }
    }
}

impl From<Priority> for proto::Priority {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::Critical => Self::Critical,
            Priority::High => Self::High,
            Priority::Normal => Self::Normal,
            Priority::Low => Self::Low,
        }
    }
}

fn report(args: &Args, written: &Written, output: &mut impl io::Write) -> io::Result<()> {
    if args.json {
        serde_json::to_writer(&mut *output, written)?;
        writeln!(output)
    } else {
        writeln!(output, "{}  partition {}  offset {}", written.id, written.partition, written.offset)
    }
}

fn summary(count: u64, took: Duration, output: &mut impl io::Write) -> io::Result<()> {
    let seconds = took.as_secs_f64();
    writeln!(output, "{count} events in {seconds:.2} s, {:.0} a second", count as f64 / seconds)
}

#[cfg(test)]
mod tests;
