//! This node as a member of its cluster: it joins, renews its row, watches others and declares deaths, and takes and
//! gives away shards. What is decided, and why, is in [`crate::cluster`] and [`crate::placement::assignment`]; here are
//! the clocks, the store and the links.

pub mod alone;
mod arriving;
mod ownership;
mod shares;

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::MissedTickBehavior,
};

use self::ownership::metric;
pub use self::ownership::{Ownership, Parts, target};
use crate::{
    cluster::{
        RENEW_EVERY,
        arrival::Answered,
        changes::{Change, Refused},
        probe::PROBE_EVERY,
        solitude::Solitude,
        table::Changed,
        view::{self, Node, View},
        watch::{Question, Watch},
    },
    ids::{Incarnation, NodeId},
    link::{Answers, Held, Links, Watched},
    store::{Common, Error, writer::Lost},
};

/// How long the store may take to answer one question.
const ANSWER: Duration = Duration::from_secs(3);
/// How long to wait before the store is asked again that did not answer.
const AGAIN: Duration = Duration::from_millis(300);
/// Who calls counts as heard without an answer for so long: the link to it may take a moment.
const WAY_BACK: Duration = Duration::from_secs(5);

/// Why this node is no member.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Another node of this name is alive.
    #[error("node.id: node {0} is in the cluster already, and alive")]
    Occupied(NodeId),
    /// Another node is alive, and at least one of the two shares its store with nobody.
    #[error("store.url: node {0} uses this store and is alive, and cluster.enabled is not set for both")]
    Alone(NodeId),
    /// It would be in the view, and nobody could talk with it.
    #[error("cluster.secret: node {0} knows another one")]
    Secret(NodeId),
    /// The same.
    #[error("node {0} is of a release that is too far from this one: {1}")]
    Versions(NodeId, String),
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Makes a change of the newest view, until it has happened or cannot any more.
async fn insist(common: &Common, make: impl Fn(&View) -> Result<Change, Refused>) {
    let membership = &common.membership;
    loop {
        if let Ok(Ok(view)) = tokio::time::timeout(ANSWER, membership.view()).await {
            let Ok(change) = make(&view) else { return };
            match tokio::time::timeout(ANSWER, membership.change(&change)).await {
                Ok(Ok(Changed::Done(_))) => return,
                Ok(Ok(Changed::Overtaken)) => continue,
                Ok(Err(_)) | Err(_) => {}
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Shards whose connections their owner wants.
struct Wanted {
    owner: Incarnation,
    shards: Vec<Held>,
    since: Instant,
}

/// This node's membership.
pub struct Member {
    common: Common,
    node: Node,
    links: Links,
    lost: Lost,
    view: watch::Sender<Arc<View>>,
    watch: Mutex<Watch>,
    heard: Mutex<HashMap<Incarnation, Instant>>,
    /// Who has opened a link to this node.
    callers: Mutex<HashSet<Incarnation>>,
    solitude: Mutex<Solitude>,
    look: Notify,
    /// Who wants which connections.
    wanted: Mutex<Vec<Wanted>>,
    is_leaving: AtomicBool,
    /// It may own something.
    is_active: AtomicBool,
}

impl Member {
    /// A node that has not joined yet.
    #[must_use]
    pub fn new(common: Common, node: Node, links: Links, lost: Lost) -> Arc<Self> {
        let watch = Mutex::new(Watch::new(node.incarnation));
        let solitude = Mutex::new(Solitude::new(Instant::now()));
        let (view, heard, look) = (watch::Sender::new(Arc::default()), Mutex::default(), Notify::new());
        let (callers, wanted) = (Mutex::default(), Mutex::default());
        let (is_leaving, is_active) = (false.into(), false.into());
        Arc::new(Self {
            common,
            node,
            links,
            lost,
            view,
            watch,
            heard,
            callers,
            solitude,
            look,
            wanted,
            is_leaving,
            is_active,
        })
    }

    fn me(&self) -> Incarnation {
        self.node.incarnation
    }

    /// All that are alive, but this one.
    pub fn others<'v>(&self, view: &'v View) -> impl Iterator<Item = &'v view::Member> + use<'v> {
        let me = self.me();
        view.living().filter(move |member| member.node.incarnation != me)
    }

    /// The newest view that this node has read.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Joins. The link listens already: whoever hears of this node may call.
    ///
    /// # Errors
    /// When it must not be there.
    pub async fn join(self: &Arc<Self>) -> Result<(), JoinError> {
        arriving::join(&self.common, &self.node, async |member| {
            match self.links.who_answers(member.node.incarnation, &member.node.addresses).await {
                Answers::Stranger => Err(JoinError::Secret(member.node.id.clone())),
                Answers::Foreign(why) => Err(JoinError::Versions(member.node.id.clone(), why)),
                Answers::Itself => Ok(Answered::Rival),
                Answers::SomebodyElse => Ok(Answered::NotTheRival),
                Answers::Nobody => Ok(Answered::Nobody),
            }
        })
        .await?;
        self.refresh().await?;
        Ok(())
    }

    /// Goes on as a member, until the tasks are aborted.
    #[must_use]
    pub fn run(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        let (renewing, watching, hearing) = (self.clone(), self.clone(), self.clone());
        vec![
            tokio::spawn(async move { renewing.renew().await }),
            tokio::spawn(async move { watching.watch_others().await }),
            tokio::spawn(async move { hearing.hear().await }),
        ]
    }

    /// It gives away what it owns.
    pub async fn drain(&self) {
        self.insist(|view| view.drain(self.me())).await;
    }

    /// It owns nothing any more, or nobody is there to take it. Others do not have to find out.
    pub async fn leave(&self) {
        self.is_leaving.store(true, Ordering::Relaxed);
        self.insist(|view| view.leave(self.me())).await;
        self.links.tell_to_look();
    }

    async fn insist(&self, make: impl Fn(&View) -> Result<Change, Refused>) {
        insist(&self.common, make).await;
        let _ = self.refresh().await;
    }

    async fn refresh(&self) -> Result<(), Error> {
        let late = || Error::Unavailable { reason: "the store does not answer in time".into() };
        let view = tokio::time::timeout(ANSWER, self.common.membership.view()).await.map_err(|_| late())??;
        self.solitude.lock().contact(Instant::now());
        self.view.send_if_modified(|current| {
            let is_newer = view.version > current.version;
            if is_newer {
                metric::version(view.version);
                tracing::info!(version = view.version, others = self.others(&view).count(), "view");
                *current = Arc::new(view);
            }
            is_newer
        });
        Ok(())
    }

    /// Keeps links to all others.
    fn keep_links(self: &Arc<Self>) {
        let view = self.view();
        let address = |member: &view::Member| (member.node.incarnation, member.node.addresses.clone());
        let others: Vec<_> = self.others(&view).map(address).collect();
        self.heard.lock().retain(|node, _| view.alive(*node).is_some());
        self.callers.lock().retain(|node| view.member(*node).is_none_or(view::Member::is_alive));
        let watched: Arc<dyn Watched> = self.clone();
        self.links.keep(&others, &watched);
    }

    async fn renew(&self) {
        let mut ticks = tokio::time::interval(RENEW_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Ok(Ok(renewed)) = tokio::time::timeout(ANSWER, self.common.membership.renew(self.me())).await else {
                // Others count the seconds.
                tokio::time::sleep(AGAIN).await;
                ticks.reset_immediately();
                continue;
            };
            self.solitude.lock().contact(Instant::now());
            if !renewed.is_alive {
                return self.died("this node was declared dead by others");
            }
            self.watch.lock().renewed(Instant::now(), &renewed.counters);
            if renewed.version != self.view().version {
                let _ = self.refresh().await;
            }
        }
    }

    fn died(&self, reason: &str) {
        if self.is_leaving.load(Ordering::Relaxed) {
            return;
        }
        let was_active = self.is_active.load(Ordering::Relaxed);
        let failures = if was_active { String::new() } else { self.failures(&self.view()) };
        let reason = match failures.as_str() {
            "" => reason.to_owned(),
            failures => format!("{reason}; it could not be linked with enough others before: {failures}"),
        };
        let _ = self.lost.send(Error::Lost { reason });
    }

    async fn watch_others(self: &Arc<Self>) {
        let mut ticks = tokio::time::interval(PROBE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = 0;
        loop {
            ticks.tick().await;
            let view = self.view();
            if view.version != seen {
                seen = view.version;
                self.keep_links();
            }
            if view.version > 0 && view.alive(self.me()).is_none() {
                return self.died("this node is dead in the table of members");
            }
            let questions = self.watch.lock().turn(Instant::now(), &view);
            for question in questions {
                match question {
                    Question::Probe(whom) => self.links.probe(whom),
                    Question::Hears { whom, about, poll } => self.links.ask(whom, about, poll),
                }
            }
            let wants = |view: &View| self.watch.lock().wants(Instant::now(), view);
            if wants(&view).is_some() && self.refresh().await.is_ok() {
                let view = self.view();
                if let Some(change) = wants(&view) {
                    tracing::warn!(?change.put, "changing the view");
                    let _ = tokio::time::timeout(ANSWER, self.common.membership.change(&change)).await;
                    let _ = self.refresh().await;
                }
            }
            let is_alone = self.solitude.lock().is_over(Instant::now(), view.living().count());
            if is_alone {
                return self.died("this node hears neither the store nor any other node");
            }
        }
    }

    /// Hears of changes as they are made; [`Self::renew`] finds what is missed.
    async fn hear(&self) {
        loop {
            if let Ok(mut announcements) = self.common.listen().await {
                let _ = self.refresh().await;
                while announcements.next().await.is_ok() {
                    let _ = self.refresh().await;
                }
            }
            tokio::time::sleep(RENEW_EVERY).await;
        }
    }
}

impl Watched for Member {
    fn heard(&self, node: Incarnation) {
        let now = Instant::now();
        self.watch.lock().heard(node);
        self.heard.lock().insert(node, now);
        self.solitude.lock().contact(now);
    }

    fn called(&self, node: Incarnation) {
        let now = Instant::now();
        self.callers.lock().insert(node);
        self.solitude.lock().contact(now);
        // The way there may take a moment longer than the way here; but not for ever.
        let since = *self.heard.lock().entry(node).or_insert(now);
        if since.elapsed() < WAY_BACK {
            self.watch.lock().heard(node);
        }
    }

    fn refused(&self, node: Incarnation) {
        self.watch.lock().refused(node);
    }

    fn told(&self, by: Incarnation, about: Incarnation, poll: u64, hears: bool) {
        self.watch.lock().told(by, about, poll, hears);
    }

    fn hears(&self, about: Incarnation) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(async move {
            self.links.probe(about);
            tokio::time::sleep(PROBE_EVERY).await;
            self.heard.lock().get(&about).is_some_and(|at| at.elapsed() <= PROBE_EVERY)
        })
    }

    fn look(&self) {
        self.look.notify_one();
    }

    fn wants(&self, owner: Incarnation, shards: Vec<Held>) {
        self.wanted.lock().push(Wanted { owner, shards, since: Instant::now() });
        self.look.notify_one();
    }

    fn is_dead(&self, node: Incarnation) -> bool {
        self.view().member(node).is_some_and(|member| !member.is_alive())
    }

    fn dead(&self) {
        self.died("another node says that this one was declared dead");
    }
}
