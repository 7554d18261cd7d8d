//! Write lanes: group commit between actors and the store. Each shard belongs to one lane; a lane has one
//! call to the store under way, and takes everything that came meanwhile into the next. So rows of one
//! user stay in order, and a slow store makes larger groups instead of longer queues.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ractor::DerivedActorRef;
use tokio::sync::{mpsc, oneshot};

use super::{
    Acknowledgement, Appended, Entering, Error, Opened, Opening, Store,
    journal::{Cancelled, Step, Superseding},
    metric,
    waiting::{Ending, Held, Holding},
};
use crate::{
    backoff::Backoff,
    event::{Event, InFlight},
    health::Health,
    ids::{NotificationId, UserId},
    placement::shard,
};

/// The most rows of one call to the store.
const GROUP_MAX: usize = 512;
/// The health part that says whether the store answers.
const HEALTH_PART: &str = "store";

/// Hands writes to their lanes. Cheap to clone. The queues need no bound of their own: every append and every hold has
/// a permit, what is released has waited within bounds, and acknowledgements of one cursor are bounded by the session's
/// window.
#[derive(Clone)]
pub struct Writer {
    lanes: Arc<[mpsc::UnboundedSender<Write>]>,
    store: Arc<dyn Store>,
    lost: Lost,
}

/// One write for a user. Those of one group are done in the order of their kinds here; of one kind, in the order given.
enum Write {
    Hold {
        in_flight: InFlight,
        digest: Option<NotificationId>,
        reply: Reply,
    },
    Append {
        entrant: Entrant,
        reply: Reply,
    },
    End(Ending),
    Digested(UserId, NotificationId),
    Raise(Option<Acknowledgement>, Vec<Step>),
    Open(Opening, OnOpened),
    /// Behind everything before it.
    Cancel(UserId, NotificationId, oneshot::Sender<Cancelled>),
}

/// What enters the log.
enum Entrant {
    /// An event of a producer's. `alone`: nobody has a session open, so that it may supersede what nobody was given.
    New { in_flight: InFlight, alone: bool },
    /// One that has waited, or a digest.
    Released(Entering),
}

/// What is done with the marks of a log that was opened.
pub type OnOpened = Box<dyn FnOnce(Opened) + Send>;

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
    /// Starts `lanes` lanes; they end when the last clone of the writer is dropped and all is written.
    #[must_use]
    pub fn start(store: &Arc<dyn Store>, lanes: u16, health: &Health, lost: &Lost) -> Self {
        health.ready(HEALTH_PART);
        let lanes = (0..lanes.max(1)).map(|_| {
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(Lane { store: store.clone(), health: health.clone(), lost: lost.clone() }.run(receiver));
            sender
        });
        Self { lanes: lanes.collect(), store: store.clone(), lost: lost.clone() }
    }

    fn send(&self, user: &str, write: Write) {
        let count = u16::try_from(self.lanes.len()).expect("started with a u16");
        // A lane that is gone drops the write, and with it the permit, which reports the event as lost.
        let _ = self.lanes[usize::from(shard(user, count).0)].send(write);
    }

    /// Stores an event; `reply` gets it back with its number, in the order in which this and [`Self::release`] were
    /// called. `alone`: no session is open, so that older ones with its collapse key that nobody was given go.
    pub fn append(&self, mut in_flight: InFlight, alone: bool, reply: Reply) {
        in_flight.permit.pause();
        let user = in_flight.event.user.clone();
        self.send(&user, Write::Append { entrant: Entrant::New { in_flight, alone }, reply });
    }

    /// Gives a number to one that has waited, or to a digest of such.
    pub fn release(&self, event: Arc<Event>, reply: Reply) {
        let user = event.user.clone();
        self.send(&user, Write::Append { entrant: Entrant::Released(Entering { event, waited: true }), reply });
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

    /// Raises a cursor, after the appends before it, and says in the journal what that means.
    pub fn acknowledge(&self, acknowledgement: Acknowledgement, steps: Vec<Step>) {
        self.send(&acknowledgement.user.clone(), Write::Raise(Some(acknowledgement), steps));
    }

    /// Opens a log, behind the writes before this: many users' in one query. `answer` is dropped when that cannot be.
    pub fn open(&self, opening: Opening, answer: OnOpened) {
        self.send(&opening.user.clone(), Write::Open(opening, answer));
    }

    /// Sees that a notification is not delivered, behind the writes before this and before those after it.
    pub fn cancel(&self, user: UserId, id: NotificationId, reply: oneshot::Sender<Cancelled>) {
        self.send(&user.clone(), Write::Cancel(user, id, reply));
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
        self.send(&step.user.clone(), Write::Raise(None, vec![step]));
    }
}

/// Hears why the store is not this process's any more.
pub type Lost = mpsc::UnboundedSender<Error>;

struct Lane {
    store: Arc<dyn Store>,
    health: Health,
    lost: Lost,
}

/// The writes of one call each.
#[derive(Default)]
struct Group {
    holds: Vec<(InFlight, Option<NotificationId>, Reply)>,
    appends: Vec<(Entrant, Reply)>,
    endings: Vec<Ending>,
    digests: Vec<(UserId, NotificationId)>,
    acknowledged: Vec<Acknowledgement>,
    steps: Vec<Step>,
    opening: Vec<Opening>,
    on_opened: Vec<OnOpened>,
}

