//! How fast a user's notifications may come: a token bucket for each priority, over all producers. Pure: time is
//! passed in.
//!
//! Each bucket is kept as the time at which it would be full again (the "theoretical arrival time" of the generic cell
//! rate algorithm, ITU-T I.371), so that nothing has to run to fill it.

use std::time::Duration;

use tokio::time::Instant;

use crate::event::Priority;

/// The limit of one priority.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// Notifications per second in the long run; more than 0.
    pub per_second: f64,
    /// How many may go at once after a quiet time; at least 1.
    pub burst: u32,
    /// Only counts what it would hold back.
    pub dry_run: bool,
}

/// The limits of all users: one for each priority that is limited.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    of: [Option<Limit>; Priority::COUNT],
}

impl Limits {
    /// Limits a priority. `critical` is never limited: a limit for it has no effect.
    #[must_use]
    pub fn with(mut self, priority: Priority, limit: Limit) -> Self {
        self.of[priority as usize] = Some(limit);
        self
    }

    /// The limit that holds for a priority, dry runs included.
    #[must_use]
    pub fn of(&self, priority: Priority) -> Option<&Limit> {
        self.of[priority as usize].as_ref().filter(|_| priority != Priority::Critical)
    }

    fn full_again(&self, priority: Priority) -> Option<(Duration, Duration)> {
        let limit = self.of(priority)?;
        let each = Duration::try_from_secs_f64(1.0 / limit.per_second).unwrap_or(Duration::MAX / 2);
        Some((each, each.saturating_mul(limit.burst.saturating_sub(1))))
    }
}

/// One user's buckets. It says what a limit comes to; whether that is only a dry run is the caller's business.
#[derive(Clone, Debug, Default)]
pub struct Limiter {
    /// When each bucket is full again; `None`: it is.
    full_at: [Option<Instant>; Priority::COUNT],
}

impl Limiter {
    /// When the next token of a priority is there; `None`: now.
    #[must_use]
    pub fn next(&self, limits: &Limits, priority: Priority, now: Instant) -> Option<Instant> {
        let (_, burst) = limits.full_again(priority)?;
        let at = self.full_at[priority as usize]?.checked_sub(burst)?;
        (at > now).then_some(at)
    }

    /// Takes a token, whether there is one or not.
    pub fn take(&mut self, limits: &Limits, priority: Priority, now: Instant) {
        let Some((each, _)) = limits.full_again(priority) else { return };
        let full_at = &mut self.full_at[priority as usize];
        *full_at = full_at.unwrap_or(now).max(now).checked_add(each).or(*full_at);
    }

    /// Takes a token if there is one.
    pub fn try_take(&mut self, limits: &Limits, priority: Priority, now: Instant) -> bool {
        let there = self.next(limits, priority, now).is_none();
        if there {
            self.take(limits, priority, now);
        }
        there
    }

    /// Whether every bucket is full: nothing has to be remembered.
    #[must_use]
    pub fn is_rested(&self, now: Instant) -> bool {
        self.full_at.iter().flatten().all(|full_at| *full_at <= now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(per_second: f64, burst: u32) -> Limits {
        Limits::default().with(Priority::Normal, Limit { per_second, burst, dry_run: false })
    }

    #[test]
    fn a_burst_goes_at_once_and_then_as_many_as_come_back() {
        let (limits, start) = (limits(10.0, 5), Instant::now());
        let mut limiter = Limiter::default();
        let taken = (0..8).filter(|_| limiter.try_take(&limits, Priority::Normal, start)).count();
        assert_eq!(taken, 5);
        assert_eq!(limiter.next(&limits, Priority::Normal, start), Some(start + Duration::from_millis(100)));
        assert!(limiter.try_take(&limits, Priority::Normal, start + Duration::from_millis(100)));
        assert!(!limiter.try_take(&limits, Priority::Normal, start + Duration::from_millis(100)));
        assert!(
            !limiter.is_rested(start + Duration::from_millis(599)) && limiter.is_rested(start + Duration::from_secs(1))
        );
    }

    #[test]
    fn critical_and_what_has_no_limit_pass_and_priorities_do_not_share() {
        let limits = limits(1.0, 1).with(Priority::Critical, Limit { per_second: 1.0, burst: 1, dry_run: false });
        let mut limiter = Limiter::default();
        let now = Instant::now();
        for priority in [Priority::Critical, Priority::High, Priority::Low] {
            assert!((0..1000).all(|_| limiter.try_take(&limits, priority, now)), "{priority:?}");
        }
        assert!(limiter.try_take(&limits, Priority::Normal, now) && !limiter.try_take(&limits, Priority::Normal, now));
    }

    #[test]
    fn extreme_rates_neither_panic_nor_block_the_first() {
        for per_second in [f64::MIN_POSITIVE, 1e-9, 1e9, f64::MAX] {
            let mut limiter = Limiter::default();
            let (limits, now) = (limits(per_second, u32::MAX), Instant::now());
            assert!(limiter.try_take(&limits, Priority::Normal, now), "{per_second}");
            let _ = (limiter.next(&limits, Priority::Normal, now), limiter.is_rested(now));
        }
    }

    proptest! {
        /// In no stretch of time more go than the burst and what came back meanwhile.
        #[test]
        fn never_more_than_promised(waits in prop::collection::vec(0u64..400, 1..200), burst in 1u32..8) {
            let (limits, start) = (limits(10.0, burst), Instant::now());
            let mut limiter = Limiter::default();
            let mut now = start;
            let mut taken = Vec::new();
            for wait in waits {
                now += Duration::from_millis(wait);
                if limiter.try_take(&limits, Priority::Normal, now) {
                    taken.push(now);
                }
            }
            for (i, from) in taken.iter().enumerate() {
                for (j, to) in taken.iter().enumerate().skip(i) {
                    let promised = f64::from(burst) + (*to - *from).as_secs_f64() * 10.0 + 1e-6;
                    prop_assert!((j - i + 1) as f64 <= promised);
                }
            }
        }
    }
}
