//! Events for sessions that are open: on a schedule, or as a backlog.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::fault::Course;
use super::{AFTERMATH, Bench};
use crate::feed::{self, Fed, Plan, Progress};
use crate::meter::Reading;
use crate::process::Process;
use crate::receiver::{Expected, findings};
use crate::report::Report;
use crate::scenario::{Disturbance, Events};
use crate::schedule::Schedule;
use crate::workers::Outcome;
use crate::workload::{Generator, Users, micros, micros_of, new_run};

/// Time for everybody to be ready before the first event is due.
const LEAD: Duration = Duration::from_millis(500);
/// A client process that runs or waits for a core this much of the time measures itself.
const BUSY_MAX: f64 = 0.95;

/// Readings of servers and clients at one time.
pub(super) struct Moment {
    pub at: Instant,
    pub server: Reading,
    store: Option<Duration>,
    received: u64,
    sent: u64,
    own: Duration,
    clients: Vec<(u64, u64)>,
}

impl Bench<'_> {
    pub(super) fn events(&mut self, events: &Events, suffix: &str) -> Result<()> {
        match (events.schedule(), events.backlog) {
            (Some(schedule), _) => self.arrivals(events, schedule, &format!("events{suffix}")),
            (None, Some(count)) => self.backlog(events, count, &format!("backlog{suffix}")),
            (None, None) => Ok(()),
        }
    }

    /// Events on a schedule. The server's CPU counts from the end of the warm-up to the last event's due time.
    pub fn arrivals(&mut self, events: &Events, schedule: Schedule, name: &str) -> Result<()> {
        let (run, sessions) = (new_run(), self.workers.sessions());
        let (start, length) = (Instant::now() + LEAD, schedule.length());
        let measured = start + events.warmup.0;
        let disturbance = self.scenario.disturbance.as_ref();
        let mut course = self.scenario.fault().map(|mut fault| Course::new(fault, measured + fault.after().0));
        let after = disturbance.map(|disturbance| disturbance.after);
        let after = after.or(self.scenario.fault().map(|mut fault| *fault.after()));
        let disturbed = after.map(|after| measured + after.0);
        let hot = disturbance.and_then(|disturbance| disturbance.hot_user_per_second);
        let mut plan = Plan::of(schedule.clone());
        if let (Some(rate), Some(disturbed)) = (hot, disturbed) {
            let from = disturbed - start;
            plan = plan.with_hot_user(from, Schedule::constant(rate.0, length - from));
        }
        let durability = self.target.durability(events.durability);
        let expected = Expected {
            run,
            acknowledge: events.acknowledges() && durability == events.durability,
            measured_from: micros_of(measured),
            disturbed_from: disturbed.map(micros_of),
            hot: hot.map(|_| 0),
            faults: course.is_some(),
        };
        self.workers.expect(expected, false)?;
        let generator = self.generator(run, events);
        let producer = self.target.topic.producer(events.linger.0)?;
        let progress = Arc::new(Progress::default());
        let feeding = {
            let progress = progress.clone();
            thread::spawn(move || feed::run(producer, generator, &plan, start, &progress))
        };
        let mut report = Report::new("events");
        let (mut from, mut to) = (None, None);
        let times = (measured, disturbed);
        let watched = self.watch(name, &progress, times, course.as_mut(), &feeding, (&mut from, &mut to));
        if let Err(error) = watched {
            progress.stop();
            self.breaks(&error, &mut report);
        }
        let fed = feeding.join().ok().context("the producing thread panicked")??;
        if let Some(error) = fed.error.as_ref().filter(|_| self.broken.is_none()) {
            report.fault(error.clone());
        }
        let count = fed.sent.iter().map(|&count| u64::from(count)).sum();
        if let Some(course) = course.as_mut().filter(|_| self.broken.is_none())
            && let Err(error) = self.until_settled(course, name, count, events.patience.0)
        {
            self.breaks(&error, &mut report);
        }
        let outcome = self.collect(&fed.sent, name, events.patience.0, &mut report)?;
        report.value("sessions", sessions as f64);
        report.value("events", fed.sent.iter().map(|&count| f64::from(count)).sum());
        report.value("rate_per_second", schedule.expected() as f64 / length.as_secs_f64());
        report.value("peak_rate_per_second", schedule.peak());
        if let (Some(from), Some(to)) = (&from, &to) {
            self.costs(&mut report, from, to);
        }
        if let Some(course) = &course {
            self.fault_figures(&mut report, course, from.as_ref(), &outcome);
        }
        outcome.latencies.figures(&mut report);
        findings(&mut report, outcome.verdict, outcome.odd);
        honesty(&mut report, &fed, events.lateness_max.0, length);
        self.note_failures(&mut report);
        self.curves(name, report, &outcome);
        Ok(())
    }

    /// Until the last event was sent: a reading at the end of the warm-up and one at the end, and what happens in between.
    fn watch(
        &mut self,
        name: &str,
        progress: &Progress,
        (measured, disturbed): (Instant, Option<Instant>),
        mut course: Option<&mut Course>,
        feeding: &thread::JoinHandle<Result<Fed>>,
        (from, to): (&mut Option<Moment>, &mut Option<Moment>),
    ) -> Result<()> {
        let mut stall = self.scenario.disturbance.as_ref().filter(|disturbance| disturbance.stalled_share.is_some());
        while !feeding.is_finished() {
            self.tick(name, progress.sent())?;
            if from.is_none() && Instant::now() >= measured {
                *from = Some(self.moment(progress.sent())?);
            }
            if disturbed.is_some_and(|disturbed| Instant::now() >= disturbed)
                && let Some(disturbance) = stall.take()
            {
                let users = stalled(disturbance, self.workers.sessions());
                self.workers.stall(&users)?;
            }
            if let Some(course) = &mut course {
                self.proceed(course, progress.sent())?;
            }
        }
        *to = Some(self.moment(progress.sent())?);
        Ok(())
    }

    /// A backlog, written while the server stands still and drained by it.
    ///
    /// SIGSTOP keeps the sockets open and the consumer from reading ahead, so that every server begins with the
    /// whole backlog before it, and the producer's CPU is over when the clock starts.
    fn backlog(&mut self, events: &Events, count: u64, name: &str) -> Result<()> {
        let process = self.target.meter.process().context("a backlog needs the server's process")?;
        let run = new_run();
        let mut generator = self.generator(run, events);
        let mut producer = self.target.topic.producer(events.linger.0)?;
        let acknowledge = events.acknowledges() && self.target.durability(events.durability) == events.durability;
        // Fetches that are under way end before the server is stopped.
        self.ticks_until(Instant::now() + LEAD, name, 0)?;
        let paused = process.pause()?;
        for _ in 0..count {
            let now = micros();
            let (key, value) = generator.next(now, now);
            producer.send(key, value)?;
        }
        producer.finish()?;
        let sent = generator.into_sent();
        // Latencies count from here: before, nobody could have delivered anything.
        let measured_from = micros();
        self.workers.expect(Expected { run, acknowledge, measured_from: u64::MAX, ..Expected::default() }, true)?;
        self.workers.sent(&sent)?;
        process.reset_peak()?;
        let mut report = Report::new("backlog");
        let before = self.moment_of(Reading { cpu: process.cpu()?, rss: process.rss()?, ..Reading::default() }, 0)?;
        let started = micros().max(measured_from);
        drop(paused);
        let came = self.until_all_came(name, count, events.patience.0);
        let after = self.target.meter.read();
        let peak = process.peak_rss();
        if let Err(error) = came {
            self.breaks(&error, &mut report);
        }
        let outcome = self.collect(&sent, name, Duration::ZERO, &mut report)?;
        let wall = self.workers.last_arrival().saturating_sub(started) as f64 / 1e6;
        let received = outcome.verdict.received;
        report.value("sessions", self.workers.sessions() as f64);
        report.value("events", count as f64);
        report.value("wall_seconds", wall);
        report.value("deliveries_per_second", received as f64 / wall.max(1e-6));
        if let (Ok(after), Ok(peak)) = (after, peak) {
            let cpu = after.cpu.saturating_sub(before.server.cpu).as_secs_f64() * 1e6;
            report.value("server_cpu_us_per_delivery", cpu / received.max(1) as f64);
            self.store_cost(&mut report, &before, received)?;
            report.value("rss_before_bytes", before.server.rss as f64);
            report.value("rss_peak_bytes", peak as f64);
            report.value("rss_peak_growth_bytes", peak as f64 - before.server.rss as f64);
        }
        findings(&mut report, outcome.verdict, outcome.odd);
        self.note_failures(&mut report);
        self.curves(name, report, &outcome);
        Ok(())
    }

    fn generator(&self, run: u32, events: &Events) -> Generator {
        let users = Users { first: 0, count: self.workers.sessions(), pick: events.users };
        Generator::new(run, users, events.bytes, self.target.durability(events.durability))
    }

    /// Waits for what is under way, as long as something comes.
    pub(super) fn until_all_came(&mut self, name: &str, sent: u64, patience: Duration) -> Result<()> {
        let mut last = (self.workers.received(), Instant::now());
        while self.workers.outstanding() != Some(0) {
            self.tick(name, sent)?;
            let received = self.workers.received();
            if received > last.0 {
                last = (received, Instant::now());
            } else if last.1.elapsed() > patience {
                break; // what is missing is counted as lost
            }
        }
        Ok(())
    }

    /// Tells the clients what was sent, waits for the rest and asks what came.
    fn collect(&mut self, sent: &[u32], name: &str, patience: Duration, report: &mut Report) -> Result<Outcome> {
        let count = sent.iter().map(|&count| u64::from(count)).sum();
        self.workers.sent(sent)?;
        if self.broken.is_none() {
            let rest = self.until_all_came(name, count, patience);
            let end = Instant::now() + AFTERMATH;
            if let Err(error) = rest.and_then(|()| self.ticks_until(end, name, count)) {
                self.breaks(&error, report);
            }
        }
        self.workers.finish()
    }

    pub(super) fn moment(&mut self, sent: u64) -> Result<Moment> {
        let server = self.target.meter.read()?;
        self.moment_of(server, sent)
    }

    fn moment_of(&mut self, server: Reading, sent: u64) -> Result<Moment> {
        let at = Instant::now();
        self.workers.refresh()?;
        let (store, received) = (self.target.store_cpu()?, self.workers.received());
        let own = self.workers.cpu()? + Process::current().cpu()?;
        Ok(Moment { at, server, store, received, sent, own, clients: self.workers.times() })
    }

    fn store_cost(&self, report: &mut Report, before: &Moment, deliveries: u64) -> Result<()> {
        if let (Some(before), Some(now)) = (before.store, self.target.store_cpu()?) {
            report.value(
                "store_cpu_us_per_delivery",
                (now.saturating_sub(before)).as_secs_f64() * 1e6 / deliveries.max(1) as f64,
            );
        }
        Ok(())
    }

    /// What the server, the store and this tool itself took between two moments.
    fn costs(&self, report: &mut Report, from: &Moment, to: &Moment) {
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
        report.value("own_busiest_clients_percent", busiest * 100.0);
        if busiest > BUSY_MAX {
            report.fault("a process of clients was never idle: these latencies are its own");
        }
    }

    fn curves(&mut self, name: &str, report: Report, outcome: &Outcome) {
        let latencies = &outcome.latencies;
        let others = if latencies.calm.is_empty() { "from due" } else { "disturbed" };
        let curves = vec![(others, &latencies.from_due), ("calm", &latencies.calm), ("hot user", &latencies.hot)];
        self.add(name.to_owned(), report, curves);
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

/// Users spread over all, so that every process of clients has some.
fn stalled(disturbance: &Disturbance, sessions: usize) -> Vec<u32> {
    let share = disturbance.stalled_share.map_or(0.0, |share| share.0);
    let count = ((sessions as f64 * share).round() as usize).clamp(1, sessions);
    (0..count).map(|number| (number * sessions / count) as u32).collect()
}

/// Says how late the generator itself was, and refuses a rate that it did not make.
fn honesty(report: &mut Report, fed: &Fed, max: Duration, length: Duration) {
    let late = |quantile| fed.lateness.value_at_quantile(quantile) as f64 / 1e3;
    report.value("own_lateness_p50_ms", late(0.5));
    report.value("own_lateness_p99_ms", late(0.99));
    report.value("own_lateness_max_ms", late(1.0));
    report.value("own_producer_cpu_percent", fed.time.running.as_secs_f64() / length.as_secs_f64() * 100.0);
    let max = max.as_secs_f64() * 1e3;
    if late(0.99) > max {
        report.fault(format!(
            "the schedule slipped: {:.1} ms late at the 99th percentile, at most {max} ms count as that rate",
            late(0.99)
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::histogram;
    use crate::process::ThreadTime;
    use crate::scenario::{Length, Share};

    #[test]
    fn a_rate_that_the_generator_did_not_make_is_refused() {
        let mut lateness = histogram().unwrap();
        (0..100).for_each(|_| lateness.saturating_record(5_000));
        let fed = |lateness| Fed { sent: vec![100], lateness, time: ThreadTime::default(), error: None };
        let mut report = Report::new("test");
        honesty(&mut report, &fed(lateness.clone()), Duration::from_millis(10), Duration::from_secs(1));
        assert!(report.faults().is_empty());
        (0..2).for_each(|_| lateness.saturating_record(50_000));
        honesty(&mut report, &fed(lateness), Duration::from_millis(10), Duration::from_secs(1));
        assert!(report.faults()[0].contains("slipped: 5"), "{:?}", report.faults());
    }

    #[test]
    fn stalled_readers_are_spread() {
        let disturbance = Disturbance {
            after: Length(Duration::from_secs(1)),
            hot_user_per_second: None,
            stalled_share: Share::try_from(0.02).ok(),
        };
        assert_eq!(stalled(&disturbance, 100), [0, 50]);
        assert_eq!(stalled(&disturbance, 10), [0]);
    }
}
