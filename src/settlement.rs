//! The permit that an event carries from the ledger to its settlement. Nothing that holds one can
//! forget it: a permit that is dropped unsettled reports that its event was lost on the way.
//! What the reports lead to is the sender's business.

use std::{fmt, sync::Arc};

/// Names one record of one assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordRef {
    /// Kafka partition.
    pub partition: i32,
    /// Which assignment of that partition read it; reports of an earlier one are ignored.
    pub assignment: u64,
    /// Kafka offset.
    pub offset: i64,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The position may pass it.
    Settled,
    /// Not taken, and not its own fault: send it again.
    Refused,
    /// It can never be where its durability wants it: a dead letter.
    Buried,
    /// Dropped on the way (a lost mailbox): send it again.
    Lost,
    /// Dropped by an actor that was working on it: send it again, but not for ever.
    Crashed,
}

/// Takes reports; called from any thread, must not block.
pub trait Report: Send + Sync {
    /// Says what became of the record's event. Called exactly once for each permit.
    fn report(&self, record: RecordRef, outcome: Outcome);
}

/// Travels inside the event's message and is used up by exactly one outcome.
#[must_use = "a permit that is dropped reports its event as lost"]
pub struct Permit {
    to: Option<Arc<dyn Report>>,
    record: RecordRef,
    begun: bool,
}

impl Permit {
    /// A permit that reports to `to`.
    pub fn new(to: Arc<dyn Report>, record: RecordRef) -> Self {
        Self { to: Some(to), record, begun: false }
    }

    /// An actor works on the event from here on: if it crashes, the event may be why.
    pub fn begin(&mut self) {
        self.begun = true;
    }

    /// The event waits for somebody else (the store): a crash meanwhile is not its fault.
    pub fn pause(&mut self) {
        self.begun = false;
    }

    /// The event is where its durability wants it.
    pub fn settle(self) {
        self.end(Outcome::Settled);
    }

    /// A mistake: it counts as settled, and goes on.
    #[cfg(feature = "mutants")]
    pub fn settle_early(&mut self) {
        if let Some(to) = self.to.take() {
            to.report(self.record, Outcome::Settled);
        }
    }

    /// The event was not taken; its sender tries again.
    pub fn refuse(self) {
        self.end(Outcome::Refused);
    }

    /// The store does not accept what is in the event, and never will.
    pub fn bury(self) {
        self.end(Outcome::Buried);
    }

    fn end(mut self, outcome: Outcome) {
        if let Some(to) = self.to.take() {
            to.report(self.record, outcome);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(to) = self.to.take() {
            to.report(self.record, if self.begun { Outcome::Crashed } else { Outcome::Lost });
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Permit").field(&self.record).finish()
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Default)]
    struct Seen(Mutex<Vec<Outcome>>);

    impl Report for Seen {
        fn report(&self, _: RecordRef, outcome: Outcome) {
            self.0.lock().push(outcome);
        }
    }

    #[test]
    fn every_permit_reports_exactly_once() {
        let seen = Arc::new(Seen::default());
        let permit = || Permit::new(seen.clone(), RecordRef { partition: 0, assignment: 1, offset: 7 });
        permit().settle();
        permit().refuse();
        permit().bury();
        drop(permit());
        let mut begun = permit();
        begun.begin();
        drop(begun);
        assert_eq!(
            *seen.0.lock(),
            [Outcome::Settled, Outcome::Refused, Outcome::Buried, Outcome::Lost, Outcome::Crashed]
        );
    }
}
