//! Nodes that know the secret and reach the store, and do not show what the others trust.

use std::{collections::HashSet, path::PathBuf};

use serde_json::Value;

use super::*;
use crate::harness::{certs::Certs, command::json_lines, process::Finished, wait::eventually};

const KEY: &str = "operator-key";

/// A node that shows one of these certificates, and trusts those of the other authority.
fn showing(builder: Builder, shown: &Certs, trusted: &Certs) -> Builder {
    let text = |path: PathBuf| path.to_str().expect("UTF-8").to_owned();
    let builder = builder.set("cluster.tls_cert_file", text(shown.cert()));
    builder.set("cluster.tls_key_file", text(shown.key())).set("cluster.tls_ca_file", text(trusted.authority()))
}

/// Whom a node has opened links to, by its log.
fn linked(log: &str) -> HashSet<String> {
    let links = json_lines(log).into_iter().filter(|line| line["message"] == "link");
    links.map(|line| line["peer"].as_str().expect("a peer").to_owned()).collect()
}

async fn member(cluster: &Cluster, id: &str) -> Option<Value> {
    let answer = cluster.nodes[0].request("GET", "/v1/cluster", &[("X-API-Key", KEY)], "").await;
    answer.json()["members"].as_array()?.iter().find(|member| member["id"] == id).cloned()
}

/// What a node has said of one that it cannot link with: where that should be, and why not.
fn complaints(log: &str, peer: &str) -> Vec<(String, String)> {
    let lines = json_lines(log).into_iter().filter(|line| line["message"] == "no link to another node");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    lines.filter(|line| line["peer"] == peer).map(|line| (text(&line["address"]), text(&line["why"]))).collect()
}

#[tokio::test]
async fn who_shows_no_certificate_that_others_trust_has_no_link_and_no_shard_and_ends() {
    let (certs, foreign) = (Certs::new().await, Certs::new().await);
    let configure = |_, builder: Builder| showing(builder, &certs, &certs).api_key("operator", KEY, &["read"]);
    let mut cluster = Cluster::start_with(2, PARTITIONS, Store::postgres().await, configure).await;
    cluster.store.watch_writers().await;
    let traffic = traffic(&cluster).await;
    let without = cluster.builder().set("node.id", "without").start_unready();
    let stranger = showing(cluster.builder(), &foreign, &certs).set("node.id", "stranger").start_unready();
    for (id, mut node) in [("without", without), ("stranger", stranger)] {
        let ended: Finished = node.take().finish(END * 4).await;
        assert_eq!(ended.code(), 3, "{ended:?}");
        assert_eq!(cluster.store.takes_of(id).await, 0, "{id} has owned shards: {ended:?}");
        assert!(linked(&ended.stderr).is_empty(), "{ended:?}");
        let (_, last_words) = ended.stderr.rsplit_once("could not be linked with").expect("why it has ended");
        assert!(last_words.contains("n0 (") && last_words.contains("certificate"), "{ended:?}");
        let dead = member(&cluster, id).await.expect("it was a member");
        assert_eq!((&dead["state"], &dead["shards"]), (&Value::from("dead"), &Value::from(0)), "{id}");
        let (incarnation, address) = (dead["incarnation"].as_str().expect("text"), &dead["addresses"][0]);
        for node in &cluster.nodes {
            let complaints = complaints(&node.log(), incarnation);
            assert_eq!(complaints.len(), 1, "{}", node.log());
            assert_eq!(&Value::from(&*complaints[0].0), address, "{complaints:?}");
            assert!(complaints[0].1.starts_with("TLS with it fails"), "{complaints:?}");
        }
    }
    goes_on(&traffic).await;
    cluster.all_run("strangers harm nobody");
    for node in &cluster.nodes {
        assert_eq!(linked(&node.log()).len(), 1, "{}", node.log());
    }
    cluster.settled().await;
    traffic.check(&cluster).await;
}

#[tokio::test]
async fn who_waits_for_links_can_be_seen_and_stopped() {
    let (certs, foreign) = (Certs::new().await, Certs::new().await);
    let configure = |_, builder: Builder| showing(builder, &certs, &certs);
    let mut cluster = Cluster::start_with(1, PARTITIONS, Store::postgres().await, configure).await;
    let mut stranger = showing(cluster.builder(), &foreign, &foreign).set("node.id", "stranger").start_unready();
    eventually("it lives, and is not ready", async || {
        let (lives, ready) = (stranger.try_admin("/livez").await?, stranger.try_admin("/readyz").await?);
        (lives.status() == 200 && ready.status() == 503 && format!("{ready:?}").contains("joining")).then_some(())
    })
    .await;
    stranger.process().signal("TERM");
    let ended = stranger.take().finish(END).await;
    assert_eq!(ended.code(), 0, "{ended:?}");
    cluster.all_run("a stranger harms nobody");
    cluster.settled().await;
}

/// Of two members each may say alone that the other one is dead; but not who has never been active.
#[tokio::test]
async fn the_only_node_outlives_a_stranger() {
    let (certs, foreign) = (Certs::new().await, Certs::new().await);
    let configure = |_, builder: Builder| showing(builder, &certs, &certs);
    let mut cluster = Cluster::start_with(1, PARTITIONS, Store::postgres().await, configure).await;
    let stranger = showing(cluster.builder(), &foreign, &foreign).set("node.id", "stranger");
    let ended = stranger.fails().await;
    assert_eq!(ended.code(), 3, "{ended:?}");
    assert!(ended.stderr.contains("TLS with it fails: invalid peer certificate"), "{ended:?}");
    cluster.all_run("a stranger harms nobody");
    cluster.settled().await;
}
