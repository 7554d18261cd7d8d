//! Members and claims in memory: the pattern of what an engine does, for as long as the process lives.

use std::{collections::BTreeMap, future::ready, time::Instant};

use parking_lot::Mutex;

use crate::{
    cluster::{
        changes::Change,
        table::{Changed, Renewed},
        tests::table::Table,
        view::{State, View},
    },
    ids::Incarnation,
    placement::ShardId,
    store::{
        Answer,
        claims::{Beginning, Claims, Epoch, PartitionClaim, ShardClaim},
        membership::Membership,
        positions::LogName,
    },
};

/// Members and claims, for all nodes of one process.
pub(super) struct MemoryMembership {
    began: Instant,
    state: Mutex<Tables>,
}

struct Tables {
    members: Table,
    shards: BTreeMap<ShardId, Claim>,
    partitions: BTreeMap<(String, i32), (Claim, Place)>,
}

#[derive(Clone, Copy, Default)]
struct Claim {
    owner: Option<Incarnation>,
    epoch: Epoch,
}

struct Place {
    cluster: String,
    position: i64,
}

impl MemoryMembership {
    /// Without members, and nobody owns a shard.
    #[must_use]
    pub(super) fn new(shards: u16) -> Self {
        let shards = (0..shards).map(|shard| (ShardId(shard), Claim::default())).collect();
        let tables = Tables { members: Table::default(), shards, partitions: BTreeMap::new() };
        Self { began: Instant::now(), state: Mutex::new(tables) }
    }
}

impl Claim {
    /// Takes it, if the view lets this member.
    fn take(&mut self, view: &View, me: Incarnation, epoch: Epoch) -> bool {
        let is_free = self.owner.is_none_or(|owner| owner == me || view.alive(owner).is_none());
        let is_taken = is_active(view, me) && is_free && self.epoch == epoch;
        if is_taken {
            *self = Self { owner: Some(me), epoch: epoch + 1 };
        }
        is_taken
    }

    fn release(&mut self, me: Incarnation, epoch: Epoch) -> bool {
        let held = self.owner == Some(me) && self.epoch == epoch;
        if held {
            self.owner = None;
        }
        held
    }
}

fn is_active(view: &View, me: Incarnation) -> bool {
    view.member(me).is_some_and(|member| member.state == State::Active)
}

fn described(partition: i32, (claim, place): &(Claim, Place)) -> PartitionClaim {
    let Place { cluster, position } = place;
    let Claim { owner, epoch } = *claim;
    PartitionClaim { partition, owner, epoch, cluster: cluster.clone(), position: *position, ahead: None }
}

impl Membership for MemoryMembership {
    fn view(&self) -> Answer<'_, View> {
        Box::pin(ready(Ok(self.state.lock().members.view(self.began.elapsed()))))
    }

    fn change<'a>(&'a self, change: &'a Change) -> Answer<'a, Changed> {
        Box::pin(ready(Ok(self.state.lock().members.change(change, self.began.elapsed()))))
    }

    fn renew(&self, me: Incarnation) -> Answer<'_, Renewed> {
        Box::pin(ready(Ok(self.state.lock().members.renew(me))))
    }
}

impl Claims for MemoryMembership {
    fn shards(&self) -> Answer<'_, Vec<ShardClaim>> {
        let state = self.state.lock();
        let claim =
            |(shard, claim): (&ShardId, &Claim)| ShardClaim { shard: *shard, owner: claim.owner, epoch: claim.epoch };
        Box::pin(ready(Ok(state.shards.iter().map(claim).collect())))
    }

    fn take_shards<'a>(&'a self, me: Incarnation, wanted: &'a [(ShardId, Epoch)]) -> Answer<'a, Vec<(ShardId, Epoch)>> {
        let mut state = self.state.lock();
        let view = state.members.view(self.began.elapsed());
        let mut take = |(shard, epoch): &(ShardId, Epoch)| {
            let is_taken = state.shards.get_mut(shard).is_some_and(|claim| claim.take(&view, me, *epoch));
            is_taken.then_some((*shard, epoch + 1))
        };
        Box::pin(ready(Ok(wanted.iter().filter_map(&mut take).collect())))
    }

    fn release_shards<'a>(&'a self, me: Incarnation, held: &'a [(ShardId, Epoch)]) -> Answer<'a, Vec<ShardId>> {
        let mut state = self.state.lock();
        let mut release = |(shard, epoch): &(ShardId, Epoch)| {
            let is_released = state.shards.get_mut(shard).is_some_and(|claim| claim.release(me, *epoch));
            is_released.then_some(*shard)
        };
        Box::pin(ready(Ok(held.iter().filter_map(&mut release).collect())))
    }

    fn partitions<'a>(&'a self, topic: &'a str) -> Answer<'a, Vec<PartitionClaim>> {
        let state = self.state.lock();
        let of_topic = state.partitions.iter().filter(|((of, _), _)| of == topic);
        Box::pin(ready(Ok(of_topic.map(|((_, partition), claim)| described(*partition, claim)).collect())))
    }

    fn take_partitions<'a>(
        &'a self,
        me: Incarnation,
        topic: &'a str,
        wanted: &'a [(i32, Epoch)],
    ) -> Answer<'a, Vec<PartitionClaim>> {
        let mut state = self.state.lock();
        let view = state.members.view(self.began.elapsed());
        let mut take = |(partition, epoch): &(i32, Epoch)| {
            let found = state.partitions.get_mut(&(topic.to_owned(), *partition))?;
            found.0.take(&view, me, *epoch).then(|| described(*partition, found))
        };
        Box::pin(ready(Ok(wanted.iter().filter_map(&mut take).collect())))
    }

    fn begin_partitions<'a>(
        &'a self,
        me: Incarnation,
        log: &'a LogName,
        beginnings: &'a [Beginning],
    ) -> Answer<'a, Vec<(i32, Epoch)>> {
        let mut state = self.state.lock();
        let is_active = is_active(&state.members.view(self.began.elapsed()), me);
        let mut begun = Vec::new();
        for Beginning { partition, epoch, position } in beginnings.iter().copied().filter(|_| is_active) {
            let key = (log.topic.clone(), partition);
            let found = state.partitions.get(&key).map(|(claim, _)| *claim);
            let may_begin = found.map_or(epoch == 0, |claim| claim.owner == Some(me) && claim.epoch == epoch);
            if may_begin {
                let place = Place { cluster: log.cluster.clone(), position };
                state.partitions.insert(key, (Claim { owner: Some(me), epoch: epoch + 1 }, place));
                begun.push((partition, epoch + 1));
            }
        }
        Box::pin(ready(Ok(begun)))
    }

    fn release_partitions<'a>(
        &'a self,
        me: Incarnation,
        topic: &'a str,
        held: &'a [(i32, Epoch)],
    ) -> Answer<'a, Vec<i32>> {
        let mut state = self.state.lock();
        let mut release = |(partition, epoch): &(i32, Epoch)| {
            let found = state.partitions.get_mut(&(topic.to_owned(), *partition))?;
            found.0.release(me, *epoch).then_some(*partition)
        };
        Box::pin(ready(Ok(held.iter().filter_map(&mut release).collect())))
    }
}
