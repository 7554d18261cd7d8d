//! What happened, and what waits, in memory: for as long as the process lives, and within bounds.

use std::{
    collections::{BTreeMap, VecDeque},
    future::ready,
    sync::Arc,
};

use parking_lot::Mutex;

use super::{Log, MemoryStore};
use crate::{
    event::{Event, UnixMillis, unix_millis_now},
    ids::{NotificationId, UserId},
    placement::shard,
    state::{Reason, State},
    store::{
        Answer,
        journal::{Account, Cancelled, Journal, Mark, Step, Superseding},
        waiting::{Backlog, Ending, Folded, Held, Holding, Waiting},
    },
};

/// Entries of one user's journal.
const STEPS_MAX: usize = 100;
/// Entries that wait for their receipts, over all users; the oldest go first.
const ENDED_MAX: usize = 100_000;
/// The same while nobody writes receipts.
const UNFOLLOWED_MAX: usize = 1_000;
/// Ended ones of a user that stay readable; the oldest go first.
const ENDED_OF_USER_MAX: usize = 100;

/// What has ended, in order, for receipts.
#[derive(Default)]
pub(super) struct Told(Mutex<Ended>);

#[derive(Default)]
struct Ended {
    /// How many were forgotten: the place of the first one kept.
    forgotten: u64,
    steps: VecDeque<Step>,
    receipted: Mark,
    /// Whether somebody has asked where receipts go on.
    is_followed: bool,
}

impl Told {
    fn tell(&self, step: Step) {
        let mut ended = self.0.lock();
        ended.steps.push_back(step);
        let max = if ended.is_followed { ENDED_MAX } else { UNFOLLOWED_MAX };
        if ended.steps.len() > max {
            ended.steps.pop_front();
            ended.forgotten += 1;
        }
    }
}

/// One that waits, or has ended while it waited.
pub(super) struct Waited {
    pub(super) event: Arc<Event>,
    pub(super) ended: Option<Reason>,
    digest: Option<NotificationId>,
    owed: bool,
    stored_at: UnixMillis,
}

impl Log {
    pub(super) fn tell(&mut self, step: Step, told: &Told) {
        if matches!(step.state, State::Active | State::Stale | State::Sent) {
            self.handed = self.handed.max(step.last);
        }
        if step.state.is_end() {
            told.tell(step.clone());
        }
        self.steps.push_back(step);
        if self.steps.len() > STEPS_MAX {
            self.steps.pop_front();
        }
    }

    fn end(&mut self, at: usize, reason: Reason, now: UnixMillis, told: &Told) {
        let waited = &mut self.waiting[at];
        waited.ended = Some(reason);
        let step = Step::ended(&waited.event, 0, reason, now);
        self.tell(step, told);
        if self.waiting.iter().filter(|one| one.ended.is_some()).count() > ENDED_OF_USER_MAX
            && let Some(oldest) = self.waiting.iter().position(|one| one.ended.is_some() && !one.owed)
        {
            self.waiting.remove(oldest);
        }
    }

    fn waits(&self, id: &str) -> Option<usize> {
        self.waiting.iter().position(|one| *one.event.id == *id)
    }

    fn folded(&self) -> Vec<Folded> {
        let mut folded: Vec<Folded> = Vec::new();
        let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for one in self.waiting.iter().filter(|one| one.owed) {
            let Some(digest) = &one.digest else { continue };
            *counts.entry((digest, &one.event.notification_type)).or_default() += 1;
            let at = one.event.recorded_at;
            match folded.iter_mut().find(|folded| folded.digest == *digest) {
                Some(folded) => (folded.from, folded.to) = (folded.from.min(at), folded.to.max(at)),
                None => folded.push(Folded { digest: digest.clone(), counts: Vec::new(), from: at, to: at }),
            }
        }
        for ((digest, of_type), count) in counts {
            let folded = folded.iter_mut().find(|folded| *folded.digest == *digest);
            folded.expect("counted above").counts.push((of_type.into(), count));
        }
        folded
    }
}

impl MemoryStore {
    fn hold_one(&self, Holding { event, digest }: &Holding, now: UnixMillis) -> Held {
        if event.expires_at().is_some_and(|at| at <= now) {
            return Held::Expired;
        }
        let mut stripe = self.stripe(&event.user).lock();
        let log = stripe.users.entry(event.user.clone()).or_default();
        if let Some(seq) = log.known(event, self.config.dedup_window) {
            return Held::Duplicate(seq);
        }
        if let Some(at) = log.waits(&event.id) {
            let there = &log.waiting[at];
            let is_same = there.ended.is_none() || (digest.is_some() && there.digest == *digest);
            return if is_same { Held::Waiting } else { Held::Known };
        }
        let (digest, owed) = (digest.clone(), digest.is_some());
        log.waiting.push(Waited { event: event.clone(), ended: None, digest, owed, stored_at: now });
        if owed {
            let last = log.waiting.len() - 1;
            log.end(last, Reason::Digested, now, &self.told);
        }
        Held::Waiting
    }

