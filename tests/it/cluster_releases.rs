//! Nodes of two releases in one cluster, which speak different versions of the link.

use crate::harness::{
    cluster::Cluster,
    node::{NOTIFIER, Node},
    traffic::Traffic,
};

/// What a test build reads its versions of the link from.
const VERSIONS: &str = "FAULT_LINK_VERSIONS";
const FORMER: &str = "1";
const NEXT: &str = "1-2";
const USERS: usize = 24;

/// A build of a former release, where there is one at hand.
fn former() -> String {
    std::env::var("NOTIFIER_TEST_FORMER").unwrap_or_else(|_| NOTIFIER.to_owned())
}

/// Every link that the node has opened since it was started speaks that version.
fn speaks(node: &Node, version: u32) {
    let said = format!("\"version\":{version},");
    let log = node.log();
    let links: Vec<&str> = log.lines().filter(|line| line.contains(r#""message":"link""#)).collect();
    assert!(!links.is_empty() && links.iter().all(|line| line.contains(&said)), "{said}: {links:#?}");
}

#[tokio::test]
async fn a_cluster_goes_to_the_next_release_and_back_node_by_node_and_nothing_is_lost() {
    let mut cluster = Cluster::start_each(3, 6, |builder| builder.env(VERSIONS, FORMER)).await;
    for node in [0, 1, 2] {
        cluster.nodes[node].becomes(&former(), (VERSIONS, FORMER));
        cluster.nodes[node].restart().await;
    }
    cluster.settled().await;
    cluster.store.watch_writers().await;
    let traffic = Traffic::start(&cluster, USERS).await;
    traffic.flows().await;
    for (program, versions) in [(NOTIFIER.to_owned(), NEXT), (former(), FORMER)] {
        for node in [0, 1, 2] {
            traffic.hurt(node);
            cluster.nodes[node].becomes(&program, (VERSIONS, versions));
            cluster.nodes[node].restart().await;
            traffic.well(node);
            traffic.flows().await;
            if (node, versions) == (0, NEXT) {
                speaks(&cluster.nodes[0], 1);
            }
        }
        cluster.settled().await;
        if versions == NEXT {
            speaks(&cluster.nodes[2], 2);
        }
    }
    traffic.check(&cluster).await;
}

#[tokio::test]
async fn a_node_of_a_release_that_is_too_far_away_does_not_join() {
    let cluster = Cluster::start_each(1, 2, |builder| builder.env(VERSIONS, FORMER)).await;
    let far = cluster.builder().env(VERSIONS, "2-3").fails().await;
    assert_eq!(far.code(), 2, "{far:?}");
    assert!(far.stderr.contains("node n0 is of a release that is too far"), "{far:?}");
    assert!(far.stderr.contains("it speaks version 1 of the link, this node 2-3"), "{far:?}");
    assert!(cluster.nodes[0].try_admin("/readyz").await.is_some_and(|answer| answer.status() == 200));
}
