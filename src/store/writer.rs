//! Write lanes: group commit between actors and the store. Each shard belongs to one lane; a lane has one
//! call to the store under way, and takes everything that came meanwhile into the next. So rows of one
//! user stay in order, and a slow store makes larger groups instead of longer queues. Nobody waits for cursors and
//! for what the journal is told: they have lanes of their own ([`notes`]), so that no event waits for them either.

mod group;
mod notes;

use std::{sync::Arc, time::Duration};

use ractor::DerivedActorRef;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use self::{
    group::{Alone, Cancelling, Entrant, Group, Write},
    notes::{Note, Notes},
};
use super::{
    Acknowledgement, Appended, Error, Grouping, Opened, Opening, Store, Try,
    journal::{Cancelled, Step},
    metric,
    waiting::{Backlog, Ending, Held, Holding},
};
use crate::{
    backoff::Backoff,
    event::{Event, InFlight, unix_millis_now},
    health::Health,
    ids::{NotificationId, UserId},
    placement::shard,
    state::{Reason, State},
};

/// The most rows of one call to the store.
const GROUP_MAX: usize = 512;
/// A failure within this time that does not come again is not the store's.
const SOON: Duration = Duration::from_secs(1);
/// The health part that says whether the store answers.
const HEALTH_PART: &str = "store";

/// Hands writes to their lanes. Cheap to clone. The queues need no bound of their own: every append and every hold has
/// a permit, what is released has waited within bounds, and appends wait while very many notes do.
#[derive(Clone)]
pub struct Writer {
    lanes: Arc<[mpsc::UnboundedSender<Write>]>,
    notes: Notes,
    opens: mpsc::UnboundedSender<Open>,
    store: Arc<dyn Store>,
    lost: Lost,
}

/// Hears what became of a cancellation; it is dropped when that cannot be said.
pub type CancelReply = oneshot::Sender<Cancelled>;

/// A log to be opened.
type Open = (Opening, OnOpened);

/// What is done with the marks of a log that was opened.
pub type OnOpened = Box<dyn FnOnce(Opened) + Send>;

/// What is done with what waits for a user.
pub type OnBacklog = Box<dyn FnOnce(Backlog) + Send>;

/// Who hears what became of writes.
pub type Reply = DerivedActorRef<Written>;

/// What became of a write.
#[derive(Debug)]
pub enum Written {
    /// The answer to [`Writer::append`]: the event with its permit comes back.
    Stored {
        /// What was appended.
        in_flight: InFlight,
        /// What became of it.
        outcome: Appended,
    },
    /// The answer to [`Writer::release`].
    Released {
        /// What was appended.
        event: Arc<Event>,
        /// What became of it.
        outcome: Appended,
    },
    /// The answer to [`Writer::hold`].
    Held {
        /// What was held back.
        in_flight: InFlight,
        /// What became of it.
        outcome: Held,
    },
}

impl Writer {
    /// Starts the lanes; they end when the last clone of the writer is dropped and all is written.
    #[must_use]
    pub fn start(store: &Arc<dyn Store>, health: &Health, lost: &Lost) -> Self {
        health.ready(HEALTH_PART);
        let patient = Patient { inner: store.clone(), health: health.clone(), lost: lost.clone() };
        let notes = Notes::start(&patient);
        let Grouping { lanes, interval } = store.grouping();
        let lanes = (0..lanes.max(1)).map(|_| {
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(Lane { store: patient.clone(), notes: notes.clone() }.run(receiver, interval));
            sender
        });
        let lanes = lanes.collect();
        let (opens, opening) = mpsc::unbounded_channel();
        tokio::spawn(patient.run_opens(opening));
        Self { lanes, notes, opens, store: store.clone(), lost: lost.clone() }
    }

    fn send(&self, user: &str, write: Write) {
        // A lane that is gone drops the write, and with it the permit, which reports the event as lost.
        let _ = of_user(&self.lanes, user).send(write);
    }

