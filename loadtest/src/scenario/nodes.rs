//! Several nodes behind one database, and what happens to them.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Deserialize;

use super::{Engine, Length, Scenario, Steps};
use crate::event::Durability;

/// Nodes that share a PostgreSQL database, and the sessions and partitions among them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nodes {
    /// How many; several numbers, rising: everything again with each.
    pub count: Steps,
    /// How often an event passes from node to node: everything again with each. All users are one node's then.
    #[serde(default)]
    pub hops: Vec<Hops>,
    /// What happens in the middle of the arrivals.
    pub fault: Option<Fault>,
}

/// How often an event passes from one node to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "i64")]
pub enum Hops {
    /// The node that reads it has its user, and the user's connection.
    None,
    /// The connection is at another node.
    One,
    /// Read at that other node, passed to the one that has its user, and back to the connection.
    Two,
}

/// From the end of the warm-up, as a disturbance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Fault {
    /// The last node is killed, and does not come back.
    Kill { after: Length },
    /// The last node stands still, for so long, and is killed then.
    Freeze { after: Length, length: Length },
    /// One node after the other is told to stop and started again; `pause`: between one that is ready again and the next.
    Restart { after: Length, pause: Length },
}

/// One way to start them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub nodes: usize,
    pub hops: Option<Hops>,
}

impl TryFrom<i64> for Hops {
    type Error = &'static str;

    fn try_from(hops: i64) -> Result<Self, Self::Error> {
        match hops {
            0 => Ok(Self::None),
            1 => Ok(Self::One),
            2 => Ok(Self::Two),
            _ => Err("an event passes from node to node 0, 1 or 2 times"),
        }
    }
}

impl Fault {
    pub fn after(&mut self) -> &mut Length {
        match self {
            Self::Kill { after } | Self::Freeze { after, .. } | Self::Restart { after, .. } => after,
        }
    }

    /// How long after the first thing the last one happens, as far as that is known before.
    fn lasts(self) -> Duration {
        match self {
            Self::Freeze { length, .. } => length.0,
            Self::Kill { .. } | Self::Restart { .. } => Duration::ZERO,
        }
    }
}

impl Layout {
    /// A node alone, without a cluster.
    pub const SINGLE: Self = Self { nodes: 1, hops: None };
}

impl Scenario {
    /// Every way in which its nodes are started, one after the other, each with what stands behind the names of its
    /// phases.
    pub fn layouts(&self) -> Vec<(Layout, String)> {
        let Some(nodes) = &self.nodes else { return vec![(Layout::SINGLE, String::new())] };
        let count = nodes.count.most();
        if !nodes.hops.is_empty() {
            let suffix = |hops: Hops| format!(" over {} hops", hops as u8);
            return nodes.hops.iter().map(|&hops| (Layout { nodes: count, hops: Some(hops) }, suffix(hops))).collect();
        }
        let several = nodes.count.0.len() > 1;
        let suffix = |nodes: usize| if several { format!(" on {nodes} nodes") } else { String::new() };
        nodes.count.0.iter().map(|&nodes| (Layout { nodes, hops: None }, suffix(nodes))).collect()
    }

    /// What happens to the nodes.
    pub fn fault(&self) -> Option<Fault> {
        self.nodes.as_ref()?.fault
    }

    /// How many sessions a node has at the most, also while one is gone.
    pub fn sessions_of_a_node(&self) -> usize {
        let sessions = self.sessions.count.most();
        let Some(nodes) = &self.nodes else { return sessions };
        let fewest = nodes.count.0.first().copied().unwrap_or(1) - usize::from(nodes.fault.is_some());
        if nodes.hops.is_empty() { sessions.div_ceil(fewest.max(1)) } else { sessions }
    }

    /// What the keys of `nodes` say together with the others.
    pub(super) fn check_nodes(&self) -> Result<()> {
        let Some(nodes) = &self.nodes else { return Ok(()) };
        ensure!(self.node.store == Engine::Postgres, "nodes: they share a database: needs node.store = \"postgres\"");
        let arrivals = self.events.as_ref().filter(|events| events.arrivals.is_some());
        ensure!(arrivals.is_some(), "nodes: needs events.arrivals");
        ensure!(nodes.count.most() <= 9, "nodes.count: at most 9 on one machine");
        if !nodes.hops.is_empty() {
            ensure!(nodes.count.0 == [2], "nodes.hops: needs nodes.count = 2");
            ensure!(nodes.hops.windows(2).all(|pair| pair[0] < pair[1]), "nodes.hops: must rise");
        }
        let Some(mut fault) = nodes.fault else { return Ok(()) };
        ensure!(self.disturbance.is_none(), "nodes.fault: not together with a disturbance");
        ensure!(nodes.hops.is_empty(), "nodes.fault: not together with nodes.hops");
        let several = nodes.count.0.len() == 1 && nodes.count.most() > 1;
        ensure!(several, "nodes.fault: nodes.count must be one number above 1");
        ensure!(self.sessions.count.0.len() == 1, "nodes.fault: sessions.count must be one number");
        let (Some(events), Some(schedule)) = (arrivals, arrivals.and_then(super::Events::schedule)) else {
            return Ok(());
        };
        let durable = events.durability == Durability::Durable && events.acknowledges();
        ensure!(durable, "nodes.fault: needs events.durability = \"durable\", acknowledged: others may be lost");
        let rest = schedule.length().saturating_sub(events.warmup.0);
        ensure!(fault.after().0 + fault.lasts() < rest, "nodes.fault: must be over before the end of the arrivals");
        Ok(())
    }
}
