//! The thread that writes events when they are due, and never waits for anything but the clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;

use crate::kafka::Producer;
use crate::latency::histogram;
use crate::process::ThreadTime;
use crate::report::Report;
use crate::schedule::Schedule;
use crate::workload::{Generator, micros, micros_of};

/// It gives up when it is this late, or the broker: it can never catch up honestly.
const HOPELESS: Duration = Duration::from_secs(5);
/// Between two events that are further apart than this, confirmations are taken in meanwhile.
const CLOSE: Duration = Duration::from_millis(5);

/// What is due when.
#[derive(Debug, Clone)]
pub struct Plan {
    schedule: Schedule,
    /// More events for these users in turn, from that time on.
    more: Option<(Vec<u32>, Duration, Schedule)>,
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
    /// Microseconds from there until the broker had confirmed it.
    pub confirmation: Histogram<u64>,
    /// Events that were handed over and that the broker has not confirmed: nobody knows whether they were written.
    pub unconfirmed: u64,
    pub time: ThreadTime,
    /// Why it ended before its time.
    pub error: Option<String>,
}

/// How late events may be, at the 99th percentile, to count as that rate.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Handed over.
    pub lateness: Duration,
    /// Confirmed by the broker, from there on.
    pub confirmation: Duration,
}

impl Plan {
    pub fn of(schedule: Schedule) -> Self {
        Self { schedule, more: None }
    }

    /// With more events, for some of the users only.
    pub fn with_more_for(self, users: Vec<u32>, from: Duration, schedule: Schedule) -> Self {
        Self { more: Some((users, from, schedule)), ..self }
    }

    /// Due times in order, and whom those of the additional events are for.
    fn due(&self) -> impl Iterator<Item = (Duration, Option<usize>)> {
        let mut all = self.schedule.due().peekable();
        let more = self.more.iter().flat_map(|(users, from, schedule)| {
            schedule.due().zip(users.iter().cycle()).map(|(due, user)| (*from + due, *user as usize))
        });
        let mut more = more.peekable();
        std::iter::from_fn(move || {
            let is_more = match (all.peek(), more.peek()) {
                (Some(all), Some((more, _))) => more < all,
                (None, Some(_)) => true,
                (_, None) => false,
            };
            if is_more { more.next().map(|(due, user)| (due, Some(user))) } else { all.next().map(|due| (due, None)) }
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

/// Writes all of it. A schedule that cannot be kept, by this thread or by the broker, is no error of this function: it
/// ends the feeding, and what was done until then is the answer.
///
/// # Errors
///
/// When there is no memory for a histogram.
pub fn run(
    mut producer: Producer,
    mut generator: Generator,
    plan: &Plan,
    start: Instant,
    progress: &Progress,
) -> Result<Fed> {
    let mut lateness = histogram()?;
    let mut error = None;
    // Whether what is under way is still waited for.
    let mut is_awaited = true;
    let before = ThreadTime::now();
    for (number, (due, user)) in plan.due().enumerate() {
        let due = start + due;
        // A late event is sent at once, with its own time.
        sleep_until(due, &producer);
        let late = due.elapsed();
        if late > HOPELESS {
            error = Some(format!(
                "the schedule slipped by {late:.1?} after {number} events: this machine cannot make that rate now"
            ));
            break;
        }
        if progress.stop.load(Ordering::Relaxed) > 0 {
            // Whoever stops this has lost the server, and maybe the broker with it.
            error = Some(format!("ended after {number} events"));
            is_awaited = false;
            break;
        }
        let held_up = producer.held_up();
        if held_up > HOPELESS {
            error = Some(format!(
                "Kafka kept records waiting for {held_up:.1?} after {number} events: they were not written at that rate"
            ));
            is_awaited = false;
            break;
        }
        lateness.saturating_record(late.as_micros() as u64);
        let (due, sent) = (micros_of(due), micros());
        let (key, value) = match user {
            Some(user) => generator.next_for(user, due, sent),
            None => generator.next(due, sent),
        };
        if let Err(refused) = producer.send(key, value) {
            error = Some(format!("{refused:#}"));
            break;
        }
        progress.sent.store(number as u64 + 1, Ordering::Relaxed);
    }
    let time = ThreadTime::now().since(before);
    if is_awaited && let Err(missing) = producer.finish() {
        error.get_or_insert(format!("{missing:#}"));
    }
    let (confirmation, unconfirmed) = (producer.confirmation_times(), producer.unconfirmed());
    Ok(Fed { sent: generator.into_sent(), lateness, confirmation, unconfirmed, time, error })
}

fn sleep_until(due: Instant, producer: &Producer) {
    loop {
        let wait = due.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return;
        }
        if wait > CLOSE {
            // Seen late, a confirmation would be taken for a late one.
            producer.wait(wait - CLOSE / 2);
        } else {
            thread::sleep(wait);
        }
    }
}

impl Fed {
    /// Nothing was sent, and why.
    pub fn nothing(error: String) -> Result<Self> {
        let time = ThreadTime::default();
        let [lateness, confirmation] = [histogram()?, histogram()?];
        Ok(Self { sent: Vec::new(), lateness, confirmation, unconfirmed: 0, time, error: Some(error) })
    }

    /// Says how late the generator itself was, and the broker, and refuses a rate that they did not make.
    pub fn honesty(&self, report: &mut Report, limits: Limits, length: Duration) {
        let late = |quantile| self.lateness.value_at_quantile(quantile) as f64 / 1e3;
        let confirmed = |quantile| self.confirmation.value_at_quantile(quantile) as f64 / 1e3;
        report.value("own_lateness_p50_ms", late(0.5));
        report.value("own_lateness_p99_ms", late(0.99));
        report.value("own_lateness_max_ms", late(1.0));
        report.value("own_confirmation_p99_ms", confirmed(0.99));
        report.value("own_confirmation_max_ms", confirmed(1.0));
        report.value("own_producer_cpu_percent", self.time.running.as_secs_f64() / length.as_secs_f64() * 100.0);
        for (found, limit, what) in [
            (late(0.99), limits.lateness, "the schedule slipped"),
            (confirmed(0.99), limits.confirmation, "Kafka took the events too slowly"),
        ] {
            let limit = limit.as_secs_f64() * 1e3;
            if found > limit {
                report.fault(format!(
                    "{what}: {found:.1} ms late at the 99th percentile, at most {limit} ms count as that rate"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests;
