//! The Markdown table of a comparison: medians, lowest and highest, ratios round by round.

use super::super::Sample;
use super::super::table::{Figure, cell, faults, figures, line, ratios, values};
use super::{FLOOR, NOTIFIER};
use crate::report::{Spread, number};

/// Above these the bare server is not a floor: CPU a delivery in µs, memory an idle session in KiB.
const FLOOR_CPU_MAX: f64 = 7.0;
const FLOOR_RSS_MAX: f64 = 2.0;

/// One line: the scenario and figure of the bare server, and those of the product.
struct Row {
    title: &'static str,
    floor: Figure,
    notifier: Figure,
}

const fn row(title: &'static str, scenario: &'static str, figure: &'static str) -> Row {
    Row { title, floor: (scenario, figure), notifier: (scenario, figure) }
}

const CPU: &str = "server_cpu_us_per_delivery";

const ROWS: [Row; 13] = [
    row("backlog, transient: server CPU, µs a delivery", "transient", CPU),
    Row {
        title: "backlog, durable with acks (floor: transient): server CPU, µs a delivery",
        floor: ("transient", CPU),
        notifier: ("durable", CPU),
    },
    row("backlog, transient: deliveries a second", "transient", "deliveries_per_second"),
    row("backlog, transient: peak RSS, bytes", "transient", "rss_peak_bytes"),
    row("idle session: RSS, KiB", "idle", "rss_kib_per_session"),
    row("idle session after the idle time: RSS, KiB", "idle", "rss_kib_per_session_at_the_end"),
    row("idle: server CPU, % of a core", "idle", "server_cpu_percent_of_a_core"),
    row("connect with an HS256 token (floor: unchecked): server CPU, µs", "connect", "server_cpu_us_per_connect"),
    row("steady: server CPU, µs a delivery", "steady", CPU),
    row("steady: p50 from the record's time, ms", "steady", "latency_from_record_p50_ms"),
    row("steady: p99 from the record's time, ms", "steady", "latency_from_record_p99_ms"),
    row("steady: p99.9 from the record's time, ms", "steady", "latency_from_record_p999_ms"),
    row("steady: p99 from the due time, ms", "steady", "latency_from_due_p99_ms"),
];

/// The table under its title, with the faults below it.
pub fn markdown(samples: &[Sample], title: &str) -> String {
    let mut text =
        format!("{title}\n\n| figure: median (lowest–highest) | floor | notifier | ratio |\n|---|---|---|---|\n");
    for row in &ROWS {
        let floor = figures(samples, FLOOR, row.floor);
        let notifier = figures(samples, NOTIFIER, row.notifier);
        let ratio = cell(ratios(&notifier, &floor));
        let (floor, notifier) = (cell(values(&floor)), cell(values(&notifier)));
        if (&*floor, &*notifier) != ("–", "–") {
            line(&mut text, &format!("| {} | {floor} | {notifier} | {ratio} |", row.title));
        }
    }
    line(&mut text, &format!("\n{}", floor_verdict(samples)));
    faults(&mut text, samples);
    text
}

/// Whether the bare server was one.
fn floor_verdict(samples: &[Sample]) -> String {
    let median = |scenario, name| {
        let figures = figures(samples, FLOOR, (scenario, name));
        Spread::of(values(&figures)).map(|spread| spread.median)
    };
    match (median("transient", CPU), median("idle", "rss_kib_per_session")) {
        (Some(cpu), Some(rss)) => format!(
            "The bare server: {} µs a delivery (a floor: at most {FLOOR_CPU_MAX}), {} KiB an idle \
             session (at most {FLOOR_RSS_MAX}): {}.",
            number(cpu),
            number(rss),
            if cpu <= FLOOR_CPU_MAX && rss <= FLOOR_RSS_MAX { "a floor" } else { "NOT a floor, so the ratios flatter" }
        ),
        _ => "The bare server was not measured: the ratios say nothing.".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;

    fn sample(server: &'static str, round: usize, cpu: f64, fault: bool) -> Sample {
        let mut transient = Report::new("backlog");
        transient.value(CPU, cpu);
        if fault {
            transient.fault("3 lost");
        }
        let mut idle = Report::new("idle");
        idle.value("rss_kib_per_session", 1.1);
        Sample { server, round, reports: vec![("transient", transient), ("idle", idle)], error: None }
    }

    #[test]
    fn ratios_are_taken_inside_a_round() {
        let samples = [
            sample(FLOOR, 1, 5.0, false),
            sample(NOTIFIER, 1, 10.0, false),
            sample(FLOOR, 2, 10.0, false),
            sample(NOTIFIER, 2, 15.0, false),
        ];
        let text = markdown(&samples, "title");
        assert!(text.contains("| 7.50 (5.00–10.0) | 12.5 (10.0–15.0) | 1.75 (1.50–2.00) |"), "{text}");
        assert!(text.contains("NOT a floor"), "{text}");
    }

    #[test]
    fn a_faulty_run_is_named_and_left_out() {
        let samples = [sample(FLOOR, 1, 5.0, false), sample(NOTIFIER, 1, 99.0, true)];
        let text = markdown(&samples, "title");
        assert!(!text.contains("99.0"), "{text}");
        assert!(text.contains("round 1, notifier, transient: 3 lost"), "{text}");
        assert!(text.contains(": a floor."), "{text}");
    }
}
