//! Two files of results: what changed beyond the noise.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Results, Run};
use crate::report::{Spread, number};

/// Runs of each side that a change needs: with fewer, nobody knows the noise.
const RUNS_MIN: usize = 3;
/// A smaller change of the median is none, also when the runs do not overlap.
const CHANGE_MIN: f64 = 0.03;

/// Scenario, server, phase and figure.
type Key = (String, String, String, String);

/// What became of one figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The runs of both sides overlap, or the medians are close.
    None,
    /// Too few runs to know.
    Unknown,
    Better,
    Worse,
    /// Changed, and neither is better.
    Other,
}

/// One figure of both.
#[derive(Debug)]
pub struct Row {
    key: Key,
    before: Spread,
    after: Spread,
    pub change: Change,
}

/// Every figure that both have; runs with faults are left out.
pub fn compare(before: &Results, after: &Results) -> Vec<Row> {
    let (before, mut after) = (figures(before), figures(after));
    let rows = before.into_iter().filter_map(|(key, before)| {
        let after = after.remove(&key)?;
        let runs = before.len().min(after.len());
        let (before, after) = (Spread::of(before)?, Spread::of(after)?);
        let change = if runs < RUNS_MIN { Change::Unknown } else { change(&key.3, before, after) };
        Some(Row { key, before, after, change })
    });
    rows.collect()
}

fn change(figure: &str, before: Spread, after: Spread) -> Change {
    let overlap = before.low <= after.high && after.low <= before.high;
    let difference = after.median - before.median;
    if overlap || difference.abs() <= before.median.abs() * CHANGE_MIN {
        return Change::None;
    }
    match is_better_when_low(figure) {
        Some(low) if low == (difference < 0.0) => Change::Better,
        Some(_) => Change::Worse,
        None => Change::Other,
    }
}

/// `None` for what is a setting, or of this tool itself.
fn is_better_when_low(figure: &str) -> Option<bool> {
    let costs = [
        "latency",
        "cpu",
        "rss",
        "pss",
        "lost",
        "duplicates",
        "reordered",
        "gaps",
        "misdirected",
        "switches",
        "lag",
        "seconds",
    ];
    match figure {
        _ if figure.starts_with("own_") || figure == "rss_before_bytes" || figure == "idle_seconds" => None,
        "deliveries_per_second" | "events_per_second" => Some(false),
        _ if costs.iter().any(|cost| figure.contains(cost)) => Some(true),
        _ => None,
    }
}

fn figures(results: &Results) -> BTreeMap<Key, Vec<f64>> {
    let mut figures = BTreeMap::<Key, Vec<f64>>::new();
    let sound = results.runs.iter().filter(|run| run.faults().next().is_none());
    for Run { scenario, target, phases, .. } in sound {
        for report in phases.iter().map(|phase| &phase.report) {
            for (name, value) in report.values() {
                let key = (scenario.clone(), target.clone(), report.scenario().to_owned(), name.clone());
                figures.entry(key).or_default().push(*value);
            }
        }
    }
    figures
}

/// What changed, as a table; then how many did not.
pub fn text(rows: &[Row]) -> String {
    let mut text = String::new();
    let mut line = |line: String| writeln!(text, "{line}").expect("writing to a String cannot fail");
    let count = |change| rows.iter().filter(|row| row.change == change).count();
    let shown: Vec<_> = rows.iter().filter(|row| row.change != Change::None).collect();
    if !shown.is_empty() {
        line("| scenario, server, phase | figure | before | after | change | |".to_owned());
        line("|---|---|--:|--:|--:|---|".to_owned());
    }
    for Row { key: (scenario, target, phase, figure), before, after, change } in shown {
        let word = match change {
            Change::Better => "better",
            Change::Worse => "WORSE",
            Change::Other | Change::None => "changed",
            Change::Unknown => "too few runs",
        };
        let percent = match before.median {
            0.0 => "–".to_owned(),
            median => format!("{:+.1} %", (after.median / median - 1.0) * 100.0),
        };
        line(format!("| {scenario}, {target}, {phase} | {figure} | {before} | {after} | {percent} | {word} |"));
    }
    line(format!(
        "{} better, {} worse, {} otherwise changed; {} within the noise, {} with fewer than {RUNS_MIN} runs \
         on one side (use --rounds). Changed: no run of one side lies among the other's, and the medians differ by more than {} %.",
        count(Change::Better),
        count(Change::Worse),
        count(Change::Other),
        count(Change::None),
        count(Change::Unknown),
        number(CHANGE_MIN * 100.0),
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;
    use crate::results::Phase;
    use crate::scenario::Scenario;

    fn results(name: &str, values: &[f64]) -> Results {
        let (scenario, text) = Scenario::bundled().next().unwrap();
        let scenario = Scenario::parse(scenario, text).unwrap();
        let runs = values.iter().enumerate().map(|(round, value)| {
            let mut report = Report::new("events");
            report.value(name, *value);
            let mut run = Run::new(&scenario, "notifier", round);
            run.phases.push(Phase { report, curves: Vec::new() });
            run
        });
        Results::new(runs.collect())
    }

    fn changed(name: &str, before: &[f64], after: &[f64]) -> Change {
        compare(&results(name, before), &results(name, after))[0].change
    }

    #[test]
    fn only_what_lies_beyond_all_runs_has_changed() {
        let cpu = "server_cpu_us_per_delivery";
        assert_eq!(changed(cpu, &[10.0, 11.0, 12.0], &[11.9, 14.0, 15.0]), Change::None);
        assert_eq!(changed(cpu, &[10.0, 11.0, 12.0], &[13.0, 14.0, 15.0]), Change::Worse);
        assert_eq!(changed(cpu, &[10.0, 11.0, 12.0], &[7.0, 8.0, 9.0]), Change::Better);
        assert_eq!(changed(cpu, &[10.00, 10.01, 10.02], &[10.10, 10.11, 10.12]), Change::None);
        assert_eq!(changed("deliveries_per_second", &[10.0, 11.0, 12.0], &[13.0, 14.0, 15.0]), Change::Better);
        assert_eq!(changed("own_lateness_p99_ms", &[1.0, 1.0, 1.0], &[3.0, 3.0, 3.0]), Change::Other);
        assert_eq!(changed("lost", &[0.0, 0.0, 0.0], &[3.0, 3.0, 3.0]), Change::Worse);
    }

    #[test]
    fn two_runs_say_nothing_and_faulty_ones_are_left_out() {
        assert_eq!(changed("lost", &[0.0, 0.0], &[9.0, 9.0, 9.0]), Change::Unknown);
        let before = results("lost", &[0.0, 0.0, 0.0]);
        let mut after = results("lost", &[9.0, 9.0, 9.0]);
        after.runs[0].error = Some("died".to_owned());
        let rows = compare(&before, &after);
        assert_eq!(rows[0].change, Change::Unknown);
        assert!(text(&rows).contains("too few runs"));
    }
}
