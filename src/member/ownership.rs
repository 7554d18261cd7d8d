//! Who serves which shard, and who reads which partition: what this node should own is computed from the view, what it
//! owns stands in claims, and step by step the second becomes the first.

use std::{
    collections::HashSet,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;

use super::{Member, Wanted, shares::Shares};
use crate::{
    cluster::view::{self, View},
    health::Health,
    ids::{Incarnation, UserId},
    ingest::{Assignment, Ingest},
    link::{Held, Links},
    placement::{
        ShardId,
        assignment::{self, Candidate},
        handover::{self, Moves, Pace},
        owners::{Map, Owner},
    },
    shard::{Shards, Unsealing},
    store::{Error, Store, claims::ShardClaim, writer::Writer},
};

/// How often claims are read when nobody says that they have changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// No more shards than this are on their way at a time, of all nodes' ([`handover`]): their users hear nothing
/// meanwhile, the others do. Each batch costs two statements and a few milliseconds; of 1,024 shards it is a sixteenth.
const GIVEN_AT_ONCE: usize = 64;
/// So many shards are taken at a time, and the next ones right behind them: what nobody serves waits, whether a node has
/// died or all of them start, so nothing is gained by leaving it. But between two batches other nodes get the lists that
/// they wait for, and the users that become active are spread a little. Of shards that are given away there are never so
/// many.
const TAKEN_AT_ONCE: usize = 256;
/// How often it is said that users of shards that are given away have not stopped.
const SEAL: Duration = Duration::from_secs(10);
/// An owner waits so long for the connections that it wants.
const WANTED: Duration = Duration::from_secs(2);
/// The health part that says whether this node takes part.
const HEALTH_PART: &str = "cluster";

/// What moves shards and partitions to this node, and away from it.
pub struct Ownership {
    member: Arc<Member>,
    links: Links,
    shards: Shards,
    store: Arc<dyn Store>,
    writer: Writer,
    ingest: Arc<Ingest>,
    topic: String,
    health: Health,
    attach_again: AttachAgain,
    /// Alive when the map was last drawn.
    alive: Vec<Incarnation>,
    /// Served here.
    held: HashSet<ShardId>,
    assigned: u64,
    pace: Pace<ShardId>,
}

/// The parts of a node that ownership moves.
pub struct Parts {
    /// The links to other nodes.
    pub links: Links,
    /// The shard actors.
    pub shards: Shards,
    /// The log.
    pub store: Arc<dyn Store>,
    /// The way into it.
    pub writer: Writer,
    /// Who reads partitions.
    pub ingest: Arc<Ingest>,
    /// Whose partitions.
    pub topic: String,
    /// The node's health.
    pub health: Health,
    /// The node's connections.
    pub attach_again: AttachAgain,
}

/// Has all connections of users of these shards ask for their sessions again, which this owner serves from here on
/// (`None`: this node), and ends when all have done so.
pub type AttachAgain = Box<dyn Fn(&HashSet<ShardId>, Option<Incarnation>) -> BoxFuture<'static, ()> + Send + Sync>;

impl Ownership {
    /// Nothing is owned yet.
    #[must_use]
    pub fn new(member: Arc<Member>, parts: Parts) -> Self {
        metric::describe();
        let Parts { links, shards, store, writer, ingest, topic, health, attach_again } = parts;
        health.not_ready(HEALTH_PART, "joining");
        let (alive, held, assigned, pace) = (Vec::new(), HashSet::new(), 0, Pace::default());
        Self { member, links, shards, store, writer, ingest, topic, health, attach_again, alive, held, assigned, pace }
    }

    /// Waits until this node may own something, and then moves towards what should be, for ever.
    pub async fn run(mut self) {
        let ingest = self.ingest.clone();
        self.member.activate(|| ingest.reaches()).await;
        let mut views = self.member.view.subscribe();
        loop {
            match self.turn().await {
                Ok(()) => self.health.ready(HEALTH_PART),
                Err(error) => tracing::warn!(%error, "claims cannot be read or changed now"),
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.member.look.notified() => {}
                () = self.ingest.has_moved_some() => self.links.tell_to_look(),
                _ = views.changed() => {}
            }
        }
    }

    async fn turn(&mut self) -> Result<(), Error> {
        let view = self.member.view();
        self.member.keep_links();
        self.assign_partitions(&view);
        self.ingest.others_may_have_moved();
        // What is wanted was taken before: the claims say so.
        let wanted = std::mem::take(&mut *self.member.wanted.lock());
        let claims = match self.member.common.claims.shards().await {
            Ok(claims) => claims,
            Err(error) => {
                self.member.wanted.lock().extend(wanted);
                return Err(error);
            }
        };
        self.draw(&view, &claims);
        self.forget_gone(&view);
        self.list(wanted);
        self.links.map_changed(&self.shards);
        let target = target(&view, self.shards.owners().shards());
        if target.is_empty() {
            return Ok(());
        }
        self.release_left_over(&claims, &target).await?;
        self.give(&view, &claims, &target).await?;
        self.take(&view, &claims, &target).await
    }

    /// The map, as the claims have it.
    fn draw(&self, view: &View, claims: &[ShardClaim]) {
        let me = self.member.me();
        let owner = |claim: &ShardClaim| match claim.owner {
            Some(owner) if owner == me && self.held.contains(&claim.shard) => Owner::Here,
            Some(owner) if owner != me && view.alive(owner).is_some() => Owner::There(owner),
            _ => Owner::Nobody,
        };
        let map = Map { owners: claims.iter().map(owner).collect() };
        metric::shards(map.count(Owner::Here), map.count(Owner::Nobody));
        if **self.shards.owners().now() != map {
            self.shards.owners().set(map);
        }
    }

    /// Nobody waits for the connections of those that are gone.
    fn forget_gone(&mut self, view: &View) {
        let alive = view.living().map(|member| member.node.incarnation).collect();
        for node in std::mem::replace(&mut self.alive, alive) {
            if view.alive(node).is_none() {
                self.shards.node_gone(node);
            }
        }
    }

    /// Sends the connections that owners want, each owner's with a mark behind them. Who is not known as the owner yet
    /// is by the next turn, or waits no more.
    fn list(&self, wanted: Vec<Wanted>) {
        let map = Arc::clone(&self.shards.owners().now());
        for Wanted { owner, shards, since } in wanted {
            let is_known = |(shard, _): &Held| map.of(*shard) == Owner::There(owner);
            let (known, unknown): (Vec<Held>, Vec<Held>) = shards.into_iter().partition(is_known);
            if !unknown.is_empty() && since.elapsed() < WANTED {
                self.member.wanted.lock().push(Wanted { owner, shards: unknown, since });
            }
            if known.is_empty() {
                continue;
            }
            let links = self.links.clone();
            let Some(life) = links.coming_life(owner) else { continue };
            let attached = self.attach_again_of(&known, Some(owner));
            tokio::spawn(async move {
                attached.await;
                links.listed(owner, life, known);
            });
        }
    }

    fn attach_again_of(&self, shards: &[Held], owner: Option<Incarnation>) -> BoxFuture<'static, ()> {
        (self.attach_again)(&shards.iter().map(|(shard, _)| *shard).collect(), owner)
    }

    /// Gives away some of what others should have: the next batch when the last one is taken.
    async fn give(&mut self, view: &View, claims: &[ShardClaim], target: &[Incarnation]) -> Result<(), Error> {
        let me = self.member.me();
        let of = |shard: ShardId| target[usize::from(shard.0)];
        let mut others: Vec<ShardId> = self.held.iter().copied().filter(|shard| of(*shard) != me).collect();
        others.sort_unstable();
        let owner = |claim: &ShardClaim| claim.owner.filter(|owner| view.alive(*owner).is_some());
        let moves = claims.iter().map(|claim| (claim.shard, owner(claim), of(claim.shard)));
        let moves = Moves::new(handover::batch(claims.len(), GIVEN_AT_ONCE), moves);
        let given = self.pace.next(Instant::now(), &others, &moves);
        if given.is_empty() {
            return Ok(());
        }
        given.iter().for_each(|shard| _ = self.held.remove(shard));
        // In this order: nothing more comes, what is there ends, what it has written is stored, others may begin.
        self.shards.owners().change(&given, Owner::Nobody);
        let mut sealed = pin!(self.shards.seal(&given));
        while tokio::time::timeout(SEAL, &mut sealed).await.is_err() {
            tracing::warn!(shards = given.len(), "users of shards that move have not stopped yet: the store is slow");
            self.health.not_ready(HEALTH_PART, "users of shards that move have not stopped");
        }
        self.writer.flushed().await;
        let epochs = self.store.let_shards_go(&given);
        let released = self.member.common.claims.release_shards(me, &epochs).await?;
        tracing::info!(shards = released.len(), "shards given away");
        self.links.tell_to_look();
        // There may be more.
        self.member.look.notify_one();
        Ok(())
    }

    /// Releases what this node has given away before, without the store's having heard of it.
    async fn release_left_over(&self, claims: &[ShardClaim], target: &[Incarnation]) -> Result<(), Error> {
        let me = self.member.me();
        let is_left_over = |claim: &&ShardClaim| {
            claim.owner == Some(me) && !self.held.contains(&claim.shard) && target[usize::from(claim.shard.0)] != me
        };
        let left_over: Vec<_> = claims.iter().filter(is_left_over).map(|claim| (claim.shard, claim.epoch)).collect();
        if !left_over.is_empty() {
            self.member.common.claims.release_shards(me, &left_over).await?;
            self.links.tell_to_look();
        }
        Ok(())
    }

    /// Takes what this node should have, and nobody has.
    async fn take(&mut self, view: &View, claims: &[ShardClaim], target: &[Incarnation]) -> Result<(), Error> {
        let me = self.member.me();
        let is_free = |claim: &&ShardClaim| {
            claim
                .owner
                .is_none_or(|owner| view.alive(owner).is_none() || owner == me && !self.held.contains(&claim.shard))
        };
        let is_mine = |claim: &&ShardClaim| target[usize::from(claim.shard.0)] == me;
        let wanted = claims.iter().filter(is_mine).filter(is_free);
        let wanted: Vec<_> = wanted.map(|claim| (claim.shard, claim.epoch)).take(TAKEN_AT_ONCE).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let taken = self.member.common.claims.take_shards(me, &wanted).await?;
        if taken.is_empty() {
            return Ok(());
        }
        self.store.hold_shards(&taken);
        let shards: Vec<ShardId> = taken.iter().map(|(shard, _)| *shard).collect();
        let waiting: Option<Vec<UserId>> = self.store.users_waiting().await.ok();
        // Who joins has no connections that anybody has served.
        let may_have = |member: &&view::Member| member.state != view::State::Joining;
        let marks = view.living().filter(may_have).map(|member| member.node.incarnation).collect();
        self.shards.unseal(Unsealing { shards: taken.clone(), waiting, marks }).await;
        self.held.extend(&shards);
        self.shards.owners().change(&shards, Owner::Here);
        self.links.ask_for(&taken);
        let (attached, marked) = (self.attach_again_of(&taken, None), self.shards.clone());
        tokio::spawn(async move {
            attached.await;
            marked.marked(me, &taken);
        });
        self.links.map_changed(&self.shards);
        metric::moved(shards.len());
        tracing::info!(shards = shards.len(), "shards taken");
        self.links.tell_to_look();
        // There may be more to take, and now to give.
        self.member.look.notify_one();
        Ok(())
    }

    /// Says which partitions this node should read; whoever reads them takes their claims.
    fn assign_partitions(&mut self, view: &Arc<View>) {
        if self.assigned == view.version {
            return;
        }
        self.assigned = view.version;
        let shares = Shares { me: self.member.me(), topic: self.topic.clone(), view: view.clone() };
        self.ingest.assign(Assignment::Chosen(Arc::new(shares)));
    }
}

