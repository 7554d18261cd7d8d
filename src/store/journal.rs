//! What happened to notifications: one entry for a whole stretch of a user's numbers where that is possible. States
//! are read from it ("why did I not get it?"), and receipts are written from it.

use super::Answer;
use crate::{
    event::{Event, UnixMillis},
    ids::{DeviceId, NotificationId, Sequence, SessionTag, UserId},
    state::{Reason, State},
};

/// One entry of the journal. It never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Whose notifications.
    pub user: UserId,
    /// The first number; 0: what it is about has no number.
    pub first: Sequence,
    /// The last number.
    pub last: Sequence,
    /// The ids of what this is about, in the order of numbers, when they are known; else it is about everything in
    /// `first..=last` that was to be delivered. Never empty where there is no number.
    pub ids: Vec<NotificationId>,
    /// What they are now.
    pub state: State,
    /// Why, where there is a reason.
    pub reason: Option<Reason>,
    /// On which session.
    pub session: Option<SessionTag>,
    /// On which device.
    pub device: Option<DeviceId>,
    /// When that session was given the first of them, where this says that they were acknowledged.
    pub handed_at: Option<UnixMillis>,
    /// When.
    pub at: UnixMillis,
}

impl Step {
    /// One notification must not be delivered any more; `seq` 0: it never had a number.
    #[must_use]
    pub fn ended(event: &Event, seq: Sequence, reason: Reason, at: UnixMillis) -> Self {
        Self {
            user: event.user.clone(),
            first: seq,
            last: seq,
            ids: vec![event.id.clone()],
            state: State::Deleted,
            reason: Some(reason),
            session: None,
            device: None,
            handed_at: None,
            at,
        }
    }
}

/// A place in the journal: everything before it is complete and stays so. Its text is the engine's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark(pub String);

/// All that the store knows of one notification.
#[derive(Clone, Debug)]
pub struct Account {
    /// What it is.
    pub event: Event,
    /// Its number, if it ever got one.
    pub seq: Option<Sequence>,
    /// When it was stored.
    pub stored_at: UnixMillis,
    /// When it must not be delivered any more.
    pub expires_at: UnixMillis,
    /// How it was ended, as long as that is remembered beside the journal, and when.
    pub ended: Option<(Reason, UnixMillis)>,
    /// Whether some device has acknowledged its number.
    pub acknowledged: bool,
    /// Whether the cap of the user's log took it.
    pub evicted: bool,
    /// What happened to it, oldest first; at most the last hundred.
    pub steps: Vec<Step>,
}

/// One thing that happened to a notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happened {
    /// What it was from then on, as this session saw it.
    pub state: State,
    /// Why, where there is a reason.
    pub reason: Option<Reason>,
    /// On which session.
    pub session: Option<SessionTag>,
    /// On which device.
    pub device: Option<DeviceId>,
    /// When.
    pub at: UnixMillis,
}

impl Account {
    /// What happened to it, in the order of time: it was stored, and then what the journal says. Sessions from before
    /// `sessions_since` are lost, whether somebody could note that or not. Its time may have come by `now`.
    #[must_use]
    pub fn history(&self, now: UnixMillis, sessions_since: UnixMillis) -> Vec<Happened> {
        let alone = |state, reason, at| Happened { state, reason, session: None, device: None, at };
        let mut history = vec![alone(State::Pending, None, self.stored_at)];
        for step in &self.steps {
            let of_step = |state, at: UnixMillis| Happened {
                state,
                reason: step.reason,
                session: step.session,
                device: step.device.clone(),
                // Of a stretch of numbers it is the first one's time.
                at: at.max(self.stored_at),
            };
            history.extend(step.handed_at.map(|at| of_step(State::Active, at)));
            history.push(of_step(step.state, step.at));
        }
        history.sort_by_key(|happened| happened.at);
        // A stretch of numbers may go over some that had ended, and were given to nobody any more.
        let expired_at = (!self.acknowledged && self.expires_at <= now).then_some(self.expires_at);
        let deleted_at = history.iter().find(|happened| happened.state == State::Deleted).map(|deleted| deleted.at);
        let over_at = deleted_at.or(self.ended.map(|(_, at)| at)).or(expired_at);
        history.retain(|one| one.state == State::Deleted || over_at.is_none_or(|over| one.at <= over));
        let last_given = history.iter().rev().find(|happened| happened.state == State::Active).map(|given| given.at);
        if standing(&history).0 == State::Active && last_given.is_some_and(|at| at < sessions_since) {
            history.push(alone(State::Stale, None, sessions_since));
        }
        let ended = history.iter().any(|happened| happened.state.is_end());
        if let (false, Some((reason, at))) = (ended, self.ended) {
            history.push(alone(State::Deleted, Some(reason), at));
        } else if !ended && self.acknowledged {
            // The journal keeps less than the log.
            history.push(alone(State::Sent, None, last_given.unwrap_or(self.stored_at)));
        } else if !ended && self.evicted {
            history.push(alone(State::Deleted, Some(Reason::Evicted), now));
        } else if !ended && self.expires_at <= now {
            history.push(alone(State::Deleted, Some(Reason::Expired), self.expires_at));
        }
        history
    }
}

/// How a notification stands after all that happened to it, and why.
#[must_use]
pub fn standing(history: &[Happened]) -> (State, Option<Reason>) {
    let mut stands = (State::Pending, None);
    for happened in history {
        if stands.0.may_become(happened.state) {
            stands = (happened.state, happened.reason);
        }
    }
    stands
}

/// What became of the wish that a notification is not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// It will not be delivered from here on; its number, if it had one.
    Done(Option<Sequence>),
    /// It had ended already, as this.
    Ended(State),
    /// Nothing is known of such a notification.
    Unknown,
}

/// A numbered notification that takes the place of older ones with the same collapse key, as long as nobody was given them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superseding {
    /// Whose.
    pub user: UserId,
    /// The key.
    pub collapse_key: Box<str>,
    /// Its number: older is what stands below.
    pub seq: Sequence,
    /// From this number on those with the key came together: there may be many. Of what is older, all but the last few
    /// are superseded already.
    pub together_from: Sequence,
}

/// Keeps what happened. Entries of [`super::Store::acknowledge`] are written together with the cursors that they belong to.
pub trait Journal: Send + Sync + 'static {
    /// One notification's account; `None`: it is not known, or not any more.
    fn account<'a>(&'a self, user: &'a UserId, id: &'a NotificationId) -> Answer<'a, Option<Account>>;

    /// Sees that a notification, numbered or waiting, is not delivered, and notes that.
    fn cancel<'a>(&'a self, user: &'a UserId, id: &'a NotificationId) -> Answer<'a, Cancelled>;

    /// Sees that what is superseded is not delivered, and notes that. What some device has acknowledged, or some session
    /// was given, stays.
    fn supersede<'a>(&'a self, superseding: &'a [Superseding]) -> Answer<'a, ()>;

    /// Entries that say that something has ended, in an order in which none can come before what was read once: the next
    /// ones after `mark`, at most `limit`, and the mark behind the last of them. Ids are filled in where the log has them.
    fn ended_after<'a>(&'a self, mark: &'a Mark, limit: usize) -> Answer<'a, (Vec<Step>, Mark)>;

    /// Up to where receipts have been written; nothing yet: the journal's beginning.
    fn receipted(&self) -> Answer<'_, Mark>;

    /// Notes up to where receipts have been written.
    fn set_receipted<'a>(&'a self, mark: &'a Mark) -> Answer<'a, ()>;
}
