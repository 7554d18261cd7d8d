//! What is measured, as TOML: sessions, events, and what happens to them. `loadtest/scenarios/` has the files.

mod nodes;
mod values;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::client::Protocol;
use crate::event::Durability;
use crate::schedule::Schedule;
use crate::workload::Pick;
pub use nodes::{Fault, Hops, Layout, Nodes};
pub use values::{Arrivals, Length, Rate, Share};

/// A scenario, checked.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The file's name without its ending.
    #[serde(skip)]
    pub name: String,
    /// What it answers, in a sentence.
    pub question: String,
    /// What the clients speak, one after the other.
    #[serde(default = "websocket")]
    pub protocols: Vec<Protocol>,
    pub sessions: Sessions,
    pub events: Option<Events>,
    pub disturbance: Option<Disturbance>,
    #[serde(default)]
    pub node: Node,
    /// Several of them.
    pub nodes: Option<Nodes>,
    /// What has to hold, as `--slo` takes it; the option wins.
    pub slo: Option<String>,
}

/// Sessions, each of its own user.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sessions {
    /// How many; several numbers, rising, repeat the events at each.
    pub count: Steps,
    /// How fast they connect.
    #[serde(default = "thousand")]
    pub connects_per_second: Rate,
    /// Begun later than this at the 99th percentile, the connects were not made at that rate, and do not count.
    #[serde(default = "fifty_milliseconds")]
    pub lateness_max: Length,
    /// Between the last connect and the reading of memory.
    #[serde(default = "second")]
    pub settle: Length,
    /// How long nothing happens, measured.
    pub idle: Option<Length>,
}

/// One number, or several.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "toml::Value")]
pub struct Steps(pub Vec<usize>);

/// Events for those sessions: one of `arrivals`, `backlog` and `away`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Events {
    /// On a schedule.
    pub arrivals: Option<Arrivals>,
    /// This many, written while the server stands still with its sessions open.
    pub backlog: Option<u64>,
    /// This many, stored before their users connect.
    pub away: Option<u64>,
    #[serde(default)]
    pub users: Pick,
    /// Size of each event's `data`.
    #[serde(default = "half_a_kib")]
    pub bytes: usize,
    #[serde(default = "transient")]
    pub durability: Durability,
    /// Clients acknowledge the highest sequence of each read; by default when there is one.
    pub acknowledge: Option<bool>,
    /// The first part of the arrivals, which is not measured.
    #[serde(default = "second")]
    pub warmup: Length,
    /// Later than this at the 99th percentile, the generator has not made the rate, and the run does not count.
    #[serde(default = "ten_milliseconds")]
    pub lateness_max: Length,
    /// Confirmed by the broker later than this after that, at the 99th percentile, the rate was not made either.
    #[serde(default = "second")]
    pub confirmation_max: Length,
    /// How long the producer collects a batch.
    #[serde(default = "five_milliseconds")]
    pub linger: Length,
    /// Without any arrival for this long, the rest is taken for lost.
    #[serde(default = "fifteen_seconds")]
    pub patience: Length,
}

/// What happens in the middle of the arrivals; latencies before and after are told apart.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disturbance {
    /// From the end of the warm-up.
    pub after: Length,
    /// One user gets this many events more.
    pub hot_user_per_second: Option<Rate>,
    /// This share of the clients stops reading.
    pub stalled_share: Option<Share>,
    /// Those get this many events more, all together and from the start, so that what they do not read adds up.
    pub stalled_per_second: Option<Rate>,
}

/// The node that is started for it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    #[serde(default)]
    pub store: Engine,
    /// Configuration over that of every measurement, as in `notifier.toml`.
    #[serde(default)]
    pub config: toml::Table,
}

/// What stands behind the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    #[default]
    None,
    Sqlite,
    Postgres,
}