    fn cancel_one(&self, user: &UserId, id: &NotificationId, now: UnixMillis) -> Cancelled {
        let mut stripe = self.stripe(user).lock();
        let Some(log) = stripe.users.get_mut(user) else { return Cancelled::Unknown };
        if let Some(at) = log.waits(id) {
            if log.waiting[at].ended.is_some() {
                return Cancelled::Ended(State::Deleted);
            }
            log.end(at, Reason::Cancelled, now, &self.told);
            return Cancelled::Done(None);
        }
        let Some(seq) = log.ids.get(id).copied() else { return Cancelled::Unknown };
        let Some(event) = log.get(seq).cloned() else { return Cancelled::Unknown };
        if log.removed.contains_key(&seq) {
            return Cancelled::Ended(State::Deleted);
        }
        if seq <= log.acknowledged() {
            return Cancelled::Ended(State::Sent);
        }
        if event.expires_at().is_some_and(|at| at <= now) {
            return Cancelled::Ended(State::Deleted);
        }
        log.removed.insert(seq, Reason::Cancelled);
        log.tell(Step::ended(&event, seq, Reason::Cancelled, now), &self.told);
        Cancelled::Done(Some(seq))
    }

    fn account_of(&self, user: &UserId, id: &NotificationId) -> Option<Account> {
        let stripe = self.stripe(user).lock();
        let log = stripe.users.get(user)?;
        let numbered = log.ids.get(id).and_then(|seq| Some((*seq, log.get(*seq)?)));
        let (event, seq, stored_at) = match numbered {
            Some((seq, event)) => (event, Some(seq), event.recorded_at),
            None => {
                let waited = &log.waiting[log.waits(id)?];
                (&waited.event, None, waited.stored_at)
            }
        };
        let covers = |step: &&Step| {
            step.ids.contains(id) || seq.is_some_and(|seq| step.first > 0 && (step.first..=step.last).contains(&seq))
        };
        let retention = super::millis(self.config.retention);
        Some(Account {
            event: (**event).clone(),
            seq,
            stored_at,
            expires_at: event.expires_at().unwrap_or(event.recorded_at.saturating_add(retention)),
            acknowledged: seq.is_some_and(|seq| seq <= log.acknowledged()),
            ended: seq
                .and_then(|seq| log.removed.get(&seq).copied())
                .or_else(|| log.waiting[log.waits(id)?].ended)
                .map(|reason| (reason, stored_at)),
            evicted: false,
            steps: log.steps.iter().filter(covers).cloned().collect(),
        })
    }

    fn supersede_one(&self, Superseding { user, collapse_key, seq, .. }: &Superseding, now: UnixMillis) {
        let mut stripe = self.stripe(user).lock();
        let Some(log) = stripe.users.get_mut(user) else { return };
        let after = log.acknowledged().max(log.handed).max(log.lost);
        let older: Vec<_> = (after + 1..*seq)
            .filter_map(|seq| Some((seq, log.get(seq)?.clone())))
            .filter(|(seq, event)| {
                event.options.collapse_key.as_ref() == Some(collapse_key) && !log.removed.contains_key(seq)
            })
            .collect();
        for (seq, event) in older {
            log.removed.insert(seq, Reason::Superseded);
            log.tell(Step::ended(&event, seq, Reason::Superseded, now), &self.told);
        }
    }

    fn ended(&self, mark: &Mark, limit: usize) -> (Vec<Step>, Mark) {
        let mut steps = {
            let ended = self.told.0.lock();
            let from = mark.0.parse().unwrap_or(0).max(ended.forgotten);
            let at = usize::try_from(from - ended.forgotten).unwrap_or(usize::MAX);
            let steps: Vec<Step> = ended.steps.iter().skip(at).take(limit).cloned().collect();
            (from, steps)
        };
        let next = steps.0 + steps.1.len() as u64;
        for step in steps.1.iter_mut().filter(|step| step.ids.is_empty() || step.state == State::Sent) {
            let stripe = self.stripe(&step.user).lock();
            let Some(log) = stripe.users.get(&step.user) else { continue };
            if step.ids.is_empty() {
                step.ids = (step.first..=step.last).filter_map(|seq| Some(log.get(seq)?.id.clone())).collect();
            }
            // What was taken back, or superseded, has ended already.
            step.ids.retain(|id| log.ids.get(id).is_none_or(|seq| !log.removed.contains_key(seq)));
        }
        (steps.1, Mark(next.to_string()))
    }
}

