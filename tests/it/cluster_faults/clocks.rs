//! Nodes whose clocks show different times.

use serde_json::Value;

use super::*;
use crate::harness::{Node, clock::WrongClocks, cluster::SHARDS, command::json_lines, wait::eventually};

const KEY: &str = "operator-key";
const HOUR: i64 = 3600;

/// How far the clock of a node is from this one's, by what it has logged first.
fn offset(node: &Node) -> i64 {
    let lines = json_lines(&node.log());
    let stamp = lines[0]["timestamp"].as_str().expect("a time");
    let stamp = humantime::parse_rfc3339(stamp).expect("a time");
    let seconds =
        |time: std::time::SystemTime| time.duration_since(std::time::UNIX_EPOCH).expect("past 1970").as_secs();
    seconds(stamp).cast_signed() - seconds(std::time::SystemTime::now()).cast_signed()
}

/// All see the same members, none of which but `dead` is dead, and together they serve everything.
async fn agree(cluster: &mut Cluster, active: &[&str], dead: &[&str]) {
    for node in cluster.nodes.iter_mut().filter_map(|node| node.is_running().then_some(&*node)) {
        eventually("everything is served and read, by those that run", async || {
            let seen = node.request("GET", "/v1/cluster", &[("X-API-Key", KEY)], "").await.json();
            let members = seen["members"].as_array()?;
            let with = |state: &str| {
                let mut ids: Vec<&str> =
                    members.iter().filter(|it| it["state"] == state).filter_map(|it| it["id"].as_str()).collect();
                ids.sort_unstable();
                ids
            };
            assert_eq!(with("dead"), dead, "{seen}");
            let read = members.iter().filter_map(|it| it["partitions"].as_array()).map(Vec::len).sum::<usize>();
            let shards = members.iter().filter_map(|it| it["shards"].as_i64()).sum::<i64>();
            let is_whole = seen["unowned"] == 0 && seen["moves"] == Value::Array(Vec::new());
            (with("active") == active && is_whole && read == PARTITIONS as usize && shards == SHARDS).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn clocks_an_hour_apart_cost_nothing() {
    let ahead_and_behind = [0, HOUR, -HOUR];
    let clocks = WrongClocks::new().await;
    let off_by = |seconds, builder: Builder| clocks.off_by(seconds, builder.api_key("operator", KEY, &["read"]));
    let configure = |node: usize, builder| off_by(ahead_and_behind[node], builder);
    let mut cluster = three_with(Store::postgres().await, configure).await;
    for (node, wanted) in cluster.nodes.iter().zip(ahead_and_behind) {
        let offset = offset(node);
        assert!((offset - wanted).abs() < 60, "its clock is {offset} s off, not {wanted} s");
    }
    let traffic = traffic(&cluster).await;
    agree(&mut cluster, &["n0", "n1", "n2"], &[]).await;
    let newcomer = off_by(HOUR, cluster.builder()).start().await;
    traffic.joined(&newcomer);
    cluster.nodes.push(newcomer);
    goes_on(&traffic).await;
    agree(&mut cluster, &["n0", "n1", "n2", "n3"], &[]).await;
    traffic.hurt(2);
    let killed = Instant::now();
    cluster.nodes[2].kill();
    goes_on(&traffic).await;
    agree(&mut cluster, &["n0", "n1", "n3"], &["n2"]).await;
    traffic.hurt(1);
    cluster.nodes[1].restart().await;
    traffic.well(1);
    goes_on(&traffic).await;
    agree(&mut cluster, &["n0", "n1", "n3"], &["n1", "n2"]).await;
    cluster.settled().await;
    traffic.check(&cluster).await.is_silent_for_less_than(SILENCE, "a node was killed", killed);
}
