//! Looks at the server from time to time, and says on the terminal how far the run is.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::meter::{Meter, Reading};
use crate::process::Process;
use crate::report::{Report, number};
use crate::results::Point;
use crate::workers::Workers;

const INTERVAL: Duration = Duration::from_millis(500);
/// How often a line is written where it cannot be overwritten.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

pub struct Sampler {
    title: String,
    started: Instant,
    /// What the run had taken before, in seconds.
    before: f64,
    last: Option<(Instant, Reading)>,
    points: Vec<Point>,
    is_terminal: bool,
    last_line: Instant,
}

impl Sampler {
    /// `last`: the run's last point so far, of servers before these.
    pub fn after(title: &str, last: Option<&Point>) -> Self {
        let now = Instant::now();
        let is_terminal = std::io::stderr().is_terminal();
        let before = last.map_or(0.0, |last| last.seconds);
        let (title, points) = (title.to_owned(), Vec::new());
        Self { title, started: now, before, last: None, points, is_terminal, last_line: now }
    }

    /// Takes a sample when it is time for one.
    ///
    /// # Errors
    ///
    /// When the server cannot be measured any more.
    pub fn look(&mut self, phase: &str, sent: u64, workers: &mut Workers, meter: &Meter) -> Result<()> {
        let now = Instant::now();
        if self.last.as_ref().is_some_and(|(last, _)| now - *last < INTERVAL) {
            return Ok(());
        }
        let reading = meter.read()?;
        let share = self.last.as_ref().map(|(last, before)| {
            reading.cpu.saturating_sub(before.cpu).as_secs_f64() / (now - *last).as_secs_f64() * 100.0
        });
        self.last = Some((now, reading.clone()));
        let recent = workers.take_recent()?;
        let quantile = |quantile| (!recent.is_empty()).then(|| recent.value_at_quantile(quantile) as f64 / 1e3);
        let point = Point {
            seconds: self.before + (now - self.started).as_secs_f64(),
            phase: phase.to_owned(),
            sessions: workers.open(),
            sent,
            received: workers.received(),
            p50_ms: quantile(0.5),
            p99_ms: quantile(0.99),
            rss_bytes: reading.rss,
            cpu_percent: share,
            lag: reading.lag,
            unsettled: reading.unsettled,
            own_rss_bytes: workers.rss() + Process::current().rss()?,
        };
        self.show(&point);
        self.points.push(point);
        Ok(())
    }

    fn show(&mut self, point: &Point) {
        if !self.is_terminal && self.last_line.elapsed() < LINE_INTERVAL {
            return;
        }
        self.last_line = Instant::now();
        let mut line = format!("{}, {} {:.0} s: {} sessions", self.title, point.phase, point.seconds, point.sessions);
        if point.sent > 0 {
            line += &format!(", {} sent, {} received", point.sent, point.received);
        }
        if let (Some(p50), Some(p99)) = (point.p50_ms, point.p99_ms) {
            line += &format!(", p50 {} ms, p99 {} ms", number(p50), number(p99));
        }
        if let Some(cpu) = point.cpu_percent {
            line += &format!(", CPU {cpu:.0} %");
        }
        line += &format!(", RSS {:.0} MiB", point.rss_bytes as f64 / 1_048_576.0);
        if let Some(lag) = point.lag {
            line += &format!(", lag {lag:.0}");
        }
        if self.is_terminal {
            eprint!("\r\x1b[2K{line}");
            // A terminal that is gone is nobody's loss.
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("{line}");
        }
    }

    /// Says what a phase came to.
    pub fn say(&self, report: &Report) {
        self.end();
        eprint!("{}: {}", self.title, report.table());
    }

    /// Clears the line.
    pub fn end(&self) {
        if self.is_terminal {
            eprint!("\r\x1b[2K");
        }
    }

    pub fn points(&self) -> &[Point] {
        &self.points
    }

    pub fn into_points(self) -> Vec<Point> {
        self.points
    }
}
