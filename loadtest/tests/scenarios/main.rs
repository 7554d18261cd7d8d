//! Every scenario from outside, with numbers so small that its figures mean nothing: it runs, nothing is lost, what
//! is wrong is said, and nothing is left behind.
//!
//! `tests/run` starts what it needs; by hand: `tests/run --keep`, and `cargo build --release --workspace` before.

mod honest;
mod nodes;

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::Value;

const TOOL: &str = env!("CARGO_BIN_EXE_notifier-loadtest");

fn required(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run tests/run, or see tests/README.md"))
}

/// `run` with small numbers, on servers of its own, and with other options over them. A machine that is busy with other
/// tests may be late.
fn small(scenarios: &[&str], more: &[(&str, &str)]) -> Command {
    let notifier = Path::new(TOOL).with_file_name("notifier");
    assert!(notifier.exists(), "{} is missing: cargo build --release --workspace", notifier.display());
    let (brokers, postgres) = (required("NOTIFIER_TEST_KAFKA"), required("NOTIFIER_TEST_POSTGRES"));
    let usual = [
        ("--brokers", brokers.as_str()),
        ("--postgres", &postgres),
        ("--sessions", "40"),
        ("--rate", "200"),
        ("--events", "400"),
        ("--length", "800ms"),
        ("--lateness-max", "60s"),
    ];
    let mut command = Command::new(TOOL);
    command.arg("run").args(scenarios).arg("--notifier").arg(notifier).stdin(Stdio::null());
    let usual = usual.iter().filter(|(name, _)| more.iter().all(|(other, _)| other != name));
    for (name, value) in usual.chain(more) {
        command.args([name, value]);
    }
    command
}

fn ended(command: &mut Command) -> (Output, String) {
    let output = command.output().expect("the tool starts");
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output, said)
}

fn read(json: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(json).expect("results are written")).expect("JSON")
}

fn phase<'a>(run: &'a Value, name: &str) -> &'a Value {
    let phases = run["phases"].as_array().expect("phases");
    let found = phases.iter().find(|phase| phase["report"]["scenario"] == name);
    &found.unwrap_or_else(|| panic!("no {name} in {run}"))["report"]["values"]
}

fn figure(run: &Value, phase_name: &str, name: &str) -> f64 {
    phase(run, phase_name)[name].as_f64().unwrap_or_else(|| panic!("no {name} of {phase_name} in {run}"))
}

/// Runs them in two processes of clients, so that every figure is put together from parts: (name, the phase that counts).
fn all_run(scenarios: &[(&str, &str)]) -> Vec<Value> {
    let directory = tempfile::tempdir().expect("a directory");
    let (json, page) = (directory.path().join("a.json"), directory.path().join("a.html"));
    let names: Vec<_> = scenarios.iter().map(|(name, _)| *name).collect();
    let mut command = small(&names, &[("--per-process", "20")]);
    let (output, said) = ended(command.arg("--json").arg(&json).arg("--html").arg(&page));
    assert!(output.status.success(), "{said}");
    let Value::Array(runs) = read(&json)["runs"].take() else { panic!("no runs") };
    assert_eq!(runs.len(), scenarios.len());
    for ((name, phase_name), run) in scenarios.iter().zip(&runs) {
        assert_eq!((&run["scenario"], &run["error"]), (&Value::from(*name), &Value::Null));
        assert_eq!(figure(run, phase_name, "sessions"), 40.0, "{name}");
        assert!(!run["series"].as_array().expect("points").is_empty(), "{name}");
        if phase(run, phase_name)["events"].is_null() {
            continue;
        }
        for wrong in ["lost", "duplicates", "reordered", "misdirected", "gaps", "sequence_fell"] {
            assert_eq!(figure(run, phase_name, wrong), 0.0, "{name}: {wrong}");
        }
        if *name != "slow-readers" {
            assert_eq!(figure(run, phase_name, "deliveries"), figure(run, phase_name, "events"), "{name}");
        }
    }
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(names.iter().all(|name| page.contains(name)));
    every_name_may_be_asked_for(&runs);
    let (output, said) = ended(Command::new(TOOL).arg("compare").arg(&json).arg(&json));
    assert!(output.status.success() && said.contains("with fewer than 3 runs"), "{said}");
    runs
}

