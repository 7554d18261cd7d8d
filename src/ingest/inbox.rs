//! What other threads tell the poll thread, and how it is woken. Wake-ups are hints: the thread looks by itself
//! every now and then, because librdkafka's queue callbacks have lost some (rust-rdkafka #840).

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::Thread,
    time::Duration,
};

use parking_lot::Mutex;
use rdkafka::message::OwnedMessage;

use super::{dead_letter::Reason, decode::Decoder};
use crate::settlement::{Outcome, RecordRef, Report};

/// A thread that waits for credit is woken for so many settled events: waking it for each one costs more than the
/// events themselves, and would make it read them one by one.
const REPORTS_WORTH_WAKING: usize = 256;

/// Orders and reports for the poll thread.
#[derive(Default)]
pub(super) struct Inbox {
    reports: Mutex<Vec<(RecordRef, Outcome)>>,
    commands: Mutex<Vec<Command>>,
    thread: OnceLock<Thread>,
    asleep: AtomicBool,
    /// Whether settled events are worth waking up for.
    wants_reports: AtomicBool,
}

/// A partition, and the offset where the next reader begins.
pub(super) type Position = (i32, i64);

/// An order for the poll thread.
pub(super) enum Command {
    /// The cluster is known: records can be read.
    Decode(Decoder),
    /// Read this partition from here; it ended there when it was looked at.
    Assign { partition: i32, start: i64, end: i64 },
    /// Stop reading, settle what is under way, let go of the partition, and say where the next one begins.
    Release { partition: i32, done: mpsc::Sender<Position> },
    /// A record that has to become a dead letter was read once more; what is gone comes without key and value.
    Bury { record: RecordRef, message: OwnedMessage, reason: Reason, detail: String },
    /// End; say where each partition that is still held stands.
    Stop { done: mpsc::Sender<Position> },
}

impl Report for Inbox {
    fn report(&self, record: RecordRef, outcome: Outcome) {
        let mut reports = self.reports.lock();
        reports.push((record, outcome));
        let enough = reports.len() >= REPORTS_WORTH_WAKING;
        drop(reports);
        if outcome != Outcome::Settled || (enough && self.wants_reports.load(Ordering::Relaxed)) {
            self.wake();
        }
    }
}

impl Inbox {
    pub(super) fn command(&self, command: Command) {
        self.commands.lock().push(command);
        self.wake();
    }

    pub(super) fn take_commands(&self) -> Vec<Command> {
        std::mem::take(&mut *self.commands.lock())
    }

    /// Puts the reports into `into`, which must be empty; its memory is used for the next ones.
    pub(super) fn take_reports(&self, into: &mut Vec<(RecordRef, Outcome)>) {
        debug_assert!(into.is_empty());
        std::mem::swap(into, &mut *self.reports.lock());
    }

    pub(super) fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// The calling thread will sleep if its last look round finds nothing; wake-ups count from here on.
    pub(super) fn about_to_sleep(&self, wants_reports: bool) {
        self.thread.get_or_init(std::thread::current);
        self.wants_reports.store(wants_reports, Ordering::Relaxed);
        self.asleep.store(true, Ordering::SeqCst);
    }

    /// Sleeps until somebody wakes the thread, or for `longest`.
    pub(super) fn sleep(&self, longest: Duration) {
        if self.asleep.load(Ordering::SeqCst) {
            std::thread::park_timeout(longest);
        }
        self.awake();
    }

    pub(super) fn awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests;
