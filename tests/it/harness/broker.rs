//! A private broker, or three of them: a test may end one, or start it late.

use std::{path::PathBuf, process::Command, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tempfile::TempDir;

use super::{
    Kafka,
    node::free_ports,
    process::{Process, command, required},
    wait::{DEADLINE, eventually_within},
};

/// A killed broker comes back only when its old registration has expired (3 s), on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// What each of three may allocate at the most.
const HEAP_OF_THREE: &str = "192m";

/// One real broker with its data in a temporary directory.
pub struct Broker {
    /// Of the first broker's clients.
    base: u16,
    /// Counted from 1, of so many.
    number: u16,
    of: u16,
    process: Option<Process>,
    data: Arc<TempDir>,
    properties: Option<PathBuf>,
}

impl Broker {
    /// A broker that has an address but does not run yet.
    pub fn stopped() -> Self {
        let [base, _controller] = free_ports();
        let [broker] = Self::cluster(base);
        broker
    }

    /// Three that run and are one cluster. All have a copy of each topic, and what counts as written is on two of them.
    pub async fn three() -> [Self; 3] {
        let [base, ..] = free_ports::<6>();
        let mut brokers: [Self; 3] = Self::cluster(base);
        // None of them serves before it has found another one.
        join_all(brokers.iter_mut().map(Self::start)).await;
        brokers
    }

    fn cluster<const N: usize>(base: u16) -> [Self; N] {
        let data = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        std::array::from_fn(|at| {
            let (number, of) = (at as u16 + 1, N as u16);
            Self { base, number, of, process: None, data: data.clone(), properties: None }
        })
    }

    /// Adds lines to its `server.properties`; they override those of the recipe.
    pub fn properties(mut self, lines: &str) -> Self {
        let path = self.data.path().join("extra.properties");
        std::fs::write(&path, lines).expect("a writable directory");
        self.properties = Some(path);
        self
    }

    /// The port of its clients; the one after it is the controller's.
    pub fn port(&self) -> u16 {
        self.base + 2 * (self.number - 1)
    }

    /// A running broker.
    pub async fn started() -> Self {
        let mut broker = Self::stopped();
        broker.start().await;
        broker
    }

    /// Starts it, with the data it had before, and waits until it serves.
    pub async fn start(&mut self) {
        assert!(self.process.is_none(), "the broker runs already");
        let mut process = Process::spawn("kafka", self.command());
        let what = format!("a broker on port {}", self.port());
        eventually_within(START_DEADLINE, &what, async || {
            assert!(process.running(), "the broker on port {} ended before it served", self.port());
            process.stdout().contains("Kafka Server started").then_some(())
        })
        .await;
        self.process = Some(process);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("the broker runs");
        process.kill();
    }

    /// SIGTERM, and waits for its end: others lead its partitions then.
    pub async fn stop(&mut self) {
        let process = self.process.take().expect("the broker runs");
        process.signal("TERM");
        process.finish(DEADLINE).await;
    }

    /// Its clients' address; those of its cluster.
    pub fn kafka(&self) -> Kafka {
        let addresses: Vec<_> = (0..self.of).map(|at| format!("127.0.0.1:{}", self.base + 2 * at)).collect();
        Kafka::at(&addresses.join(","))
    }

    fn command(&self) -> Command {
        let mut command = command(required("NOTIFIER_TEST_KAFKA_LOCAL"));
        let place = [self.base, self.of, self.number].map(|number| number.to_string());
        command.arg("run").arg(self.data.path()).args(place).env("KAFKA_LIBS", required("KAFKA_LIBS"));
        if self.of > 1 {
            command.env("KAFKA_HEAP", HEAP_OF_THREE);
        }
        if let Some(properties) = &self.properties {
            command.env("KAFKA_EXTRA", properties);
        }
        command
    }
}
