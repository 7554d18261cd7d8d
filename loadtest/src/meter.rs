//! What a server costs: by its process on this machine, else by what it says of itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::admin::Admin;
use crate::process::Process;

/// Where the figures come from; the process is believed more.
#[derive(Debug, Clone, Copy)]
pub struct Meter {
    pub process: Option<Process>,
    pub admin: Option<Admin>,
}

/// A server at one time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reading {
    /// User and system time so far.
    pub cpu: Duration,
    /// Resident memory, in bytes.
    pub rss: u64,
    pub context_switches: Option<u64>,
    /// Records of its partitions that it has not read.
    pub lag: Option<f64>,
    /// Records that it has read and not settled.
    pub unsettled: Option<f64>,
}

impl Meter {
    /// # Errors
    ///
    /// When there is neither a process nor a port: nothing would be measured.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.process.is_some() || self.admin.is_some(),
            "nothing to measure the server by: give --pid (on this machine) or --admin (its admin port)"
        );
        Ok(())
    }

    /// # Errors
    ///
    /// When the server has ended, or its port does not answer and there is nothing else.
    pub fn read(&self) -> Result<Reading> {
        let page = self.admin.map(|admin| admin.page());
        let mut reading = Reading::default();
        match self.process {
            Some(process) => {
                ensure!(process.is_alive(), "the server's process has ended");
                reading.cpu = process.cpu()?;
                reading.rss = process.rss()?;
                reading.context_switches = Some(process.context_switches()?);
                // A server that has no time to answer is measured all the same.
                if let Some(Ok(page)) = page {
                    reading.lag = page.sum("notifier_ingest_lag_records");
                    reading.unsettled = page.sum("notifier_unsettled_events");
                }
            }
            None => {
                let page = page.context("neither a process nor an admin port")??;
                let of = |name| page.sum(name).with_context(|| format!("no {name} on the admin port"));
                reading.cpu = Duration::from_secs_f64(of("process_cpu_seconds_total")?.max(0.0));
                reading.rss = of("process_resident_memory_bytes")? as u64;
                reading.lag = page.sum("notifier_ingest_lag_records");
                reading.unsettled = page.sum("notifier_unsettled_events");
            }
        }
        Ok(reading)
    }

    /// Proportional memory, which only a process on this machine has.
    pub fn pss(&self) -> Option<u64> {
        self.process.and_then(|process| process.pss().ok())
    }
}
