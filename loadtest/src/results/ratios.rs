//! Several servers in one go: each figure beside the bare server's of the same round.

use std::fmt::Write as _;

use super::Run;
use super::table::{Row, Set, Table};
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
    let table = Table::of(&[Set { name: None, runs }], Some(&FIGURES.map(|(name, _)| name)));
    let heads = table.columns.iter().map(|column| match column.base {
        Some(base) => format!(" {} | × {base} |", column.name),
        None => format!(" {} |", column.name),
    });
    line(format!("| scenario: phase, figure |{}", heads.collect::<String>()));
    let rules = table.columns.iter().map(|column| if column.base.is_some() { "--:|--:|" } else { "--:|" });
    line(format!("|---|{}", rules.collect::<String>()));
    for Row { scenario, phase, figure, cells } in &table.rows {
        let label = FIGURES.iter().find_map(|(name, label)| (name == figure).then_some(*label)).unwrap_or(figure);
        let cells = table.columns.iter().zip(cells).map(|(column, cell)| {
            let [figure, ratio] = [&cell.figure, &cell.ratio].map(|text| text.as_deref().unwrap_or("–"));
            if column.base.is_some() { format!(" {figure} | {ratio} |") } else { format!(" {figure} |") }
        });
        line(format!("| {scenario}: {phase}, {label} |{}", cells.collect::<String>()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::table::tests::{rounds, run};

    #[test]
    fn what_counts_stands_in_the_table_and_what_does_not_below_it() {
        let mut slow = run("floor", 4, 9.0, None);
        slow.phases[0].report.rename("backlog".to_owned());
        slow.phases[0].report.value("sessions", 5_000.0);
        assert!(markdown(&[slow]).contains("not a floor here: 9.00 µs"));
        let table = markdown(&rounds());
        assert!(table.contains("| floor | notifier | × floor |"), "{table}");
        assert!(table.contains("| 10.0 (5.00–10.0) | 20.0 (10.0–30.0) | 2.50 (2.00–3.00) |"), "{table}");
        assert!(table.contains("FAULT, left out of the table: idle on notifier, round 3: events: 3 lost"), "{table}");
    }
}
