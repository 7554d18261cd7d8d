//! Nodes that do not reach each other.

use super::*;
use crate::harness::{
    Node,
    proxy::{Proxy, Way},
    wait::eventually,
    ways::Links,
};

/// A cluster whose nodes reach each other over proxies, one before each.
async fn with_proxies_between() -> (Cluster, Vec<Proxy>) {
    let links = Links::of(3).await;
    let cluster = three_with(Store::postgres().await, |node, builder| links.before(node, builder)).await;
    (cluster, links.to)
}

#[tokio::test]
async fn links_that_break_cost_nothing() {
    let (mut cluster, proxies) = with_proxies_between().await;
    let traffic = traffic(&cluster).await;
    for _ in 0..3 {
        for proxy in &proxies {
            proxy.cut();
            traffic.flow(Duration::from_millis(300)).await;
        }
    }
    goes_on(&traffic).await;
    cluster.all_run("the others heard it in time");
    traffic.check(&cluster).await;
}

#[tokio::test]
async fn nobody_reaches_anybody_for_a_while_and_nobody_dies_of_it() {
    let (mut cluster, proxies) = with_proxies_between().await;
    let traffic = traffic(&cluster).await;
    proxies.iter().for_each(|proxy| proxy.freeze(true));
    traffic.flow(Duration::from_secs(8)).await;
    proxies.iter().for_each(|proxy| proxy.freeze(false));
    goes_on(&traffic).await;
    cluster.all_run("nobody hears more than half, and all renew");
    traffic.check(&cluster).await;
}

#[tokio::test]
async fn one_node_is_out_of_the_others_reach_for_a_while() {
    let (mut cluster, proxies) = with_proxies_between().await;
    let traffic = traffic(&cluster).await;
    traffic.hurt(2);
    proxies[2].freeze(true);
    traffic.flow(Duration::from_secs(4)).await;
    proxies[2].freeze(false);
    goes_on(&traffic).await;
    // It reaches the others: they may wait for it, or go on without it.
    if !cluster.nodes[2].is_running() {
        assert_eq!(cluster.nodes[2].ends().await, 3);
    }
    assert!(cluster.nodes[0].is_running() && cluster.nodes[1].is_running());
    cluster.settled().await;
    traffic.check(&cluster).await;
}

#[tokio::test]
async fn a_node_that_nobody_reaches_and_that_reaches_others_is_replaced_and_ends() {
    let (mut cluster, proxies) = with_proxies_between().await;
    let traffic = traffic(&cluster).await;
    traffic.hurt(2);
    proxies[2].freeze(true);
    is_replaced(&mut cluster, traffic, LONG_SILENCE, "nobody reached a node").await;
}

