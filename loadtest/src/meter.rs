//! What servers cost: by their processes on this machine, else by what they say of themselves.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::admin::Admin;
use crate::process::Process;

/// Events that this node has passed to others.
const FORWARDED: (&str, &str) = ("notifier_link_events_total", "direction=\"sent\"");
/// Sessions that this node has closed because they read or acknowledged too slowly.
const SLOW: &str = "notifier_slow_consumers_total";
/// Notifications that it has dropped because too much waited for their socket.
const DROPPED: (&str, &str) = ("notifier_deliveries_total", "outcome=\"dropped\"");

/// All servers of a run, and what each is read by.
#[derive(Debug, Clone)]
pub struct Meter(pub Vec<Gauge>);

/// Where one server's figures come from; the process is believed more.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gauge {
    pub process: Option<Process>,
    pub admin: Option<Admin>,
    /// CPU of its earlier lives.
    pub spent: Duration,
    /// It does not run now, and should not.
    pub is_down: bool,
    /// It was told to stop, and may end at any time.
    pub may_end: bool,
}

/// Servers at one time: all together.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// User and system time so far.
    pub cpu: Duration,
    /// Resident memory, in bytes.
    pub rss: u64,
    /// `None`: not known, or of processes of which some have ended.
    pub context_switches: Option<u64>,
    /// Records of their partitions that they have not read.
    pub lag: Option<f64>,
    /// Records that they have read and not settled.
    pub unsettled: Option<f64>,
    /// Events that they have passed to each other.
    pub forwarded: Option<f64>,
    /// Sessions that they have closed as slow.
    pub slow: Option<f64>,
    /// Notifications that they have dropped for want of room.
    pub dropped: Option<f64>,
    pub each: Vec<Each>,
}

/// One of them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Each {
    pub cpu: Duration,
    pub rss: u64,
    /// Clients that are connected to it.
    pub connections: Option<f64>,
}

impl Meter {
    /// Of one server.
    pub fn of(process: Option<Process>, admin: Option<Admin>) -> Self {
        Self(vec![Gauge { process, admin, ..Gauge::default() }])
    }

    /// # Errors
    ///
    /// When there is neither a process nor a port: nothing would be measured.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.0.iter().all(|gauge| gauge.process.is_some() || gauge.admin.is_some()),
            "nothing to measure the server by: give --pid (on this machine) or --admin (its admin port)"
        );
        Ok(())
    }

    /// The process of the only server.
    pub fn process(&self) -> Option<Process> {
        let [gauge] = self.0.as_slice() else { return None };
        gauge.process
    }

    /// The admin port of the only server.
    pub fn admin(&self) -> Option<Admin> {
        let [gauge] = self.0.as_slice() else { return None };
        gauge.admin
    }

    /// # Errors
    ///
    /// When a server has ended that should run, or its port does not answer and there is nothing else.
    pub fn read(&self) -> Result<Reading> {
        let mut all = Reading { context_switches: Some(0), ..Reading::default() };
        for gauge in &self.0 {
            all.add(gauge.read()?);
        }
        Ok(all)
    }

    /// Proportional memory, which only processes on this machine have.
    pub fn pss(&self) -> Option<u64> {
        let up = self.0.iter().filter(|gauge| !gauge.is_down);
        up.map(|gauge| gauge.process.and_then(|process| process.pss().ok())).sum()
    }
}

impl Gauge {
    fn read(&self) -> Result<Reading> {
        if self.is_down {
            return Ok(Self::down(self.spent));
        }
        match self.read_up() {
            Err(_) if self.may_end => {
                // Nobody has waited for it yet: what it has cost can be read still.
                let cpu = self.process.and_then(|process| process.cpu().ok());
                Ok(Self::down(self.spent + cpu.unwrap_or_default()))
            }
            reading => reading,
        }
    }

    fn down(cpu: Duration) -> Reading {
        Reading { cpu, each: vec![Each { cpu, ..Each::default() }], ..Reading::default() }
    }

