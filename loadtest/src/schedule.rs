//! When each event is due, whatever the system under test does (the open model).
//!
//! Latency counts from the moment an event was due, so a stall of the generator or of the server
//! is not hidden by the events that were held back meanwhile (no coordinated omission).

use std::time::Duration;

/// A constant rate of arrivals.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    per_second: u32,
    total: u64,
}

impl Schedule {
    /// `per_second` is at least 1.
    pub fn constant(per_second: u32, length: Duration) -> Self {
        let total = length.as_micros() * u128::from(per_second) / 1_000_000;
        Self { per_second, total: total as u64 }
    }

    /// How many events it holds.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// When event `number` is due, from the start. Computed from the number, not summed up, so
    /// that rounding does not drift.
    pub fn due(&self, number: u64) -> Duration {
        let rate = u64::from(self.per_second);
        Duration::from_secs(number / rate) + Duration::from_nanos(number % rate * 1_000_000_000 / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_rate_times_length() {
        let schedule = Schedule::constant(5_000, Duration::from_millis(2_500));
        assert_eq!(schedule.total(), 12_500);
    }

    #[test]
    fn rounding_does_not_drift_over_a_day() {
        let schedule = Schedule::constant(7, Duration::from_secs(86_400));
        assert_eq!(schedule.due(7 * 86_400), Duration::from_secs(86_400));
        assert_eq!(schedule.due(1), Duration::from_nanos(142_857_142));
    }

    #[test]
    fn events_are_due_in_order_and_inside_the_length() {
        let length = Duration::from_secs(3);
        let schedule = Schedule::constant(333, length);
        let due: Vec<_> = (0..schedule.total()).map(|i| schedule.due(i)).collect();
        assert!(due.is_sorted());
        assert_eq!(due[0], Duration::ZERO);
        assert!(*due.last().expect("not empty") < length);
    }
}
