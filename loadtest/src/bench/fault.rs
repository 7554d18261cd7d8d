//! What happens to nodes in the middle of the arrivals, and what it costs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::costs::Moment;
use super::{Bench, TICK};
use crate::latency;
use crate::process::Paused;
use crate::report::Report;
use crate::scenario::Fault;
use crate::target::Target;
use crate::workers::Outcome;
use crate::workload::micros;

/// Before, not every client need have noticed.
const NOTICED: Duration = Duration::from_secs(1);
/// How long a node may take to stop or to start.
const PATIENCE: Duration = Duration::from_secs(90);

/// How far it is.
pub struct Course {
    fault: Fault,
    state: State,
    /// A node that stands still.
    frozen: Option<Paused>,
    /// When the first node was killed, stopped or told to end, and what all had cost by then.
    began: Option<(u64, Moment)>,
    /// When every session was open again after a kill.
    settled: Option<Moment>,
    restarted: usize,
    slowest_stop: Duration,
    slowest_start: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Until then.
    Waiting(Instant),
    /// A node stands still until then.
    Frozen(Instant),
    /// A node was told to stop then.
    Stopping(Instant),
    /// It was started then.
    Starting(Instant),
    Done(Instant),
}

impl Course {
    /// Nothing has happened yet; the first thing does at `at`.
    pub fn new(fault: Fault, at: Instant) -> Self {
        Self {
            fault,
            state: State::Waiting(at),
            frozen: None,
            began: None,
            settled: None,
            restarted: 0,
            slowest_stop: Duration::ZERO,
            slowest_start: Duration::ZERO,
        }
    }

    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done(_))
    }

    /// Does what is due. Cheap when nothing is.
    fn step(&mut self, target: &mut Target) -> Result<()> {
        let (now, node) = (Instant::now(), self.restarted);
        self.state = match (self.state, self.fault) {
            (State::Waiting(at), _) if now < at => return Ok(()),
            (State::Waiting(_), Fault::Kill { .. }) => {
                target.kill(target.nodes() - 1)?;
                State::Done(now)
            }
            (State::Waiting(_), Fault::Freeze { length, .. }) => {
                self.frozen = Some(target.freeze(target.nodes() - 1)?);
                State::Frozen(now + length.0)
            }
            (State::Frozen(until), _) if now < until => return Ok(()),
            (State::Frozen(_), _) => {
                target.kill(target.nodes() - 1)?;
                self.frozen = None;
                State::Done(now)
            }
            (State::Waiting(_), Fault::Restart { .. }) => {
                target.terminate(node)?;
                State::Stopping(now)
            }
            (State::Stopping(since), _) => {
                if !target.has_ended(node)? {
                    ensure!(since.elapsed() < PATIENCE, "node {node} did not stop within {PATIENCE:?} of SIGTERM");
                    return Ok(());
                }
                self.slowest_stop = self.slowest_stop.max(since.elapsed());
                target.start_again(node)?;
                State::Starting(now)
            }
            (State::Starting(since), Fault::Restart { pause, .. }) => {
                if !target.is_ready(node) {
                    ensure!(since.elapsed() < PATIENCE, "node {node} was not ready within {PATIENCE:?}");
                    return Ok(());
                }
                self.slowest_start = self.slowest_start.max(since.elapsed());
                self.restarted += 1;
                if self.restarted == target.nodes() { State::Done(now) } else { State::Waiting(now + pause.0) }
            }
            (State::Starting(_) | State::Done(_), _) => return Ok(()),
        };
        Ok(())
    }
}

impl Bench<'_> {
    /// Goes on with what happens to the nodes.
    pub(super) fn proceed(&mut self, course: &mut Course, sent: u64) -> Result<()> {
        if course.began.is_none() && matches!(course.state, State::Waiting(at) if Instant::now() >= at) {
            let before = self.moment(sent)?;
            let at = micros();
            course.step(self.target)?;
            course.began = Some((at, before));
            return Ok(());
        }
        course.step(self.target)?;
        let noticed = matches!(course.state, State::Done(at) if at.elapsed() >= NOTICED);
        if course.settled.is_none() && noticed && self.workers.away() == 0 {
            let moment = self.moment(sent)?;
            // What they say now is newer than the kill.
            course.settled = (self.workers.away() == 0).then_some(moment);
        }
        Ok(())
    }

    /// Until it is over and every session is open again, as long as `patience` allows.
    pub(super) fn until_settled(
        &mut self,
        course: &mut Course,
        name: &str,
        sent: u64,
        patience: Duration,
    ) -> Result<()> {
        let mut end = None;
        while course.settled.is_none() {
            self.proceed(course, sent)?;
            self.ticks_until(Instant::now() + TICK, name, sent)?;
            if course.is_done() && Instant::now() > *end.get_or_insert(Instant::now() + NOTICED + patience) {
                break; // who is missing is reported
            }
        }
        Ok(())
    }

    /// What became of the sessions, and what it cost. `from`: the end of the warm-up.
    pub(super) fn fault_figures(&self, report: &mut Report, course: &Course, from: Option<&Moment>, outcome: &Outcome) {
        let away = outcome.away;
        report.value("sessions_that_came_back", away.back as f64);
        report.value("goodbyes", away.told as f64);
        report.value("connects_refused_meanwhile", away.refused as f64);
        if !outcome.outages.is_empty() {
            latency::percentiles(report, "away", &outcome.outages);
        }
        let missing = self.workers.away();
        if missing > 0 {
            report.fault(format!("{missing} sessions did not come back"));
        }
        if let Fault::Restart { .. } = course.fault {
            report.value("nodes_restarted", course.restarted as f64);
            report.value("slowest_stop_seconds", course.slowest_stop.as_secs_f64());
            report.value("slowest_start_seconds", course.slowest_start.as_secs_f64());
            if course.restarted < self.target.nodes() {
                report.fault(format!("only {} of {} nodes were restarted", course.restarted, self.target.nodes()));
            }
            return;
        }
        let Some((killed, before)) = &course.began else { return };
        if away.back > 0 {
            report.value("all_back_seconds", away.last_back.saturating_sub(*killed) as f64 / 1e6);
        }
        let (Some(from), Some(after)) = (from, &course.settled) else { return };
        let cpu = |from: &Moment, to: &Moment| to.server.cpu.saturating_sub(from.server.cpu).as_secs_f64();
        let seconds = |from: &Moment, to: &Moment| (to.at - from.at).as_secs_f64();
        // Beyond what the deliveries of that time cost before.
        let usual = cpu(from, before) / seconds(from, before) * seconds(before, after);
        report.value("server_cpu_us_per_return", (cpu(before, after) - usual) * 1e6 / away.back.max(1) as f64);
    }
}