impl Journal for MemoryStore {
    fn account<'a>(&'a self, user: &'a UserId, id: &'a NotificationId) -> Answer<'a, Option<Account>> {
        Box::pin(ready(Ok(self.account_of(user, id))))
    }

    fn cancel<'a>(&'a self, user: &'a UserId, id: &'a NotificationId) -> Answer<'a, Cancelled> {
        Box::pin(ready(Ok(self.cancel_one(user, id, unix_millis_now()))))
    }

    fn supersede<'a>(&'a self, superseding: &'a [Superseding]) -> Answer<'a, ()> {
        let now = unix_millis_now();
        superseding.iter().for_each(|one| self.supersede_one(one, now));
        Box::pin(ready(Ok(())))
    }

    fn ended_after<'a>(&'a self, mark: &'a Mark, limit: usize) -> Answer<'a, (Vec<Step>, Mark)> {
        Box::pin(ready(Ok(self.ended(mark, limit))))
    }

    fn receipted(&self) -> Answer<'_, Mark> {
        let mut ended = self.told.0.lock();
        ended.is_followed = true;
        Box::pin(ready(Ok(ended.receipted.clone())))
    }

    fn set_receipted<'a>(&'a self, mark: &'a Mark) -> Answer<'a, ()> {
        let mut ended = self.told.0.lock();
        ended.receipted = mark.clone();
        // What has its receipt is kept for nothing more.
        let written = mark.0.parse().unwrap_or(0).max(ended.forgotten) - ended.forgotten;
        let written = usize::try_from(written).unwrap_or(usize::MAX).min(ended.steps.len());
        ended.steps.drain(..written);
        ended.forgotten += written as u64;
        Box::pin(ready(Ok(())))
    }
}

impl Waiting for MemoryStore {
    fn hold<'a>(&'a self, holding: &'a [Holding]) -> Answer<'a, Vec<Held>> {
        let now = unix_millis_now();
        Box::pin(ready(Ok(holding.iter().map(|one| self.hold_one(one, now)).collect())))
    }

    fn end<'a>(&'a self, endings: &'a [Ending]) -> Answer<'a, ()> {
        let now = unix_millis_now();
        for Ending { user, id, reason } in endings {
            let mut stripe = self.stripe(user).lock();
            let Some(log) = stripe.users.get_mut(user) else { continue };
            if let Some(at) = log.waits(id).filter(|at| log.waiting[*at].ended.is_none()) {
                log.end(at, *reason, now, &self.told);
            }
        }
        Box::pin(ready(Ok(())))
    }

    fn digested<'a>(&'a self, digests: &'a [(UserId, NotificationId)]) -> Answer<'a, ()> {
        for (user, digest) in digests {
            let mut stripe = self.stripe(user).lock();
            let Some(log) = stripe.users.get_mut(user) else { continue };
            for one in log.waiting.iter_mut().filter(|one| one.digest.as_ref() == Some(digest)) {
                one.owed = false;
            }
        }
        Box::pin(ready(Ok(())))
    }

    fn backlog<'a>(&'a self, user: &'a UserId) -> Answer<'a, Backlog> {
        let stripe = self.stripe(user).lock();
        let backlog = stripe.users.get(user).map(|log| {
            let waits = log.waiting.iter().filter(|one| one.ended.is_none());
            Backlog { events: waits.map(|one| one.event.clone()).collect(), folded: log.folded() }
        });
        Box::pin(ready(Ok(backlog.unwrap_or_default())))
    }

    fn users_waiting(&self) -> Answer<'_, Vec<UserId>> {
        let waits = |log: &Log| log.waiting.iter().any(|one| one.ended.is_none() || one.owed);
        let of_stripe = |stripe: &Mutex<super::Stripe>| {
            let stripe = stripe.lock();
            let users = stripe.users.iter().filter(|(_, log)| waits(log)).map(|(user, _)| user.clone());
            users.collect::<Vec<_>>()
        };
        let mut users: Vec<_> = self.stripes.iter().flat_map(of_stripe).collect();
        users.sort_by_key(|user| shard(user, u16::MAX).0);
        Box::pin(ready(Ok(users)))
    }
}
