//! Who takes part in a cluster, as one of its nodes says at `GET /v1/cluster`.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::admin;

/// What this tool may read the cluster with, and its hash as the nodes' configuration has it.
const KEY: &str = "loadtest-reads-the-cluster-0123456789";
const KEY_SHA256: &str = "33a918c8eece6707360e1e272ffa9768f03a0945d5cff0e90dca7d0efa1639f9";
const SECRET: &str = "between nodes of a load test";

/// A cluster as one node knows it.
#[derive(Debug, Deserialize)]
pub struct View {
    unowned: usize,
    members: Vec<Member>,
    moves: Vec<serde_json::Value>,
}

/// One node.
#[derive(Debug, Deserialize)]
pub struct Member {
    pub id: String,
    state: String,
    /// Shards that it serves.
    pub shards: usize,
    /// Those that it reads; `None`: it did not say.
    pub partitions: Option<Vec<i32>>,
}

/// The configuration of the node with this number.
pub fn configuration(number: usize) -> String {
    let id = name(number);
    format!(
        r#"[node]
id = "{id}"
[cluster]
enabled = true
secret = "{SECRET}"
[[auth.api_keys]]
name = "loadtest"
sha256 = "{KEY_SHA256}"
scopes = ["read"]
"#
    )
}

/// What the node with this number is called.
pub fn name(number: usize) -> String {
    format!("n{number}")
}

/// Asks a node, at its client port.
pub fn look(client: SocketAddr) -> Result<View> {
    let answer = admin::get(client, "/v1/cluster", &format!("X-API-Key: {KEY}\r\n"))
        .with_context(|| format!("no answer from {client}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer of HTTP")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "the cluster was not shown: {head}");
    serde_json::from_str(body).context("the cluster as JSON")
}

impl View {
    /// Everything is shared out among so many nodes, and no user is on its way.
    pub fn is_settled(&self, nodes: usize, partitions: usize) -> bool {
        let active: Vec<_> = self.active().collect();
        let read: Vec<_> = active.iter().filter_map(|member| Some(member.partitions.as_ref()?.len())).collect();
        let shared_out = read.len() == nodes && read.iter().sum::<usize>() == partitions;
        active.len() == nodes && self.unowned == 0 && self.moves.is_empty() && shared_out
    }

    /// Each reads something. One that has just come does not yet; where partitions are few, one may never.
    pub fn all_read(&self) -> bool {
        self.active().all(|member| member.partitions.as_ref().is_some_and(|partitions| !partitions.is_empty()))
    }

    /// Who reads what, and how many shards each serves.
    pub fn shares(&self) -> Vec<(String, usize, Option<Vec<i32>>)> {
        self.active().map(|member| (member.id.clone(), member.shards, member.partitions.clone())).collect()
    }

    /// Who serves and reads.
    pub fn active(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.state == "active")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_settled_when_all_have_their_share() {
        let view = |members: &str, rest: &str| -> View {
            serde_json::from_str(&format!(r#"{{"enabled":true,"members":[{members}],{rest}}}"#)).unwrap()
        };
        let member = |id, state| format!(r#"{{"id":"{id}","state":"{state}","shards":1,"partitions":[0,1]}}"#);
        let (one, two, dead) = (member("n0", "active"), member("n1", "active"), member("n2", "dead"));
        let quiet = r#""unowned":0,"moves":[]"#;
        let all = format!("{one},{two},{dead}");
        assert!(view(&all, quiet).is_settled(2, 4));
        assert!(!view(&all, quiet).is_settled(3, 4));
        assert!(!view(&all, quiet).is_settled(2, 6), "two partitions are read by nobody");
        let idle = r#"{"id":"n1","state":"active","shards":1,"partitions":[]}"#;
        let without = view(&format!("{one},{idle}"), quiet);
        assert!(without.is_settled(2, 2) && !without.all_read());
        assert!(view(&all, quiet).all_read());
        let silent = r#"{"id":"n1","state":"active","shards":1}"#;
        assert!(!view(&format!("{one},{silent}"), quiet).is_settled(2, 2), "one did not say what it reads");
        assert!(!view(&all, r#""unowned":1,"moves":[]"#).is_settled(2, 4));
        assert!(!view(&all, r#""unowned":0,"moves":[{"to":"n1","shards":3}]"#).is_settled(2, 4));
        assert_eq!(view(&all, quiet).active().map(|member| member.id.as_str()).collect::<Vec<_>>(), ["n0", "n1"]);
    }
}
