//! Several servers in one go: each figure beside the bare server's of the same round.

use std::fmt::Write as _;

use super::Run;
use crate::report::{Spread, number};

/// The figures that servers are compared by.
const FIGURES: [(&str, &str); 12] = [
    ("server_cpu_us_per_delivery", "CPU, µs a delivery"),
    ("store_cpu_us_per_delivery", "PostgreSQL's CPU, µs a delivery"),
    ("server_cpu_us_per_connect", "CPU, µs a connect"),
    ("server_cpu_percent_of_a_core", "CPU, % of a core"),
    ("latency_from_due_p50_ms", "latency p50, ms"),
    ("latency_from_due_p99_ms", "latency p99, ms"),
    ("connect_latency_p99_ms", "connect p99, ms"),
    ("deliveries_per_second", "deliveries a second"),
    ("rss_kib_per_session", "RSS, KiB a session"),
    ("rss_highest_bytes", "highest RSS, bytes"),
    ("rss_peak_growth_bytes", "peak RSS over idle, bytes"),
    ("context_switches_per_delivery", "context switches a delivery"),
];

/// Above these the bare server is not a floor: CPU a delivery of a backlog in µs, memory an idle session in KiB.
const FLOOR_CPU_MAX: f64 = 7.0;
const FLOOR_RSS_MAX: f64 = 2.0;

/// A Markdown table of medians with lowest and highest, and what was left out of it.
pub fn markdown(runs: &[Run]) -> String {
    let mut text = String::new();
    let mut line = |line: String| writeln!(text, "{line}").expect("writing to a String cannot fail");
    let mut targets: Vec<&str> = Vec::new();
    let mut phases: Vec<(&str, &str)> = Vec::new();
    for run in runs {
        if !targets.contains(&run.target.as_str()) {
            targets.push(&run.target);
        }
        for phase in &run.phases {
            let key = (run.scenario.as_str(), phase.report.scenario());
            if !phases.contains(&key) {
                phases.push(key);
            }
        }
    }
    // The bare server is what the others are compared with.
    targets.sort_by_key(|target| *target != "floor");
    let base = targets.first().copied().filter(|target| *target == "floor" && targets.len() > 1);
    let heads = targets.iter().map(|target| match base {
        Some(base) if *target != base => format!(" {target} | × {base} |"),
        _ => format!(" {target} |"),
    });
    line(format!("| scenario: phase, figure |{}", heads.collect::<String>()));
    line(format!(
        "|---|{}",
        targets
            .iter()
            .map(|target| if base.is_some_and(|base| base != *target) { "--:|--:|" } else { "--:|" })
            .collect::<String>()
    ));
    for (scenario, phase) in phases {
        for (name, label) in FIGURES {
            let of = |target: &str| -> Vec<(usize, f64)> {
                let of_target = runs.iter().filter(|run| run.scenario == scenario && run.target == target);
                of_target.filter_map(|run| Some((run.round, run.figure(phase, name)?))).collect()
            };
            let all: Vec<_> = targets.iter().map(|target| of(target)).collect();
            if all.iter().all(Vec::is_empty) {
                continue;
            }
            let cells = targets.iter().zip(&all).map(|(target, values)| {
                let cell = cell(values.iter().map(|(_, value)| *value));
                match base {
                    Some(base) if *target != base => format!(" {cell} | {} |", ratio(values, &all[0])),
                    _ => format!(" {cell} |"),
                }
            });
            line(format!("| {scenario}: {phase}, {label} |{}", cells.collect::<String>()));
        }
    }
    for (phase, name, max, what) in [
        ("backlog", "server_cpu_us_per_delivery", FLOOR_CPU_MAX, "µs a delivery of a backlog"),
        ("connect", "rss_kib_per_session", FLOOR_RSS_MAX, "KiB a session"),
    ] {
        // With few sessions, what a process takes anyway is shared by few.
        let large = |run: &&Run| run.figure(phase, "sessions").is_some_and(|sessions| sessions >= 1_000.0);
        let of_floor = runs.iter().filter(|run| run.target == "floor").filter(large);
        let of_floor = of_floor.filter_map(|run| run.figure(phase, name));
        if let Some(spread) = Spread::of(of_floor).filter(|spread| spread.median > max) {
            line(format!(
                "- The bare server is not a floor here: {} {what}, at most {} count as one",
                number(spread.median),
                number(max)
            ));
        }
    }
    for fault in runs.iter().flat_map(Run::faults) {
        line(format!("- FAULT, left out of the table: {fault}"));
    }
    text
}

/// Each divided by the base of its round.
fn ratio(values: &[(usize, f64)], base: &[(usize, f64)]) -> String {
    let of_round = |round| base.iter().find_map(|(other, base)| (*other == round).then_some(*base));
    cell(values.iter().filter_map(|&(round, value)| Some(value / of_round(round)?)).filter(|ratio| ratio.is_finite()))
}

fn cell(values: impl Iterator<Item = f64>) -> String {
    Spread::of(values).map_or("–".to_owned(), |spread| spread.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;
    use crate::results::Phase;
    use crate::scenario::Scenario;

    fn run(target: &str, round: usize, cpu: f64, fault: Option<&str>) -> Run {
        let (name, text) = Scenario::bundled().next().unwrap();
        let mut run = Run::new(&Scenario::parse(name, text).unwrap(), target, round);
        let mut report = Report::new("events");
        report.value("server_cpu_us_per_delivery", cpu);
        fault.into_iter().for_each(|fault| report.fault(fault));
        run.phases.push(Phase { report, curves: Vec::new() });
        run
    }

    #[test]
    fn ratios_are_within_a_round_and_faulty_figures_are_left_out() {
        let runs = [
            run("notifier", 1, 10.0, None),
            run("floor", 1, 5.0, None),
            run("notifier", 2, 30.0, None),
            run("floor", 2, 10.0, None),
            run("notifier", 3, 1.0, Some("3 lost")),
            run("floor", 3, 10.0, None),
        ];
        let mut slow = run("floor", 4, 9.0, None);
        slow.phases[0].report.rename("backlog".to_owned());
        slow.phases[0].report.value("sessions", 5_000.0);
        assert!(markdown(&[slow]).contains("not a floor here: 9.00 µs"));
        let table = markdown(&runs);
        assert!(table.contains("| floor | notifier | × floor |"), "{table}");
        assert!(table.contains("| 10.0 (5.00–10.0) | 20.0 (10.0–30.0) | 2.50 (2.00–3.00) |"), "{table}");
        assert!(table.contains("FAULT, left out of the table: idle on notifier, round 3: events: 3 lost"), "{table}");
    }
}
