//! What the clients do with the events of one run: check them and note their latency.

use anyhow::Result;

use crate::client::{Message, Sink};
use crate::latency::Latencies;
use crate::order::{Checker, Verdict};
use crate::report::Report;

/// The sink of a run.
pub struct Receiver {
    expected: Expected,
    conns: Vec<Conn>,
    checker: Checker,
    pub latencies: Latencies,
    odd: Odd,
    /// When the last event came, on the clock of `workload::micros`.
    last_arrival: u64,
}

/// What a run expects, and which of it is measured. Times are on the clock of `workload::micros`.
#[derive(Debug, Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
pub struct Expected {
    /// The number in the run's events.
    pub run: u32,
    /// Clients acknowledge the highest sequence of each read.
    pub acknowledge: bool,
    /// Events due from here on count for the latencies.
    pub measured_from: u64,
    /// Events due before are the calm ones, which the others are compared with.
    pub disturbed_from: Option<u64>,
    /// A user whose latencies are counted apart.
    pub hot: Option<u32>,
    /// Connections may end: what came before the disturbance is calm, whenever it was due, and those that stay have
    /// latencies of their own.
    pub faults: bool,
}

/// One connection.
#[derive(Debug, Clone, Copy)]
struct Conn {
    user: u32,
    /// Its events' latencies count from here at the earliest: it was to connect then.
    since: u64,
    /// The highest sequence that it has seen.
    sequence: u64,
    /// It was told to read nothing more: what it has not got is not lost.
    stalled: bool,
    /// Its connection has ended once.
    ended: bool,
}

/// What came besides the events of the run, each in order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Odd {
    /// Frames that were no event of this run: control frames, and events of earlier runs.
    pub others: u64,
    /// Events that came to another user's connection.
    pub misdirected: u64,
    /// Events whose sequence was not above the one before on their connection.
    pub sequence_fell: u64,
    /// Stretches that the server said are lost.
    pub gaps: u64,
}

impl Odd {
    /// Of other connections.
    pub fn add(&mut self, other: Self) {
        self.others += other.others;
        self.misdirected += other.misdirected;
        self.sequence_fell += other.sequence_fell;
        self.gaps += other.gaps;
    }
}

impl Receiver {
    /// For connections that are each of the user with the same index.
    pub fn new(run: u32, users: usize, acknowledge: bool) -> Result<Self> {
        let mut receiver = Self::expecting(Expected { run, acknowledge, ..Expected::default() })?;
        (0..users).for_each(|user| receiver.add(user as u32, 0));
        Ok(receiver)
    }

    /// For no connection yet.
    pub fn expecting(expected: Expected) -> Result<Self> {
        let (latencies, odd) = (Latencies::new()?, Odd::default());
        Ok(Self { expected, conns: Vec::new(), checker: Checker::new(0), latencies, odd, last_arrival: 0 })
    }

    /// The next connection is this user's, and was to begin at `since`.
    pub fn add(&mut self, user: u32, since: u64) {
        self.conns.push(Conn { user, since, sequence: 0, stalled: false, ended: false });
        self.checker.add();
    }

    pub fn measure_from(&mut self, micros: u64) {
        self.expected.measured_from = micros;
    }

    pub fn stall(&mut self, conn: usize) {
        self.conns[conn].stalled = true;
    }

    /// Its connection has ended; it may come back.
    pub fn ended(&mut self, conn: usize) {
        self.conns[conn].ended = true;
    }

    /// The highest sequence that it has seen, also of earlier connections.
    pub fn sequence(&self, conn: usize) -> u64 {
        self.conns[conn].sequence
    }

    /// Different events that have arrived.
    pub fn received(&self) -> u64 {
        self.checker.received()
    }

    pub fn last_arrival(&self) -> u64 {
        self.last_arrival
    }

    pub fn odd(&self) -> Odd {
        self.odd
    }

    /// Compares with how many events each connection's user was sent.
    pub fn verdict(&self, sent: &[u32]) -> Verdict {
        self.checker.verdict(sent, |conn| !self.conns[conn].stalled)
    }

    /// Adds what was received and what is wrong about it.
    pub fn correctness(&self, report: &mut Report, sent: &[u32]) {
        findings(report, self.verdict(sent), self.odd);
    }
}

/// Adds what was received and what is wrong about it.
pub fn findings(report: &mut Report, verdict: Verdict, odd: Odd) {
    let figures = [
        ("deliveries", verdict.received),
        ("lost", verdict.lost),
        ("duplicates", verdict.duplicates),
        ("reordered", verdict.reordered),
        ("misdirected", odd.misdirected),
        ("sequence_fell", odd.sequence_fell),
        ("gaps", odd.gaps),
        ("other_frames", odd.others),
    ];
    for (name, count) in figures {
        report.value(name, count as f64);
    }
    for (name, count) in &figures[1..7] {
        if *count > 0 {
            report.fault(format!("{count} {name}"));
        }
    }
}

