//! What servers, the store and this tool itself take from one time to another.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::Bench;
use crate::meter::Reading;
use crate::process::Process;
use crate::report::Report;

/// A client process that runs or waits for a core this much of the time measures itself.
const BUSY_MAX: f64 = 0.95;

/// Readings of servers and clients at one time.
pub struct Moment {
    pub at: Instant,
    pub server: Reading,
    pub store: Option<Duration>,
    pub received: u64,
    pub sent: u64,
    pub own: Duration,
    pub clients: Vec<(u64, u64)>,
}

impl Bench<'_> {
    pub(super) fn moment(&mut self, sent: u64) -> Result<Moment> {
        let server = self.target.meter.read()?;
        self.moment_of(server, sent)
    }

    pub(super) fn moment_of(&mut self, server: Reading, sent: u64) -> Result<Moment> {
        let at = Instant::now();
        self.workers.refresh()?;
        let (store, received) = (self.target.store_cpu()?, self.workers.received());
        let own = self.workers.cpu()? + Process::current().cpu()?;
        Ok(Moment { at, server, store, received, sent, own, clients: self.workers.times() })
    }

    /// The store's CPU since then; a fault when it cannot be measured any more.
    pub(super) fn store_cost(&self, report: &mut Report, before: &Moment, deliveries: u64) {
        match self.target.store_cpu() {
            Ok(now) => {
                let cpu = before.store.zip(now).map(|(before, now)| now.saturating_sub(before).as_secs_f64());
                cpu.into_iter()
                    .for_each(|cpu| report.value("store_cpu_us_per_delivery", cpu * 1e6 / deliveries.max(1) as f64));
            }
            Err(error) => report.fault(format!("{error:#}")),
        }
    }

    /// What the server, the store and this tool itself took between two moments.
    pub(super) fn costs(&self, report: &mut Report, from: &Moment, to: &Moment) {
        let seconds = (to.at - from.at).as_secs_f64();
        let deliveries = (to.received - from.received).max(1) as f64;
        let cpu = to.server.cpu.saturating_sub(from.server.cpu).as_secs_f64();
        report.value("sent_per_second", (to.sent - from.sent) as f64 / seconds);
        report.value("deliveries_per_second", deliveries / seconds);
        report.value("server_cpu_us_per_delivery", cpu * 1e6 / deliveries);
        report.value("server_cpu_percent_of_a_core", cpu / seconds * 100.0);
        if let (Some(from), Some(to)) = (from.store, to.store) {
            let cpu = to.saturating_sub(from).as_secs_f64();
            report.value("store_cpu_us_per_delivery", cpu * 1e6 / deliveries);
        }
        if let (Some(from), Some(to)) = (from.server.context_switches, to.server.context_switches) {
            report.value("context_switches_per_delivery", to.saturating_sub(from) as f64 / deliveries);
        }
        if let [_, _, ..] = to.server.each.as_slice() {
            for (number, (before, after)) in from.server.each.iter().zip(&to.server.each).enumerate() {
                let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
                report.value(format!("node_{number}_cpu_us_per_delivery"), cpu * 1e6 / deliveries);
                report.value(format!("node_{number}_rss_bytes"), after.rss as f64);
                if let Some(connections) = after.connections {
                    report.value(format!("node_{number}_connections"), connections);
                }
            }
            // Those of a node that was killed are forgotten with it.
            let forwarded = from.server.forwarded.zip(to.server.forwarded).map(|(from, to)| to - from);
            if let Some(forwarded) = forwarded.filter(|_| self.scenario.fault().is_none()) {
                report.value("forwarded_events_per_delivery", forwarded / deliveries);
            }
        }
        report.value("rss_bytes", to.server.rss as f64);
        if let Some(pss) = self.target.meter.pss() {
            report.value("pss_bytes", pss as f64);
        }
        let sessions = self.workers.open().max(1) as f64;
        if self.scenario.fault().is_none() {
            report.value("rss_kib_per_session", (to.server.rss as f64 - self.rss_before as f64) / 1024.0 / sessions);
        }
        let since = self.points().iter().rev().take_while(|point| point.sent > 0);
        let (lag, rss) = since.fold((None, 0), |(lag, rss), point| (point.lag.max_with(lag), rss.max(point.rss_bytes)));
        report.value("rss_highest_bytes", rss.max(to.server.rss) as f64);
        if let Some(lag) = lag {
            report.value("lag_highest_records", lag);
        }
        report.value("own_cpu_percent_of_a_core", (to.own.saturating_sub(from.own)).as_secs_f64() / seconds * 100.0);
        let busy = from
            .clients
            .iter()
            .zip(&to.clients)
            .map(|(from, to)| (to.0 + to.1 - from.0 - from.1) as f64 / 1e6 / seconds);
        let busiest = busy.fold(0.0, f64::max);
        idleness(report, busiest);
    }
}

/// Says how much of the time the busiest process of clients ran or waited for a core, and refuses latencies of one that
/// did so nearly always.
fn idleness(report: &mut Report, busiest: f64) {
    report.value("own_busiest_clients_percent", busiest * 100.0);
    if busiest > BUSY_MAX {
        report.fault("a process of clients was never idle: these latencies are its own");
    }
}

/// The greater of two, of those that there are.
trait MaxWith {
    fn max_with(self, other: Self) -> Self;
}

impl MaxWith for Option<f64> {
    fn max_with(self, other: Self) -> Self {
        match (self, other) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_of_clients_that_are_never_idle_are_refused() {
        let faults = |busiest| {
            let mut report = Report::new("test");
            idleness(&mut report, busiest);
            assert_eq!(report.get("own_busiest_clients_percent"), Some(busiest * 100.0));
            report.faults().len()
        };
        assert_eq!([faults(0.5), faults(0.95), faults(0.96)], [0, 0, 1]);
    }
}
