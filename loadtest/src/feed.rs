//! The thread that writes events when they are due, and never waits for anything but the clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;

use crate::kafka::Producer;
use crate::latency::histogram;
use crate::process::ThreadTime;
use crate::schedule::Schedule;
use crate::workload::{Generator, micros, micros_of};

/// It gives up when it is this late: it can never catch up honestly.
const HOPELESS: Duration = Duration::from_secs(5);

/// What is due when.
#[derive(Debug, Clone)]
pub struct Plan {
    schedule: Schedule,
    /// More events for the first user, from that time on.
    hot: Option<(Duration, Schedule)>,
}

/// How far it is, for others to look at.
#[derive(Debug, Default)]
pub struct Progress {
    sent: AtomicU64,
    stop: AtomicU64,
}

/// What it did.
pub struct Fed {
    /// Events of each user.
    pub sent: Vec<u32>,
    /// Microseconds that each event was handed over after it was due.
    pub lateness: Histogram<u64>,
    pub time: ThreadTime,
    /// Why it ended before its time.
    pub error: Option<String>,
}

impl Plan {
    pub fn of(schedule: Schedule) -> Self {
        Self { schedule, hot: None }
    }

    /// With events for one user more.
    pub fn with_hot_user(self, from: Duration, schedule: Schedule) -> Self {
        Self { hot: Some((from, schedule)), ..self }
    }

    /// Due times in order; true: the first user's.
    fn due(&self) -> impl Iterator<Item = (Duration, bool)> {
        let mut all = self.schedule.due().peekable();
        let mut hot = self.hot.iter().flat_map(|(from, schedule)| schedule.due().map(|due| *from + due)).peekable();
        std::iter::from_fn(move || {
            let is_hot = match (all.peek(), hot.peek()) {
                (Some(all), Some(hot)) => hot < all,
                (None, Some(_)) => true,
                (_, None) => false,
            };
            let due = if is_hot { hot.next() } else { all.next() };
            due.map(|due| (due, is_hot))
        })
    }
}

impl Progress {
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Has it end before the next event.
    pub fn stop(&self) {
        self.stop.store(1, Ordering::Relaxed);
    }
}

/// Writes all of it.
///
/// # Errors
///
/// When Kafka refuses events: then nobody knows what was sent. A schedule that cannot be kept is no such error.
pub fn run(
    mut producer: Producer,
    mut generator: Generator,
    plan: &Plan,
    start: Instant,
    progress: &Progress,
) -> Result<Fed> {
    let mut lateness = histogram()?;
    let mut error = None;
    let before = ThreadTime::now();
    for (number, (due, is_hot)) in plan.due().enumerate() {
        let due = start + due;
        // A late event is sent at once, with its own time.
        let wait = due.saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            thread::sleep(wait);
        }
        let late = due.elapsed();
        if late > HOPELESS {
            error = Some(format!(
                "the schedule slipped by {late:.1?} after {number} events: this machine cannot make that rate now"
            ));
            break;
        }
        if progress.stop.load(Ordering::Relaxed) > 0 {
            // What is under way is given up: whoever stops this has lost the server, and maybe the broker with it.
            let error = Some(format!("ended after {number} events"));
            let time = ThreadTime::now().since(before);
            return Ok(Fed { sent: generator.into_sent(), lateness, time, error });
        }
        lateness.saturating_record(late.as_micros() as u64);
        let (due, sent) = (micros_of(due), micros());
        let (key, value) = if is_hot { generator.next_for(0, due, sent) } else { generator.next(due, sent) };
        producer.send(key, value)?;
        progress.sent.store(number as u64 + 1, Ordering::Relaxed);
    }
    let time = ThreadTime::now().since(before);
    producer.finish()?;
    Ok(Fed { sent: generator.into_sent(), lateness, time, error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hot_user_s_events_come_between_the_others_from_its_time_on() {
        let second = Duration::from_secs(1);
        let plan =
            Plan::of(Schedule::constant(10.0, 2 * second)).with_hot_user(second, Schedule::constant(100.0, second));
        let due: Vec<_> = plan.due().collect();
        assert_eq!(due.len(), 120);
        assert!(due.is_sorted_by_key(|(due, _)| *due));
        assert_eq!(due.iter().filter(|(_, is_hot)| *is_hot).count(), 100);
        assert!(due.iter().all(|(due, is_hot)| !is_hot || *due >= second));
    }
}
