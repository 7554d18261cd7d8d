//! What the clients do with the events of one run: check them and note their latency.

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

use crate::client::Sink;
use crate::order::Checker;
use crate::report::Report;
use crate::workload::{sequence_of, stamp_of};

/// Highest latency told apart from others, in microseconds.
const LATENCY_MAX: u64 = 600_000_000;

/// The sink of a run.
pub struct Receiver {
    run: u32,
    acknowledge: bool,
    checker: Checker,
    /// Events due from here on count for the latencies (clock of `workload::micros`).
    pub measured_from: u64,
    from_due: Histogram<u64>,
    from_record: Histogram<u64>,
    /// Frames that were no event of this run: control frames, and events of earlier runs.
    others: u64,
    /// Events that came to another user's connection.
    misdirected: u64,
}

impl Receiver {
    pub fn new(run: u32, users: usize, acknowledge: bool) -> Result<Self> {
        Ok(Self {
            run,
            acknowledge,
            checker: Checker::new(users),
            measured_from: 0,
            from_due: histogram()?,
            from_record: histogram()?,
            others: 0,
            misdirected: 0,
        })
    }

    /// Different events that have arrived.
    pub fn received(&self) -> u64 {
        self.checker.received()
    }

    /// Adds what was received and what is wrong about it.
    pub fn correctness(&self, report: &mut Report, sent: &[u32]) {
        let verdict = self.checker.verdict(sent);
        let figures = [
            ("deliveries", verdict.received),
            ("lost", verdict.lost),
            ("duplicates", verdict.duplicates),
            ("reordered", verdict.reordered),
            ("misdirected", self.misdirected),
            ("other_frames", self.others),
        ];
        for (name, count) in figures {
            report.value(name, count as f64);
        }
        for (name, count) in &figures[1..5] {
            if *count > 0 {
                report.fault(format!("{count} {name}"));
            }
        }
    }

    /// Adds the percentiles of both latencies, in milliseconds.
    pub fn latencies(&self, report: &mut Report) {
        for (name, histogram) in [("latency_from_due", &self.from_due), ("latency_from_record", &self.from_record)] {
            for (label, quantile) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)] {
                report.value(format!("{name}_{label}_ms"), histogram.value_at_quantile(quantile) as f64 / 1e3);
            }
        }
    }
}

impl Sink for Receiver {
    fn text(&mut self, conn: usize, text: &[u8], now: u64) -> Option<u64> {
        match stamp_of(text) {
            Some(stamp) if stamp.run == self.run => {
                if stamp.user as usize != conn {
                    self.misdirected += 1;
                } else if self.checker.arrived(conn, stamp.number) && stamp.due >= self.measured_from {
                    self.from_due.saturating_record(now.saturating_sub(stamp.due));
                    self.from_record.saturating_record(now.saturating_sub(stamp.sent));
                }
            }
            _ => self.others += 1,
        }
        if self.acknowledge { sequence_of(text) } else { None }
    }
}

pub fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, LATENCY_MAX, 3).context("histogram")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{self, Durability};
    use crate::workload::{Generator, Users};

    #[test]
    fn latencies_count_from_the_due_time_and_only_in_the_measured_part() {
        let mut generator = Generator::new(5, Users::at_random(1), 200, Durability::Durable);
        let mut receiver = Receiver::new(5, 1, true).unwrap();
        receiver.measured_from = 1_000_000;
        for (due, sent, now) in [(0, 0, 900_000), (1_000_000, 1_010_000, 1_030_000)] {
            let (_, value) = generator.next(due, sent);
            let data = event::decode(value).expect("an event").data;
            let frame = format!(r#"{{"payload":{data},"seq":3}}"#);
            assert_eq!(receiver.text(0, frame.as_bytes(), now), Some(3));
        }
        let mut report = Report::new("test");
        receiver.correctness(&mut report, &generator.into_sent());
        receiver.latencies(&mut report);
        assert_eq!(report.get("deliveries"), Some(2.0));
        assert!(report.faults().is_empty(), "{:?}", report.faults());
        let p50 = |name| report.get(name).unwrap();
        assert!((p50("latency_from_due_p50_ms") - 30.0).abs() < 0.1);
        assert!((p50("latency_from_record_p50_ms") - 20.0).abs() < 0.1);
    }

    #[test]
    fn another_run_s_event_is_not_counted_and_another_user_s_is_a_fault() {
        let mut generator = Generator::new(5, Users::at_random(1), 200, Durability::Transient);
        let (_, value) = generator.next(0, 0);
        let data = event::decode(value).expect("an event").data;
        let frame = format!(r#"{{"payload":{data}}}"#);
        let mut other_run = Receiver::new(6, 1, false).unwrap();
        other_run.text(0, frame.as_bytes(), 1);
        assert_eq!(other_run.received(), 0);
        let mut other_user = Receiver::new(5, 2, false).unwrap();
        other_user.text(1, frame.as_bytes(), 1);
        let mut report = Report::new("test");
        other_user.correctness(&mut report, &[0, 0]);
        assert_eq!(report.faults(), ["1 misdirected"]);
    }
}
