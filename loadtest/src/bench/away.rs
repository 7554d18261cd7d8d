//! Everybody is away while events come, then everybody connects.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::connect::connect_figures;
use super::{AFTERMATH, Bench};
use crate::admin::Admin;
use crate::latency;
use crate::receiver::{Expected, findings};
use crate::report::Report;
use crate::workload::{Generator, Users, micros, new_run};

const STORED: &str = "notifier_events_total{outcome=\"stored\"}";
/// The events must be stored within this time.
const LIMIT: Duration = Duration::from_secs(180);

impl Bench<'_> {
    pub(super) fn away(&mut self, sessions: usize, count: u64) -> Result<()> {
        let events = self.scenario.events.as_ref().context("a scenario with events")?;
        let run = new_run();
        let users = Users { first: 0, count: sessions, pick: events.users };
        let mut generator = Generator::new(run, users, events.bytes, events.durability);
        let admin = self.target.meter.admin().context("needs the admin port")?;
        let (stored_before, before) = (admin.metric(STORED).unwrap_or(0.0), self.target.meter.read()?);
        let started = Instant::now();
        let mut producer = self.target.topic.producer(events.linger.0)?;
        for _ in 0..count {
            let now = micros();
            let (key, value) = generator.next(now, now);
            producer.send(key, value)?;
        }
        producer.finish()?;
        self.until_stored(admin, stored_before, count)?;
        let (wall, after) = (started.elapsed(), self.target.meter.read()?);
        let mut report = Report::new("away");
        report.value("events", count as f64);
        report.value("events_per_second", count as f64 / wall.as_secs_f64());
        report
            .value("server_cpu_us_per_event", after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6 / count as f64);
        report.value("rss_bytes", after.rss as f64);
        self.add("away".to_owned(), report, Vec::new());
        self.come_back(sessions, run, &generator.into_sent())
    }

    fn until_stored(&mut self, admin: Admin, before: f64, count: u64) -> Result<()> {
        let started = Instant::now();
        loop {
            self.tick("away", count)?;
            // The counter is not there before the first.
            let stored = admin.metric(STORED).unwrap_or(0.0) - before;
            if stored >= count as f64 {
                return Ok(());
            }
            ensure!(started.elapsed() < LIMIT, "{stored} of {count} events were stored after {LIMIT:?}");
        }
    }

    /// The storm: each event's latency counts from when its user was to connect.
    fn come_back(&mut self, sessions: usize, run: u32, sent: &[u32]) -> Result<()> {
        let patience = self.scenario.events.as_ref().map_or(LIMIT, |events| events.patience.0);
        let mut report = Report::new("replay");
        self.workers.expect(Expected { run, acknowledge: true, ..Expected::default() }, false)?;
        self.workers.sent(sent)?;
        let (before, start) = (self.target.meter.read()?, micros());
        let connected = match self.connect_all(sessions)? {
            Ok(connected) => Some(connected),
            Err(error) => {
                self.breaks(&error, &mut report);
                None
            }
        };
        let count: u64 = sent.iter().map(|&count| u64::from(count)).sum();
        if self.broken.is_none()
            && let Err(error) = self.until_all_came("replay", count, patience)
        {
            self.breaks(&error, &mut report);
        }
        let after = self.target.meter.read();
        let end = Instant::now() + AFTERMATH;
        if self.broken.is_none()
            && let Err(error) = self.ticks_until(end, "replay", count)
        {
            self.breaks(&error, &mut report);
        }
        let outcome = self.outcome(&mut report)?;
        report.value("sessions", sessions as f64);
        report.value("events", count as f64);
        report.value("replay_seconds", self.workers.last_arrival().saturating_sub(start) as f64 / 1e6);
        if let Ok(after) = after {
            let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6;
            report.value("server_cpu_us_per_delivery", cpu / outcome.verdict.received.max(1) as f64);
            report.value("rss_before_bytes", self.rss_before as f64);
            report.value("rss_bytes", after.rss as f64);
        }
        let empty = latency::histogram()?;
        let connects = connected.as_ref().map_or(&empty, |connected| &connected.latency);
        if let Some(connected) = &connected {
            connect_figures(&mut report, connected, self.scenario.sessions.lateness_max.0);
        }
        outcome.latencies.figures(&mut report);
        findings(&mut report, outcome.verdict, outcome.odd);
        self.note_failures(&mut report);
        let curves = vec![("from the connect", &outcome.latencies.from_due), ("connect", connects)];
        self.add("replay".to_owned(), report, curves);
        Ok(())
    }
}