/// Each figure that a report has may be an objective: what is wrong then is only that there is no broker.
fn every_name_may_be_asked_for(runs: &[Value]) {
    let phases = runs.iter().flat_map(|run| run["phases"].as_array().expect("phases"));
    let values = phases.flat_map(|phase| phase["report"]["values"].as_object().expect("figures").keys());
    let slo = values.map(|name| format!("{name}=0")).collect::<Vec<_>>().join(",");
    let mut command = Command::new(TOOL);
    let (_, said) = ended(command.args(["run", "idle", "--slo", &slo]).env_remove("NOTIFIER_LOADTEST_BROKERS"));
    assert!(said.contains("--brokers is missing"), "{said}");
}

#[test]
fn sessions_events_and_stores_are_measured_and_nothing_is_lost() {
    let runs = all_run(&[
        ("idle", "idle"),
        ("connect-storm", "connect"),
        ("personal-transient", "events"),
        ("personal-sqlite", "events"),
        ("personal-postgres", "events"),
        ("backlog", "backlog"),
        ("backlog-sqlite", "backlog"),
        ("backlog-postgres", "backlog"),
    ]);
    assert_eq!(figure(&runs[5], "backlog", "events"), 160.0);
    assert!(figure(&runs[4], "events", "store_cpu_us_per_delivery") >= 0.0);
}

#[test]
fn disturbances_growth_and_mixed_protocols_are_measured_and_nothing_is_lost() {
    let runs = all_run(&[
        ("hot-user", "events"),
        ("mass-away", "replay"),
        ("slow-readers", "events"),
        ("growth", "events at 40"),
        ("soak", "events"),
    ]);
    assert!(figure(&runs[0], "events", "hot_latency_from_due_p50_ms") > 0.0);
    assert!(figure(&runs[2], "events", "calm_latency_from_due_p50_ms") > 0.0);
    assert!(
        figure(&runs[2], "events", "deliveries") < figure(&runs[2], "events", "events"),
        "who is stalled gets nothing"
    );
    assert!(figure(&runs[2], "events", "stalled_unread_events") > 0.0);
    assert_eq!(runs[4]["protocols"].as_array().map(Vec::len), Some(4));
}

/// Each protocol alone, with acknowledgements, so that no other hides what it loses.
#[test]
fn every_protocol_gets_all() {
    let directory = tempfile::tempdir().expect("a directory");
    let files = ["websocket", "websocket-proto", "sse", "grpc"].map(|protocol| {
        let path = directory.path().join(format!("{protocol}.toml"));
        let text = format!(
            "question = \"?\"\nprotocols = [\"{protocol}\"]\n[sessions]\ncount = 40\n[events]\ndurability = \"durable\"\n\
             warmup = \"100ms\"\narrivals.ramp = {{ from = 50, to = 200, length = \"1s\" }}\n"
        );
        std::fs::write(&path, text).expect("a file");
        path.to_string_lossy().into_owned()
    });
    let names: Vec<&str> = files.iter().map(String::as_str).collect();
    let json = directory.path().join("a.json");
    let mut command = small(&names, &[("--sessions", "2"), ("--slo", "loss=0,p99<30s")]);
    let (output, said) = ended(command.arg("--json").arg(&json));
    assert!(output.status.success(), "{said}");
    for run in read(&json)["runs"].as_array().expect("runs") {
        assert!(figure(run, "events", "deliveries") >= 50.0, "{run}");
        assert_eq!(figure(run, "events", "lost"), 0.0);
        let objectives = run["objectives"].as_array().expect("objectives");
        assert!(objectives.len() == 2 && objectives.iter().all(|one| one["is_met"] == true), "{run}");
    }
}

/// Some 160 for each of two users within a twelfth of a second: a hundred at once, the others twenty a second.
#[test]
fn a_burst_over_the_limit_is_late_and_complete() {
    let directory = tempfile::tempdir().expect("a directory");
    let json = directory.path().join("a.json");
    let mut command = small(&["rate-limited"], &[("--sessions", "2"), ("--rate", "4000"), ("--length", "1s")]);
    let (output, said) = ended(command.arg("--json").arg(&json));
    assert!(output.status.success(), "{said}");
    let run = &read(&json)["runs"][0];
    assert_eq!(figure(run, "events", "deliveries"), figure(run, "events", "events"));
    assert!(figure(run, "events", "latency_from_due_max_ms") > 2_000.0, "{run}");
}

