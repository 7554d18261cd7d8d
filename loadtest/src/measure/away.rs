//! Events for users who are away: what storing them costs, and what starting their actors adds.
//!
//! The server is stopped while the events are written, as for a backlog. Nothing arrives anywhere, so the
//! server's own metrics say when all is stored, and when the last actor has gone.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Load, per};
use crate::admin::Admin;
use crate::process::Process;
use crate::report::Report;
use crate::workload::{Generator, micros, new_run};

const STORED: &str = "notifier_events_total{outcome=\"stored\"}";
const ACTIVE: &str = "notifier_users_active";

/// CPU until the last event was stored, an event.
pub const CPU: &str = "server_cpu_us_per_event";
/// The same until the last actor was gone.
pub const CPU_UNTIL_NOBODY: &str = "server_cpu_us_per_event_until_nobody_is_active";

/// The events must be stored within this time.
const LIMIT: Duration = Duration::from_secs(180);
/// The last actor must be gone this long after the last event; the server's idle time is part of it.
const GONE_LIMIT: Duration = Duration::from_secs(60);
/// How often the server is asked.
const INTERVAL: Duration = Duration::from_millis(20);

/// What was stored for users who are away.
pub struct Stored {
    /// By which its events are known again.
    pub run: u32,
    /// Events of each user.
    pub sent: Vec<u32>,
    cpu: Duration,
    wall: Duration,
    active_highest: f64,
}

/// One after the other gets its events; then the server is waited for until no user has an actor.
pub fn run(process: &Process, admin: Admin, load: &Load, events: u64) -> Result<Report> {
    let rss_before = process.rss()?;
    let cpu = process.cpu()?;
    let stored = store(process, admin, load, events)?;
    let gone = until_nobody_is_active(admin);
    let cpu = process.cpu()? - cpu;
    let rss = process.rss()?;
    let mut report = Report::new("away");
    report.value("events", events as f64);
    report.value("users", load.users.count as f64);
    report.value("events_per_second", events as f64 / stored.wall.as_secs_f64());
    report.value(CPU, per(stored.cpu, events));
    report.value(CPU_UNTIL_NOBODY, per(cpu, events));
    report.value("users_active_highest", stored.active_highest);
    report.value("users_active_afterwards", admin.metric(ACTIVE)?);
    report.value("rss_before_bytes", rss_before as f64);
    report.value("rss_bytes", rss as f64);
    report.value("rss_bytes_per_waiting_user", (rss as f64 - rss_before as f64) / load.users.count as f64);
    if let Err(error) = gone {
        report.fault(error.to_string());
    }
    if stored.active_highest == 0.0 {
        report.fault("no user was ever seen active: the figures are not those of actors");
    }
    Ok(report)
}

/// Writes the events while the server stands still, and lets it store them.
///
/// # Errors
///
/// When they are not stored in time, or more are than were sent.
pub fn store(process: &Process, admin: Admin, load: &Load, events: u64) -> Result<Stored> {
    let run = new_run();
    let mut generator = Generator::new(run, load.users, load.bytes, load.durability);
    let mut producer = load.topic.producer(load.linger)?;
    let before = admin.metric(STORED)?;
    // Fetches that are under way end before the server is stopped.
    thread::sleep(Duration::from_millis(500));
    let paused = process.pause()?;
    for _ in 0..events {
        let now = micros();
        let (key, value) = generator.next(now, now);
        producer.send(key, value)?;
    }
    producer.finish()?;
    let cpu = process.cpu()?;
    let started = Instant::now();
    drop(paused);
    let mut active_highest: f64 = 0.0;
    let stored = loop {
        let stored = admin.metric(STORED)? - before;
        active_highest = active_highest.max(admin.metric(ACTIVE)?);
        if stored >= events as f64 || started.elapsed() > LIMIT {
            break stored;
        }
        thread::sleep(INTERVAL);
    };
    let (cpu, wall) = (process.cpu()? - cpu, started.elapsed());
    ensure!(stored == events as f64, "{stored} of {events} events were stored after {wall:.1?}");
    Ok(Stored { run, sent: generator.into_sent(), cpu, wall, active_highest })
}

/// Waits until no user has an actor.
///
/// # Errors
///
/// When some still have after a minute.
pub fn until_nobody_is_active(admin: Admin) -> Result<()> {
    let deadline = Instant::now() + GONE_LIMIT;
    loop {
        let active = admin.metric(ACTIVE)?;
        if active == 0.0 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{active} users were still active {GONE_LIMIT:?} after the last event");
        thread::sleep(INTERVAL * 5);
    }
}
