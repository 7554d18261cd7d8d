//! The Markdown table of what durability costs: each engine beside transient events of the same round.

use super::super::Sample;
use super::super::table::{Figure, against, cell, faults, figures, line, ratios, values};
use super::{POSTGRES, REPLAYS, SQLITE, TRANSIENT, store};
use crate::measure::away;
use crate::report::{Spread, number};

/// What durability may add to the median latency, in milliseconds.
const ADDED_P50_MAX: f64 = 6.0;

const ENGINES: [(&str, &str); 2] = [(SQLITE, "SQLite, durable"), (POSTGRES, "PostgreSQL, durable")];

/// How an engine's figure stands to the one without a store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compared {
    /// As it is, and as a ratio.
    Ratio,
    /// Only as it is.
    Alone,
    /// The difference.
    Added,
}
use Compared::{Added, Alone, Ratio};

struct Row {
    title: &'static str,
    figure: Figure,
    compared: Compared,
}

const fn row(title: &'static str, figure: Figure, compared: Compared) -> Row {
    Row { title, figure, compared }
}

const DELIVERY_CPU: &str = "server_cpu_us_per_delivery";
const P50: Figure = ("steady", "latency_from_due_p50_ms");
const P99: Figure = ("steady", "latency_from_due_p99_ms");
const ACTIVE_AFTERWARDS: Figure = ("cold", "users_active_afterwards");
const WAITING_RSS: &str = "rss_bytes_per_waiting_user";
const SMALL: &str = REPLAYS[0].0;
const LARGE: &str = REPLAYS[1].0;

const ROWS: &[Row] = &[
    row("steady: p50 from the due time to the client, ms", P50, Ratio),
    row("steady: p50, added, ms", P50, Added),
    row("steady: p99 from the due time to the client, ms", P99, Ratio),
    row("steady: p99, added, ms", P99, Added),
    row("steady: the node's CPU, µs a delivery", ("steady", DELIVERY_CPU), Ratio),
    row("steady: PostgreSQL's CPU, µs an event", ("steady", store::CPU), Alone),
    row("steady: rows more, an event", ("steady", store::ROWS), Alone),
    row("steady: bytes more on the disk, an event", ("steady", store::BYTES), Alone),
    row("steady: bytes written, an event", ("steady", store::WRITTEN), Alone),
    row("backlog: deliveries a second", ("backlog", "deliveries_per_second"), Ratio),
    row("backlog: the node's CPU, µs a delivery", ("backlog", DELIVERY_CPU), Ratio),
    row("backlog: PostgreSQL's CPU, µs an event", ("backlog", store::CPU), Alone),
    row("backlog: the node's peak RSS, bytes", ("backlog", "rss_peak_bytes"), Ratio),
    row("backlog: rows more, an event", ("backlog", store::ROWS), Alone),
    row("backlog: bytes more on the disk, an event", ("backlog", store::BYTES), Alone),
    row("backlog: bytes written, an event", ("backlog", store::WRITTEN), Alone),
    row("both: rows inserted by PostgreSQL's statistics, an event", ("statistics", "rows_inserted_per_event"), Alone),
    row("both: rows updated by PostgreSQL's statistics, an event", ("statistics", "rows_updated_per_event"), Alone),
    row("both: rows deleted by PostgreSQL's statistics, an event", ("statistics", "rows_deleted_per_event"), Alone),
    row("ten users away: events stored a second", ("few", "events_per_second"), Ratio),
    row("ten users away: the node's CPU, µs an event", ("few", away::CPU), Ratio),
    row("ten users away: PostgreSQL's CPU, µs an event", ("few", store::CPU), Alone),
    row("cold users: events stored a second", ("cold", "events_per_second"), Ratio),
    row("cold users: the node's CPU, µs an event", ("cold", away::CPU), Ratio),
    row("cold users: PostgreSQL's CPU, µs an event", ("cold", store::CPU), Alone),
    row("cold users: rows more, an event", ("cold", store::ROWS), Alone),
    row("cold users: bytes more on the disk, an event", ("cold", store::BYTES), Alone),
    row("cold users: bytes written, an event", ("cold", store::WRITTEN), Alone),
    row("activating a user: the node's CPU, µs", ("cold", "server_cpu_us_per_activation"), Ratio),
    row("activating and letting go: the node's CPU, µs", ("cold", "server_cpu_us_per_activation_and_end"), Ratio),
    row("activating a user: PostgreSQL's CPU, µs", ("cold", "store_cpu_us_per_activation"), Alone),
    row("cold users: most actors seen at one time", ("cold", "users_active_highest"), Alone),
    row("cold users: actors after the idle time", ACTIVE_AFTERWARDS, Alone),
    row("cold users: RSS more after the idle time, bytes a user", ("cold", WAITING_RSS), Alone),
    row(
        "others, after three times as many: RSS more after the idle time, bytes a user",
        ("others", WAITING_RSS),
        Alone,
    ),
    row("replay of 1,000: from connect to the last, ms", (SMALL, "replay_ms"), Ratio),
    row("replay of 1,000: connect alone, ms", (SMALL, "connect_ms"), Ratio),
    row("replay of 1,000: the node's CPU, µs a delivery", (SMALL, DELIVERY_CPU), Ratio),
    row("replay of 1,000: the node's peak RSS more, bytes", (SMALL, "rss_peak_growth_bytes"), Alone),
    row("replay of 10,000: from connect to the last, ms", (LARGE, "replay_ms"), Ratio),
    row("replay of 10,000: connect alone, ms", (LARGE, "connect_ms"), Ratio),
    row("replay of 10,000: the node's CPU, µs a delivery", (LARGE, DELIVERY_CPU), Ratio),
    row("replay of 10,000: the node's peak RSS more, bytes", (LARGE, "rss_peak_growth_bytes"), Alone),
];