impl Group {
    /// Takes a write; one that has to be alone comes back.
    fn add(&mut self, write: Write) -> Option<(UserId, NotificationId, oneshot::Sender<Cancelled>)> {
        match write {
            Write::Hold { in_flight, digest, reply } => self.holds.push((in_flight, digest, reply)),
            Write::Append { entrant, reply } => self.appends.push((entrant, reply)),
            Write::End(ending) => self.endings.push(ending),
            Write::Digested(user, digest) => self.digests.push((user, digest)),
            Write::Raise(acknowledgement, steps) => {
                self.acknowledged.extend(acknowledgement);
                self.steps.extend(steps);
            }
            Write::Open(opening, answer) => {
                self.opening.push(opening);
                self.on_opened.push(answer);
            }
            Write::Cancel(user, id, reply) => return Some((user, id, reply)),
        }
        None
    }
}

impl Lane {
    async fn run(self, mut queue: mpsc::UnboundedReceiver<Write>) {
        let mut writes = Vec::with_capacity(GROUP_MAX);
        while queue.recv_many(&mut writes, GROUP_MAX).await > 0 {
            let mut group = Group::default();
            for write in writes.drain(..) {
                if let Some((user, id, reply)) = group.add(write) {
                    self.write(std::mem::take(&mut group)).await;
                    let _ = reply.send(self.until_done(|| self.store.cancel(&user, &id)).await);
                }
            }
            self.write(group).await;
        }
    }

    async fn write(&self, group: Group) {
        let Group { holds, appends, endings, digests, acknowledged, steps, opening, on_opened } = group;
        self.hold(holds).await;
        self.append(appends).await;
        if !endings.is_empty() {
            self.until_done(|| self.store.end(&endings)).await;
        }
        if !digests.is_empty() {
            self.until_done(|| self.store.digested(&digests)).await;
        }
        if !acknowledged.is_empty() || !steps.is_empty() {
            let acknowledged = highest(acknowledged);
            self.until_done(|| self.store.acknowledge(&acknowledged, &steps)).await;
        }
        if !opening.is_empty() {
            let opened = self.until_done(|| self.store.open_all(&opening)).await;
            on_opened.into_iter().zip(opened).for_each(|(answer, opened)| answer(opened));
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
        let outcomes = self.until_done(|| self.store.hold(&holding)).await;
        metric::wrote(holding.len(), began.elapsed());
        for ((in_flight, _, reply), outcome) in holds.into_iter().zip(outcomes) {
            let _ = reply.send_message(Written::Held { in_flight, outcome });
        }
    }

    async fn append(&self, appends: Vec<(Entrant, Reply)>) {
        if appends.is_empty() {
            return;
        }
        let entering = |(one, _): &(Entrant, _)| match one {
            Entrant::New { in_flight, .. } => in_flight.event.clone().into(),
            Entrant::Released(entering) => entering.clone(),
        };
        let entering: Vec<Entering> = appends.iter().map(entering).collect();
        let began = Instant::now();
        let outcomes = self.until_done(|| self.store.append(&entering)).await;
        metric::wrote(entering.len(), began.elapsed());
        let mut superseding = Vec::new();
        for ((one, reply), outcome) in appends.into_iter().zip(outcomes) {
            let written = match one {
                Entrant::New { in_flight, alone } => {
                    superseding.extend(supersedes(&in_flight.event, outcome).filter(|_| alone));
                    Written::Stored { in_flight, outcome }
                }
                Entrant::Released(Entering { event, .. }) => Written::Released { event, outcome },
            };
            // An actor that is gone leaves the permit to its Drop: the event comes again and finds its row.
            let _ = reply.send_message(written);
        }
        if !superseding.is_empty() {
            self.until_done(|| self.store.supersede(&superseding)).await;
        }
    }

    /// Calls until the store answers; what waits here holds its credit, so that reading stops.
    async fn until_done<'a, T>(&self, call: impl Fn() -> super::Answer<'a, T>) -> T {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
        let mut failed = false;
        loop {
            match call().await {
                Ok(answer) => {
                    if failed {
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
                    failed = true;
                    tracing::warn!(%error, "a call to the store failed, trying again");
                    self.health.not_ready(HEALTH_PART, error.to_string());
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        }
    }
}

/// Whose place a new row takes, if it takes any.
fn supersedes(event: &Event, outcome: Appended) -> Option<Superseding> {
    let Appended::Stored(seq) = outcome else { return None };
    let collapse_key = event.options.collapse_key.clone()?;
    Some(Superseding { user: event.user.clone(), collapse_key, seq })
}

/// Each cursor once, with the highest number that was acknowledged.
fn highest(mut acknowledged: Vec<Acknowledgement>) -> Vec<Acknowledgement> {
    acknowledged.sort_by(|a, b| (&a.user, &a.device, b.seq).cmp(&(&b.user, &b.device, a.seq)));
    acknowledged.dedup_by(|later, first| later.user == first.user && later.device == first.device);
    acknowledged
}

#[cfg(test)]
mod tests;
