//! The states of a notification, and the one table of how they follow each other.

use serde::Serialize;

/// How a notification stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Stored, and nobody was given it yet.
    Pending,
    /// Handed to a session that is open; not acknowledged.
    Active,
    /// Handed to a session that was lost before it acknowledged: sent on the next connection.
    Stale,
    /// Acknowledged by one of the user's sessions. Other devices still get it, by their cursors.
    Sent,
    /// It can never be delivered.
    Failed,
    /// It must not be delivered any more; there is a [`Reason`].
    Deleted,
}

/// Why a notification is [`State::Deleted`] or [`State::Failed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Its time to live, or the log's retention, ended.
    Expired,
    /// The user's log was full, and it was among the oldest.
    Evicted,
    /// A newer one with the same collapse key took its place.
    Superseded,
    /// Too many waited: it was counted in a `notifier.digest`.
    Digested,
    /// Somebody took it back.
    Cancelled,
    /// It was for one session, which was not there.
    NoSession,
    /// It was transient, and no session was open.
    Away,
    /// It was transient, and over the user's rate limit.
    RateLimited,
    /// The store does not accept what is in it.
    Unstorable,
}

/// Every step that is possible. A state that stands on no left side is an end.
pub const STEPS: &[(State, State)] = &[
    (State::Pending, State::Active),
    (State::Pending, State::Sent),
    (State::Pending, State::Failed),
    (State::Pending, State::Deleted),
    (State::Active, State::Stale),
    (State::Active, State::Sent),
    (State::Active, State::Deleted),
    (State::Stale, State::Active),
    (State::Stale, State::Sent),
    (State::Stale, State::Deleted),
];

impl State {
    /// Every state.
    pub const ALL: [Self; 6] = [Self::Pending, Self::Active, Self::Stale, Self::Sent, Self::Failed, Self::Deleted];

    /// Whether `next` may follow.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        STEPS.contains(&(self, next))
    }

    /// Whether nothing follows.
    #[must_use]
    pub fn is_end(self) -> bool {
        STEPS.iter().all(|(from, _)| *from != self)
    }

    /// What one observation makes of this state: one that cannot follow changes nothing. (A second device is given what
    /// a first one has acknowledged; an acknowledgement comes in the moment of a cancellation.)
    #[must_use]
    pub fn after(self, seen: Self) -> Self {
        if self.may_become(seen) { seen } else { self }
    }

    /// How the contract calls it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Stale => "stale",
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Deleted => "deleted",
        }
    }
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::Expired,
        Self::Evicted,
        Self::Superseded,
        Self::Digested,
        Self::Cancelled,
        Self::NoSession,
        Self::Away,
        Self::RateLimited,
        Self::Unstorable,
    ];

    /// How the contract calls it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Evicted => "evicted",
            Self::Superseded => "superseded",
            Self::Digested => "digested",
            Self::Cancelled => "cancelled",
            Self::NoSession => "no_session",
            Self::Away => "away",
            Self::RateLimited => "rate_limited",
            Self::Unstorable => "unstorable",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ends_are_those_of_the_contract() {
        let ends: Vec<_> = State::ALL.into_iter().filter(|state| state.is_end()).collect();
        assert_eq!(ends, [State::Sent, State::Failed, State::Deleted]);
    }

    #[test]
    fn every_state_is_reached_and_every_waiting_one_has_a_way_to_each_end_it_may_have() {
        for state in State::ALL.into_iter().filter(|state| *state != State::Pending) {
            assert!(STEPS.iter().any(|(_, to)| *to == state), "{state:?}");
        }
        for waiting in State::ALL.into_iter().filter(|state| !state.is_end()) {
            assert!(waiting.may_become(State::Sent) && waiting.may_become(State::Deleted), "{waiting:?}");
        }
    }

    proptest! {
        /// Whatever is seen, and in whatever order: an end is entered once at most, and never left.
        #[test]
        fn there_is_no_way_out_of_an_end(seen in prop::collection::vec(0usize..6, 0..40)) {
            let mut state = State::Pending;
            let mut ended = None;
            for next in seen.into_iter().map(|i| State::ALL[i]) {
                let was = state;
                state = state.after(next);
                prop_assert!(state == was || was.may_become(state));
                if let Some(end) = ended {
                    prop_assert_eq!(state, end);
                } else if state.is_end() {
                    ended = Some(state);
                }
            }
        }
    }
}
