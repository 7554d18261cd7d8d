//! A Kafka broker inside this process, for `notifier dev` and for tests: librdkafka's mock cluster on a
//! port of our choice. It keeps everything in memory, at most 5 MiB a partition (the oldest records go
//! first), and knows neither transactions nor the admin API.
//!
//! The mock cluster picks its own port. So it is told to advertise ours, and a proxy there copies bytes.

#![expect(unsafe_code, reason = "rdkafka has no safe call that sets the address a mock broker advertises")]

use std::{
    ffi::{CStr, CString},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
    time::Duration,
};

use rdkafka::{
    ClientConfig, bindings,
    error::{IsError as _, KafkaError},
    producer::{BaseProducer, Producer as _},
    types::RDKafkaErrorCode,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

/// The id of the mock cluster's only broker: they count from 1.
const BROKER_ID: i32 = 1;

/// A running broker. Dropping it stops it soon after; [`EmbeddedBroker::stop`] also waits.
#[derive(Debug)]
pub struct EmbeddedBroker {
    address: SocketAddr,
    /// Ends the broker's thread by being dropped.
    stop: oneshot::Sender<()>,
    /// Closed when all is torn down.
    stopped: oneshot::Receiver<()>,
}

/// Why the broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, or not this machine's.
    #[error("the embedded broker cannot listen on {address}")]
    Listen {
        /// Where it was to listen.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No thread, or no event loop for it.
    #[error("the embedded broker on {address} got no thread or event loop")]
    Thread {
        /// Where it was to listen.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// librdkafka did not start its mock cluster.
    #[error("the embedded broker on {address} did not start")]
    Cluster {
        /// Where it was to listen.
        address: SocketAddr,
        /// What librdkafka said.
        #[source]
        source: Box<KafkaError>,
    },
    /// A name that is no topic's, or no number of partitions.
    #[error("the embedded broker on {address} cannot create the topic {topic}")]
    Topic {
        /// Where it was to listen.
        address: SocketAddr,
        /// The topic.
        topic: String,
        /// What librdkafka said.
        #[source]
        source: Box<KafkaError>,
    },
}

/// The mock cluster and the client that it lives in. Blocks when dropped, so it stays on its own thread.
struct Cluster {
    mock: *mut bindings::rd_kafka_mock_cluster_t,
    /// Declared behind `mock`, and dropped after it: the cluster uses it up to its end.
    _client: BaseProducer,
}

impl EmbeddedBroker {
    /// Starts a broker at `listen` (port 0: any) with these topics and their numbers of partitions.
    /// It is ready when this returns. Cancel-safe: a cancelled start leaves nothing behind.
    ///
    /// # Errors
    /// Each names the address.
    pub async fn start(listen: SocketAddr, topics: &[(&str, i32)]) -> Result<Self, Error> {
        let (listener, address) = bind(listen).map_err(|source| Error::Listen { address: listen, source })?;
        let topics = topics.iter().map(|(topic, partitions)| ((*topic).to_owned(), *partitions)).collect::<Vec<_>>();
        let (ready, started) = oneshot::channel();
        let (stop, stopping) = oneshot::channel();
        let (ended, stopped) = oneshot::channel();
        thread::Builder::new()
            .name("embedded-broker".to_owned())
            .spawn(move || {
                run(listener, address, &topics, ready, stopping);
                drop(ended);
            })
            .map_err(|source| Error::Thread { address, source })?;
        started.await.expect("the thread reports before it ends")?;
        Ok(Self { address, stop, stopped })
    }

    /// What clients connect to, `HOST:PORT`.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        self.address.to_string()
    }

    /// Stops it and waits for the end; its port is free again then. All records are gone.
    pub async fn stop(self) {
        drop(self.stop);
        let _ = self.stopped.await;
    }
}

/// The listener, and the address that clients can reach it at.
fn bind(listen: SocketAddr) -> io::Result<(std::net::TcpListener, SocketAddr)> {
    let listener = std::net::TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    let mut address = listener.local_addr()?;
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    Ok((listener, address))
}

/// The broker's thread: everything from start to teardown, in that order and back.
fn run(
    listener: std::net::TcpListener,
    address: SocketAddr,
    topics: &[(String, i32)],
    ready: oneshot::Sender<Result<(), Error>>,
    stopping: oneshot::Receiver<()>,
) {
    let started = Cluster::start(address, topics).and_then(|(cluster, port)| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok((cluster, port, runtime.map_err(|source| Error::Thread { address, source })?))
    });
    let (cluster, mock_address, runtime) = match started {
        Ok(started) => started,
        Err(error) => {
            // Before the report, so that a caller who tries again finds the port free.
            drop(listener);
            let _ = ready.send(Err(error));
            return;
        }
    };
    runtime.block_on(async {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(source) => {
                let _ = ready.send(Err(Error::Thread { address, source }));
                return;
            }
        };
        let _ = ready.send(Ok(()));
        tokio::select! {
            _ = stopping => {}
            () = proxy(listener, &mock_address) => {}
        }
    });
    // Cuts the clients off first: the mock cluster would wait for nobody.
    drop(runtime);
    drop(cluster);
}

