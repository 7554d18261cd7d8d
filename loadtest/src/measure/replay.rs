//! A user comes back to what waits: from the connect until the last of it has arrived and is acknowledged.

use std::slice;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{away, per};
use crate::admin::Admin;
use crate::client::{Endpoint, Fleet};
use crate::process::Process;
use crate::receiver::Receiver;
use crate::report::Report;

/// Everything must have arrived within this time.
const LIMIT: Duration = Duration::from_secs(60);
/// Listened for duplicates, and for the server to take the last acknowledgement.
const AFTERMATH: Duration = Duration::from_secs(1);

/// Connects as the one user for whom something was stored. The user must have no actor.
pub fn run(
    process: &Process,
    admin: Admin,
    endpoint: &Endpoint,
    token: &String,
    stored: &away::Stored,
) -> Result<Report> {
    let pending: u32 = stored.sent.iter().sum();
    let mut receiver = Receiver::new(stored.run, stored.sent.len(), true)?;
    let mut fleet = Fleet::new()?;
    process.reset_peak()?;
    let (rss, cpu) = (process.rss()?, process.cpu()?);
    let started = Instant::now();
    fleet.connect(endpoint, slice::from_ref(token), 1, LIMIT, &mut receiver)?;
    let connected = started.elapsed();
    while receiver.received() < pending.into() && started.elapsed() < LIMIT && fleet.failures().is_none() {
        fleet.turn(Duration::from_millis(50), &mut receiver)?;
    }
    let wall = started.elapsed();
    fleet.hold(AFTERMATH, &mut receiver)?;
    let (cpu, peak) = (process.cpu()? - cpu, process.peak_rss()?);
    let mut report = Report::new("replay");
    report.value("pending", pending.into());
    report.value("connect_ms", connected.as_secs_f64() * 1e3);
    report.value("replay_ms", wall.as_secs_f64() * 1e3);
    report.value("server_cpu_us_per_delivery", per(cpu, receiver.received()));
    report.value("rss_before_bytes", rss as f64);
    report.value("rss_peak_growth_bytes", peak.saturating_sub(rss) as f64);
    receiver.correctness(&mut report, &stored.sent);
    super::note_failures(&mut report, &fleet);
    drop(fleet);
    away::until_nobody_is_active(admin)?;
    Ok(report)
}
