//! A real Prometheus that scrapes nodes and evaluates the chart's own rules.
//!
//! Thresholds are the chart's. Times are shortened, so that a test does not wait for hours: every range is [`RANGE`], an
//! alert has to hold for a second, and where a threshold is a time that nothing can make pass, a test says a shorter one.

use std::{fmt::Write as _, net::SocketAddr, path::PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    http,
    node::{Node, free_ports},
    process::{Process, command, find},
    wait::{eventually, eventually_within},
};

/// What every range of the rules becomes.
const RANGE: &str = "20s";
/// How long an alert may take to fire or to end: some ranges, on a shared machine.
const NOTICED: std::time::Duration = std::time::Duration::from_secs(90);

/// Stopped when it is dropped.
pub struct Prometheus {
    address: SocketAddr,
    _process: Process,
    _dir: TempDir,
}

impl Prometheus {
    /// Scrapes the node twice a second; returns when its first samples and rules are there.
    pub async fn of(node: &Node) -> Self {
        Self::of_all(std::slice::from_ref(node)).await
    }

    /// The same with all of them.
    pub async fn of_all(nodes: &[Node]) -> Self {
        Self::start(nodes, &[]).await
    }

    /// The same of one, with parts of the rules replaced: thresholds that are times, by shorter ones.
    pub async fn hastened(node: &Node, shorter: &[(&str, &str)]) -> Self {
        Self::start(std::slice::from_ref(node), shorter).await
    }

    async fn start(nodes: &[Node], shorter: &[(&str, &str)]) -> Self {
        assert!(find("prometheus").is_some(), "prometheus is missing: `tests/run` installs it");
        let dir = tempfile::tempdir().expect("a temporary directory");
        for file in ["notifier.yaml", "cluster.yaml"] {
            let rules = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("helm/notifier/files/rules").join(file);
            let mut rules = std::fs::read_to_string(rules).expect("the chart's rules");
            for (long, short) in shorter {
                rules = rules.replace(long, short);
            }
            std::fs::write(dir.path().join(file), hastened(&rules)).expect("a writable directory");
        }
        let targets: Vec<String> = nodes.iter().map(|node| node.admin_addr().to_string()).collect();
        let config = format!(
            "global: {{scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}}\n\
             rule_files: [notifier.yaml, cluster.yaml]\n\
             scrape_configs: [{{job_name: notifier, static_configs: [{{targets: {targets:?}}}]}}]\n",
        );
        std::fs::write(dir.path().join("prometheus.yml"), config).expect("a writable directory");
        let [port] = free_ports();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut program = command("prometheus");
        program.current_dir(dir.path()).args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"]);
        program.arg(format!("--web.listen-address={address}"));
        let prometheus = Self { address, _process: Process::spawn("prometheus", program), _dir: dir };
        eventually("a first scrape", async || {
            let answer = prometheus.ask("/api/v1/query?query=notifier_build_info").await?;
            (answer["data"]["result"].as_array()?.len() == nodes.len()).then_some(())
        })
        .await;
        // Before the first scrape there was no node.
        prometheus.ends("NotifierDown").await;
        prometheus
    }

    /// Waits until the alert fires; what it says.
    pub async fn fires(&self, alert: &str) -> String {
        let annotations = eventually_within(NOTICED, &format!("{alert} to fire"), async || {
            let firing = self.alerts(alert).await?.into_iter().find(|alert| alert["state"] == "firing")?;
            Some(firing["annotations"].clone())
        })
        .await;
        let said = annotations["description"].as_str().expect("a description").to_owned();
        // A template that fails leaves its error in the text.
        assert!(!said.contains("<error") && !said.contains("<no value>"), "{alert}: {said}");
        said
    }

    /// Fails when one of the alerts is about to fire now.
    pub async fn quiet(&self, alerts: &[&str]) {
        for alert in alerts {
            let found = eventually("an answer", async || self.alerts(alert).await).await;
            assert!(found.is_empty(), "{alert} is not quiet: {found:?}");
        }
    }

    /// Waits until the alert has ended.
    pub async fn ends(&self, alert: &str) {
        eventually_within(NOTICED, &format!("the end of {alert}"), async || {
            self.alerts(alert).await?.is_empty().then_some(())
        })
        .await;
    }

    async fn alerts(&self, name: &str) -> Option<Vec<Value>> {
        let answer = self.ask("/api/v1/alerts").await?;
        let mut alerts = answer["data"]["alerts"].as_array()?.clone();
        alerts.retain(|alert| alert["labels"]["alertname"] == name);
        Some(alerts)
    }

    async fn ask(&self, path: &str) -> Option<Value> {
        let request = http::Request { method: "GET", path, headers: &[], body: "" };
        let answer = http::try_send(self.address, request).await?;
        serde_json::from_str(&answer.body).ok()
    }
}

/// The rules with short times.
fn hastened(rules: &str) -> String {
    let mut hastened = String::new();
    for line in rules.lines() {
        match line.split_once("for: ") {
            Some((indent, _)) if indent.trim().is_empty() => writeln!(hastened, "{indent}for: 1s"),
            _ => writeln!(hastened, "{}", with_short_ranges(line)),
        }
        .expect("a string takes it");
    }
    hastened
}

/// A line of PromQL whose `[5m]` and so on are all [`RANGE`].
fn with_short_ranges(line: &str) -> String {
    let mut parts = line.split('[');
    let mut short = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(']') {
            Some((range, rest)) if range.starts_with(|first: char| first.is_ascii_digit()) => {
                write!(short, "[{RANGE}]{rest}").expect("a string takes it");
            }
            _ => write!(short, "[{part}").expect("a string takes it"),
        }
    }
    short
}