/// Copies bytes between clients and the mock broker, for ever.
async fn proxy(listener: TcpListener, mock_address: &str) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let mock_address = mock_address.to_owned();
                tokio::spawn(async move {
                    if let Err(error) = relay(client, &mock_address).await {
                        tracing::debug!(%error, "a connection to the embedded broker broke");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: an accept at once would fail the same way.
                tracing::warn!(%error, "the embedded broker cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn relay(mut client: TcpStream, mock_address: &str) -> io::Result<()> {
    let mut broker = TcpStream::connect(mock_address).await?;
    client.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut client, &mut broker).await.map(drop)
}

impl Cluster {
    /// Starts a cluster of one broker that says it is at `address`; also returns where it really is.
    fn start(address: SocketAddr, topics: &[(String, i32)]) -> Result<(Self, String), Error> {
        let failed = |source| Error::Cluster { address, source: Box::new(source) };
        // Never connects anywhere: it only lends its threads and its log to the cluster.
        let client: BaseProducer = ClientConfig::new().create().map_err(failed)?;
        // SAFETY: the client is alive, and `_client` keeps it so for as long as the cluster.
        let mock = unsafe { bindings::rd_kafka_mock_cluster_new(client.client().native_ptr(), BROKER_ID) };
        if mock.is_null() {
            return Err(failed(KafkaError::MockCluster(RDKafkaErrorCode::Fail)));
        }
        let cluster = Self { mock, _client: client };
        for (topic, partitions) in topics {
            let failed = |source| Error::Topic { address, topic: topic.clone(), source: Box::new(source) };
            cluster.create_topic(topic, *partitions).map_err(failed)?;
        }
        let mock_address = cluster.mock_address();
        cluster.advertise(address).map_err(failed)?;
        Ok((cluster, mock_address))
    }

    fn mock_address(&self) -> String {
        // SAFETY: the cluster is alive, and its list of brokers is a string that lives as long as it.
        let brokers = unsafe { CStr::from_ptr(bindings::rd_kafka_mock_cluster_bootstraps(self.mock)) };
        brokers.to_string_lossy().into_owned()
    }

    fn create_topic(&self, topic: &str, partitions: i32) -> Result<(), KafkaError> {
        if partitions < 1 {
            // The mock cluster takes any number and fails later.
            return Err(KafkaError::MockCluster(RDKafkaErrorCode::InvalidPartitions));
        }
        let topic = CString::new(topic)?;
        // SAFETY: the cluster is alive; it copies the name during the call.
        let result = unsafe { bindings::rd_kafka_mock_topic_create(self.mock, topic.as_ptr(), partitions, 1) };
        if result.is_error() { Err(KafkaError::MockCluster(result.into())) } else { Ok(()) }
    }

    fn advertise(&self, address: SocketAddr) -> Result<(), KafkaError> {
        let host = CString::new(address.ip().to_string())?;
        let port = i32::from(address.port());
        // SAFETY: the cluster is alive; it copies the host during the call.
        unsafe { bindings::rd_kafka_mock_broker_set_host_port(self.mock, BROKER_ID, host.as_ptr(), port) };
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SAFETY: made by `rd_kafka_mock_cluster_new`, destroyed only here, and its client is still alive.
        unsafe { bindings::rd_kafka_mock_cluster_destroy(self.mock) };
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::{
        Message as _, Offset, TopicPartitionList,
        consumer::{BaseConsumer, Consumer as _},
        producer::{FutureProducer, FutureRecord},
    };

    use super::*;

    const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    const LIMIT: Duration = Duration::from_secs(20);

    fn client(broker: &EmbeddedBroker) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", broker.bootstrap()).set("group.id", "tests");
        config
    }

    async fn produce(broker: &EmbeddedBroker, topic: &str, values: &[&str]) {
        let producer: FutureProducer = client(broker).set("enable.idempotence", "true").create().unwrap();
        for value in values {
            let record = FutureRecord::<str, str>::to(topic).partition(1).payload(value);
            producer.send(record, LIMIT).await.unwrap();
        }
    }

    /// The values at the start of partition 1, as many as are asked for.
    fn consume(config: &ClientConfig, topic: &str, count: usize) -> Vec<String> {
        let consumer: BaseConsumer = config.create().unwrap();
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(topic, 1, Offset::Beginning).unwrap();
        consumer.assign(&from).unwrap();
        let read = |_| {
            let message = consumer.poll(LIMIT).expect("a record within the limit").unwrap();
            String::from_utf8(message.payload().unwrap().to_vec()).unwrap()
        };
        (0..count).map(read).collect()
    }

    #[tokio::test]
    async fn clients_produce_and_consume_through_the_port_that_was_asked_for() {
        let broker = EmbeddedBroker::start(ANY_PORT, &[("events", 3), ("dead", 1)]).await.unwrap();
        produce(&broker, "events", &["a", "b"]).await;
        let config = client(&broker);
        let (values, brokers, partitions) = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = config.create().unwrap();
            let metadata = consumer.fetch_metadata(Some("events"), LIMIT).unwrap();
            let brokers: Vec<_> = metadata.brokers().iter().map(|b| format!("{}:{}", b.host(), b.port())).collect();
            (consume(&config, "events", 2), brokers, metadata.topics()[0].partitions().len())
        })
        .await
        .unwrap();
        assert_eq!(values, ["a", "b"]);
        assert_eq!(brokers, [broker.bootstrap()], "all traffic goes through the port that was asked for");
        assert_eq!(partitions, 3);
        broker.stop().await;
    }

    #[tokio::test]
    async fn a_stopped_broker_leaves_its_port_to_the_next_which_starts_empty() {
        let first = EmbeddedBroker::start(ANY_PORT, &[("events", 2)]).await.unwrap();
        let address = first.address;
        produce(&first, "events", &["old"]).await;
        first.stop().await;

        let second = EmbeddedBroker::start(address, &[("events", 2)]).await.unwrap();
        assert_eq!(second.bootstrap(), address.to_string());
        produce(&second, "events", &["new"]).await;
        let config = client(&second);
        let values = tokio::task::spawn_blocking(move || consume(&config, "events", 1)).await.unwrap();
        assert_eq!(values, ["new"]);
    }

    #[tokio::test]
    async fn a_dropped_broker_stops_by_itself() {
        let broker = EmbeddedBroker::start(ANY_PORT, &[]).await.unwrap();
        let EmbeddedBroker { stop, stopped, .. } = broker;
        drop(stop);
        assert!(tokio::time::timeout(LIMIT, stopped).await.is_ok());
    }

    #[tokio::test]
    async fn what_is_wrong_is_said_with_the_address() {
        let taken = std::net::TcpListener::bind(ANY_PORT).unwrap();
        let address = taken.local_addr().unwrap();
        let error = EmbeddedBroker::start(address, &[]).await.unwrap_err();
        assert!(matches!(error, Error::Listen { .. }));
        assert!(error.to_string().contains(&address.to_string()), "{error}");

        for topics in [[("events", 0)], [("eve\0nts", 1)]] {
            let error = EmbeddedBroker::start(ANY_PORT, &topics).await.unwrap_err();
            assert!(error.to_string().contains("cannot create the topic"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_broker_for_all_addresses_is_advertised_on_loopback() {
        let all = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let broker = EmbeddedBroker::start(all, &[]).await.unwrap();
        assert!(broker.bootstrap().starts_with("127.0.0.1:"), "{}", broker.bootstrap());
    }
}
