//! A cluster under traffic, and how each fault comes to it.

use std::time::{Duration, Instant};

use super::schedule::{Fault, Schedule, Strike};
use crate::harness::{
    Feed, Store,
    broker::Broker,
    cluster::Cluster,
    node,
    postgres::Stop,
    proxy::Proxy,
    traffic::{BUSY, Load, Traffic},
    ways::{self, Links, Pair},
};

const USERS: usize = 24;
const PARTITIONS: i32 = 6;
/// How long a node that drains may take.
const DRAIN: Duration = Duration::from_secs(60);
/// How long a node that is cut off may take to find itself dead and end.
const END: Duration = Duration::from_secs(45);
/// How long one may that ran again after it was declared dead.
const LATE_END: Duration = Duration::from_secs(20);
/// Users whose actors crash, one after the other.
const CRASHES: usize = 4;
/// The node that has its own ways to the store and to Kafka, where there are some.
const DETOURED: usize = 0;

pub struct Scene {
    pub cluster: Cluster,
    pub traffic: Traffic,
    /// Before each node, if they can be cut.
    links: Vec<Proxy>,
    /// From one node to the store.
    to_store: Option<Proxy>,
    broker: Option<(Broker, Proxy)>,
    server: Option<Pair>,
}

impl Scene {
    /// The cluster of a schedule, and busy traffic on it.
    pub async fn of(schedule: &Schedule, configure: impl Fn(node::Builder) -> node::Builder) -> Self {
        let server = if schedule.has_server { Some(Pair::started().await) } else { None };
        let store = match &server {
            Some(server) => Store::on(server.url()).await,
            None => Store::postgres().await,
        };
        let links = if schedule.has_ways { Some(Links::of(schedule.nodes).await) } else { None };
        let to_store = if schedule.has_ways { Some(ways::to_store(&store).await) } else { None };
        let broker = if schedule.has_broker { Some(ways::to_broker().await) } else { None };
        let feed = match &broker {
            Some((broker, _)) => Feed::on(&broker.kafka(), PARTITIONS).await,
            None => Feed::new(PARTITIONS).await,
        };
        let configure = |node: usize, builder: node::Builder| {
            let mut builder = configure(builder);
            if let Some(seconds) = schedule.idle_after {
                builder = builder.set("sessions.idle_after", format!("{seconds}s"));
            }
            if let Some(links) = &links {
                builder = links.before(node, builder);
            }
            if node != DETOURED {
                return builder;
            }
            if let Some((_, url)) = &to_store {
                builder = builder.set("store.url", url.as_str());
            }
            match &broker {
                Some((_, way)) => builder.set("kafka.brokers", way.addr().to_string()),
                None => builder,
            }
        };
        let cluster = Cluster::start_on(feed, schedule.nodes, store, configure).await;
        cluster.store.watch_writers().await;
        let load = Load { has_sleepers: schedule.idle_after.is_some(), carriers: schedule.carriers, ..BUSY };
        let traffic = Traffic::start_with(&cluster, USERS, load).await;
        let to_store = to_store.map(|(way, _)| way);
        Self { cluster, traffic, links: links.map_or_else(Vec::new, |links| links.to), to_store, broker, server }
    }