/// The scenarios that this tool has with it.
const BUNDLED: &[(&str, &str)] = &[
    ("idle", include_str!("../scenarios/idle.toml")),
    ("connect-storm", include_str!("../scenarios/connect-storm.toml")),
    ("personal-transient", include_str!("../scenarios/personal-transient.toml")),
    ("personal-sqlite", include_str!("../scenarios/personal-sqlite.toml")),
    ("personal-postgres", include_str!("../scenarios/personal-postgres.toml")),
    ("backlog", include_str!("../scenarios/backlog.toml")),
    ("backlog-sqlite", include_str!("../scenarios/backlog-sqlite.toml")),
    ("backlog-postgres", include_str!("../scenarios/backlog-postgres.toml")),
    ("hot-user", include_str!("../scenarios/hot-user.toml")),
    ("mass-away", include_str!("../scenarios/mass-away.toml")),
    ("slow-readers", include_str!("../scenarios/slow-readers.toml")),
    ("rate-limited", include_str!("../scenarios/rate-limited.toml")),
    ("growth", include_str!("../scenarios/growth.toml")),
    ("growth-nodes", include_str!("../scenarios/growth-nodes.toml")),
    ("growth-to-60000", include_str!("../scenarios/growth-to-60000.toml")),
    ("hops", include_str!("../scenarios/hops.toml")),
    ("frozen-node", include_str!("../scenarios/frozen-node.toml")),
    ("reconnect-storm", include_str!("../scenarios/reconnect-storm.toml")),
    ("rolling-restart", include_str!("../scenarios/rolling-restart.toml")),
    ("soak", include_str!("../scenarios/soak.toml")),
];

impl Scenario {
    /// One of those that come with the tool, by its name, or a file.
    ///
    /// # Errors
    ///
    /// Names the key, and where it stands.
    pub fn load(name: &str) -> Result<Self> {
        if let Some((name, text)) = BUNDLED.iter().find(|(bundled, _)| *bundled == name) {
            return Self::parse(name, text).with_context(|| format!("scenario {name}"));
        }
        let path = Path::new(name);
        let text = fs::read_to_string(path).with_context(|| {
            let bundled: Vec<_> = BUNDLED.iter().map(|(name, _)| *name).collect();
            format!("no scenario {name}: neither a file nor one of {}", bundled.join(", "))
        })?;
        let stem = path.file_stem().map_or(name.into(), |stem| stem.to_string_lossy());
        Self::parse(&stem, &text).with_context(|| format!("scenario {name}"))
    }

