//! The comparison of stores from outside, with numbers so small that its figures mean nothing: everything runs, what
//! it counts is right, and nothing is left behind.
//!
//! `tests/run` starts what it needs; by hand: `tests/run --keep`, and `cargo build --release --workspace` before.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};

const COLD: u64 = 60;

fn required(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run tests/run, or see tests/README.md"))
}

fn databases(server: &str, prefix: &str) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let names = runtime.block_on(async {
        let mut connection = PgConnection::connect(&format!("{server}/postgres")).await?;
        let names = "select datname::text from pg_database where starts_with(datname::text, $1)";
        sqlx::query_scalar(names).bind(prefix).fetch_all(&mut connection).await
    });
    names.expect("PostgreSQL answers")
}

fn topics(brokers: &str, prefix: &str) -> Vec<String> {
    let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a client");
    let metadata = client.fetch_metadata(None, Duration::from_secs(60)).expect("Kafka answers");
    let names = metadata.topics().iter().map(|topic| topic.name().to_owned());
    names.filter(|name| name.starts_with(prefix)).collect()
}

#[test]
fn each_store_is_measured_and_nothing_is_left_behind() {
    let (brokers, server) = (required("NOTIFIER_TEST_KAFKA"), required("NOTIFIER_TEST_POSTGRES"));
    let tool = env!("CARGO_BIN_EXE_notifier-loadtest");
    let notifier = Path::new(tool).with_file_name("notifier");
    assert!(notifier.exists(), "{} is missing: cargo build --release --workspace", notifier.display());
    let directory = tempfile::tempdir().expect("a temporary directory");
    let json = directory.path().join("figures.json");
    let mut command = Command::new(tool);
    command.arg("compare-durability").arg("--notifier").arg(&notifier).arg("--json").arg(&json);
    command.args(["--brokers", &brokers, "--postgres", &server, "--rounds", "1", "--users", "20", "--events", "500"]);
    // A machine that is busy with other tests may be late: its figures are not looked at.
    command.args(["--rate", "50", "--seconds", "2", "--warmup", "0", "--lateness-max-ms", "60000"]);
    command.args(["--cold-users", &COLD.to_string(), "--idle-after", "1"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the tool starts");
    let id = child.id();
    let output = child.wait_with_output().expect("the tool ends");
    let (table, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{table}\n{said}", output.status);

    let head = "| no store | SQLite, durable | × no store | PostgreSQL, durable | × no store |";
    assert!(table.contains(head), "{table}");
    assert!(table.contains("after the idle time: 0 (target: 0): met."), "{table}");
    assert!(!table.contains("FAULT"), "{table}");

    let text = std::fs::read_to_string(&json).expect("the figures are written");
    let samples: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    let servers: Vec<_> = samples.iter().map(|sample| sample["server"].as_str().expect("a name")).collect();
    assert_eq!(servers, ["transient", "sqlite", "postgres"]);
    for sample in &samples {
        let server = &sample["server"];
        let figure = |scenario: &str, name: &str| {
            let value = &sample["scenarios"][scenario]["values"][name];
            value.as_f64().unwrap_or_else(|| panic!("{server}: no {name} of {scenario} in {text}"))
        };
        for (scenario, deliveries) in
            [("steady", 100.0), ("backlog", 500.0), ("replay of 1,000", 1_000.0), ("replay of 10,000", 10_000.0)]
        {
            assert_eq!(figure(scenario, "deliveries"), deliveries, "{server}, {scenario}");
            assert_eq!(figure(scenario, "other_frames"), 0.0, "{server}, {scenario}");
        }
        assert!(figure("few", "users_active_highest") <= 10.0, "{server}");
        assert!(figure("cold", "users_active_highest") > 10.0, "{server}");
        assert_eq!(figure("cold", "users_active_afterwards"), 0.0, "{server}");
        if server == "transient" {
            assert_eq!(sample["scenarios"]["cold"]["values"]["rows_per_event"], Value::Null);
            continue;
        }
        // A cold user's event is a row of the log and one of the heads.
        assert_eq!(figure("cold", "rows_per_event"), 2.0, "{server}");
        // At least its payload.
        assert!(figure("backlog", "written_bytes_per_event") > 512.0, "{server}");
        assert!(figure("backlog", "rows_per_event") > 1.0, "{server}");
    }
    let inserted = &samples[2]["scenarios"]["statistics"]["values"]["rows_inserted_per_event"];
    assert!(inserted.as_f64().is_some_and(|rows| rows > 1.0), "{inserted}");

    assert_eq!(databases(&server, &format!("notifier_loadtest_{id}_")), [""; 0]);
    let deadline = Instant::now() + Duration::from_secs(60);
    let prefix = format!("loadtest-{id}-");
    while !topics(&brokers, &prefix).is_empty() {
        assert!(Instant::now() < deadline, "left behind: {:?}", topics(&brokers, &prefix));
        thread::sleep(Duration::from_millis(200));
    }
}
