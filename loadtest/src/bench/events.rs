//! Events for sessions that are open: on a schedule, or as a backlog.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::costs::Moment;
use super::fault::Course;
use super::stall::{self, stalled};
use super::{AFTERMATH, Bench};
use crate::feed::{self, Fed, Limits, Plan, Progress};
use crate::meter::Reading;
use crate::receiver::{Expected, findings};
use crate::report::Report;
use crate::scenario::Events;
use crate::schedule::Schedule;
use crate::workers::Outcome;
use crate::workload::{Generator, Users, micros, micros_of, new_run};

/// Time for everybody to be ready before the first event is due.
const LEAD: Duration = Duration::from_millis(500);

/// Readings at the marks of a run, of those that it has come to.
#[derive(Default)]
struct Marks {
    /// The end of the warm-up.
    from: Option<Moment>,
    /// The disturbance.
    disturbed: Option<Moment>,
    /// The last event was sent.
    to: Option<Moment>,
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
        let stalled = disturbance.map(|disturbance| stalled(disturbance, sessions)).unwrap_or_default();
        let mut plan = Plan::of(schedule.clone());
        if let (Some(rate), Some(disturbed)) = (hot, disturbed) {
            let from = disturbed - start;
            plan = plan.with_more_for(vec![0], from, Schedule::constant(rate.0, length - from));
        }
        if let Some(rate) = disturbance.and_then(|disturbance| disturbance.stalled_per_second) {
            plan = plan.with_more_for(stalled.clone(), Duration::ZERO, Schedule::constant(rate.0, length));
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
        let mut marks = Marks::default();
        let times = (measured, disturbed);
        let watched = self.watch(name, &progress, times, course.as_mut(), &stalled, &feeding, &mut marks);
        if let Err(error) = watched {
            progress.stop();
            self.breaks(&error, &mut report);
        }
        let fed = match feeding.join() {
            Ok(fed) => fed?,
            Err(_) => Fed::nothing("the producing thread panicked".to_owned())?,
        };
        if let Some(error) = fed.error.as_ref().filter(|_| self.broken.is_none()) {
            // Without the broker, or with events of which nobody knows whether they were written, there is no going on.
            match fed.unconfirmed {
                0 => report.fault(error.clone()),
                count => self.breaks(&anyhow!("{error}; {count} events are not confirmed"), &mut report),
            }
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
        if let (Some(from), Some(to)) = (&marks.from, &marks.to) {
            self.costs(&mut report, from, to);
        }
        if let (Some(before), Some(to)) = (&marks.disturbed, &marks.to) {
            stall::figures(&mut report, (before, to), stalled.len(), outcome.verdict.unread, events.bytes);
        }
        if let Some(course) = &course {
            self.fault_figures(&mut report, course, marks.from.as_ref(), &outcome);
        }
        outcome.latencies.figures(&mut report);
        findings(&mut report, outcome.verdict, outcome.odd);
        let limits = Limits { lateness: events.lateness_max.0, confirmation: events.confirmation_max.0 };
        fed.honesty(&mut report, limits, length);
        self.note_failures(&mut report);
        self.curves(name, report, &outcome);
        Ok(())
    }

    /// Until the last event was sent: readings at the marks, and what happens in between.
    #[expect(clippy::too_many_arguments, reason = "what one loop looks at")]
    fn watch(
        &mut self,
        name: &str,
        progress: &Progress,
        (measured, disturbed): (Instant, Option<Instant>),
        mut course: Option<&mut Course>,
        stalled: &[u32],
        feeding: &thread::JoinHandle<Result<Fed>>,
        marks: &mut Marks,
    ) -> Result<()> {
        let disturbed = disturbed.filter(|_| self.scenario.disturbance.is_some());
        while !feeding.is_finished() {
            self.tick(name, progress.sent())?;
            if marks.from.is_none() && Instant::now() >= measured {
                marks.from = Some(self.moment(progress.sent())?);
            }
            if marks.disturbed.is_none() && disturbed.is_some_and(|disturbed| Instant::now() >= disturbed) {
                self.workers.stall(stalled)?;
                marks.disturbed = Some(self.moment(progress.sent())?);
            }
            if let Some(course) = &mut course {
                self.proceed(course, progress.sent())?;
            }
        }
        marks.to = Some(self.moment(progress.sent())?);
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
            self.store_cost(&mut report, &before, received);
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

    /// Tells the clients what was sent, waits for the rest and asks what came. When the run has ended early nobody knows
    /// what could have come still: then nothing is counted as lost.
    fn collect(&mut self, sent: &[u32], name: &str, patience: Duration, report: &mut Report) -> Result<Outcome> {
        let count = sent.iter().map(|&count| u64::from(count)).sum();
        if self.broken.is_none() {
            let told = self.workers.sent(sent);
            let rest = told.and_then(|()| self.until_all_came(name, count, patience));
            let end = Instant::now() + AFTERMATH;
            if let Err(error) = rest.and_then(|()| self.ticks_until(end, name, count)) {
                self.breaks(&error, report);
            }
        }
        self.outcome(report)
    }

    fn curves(&mut self, name: &str, report: Report, outcome: &Outcome) {
        let latencies = &outcome.latencies;
        let others = if latencies.calm.is_empty() { "from due" } else { "disturbed" };
        let curves = vec![(others, &latencies.from_due), ("calm", &latencies.calm), ("hot user", &latencies.hot)];
        self.add(name.to_owned(), report, curves);
    }
}