    /// Those that come with the tool: names and texts.
    pub fn bundled() -> impl Iterator<Item = (&'static str, &'static str)> {
        BUNDLED.iter().copied()
    }

    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let scenario: Self = toml::from_str(text)?;
        let scenario = Self { name: name.to_owned(), ..scenario };
        scenario.check()?;
        Ok(scenario)
    }

    /// What the keys say together; each alone was checked where it was read.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.protocols.is_empty(), "protocols: needs at least one");
        self.check_nodes()?;
        let Some(events) = &self.events else {
            ensure!(self.disturbance.is_none(), "disturbance: needs events.arrivals");
            ensure!(self.sessions.idle.is_some() || self.is_storm(), "events, or sessions.idle: one of them is needed");
            return Ok(());
        };
        ensure!((64..=256 * 1024).contains(&events.bytes), "events.bytes: must be from 64 to 262144");
        let given = [
            ("arrivals", events.arrivals.is_some()),
            ("backlog", events.backlog.is_some()),
            ("away", events.away.is_some()),
        ];
        match given.iter().filter(|(_, given)| *given).count() {
            1 => {}
            _ => bail!("events: needs exactly one of arrivals, backlog and away"),
        }
        ensure!(events.backlog != Some(0), "events.backlog: must not be 0");
        ensure!(events.away != Some(0), "events.away: must not be 0");
        if events.away.is_some() {
            ensure!(events.durability == Durability::Durable, "events.away: needs events.durability = \"durable\"");
            ensure!(self.sessions.count.0.len() == 1, "events.away: sessions.count must be one number");
        }
        if let Some(schedule) = events.schedule() {
            ensure!(events.warmup.0 < schedule.length(), "events.warmup: must be shorter than the arrivals");
            ensure!(schedule.expected() > 0, "events.arrivals: no event is due");
        }
        if let Some(disturbance) = &self.disturbance {
            let schedule = events.schedule().context("disturbance: needs events.arrivals")?;
            let rest = schedule.length().saturating_sub(events.warmup.0);
            ensure!(disturbance.after.0 < rest, "disturbance.after: must be before the end of the arrivals");
            ensure!(
                disturbance.hot_user_per_second.is_some() || disturbance.stalled_share.is_some(),
                "disturbance: needs hot_user_per_second or stalled_share"
            );
            if disturbance.stalled_per_second.is_some() {
                ensure!(disturbance.stalled_share.is_some(), "disturbance.stalled_per_second: needs stalled_share");
                ensure!(
                    disturbance.hot_user_per_second.is_none(),
                    "disturbance.stalled_per_second: not together with hot_user_per_second"
                );
            }
            ensure!(self.sessions.count.most() > 1, "disturbance: needs more than one session");
        }
        Ok(())
    }

    /// Without events and idle time, connecting is what is measured.
    fn is_storm(&self) -> bool {
        self.sessions.settle.0 > Duration::ZERO
    }

    /// How late the generator may be, instead of what the file says; the broker too, when that is longer.
    pub fn allow_lateness(&mut self, max: Duration) {
        self.sessions.lateness_max = Length(max);
        if let Some(events) = &mut self.events {
            events.lateness_max = Length(max);
            events.confirmation_max.0 = events.confirmation_max.0.max(max);
        }
    }

    /// The same with other numbers: small ones for a first look, greater ones for a greater machine.
    pub fn resize(&mut self, sessions: Option<usize>, rate: Option<f64>, length: Option<Duration>) -> Result<()> {
        if let Some(sessions) = sessions {
            let most = self.sessions.count.most();
            for step in &mut self.sessions.count.0 {
                *step = (*step * sessions).div_ceil(most);
            }
            self.sessions.count.0.dedup();
        }
        if let Some(length) = length {
            self.sessions.idle = self.sessions.idle.map(|_| Length(length));
            self.sessions.settle.0 = self.sessions.settle.0.min(length);
        }
        if let Some(events) = &mut self.events {
            if let (Some(rate), Some(count)) = (rate, events.backlog.or(events.away)) {
                // Without a schedule the number of events is what can be made smaller.
                let count = count.min((rate * length.map_or(1.0, |length| length.as_secs_f64())) as u64).max(1);
                events.backlog = events.backlog.map(|_| count);
                events.away = events.away.map(|_| count);
            }
            if let Some(arrivals) = &mut events.arrivals {
                let old = arrivals.schedule();
                let factor = length.map_or(1.0, |length| length.as_secs_f64() / old.length().as_secs_f64());
                arrivals.resize(rate.map_or(1.0, |rate| rate / old.peak()), factor);
                events.warmup.0 = events.warmup.0.mul_f64(factor.min(1.0));
                if let Some(fault) = self.nodes.as_mut().and_then(|nodes| nodes.fault.as_mut()) {
                    fault.after().0 = fault.after().0.mul_f64(factor);
                }
                if let Some(disturbance) = &mut self.disturbance {
                    disturbance.after.0 = disturbance.after.0.mul_f64(factor);
                    let more = [&mut disturbance.hot_user_per_second, &mut disturbance.stalled_per_second];
                    for more in more.into_iter().flatten() {
                        more.0 *= rate.map_or(1.0, |rate| rate / old.peak());
                    }
                }
            }
        }
        self.check()
    }
}

impl Events {
    pub fn schedule(&self) -> Option<Schedule> {
        self.arrivals.as_ref().map(Arrivals::schedule)
    }

    pub fn acknowledges(&self) -> bool {
        self.acknowledge.unwrap_or(self.durability == Durability::Durable)
    }
}

impl Steps {
    pub fn most(&self) -> usize {
        self.0.last().copied().unwrap_or(0)
    }
}

fn websocket() -> Vec<Protocol> {
    vec![Protocol::Websocket]
}

fn thousand() -> Rate {
    Rate(1_000.0)
}

fn second() -> Length {
    Length(Duration::from_secs(1))
}

fn half_a_kib() -> usize {
    512
}

fn transient() -> Durability {
    Durability::Transient
}

fn five_milliseconds() -> Length {
    Length(Duration::from_millis(5))
}

fn ten_milliseconds() -> Length {
    Length(Duration::from_millis(10))
}

fn fifty_milliseconds() -> Length {
    Length(Duration::from_millis(50))
}

fn fifteen_seconds() -> Length {
    Length(Duration::from_secs(15))
}

#[cfg(test)]
mod tests;