#[test]
fn the_bare_server_stands_beside_the_node_and_a_missed_objective_has_its_own_exit_code() {
    let directory = tempfile::tempdir().expect("a directory");
    let [before, after, page] = ["before.json", "after.json", "both.html"].map(|name| directory.path().join(name));
    let mut command = small(&["personal-transient"], &[("--target", "floor,notifier"), ("--slo", "p99<1us")]);
    let (output, said) = ended(command.arg("--json").arg(&before));
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("| floor | notifier | × floor |") && said.contains("p99<1us: MISSED"), "{said}");

    // The page of two files has a column for each one's servers, with the figures that the terminal showed.
    std::fs::copy(&before, &after).expect("a copy");
    let (output, told) = ended(Command::new(TOOL).arg("page").args([&before, &after]).arg("-o").arg(&page));
    assert!(output.status.success(), "{told}");
    let cells = said.lines().find_map(|line| line.strip_prefix("| personal-transient: events, CPU, µs a delivery |"));
    let cells: Vec<_> = cells.expect("a row").split('|').map(str::trim).filter(|cell| !cell.is_empty()).collect();
    let browser = Command::new(required("NOTIFIER_TEST_CHROMIUM"))
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .arg(format!("--user-data-dir={}", directory.path().join("browser").display()))
        .arg(format!("file://{}", page.display()))
        .stderr(Stdio::null())
        .output()
        .expect("the browser starts");
    let dom = String::from_utf8_lossy(&browser.stdout);
    let of_one = |file| format!("<th>floor, {file}</th><th>notifier, {file}</th><th>× floor</th>");
    assert!(dom.contains(&(of_one("before") + &of_one("after"))), "{dom}");
    let row: String = cells.iter().chain(&cells).map(|cell| format!("<td>{cell}</td>")).collect();
    assert!(dom.contains(&format!("<td>server_cpu_us_per_delivery</td>{row}</tr>")), "{row} is not in {dom}");
}

#[test]
fn capacity_climbs_until_an_objective_breaks() {
    let climb = |slo: &str| {
        let mut command = Command::new(TOOL);
        command.args(["capacity", "personal-transient", "--brokers", &required("NOTIFIER_TEST_KAFKA"), "--slo", slo]);
        command.args(["--from", "50", "--to", "100", "--factor", "2", "--each", "1500ms", "--sessions", "20"]);
        ended(command.args(["--lateness-max", "60s"]).stdin(Stdio::null()))
    };
    let (output, said) = climb("p99<60s,loss=0");
    assert!(output.status.success() && said.contains("100.0 events a second held. Nothing broke"), "{said}");
    assert!(said.contains("sessions per core"), "{said}");
    let (output, said) = climb("p99<1us");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("not even the first level (50) held: p99<1us was missed"), "{said}");
}

/// A `notifier dev` that ends with this.
struct Dev {
    child: Child,
    /// Nobody reads on, and it ends when what it prints goes nowhere.
    _output: BufReader<ChildStdout>,
    _directory: tempfile::TempDir,
    base: u16,
    secret: String,
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_is_wrong_is_said_and_never_shown_as_a_result() {
    // Nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let running = |url: &str, pid: u32, secret: &str| {
        let pid = pid.to_string();
        small(
            &["personal-transient"],
            &[("--target", "running"), ("--url", url), ("--pid", &pid), ("--secret", secret)],
        )
    };
    let (output, said) = ended(&mut running(&format!("ws://{free}"), std::process::id(), "x"));
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("no server answers at") && !said.contains("latency_from_due"), "{said}");

    let (output, said) = ended(&mut small(&["personal-transient", "no-such"], &[]));
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("no scenario no-such") && said.contains("personal-sqlite"), "{said}");

    let limited = format!("ulimit -n 300; exec {TOOL} run idle --sessions 5000 --brokers x:1");
    let (output, said) = ended(Command::new("sh").args(["-c", &limited]));
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("5000 sessions need 5200") && said.contains("ulimit -n 5200"), "{said}");

    let growing = format!("ulimit -n 300; exec {TOOL} capacity personal-transient --grow sessions --brokers x:1");
    let (output, said) = ended(Command::new("sh").args(["-c", &growing]));
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("the highest level is 194620 sessions") && said.contains("--to 100 is the most"), "{said}");

    // A server that runs has its own limit, and clients are several processes: only the server is missing.
    let elsewhere = format!("--target running --url ws://{free} --pid {} --brokers x:1", std::process::id());
    let running = format!("ulimit -n 300; exec {TOOL} run idle --sessions 5000 {elsewhere}");
    let (_, said) = ended(Command::new("sh").args(["-c", &running]));
    assert!(said.contains("no server answers at") && !said.contains("ulimit"), "{said}");

    let (output, said) = ended(&mut small(&["idle"], &[("--slo", "server_cpu_per_delivery<5")]));
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("no phase has a figure server_cpu_per_delivery"), "{said}");
}