    /// Does one thing to it, and waits until all nodes are ready again.
    pub async fn strike(&mut self, Strike { fault, node, other, .. }: Strike) {
        match fault {
            Fault::Kill(pause) => {
                self.kill(node);
                self.flow(pause).await;
                self.start(node);
            }
            Fault::KillBehindALock(time) => {
                let locked = self.cluster.store.lock("shard_claims").await;
                self.flow(time).await;
                self.kill(node);
                drop(locked);
                self.start(node);
            }
            Fault::KillTwo(pause) => {
                self.kill(node);
                self.kill(other);
                self.flow(pause).await;
                self.start(node);
                self.start(other);
            }
            Fault::KillDraining(pause) => {
                self.traffic.hurt(node);
                self.cluster.nodes[node].process().signal("TERM");
                self.flow(pause).await;
                self.kill(node);
                self.start(node);
            }
            Fault::Freeze(time) => self.cluster.nodes[node].process().freeze(time).await,
            Fault::FreezeLong(time) => {
                self.traffic.hurt(node);
                self.cluster.nodes[node].process().freeze(time).await;
                // On a machine that stood still itself it may be alive.
                let until = Instant::now() + LATE_END;
                while self.cluster.nodes[node].is_running() && Instant::now() < until {
                    self.flow(Duration::from_millis(100)).await;
                }
                self.kill(node);
                self.start(node);
            }
            Fault::Restart => {
                self.leave(node, async |_| {}).await;
                self.start(node);
            }
            Fault::JoinDuringLeave => {
                self.leave(other, async |_| {}).await;
                self.leave(node, async |scene| scene.start(other)).await;
                self.start(node);
            }
            Fault::CutStore => self.cluster.store.cut().await,
            Fault::Crash => (0..CRASHES).for_each(|_| self.traffic.crash()),
            Fault::CutLinks => {
                for link in &self.links {
                    link.cut();
                    self.flow(Duration::from_millis(300)).await;
                }
            }
            Fault::CutOneWay(time) => {
                let caller = self.process(node);
                self.links[other].freeze_for(caller, true);
                self.flow(time).await;
                self.links[other].freeze_for(caller, false);
            }
            Fault::CutBothWays(time) => {
                let ends = [(self.process(node), other), (self.process(other), node)];
                ends.iter().for_each(|(caller, to)| self.links[*to].freeze_for(*caller, true));
                self.flow(time).await;
                ends.iter().for_each(|(caller, to)| self.links[*to].freeze_for(*caller, false));
            }
            Fault::Unreachable => {
                self.links[node].freeze(true);
                self.ends(node).await;
                self.links[node].freeze(false);
                self.start(node);
            }
            Fault::NoStore(time) => {
                self.has_no_store(true);
                self.flow(time).await;
                self.has_no_store(false);
            }
            Fault::LosesStore => {
                self.has_no_store(true);
                self.ends(DETOURED).await;
                self.has_no_store(false);
                self.start(DETOURED);
            }
            Fault::CutOff => {
                let caller = self.process(DETOURED);
                self.has_no_store(true);
                self.links[DETOURED].freeze(true);
                self.links.iter().for_each(|link| link.freeze_for(caller, true));
                self.ends(DETOURED).await;
                self.links.iter().for_each(|link| link.freeze_for(caller, false));
                self.links[DETOURED].freeze(false);
                self.has_no_store(false);
                self.start(DETOURED);
            }
            Fault::NoKafka(time) => {
                let (_, way) = self.broker.as_ref().expect("drawn only with one");
                way.freeze(true);
                self.flow(time).await;
                way.freeze(false);
            }
            Fault::KillBroker(pause) => {
                let (broker, _) = self.broker.as_mut().expect("drawn only with one");
                broker.kill();
                self.traffic.flow(pause).await;
                broker.start().await;
            }
            Fault::RestartServer(pause) => self.ends_and_starts(Stop::Fast, pause).await,
            Fault::CrashServer(pause) => self.ends_and_starts(Stop::Immediate, pause).await,
            Fault::FailOver(pause) => {
                let server = self.server.as_mut().expect("drawn only with one");
                server.primary.stop(Stop::Immediate).await;
                self.traffic.flow(pause).await;
                server.fail_over().await;
            }
        }
        for (node, it) in self.cluster.nodes.iter().enumerate() {
            it.ready().await;
            self.traffic.well(node);
        }
    }

    /// Whoever has time to fall asleep does, and wakes.
    pub async fn somebody_wakes(&self) {
        crate::harness::eventually("somebody who slept has woken up", async || {
            let mut woken = 0.0;
            for node in &self.cluster.nodes {
                woken += node.metrics().await.sum("notifier_user_wakeups_total");
            }
            (woken > 0.0).then_some(())
        })
        .await;
    }

    async fn flow(&self, time: Duration) {
        self.traffic.flow(time).await;
    }

    async fn ends_and_starts(&mut self, how: Stop, pause: Duration) {
        let primary = &mut self.server.as_mut().expect("drawn only with one").primary;
        primary.stop(how).await;
        self.traffic.flow(pause).await;
        primary.start().await;
    }

    fn has_no_store(&self, on: bool) {
        self.to_store.as_ref().expect("drawn only with a way to it").freeze(on);
    }

    fn process(&mut self, node: usize) -> u32 {
        self.cluster.nodes[node].process().id()
    }

    fn kill(&mut self, node: usize) {
        self.traffic.hurt(node);
        self.cluster.nodes[node].kill();
    }

    fn start(&mut self, node: usize) {
        self.cluster.nodes[node].start_again();
    }

    /// SIGTERM, then something else, and waits for the end.
    async fn leave(&mut self, node: usize, meanwhile: impl AsyncFnOnce(&mut Self)) {
        self.traffic.hurt(node);
        let leaving = self.cluster.nodes[node].take();
        leaving.signal("TERM");
        meanwhile(self).await;
        leaving.finish(DRAIN).await.ok();
    }

    /// It finds itself dead.
    async fn ends(&mut self, node: usize) {
        self.traffic.hurt(node);
        let ended = self.cluster.nodes[node].take().finish(END).await;
        assert_eq!(ended.code(), 3, "{ended:?}");
    }
}
