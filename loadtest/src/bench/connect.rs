//! Sessions that connect on a schedule, and what they cost while nothing happens.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::Bench;
use crate::latency;
use crate::report::Report;
use crate::workers::Connected;
use crate::workload::micros_of;

/// Time for all processes to hear of the first connect before it is due.
const LEAD: Duration = Duration::from_millis(200);
/// The connects must be over this long after the last was due; the clients give up before.
const PATIENCE: Duration = Duration::from_secs(75);

impl Bench<'_> {
    /// Opens sessions up to this many, and lets them settle.
    pub(super) fn connect(&mut self, sessions: usize, suffix: &str) -> Result<()> {
        let before = self.target.meter.read()?;
        let already = self.workers.sessions();
        let started = Instant::now();
        let connected = self.connect_all(sessions)?;
        let wall = started.elapsed().saturating_sub(LEAD);
        let mut report = Report::new("connect");
        let connected = match connected {
            Ok(connected) => Some(connected),
            Err(error) => {
                self.breaks(&error, &mut report);
                None
            }
        };
        let settled = Instant::now() + self.scenario.sessions.settle.0;
        if self.broken.is_none()
            && let Err(error) = self.ticks_until(settled, "settle", 0)
        {
            self.breaks(&error, &mut report);
        }
        let count = sessions - already;
        report.value("sessions", sessions as f64);
        report.value("connects", count as f64);
        report.value("rate_per_second", self.scenario.sessions.connects_per_second.0);
        report.value("wall_seconds", wall.as_secs_f64());
        if let Ok(after) = self.target.meter.read() {
            let cpu = after.cpu.saturating_sub(before.cpu);
            report.value("server_cpu_us_per_connect", cpu.as_secs_f64() * 1e6 / count.max(1) as f64);
            self.memory(&mut report, after.rss);
        }
        let empty = latency::histogram()?;
        let curve = connected.as_ref().map_or(&empty, |connected| &connected.latency);
        if let Some(connected) = &connected {
            connect_figures(&mut report, connected, self.scenario.sessions.lateness_max.0);
        }
        self.note_failures(&mut report);
        if self.broken.is_none() && self.workers.open() == 0 {
            let (_, first) = self.workers.failures().unwrap_or((0, "no answer"));
            self.broken = Some(format!("no session could be opened: {first}"));
        }
        self.add(format!("connect{suffix}"), report, vec![("connect", curve)]);
        Ok(())
    }

    /// The inner error is the server's or the clients' end.
    pub(super) fn connect_all(&mut self, sessions: usize) -> Result<Result<Connected>> {
        let rate = self.scenario.sessions.connects_per_second.0;
        let count = sessions - self.workers.sessions();
        let start = Instant::now() + LEAD;
        let returns = self.scenario.fault().is_some();
        self.workers.connect(&self.target.endpoints, sessions, (micros_of(start), rate), returns)?;
        let deadline = start + Duration::from_secs_f64(count as f64 / rate) + PATIENCE;
        loop {
            if let Err(error) = self.tick("connect", 0) {
                return Ok(Err(error));
            }
            if let Some(connected) = self.workers.connected()? {
                return Ok(Ok(connected));
            }
            if Instant::now() > deadline {
                return Ok(Err(anyhow!("only {} of {sessions} sessions were open in time", self.workers.open())));
            }
        }
    }

    /// Does nothing for a while.
    pub(super) fn idle(&mut self, suffix: &str) -> Result<()> {
        let length = self.scenario.sessions.idle.map_or(Duration::ZERO, |length| length.0);
        let mut report = Report::new("idle");
        let (before, started) = (self.target.meter.read()?, Instant::now());
        if let Err(error) = self.ticks_until(started + length, "idle", 0) {
            self.breaks(&error, &mut report);
        }
        let seconds = started.elapsed().as_secs_f64();
        report.value("sessions", self.workers.open() as f64);
        report.value("idle_seconds", seconds);
        if let Ok(after) = self.target.meter.read() {
            let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
            report.value("server_cpu_percent_of_a_core", cpu / seconds * 100.0);
            self.memory(&mut report, after.rss);
            if let (Some(before), Some(after)) = (before.context_switches, after.context_switches) {
                let sessions = self.workers.open().max(1) as f64;
                report.value(
                    "context_switches_per_session_second",
                    after.saturating_sub(before) as f64 / sessions / seconds,
                );
            }
        }
        self.note_failures(&mut report);
        self.add(format!("idle{suffix}"), report, Vec::new());
        Ok(())
    }

    /// The server's memory, as a whole and for each session.
    fn memory(&self, report: &mut Report, rss: u64) {
        report.value("rss_before_bytes", self.rss_before as f64);
        report.value("rss_bytes", rss as f64);
        if let Some(pss) = self.target.meter.pss() {
            report.value("pss_bytes", pss as f64);
        }
        let sessions = self.workers.open().max(1) as f64;
        report.value("rss_kib_per_session", (rss as f64 - self.rss_before as f64) / 1024.0 / sessions);
    }
}

/// How long connects took, and whether they were begun when they were due.
pub(super) fn connect_figures(report: &mut Report, connected: &Connected, max: Duration) {
    if !connected.latency.is_empty() {
        latency::percentiles(report, "connect_latency", &connected.latency);
    }
    let late = connected.lateness.value_at_quantile(0.99) as f64 / 1e3;
    report.value("own_lateness_p99_ms", late);
    let max = max.as_secs_f64() * 1e3;
    if late > max {
        report.fault(format!(
            "the clients began to connect {late:.0} ms late at the 99th percentile, at most {max} ms count as that rate"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connects_that_were_begun_late_do_not_count_as_that_rate() {
        let faults = |late: u64| {
            let mut connected =
                Connected { latency: latency::histogram().unwrap(), lateness: latency::histogram().unwrap() };
            (0..100).for_each(|_| connected.latency.saturating_record(2_000));
            (0..98).for_each(|_| connected.lateness.saturating_record(1_000));
            (0..2).for_each(|_| connected.lateness.saturating_record(late));
            let mut report = Report::new("test");
            connect_figures(&mut report, &connected, Duration::from_millis(50));
            assert!(report.get("connect_latency_p99_ms").is_some());
            report.faults().to_vec()
        };
        assert_eq!(faults(49_000), [""; 0]);
        assert!(faults(80_000)[0].starts_with("the clients began to connect 80 ms late"), "{:?}", faults(80_000));
    }
}
