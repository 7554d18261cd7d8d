//! When each arrival is due, whatever the system under test does (the open model).
//!
//! Latency counts from the moment an event was due, so a stall of the generator or of the server
//! is not hidden by the events that were held back meanwhile (no coordinated omission).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Arrivals over time: stretches whose rates change evenly from one value to another.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    stretches: Vec<Stretch>,
    /// Arrivals are a Poisson process of that rate, the same in each run, instead of evenly spaced.
    random: bool,
}

/// Rates are per second, the length is in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Stretch {
    from: f64,
    to: f64,
    seconds: f64,
}

/// The due times of a schedule, one after the other, from its start.
#[derive(Debug, Clone)]
pub struct Due<'a> {
    schedule: &'a Schedule,
    /// Arrivals so far; of a Poisson process, the sum of its intervals at rate 1.
    position: f64,
    number: u64,
    /// The stretch that the next is in, with the time and the count before it.
    stretch: usize,
    before: (f64, f64),
    random: u64,
}

impl Stretch {
    fn count(&self) -> f64 {
        (self.from + self.to) / 2.0 * self.seconds
    }

    /// When `count` arrivals of this stretch are complete: `from * t + (to - from) * t² / (2 * seconds) = count`.
    fn time(&self, count: f64) -> f64 {
        let growth = (self.to - self.from) / self.seconds;
        let root = (self.from * self.from + 2.0 * growth * count).max(0.0).sqrt();
        if self.from + root > 0.0 { 2.0 * count / (self.from + root) } else { 0.0 }
    }
}

impl Schedule {
    /// The same rate all the time.
    pub fn constant(per_second: f64, length: Duration) -> Self {
        Self::default().then(per_second, per_second, length)
    }

    /// Goes on with a rate that changes evenly.
    pub fn then(mut self, from: f64, to: f64, length: Duration) -> Self {
        self.stretches.push(Stretch { from, to, seconds: length.as_secs_f64() });
        self
    }

    /// The same rates, with arrivals at random.
    pub fn at_random(self) -> Self {
        Self { random: true, ..self }
    }

    pub fn length(&self) -> Duration {
        Duration::from_secs_f64(self.stretches.iter().map(|stretch| stretch.seconds).sum())
    }

    /// The highest rate in it, a second.
    pub fn peak(&self) -> f64 {
        self.stretches.iter().map(|stretch| stretch.from.max(stretch.to)).fold(0.0, f64::max)
    }

    /// How many arrivals are due before its end: what is expected, of a random one.
    pub fn expected(&self) -> u64 {
        self.stretches.iter().map(Stretch::count).sum::<f64>() as u64
    }

    pub fn due(&self) -> Due<'_> {
        let mut due = Due {
            schedule: self,
            position: 0.0,
            number: 0,
            stretch: 0,
            before: (0.0, 0.0),
            random: 0x9E37_79B9_7F4A_7C15,
        };
        if self.random {
            due.position = due.interval();
        }
        due
    }
}

impl Due<'_> {
    /// From the exponential distribution, mean 1.
    fn interval(&mut self) -> f64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let bits = self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11;
        -(1.0 - bits as f64 / (1u64 << 53) as f64).ln()
    }
}

impl Iterator for Due<'_> {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let stretch = loop {
            let stretch = self.schedule.stretches.get(self.stretch)?;
            if self.position < self.before.1 + stretch.count() - 1e-9 {
                break stretch;
            }
            self.before = (self.before.0 + stretch.seconds, self.before.1 + stretch.count());
            self.stretch += 1;
        };
        let at = self.before.0 + stretch.time(self.position - self.before.1);
        self.number += 1;
        // Not summed up when evenly spaced, so that rounding does not drift.
        self.position = if self.schedule.random { self.position + self.interval() } else { self.number as f64 };
        Some(Duration::from_secs_f64(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn between(schedule: &Schedule, from: f64, to: f64) -> usize {
        schedule.due().filter(|due| (from..to).contains(&due.as_secs_f64())).count()
    }

    #[test]
    fn the_total_is_rate_times_length() {
        let schedule = Schedule::constant(5_000.0, Duration::from_millis(2_500));
        assert_eq!(schedule.expected(), 12_500);
        assert_eq!(schedule.due().count(), 12_500);
    }

    #[test]
    fn rounding_does_not_drift_over_a_day() {
        let schedule = Schedule::constant(7.0, Duration::from_secs(86_401));
        let due = schedule.due().nth(7 * 86_400).unwrap();
        assert!(due.abs_diff(Duration::from_secs(86_400)) < Duration::from_nanos(100), "{due:?}");
    }

    #[test]
    fn arrivals_are_due_in_order_and_inside_the_length() {
        let length = Duration::from_secs(3);
        let ramp = Schedule::constant(10.0, SECOND).then(10.0, 500.0, SECOND).then(0.0, 0.0, SECOND);
        for schedule in [Schedule::constant(333.0, length), ramp.clone(), ramp.at_random()] {
            let due: Vec<_> = schedule.due().collect();
            assert!(due.is_sorted());
            assert!(*due.last().expect("not empty") < length);
            assert_eq!(schedule.length(), length);
        }
    }

    #[test]
    fn a_ramp_is_slow_at_first_and_a_spike_is_where_it_belongs() {
        let ramp = Schedule::default().then(0.0, 1_000.0, 10 * SECOND);
        assert_eq!(ramp.due().count(), 5_000);
        assert!((1_249..=1_251).contains(&between(&ramp, 0.0, 5.0)), "{}", between(&ramp, 0.0, 5.0));
        let spike = Schedule::constant(10.0, SECOND).then(500.0, 500.0, SECOND).then(10.0, 10.0, SECOND);
        let counts = [between(&spike, 0.0, 1.0), between(&spike, 1.0, 2.0), between(&spike, 2.0, 3.0)];
        assert_eq!(counts, [10, 500, 10]);
        assert_eq!((spike.peak(), spike.expected()), (500.0, 520));
    }

    /// The counts of a Poisson process's seconds have their mean as variance; evenly spaced ones have none.
    #[test]
    fn random_arrivals_are_a_poisson_process() {
        let schedule = Schedule::constant(100.0, 1_000 * SECOND).at_random();
        let mut counts = vec![0.0_f64; 1_000];
        schedule.due().for_each(|due| counts[due.as_secs() as usize] += 1.0);
        let mean = counts.iter().sum::<f64>() / 1_000.0;
        let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / 999.0;
        assert!((98.0..102.0).contains(&mean), "{mean}");
        assert!((85.0..115.0).contains(&variance), "{variance}");
    }
}
