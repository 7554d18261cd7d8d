//! A backlog: written while the server stands still with its sessions open, then drained.
//!
//! SIGSTOP keeps the sockets open and the consumer from reading ahead, so that every server begins
//! with the whole backlog before it, and the producer's CPU is over when the clock starts.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Load, per};
use crate::client::Fleet;
use crate::process::{Process, ThreadTime};
use crate::receiver::Receiver;
use crate::report::Report;
use crate::workload::{Generator, micros, new_run};

/// The backlog must arrive within this time.
const LIMIT: Duration = Duration::from_secs(180);
/// Without any arrival for this long, the rest is taken for lost.
const SILENCE: Duration = Duration::from_secs(15);
/// Listened for duplicates after the last event.
const AFTERMATH: Duration = Duration::from_secs(1);

pub fn run(process: &Process, fleet: &mut Fleet, load: &Load, events: u64) -> Result<Report> {
    let run = new_run();
    let mut receiver = Receiver::new(run, load.users.count, load.acknowledge)?;
    let mut generator = Generator::new(run, load.users, load.bytes, load.durability);
    let mut producer = load.topic.producer(load.linger)?;
    // Fetches that are under way end before the server is stopped.
    fleet.hold(Duration::from_millis(500), &mut receiver)?;
    let paused = process.pause()?;
    for _ in 0..events {
        let now = micros();
        let (key, value) = generator.next(now, now);
        producer.send(key, value)?;
    }
    producer.finish()?;
    process.reset_peak()?;
    let rss = process.rss()?;
    let (cpu, own) = (process.cpu()?, ThreadTime::now());
    let started = Instant::now();
    drop(paused);
    let mut last = (0, started);
    while receiver.received() < events {
        fleet.sweep(&mut receiver)?;
        let now = Instant::now();
        if receiver.received() > last.0 {
            last = (receiver.received(), now);
        } else if now - last.1 > SILENCE || now - started > LIMIT {
            break;
        }
    }
    let cpu = process.cpu()? - cpu;
    let (wall, own) = (started.elapsed(), ThreadTime::now().since(own));
    let peak = process.peak_rss()?;
    fleet.hold(AFTERMATH, &mut receiver)?;
    let mut report = Report::new("backlog");
    report.value("events", events as f64);
    report.value("server_cpu_us_per_delivery", per(cpu, receiver.received()));
    report.value("server_cpu_seconds", cpu.as_secs_f64());
    report.value("wall_seconds", wall.as_secs_f64());
    report.value("deliveries_per_second", receiver.received() as f64 / wall.as_secs_f64());
    report.value("rss_before_bytes", rss as f64);
    report.value("rss_peak_bytes", peak as f64);
    report.value("client_cpu_us_per_delivery", per(own.running, receiver.received()));
    receiver.correctness(&mut report, &generator.into_sent());
    super::note_failures(&mut report, fleet);
    Ok(report)
}