/// Who should serve each shard. Empty: nobody can.
#[must_use]
pub fn target(view: &View, shards: u16) -> Vec<Incarnation> {
    let candidates = view.candidates();
    incarnations(view, &candidates, assignment::shards(&candidates, shards))
}

/// The lives of those that were chosen.
pub(super) fn incarnations(view: &View, candidates: &[Candidate<'_>], chosen: Vec<usize>) -> Vec<Incarnation> {
    let life = |candidate: &Candidate<'_>| view.active(candidate.id).map(|member| member.node.incarnation);
    let lives: Vec<_> = candidates.iter().map(life).collect();
    chosen.into_iter().map(|at| lives[at].expect("a candidate is active")).collect()
}

/// Metrics of membership and ownership.
pub(super) mod metric {
    use metrics::{counter, describe_counter, describe_gauge, gauge};

    const OWNED: &str = "notifier_shards_owned";
    const UNOWNED: &str = "notifier_shards_unowned";
    const MOVED: &str = "notifier_shards_taken_total";
    const VERSION: &str = "notifier_membership_version";
    const CHANGES: &str = "notifier_membership_changes_total";

    pub(super) fn describe() {
        describe_gauge!(OWNED, "Shards whose users this node serves");
        describe_gauge!(UNOWNED, "Shards that no living node serves, as this node knows it");
        describe_counter!(MOVED, "Shards that this node has taken");
        describe_gauge!(VERSION, "Version of the view of the cluster that this node knows");
        describe_counter!(CHANGES, "Views of the cluster that this node has seen");
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub(super) fn shards(owned: usize, unowned: usize) {
        gauge!(OWNED).set(owned as f64);
        gauge!(UNOWNED).set(unowned as f64);
    }

    pub(super) fn moved(shards: usize) {
        counter!(MOVED).increment(shards as u64);
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub(in crate::member) fn version(version: u64) {
        gauge!(VERSION).set(version as f64);
        counter!(CHANGES).increment(1);
    }
}