    fn read_up(&self) -> Result<Reading> {
        let mut reading = Reading { cpu: self.spent, ..Reading::default() };
        let page = self.admin.map(|admin| admin.page());
        let mut connections = None;
        match self.process {
            Some(process) => {
                ensure!(process.is_alive(), "the server's process has ended");
                reading.cpu += process.cpu()?;
                reading.rss = process.rss()?;
                let switches = process.context_switches()?;
                reading.context_switches = self.spent.is_zero().then_some(switches);
                // A server that has no time to answer is measured all the same.
                if let Some(Ok(page)) = page {
                    reading.lag = page.sum("notifier_ingest_lag_records");
                    reading.unsettled = page.sum("notifier_unsettled_events");
                    reading.forwarded = page.sum_with(FORWARDED.0, FORWARDED.1);
                    (reading.slow, reading.dropped) = (page.sum(SLOW), page.sum_with(DROPPED.0, DROPPED.1));
                    connections = page.sum("notifier_connections");
                }
            }
            None => {
                let page = page.context("neither a process nor an admin port")??;
                let of = |name| page.sum(name).with_context(|| format!("no {name} on the admin port"));
                reading.cpu = Duration::from_secs_f64(of("process_cpu_seconds_total")?.max(0.0));
                reading.rss = of("process_resident_memory_bytes")? as u64;
                reading.lag = page.sum("notifier_ingest_lag_records");
                reading.unsettled = page.sum("notifier_unsettled_events");
                (reading.slow, reading.dropped) = (page.sum(SLOW), page.sum_with(DROPPED.0, DROPPED.1));
                connections = page.sum("notifier_connections");
            }
        }
        reading.each = vec![Each { cpu: reading.cpu, rss: reading.rss, connections }];
        Ok(reading)
    }
}

impl Reading {
    /// Clients that are connected to them, of those that say so.
    pub fn connections(&self) -> Option<f64> {
        self.each.iter().filter_map(|each| each.connections).reduce(|a, b| a + b)
    }

    fn add(&mut self, other: Self) {
        let sum = |a: Option<f64>, b: Option<f64>| a.into_iter().chain(b).reduce(|a, b| a + b);
        self.cpu += other.cpu;
        self.rss += other.rss;
        self.context_switches = self.context_switches.zip(other.context_switches).map(|(a, b)| a + b);
        self.lag = sum(self.lag, other.lag);
        self.unsettled = sum(self.unsettled, other.unsettled);
        self.forwarded = sum(self.forwarded, other.forwarded);
        self.slow = sum(self.slow, other.slow);
        self.dropped = sum(self.dropped, other.dropped);
        self.each.extend(other.each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_are_read_as_one_and_one_that_is_down_by_what_it_had_spent() {
        let second = Duration::from_secs(1);
        let up = Gauge { process: Some(Process::current()), ..Gauge::default() };
        let down = Gauge { spent: 1_000 * second, is_down: true, ..up };
        let reading = Meter(vec![up, down]).read().unwrap();
        assert!(reading.cpu >= 1_000 * second && reading.cpu < 1_500 * second);
        assert_eq!(reading.each.len(), 2);
        assert_eq!(reading.each[1], Each { cpu: 1_000 * second, ..Each::default() });
        assert_eq!(reading.context_switches, None);
        assert!(reading.rss > 0 && reading.rss == reading.each[0].rss);
        assert!(Meter(vec![up]).read().unwrap().context_switches.is_some());
        assert!(Meter(vec![up]).process().is_some() && Meter(vec![up, up]).process().is_none());
    }

    #[test]
    fn one_that_has_ended_is_an_error_unless_it_was_told_to() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = Process::new(child.id()).unwrap();
        while process.is_alive() {
            std::thread::yield_now();
        }
        let ended = Gauge { process: Some(process), ..Gauge::default() };
        let told = Meter(vec![Gauge { may_end: true, ..ended }]).read();
        assert!(Meter(vec![ended]).read().is_err());
        assert_eq!(told.unwrap().rss, 0);
        child.wait().unwrap();
    }

    #[test]
    fn what_only_some_say_is_summed_over_those() {
        let mut all = Reading { lag: Some(3.0), ..Reading::default() };
        all.add(Reading { forwarded: Some(2.0), ..Reading::default() });
        all.add(Reading { lag: Some(4.0), forwarded: Some(1.0), ..Reading::default() });
        assert_eq!((all.lag, all.forwarded, all.unsettled), (Some(7.0), Some(3.0), None));
    }
}
