//! Sessions that were started ahead of their connection: an id that lets whoever knows it connect as its user, on any
//! protocol, until it expires or is ended.

use std::{
    collections::{BTreeSet, HashMap},
    future::ready,
};

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::Answer;
use crate::{
    event::{UnixMillis, unix_millis_now},
    ids::{SessionId, UserId},
};

/// A user with so many started sessions gets no further one.
pub const PER_USER_MAX: usize = 100;
/// All users together, in memory: some 300 bytes each.
const MAX: usize = 1_000_000;

/// A session that was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Its id, which is also what it is used with.
    pub session: SessionId,
    /// Whose it is.
    pub user: UserId,
    /// From here on it is not accepted any more, in ms.
    pub expires_at: UnixMillis,
}

/// Whether a session could be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Starting {
    /// It is kept.
    Done,
    /// The user has [`PER_USER_MAX`] already.
    TooManyOfUser,
    /// There is no room for anybody's.
    Full,
}

/// Keeps started sessions.
pub trait StartedSessions: Send + Sync {
    /// Keeps one.
    fn start(&self, started: Started) -> Answer<'_, Starting>;

    /// The session with this id, unless it has expired or was ended.
    fn find(&self, session: SessionId) -> Answer<'_, Option<Started>>;

    /// A user's sessions that have not expired, the one that expires first at the front.
    fn of_user<'a>(&'a self, user: &'a UserId) -> Answer<'a, Vec<Started>>;

    /// Ends one; `false`: there was none.
    fn end(&self, session: SessionId) -> Answer<'_, bool>;
}

/// Keeps them for as long as the process lives.
#[derive(Default)]
pub struct MemorySessions(Mutex<State>);

#[derive(Default)]
struct State {
    by_id: HashMap<SessionId, Started>,
    by_user: HashMap<UserId, SmallVec<[SessionId; 1]>>,
    by_expiry: BTreeSet<(UnixMillis, SessionId)>,
}

impl State {
    fn forget_expired(&mut self, now: UnixMillis) {
        while let Some((_, session)) = self.by_expiry.first().copied().filter(|(at, _)| *at <= now) {
            self.remove(session);
        }
    }

    fn remove(&mut self, session: SessionId) -> bool {
        let Some(started) = self.by_id.remove(&session) else { return false };
        self.by_expiry.remove(&(started.expires_at, session));
        if let Some(of_user) = self.by_user.get_mut(&started.user) {
            of_user.retain(|one| *one != session);
            if of_user.is_empty() {
                self.by_user.remove(&started.user);
            }
        }
        true
    }

    /// Keeps one more, if there are fewer than `max`.
    fn start(&mut self, started: Started, max: usize) -> Starting {
        if self.by_id.len() >= max {
            return Starting::Full;
        }
        let of_user = self.by_user.entry(started.user.clone()).or_default();
        if of_user.len() >= PER_USER_MAX {
            return Starting::TooManyOfUser;
        }
        of_user.push(started.session);
        self.by_expiry.insert((started.expires_at, started.session));
        self.by_id.insert(started.session, started);
        Starting::Done
    }
}

impl MemorySessions {
    /// What holds now, and nothing that has expired.
    fn now(&self) -> parking_lot::MutexGuard<'_, State> {
        let mut state = self.0.lock();
        state.forget_expired(unix_millis_now());
        state
    }
}

impl StartedSessions for MemorySessions {
    fn start(&self, started: Started) -> Answer<'_, Starting> {
        Box::pin(ready(Ok(self.now().start(started, MAX))))
    }

    fn find(&self, session: SessionId) -> Answer<'_, Option<Started>> {
        Box::pin(ready(Ok(self.now().by_id.get(&session).cloned())))
    }

    fn of_user<'a>(&'a self, user: &'a UserId) -> Answer<'a, Vec<Started>> {
        let state = self.now();
        let ids = state.by_user.get(user).into_iter().flatten();
        let mut sessions: Vec<Started> = ids.filter_map(|id| state.by_id.get(id).cloned()).collect();
        sessions.sort_by_key(|started| (started.expires_at, started.session));
        Box::pin(ready(Ok(sessions)))
    }

    fn end(&self, session: SessionId) -> Answer<'_, bool> {
        Box::pin(ready(Ok(self.now().remove(session))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(user: &str, expires_in: UnixMillis) -> Started {
        let user = UserId::new(user).unwrap();
        Started { session: SessionId::random(), user, expires_at: unix_millis_now() + expires_in }
    }

    #[tokio::test]
    async fn a_session_is_found_until_it_is_ended_or_expires_and_leaves_nothing_behind() {
        let sessions = MemorySessions::default();
        let (one, other, over) = (started("u", 60_000), started("u", 50_000), started("u", 0));
        for each in [&one, &other, &over] {
            assert_eq!(sessions.start(each.clone()).await.unwrap(), Starting::Done);
        }
        assert_eq!(sessions.find(over.session).await.unwrap(), None);
        assert_eq!(sessions.of_user(&one.user).await.unwrap(), [other.clone(), one.clone()]);
        assert!(sessions.end(one.session).await.unwrap());
        assert!(!sessions.end(one.session).await.unwrap());
        assert_eq!(sessions.find(one.session).await.unwrap(), None);
        assert_eq!(sessions.find(other.session).await.unwrap(), Some(other.clone()));
        sessions.end(other.session).await.unwrap();
        let state = sessions.0.lock();
        assert!(state.by_id.is_empty() && state.by_user.is_empty() && state.by_expiry.is_empty());
    }

    #[tokio::test]
    async fn one_user_cannot_take_the_room_of_all() {
        let sessions = MemorySessions::default();
        for _ in 0..PER_USER_MAX {
            assert_eq!(sessions.start(started("u", 60_000)).await.unwrap(), Starting::Done);
        }
        assert_eq!(sessions.start(started("u", 60_000)).await.unwrap(), Starting::TooManyOfUser);
        assert_eq!(sessions.start(started("other", 60_000)).await.unwrap(), Starting::Done);
    }

    #[test]
    fn all_users_together_have_so_many() {
        let mut state = State::default();
        let (one, other) = (started("a", 60_000), started("b", 60_000));
        assert_eq!([&one, &other].map(|each| state.start(each.clone(), 2)), [Starting::Done; 2]);
        assert_eq!(state.start(started("c", 60_000), 2), Starting::Full);
        state.remove(one.session);
        assert_eq!(state.start(started("c", 60_000), 2), Starting::Done);
    }
}