    /// Stores an event; `reply` gets it back with its number, in the order in which this and [`Self::release`] were
    /// called. `alone`: no session is open, so that older ones with its collapse key that nobody was given go.
    pub fn append(&self, mut in_flight: InFlight, alone: bool, reply: Reply) {
        in_flight.permit.pause();
        #[cfg(feature = "mutants")]
        if crate::mutant::is(crate::mutant::Mutant::SettlesEarly) {
            in_flight.permit.settle_early();
        }
        let user = in_flight.event.user.clone();
        self.send(&user, Write::Append { entrant: Entrant::New { in_flight, alone }, reply });
    }

    /// Gives a number to one that has waited, or to a digest of such.
    pub fn release(&self, event: Arc<Event>, reply: Reply) {
        let user = event.user.clone();
        self.send(&user, Write::Append { entrant: Entrant::Released(event), reply });
    }

    /// Stores an event without a number, until it is released; with a digest, only to be counted in it.
    pub fn hold(&self, mut in_flight: InFlight, digest: Option<NotificationId>, reply: Reply) {
        in_flight.permit.pause();
        let user = in_flight.event.user.clone();
        self.send(&user, Write::Hold { in_flight, digest, reply });
    }

    /// Ends one that waits.
    pub fn end(&self, ending: Ending) {
        self.send(&ending.user.clone(), Write::End(ending));
    }

    /// A digest is in the log: it is not owed any more.
    pub fn digested(&self, user: UserId, digest: NotificationId) {
        self.send(&user.clone(), Write::Digested(user, digest));
    }

    /// Raises a cursor, and says in the journal what that means. The numbers are stored: somebody was given them.
    pub fn acknowledge(&self, acknowledgement: Acknowledgement, steps: Vec<Step>) {
        self.notes.send(&acknowledgement.user.clone(), Note::Raise(Some(acknowledgement), steps));
    }

    /// Opens a log, beside the writes: many users' in one query. `answer` is dropped when that cannot be.
    pub fn open(&self, opening: Opening, answer: OnOpened) {
        if !self.notes.has_unwritten(&opening.user) {
            let _ = self.opens.send((opening, answer));
            return;
        }
        // What was acknowledged a moment ago counts, but not before it is stored: a cursor never goes down.
        let (notes, opens) = (self.notes.clone(), self.opens.clone());
        tokio::spawn(async move {
            notes.written_of(&opening.user).await;
            let _ = opens.send((opening, answer));
        });
    }

    /// Sees that a notification is not delivered, behind the writes before this and before those after it.
    pub fn cancel(&self, user: UserId, id: NotificationId, reply: CancelReply) {
        self.send(&user.clone(), Write::Alone(Alone::Cancel(Cancelling { user, id, reply })));
    }

    /// Asks what waits for a user, behind the writes before this. `answer` is dropped when that cannot be.
    pub fn backlog(&self, user: UserId, answer: OnBacklog) {
        self.send(&user.clone(), Write::Backlog(user, answer));
    }

    /// The log lacks what somebody has seen in it: it gets another epoch, and this process has to begin anew.
    pub fn went_back(&self, reason: String) {
        tracing::error!(reason, "the store went back");
        let (store, lost) = (self.store.clone(), self.lost.clone());
        tokio::spawn(async move {
            let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
            while let Err(Error::Unavailable { .. }) = store.begin_epoch().await {
                tokio::time::sleep(backoff.next_wait()).await;
            }
            let _ = lost.send(Error::Lost { reason });
        });
    }

    /// Adds to the journal.
    pub fn note(&self, step: Step) {
        self.notes.send(&step.user.clone(), Note::Raise(None, vec![step]));
    }

    /// Answers when all writes from before are done, notes too. Cancel safe.
    pub async fn flushed(&self) {
        for lane in self.lanes.iter() {
            let (answer, flushed) = oneshot::channel();
            if lane.send(Write::Alone(Alone::Flushed(answer))).is_ok() {
                let _ = flushed.await;
            }
        }
        self.noted().await;
    }

    /// Answers when all is written that was to be acknowledged or noted before. Cancel safe.
    pub async fn noted(&self) {
        self.notes.written().await;
    }
}

