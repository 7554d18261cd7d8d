//! Users of whom something was lost or refused: nothing later is taken from its sender before that has come again, which
//! says of itself that it is the first. Whoever has nothing of a user under way is not waited for.
//!
//! What a sender does not send again here, because somebody else serves the user by now, is forgotten: when its link
//! ends, when the shard goes, and when so many of its events have come since that it must know of the refusal. Each of
//! its events holds one of its credits until it has heard what became of it, and it hears that in order. So when it
//! has not heard of a refusal, what came since was sent with the credits that it had then, each used once, or used
//! once more after an answer from before.

use std::collections::HashMap;

use smallvec::SmallVec;

use crate::{event::Sender, ids::UserId};

/// Credits that a sender may have (`kafka.in_flight_events`).
pub const IN_FLIGHT_MAX: usize = 1 << 19;
/// Twice that: see above.
pub(super) const HEARD_AFTER: u64 = 2 * IN_FLIGHT_MAX as u64;
/// With so many users, those that do not matter any more are swept out.
const SWEPT_FROM: usize = 1024;

/// Who has to begin again, by user.
#[derive(Debug, Default)]
pub(super) struct Refusing {
    /// And how many of the sender's events had come when it was refused for the last time. A user of whom nobody has to
    /// begin again has crashed with nothing under way.
    users: HashMap<UserId, SmallVec<[(Sender, u64); 1]>>,
    /// How many events have come from each sender; from one that is gone nothing comes any more.
    received: HashMap<Sender, u64>,
    swept_at: usize,
}

impl Refusing {
    /// So many events have come from a sender.
    pub(super) fn received(&mut self, sender: Sender, events: usize) {
        *self.received.entry(sender).or_default() += events as u64;
    }

    /// What was under way for a user is lost: whoever has sent anything to this actor may have had a part in it.
    pub(super) fn crashed(&mut self, user: UserId) {
        let all = self.received.iter().map(|(sender, received)| (*sender, *received)).collect();
        self.users.insert(user, all);
        self.sweep();
    }

    /// An event of that sender was refused, as somebody else serves its user.
    pub(super) fn refused(&mut self, user: &UserId, sender: Sender) {
        let received = self.received.get(&sender).copied().unwrap_or_default();
        let pending = self.users.entry(user.clone()).or_default();
        pending.retain(|(one, _)| *one != sender);
        pending.push((sender, received));
        self.sweep();
    }

    /// Whether an event has to be refused, too.
    pub(super) fn refuses(&mut self, user: &UserId, sender: Sender, is_first: bool) -> bool {
        if self.users.is_empty() {
            return false;
        }
        let Some(pending) = self.users.get_mut(user) else { return false };
        if is_first {
            pending.retain(|(one, _)| *one != sender);
        }
        if pending.is_empty() {
            self.users.remove(user);
            return false;
        }
        let Some((_, at)) = pending.iter_mut().find(|(one, _)| *one == sender) else { return false };
        *at = self.received.get(&sender).copied().unwrap_or_default();
        true
    }

    /// Whether a user waits for somebody to begin again, or for its first event after a crash.
    pub(super) fn has(&self, user: &UserId) -> bool {
        self.users.contains_key(user)
    }

    /// Users who go to another node are that one's.
    pub(super) fn forget(&mut self, is_gone: impl Fn(&UserId) -> bool) {
        self.users.retain(|user, _| !is_gone(user));
    }

    /// Nothing comes from that sender any more: its link is broken, and the next one is another sender.
    pub(super) fn gone(&mut self, sender: Sender) {
        self.received.remove(&sender);
        self.users.retain(|_, pending| {
            let was_waited_for = !pending.is_empty();
            pending.retain(|(one, _)| *one != sender);
            !(was_waited_for && pending.is_empty())
        });
    }

    fn sweep(&mut self) {
        if self.users.len() < self.swept_at.max(SWEPT_FROM) {
            return;
        }
        self.users.retain(|_, pending| {
            pending.retain(|(one, at)| self.received.get(one).is_some_and(|now| now - *at < HEARD_AFTER));
            !pending.is_empty()
        });
        self.swept_at = 2 * self.users.len();
        self.users.shrink_to(self.swept_at.max(SWEPT_FROM));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(number: usize) -> UserId {
        UserId::new(number.to_string()).unwrap()
    }

    #[test]
    fn who_has_to_begin_again_is_refused_until_then_and_nobody_else() {
        let mut refusing = Refusing::default();
        let one = user(1);
        for sender in [0, 7] {
            refusing.received(sender, 1);
        }
        refusing.crashed(one.clone());
        refusing.received(8, 1);
        assert!(!refusing.refuses(&one, 8, false), "nothing of its was under way");
        for sender in [0, 7] {
            assert!(refusing.refuses(&one, sender, false));
            assert!(!refusing.refuses(&one, sender, true));
            assert!(!refusing.refuses(&one, sender, false));
        }
        assert!(!refusing.has(&one));
    }

    #[test]
    fn a_sender_that_is_gone_is_not_waited_for() {
        let mut refusing = Refusing::default();
        let one = user(1);
        for sender in [7, 8] {
            refusing.received(sender, 1);
            refusing.refused(&one, sender);
        }
        refusing.gone(7);
        assert!(refusing.refuses(&one, 8, false));
        refusing.gone(8);
        assert!(!refusing.has(&one) && refusing.received.is_empty());
    }

    #[test]
    fn users_whom_somebody_else_serves_by_now_are_forgotten() {
        let mut refusing = Refusing::default();
        let round = 50_000;
        for turn in 0..60 {
            for number in 0..round {
                refusing.received(7, 1);
                refusing.refused(&user(turn * round + number), 7);
            }
            let bound = 2 * usize::try_from(HEARD_AFTER).unwrap() + SWEPT_FROM;
            assert!(refusing.users.len() <= bound, "{} after {turn} rounds", refusing.users.len());
        }
        // The last one may be under way still.
        assert!(refusing.refuses(&user(60 * round - 1), 7, false));
        assert!(!refusing.has(&user(0)));
    }

    #[test]
    fn a_refusal_that_goes_on_is_not_forgotten() {
        let mut refusing = Refusing::default();
        let one = user(0);
        refusing.received(7, 1);
        refusing.refused(&one, 7);
        for _ in 0..4 {
            refusing.received(7, usize::try_from(HEARD_AFTER / 2).unwrap());
            assert!(refusing.refuses(&one, 7, false));
            (1..=SWEPT_FROM).for_each(|number| refusing.refused(&user(number), 8));
        }
        assert!(refusing.refuses(&one, 7, false));
    }
}
