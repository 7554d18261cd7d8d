//! Nothing is left behind when this tool is interrupted: a server that it stopped goes on, one that
//! it started ends.
//!
//! `Drop` does not run when a signal ends the process, so what has to be undone is written down
//! here while it lasts.

use std::process::exit;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

static PENDING: Mutex<Vec<(Pid, Signal)>> = Mutex::new(Vec::new());

/// As long as it lives, an interrupt sends the signal to the process.
#[derive(Debug)]
pub struct Undo {
    pid: Pid,
    signal: Signal,
}

impl Undo {
    pub fn new(pid: Pid, signal: Signal) -> Self {
        pending(|list| list.push((pid, signal)));
        Self { pid, signal }
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        pending(|list| {
            if let Some(at) = list.iter().position(|e| *e == (self.pid, self.signal)) {
                list.remove(at);
            }
        });
    }
}

/// From here on SIGINT and SIGTERM undo what is pending and end the process.
pub fn watch() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("signal handler")?;
    thread::spawn(move || {
        let Some(signal) = signals.forever().next() else {
            return; // the handle that ends the iterator is never used
        };
        pending(|list| {
            for (pid, undo) in list.drain(..) {
                // Fails only for a process that has ended.
                let _ = kill_process(pid, undo);
            }
        });
        exit(128 + signal);
    });
    Ok(())
}

fn pending<T>(change: impl FnOnce(&mut Vec<(Pid, Signal)>) -> T) -> T {
    change(&mut PENDING.lock().unwrap_or_else(PoisonError::into_inner))
}
