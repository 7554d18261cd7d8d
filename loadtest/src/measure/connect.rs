//! What a connect costs the server: from the SYN to the `$hello`.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::per;
use crate::client::{Endpoint, Fleet, Ignore};
use crate::process::Process;
use crate::report::Report;

/// Name of the server's memory before the first session.
pub const RSS_BEFORE: &str = "rss_before_bytes";

const LIMIT: Duration = Duration::from_secs(120);
/// Work that a server does right after a `$hello` belongs to the connect.
const AFTERMATH: Duration = Duration::from_millis(500);

/// Opens all sessions and leaves them open.
pub fn run(process: &Process, endpoint: &Endpoint, tokens: &[String], concurrency: usize) -> Result<(Fleet, Report)> {
    let rss_before = process.rss()?;
    let mut fleet = Fleet::new()?;
    let cpu = process.cpu()?;
    let started = Instant::now();
    fleet.connect(endpoint, tokens, concurrency, LIMIT, &mut Ignore)?;
    let wall = started.elapsed();
    fleet.hold(AFTERMATH, &mut Ignore)?;
    let cpu = process.cpu()? - cpu;
    let mut report = Report::new("connect");
    report.value("connects", tokens.len() as f64);
    report.value("server_cpu_us_per_connect", per(cpu, tokens.len() as u64));
    report.value("wall_seconds", wall.as_secs_f64());
    report.value(RSS_BEFORE, rss_before as f64);
    super::note_failures(&mut report, &fleet);
    Ok((fleet, report))
}