/// Hears why the store is not this process's any more.
pub type Lost = mpsc::UnboundedSender<Error>;

/// A store that is asked until it answers.
#[derive(Clone)]
struct Patient {
    inner: Arc<dyn Store>,
    health: Health,
    lost: Lost,
}

struct Lane {
    store: Patient,
    notes: Notes,
}

impl Lane {
    async fn run(self, mut queue: mpsc::UnboundedReceiver<Write>, interval: Duration) {
        let mut writes = Vec::with_capacity(GROUP_MAX);
        let mut next = Instant::now();
        while gather(&mut queue, &mut writes, || next, |_| false).await {
            next = Instant::now() + interval;
            let mut group = Group::default();
            for write in writes.drain(..) {
                let Some(alone) = group.add(write) else { continue };
                self.write(std::mem::take(&mut group)).await;
                match alone {
                    Alone::Cancel(cancelling) => self.cancel(cancelling).await,
                    Alone::Flushed(answer) => _ = answer.send(()),
                }
            }
            self.write(group).await;
        }
    }

    async fn cancel(&self, Cancelling { user, id, reply }: Cancelling) {
        if !reply.is_closed() {
            self.notes.written_of(&user).await;
            let _ = reply.send(self.store.until_done(|store, _| store.cancel(&user, &id)).await);
        }
    }

    async fn write(&self, mut group: Group) {
        let first = std::mem::take(&mut group.first);
        self.append(first, &mut group).await;
        self.hold(std::mem::take(&mut group.holds)).await;
        let appends = std::mem::take(&mut group.appends);
        self.append(appends, &mut group).await;
        let Group { endings, digests, superseding, backlogs, .. } = group;
        if !endings.is_empty() {
            self.store.until_done(|store, _| store.end(&endings)).await;
        }
        if !digests.is_empty() {
            self.store.until_done(|store, _| store.digested(&digests)).await;
        }
        if !superseding.is_empty() {
            // Behind the acknowledgements: what somebody has stays.
            let superseding: Vec<_> = superseding.into_values().collect();
            self.notes.written_of(&superseding[0].user).await;
            self.store.until_done(|store, _| store.supersede(&superseding)).await;
        }
        for (user, answer) in backlogs {
            answer(self.store.until_done(|store, _| store.backlog(&user)).await);
        }
    }

    async fn hold(&self, holds: Vec<(InFlight, Option<NotificationId>, Reply)>) {
        if holds.is_empty() {
            return;
        }
        let holding = |(in_flight, digest, _): &(InFlight, Option<NotificationId>, _)| Holding {
            event: in_flight.event.clone(),
            digest: digest.clone(),
        };
        let holding: Vec<_> = holds.iter().map(holding).collect();
        let began = Instant::now();
        let outcomes = self.store.until_done(|store, _| store.hold(&holding)).await;
        metric::wrote(holding.len(), began.elapsed());
        let events: Vec<_> = holding.into_iter().map(|one| one.event).collect();
        let ends = |held: &Held| match held {
            Held::Expired => Appended::Expired,
            Held::Refused => Appended::Refused,
            _ => Appended::Known,
        };
        self.note_ends(&events, &outcomes.iter().map(ends).collect::<Vec<_>>()).await;
        for ((in_flight, _, reply), outcome) in holds.into_iter().zip(outcomes) {
            let _ = reply.send_message(Written::Held { in_flight, outcome });
        }
    }

    async fn append(&self, appends: Vec<(Entrant, Reply)>, group: &mut Group) {
        if appends.is_empty() {
            return;
        }
        let events: Vec<_> = appends.iter().map(|(entrant, _)| entrant.event().clone()).collect();
        self.notes.keep_up(&events[0].user).await;
        let began = Instant::now();
        let outcomes = self.store.until_done(|store, _| store.append(&events)).await;
        metric::wrote(events.len(), began.elapsed());
        self.note_ends(&events, &outcomes).await;
        for ((entrant, reply), outcome) in appends.into_iter().zip(outcomes) {
            let written = match entrant {
                Entrant::New { in_flight, alone } => {
                    if alone {
                        group.supersede(&in_flight.event, outcome);
                    }
                    Written::Stored { in_flight, outcome }
                }
                Entrant::Released(event) => Written::Released { event, outcome },
            };
            // An actor that is gone leaves the permit to its Drop: the event comes again and finds its row.
            let _ = reply.send_message(written);
        }
    }

