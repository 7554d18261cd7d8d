//! What the tool does not call a result: rates that were not made, and runs that lost a part of themselves midway.

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Dev, TOOL, ended, figure, free_ports, phase, read, small, started};

/// The warm-up is over by then, and some seconds of events have been measured.
const EVENTS_FLOW: Duration = Duration::from_secs(6);

#[test]
fn a_rate_that_was_not_made_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let json = directory.path().join("a.json");
    let (output, said) = ended(small(&["personal-transient"], &[("--lateness-max", "1us")]).arg("--json").arg(&json));
    assert_eq!(output.status.code(), Some(1), "{said}");
    let refused = ["FAULT, left out of the table", "the schedule slipped", "the clients began to connect"];
    assert!(refused.iter().all(|words| said.contains(words)), "{said}");
    assert!(!said.contains("| personal-transient: "), "nothing of it stands in the table: {said}");
    // What there was is kept, beside the fault.
    assert!(figure(&read(&json)["runs"][0], "events", "own_lateness_p99_ms") > 0.0);
}

/// The process of clients with that number, of those that a tool has started.
fn client(tool: &Child, number: usize) -> String {
    let parent = format!("PPid:\t{}\n", tool.id());
    let arguments = format!("\0clients\0--number\0{number}\0");
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let found = processes.map(|process| process.path()).find(|path| {
        let of = |file| std::fs::read_to_string(path.join(file)).unwrap_or_default();
        of("status").contains(&parent) && of("cmdline").contains(&arguments)
    });
    let found = found.expect("the tool has two processes of clients");
    found.file_name().expect("a process id").to_string_lossy().into_owned()
}

/// Starts the tool, lets events flow for a while, does something and says what became of it all.
fn disturbed(mut command: Command, target: &str, after: Duration, what: impl FnOnce(&Child)) -> (String, Value) {
    let directory = tempfile::tempdir().expect("a directory");
    let json = directory.path().join("a.json");
    command.arg("--json").arg(&json).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut tool = command.spawn().expect("the tool starts");
    let mut lines = BufReader::new(tool.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
    let connected = lines.by_ref().any(|line| line.contains(&format!("on {target}: connect")));
    assert!(connected, "no session was opened");
    thread::sleep(after);
    what(&tool);
    let said = lines.collect::<Vec<_>>().join("\n");
    assert_eq!(tool.wait().expect("the tool ends").code(), Some(1), "{said}");
    (said, read(&json)["runs"][0].take())
}

fn faults(run: &Value) -> String {
    let phases = run["phases"].as_array().expect("phases");
    let events = phases.iter().find(|phase| phase["report"]["scenario"] == "events").expect("the phase is kept");
    events["report"]["faults"].to_string()
}

#[test]
fn a_process_of_clients_that_is_killed_leaves_what_all_have_seen() {
    let command = small(&["personal-transient"], &[("--length", "60s"), ("--per-process", "20")]);
    let (said, run) = disturbed(command, "notifier", EVENTS_FLOW, |tool| {
        Command::new("kill").args(["-KILL", &client(tool, 1)]).status().expect("kill");
    });
    let why = "process 2 of 2 of the clients ended (signal: 9";
    assert!(said.contains(why) && faults(&run).contains(why), "{said}");
    assert!(run["error"].as_str().is_some_and(|error| error.contains(why)), "{run}");
    // Both had some five seconds of events, a hundred a second each; what one had still to get is not lost.
    assert!(figure(&run, "events", "deliveries") > 500.0, "{run}");
    assert!(figure(&run, "events", "latency_from_due_p50_ms") > 0.0 && figure(&run, "events", "lost") == 0.0, "{run}");
    assert!(phase(&run, "events")["server_cpu_us_per_delivery"].is_null(), "nobody knows for how many: {run}");
}

/// A node on another node's broker, that ends with this.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn node(dev: &Dev, directory: &std::path::Path) -> (Node, u16) {
    let base = free_ports(4);
    let [client, grpc, admin, link] = [0, 1, 2, 3].map(|port| format!("127.0.0.1:{}", base + port));
    let config = format!(
        "[client]\nlisten = \"{client}\"\n[grpc]\nlisten = \"{grpc}\"\n[admin]\nlisten = \"{admin}\"\n\
         [cluster]\nlisten = \"{link}\"\n[kafka]\nbrokers = \"127.0.0.1:{}\"\ngroup = \"another\"\nreceipts_topic = \"\"\n\
         [auth.jwt]\nhs256_secret = \"{}\"\n",
        dev.base + 4,
        dev.secret
    );
    let path = directory.join("notifier.toml");
    std::fs::write(&path, config).expect("a file");
    let mut command = Command::new(std::path::Path::new(TOOL).with_file_name("notifier"));
    command.args(["serve", "--config"]).arg(&path).current_dir(directory);
    let log = std::fs::File::create(directory.join("log")).expect("a file");
    let child = command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log).spawn();
    let node = Node(child.expect("the node starts"));
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(&client).is_err() {
        let log = || std::fs::read_to_string(directory.join("log")).unwrap_or_default();
        assert!(Instant::now() < deadline, "{}", log());
        thread::sleep(Duration::from_millis(20));
    }
    (node, base)
}

