//! What sessions cost the server while nothing happens.

use std::time::Duration;

use anyhow::Result;

use super::IdleArgs;
use crate::client::{Fleet, Ignore};
use crate::process::Process;
use crate::report::Report;

/// `rss_before`: the server's memory before the first of the `users` sessions, in bytes.
pub fn run(process: &Process, fleet: &mut Fleet, users: usize, rss_before: f64, args: &IdleArgs) -> Result<Report> {
    let per_session = |rss: u64| (rss as f64 - rss_before) / 1024.0 / users.max(1) as f64;
    let mut report = Report::new("idle");
    fleet.hold(Duration::from_secs(args.settle), &mut Ignore)?;
    let rss = process.rss()?;
    report.value("sessions", users as f64);
    report.value("rss_before_bytes", rss_before);
    report.value("rss_bytes", rss as f64);
    report.value("pss_bytes", process.pss()? as f64);
    report.value("rss_kib_per_session", per_session(rss));
    if args.seconds > 0 {
        let cpu = process.cpu()?;
        fleet.hold(Duration::from_secs(args.seconds), &mut Ignore)?;
        let share = (process.cpu()? - cpu).as_secs_f64() / args.seconds as f64;
        report.value("idle_seconds", args.seconds as f64);
        report.value("server_cpu_percent_of_a_core", share * 100.0);
        report.value("rss_kib_per_session_at_the_end", per_session(process.rss()?));
    }
    if (rss as f64) < rss_before {
        report.fault("the server's memory fell: measure one that was just started");
    }
    super::note_failures(&mut report, fleet);
    Ok(report)
}
