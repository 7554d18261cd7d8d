//! Users of whom something was lost or refused: nothing later is taken from its sender before that has come again, which
//! says of itself that it is the first. Whoever has nothing of a user under way is not waited for.
//!
//! What a sender does not send again here, because somebody else serves the user by now, is forgotten: when its link
//! ends, and when so many of its events have come since that it must know of the refusal, but not when the shard goes: it
//! may come back before something does that its sender had sent behind what was refused. Each of
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
    users: HashMap<UserId, Pending>,
    /// How many events have come from each sender; from one that is gone nothing comes any more.
    received: HashMap<Sender, u64>,
    swept_at: usize,
}

#[derive(Debug, Default)]
struct Pending {
    /// And how many of the sender's events had come when it was refused for the last time.
    senders: SmallVec<[(Sender, u64); 1]>,
    /// The user's actor has crashed: its successor comes with the next event that is taken, if that is soon.
    has_crashed: bool,
}

impl Pending {
    fn is_over(&self) -> bool {
        self.senders.is_empty() && !self.has_crashed
    }
}

impl Refusing {
    /// So many events have come from a sender.
    pub(super) fn received(&mut self, sender: Sender, events: usize) {
        *self.received.entry(sender).or_default() += events as u64;
    }

    /// What was under way for a user is lost: whoever has sent anything to this actor may have had a part in it. If the
    /// user stays here, it has a successor.
    pub(super) fn crashed(&mut self, user: UserId, stays: bool) {
        let senders = self.received.iter().map(|(sender, received)| (*sender, *received)).collect();
        self.users.insert(user, Pending { senders, has_crashed: stays });
        self.sweep();
    }

    /// An event of that sender was refused, as somebody else serves its user.
    pub(super) fn refused(&mut self, user: &UserId, sender: Sender) {
        let received = self.received.get(&sender).copied().unwrap_or_default();
        let Pending { senders, .. } = self.users.entry(user.clone()).or_default();
        senders.retain(|(one, _)| *one != sender);
        senders.push((sender, received));
        self.sweep();
    }

    /// Whether an event has to be refused, too.
    pub(super) fn refuses(&mut self, user: &UserId, sender: Sender, is_first: bool) -> bool {
        if self.users.is_empty() {
            return false;
        }
        let Some(pending) = self.users.get_mut(user) else { return false };
        if is_first {
            pending.senders.retain(|(one, _)| *one != sender);
        }
        if let Some((_, at)) = pending.senders.iter_mut().find(|(one, _)| *one == sender) {
            *at = self.received.get(&sender).copied().unwrap_or_default();
            return true;
        }
        // It is taken, and with it comes a successor.
        pending.has_crashed = false;
        if pending.is_over() {
            self.users.remove(user);
        }
        false
    }

    /// Whether a user's actor has crashed, and none of its events has been taken since.
    pub(super) fn has_crashed(&self, user: &UserId) -> bool {
        self.users.get(user).is_some_and(|pending| pending.has_crashed)
    }

    /// Somebody else serves these users: whoever does so next does not wait for an event. Their senders have to begin
    /// again all the same.
    pub(super) fn given_away(&mut self, is_theirs: impl Fn(&UserId) -> bool) {
        self.users.retain(|user, pending| {
            pending.has_crashed &= !is_theirs(user);
            !pending.is_over()
        });
    }

    /// Nothing comes from that sender any more: its link is broken, and the next one is another sender.
    pub(super) fn gone(&mut self, sender: Sender) {
        self.received.remove(&sender);
        self.users.retain(|_, pending| {
            let was_waited_for = !pending.senders.is_empty();
            pending.senders.retain(|(one, _)| *one != sender);
            !(was_waited_for && pending.senders.is_empty())
        });
    }

    fn sweep(&mut self) {
        if self.users.len() < self.swept_at.max(SWEPT_FROM) {
            return;
        }
        self.users.retain(|_, pending| {
            pending.senders.retain(|(one, at)| self.received.get(one).is_some_and(|now| now - *at < HEARD_AFTER));
            !pending.senders.is_empty()
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
        refusing.crashed(one.clone(), true);
        refusing.received(8, 1);
        assert!(!refusing.refuses(&one, 8, false), "nothing of its was under way");
        for sender in [0, 7] {
            assert!(refusing.refuses(&one, sender, false));
            assert!(!refusing.refuses(&one, sender, true));
            assert!(!refusing.refuses(&one, sender, false));
        }
        assert!(refusing.users.is_empty());
    }

    #[test]
    fn a_successor_comes_with_an_event_that_is_taken_or_with_the_shard() {
        let mut refusing = Refusing::default();
        let (one, other) = (user(1), user(2));
        refusing.received(7, 1);
        for user in [&one, &other] {
            refusing.crashed(user.clone(), true);
            assert!(refusing.refuses(user, 7, false) && refusing.has_crashed(user));
        }
        assert!(!refusing.refuses(&one, 7, true) && !refusing.has_crashed(&one));
        refusing.given_away(|user| *user == other);
        assert!(!refusing.has_crashed(&other) && refusing.refuses(&other, 7, false));
        // Nothing was under way.
        let mut quiet = Refusing::default();
        quiet.crashed(one.clone(), true);
        assert!(quiet.has_crashed(&one));
        quiet.given_away(|_| true);
        assert!(quiet.users.is_empty());
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
        assert!(refusing.users.is_empty() && refusing.received.is_empty());
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
        assert!(!refusing.users.contains_key(&user(0)));
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
