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

#[tokio::test]
async fn who_shows_no_certificate_that_others_trust_has_no_link_and_ends() {
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
        assert!(linked(&ended.stderr).is_empty(), "{ended:?}");
        eventually("others know that it is dead, and serve what it may have had", async || {
            let member = member(&cluster, id).await?;
            (member["state"] == "dead" && member["shards"] == 0).then_some(())
        })
        .await;
    }
    goes_on(&traffic).await;
    cluster.all_run("strangers harm nobody");
    for node in &cluster.nodes {
        assert_eq!(linked(&node.log()).len(), 1, "{}", node.log());
    }
    cluster.settled().await;
    traffic.check(&cluster).await;
}