/// The table under its title, with the targets and the faults below it.
pub fn markdown(samples: &[Sample], title: &str) -> String {
    let engines: Vec<_> = ENGINES.iter().filter(|(server, _)| samples.iter().any(|s| s.server == *server)).collect();
    let mut text = format!("{title}\n\n| figure: median (lowest–highest) | no store |");
    for (_, name) in &engines {
        text += &format!(" {name} | × no store |");
    }
    line(&mut text, &format!("\n|---|---|{}", "---|---|".repeat(engines.len())));
    for row in ROWS {
        let base = figures(samples, TRANSIENT, row.figure);
        let mut cells = vec![if row.compared == Added { "–".to_owned() } else { cell(values(&base)) }];
        for (server, _) in &engines {
            let figures = figures(samples, server, row.figure);
            cells.extend(match row.compared {
                Ratio => [cell(values(&figures)), cell(ratios(&figures, &base))],
                Alone => [cell(values(&figures)), "–".to_owned()],
                Added => [cell(added(&figures, &base)), "–".to_owned()],
            });
        }
        if cells.iter().any(|cell| cell != "–") {
            line(&mut text, &format!("| {} | {} |", row.title, cells.join(" | ")));
        }
    }
    line(
        &mut text,
        "\nNo store: transient events where users are connected; durable ones in memory where they are away.\n",
    );
    for (server, name) in &engines {
        line(&mut text, &latency_verdict(samples, server, name));
    }
    line(&mut text, &memory_verdict(samples));
    faults(&mut text, samples);
    text
}

fn added(figures: &[(usize, f64)], base: &[(usize, f64)]) -> Vec<f64> {
    against(figures, base, |value, base| value - base)
}

fn latency_verdict(samples: &[Sample], server: &str, name: &str) -> String {
    let added = added(&figures(samples, server, P50), &figures(samples, TRANSIENT, P50));
    Spread::of(added).map_or_else(
        || format!("- {name}: the added latency was not measured."),
        |Spread { median, .. }| {
            let met = if median <= ADDED_P50_MAX { "met" } else { "NOT met" };
            format!("- {name}: adds {} ms at the median (target: at most {ADDED_P50_MAX} ms): {met}.", number(median))
        },
    )
}

/// The highest of all runs counts.
fn memory_verdict(samples: &[Sample]) -> String {
    let all = samples.iter().filter_map(|sample| sample.value(ACTIVE_AFTERWARDS.0, ACTIVE_AFTERWARDS.1));
    all.reduce(f64::max).map_or_else(
        || "- Actors of users for whom something waits: not measured.".to_owned(),
        |actors| {
            let met = if actors == 0.0 { "met" } else { "NOT met" };
            format!("- Actors of users for whom something waits, after the idle time: {actors} (target: 0): {met}.")
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;

    fn sample(server: &'static str, round: usize, p50: f64, actors: f64) -> Sample {
        let mut steady = Report::new("steady");
        steady.value(P50.1, p50);
        let mut cold = Report::new("away");
        cold.value(ACTIVE_AFTERWARDS.1, actors);
        Sample { server, round, reports: vec![("steady", steady), ("cold", cold)], error: None }
    }

    #[test]
    fn what_is_added_and_ratios_are_taken_inside_a_round() {
        let samples = [
            sample(TRANSIENT, 1, 5.0, 0.0),
            sample(SQLITE, 1, 7.0, 0.0),
            sample(TRANSIENT, 2, 10.0, 0.0),
            sample(SQLITE, 2, 15.0, 0.0),
        ];
        let text = markdown(&samples, "title");
        let p50 = "| 7.50 (5.00–10.0) | 11.0 (7.00–15.0) | 1.45 (1.40–1.50) |";
        assert!(text.contains(p50), "{text}");
        assert!(text.contains("| steady: p50, added, ms | – | 3.50 (2.00–5.00) | – |"), "{text}");
        assert!(text.contains("adds 3.50 ms at the median (target: at most 6 ms): met"), "{text}");
        assert!(text.contains("after the idle time: 0 (target: 0): met"), "{text}");
        assert!(!text.contains("PostgreSQL"), "{text}");
    }

    #[test]
    fn targets_that_are_missed_are_said() {
        let samples = [sample(TRANSIENT, 1, 5.0, 0.0), sample(SQLITE, 1, 11.5, 3.0), sample(POSTGRES, 1, 11.0, 0.0)];
        let text = markdown(&samples, "title");
        assert!(text.contains("SQLite, durable: adds 6.50 ms at the median (target: at most 6 ms): NOT met"), "{text}");
        assert!(text.contains("PostgreSQL, durable: adds 6.00 ms at the median (target: at most 6 ms): met"), "{text}");
        assert!(text.contains("after the idle time: 3 (target: 0): NOT met"), "{text}");
    }

    #[test]
    fn every_row_of_the_table_has_a_column_for_each_head() {
        let samples = [sample(TRANSIENT, 1, 5.0, 0.0), sample(SQLITE, 1, 6.0, 0.0), sample(POSTGRES, 1, 6.0, 0.0)];
        let text = markdown(&samples, "title");
        let columns: Vec<_> = text.lines().filter(|l| l.starts_with('|')).map(|l| l.matches('|').count()).collect();
        assert!(columns.len() > 3 && columns.iter().all(|&count| count == columns[0]), "{text}");
    }
}