/// How many of a node's links go through a third one.
async fn through_others(node: &Node, wanted: f64) {
    eventually(&format!("{wanted} links through a third node"), async || {
        (node.metrics().await.sum("notifier_link_through_others") == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn two_that_do_not_reach_each_other_go_on_through_the_third() {
    let (mut cluster, proxies) = with_proxies_between().await;
    let traffic = traffic(&cluster).await;
    let [one, other] = [0, 2].map(|node| cluster.nodes[node].process().id());
    let cut = Instant::now();
    proxies[2].freeze_for(one, true);
    proxies[0].freeze_for(other, true);
    for node in [0, 2] {
        through_others(&cluster.nodes[node], 1.0).await;
    }
    println!("both go through the third {:?} after the cut", cut.elapsed());
    goes_on(&traffic).await;
    cluster.all_run("the third hears both");
    assert_eq!(cluster.nodes[1].metrics().await.sum("notifier_link_through_others"), 0.0);
    proxies[2].freeze_for(one, false);
    proxies[0].freeze_for(other, false);
    for node in [0, 2] {
        through_others(&cluster.nodes[node], 0.0).await;
    }
    goes_on(&traffic).await;
    let what = "two nodes did not reach each other";
    traffic.check(&cluster).await.is_silent_for_less_than(LONGEST_SILENCE, what, cut);
}

/// Each change of the way finds events and frames on it.
#[tokio::test]
async fn a_way_that_changes_again_and_again_under_load_reorders_nothing() {
    let (mut cluster, proxies) = with_proxies_between().await;
    let traffic = Traffic::start_busy(&cluster, USERS).await;
    let caller = cluster.nodes[0].process().id();
    for _ in 0..3 {
        proxies[2].freeze_for(caller, true);
        proxies[2].cut();
        through_others(&cluster.nodes[0], 1.0).await;
        traffic.flow(CALM).await;
        proxies[2].freeze_for(caller, false);
        through_others(&cluster.nodes[0], 0.0).await;
    }
    goes_on(&traffic).await;
    assert!(cluster.nodes.iter_mut().all(Node::is_running));
    traffic.check(&cluster).await;
}

/// Who passes a link on dies: the two reach each other through nobody then, and wait.
#[tokio::test]
async fn a_third_that_dies_is_missed_until_the_two_reach_each_other() {
    let (mut cluster, proxies) = with_proxies_between().await;
    let traffic = traffic(&cluster).await;
    let caller = cluster.nodes[0].process().id();
    proxies[2].freeze_for(caller, true);
    proxies[2].cut();
    through_others(&cluster.nodes[0], 1.0).await;
    // Of two that are left each may declare the other one dead.
    for node in [0, 1, 2] {
        traffic.hurt(node);
    }
    cluster.nodes[1].kill();
    traffic.flow(Duration::from_secs(2)).await;
    proxies[2].freeze_for(caller, false);
    goes_on(&traffic).await;
    cluster.settled().await;
    traffic.check(&cluster).await;
}

/// How late the frames of a former owner come.
const LATE: Duration = Duration::from_secs(3);

/// Notifications in what one node has said to another: their users and numbers.
fn notifications(bytes: &[u8]) -> Vec<(String, u64)> {
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    let text = String::from_utf8_lossy(bytes);
    let mut pieces = text.split("{\"n\":");
    let mut before = pieces.next().unwrap_or_default();
    let mut found = Vec::new();
    for behind in pieces {
        // One that is cut in two has its user elsewhere.
        if let (Some(user), Ok(n)) = (before.split("user-").nth(1), digits(behind).parse()) {
            found.push((format!("user-{}", digits(user)), n));
        }
        before = behind;
    }
    found
}

/// The last node leaves, and what it says to the middle one comes late: clients there are served by another one for long
/// when its last frames come.
#[tokio::test]
async fn frames_of_a_former_owner_that_come_3_s_late_reach_nobody() {
    let links = Links::of(3).await;
    // Nobody listens to who has left: its own clients' goodbyes take longer than its last frames.
    let configure =
        |node, builder| links.before(node, builder).set("drain.goodbyes_per_second", if node == 2 { 4 } else { 500 });
    let mut cluster = three_with(Store::postgres().await, configure).await;
    let traffic = Traffic::start_busy(&cluster, 2 * USERS).await;
    let middle = cluster.nodes[1].process().id();
    links.to[2].delay_for(middle, Way::Back, LATE);
    traffic.flow(LATE + CALM).await;
    traffic.hurt(2);
    let leaving = cluster.nodes[2].take();
    leaving.signal("TERM");
    let left = leaving.finish(Duration::from_secs(60)).await;
    assert_eq!(left.code(), 0, "{left:?}");
    goes_on(&traffic).await;
    cluster.settled().await;
    let checked = traffic.check(&cluster).await;
    let (mut all, mut needless) = (0, 0);
    for late in links.to[2].came_late() {
        for (user, n) in notifications(&late.bytes) {
            all += 1;
            needless += usize::from(checked.had(&user, n).is_some_and(|had| had < late.came));
        }
    }
    println!("{all} notifications came late, {needless} of them when their clients had them from somebody else");
    assert!(needless > 0, "of {all} notifications that came late, none came too late");
}
