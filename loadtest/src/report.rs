//! What a measurement found: named figures and faults, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The figures of one scenario. Names carry their unit last, as everywhere in the project.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    scenario: String,
    #[serde(serialize_with = "as_map", deserialize_with = "from_map")]
    values: Vec<(String, f64)>,
    faults: Vec<String>,
}

impl Report {
    pub fn new(scenario: impl Into<String>) -> Self {
        Self { scenario: scenario.into(), ..Self::default() }
    }

    pub fn scenario(&self) -> &str {
        &self.scenario
    }

    pub fn rename(&mut self, scenario: String) {
        self.scenario = scenario;
    }

    /// Adds a figure, if it is a number.
    pub fn value(&mut self, name: impl Into<String>, value: f64) {
        if value.is_finite() {
            self.values.push((name.into(), value));
        }
    }

    pub fn values(&self) -> &[(String, f64)] {
        &self.values
    }

    /// Adds something that makes the figures worthless or the server wrong.
    pub fn fault(&mut self, what: impl Into<String>) {
        self.faults.push(what.into());
    }

    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.iter().find_map(|(key, value)| (key == name).then_some(*value))
    }

    pub fn faults(&self) -> &[String] {
        &self.faults
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let width = self.values.iter().map(|(name, _)| name.len()).max();
        let width = width.unwrap_or(0);
        let mut text = format!("{}\n", self.scenario);
        for (name, value) in &self.values {
            writeln!(text, "  {name:<width$}  {:>14}", number(*value)).expect("writing to a String cannot fail");
        }
        for fault in &self.faults {
            writeln!(text, "  FAULT: {fault}").expect("writing to a String cannot fail");
        }
        text
    }

    pub fn json(&self) -> serde_json::Value {
        let values: serde_json::Map<_, _> =
            self.values.iter().map(|(name, value)| (name.clone(), (*value).into())).collect();
        serde_json::json!({ "scenario": self.scenario, "values": values, "faults": self.faults })
    }
}

fn as_map<S: Serializer>(values: &[(String, f64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(values.iter().map(|(name, value)| (name, value)))
}

fn from_map<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, f64)>, D::Error> {
    Ok(BTreeMap::deserialize(deserializer)?.into_iter().collect())
}

/// Writes a JSON document, readable.
pub fn write_json(path: &Path, value: &serde_json::Value) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value).context("JSON")?;
    fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

/// Three significant digits or more, without an exponent.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        0.0..0.1 => format!("{value:.4}"),
        0.1..10.0 => format!("{value:.2}"),
        10.0..1000.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// Middle, lowest and highest of several runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    /// `None` without values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Self { median, low, high })
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}–{})", number(self.median), number(self.low), number(self.high))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        let spread = Spread::of([9.0, 1.0, 2.0]).unwrap();
        assert_eq!((spread.median, spread.low, spread.high), (2.0, 1.0, 9.0));
        assert_eq!(Spread::of([1.0, 4.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn faults_stand_in_table_and_json() {
        let mut report = Report::new("backlog");
        report.value("server_cpu_us_per_delivery", 5.4321);
        report.fault("3 lost");
        assert!(report.table().contains("5.43"));
        assert!(report.table().contains("FAULT: 3 lost"));
        let json = report.json();
        assert_eq!(json["values"]["server_cpu_us_per_delivery"], 5.4321);
        assert_eq!(json["faults"][0], "3 lost");
        assert_eq!(report.get("server_cpu_us_per_delivery"), Some(5.4321));
    }

    #[test]
    fn small_figures_keep_their_digits() {
        assert_eq!(number(0.0123), "0.0123");
        assert_eq!(number(5.432), "5.43");
        assert_eq!(number(54.32), "54.3");
        assert_eq!(number(5432.1), "5432");
    }
}