    /// Says in the journal what has ended without a row, before it counts as settled. A copy of one that has a row, or
    /// has had one, has not ended with it.
    async fn note_ends(&self, events: &[Arc<Event>], outcomes: &[Appended]) {
        let mut steps = Vec::new();
        for (event, outcome) in events.iter().zip(outcomes) {
            let (state, reason) = match outcome {
                Appended::Expired => (State::Deleted, Reason::Expired),
                Appended::Refused => (State::Failed, Reason::Unstorable),
                _ => continue,
            };
            if self.store.until_done(|store, _| store.account(&event.user, &event.id)).await.is_none() {
                steps.push(Step { state, ..Step::ended(event, 0, reason, unix_millis_now()) });
            }
        }
        if !steps.is_empty() {
            self.store.until_done(|store, attempt| store.acknowledge(&[], &steps, attempt)).await;
        }
    }
}

/// The lane of a user's shard: the same of writes and of notes, of which there are as many.
fn of_user<'a, T>(lanes: &'a [T], user: &str) -> &'a T {
    let count = u16::try_from(lanes.len()).expect("started with a u16");
    &lanes[usize::from(shard(user, count).0)]
}

/// Takes what comes until that time (asked for when the first one is there), or until one `is_awaited` by somebody.
/// Whether there is anything.
async fn gather<T>(
    queue: &mut mpsc::UnboundedReceiver<T>,
    into: &mut Vec<T>,
    until: impl FnOnce() -> Instant,
    is_awaited: impl Fn(&T) -> bool,
) -> bool {
    let mut seen = 0;
    if queue.recv_many(into, GROUP_MAX).await == 0 {
        return false;
    }
    let until = until();
    while Instant::now() < until && into.len() < GROUP_MAX && !into[seen..].iter().any(&is_awaited) {
        seen = into.len();
        match timeout_at(until, queue.recv_many(into, GROUP_MAX - seen)).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    true
}

impl Patient {
    /// Calls until the store answers; what waits here holds its credit, so that reading stops.
    async fn until_done<'a, T>(&'a self, call: impl Fn(&'a dyn Store, Try) -> super::Answer<'a, T>) -> T {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
        let mut attempt = Try::First;
        let began = Instant::now();
        loop {
            match call(&*self.inner, attempt).await {
                Ok(answer) => {
                    if attempt == Try::Again {
                        self.health.ready(HEALTH_PART);
                    }
                    return answer;
                }
                Err(error @ Error::Lost { .. }) => {
                    // What waits here keeps its permits: nobody may believe that it is settled.
                    self.health.not_ready(HEALTH_PART, error.to_string());
                    let _ = self.lost.send(error);
                    std::future::pending::<()>().await;
                }
                Err(error @ Error::Unavailable { .. }) => {
                    tracing::warn!(%error, "a call to the store failed, trying again");
                    // A call that fails at once and not again, as when an epoch was raised beside it, is no store away.
                    if attempt == Try::Again || began.elapsed() >= SOON {
                        self.health.not_ready(HEALTH_PART, error.to_string());
                    }
                    attempt = Try::Again;
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        }
    }

    async fn run_opens(self, mut queue: mpsc::UnboundedReceiver<Open>) {
        let mut asked = Vec::with_capacity(GROUP_MAX);
        while queue.recv_many(&mut asked, GROUP_MAX).await > 0 {
            let (opening, answers): (Vec<_>, Vec<_>) = asked.drain(..).unzip();
            let opened = self.until_done(|store, _| store.open_all(&opening)).await;
            answers.into_iter().zip(opened).for_each(|(answer, opened)| answer(opened));
        }
    }
}

#[cfg(test)]
mod tests;
