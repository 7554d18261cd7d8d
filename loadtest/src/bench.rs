//! One scenario on one server, from the first connect to the last event.
//!
//! Coordinates: the clients are processes of their own, the events have a thread, and this samples the server
//! meanwhile. What goes wrong midway ends the run; what was seen until then is kept, and counted as faulty.

mod away;
mod connect;
mod costs;
mod events;
mod fault;
mod sampler;
mod stall;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::latency;
use crate::report::Report;
use crate::results::{Phase, Point, Run};
use crate::scenario::{Layout, Scenario};
use crate::target::{self, Args, Kind, Target};
use crate::workers::{Outcome, Workers};
use sampler::Sampler;

/// How long one look at the clients takes.
const TICK: Duration = Duration::from_millis(50);
/// Listened for duplicates after the last event.
const AFTERMATH: Duration = Duration::from_millis(500);

/// A run under way.
pub struct Bench<'a> {
    scenario: &'a Scenario,
    target: &'a mut Target,
    workers: Workers,
    sampler: Sampler,
    phases: Vec<Phase>,
    /// The server's memory before the first session, in bytes.
    rss_before: u64,
    /// Why nothing further can be measured.
    broken: Option<String>,
}

/// Runs the scenario once. A failure is in the run, with what was measured before it.
pub fn run(scenario: &Scenario, args: &Args, kind: Kind, round: usize, per_process: usize) -> Run {
    let mut run = Run::new(scenario, kind.name(), round);
    let mut layouts = scenario.layouts().into_iter();
    let result = layouts.try_for_each(|layout| run_on(scenario, args, kind, &layout, per_process, &mut run));
    run.error = result.err().map(|error| format!("{error:#}").trim_start_matches(": ").to_owned());
    run
}

fn run_on(
    scenario: &Scenario,
    args: &Args,
    kind: Kind,
    (layout, suffix): &(Layout, String),
    per_process: usize,
    run: &mut Run,
) -> Result<()> {
    let mut target = args.start(scenario, kind, *layout)?;
    let measured = measure(scenario, &mut target, per_process, run, |bench| bench.all(suffix));
    let log = if measured.is_err() { target.log_tail() } else { String::new() };
    let stopped = target.stop();
    measured.and_then(|broken| broken.map_or(Ok(()), |broken| Err(anyhow!(broken)))).context(log).and(stopped)
}

/// Measures something on a server that is up; the answer is why it could not be ended.
pub fn measure(
    scenario: &Scenario,
    target: &mut Target,
    per_process: usize,
    run: &mut Run,
    what: impl FnOnce(&mut Bench<'_>) -> Result<()>,
) -> Result<Option<String>> {
    let (sessions, of_a_node) = (scenario.sessions.count.most(), scenario.sessions_of_a_node());
    let processes: Vec<_> = target.meter.0.iter().filter_map(|gauge| gauge.process).collect();
    let count = target::processes(sessions, per_process, (&processes, of_a_node))?;
    let workers = Workers::start(count, &target.secret)?;
    let rss_before = target.meter.read()?.rss;
    let sampler = Sampler::after(&format!("{} on {}", scenario.name, target.kind.name()), run.series.last());
    let mut bench = Bench { scenario, target, workers, sampler, phases: Vec::new(), rss_before, broken: None };
    let result = what(&mut bench);
    bench.sampler.end();
    run.phases.extend(bench.phases);
    run.series.extend(bench.sampler.into_points());
    result.map(|()| bench.broken)
}

impl Bench<'_> {
    /// Every step of the scenario; the names of the phases end with `suffix`.
    pub fn all(&mut self, suffix: &str) -> Result<()> {
        let steps = &self.scenario.sessions.count.0;
        for &sessions in steps {
            let at = if steps.len() > 1 { format!(" at {sessions}") } else { String::new() };
            self.step(sessions, &format!("{at}{suffix}"))?;
            if self.broken.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Connects up to so many sessions, then idles and sends events as the scenario says.
    pub fn step(&mut self, sessions: usize, suffix: &str) -> Result<()> {
        let events = self.scenario.events.as_ref();
        if let Some(away) = events.and_then(|events| events.away) {
            return self.away(sessions, away);
        }
        self.connect(sessions, suffix)?;
        if self.broken.is_none() && self.scenario.sessions.idle.is_some() {
            self.idle(suffix)?;
        }
        match events {
            Some(events) if self.broken.is_none() => self.events(events, suffix),
            _ => Ok(()),
        }
    }

    /// Looks at clients and server for a moment.
    ///
    /// # Errors
    ///
    /// When one of them is gone.
    fn tick(&mut self, phase: &str, sent: u64) -> Result<()> {
        self.workers.listen(TICK)?;
        self.sampler.look(phase, sent, &mut self.workers, &self.target.meter)?;
        let (sessions, open) = (self.workers.sessions(), self.workers.open());
        match self.workers.failures() {
            Some((failed, first)) if open == 0 && failed >= sessions.min(20) => {
                Err(anyhow!("no session is open any more, {failed} of {sessions} failed, the first: {first}"))
            }
            _ => Ok(()),
        }
    }

    /// Like [`Self::tick`], until then.
    fn ticks_until(&mut self, end: Instant, phase: &str, sent: u64) -> Result<()> {
        while Instant::now() < end {
            self.tick(phase, sent)?;
        }
        Ok(())
    }

    /// Notes why the run ends here.
    fn breaks(&mut self, error: &anyhow::Error, report: &mut Report) {
        let why = format!("{error:#}");
        report.fault(format!("ended early, so these figures are partial: {why}"));
        self.broken = Some(why);
    }

    /// What the clients saw, as far as they can still say it.
    fn outcome(&mut self, report: &mut Report) -> Result<Outcome> {
        let mut outcome = self.workers.finish(self.broken.is_none())?;
        if let Some(error) = outcome.incomplete.take().filter(|_| self.broken.is_none()) {
            self.breaks(&error, report);
        }
        Ok(outcome)
    }

    fn note_failures(&self, report: &mut Report) {
        if let Some((count, first)) = self.workers.failures() {
            report.fault(format!("{count} connections failed or ended, the first: {first}"));
        }
    }

    fn add(&mut self, name: String, mut report: Report, curves: Vec<(&str, &hdrhistogram::Histogram<u64>)>) {
        report.rename(name);
        let curves = curves.into_iter().filter(|(_, histogram)| !histogram.is_empty());
        let curves = curves.map(|(name, histogram)| (name.to_owned(), latency::curve(histogram))).collect();
        self.sampler.say(&report);
        self.phases.push(Phase { report, curves });
    }

    /// Opens the scenario's sessions.
    pub fn open_all(&mut self) -> Result<()> {
        self.open_up_to(self.scenario.sessions.count.most())
    }

    /// Opens sessions until there are so many.
    pub fn open_up_to(&mut self, sessions: usize) -> Result<()> {
        self.connect(sessions, &format!(" at {sessions}"))
    }

    /// What was sampled so far.
    pub fn points(&self) -> &[Point] {
        self.sampler.points()
    }

    pub fn last_phase(&self) -> Option<&Phase> {
        self.phases.last()
    }

    pub fn is_broken(&self) -> bool {
        self.broken.is_some()
    }
}
