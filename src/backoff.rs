//! Waiting times between attempts: exponential with full jitter, so that many waiters spread out.

use std::time::Duration;

/// Exponential backoff with full jitter: each wait is uniform in 0..=min(max, first × 2ⁿ).
/// (Brooker, "Exponential Backoff And Jitter".)
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    attempt: u32,
}

impl Backoff {
    /// Waits of at most `first` for the first attempt, doubled each time up to `max`.
    #[must_use]
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, attempt: 0 }
    }

    /// The ceiling of the next wait.
    #[must_use]
    pub fn ceiling(&self) -> Duration {
        self.first.saturating_mul(1u32 << self.attempt.min(20)).min(self.max)
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        let ceiling = self.ceiling();
        self.attempt = self.attempt.saturating_add(1);
        jitter(ceiling)
    }

    /// Starts again after a success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

/// A uniformly random time up to `ceiling`.
#[must_use]
pub fn jitter(ceiling: Duration) -> Duration {
    ceiling.mul_f64(rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum_and_never_pass_it() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let ceilings: Vec<u128> = (0..7)
            .map(|_| {
                let ceiling = backoff.ceiling();
                assert!(backoff.next_wait() <= ceiling);
                ceiling.as_millis()
            })
            .collect();
        assert_eq!(ceilings, [100, 200, 400, 800, 1600, 2000, 2000]);
        backoff.reset();
        assert_eq!(backoff.ceiling().as_millis(), 100);
    }
}
