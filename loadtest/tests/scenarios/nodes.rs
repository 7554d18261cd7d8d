//! Several nodes: killed, restarted, more of them, and users who are connected to another node than their own.

use super::{ended, figure, phase, read, small};
use serde_json::Value;

/// Runs one with small numbers and says what its only run came to.
fn run_of(scenario: &str, more: &[(&str, &str)]) -> Value {
    let directory = tempfile::tempdir().expect("a directory");
    let json = directory.path().join("a.json");
    let (output, said) = ended(small(&[scenario], more).arg("--json").arg(&json));
    assert!(output.status.success(), "{said}");
    let mut run = read(&json)["runs"][0].take();
    assert_eq!(run["error"], Value::Null, "{said}");
    for phase in run["phases"].as_array().expect("phases") {
        let wrong = ["lost", "duplicates", "reordered", "misdirected", "gaps", "sequence_fell"];
        let of = |name: &str| phase["report"]["values"][name].as_f64().unwrap_or(0.0);
        assert!(wrong.iter().all(|name| of(name) == 0.0), "{phase}");
        assert_eq!(of("deliveries"), of("events"), "{phase}");
    }
    run["said"] = Value::from(said);
    run
}

#[test]
fn a_node_that_is_killed_costs_its_sessions_a_reconnect_and_the_others_a_pause() {
    let run = run_of("reconnect-storm", &[("--sessions", "60"), ("--length", "7s"), ("--per-process", "30")]);
    let of = |name| figure(&run, "events", name);
    // A third of the sessions, spread by turns; nobody is told, nobody comes back twice.
    assert_eq!((of("sessions_that_came_back"), of("goodbyes")), (20.0, 0.0), "{run}");
    assert!(of("all_back_seconds") > 0.0 && of("all_back_seconds") < 20.0, "{run}");
    assert!(of("away_max_ms") > 0.0 && of("away_max_ms") <= of("all_back_seconds") * 1e3 + 100.0, "{run}");
    // The survivors' users and partitions that moved had to wait for their new owner.
    let [calm, survivors] = ["calm_latency_from_due_p50_ms", "survivors_latency_from_due_max_ms"].map(of);
    assert!(survivors > calm && survivors <= of("latency_from_due_max_ms"), "{run}");
    assert_eq!((of("node_2_rss_bytes"), of("node_0_connections") + of("node_1_connections")), (0.0, 60.0), "{run}");
}

#[test]
fn nodes_that_are_restarted_one_after_the_other_tell_their_clients_and_lose_nothing() {
    let run = run_of("rolling-restart", &[("--sessions", "60"), ("--length", "9s"), ("--rate", "100")]);
    let of = |name| figure(&run, "events", name);
    assert_eq!(of("nodes_restarted"), 3.0, "{run}");
    // Who came back to a node that was restarted later was sent away again.
    assert!(of("sessions_that_came_back") >= 60.0 && of("goodbyes") >= 60.0, "{run}");
    assert!(of("slowest_stop_seconds") > 0.0 && of("slowest_start_seconds") > 0.0, "{run}");
}

#[test]
fn nodes_are_counted_apart_and_events_pass_from_one_to_the_other_as_often_as_they_are_told_to() {
    let few = [("--length", "2s"), ("--rate", "300")];
    let growth = run_of("growth-nodes", &few);
    assert!(phase(&growth, "events on 1 nodes")["node_0_rss_bytes"].is_null(), "{growth}");
    let forwarded = figure(&growth, "events on 3 nodes", "forwarded_events_per_delivery");
    assert!((0.3..0.95).contains(&forwarded), "two of three events are read elsewhere: {forwarded}");
    assert!(figure(&growth, "events on 3 nodes", "node_2_rss_bytes") > 0.0);

    let hops = run_of("hops", &few);
    for (hops_count, expected) in [(0, 0.0), (1, 0.0), (2, 1.0)] {
        let name = format!("events over {hops_count} hops");
        let forwarded = figure(&hops, &name, "forwarded_events_per_delivery");
        assert!((forwarded - expected).abs() < 0.05, "{name}: {forwarded}");
    }
    // All are connected to one node, which is the other one as soon as there are hops: the node that reads then has none.
    let at = |hops_count, node| {
        figure(&hops, &format!("events over {hops_count} hops"), &format!("node_{node}_connections"))
    };
    for hops_count in 0..3 {
        assert_eq!((at(hops_count, 0).max(at(hops_count, 1)), at(hops_count, 0).min(at(hops_count, 1))), (40.0, 0.0));
    }
}

#[test]
fn sessions_grow_on_four_nodes() {
    let run = run_of("growth-to-60000", &[("--length", "2s")]);
    assert_eq!(figure(&run, "events at 40", "sessions"), 40.0);
    assert!(figure(&run, "events at 40", "node_3_rss_bytes") > 0.0, "{run}");
}
