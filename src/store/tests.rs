//! A store whose answers fail or come late, for tests of those who ask; and what every engine promises.

mod bounds;
mod claims;
mod contract;
mod databases;
mod faults;
mod former_owner;
mod journal;
mod measure;
mod membership;
mod memory_membership;
mod plans;
mod states;

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::{
    Acknowledgement, Answer, Appended, Error, Grouping, Opened, Opening, Page, PageLimit, Store, Try,
    journal::{Account, Cancelled, Journal, Mark, Step, Superseding},
    memory::{Config, MemoryStore},
    waiting::{Backlog, Ending, Held, Holding, Waiting},
};
use crate::{
    event::Event,
    ids::{LogEpoch, NotificationId, Sequence, UserId},
};

/// A call to a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    Open,
    Append,
    Read,
    Acknowledge,
    Hold,
    Backlog,
    BeginEpoch,
    Supersede,
}

#[derive(Default)]
struct Plan {
    /// Calls still to fail, without effect.
    failures: usize,
    /// How long an answer takes; what it says is decided at once.
    delay: Duration,
    made: usize,
}

/// The store in memory behind a plan of faults.
pub(crate) struct FaultyStore {
    memory: MemoryStore,
    plans: Mutex<HashMap<Call, Plan>>,
    interval: Mutex<Duration>,
}

impl FaultyStore {
    /// Without faults, and with so many notifications a user.
    pub(crate) fn new(per_user_max: usize) -> Arc<Self> {
        let day = Duration::from_secs(86_400);
        let config = Config { retention: 7 * day, per_user_max, dedup_window: day, bytes_max: 1 << 30 };
        Arc::new(Self { memory: MemoryStore::new(config), plans: Mutex::default(), interval: Mutex::default() })
    }

    /// The next `times` calls fail.
    pub(crate) fn fail(&self, call: Call, times: usize) {
        self.plans.lock().entry(call).or_default().failures = times;
    }

    /// Answers take so long from now on.
    pub(crate) fn delay(&self, call: Call, delay: Duration) {
        self.plans.lock().entry(call).or_default().delay = delay;
    }

    /// What its grouping says.
    pub(crate) fn begin_no_two_calls_within(&self, interval: Duration) {
        *self.interval.lock() = interval;
    }

    /// How often it was called, failures included.
    pub(crate) fn made(&self, call: Call) -> usize {
        self.plans.lock().entry(call).or_default().made
    }

    /// Appends without a fault.
    pub(crate) async fn fill(&self, events: &[Arc<Event>]) {
        self.memory.append(events).await.unwrap();
    }

    /// User 101's log is as it was when it had so many.
    pub(crate) fn forget(&self, kept: Sequence) {
        self.memory.go_back(&crate::fakes::user(), kept);
    }

    /// A device's cursor, without a fault.
    pub(crate) async fn cursor(&self, user: &UserId) -> Sequence {
        self.memory.open(user, None).await.unwrap().cursor
    }

    fn answer<'a, T, F>(&'a self, call: Call, ask: impl FnOnce() -> F + Send + 'a) -> Answer<'a, T>
    where
        T: Send + 'a,
        F: Future<Output = Result<T, Error>> + Send + 'a,
    {
        let mut plans = self.plans.lock();
        let plan = plans.entry(call).or_default();
        plan.made += 1;
        let (fails, delay) = (plan.failures > 0, plan.delay);
        plan.failures = plan.failures.saturating_sub(1);
        Box::pin(async move {
            let answer = if fails { Err(Error::Unavailable { reason: "as planned".into() }) } else { ask().await };
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            answer
        })
    }
}

impl Store for FaultyStore {
    fn epoch(&self) -> LogEpoch {
        self.memory.epoch()
    }

    fn open_all<'a>(&'a self, opening: &'a [Opening]) -> Answer<'a, Vec<Opened>> {
        self.answer(Call::Open, move || self.memory.open_all(opening))
    }

    fn append<'a>(&'a self, events: &'a [Arc<Event>]) -> Answer<'a, Vec<Appended>> {
        self.answer(Call::Append, move || self.memory.append(events))
    }

    fn read<'a>(&'a self, user: &'a UserId, after: Sequence, limit: PageLimit) -> Answer<'a, Page> {
        self.answer(Call::Read, move || self.memory.read(user, after, limit))
    }

    fn grouping(&self) -> Grouping {
        Grouping { lanes: 2, interval: *self.interval.lock() }
    }

    fn acknowledge<'a>(
        &'a self,
        acknowledged: &'a [Acknowledgement],
        steps: &'a [Step],
        attempt: Try,
    ) -> Answer<'a, ()> {
        self.answer(Call::Acknowledge, move || self.memory.acknowledge(acknowledged, steps, attempt))
    }

    fn was(&self, _: &str) -> bool {
        false
    }

    fn begin_epoch(&self) -> Answer<'_, ()> {
        self.answer(Call::BeginEpoch, || async { Ok(()) })
    }

    fn check(&self) -> Answer<'_, ()> {
        self.memory.check()
    }

    fn tidy(&self) -> Answer<'_, ()> {
        self.memory.tidy()
    }
}

impl Journal for FaultyStore {
    fn account<'a>(&'a self, user: &'a UserId, id: &'a NotificationId) -> Answer<'a, Option<Account>> {
        self.memory.account(user, id)
    }

    fn cancel<'a>(&'a self, user: &'a UserId, id: &'a NotificationId) -> Answer<'a, Cancelled> {
        self.memory.cancel(user, id)
    }

    fn supersede<'a>(&'a self, superseding: &'a [Superseding]) -> Answer<'a, ()> {
        self.answer(Call::Supersede, move || self.memory.supersede(superseding))
    }

    fn ended_after<'a>(&'a self, mark: &'a Mark, limit: usize) -> Answer<'a, (Vec<Step>, Mark)> {
        self.memory.ended_after(mark, limit)
    }

    fn receipted(&self) -> Answer<'_, Mark> {
        self.memory.receipted()
    }

    fn set_receipted<'a>(&'a self, mark: &'a Mark) -> Answer<'a, ()> {
        self.memory.set_receipted(mark)
    }
}

impl Waiting for FaultyStore {
    fn hold<'a>(&'a self, holding: &'a [Holding]) -> Answer<'a, Vec<Held>> {
        self.answer(Call::Hold, move || self.memory.hold(holding))
    }

    fn end<'a>(&'a self, endings: &'a [Ending]) -> Answer<'a, ()> {
        self.memory.end(endings)
    }

    fn digested<'a>(&'a self, digests: &'a [(UserId, NotificationId)]) -> Answer<'a, ()> {
        self.memory.digested(digests)
    }

    fn backlog<'a>(&'a self, user: &'a UserId) -> Answer<'a, Backlog> {
        self.answer(Call::Backlog, move || self.memory.backlog(user))
    }

    fn users_waiting(&self) -> Answer<'_, Vec<UserId>> {
        self.memory.users_waiting()
    }
}
