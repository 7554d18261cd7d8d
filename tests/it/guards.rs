//! Who finds a store in use by somebody who must not share it does not start, and harms nobody.

use std::time::{Duration, Instant};

use crate::harness::{
    Event, Feed, Node, Store, cluster::Cluster, node::Builder, traffic::Traffic, wait::eventually_within,
};

/// How long one that was killed may take to be back, on a busy machine: it waits for 2 s at most.
const BACK: Duration = Duration::from_secs(20);

async fn refused(builder: Builder) -> String {
    let refused = builder.fails().await;
    assert_eq!(refused.code(), 2, "{refused:?}");
    assert!(refused.stderr.contains("store.url"), "{refused:?}");
    refused.stderr
}

#[tokio::test]
async fn a_second_node_on_a_store_whose_cluster_is_disabled_is_refused() {
    for store in Store::each().await {
        let engine = store.engine();
        let feed = Feed::new(1).await;
        let mut node = store.of(Node::builder(&feed)).start().await;
        let mut client = node.connect("101").await;
        for id in ["test", "another"] {
            refused(store.of(Node::builder(&feed)).set("node.id", id)).await;
        }
        // The first one's watch over the store looks each second.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        feed.send(&Event::numbered("101", 0)).await;
        assert_eq!(client.one().await.n(), 0, "{engine}");
        feed.all_committed().await;
        assert!(node.is_running(), "{engine}: {}", node.log());
        // What has ended in good order is not waited for.
        node.stop().await.ok();
        let next = store.of(Node::builder(&feed)).set("node.id", "another").start().await;
        assert!(!next.log().contains("waiting for"), "{engine}: {}", next.log());
    }
}

#[tokio::test]
async fn a_node_that_was_killed_is_back_within_seconds() {
    for store in Store::each().await {
        let feed = Feed::new(1).await;
        let mut node = store.of(Node::builder(&feed)).start().await;
        node.kill();
        let killed = Instant::now();
        node.start_again();
        node.ready().await;
        println!("{}: ready {:?} after kill -9", store.engine(), killed.elapsed());
        assert!(killed.elapsed() < BACK, "{}", node.log());
        feed.send(&Event::numbered("101", 0)).await;
        assert_eq!(node.connect("101").await.one().await.n(), 0);
    }
}

/// Whoever stands still is taken for dead: that costs it its life, and nobody a notification.
#[tokio::test]
async fn a_node_that_stands_still_is_replaced_by_the_next_and_ends() {
    let store = Store::postgres().await;
    let feed = Feed::new(1).await;
    let mut node = store.of(Node::builder(&feed)).start().await;
    node.process().stop().await;
    let frozen = Instant::now();
    let next = store.of(Node::builder(&feed)).set("node.id", "next").start().await;
    println!("the next one is ready {:?} after the start", frozen.elapsed());
    assert!(frozen.elapsed() >= Duration::from_secs(5), "it has connections, and may live:\n{}", next.log());
    feed.send(&Event::numbered("101", 0)).await;
    assert_eq!(next.connect("101").await.one().await.n(), 0);
    node.process().signal("CONT");
    assert_eq!(node.ends().await, 3);
    assert_eq!(store.rows().await.len(), 1);
}

/// It does not renew while the database is away, nor does it lose its place by that.
#[tokio::test]
async fn a_node_whose_connections_were_cut_is_not_taken_for_dead() {
    let store = Store::postgres().await;
    let feed = Feed::new(1).await;
    let mut node = store.of(Node::builder(&feed)).start().await;
    let first = store.visitors().await;
    let second = async { refused(store.of(Node::builder(&feed)).set("node.id", "second")).await };
    let cuts = async {
        for _ in 0..15 {
            store.cut_off(&first).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = second => {}
        () = cuts => {}
    }
    assert!(node.is_running(), "{}", node.log());
    feed.send(&Event::numbered("101", 0)).await;
    assert_eq!(node.connect("101").await.one().await.n(), 0);
}

#[tokio::test]
async fn a_cluster_and_a_node_that_is_none_do_not_share_a_store() {
    let mut cluster = Cluster::start(2, 2).await;
    let traffic = Traffic::start(&cluster, 4).await;
    // By a name of the cluster's, and by another.
    for id in ["n0", "alone"] {
        let alone = cluster.store.of(Node::builder(&cluster.feed)).set("cluster.shards", 64).set("node.id", id);
        let why = refused(alone).await;
        assert!(why.contains("cluster.enabled"), "{why}");
    }
    traffic.flows().await;
    assert!(cluster.nodes.iter_mut().all(Node::is_running));
    traffic.check(&cluster).await;
    // When all have left it is anybody's.
    for node in &mut cluster.nodes {
        node.stop().await.ok();
    }
    let alone = cluster.store.of(Node::builder(&cluster.feed)).set("cluster.shards", 64).start().await;
    let why = refused(cluster.builder()).await;
    assert!(why.contains("cluster.enabled"), "{why}");
    alone.ready().await;
    drop(alone);
    // It was killed: a member waits for that to be sure.
    let member = cluster.builder().start_unready();
    eventually_within(BACK, "a member", async || (member.try_admin("/readyz").await?.status() == 200).then_some(()))
        .await;
}
