//! What a link's events must not do after a crash: the successor of a shard actor does not know what its predecessor has
//! lost, and would take what comes behind it. This node's own router waits until all that it had under way is answered;
//! the router at the other end of a link hears of the loss later. So nothing of a user is taken for the successor before
//! an event that says of itself that it is the first.

use std::collections::{HashMap, HashSet};

use super::refusing::HEARD_AFTER;
use crate::{event::InFlight, ids::UserId};

/// Which lives of the shard actors one sender's events went to.
#[derive(Debug, Default)]
pub struct Lives {
    by_actor: HashMap<usize, Life>,
}

#[derive(Debug)]
struct Life {
    life: u64,
    /// There was one before, which may have lost events.
    successor: Option<Successor>,
}

#[derive(Debug, Default)]
struct Successor {
    /// Who has begun again.
    users: HashSet<UserId>,
    /// Events that have come since. After so many the sender must know of every loss.
    received: u64,
}

impl Lives {
    /// What may go to this life of an actor ([`super::Shards::get`]), of events that came for it, all in the order in
    /// which they came. The others are refused.
    pub fn admit(&mut self, actor: usize, life: u64, mut events: Vec<InFlight>) -> Vec<InFlight> {
        let known = self.by_actor.entry(actor).or_insert(Life { life, successor: None });
        if known.life != life {
            *known = Life { life, successor: Some(Successor::default()) };
        }
        let Some(successor) = &mut known.successor else { return events };
        successor.received += events.len() as u64;
        for refused in events.extract_if(.., |in_flight| !successor.takes(in_flight)) {
            refused.permit.refuse();
        }
        if successor.received >= HEARD_AFTER {
            known.successor = None;
        }
        events
    }
}

impl Successor {
    fn takes(&mut self, in_flight: &InFlight) -> bool {
        let user = &in_flight.event.user;
        if in_flight.first && !self.users.contains(user) {
            self.users.insert(user.clone());
        }
        self.users.contains(user)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        fakes::{Reports, durable},
        settlement::Outcome,
    };

    const ACTOR: usize = 3;

    fn events(reports: &Arc<Reports>, events: &[(&str, i64, bool)]) -> Vec<InFlight> {
        let in_flight = |(user, number, first): &(&str, i64, bool)| {
            let event = durable(&UserId::new(*user).unwrap(), &number.to_string());
            InFlight { first: *first, sender: 7, ..reports.in_flight(*number, event) }
        };
        events.iter().map(in_flight).collect()
    }

    /// Whose events were admitted, by their numbers, and which were refused.
    fn admitted(lives: &mut Lives, life: u64, came: &[(&str, i64, bool)]) -> (Vec<i64>, Vec<i64>) {
        let reports = Reports::new();
        let admitted = lives.admit(ACTOR, life, events(&reports, came));
        let refused = reports.take().into_iter().map(|(number, outcome)| {
            assert_eq!(outcome, Outcome::Refused);
            number
        });
        let refused = refused.collect();
        admitted.into_iter().for_each(|in_flight| in_flight.permit.settle());
        (reports.take().into_iter().map(|(number, _)| number).collect(), refused)
    }

    #[test]
    fn a_successor_gets_nothing_of_a_user_before_the_first_of_what_was_lost() {
        let mut lives = Lives::default();
        assert_eq!(admitted(&mut lives, 4, &[("anna", 0, false), ("ben", 1, true)]), (vec![0, 1], vec![]));
        let came = [("anna", 3, false), ("ben", 4, true), ("anna", 5, false), ("ben", 6, false)];
        assert_eq!(admitted(&mut lives, 5, &came), (vec![4, 6], vec![3, 5]));
        assert_eq!(admitted(&mut lives, 5, &[("anna", 2, true), ("anna", 3, false)]), (vec![2, 3], vec![]));
        // It crashes, too.
        assert_eq!(admitted(&mut lives, 6, &[("anna", 5, false), ("ben", 7, false)]), (vec![], vec![5, 7]));
    }

    #[test]
    fn one_actor_s_crash_is_not_another_s() {
        let mut lives = Lives::default();
        let reports = Reports::new();
        for (actor, life) in [(0, 0), (1, 0), (0, 1), (1, 0)] {
            let came = events(&reports, &[("anna", 1, false)]);
            assert_eq!(lives.admit(actor, life, came).len(), usize::from(life == 0));
        }
    }

    #[test]
    fn when_the_sender_must_know_of_all_that_was_lost_everything_is_taken() {
        let mut lives = Lives::default();
        admitted(&mut lives, 0, &[("anna", 0, false)]);
        assert_eq!(admitted(&mut lives, 1, &[("ben", 1, false)]), (vec![], vec![1]));
        let successor = lives.by_actor.get_mut(&ACTOR).unwrap().successor.as_mut().unwrap();
        successor.received = HEARD_AFTER - 2;
        assert_eq!(admitted(&mut lives, 1, &[("ben", 2, false)]), (vec![], vec![2]));
        assert_eq!(admitted(&mut lives, 1, &[("cleo", 3, true)]), (vec![3], vec![]));
        assert_eq!(admitted(&mut lives, 1, &[("ben", 4, false)]), (vec![4], vec![]));
    }
}
