//! Several nodes that share a database and a topic.

use std::num::NonZeroU8;

use notifier::placement::assignment::{self, Candidate};

use super::{
    Feed, Node, Store,
    node::{Builder, free_ports},
    wait::eventually,
};

/// Shards of a test's cluster: few, so that all of them have users.
pub const SHARDS: i64 = 64;

/// Nodes that share a database and a topic.
pub struct Cluster {
    pub feed: Feed,
    pub store: Store,
    pub nodes: Vec<Node>,
    /// Into how many its users are divided.
    shards: i64,
    /// What is set in the configuration of each.
    each: fn(Builder) -> Builder,
}

impl Cluster {
    /// So many nodes, which have shared everything out among them.
    pub async fn start(count: usize, partitions: i32) -> Self {
        Self::start_with(count, partitions, Store::postgres().await, |_, builder| builder).await
    }

    /// The same, with something set in the configuration of each, of those that come later too.
    pub async fn start_each(count: usize, partitions: i32, each: fn(Builder) -> Builder) -> Self {
        Self::start_divided(count, (SHARDS, partitions), each).await
    }

    /// The same, with so many shards and partitions.
    pub async fn start_divided(count: usize, (shards, partitions): (i64, i32), each: fn(Builder) -> Builder) -> Self {
        let (feed, store) = (Feed::new(partitions).await, Store::postgres().await);
        let mut cluster = Self { feed, store, nodes: Vec::new(), shards, each };
        for _ in 0..count {
            cluster.add().await;
        }
        cluster.settled().await;
        cluster
    }

    /// The same with that store, each node configured by its number. All begin at the same time.
    pub async fn start_with(
        count: usize,
        partitions: i32,
        store: Store,
        configure: impl Fn(usize, Builder) -> Builder,
    ) -> Self {
        Self::start_on(Feed::new(partitions).await, count, store, configure).await
    }

    /// The same on that feed.
    pub async fn start_on(
        feed: Feed,
        count: usize,
        store: Store,
        configure: impl Fn(usize, Builder) -> Builder,
    ) -> Self {
        let each = |builder| builder;
        let mut cluster = Self { feed, store, nodes: Vec::new(), shards: SHARDS, each };
        for index in 0..count {
            let node = configure(index, cluster.builder()).start_unready();
            cluster.nodes.push(node);
        }
        for node in &cluster.nodes {
            node.ready().await;
        }
        cluster.settled().await;
        cluster
    }

    /// The configuration of its next node.
    pub fn builder(&self) -> Builder {
        let [link] = free_ports();
        let builder = self.store.of(Node::builder(&self.feed));
        (self.each)(builder)
            .set("node.id", format!("n{}", self.nodes.len()))
            .set("cluster.enabled", true)
            .set("cluster.listen", format!("127.0.0.1:{link}"))
            .set("cluster.secret", "between nodes")
            .set("cluster.shards", self.shards)
            .set("kafka.partition_refresh", "1s")
    }

    /// One more.
    pub async fn add(&mut self) {
        let node = self.builder().start().await;
        self.nodes.push(node);
    }

    /// Every node must still run; `why` it may not have ended.
    pub fn all_run(&mut self, why: &str) {
        for node in &mut self.nodes {
            assert!(node.is_running(), "{why}:\n{}", node.log());
        }
    }

    /// Waits until each of the nodes that run has its share of the shards: all that it should, and nothing else.
    pub async fn settled(&mut self) {
        let (mut names, mut running) = (Vec::new(), Vec::new());
        for (index, node) in self.nodes.iter_mut().enumerate() {
            if node.is_running() {
                names.push(format!("n{index}"));
                running.push(&*node);
            }
        }
        let candidates: Vec<_> = names.iter().map(|id| Candidate { id, weight: NonZeroU8::MIN }).collect();
        let owners = assignment::shards(&candidates, u16::try_from(self.shards).expect("a number of shards"));
        eventually("all shards are served, by the nodes that should", async || {
            for (at, node) in running.iter().enumerate() {
                let metrics = node.metrics().await;
                let share = owners.iter().filter(|owner| **owner == at).count();
                let is_there = metrics.sum("notifier_shards_owned") == share as f64;
                if !is_there || metrics.sum("notifier_shards_unowned") > 0.0 {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }
}