#[test]
fn a_broker_that_dies_midway_leaves_what_the_clients_have_seen() {
    let dev = started();
    let directory = tempfile::tempdir().expect("a directory");
    let (node, base) = node(&dev, directory.path());
    let (url, pid, brokers) = (format!("ws://127.0.0.1:{base}"), node.0.id().to_string(), dev.base + 4);
    let command = small(
        &["personal-transient"],
        &[
            ("--target", "running"),
            ("--url", &url),
            ("--pid", &pid),
            ("--brokers", &format!("127.0.0.1:{brokers}")),
            ("--secret", &dev.secret),
            ("--length", "60s"),
        ],
    );
    let broker = dev.child.id().to_string();
    let (said, run) = disturbed(command, "running", EVENTS_FLOW, |_| {
        Command::new("kill").args(["-KILL", &broker]).status().expect("kill");
    });
    let why = "Kafka kept records waiting for 5.";
    assert!(said.contains(why) && faults(&run).contains(why) && faults(&run).contains("not confirmed"), "{said}");
    assert!(run["error"].as_str().is_some_and(|error| error.contains(why)), "{run}");
    assert!(figure(&run, "events", "deliveries") > 500.0 && figure(&run, "events", "lost") == 0.0, "{run}");
    assert!(figure(&run, "events", "latency_from_due_p50_ms") > 0.0, "{run}");
}

/// A queue that fills within a second, and a node that looks after its clients every second.
#[test]
fn stalled_readers_are_ended_and_what_became_of_their_events_is_said() {
    let directory = tempfile::tempdir().expect("a directory");
    let [file, json] = ["stall.toml", "a.json"].map(|name| directory.path().join(name));
    let text = "question = \"?\"\n[sessions]\ncount = 40\n[events]\nbytes = 16384\n\
                arrivals.constant = { per_second = 100, length = \"8s\" }\nwarmup = \"500ms\"\n\
                [disturbance]\nafter = \"1s\"\nstalled_share = 0.05\nstalled_per_second = 200\n\
                [node.config.sessions]\nheartbeat = \"1500ms\"\n";
    std::fs::write(&file, text).expect("a file");
    let size = [("--rate", "100"), ("--length", "8s")];
    let (output, said) = ended(small(&[&file.to_string_lossy()], &size).arg("--json").arg(&json));
    assert!(output.status.success(), "{said}");
    let run = &read(&json)["runs"][0];
    let of = |name| figure(run, "events", name);
    assert_eq!((of("stalled_sessions"), of("stalled_sessions_closed"), of("lost")), (2.0, 2.0, 0.0), "{run}");
    assert_eq!(of("deliveries") + of("stalled_unread_events"), of("events"), "{run}");
    // Several times what the kernel keeps for a socket, and more than the node does: it has dropped the rest.
    assert!(of("stalled_unread_kib_per_session") > 2_048.0 && of("dropped_events") > 0.0, "{run}");
    assert!(of("calm_rss_bytes") > 0.0 && of("rss_highest_bytes") >= of("rss_bytes") && of("p99_times_calm") > 0.0);
}
