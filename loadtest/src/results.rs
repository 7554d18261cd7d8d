//! What runs came to: kept as JSON, compared, judged and shown.

pub mod comparison;
mod figures;
pub mod page;
pub mod ratios;
pub mod slo;
pub mod table;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::report::Report;
use crate::scenario::Scenario;

/// The form of the JSON file.
const FORM: u32 = 1;

/// A file of results.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    form: u32,
    pub machine: Machine,
    pub runs: Vec<Run>,
}

/// Where it was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    pub cores: usize,
    pub processor: String,
    pub memory_bytes: u64,
    pub kernel: String,
    /// Load averages at the end.
    pub load: String,
}

/// One run of one scenario on one server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    pub scenario: String,
    pub question: String,
    pub target: String,
    pub round: usize,
    pub protocols: Vec<String>,
    pub phases: Vec<Phase>,
    pub series: Vec<Point>,
    /// Why it ended early.
    pub error: Option<String>,
    #[serde(default)]
    pub objectives: Vec<slo::Verdict>,
}

/// One part of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Phase {
    pub report: Report,
    /// Latencies: a name, and the share of the events that are slower with milliseconds.
    pub curves: Vec<(String, Vec<[f64; 2]>)>,
}

/// Server and clients at one time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Point {
    /// Since the start of the run.
    pub seconds: f64,
    pub phase: String,
    pub sessions: usize,
    pub sent: u64,
    pub received: u64,
    /// Of what came since the point before.
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub rss_bytes: u64,
    /// Of a core, since the point before.
    pub cpu_percent: Option<f64>,
    pub lag: Option<f64>,
    pub unsettled: Option<f64>,
    /// Memory of this tool's own processes.
    pub own_rss_bytes: u64,
}

impl Results {
    pub fn new(runs: Vec<Run>) -> Self {
        Self { form: FORM, machine: Machine::this(), runs }
    }

    /// # Errors
    ///
    /// When the file is not there or is no such file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let results: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is no file of results of `run`", path.display()))?;
        ensure!(results.form == FORM, "{} has form {}, this tool knows {FORM}", path.display(), results.form);
        Ok(results)
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string(self).context("JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Machine {
    fn this() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let of = |text: &str, key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            line.trim_start_matches([' ', '\t', ':']).to_owned()
        };
        let memory = of(&read("/proc/meminfo"), "MemTotal");
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: of(&read("/proc/cpuinfo"), "model name"),
            memory_bytes: memory.trim_end_matches(" kB").parse().map_or(0, |kib: u64| kib * 1024),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
        }
    }
}

impl Run {
    /// One that has not begun.
    pub fn new(scenario: &Scenario, target: &str, round: usize) -> Self {
        Self {
            scenario: scenario.name.clone(),
            question: scenario.question.clone(),
            target: target.to_owned(),
            round,
            protocols: scenario.protocols.iter().map(ToString::to_string).collect(),
            phases: Vec::new(),
            series: Vec::new(),
            error: None,
            objectives: Vec::new(),
        }
    }

    /// What makes it not count.
    pub fn faults(&self) -> impl Iterator<Item = String> + '_ {
        let of_phases = self.phases.iter().flat_map(|Phase { report, .. }| {
            report.faults().iter().map(move |fault| format!("{}: {fault}", report.scenario()))
        });
        let place = format!("{} on {}, round {}", self.scenario, self.target, self.round);
        of_phases.chain(self.error.clone()).map(move |fault| format!("{place}: {fault}"))
    }

    /// A figure of a phase; `None` when that has a fault, or the run ended early.
    pub fn figure(&self, phase: &str, name: &str) -> Option<f64> {
        let Phase { report, .. } = self.phases.iter().find(|phase_| phase_.report.scenario() == phase)?;
        (self.error.is_none() && report.faults().is_empty()).then(|| report.get(name))?
    }
}
