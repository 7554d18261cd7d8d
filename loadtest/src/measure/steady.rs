//! A fixed rate that does not wait for the server: latency and cost at a load below the limit.

use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Load, RateArgs, per};
use crate::client::Fleet;
use crate::feed::{self, Limits, Plan, Progress};
use crate::process::{Process, ThreadTime};
use crate::receiver::Receiver;
use crate::report::Report;
use crate::schedule::Schedule;
use crate::workload::{Generator, micros_of, new_run};

/// Time for both threads to be ready before the first event is due.
const LEAD: Duration = Duration::from_millis(300);
/// How long after the last event its delivery may take before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long the broker may take to confirm an event, at the 99th percentile.
const CONFIRMATION_MAX: Duration = Duration::from_secs(1);
/// A client thread that runs or waits for a core this much of the time measures itself.
const BUSY_MAX: f64 = 0.95;

pub fn run(process: &Process, fleet: &mut Fleet, load: &Load, args: &RateArgs) -> Result<Report> {
    let run = new_run();
    let length = Duration::from_secs(args.warmup + args.seconds);
    let schedule = Schedule::constant(f64::from(args.rate), length);
    let generator = Generator::new(run, load.users, load.bytes, load.durability);
    let producer = load.topic.producer(load.linger)?;
    let mut receiver = Receiver::new(run, load.users.count, load.acknowledge)?;
    let start = Instant::now() + LEAD;
    let measured = start + Duration::from_secs(args.warmup);
    receiver.measure_from(micros_of(measured));
    let total = schedule.expected();
    let (done, result) = mpsc::channel();
    let producing = thread::spawn(move || {
        // The receiver is gone only when the measurement has failed already.
        let _ = done.send(feed::run(producer, generator, &Plan::of(schedule), start, &Progress::default()));
    });
    // From here on the thread ends by itself: it sends no longer than its schedule and a little.
    fleet.hold(measured.saturating_duration_since(Instant::now()), &mut receiver)?;
    let (cpu, own, before) = (process.cpu()?, ThreadTime::now(), receiver.received());
    let window = Instant::now();
    let produced = loop {
        fleet.turn(Duration::from_millis(50), &mut receiver)?;
        match result.try_recv() {
            Ok(fed) => break fed?,
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => bail!("the producing thread panicked"),
        }
    };
    let cpu = process.cpu()? - cpu;
    let (window, own) = (window.elapsed(), ThreadTime::now().since(own));
    let deliveries = receiver.received() - before;
    producing.join().ok().context("the producing thread panicked")?;
    if let Some(error) = produced.error {
        bail!(error);
    }
    let end = Instant::now() + PATIENCE;
    while receiver.received() < total && Instant::now() < end {
        fleet.turn(Duration::from_millis(50), &mut receiver)?;
    }
    fleet.hold(Duration::from_millis(500), &mut receiver)?;

    let mut report = Report::new("steady");
    report.value("events", total as f64);
    report.value("rate_per_second", f64::from(args.rate));
    report.value("server_cpu_us_per_delivery", per(cpu, deliveries));
    report.value("server_cpu_percent_of_a_core", cpu.as_secs_f64() / window.as_secs_f64() * 100.0);
    receiver.latencies.figures(&mut report);
    receiver.correctness(&mut report, &produced.sent);
    let limits = Limits { lateness: Duration::from_millis(args.lateness_max_ms), confirmation: CONFIRMATION_MAX };
    produced.honesty(&mut report, limits, length);
    let share = |time: Duration, of: Duration| time.as_secs_f64() / of.as_secs_f64();
    report.value("own_clients_cpu_percent", share(own.running, window) * 100.0);
    report.value("own_clients_wait_percent", share(own.waiting, window) * 100.0);
    if share(own.running + own.waiting, window) > BUSY_MAX {
        report.fault("the clients' thread was never idle: these latencies are its own");
    }
    super::note_failures(&mut report, fleet);
    Ok(report)
}
