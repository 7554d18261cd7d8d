//! The names of all figures that a phase can have, so that an objective with a typo is refused before anything runs.

/// Names as they are.
const NAMES: &[&str] = &[
    "all_back_seconds",
    "calm_rss_bytes",
    "connects",
    "connects_refused_meanwhile",
    "context_switches_per_delivery",
    "context_switches_per_session_second",
    "deliveries",
    "deliveries_per_second",
    "dropped_events",
    "duplicates",
    "events",
    "events_per_second",
    "forwarded_events_per_delivery",
    "gaps",
    "goodbyes",
    "idle_seconds",
    "lag_highest_records",
    "lost",
    "misdirected",
    "nodes_restarted",
    "other_frames",
    "own_busiest_clients_percent",
    "own_confirmation_max_ms",
    "own_confirmation_p99_ms",
    "own_cpu_percent_of_a_core",
    "own_lateness_max_ms",
    "own_lateness_p50_ms",
    "own_lateness_p99_ms",
    "own_producer_cpu_percent",
    "p99_times_calm",
    "peak_rate_per_second",
    "pss_bytes",
    "rate_per_second",
    "reordered",
    "replay_seconds",
    "rss_before_bytes",
    "rss_bytes",
    "rss_highest_bytes",
    "rss_kib_per_session",
    "rss_peak_bytes",
    "rss_peak_growth_bytes",
    "sent_per_second",
    "sequence_fell",
    "server_cpu_percent_of_a_core",
    "server_cpu_us_per_connect",
    "server_cpu_us_per_delivery",
    "server_cpu_us_per_event",
    "server_cpu_us_per_return",
    "sessions",
    "sessions_that_came_back",
    "slow_consumers_closed",
    "slowest_start_seconds",
    "slowest_stop_seconds",
    "stalled_sessions",
    "stalled_sessions_closed",
    "stalled_unread_events",
    "stalled_unread_kib_per_session",
    "store_cpu_us_per_delivery",
    "wall_seconds",
];

/// What stands before a percentile.
const LATENCIES: [&str; 7] = [
    "away",
    "calm_latency_from_due",
    "connect_latency",
    "hot_latency_from_due",
    "latency_from_due",
    "latency_from_record",
    "survivors_latency_from_due",
];
const PERCENTILES: [&str; 4] = ["_p50_ms", "_p99_ms", "_p999_ms", "_max_ms"];
/// What stands behind a node's number.
const OF_A_NODE: [&str; 3] = ["_cpu_us_per_delivery", "_rss_bytes", "_connections"];

/// Of these each one is a fault of the run, which no objective takes away.
pub const FAULTS: [&str; 6] = ["lost", "duplicates", "reordered", "misdirected", "sequence_fell", "gaps"];

/// Whether some phase of some scenario can have a figure of this name.
pub fn is_known(name: &str) -> bool {
    let is_latency =
        PERCENTILES.iter().any(|end| name.strip_suffix(end).is_some_and(|latency| LATENCIES.contains(&latency)));
    let of_node = name.strip_prefix("node_").map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    NAMES.contains(&name) || is_latency || of_node.is_some_and(|rest| OF_A_NODE.contains(&rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_percentiles_and_nodes_are_known_and_nothing_else() {
        for known in ["lost", "latency_from_due_p99_ms", "away_max_ms", "node_12_rss_bytes", "rss_bytes"] {
            assert!(is_known(known), "{known}");
        }
        for unknown in ["latency_from_due_p98_ms", "latency_p99_ms", "node_0_rss", "rss_byte", "node__"] {
            assert!(!is_known(unknown), "{unknown}");
        }
        assert!(FAULTS.iter().all(|name| is_known(name)));
    }
}
