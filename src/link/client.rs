//! This node's end of a link to another one: events and wishes go out, outcomes and frames come in. One task a peer,
//! for as long as the peer is in the view; what was under way when a link breaks is lost, and says so.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::{
    Held, Identity, Inner, Watched,
    dial::{self, Broken, Made},
    metric,
    question::{Answer, Question},
    under_way::Link,
    wire::OpenRequest,
};
use crate::{
    backoff::Backoff,
    event::InFlight,
    ids::{Incarnation, NotificationId, UserId},
    session::Msg,
    store::writer::CancelReply,
    user::Attach,
};

/// Orders of one message.
const BATCH_MAX: usize = 512;
/// Waits between attempts to connect: a probe's length at the most, so that a peer whose host refuses is soon known.
const AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(600));
/// How often a peer that is reached through a third node is called itself.
const STRAIGHT_AGAIN: Duration = Duration::from_secs(3);

/// How often it is said that a peer cannot be linked with.
const SAID_EVERY: Duration = Duration::from_secs(30);

/// What the task of a link can be told.
pub(super) enum Order {
    /// For that life of the link.
    Events(u64, Vec<InFlight>),
    Attach(Box<Attach>),
    /// The connection of a line has something to say.
    Line(u64, Msg),
    Probe,
    Hears {
        poll: u64,
        about: Incarnation,
    },
    Cancel(UserId, NotificationId, CancelReply),
    Look,
    /// The connections of these shards are wanted.
    List(Vec<Held>),
    /// They have all gone before this, in that life of the link.
    Listed(u64, Vec<Held>),
    Query(Question, oneshot::Sender<Answer>),
}

/// The way to one other node. Cheap to clone.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) addresses: Arc<[String]>,
    orders: mpsc::UnboundedSender<Order>,
    /// Odd while there is a link; each has a number of its own.
    life: Arc<AtomicU64>,
    /// Why the last call has failed.
    pub(super) failure: Arc<Mutex<Option<String>>>,
}

impl Peer {
    /// Starts a task, which ends with the last clone of this.
    pub(super) fn start(
        identity: Arc<Identity>,
        peer: Incarnation,
        addresses: Vec<String>,
        (watched, links): (Arc<dyn Watched>, Weak<Inner>),
    ) -> Self {
        let addresses: Arc<[String]> = addresses.into();
        let (orders, queue) = mpsc::unbounded_channel();
        let (life, failure) = (Arc::new(AtomicU64::new(0)), Arc::default());
        let task = Task {
            identity,
            peer,
            addresses: addresses.clone(),
            watched,
            links,
            life: life.clone(),
            failure: Arc::clone(&failure),
            said: None,
            queue,
            weak: orders.downgrade(),
            waiting: VecDeque::new(),
            last: 0,
        };
        tokio::spawn(task.run());
        Self { addresses, orders, life, failure }
    }

    pub(super) fn life(&self) -> Option<u64> {
        Some(self.life.load(Ordering::Acquire)).filter(|life| life % 2 == 1)
    }

    pub(super) fn coming_life(&self) -> u64 {
        self.life.load(Ordering::Acquire) | 1
    }

    pub(super) fn order(&self, order: Order) {
        // A task that is gone drops the order, and whatever is in it says so.
        let _ = self.orders.send(order);
    }
}

struct Task {
    identity: Arc<Identity>,
    peer: Incarnation,
    addresses: Arc<[String]>,
    watched: Arc<dyn Watched>,
    /// Who else might reach the peer.
    links: Weak<Inner>,
    life: Arc<AtomicU64>,
    failure: Arc<Mutex<Option<String>>>,
    /// When that was said last.
    said: Option<Instant>,
    queue: mpsc::UnboundedReceiver<Order>,
    /// For lines, which must not keep the task going.
    weak: mpsc::WeakUnboundedSender<Order>,
    /// Wishes and marks that came while there was no link.
    waiting: VecDeque<Order>,
    /// The last number that was given to anything, on any link.
    last: u64,
}

/// Why there is no link any more.
enum Ended {
    /// Nobody wants it.
    Unwanted,
    Broken(Broken),
    /// It went through a third node, and the peer itself has answered again.
    Straight(Box<Made>),
}

impl Task {
    async fn run(mut self) {
        let mut backoff = Backoff::new(AGAIN.0, AGAIN.1);
        loop {
            let mut ended = match self.call().await {
                Ok(made) => {
                    backoff.reset();
                    *self.failure.lock() = None;
                    self.serve(made).await
                }
                Err(ended) => {
                    self.note(&ended);
                    ended
                }
            };
            let broken = loop {
                match ended {
                    Ended::Unwanted => return,
                    Ended::Straight(made) => ended = self.serve(*made).await,
                    Ended::Broken(broken) => break broken,
                }
            };
            match broken {
                Broken::Refused(why) => {
                    tracing::debug!(peer = %self.peer, why, "refused");
                    self.watched.refused(self.peer);
                }
                Broken::Dead => self.watched.dead(),
                Broken::Stranger | Broken::Foreign(_) => {}
                Broken::Other(why) => tracing::debug!(peer = %self.peer, why, "no link"),
            }
            if !self.pause(backoff.next_wait()).await {
                return;
            }
        }
    }