impl Sink for Receiver {
    fn message(&mut self, conn: usize, message: &Message<'_>, now: u64) -> Option<u64> {
        let Conn { user, since, sequence: highest, ended, .. } = &mut self.conns[conn];
        let sequence = message.sequence();
        match message.stamp() {
            Some(stamp) if stamp.run == self.expected.run => {
                if stamp.user != *user {
                    self.odd.misdirected += 1;
                } else if self.checker.arrived(conn, stamp.number) {
                    self.last_arrival = now;
                    self.odd.sequence_fell += u64::from(sequence.is_some_and(|sequence| sequence <= *highest));
                    *highest = sequence.unwrap_or(0).max(*highest);
                    let due = stamp.due.max(*since);
                    if due >= self.expected.measured_from {
                        let Expected { disturbed_from, faults, hot, .. } = self.expected;
                        let calm = disturbed_from.is_some_and(|from| if faults { now < from } else { due < from });
                        let latency = now.saturating_sub(due);
                        self.latencies.record(latency, now.saturating_sub(stamp.sent), calm, hot == Some(stamp.user));
                        if faults && !calm && !*ended {
                            self.latencies.record_survivor(latency);
                        }
                    }
                }
            }
            _ => {
                self.odd.others += 1;
                self.odd.gaps += u64::from(message.control().as_deref() == Some("$gap"));
            }
        }
        sequence.filter(|_| self.expected.acknowledge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{self, Durability};
    use crate::workload::{Generator, Pick, Users};

    #[test]
    fn latencies_count_from_the_due_time_and_only_in_the_measured_part() {
        let mut generator = Generator::new(5, Users::at_random(1), 200, Durability::Durable);
        let mut receiver = Receiver::new(5, 1, true).unwrap();
        receiver.measure_from(1_000_000);
        for (due, sent, now, seq) in [(0, 0, 900_000, 3), (1_000_000, 1_010_000, 1_030_000, 4)] {
            let (_, value) = generator.next(due, sent);
            let data = event::decode(value).expect("an event").data;
            let frame = format!(r#"{{"payload":{data},"seq":{seq}}}"#);
            assert_eq!(receiver.message(0, &Message::Json(frame.as_bytes()), now), Some(seq));
        }
        let mut report = Report::new("test");
        receiver.correctness(&mut report, &generator.into_sent());
        receiver.latencies.figures(&mut report);
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
        other_run.message(0, &Message::Json(frame.as_bytes()), 1);
        assert_eq!(other_run.received(), 0);
        let mut other_user = Receiver::new(5, 2, false).unwrap();
        other_user.message(1, &Message::Json(frame.as_bytes()), 1);
        let mut report = Report::new("test");
        other_user.correctness(&mut report, &[0, 0]);
        assert_eq!(report.faults(), ["1 misdirected"]);
    }

    fn frame(generator: &mut Generator, due: u64, seq: u64) -> String {
        let (_, value) = generator.next(due, due);
        format!(r#"{{"payload":{},"seq":{seq}}}"#, event::decode(value).expect("an event").data)
    }

    #[test]
    fn a_sequence_that_falls_and_a_gap_are_faults() {
        let mut generator = Generator::new(5, Users::at_random(1), 200, Durability::Durable);
        let mut receiver = Receiver::new(5, 1, true).unwrap();
        for seq in [2, 3, 3] {
            let frame = frame(&mut generator, 0, seq);
            receiver.message(0, &Message::Json(frame.as_bytes()), 1);
        }
        receiver.message(0, &Message::Json(br#"{"type":"$gap","payload":{"from":1,"to":2}}"#), 1);
        let mut report = Report::new("test");
        receiver.correctness(&mut report, &[3]);
        assert_eq!(report.faults(), ["1 sequence_fell", "1 gaps"]);
    }

    #[test]
    fn a_stalled_reader_s_events_are_not_lost_and_a_late_session_s_count_from_its_connect() {
        let mut generator =
            Generator::new(5, Users { pick: Pick::InTurn, ..Users::at_random(2) }, 200, Durability::Durable);
        let mut receiver =
            Receiver::expecting(Expected { run: 5, disturbed_from: Some(2_000_000), ..Expected::default() }).unwrap();
        receiver.add(0, 1_000_000);
        receiver.add(1, 0);
        let first = frame(&mut generator, 10, 1);
        receiver.message(0, &Message::Json(first.as_bytes()), 1_050_000);
        receiver.stall(1);
        generator.next(20, 20);
        assert_eq!(receiver.verdict(&[1, 1]).lost, 0);
        assert_eq!(receiver.verdict(&[2, 1]).lost, 1);
        let mut report = Report::new("test");
        receiver.latencies.figures(&mut report);
        assert!((report.get("calm_latency_from_due_p50_ms").unwrap() - 50.0).abs() < 0.1);
    }
}
