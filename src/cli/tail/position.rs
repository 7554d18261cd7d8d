//! How far the output has come, and what a connect says about it.

use crate::ids::{Sequence, Since};

/// The place in the user's log, over all connections. Pure.
#[derive(Debug)]
pub(super) struct Position {
    given: Option<Since>,
    acknowledges: bool,
    epoch: Option<Box<str>>,
    printed: Sequence,
}

impl Position {
    /// Starts after `given`, or else at the stored cursor.
    pub(super) fn new(given: Option<Since>, acknowledges: bool) -> Self {
        Self { given, acknowledges, epoch: None, printed: 0 }
    }

    /// Whether what was printed is acknowledged.
    pub(super) fn acknowledges(&self) -> bool {
        self.acknowledges
    }

    /// `since` of the next connect. It acknowledges what it names: who acknowledges nothing never names more than
    /// was given, and gets again what [`Self::is_new`] then leaves out.
    pub(super) fn since(&self) -> Option<String> {
        match &self.epoch {
            Some(epoch) if self.acknowledges && self.printed > 0 => Some(format!("{epoch}-{}", self.printed)),
            _ => self.given.as_ref().map(|since| format!("{}-{}", since.epoch, since.seq)),
        }
    }

    /// A session began in this epoch; numbers of another one mean nothing any more.
    pub(super) fn greeted(&mut self, epoch: &str) {
        if self.epoch.as_deref() != Some(epoch) {
            self.epoch = Some(epoch.into());
            self.printed = 0;
            self.given.take_if(|since| &*since.epoch != epoch);
        }
    }

    /// Whether this number was not printed yet.
    pub(super) fn is_new(&self, seq: Sequence) -> bool {
        seq > self.printed
    }

    /// Everything up to this number was printed.
    pub(super) fn printed(&mut self, seq: Sequence) {
        self.printed = self.printed.max(seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_resumes_after_what_was_printed() {
        let mut position = Position::new(None, true);
        assert_eq!(position.since(), None);
        position.greeted("k3f9");
        assert_eq!(position.since(), None, "nothing was printed: the stored cursor decides");
        position.printed(12);
        position.greeted("k3f9");
        assert_eq!(position.since().as_deref(), Some("k3f9-12"));
        assert!(!position.is_new(12) && position.is_new(13));
    }

    #[test]
    fn another_epoch_starts_again() {
        let mut position = Position::new(Since::parse("k3f9-5"), true);
        assert_eq!(position.since().as_deref(), Some("k3f9-5"));
        position.greeted("k3f9");
        position.printed(12);
        position.greeted("z");
        assert_eq!(position.since(), None);
        assert!(position.is_new(1));
    }

    #[test]
    fn without_acknowledging_nothing_more_than_given_is_named_and_nothing_comes_twice() {
        let mut position = Position::new(Since::parse("k3f9-5"), false);
        position.greeted("k3f9");
        position.printed(12);
        assert_eq!(position.since().as_deref(), Some("k3f9-5"));
        assert!(!position.is_new(6) && position.is_new(13));
    }
}
