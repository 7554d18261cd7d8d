//! Checks what clients receive: each user's events in order, none lost, none twice.
//!
//! Pure: knows users and running numbers, not frames or sockets.

use std::collections::{BTreeSet, HashMap};

/// The state of the check for one run. Numbers start at 0 for every user.
#[derive(Debug, Default)]
pub struct Checker {
    next: Vec<u32>,
    /// Numbers that were passed over and may still come, out of order.
    holes: HashMap<usize, BTreeSet<u32>>,
    received: u64,
    duplicates: u64,
    reordered: u64,
}

/// What a finished check found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Verdict {
    /// Different events that arrived.
    pub received: u64,
    /// Events that were sent and never arrived.
    pub lost: u64,
    /// Arrivals of an event that had arrived before.
    pub duplicates: u64,
    /// Events that arrived after a later one of the same user.
    pub reordered: u64,
    /// Events that were sent to who reads nothing any more, and did not arrive.
    pub unread: u64,
}

impl Verdict {
    /// Of other users.
    pub fn add(&mut self, other: Self) {
        self.received += other.received;
        self.lost += other.lost;
        self.duplicates += other.duplicates;
        self.reordered += other.reordered;
        self.unread += other.unread;
    }
}

impl Checker {
    pub fn new(users: usize) -> Self {
        Self { next: vec![0; users], ..Self::default() }
    }

    /// One user more.
    pub fn add(&mut self) {
        self.next.push(0);
    }

    /// Notes the arrival of `number` at `user`; false when it had arrived before.
    pub fn arrived(&mut self, user: usize, number: u32) -> bool {
        let next = self.next[user];
        if number == next {
            self.next[user] = next + 1;
        } else if number > next {
            self.holes.entry(user).or_default().extend(next..number);
            self.next[user] = number + 1;
        } else if self.holes.get_mut(&user).is_some_and(|holes| holes.remove(&number)) {
            self.reordered += 1;
        } else {
            self.duplicates += 1;
            return false;
        }
        self.received += 1;
        true
    }

    /// Different events that have arrived so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Compares with how many events each user was sent. Only users who `read` can lose any.
    pub fn verdict(&self, sent: &[u32], read: impl Fn(usize) -> bool) -> Verdict {
        let (mut lost, mut unread) = (0, 0);
        let mut missing = |user, count| if read(user) { lost += count } else { unread += count };
        self.holes.iter().for_each(|(user, holes)| missing(*user, holes.len() as u64));
        for (user, (&sent, &next)) in sent.iter().zip(&self.next).enumerate() {
            missing(user, u64::from(sent.saturating_sub(next)));
        }
        let Self { received, duplicates, reordered, .. } = *self;
        Verdict { received, lost, duplicates, reordered, unread }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arrivals: &[u32], sent: u32) -> Verdict {
        let mut checker = Checker::new(2);
        for &number in arrivals {
            checker.arrived(1, number);
        }
        checker.verdict(&[0, sent], |_| true)
    }

    #[test]
    fn in_order_and_complete_is_clean() {
        let expected = Verdict { received: 3, ..Verdict::default() };
        assert_eq!(check(&[0, 1, 2], 3), expected);
    }

    #[test]
    fn a_gap_and_a_missing_end_are_lost() {
        let verdict = check(&[0, 2, 3], 6);
        assert_eq!((verdict.received, verdict.lost), (3, 3));
        assert_eq!((verdict.duplicates, verdict.reordered), (0, 0));
    }

    #[test]
    fn a_late_one_is_reordered_and_not_lost() {
        let verdict = check(&[0, 2, 1], 3);
        assert_eq!((verdict.lost, verdict.reordered), (0, 1));
        assert_eq!(verdict.duplicates, 0);
    }

    #[test]
    fn a_second_arrival_is_a_duplicate_also_of_a_late_one() {
        let verdict = check(&[0, 0, 2, 1, 1], 3);
        assert_eq!((verdict.duplicates, verdict.reordered), (2, 1));
        assert_eq!((verdict.received, verdict.lost), (3, 0));
    }

    #[test]
    fn who_does_not_read_loses_nothing() {
        let mut checker = Checker::new(2);
        checker.arrived(1, 1);
        let missing = |verdict: Verdict| (verdict.lost, verdict.unread);
        assert_eq!(missing(checker.verdict(&[0, 5], |_| true)), (4, 0));
        assert_eq!(missing(checker.verdict(&[0, 5], |user| user != 1)), (0, 4));
    }

    #[test]
    fn users_do_not_mix() {
        let mut checker = Checker::new(2);
        assert!(checker.arrived(0, 0));
        assert!(checker.arrived(1, 0));
        assert_eq!(checker.verdict(&[1, 2], |_| true).lost, 1);
    }
}
