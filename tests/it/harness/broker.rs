//! A private broker: a test may kill it, or start it late.

use std::{path::PathBuf, process::Command, time::Duration};

use tempfile::TempDir;

use super::{
    Kafka,
    node::free_ports,
    process::{Process, command, required},
    wait::eventually_within,
};

/// A killed broker comes back only when its old registration has expired (3 s), on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// One real broker with its data in a temporary directory.
pub struct Broker {
    port: u16,
    process: Option<Process>,
    data: TempDir,
    properties: Option<PathBuf>,
}

impl Broker {
    /// A broker that has an address but does not run yet.
    pub fn stopped() -> Self {
        let [port, _controller] = free_ports();
        let data = tempfile::tempdir().expect("a temporary directory");
        Self { port, process: None, data, properties: None }
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
        self.port
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
        let what = format!("a broker on port {}", self.port);
        eventually_within(START_DEADLINE, &what, async || {
            assert!(process.running(), "the broker on port {} ended before it served", self.port);
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

    /// Its clients' address.
    pub fn kafka(&self) -> Kafka {
        Kafka::at(&format!("127.0.0.1:{}", self.port))
    }

    fn command(&self) -> Command {
        let mut command = command(required("NOTIFIER_TEST_KAFKA_LOCAL"));
        let port = self.port.to_string();
        command.arg("run").arg(self.data.path()).args([&port, "1", "1"]).env("KAFKA_LIBS", required("KAFKA_LIBS"));
        if let Some(properties) = &self.properties {
            command.env("KAFKA_EXTRA", properties);
        }
        command
    }
}
