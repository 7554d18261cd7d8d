//! The nodes of a cluster as one target: started until each has its share, and what can be done to one of them.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{PARTITIONS, Target};
use crate::client::Protocol;
use crate::membership::{self, View};
use crate::meter::Gauge;
use crate::process::Paused;
use crate::scenario::Hops;

/// How long the nodes may take to share everything out.
const PATIENCE: Duration = Duration::from_secs(30);
/// What has not changed for this long stays: nodes look for what they should take every second.
const STILL: Duration = Duration::from_millis(2_500);
/// The same while a node reads nothing: of 12 partitions, one of four nodes has none in about every twentieth run.
const STILL_WITHOUT_SHARE: Duration = Duration::from_secs(10);

impl Target {
    /// Waits until all users and partitions are shared out among the nodes.
    pub(super) fn settle(&self) -> Result<View> {
        let deadline = Instant::now() + PATIENCE;
        let mut last = (Vec::new(), Instant::now());
        loop {
            let views = self.servers.iter().map(|server| membership::look(server.endpoint().address));
            let views = views.collect::<Result<Vec<_>>>()?;
            let shares: Vec<_> = views.iter().map(View::shares).collect();
            let settled = views.iter().all(|view| view.is_settled(self.servers.len(), PARTITIONS as usize));
            let still = if views.iter().all(View::all_read) { STILL } else { STILL_WITHOUT_SHARE };
            if !settled || shares != last.0 {
                last = (shares, Instant::now());
            } else if last.1.elapsed() >= still {
                return views.into_iter().next().context("a cluster without nodes");
            }
            ensure!(Instant::now() < deadline, "not shared out after {PATIENCE:?}: {views:?}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Has the clients connect, and the events be read, so many hops from the node that has all users.
    pub(super) fn keep_hops(&mut self, hops: Hops, protocols: &[Protocol]) -> Result<()> {
        let view = self.settle()?;
        let partitions = |owner: bool| {
            let member = view.active().find(|member| (member.shards > 0) == owner);
            member.map(|member| (member.id.clone(), member.partitions.clone().unwrap_or_default()))
        };
        let (owner, other) = partitions(true).zip(partitions(false)).context("all users are not one node's")?;
        let (connected, read) = match hops {
            Hops::None => (&owner.0, owner.1),
            Hops::One => (&other.0, owner.1),
            Hops::Two => (&other.0, other.1),
        };
        ensure!(!read.is_empty(), "a node reads no partition: {view:?}");
        let number = (0..self.servers.len()).find(|&number| membership::name(number) == *connected);
        let server = &self.servers[number.context("a member that was not started")?];
        self.endpoints = protocols.iter().map(|protocol| server.endpoint_for(*protocol)).collect::<Result<_>>()?;
        self.topic.partitions = read;
        Ok(())
    }

    /// How many there are.
    pub fn nodes(&self) -> usize {
        self.servers.len()
    }

    /// SIGKILL; back when it is gone, which takes no time.
    pub fn kill(&mut self, node: usize) -> Result<()> {
        self.servers[node].kill()?;
        while self.servers[node].ended()?.is_none() {
            thread::sleep(Duration::from_millis(1));
        }
        self.gauge(node, true);
        Ok(())
    }

    /// SIGSTOP, until the answer is dropped.
    pub fn freeze(&mut self, node: usize) -> Result<Paused> {
        // It would not answer.
        self.meter.0[node].admin = None;
        self.servers[node].process().pause()
    }

    /// SIGTERM, without waiting.
    pub fn terminate(&mut self, node: usize) -> Result<()> {
        self.meter.0[node].may_end = true;
        self.servers[node].terminate()
    }

    /// Whether one that was told to stop has ended.
    ///
    /// # Errors
    ///
    /// When it did not end well.
    pub fn has_ended(&mut self, node: usize) -> Result<bool> {
        let Some(status) = self.servers[node].ended()? else { return Ok(false) };
        self.gauge(node, true);
        ensure!(status.success(), "node {node} did not stop well: {status}; {}", self.servers[node].log_tail());
        Ok(true)
    }

    /// Starts one that has ended. Does not wait.
    pub fn start_again(&mut self, node: usize) -> Result<()> {
        self.servers[node].start_again()?;
        self.gauge(node, false);
        Ok(())
    }

    /// Whether one takes clients.
    pub fn is_ready(&self, node: usize) -> bool {
        self.servers[node].admin().is_ready()
    }

    fn gauge(&mut self, node: usize, is_down: bool) {
        let (server, gauge) = (&self.servers[node], &mut self.meter.0[node]);
        *gauge = Gauge {
            process: Some(server.process()),
            admin: gauge.admin,
            spent: server.spent(),
            is_down,
            may_end: false,
        };
    }
}