    /// Why a call has failed, for whoever asks, and for the log now and then. What is soon followed by a death is not said.
    fn note(&mut self, failed: &Ended) {
        let Ended::Broken(broken) = failed else { return };
        let why = match broken {
            Broken::Dead => "it says that this node is dead",
            Broken::Stranger => "cluster.secret is another one there",
            Broken::Refused(why) | Broken::Foreign(why) | Broken::Other(why) => why.as_str(),
        };
        *self.failure.lock() = Some(why.to_owned());
        let ends_soon = matches!(broken, Broken::Refused(_) | Broken::Dead);
        if ends_soon || self.said.is_some_and(|at| at.elapsed() < SAID_EVERY) {
            return;
        }
        self.said = Some(Instant::now());
        let address = self.addresses.join(", ");
        if matches!(broken, Broken::Other(_)) {
            tracing::warn!(peer = %self.peer, address, why, "no link to another node");
        } else {
            tracing::error!(peer = %self.peer, address, why, "no link to another node");
        }
    }

    /// Calls the peer: straight, or through a third node when nothing comes back from it. Where its hosts say no, nobody
    /// else is asked.
    async fn call(&mut self) -> Result<Made, Ended> {
        let (identity, addresses, peer) = (self.identity.clone(), self.addresses.clone(), self.peer);
        let mut why = Broken::Other("it has no address".into());
        for address in &*addresses {
            match self.meanwhile(dial::connect(&identity, peer, address)).await? {
                Ok(made) => return Ok(made),
                Err(broken) => why = broken,
            }
        }
        if !matches!(why, Broken::Other(_)) {
            return Err(Ended::Broken(why));
        }
        for (third, addresses) in self.links.upgrade().map(|links| links.thirds(peer)).unwrap_or_default() {
            for address in &*addresses {
                match self.meanwhile(dial::connect_through(&identity, peer, third, address)).await? {
                    Ok(made) => return Ok(made),
                    Err(Broken::Dead) => return Err(Ended::Broken(Broken::Dead)),
                    Err(_) => {}
                }
            }
        }
        Err(Ended::Broken(why))
    }

    /// Does something while there is no link, and keeps what can wait.
    async fn meanwhile<T>(&mut self, what: impl Future<Output = T>) -> Result<T, Ended> {
        tokio::pin!(what);
        loop {
            tokio::select! {
                done = &mut what => return Ok(done),
                order = self.queue.recv() => match order {
                    None => return Err(Ended::Unwanted),
                    Some(order) => self.keep(order),
                },
            }
        }
    }

    /// Events and questions are lost, and say so; lines are of a link that is broken.
    fn keep(&mut self, order: Order) {
        if matches!(order, Order::Attach(_) | Order::List(_) | Order::Listed(..)) {
            self.waiting.push_back(order);
        }
    }

    /// Waits, and keeps what can wait; `false`: nobody wants the link any more.
    async fn pause(&mut self, wait: Duration) -> bool {
        let until = tokio::time::Instant::now() + wait;
        loop {
            match tokio::time::timeout_at(until, self.queue.recv()).await {
                Err(_) => return true,
                Ok(None) => return false,
                Ok(Some(order)) => self.keep(order),
            }
        }
    }

    /// One link, from its beginning to its end.
    async fn serve(&mut self, Made { requests, mut responses, through, version }: Made) -> Ended {
        match through {
            None => tracing::info!(peer = %self.peer, version, "link"),
            Some(third) => {
                tracing::warn!(peer = %self.peer, version, %third, "link through another node: this one does not reach it")
            }
        }
        let (identity, addresses, peer) = (self.identity.clone(), self.addresses.clone(), self.peer);
        let straight = straight(&identity, peer, &addresses);
        tokio::pin!(straight);
        let life = self.life.load(Ordering::Acquire) + 1;
        let mut link = Link::new(self.peer, (life, self.last), self.weak.clone(), self.watched.clone());
        self.waiting.drain(..).for_each(|order| link.order(order));
        self.life.store(life, Ordering::Release);
        metric::opened(through.is_some());
        self.watched.heard(self.peer);
        let mut orders = Vec::with_capacity(BATCH_MAX);
        let ended = loop {
            tokio::select! {
                biased;
                response = responses.next() => match response {
                    Some(Ok(response)) => {
                        self.watched.heard(self.peer);
                        if let Err(error) = link.take(response) {
                            break Ended::Broken(Broken::Other(error.to_string()));
                        }
                    }
                    Some(Err(status)) => break Ended::Broken(Broken::Other(status.to_string())),
                    None => break Ended::Broken(Broken::Other("the peer has closed it".into())),
                },
                room = requests.reserve(), if !link.out.is_empty() => match room {
                    Ok(room) => {
                        let most = link.out.len().min(BATCH_MAX);
                        room.send(OpenRequest { messages: link.out.drain(..most).collect() });
                    }
                    Err(_) => break Ended::Broken(Broken::Other("the connection is gone".into())),
                },
                made = &mut straight, if through.is_some() => break Ended::Straight(Box::new(made)),
                taken = self.queue.recv_many(&mut orders, BATCH_MAX) => {
                    if taken == 0 {
                        break Ended::Unwanted;
                    }
                    orders.drain(..).for_each(|order| link.order(order));
                }
            }
        };
        // Before permits and attachments say that they are lost: nothing more goes out under this number.
        self.life.store(life + 1, Ordering::Release);
        self.last = link.last;
        metric::closed(through.is_some(), matches!(ended, Ended::Broken(_)));
        ended
    }
}

/// Calls a peer again and again, until it answers itself. Cancel safe.
async fn straight(identity: &Identity, peer: Incarnation, addresses: &[String]) -> Made {
    loop {
        tokio::time::sleep(STRAIGHT_AGAIN).await;
        for address in addresses {
            if let Ok(made) = dial::connect(identity, peer, address).await {
                return made;
            }
        }
    }
}