#[test]
fn refused_tokens_and_a_server_that_dies_midway_are_reported_with_what_there_was() {
    let node = started();
    let directory = tempfile::tempdir().expect("a directory");
    let json = directory.path().join("a.json");
    let (url, pid) = (format!("ws://127.0.0.1:{}", node.base), node.child.id().to_string());
    let [admin, brokers] = [node.base + 2, node.base + 4].map(|port| format!("127.0.0.1:{port}"));
    let running = |secret: &str, length: &str| {
        let mut command = small(
            &["personal-transient"],
            &[
                ("--target", "running"),
                ("--url", &url),
                ("--pid", &pid),
                ("--admin", &admin),
                ("--brokers", &brokers),
                ("--secret", secret),
                ("--length", length),
            ],
        );
        command.arg("--json").arg(&json);
        command
    };
    let (output, said) = ended(&mut running("another-secret-that-is-long-enough-000", "1s"));
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("401") && said.contains("--secret") && !said.contains("latency_from_due"), "{said}");

    std::fs::remove_file(&json).expect("the run before was saved");
    let mut tool =
        running(&node.secret, "60s").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the tool starts");
    let mut lines = BufReader::new(tool.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
    let connected = lines.by_ref().any(|line| line.contains("on running: connect"));
    assert!(connected, "no session was opened");
    // Events flow.
    std::thread::sleep(Duration::from_secs(3));
    Command::new("kill").args(["-KILL", &pid]).status().expect("kill");
    let said = lines.collect::<Vec<_>>().join("\n");
    assert_eq!(tool.wait().expect("the tool ends").code(), Some(1), "{said}");
    assert!(said.contains("ended early, so these figures are partial"), "{said}");
    let run = &read(&json)["runs"][0];
    assert!(run["error"].is_string() && figure(run, "events", "deliveries") > 0.0, "{run}");
}

/// So many ports in a row that nobody listens on.
fn free_ports(count: u16) -> u16 {
    // Tests run beside each other: each looks from another place on.
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    loop {
        let base = NEXT.fetch_add(count, Ordering::Relaxed);
        assert!(base < 30_000, "no free ports");
        if (base..base + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return base;
        }
    }
}

fn started() -> Dev {
    let directory = tempfile::tempdir().expect("a directory");
    let base = free_ports(5);
    let data: PathBuf = directory.path().join("data");
    let mut child = Command::new(Path::new(TOOL).with_file_name("notifier"))
        .args(["dev", "--port", &base.to_string(), "--data-dir"])
        .arg(&data)
        .current_dir(&directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the node starts");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let told = output.by_ref().lines().map_while(Result::ok).any(|line| line.contains("notifier send"));
    let config = std::fs::read_to_string(data.join("notifier.toml")).unwrap_or_default();
    let config: toml::Table = config.parse().expect("the configuration that it runs with");
    let jwt = &config["auth"]["jwt"];
    let secret = match jwt.get("hs256_secret").and_then(toml::Value::as_str) {
        Some(secret) => secret.to_owned(),
        None => {
            let file = jwt["hs256_secret_file"].as_str().expect("a secret");
            std::fs::read_to_string(data.join(file)).or_else(|_| std::fs::read_to_string(file)).expect("a secret")
        }
    };
    let node = Dev { child, _output: output, _directory: directory, base, secret: secret.trim().to_owned() };
    assert!(told, "the node did not start");
    node
}
