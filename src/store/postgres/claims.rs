//! Claims in PostgreSQL. A take locks its own member's row first, so that the member cannot be declared dead until the
//! take has committed, or is dead before and gets nothing; then the claims, in their order, as writes do
//! ([`super::fence`]), so that whatever a former owner has begun is over or fails. A shard's claim is locked against notes
//! too, whose own lock is weak.

use super::{
    membership::{PostgresMembership, ask_shortly},
    unavailable,
};
use crate::{
    ids::Incarnation,
    placement::ShardId,
    store::{
        Answer, Error,
        claims::{Beginning, Claims, Epoch, PartitionClaim, ShardClaim},
        positions::LogName,
    },
};

/// PostgreSQL's "lock not available".
const LOCKED: &str = "55P03";

/// The taker, while it is active.
macro_rules! taker {
    () => {
        "with me as materialized (
    select incarnation from members where incarnation = $1 and state = 1 for no key update
)"
    };
}

/// Of what was named, what may be taken: the last words say how to wait for what is locked. A member that is dead, or
/// not there, never comes back: an old snapshot shows too many alive, and never too few.
macro_rules! claimable {
    () => {
        "(c.owner is null or c.owner = $1
         or not exists (select from members m where m.incarnation = c.owner and m.state <> 3))"
    };
}

macro_rules! take_shards {
    ($locked:literal) => {
        concat!(
            taker!(),
            ", free as materialized (
    select c.shard from shard_claims c
    join unnest($2::integer[], $3::bigint[]) as w (shard, epoch) on w.shard = c.shard and w.epoch = c.epoch
    cross join me
    where ",
            claimable!(),
            " order by c.shard for update of c ",
            $locked,
            ")
update shard_claims c set owner = $1, epoch = c.epoch + 1 from free where c.shard = free.shard
returning c.shard, c.epoch"
        )
    };
}

macro_rules! take_partitions {
    ($locked:literal) => {
        concat!(
            taker!(),
            ", free as materialized (
    select c.partition from partition_claims c
    join unnest($2::integer[], $3::bigint[]) as w (partition, epoch) on w.partition = c.partition and w.epoch = c.epoch
    cross join me
    where c.topic = $4 and ",
            claimable!(),
            " order by c.partition for no key update of c ",
            $locked,
            ")
update partition_claims c set owner = $1, epoch = c.epoch + 1
from free where c.topic = $4 and c.partition = free.partition
returning c.partition, c.owner, c.epoch, c.cluster, c.position, c.ahead"
        )
    };
}

/// Each is tried as it stands, and again without what is locked.
const TAKE_SHARDS: [&str; 2] = [take_shards!(""), take_shards!("skip locked")];
const TAKE_PARTITIONS: [&str; 2] = [take_partitions!(""), take_partitions!("skip locked")];

/// A row that is there is the beginner's, under the epoch that it names; one that is not is made.
const BEGIN_PARTITIONS: &str = concat!(
    taker!(),
    ", wanted as (
    select b.* from me cross join unnest($2::integer[], $3::bigint[], $4::bigint[]) as b (partition, epoch, position)
), moved as (
    update partition_claims c set cluster = $6, position = w.position, ahead = null, epoch = c.epoch + 1
    from wanted w
    where c.topic = $5 and c.partition = w.partition and c.owner = $1 and c.epoch = w.epoch
    returning c.partition, c.epoch
), made as (
    insert into partition_claims (topic, partition, cluster, owner, epoch, position)
    select $5, partition, $6, $1, 1, position from wanted where epoch = 0 order by partition
    on conflict (topic, partition) do nothing
    returning partition, epoch
)
select partition, epoch from moved union all select partition, epoch from made"
);

const RELEASE_SHARDS: &str = "update shard_claims c set owner = null from (
    select c.shard from shard_claims c
    join unnest($2::integer[], $3::bigint[]) as h (shard, epoch) on h.shard = c.shard and h.epoch = c.epoch
    where c.owner = $1 order by c.shard for no key update of c
) held where c.shard = held.shard returning c.shard";

const RELEASE_PARTITIONS: &str = "update partition_claims c set owner = null
from unnest($2::integer[], $3::bigint[]) as h (partition, epoch)
where c.topic = $4 and c.partition = h.partition and c.epoch = h.epoch and c.owner = $1 returning c.partition";

type PartitionRow = (i32, Option<String>, i64, String, i64, Option<i64>);

fn partition((partition, owner, epoch, cluster, position, ahead): PartitionRow) -> PartitionClaim {
    PartitionClaim { partition, owner: owner.as_deref().and_then(Incarnation::parse), epoch, cluster, position, ahead }
}

fn shard(number: i32) -> ShardId {
    ShardId(u16::try_from(number).expect("a shard's number"))
}

fn columns(claims: &[(ShardId, Epoch)]) -> (Vec<i32>, Vec<Epoch>) {
    claims.iter().map(|(shard, epoch)| (i32::from(shard.0), *epoch)).unzip()
}

fn is_locked(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(refused) if refused.code().as_deref() == Some(LOCKED))
}

impl PostgresMembership {
    async fn read_shards(&self) -> Result<Vec<ShardClaim>, Error> {
        let read = "select shard, owner, epoch from shard_claims where shard < $1 order by shard";
        let rows: Vec<(i32, Option<String>, i64)> = ask_shortly!(self.pool, |connection| {
            sqlx::query_as(read).bind(i32::from(self.shards)).fetch_all(connection)
        })
        .map_err(unavailable)?;
        let claim = |(number, owner, epoch): (i32, Option<String>, i64)| ShardClaim {
            shard: shard(number),
            owner: owner.as_deref().and_then(Incarnation::parse),
            epoch,
        };
        Ok(rows.into_iter().map(claim).collect())
    }

    async fn read_partitions(&self, topic: &str) -> Result<Vec<PartitionClaim>, Error> {
        let read = "select partition, owner, epoch, cluster, position, ahead from partition_claims \
                    where topic = $1 order by partition";
        let rows: Vec<PartitionRow> =
            ask_shortly!(self.pool, |connection| sqlx::query_as(read).bind(topic).fetch_all(connection))
                .map_err(unavailable)?;
        Ok(rows.into_iter().map(partition).collect())
    }

    async fn take_some_shards(
        &self,
        me: Incarnation,
        wanted: &[(ShardId, Epoch)],
    ) -> Result<Vec<(ShardId, Epoch)>, Error> {
        let (shards, epochs) = columns(wanted);
        let take = async |statement: &'static str| -> sqlx::Result<Vec<(i32, i64)>> {
            ask_shortly!(self.pool, |connection| {
                sqlx::query_as(statement).bind(me.to_string()).bind(&shards).bind(&epochs).fetch_all(connection)
            })
        };
        let taken = match take(TAKE_SHARDS[0]).await {
            Err(error) if is_locked(&error) => take(TAKE_SHARDS[1]).await,
            other => other,
        };
        Ok(taken.map_err(unavailable)?.into_iter().map(|(number, epoch)| (shard(number), epoch)).collect())
    }

    async fn release_some_shards(&self, me: Incarnation, held: &[(ShardId, Epoch)]) -> Result<Vec<ShardId>, Error> {
        let (shards, epochs) = columns(held);
        let released: Vec<i32> = ask_shortly!(self.pool, |connection| {
            sqlx::query_scalar(RELEASE_SHARDS).bind(me.to_string()).bind(shards).bind(epochs).fetch_all(connection)
        })
        .map_err(unavailable)?;
        Ok(released.into_iter().map(shard).collect())
    }

    async fn take_some_partitions(
        &self,
        me: Incarnation,
        topic: &str,
        wanted: &[(i32, Epoch)],
    ) -> Result<Vec<PartitionClaim>, Error> {
        let (partitions, epochs): (Vec<i32>, Vec<Epoch>) = wanted.iter().copied().unzip();
        let take = async |statement: &'static str| -> sqlx::Result<Vec<PartitionRow>> {
            ask_shortly!(self.pool, |connection| {
                let query = sqlx::query_as(statement).bind(me.to_string()).bind(&partitions).bind(&epochs);
                query.bind(topic).fetch_all(connection)
            })
        };
        let taken = match take(TAKE_PARTITIONS[0]).await {
            Err(error) if is_locked(&error) => take(TAKE_PARTITIONS[1]).await,
            other => other,
        };
        Ok(taken.map_err(unavailable)?.into_iter().map(partition).collect())
    }

    async fn begin_some_partitions(
        &self,
        me: Incarnation,
        log: &LogName,
        beginnings: &[Beginning],
    ) -> Result<Vec<(i32, Epoch)>, Error> {
        let column = |of: fn(&Beginning) -> i64| beginnings.iter().map(of).collect::<Vec<_>>();
        ask_shortly!(self.pool, |connection| {
            sqlx::query_as(BEGIN_PARTITIONS)
                .bind(me.to_string())
                .bind(beginnings.iter().map(|one| one.partition).collect::<Vec<_>>())
                .bind(column(|one| one.epoch))
                .bind(column(|one| one.position))
                .bind(&log.topic)
                .bind(&log.cluster)
                .fetch_all(connection)
        })
        .map_err(unavailable)
    }

    async fn release_some_partitions(
        &self,
        me: Incarnation,
        topic: &str,
        held: &[(i32, Epoch)],
    ) -> Result<Vec<i32>, Error> {
        let (partitions, epochs): (Vec<i32>, Vec<Epoch>) = held.iter().copied().unzip();
        ask_shortly!(self.pool, |connection| {
            let query = sqlx::query_scalar(RELEASE_PARTITIONS).bind(me.to_string()).bind(&partitions).bind(&epochs);
            query.bind(topic).fetch_all(connection)
        })
        .map_err(unavailable)
    }
}

impl Claims for PostgresMembership {
    fn shards(&self) -> Answer<'_, Vec<ShardClaim>> {
        Box::pin(self.read_shards())
    }

    fn take_shards<'a>(&'a self, me: Incarnation, wanted: &'a [(ShardId, Epoch)]) -> Answer<'a, Vec<(ShardId, Epoch)>> {
        Box::pin(self.take_some_shards(me, wanted))
    }

    fn release_shards<'a>(&'a self, me: Incarnation, held: &'a [(ShardId, Epoch)]) -> Answer<'a, Vec<ShardId>> {
        Box::pin(self.release_some_shards(me, held))
    }

    fn partitions<'a>(&'a self, topic: &'a str) -> Answer<'a, Vec<PartitionClaim>> {
        Box::pin(self.read_partitions(topic))
    }

    fn take_partitions<'a>(
        &'a self,
        me: Incarnation,
        topic: &'a str,
        wanted: &'a [(i32, Epoch)],
    ) -> Answer<'a, Vec<PartitionClaim>> {
        Box::pin(self.take_some_partitions(me, topic, wanted))
    }

    fn begin_partitions<'a>(
        &'a self,
        me: Incarnation,
        log: &'a LogName,
        beginnings: &'a [Beginning],
    ) -> Answer<'a, Vec<(i32, Epoch)>> {
        Box::pin(self.begin_some_partitions(me, log, beginnings))
    }

    fn release_partitions<'a>(
        &'a self,
        me: Incarnation,
        topic: &'a str,
        held: &'a [(i32, Epoch)],
    ) -> Answer<'a, Vec<i32>> {
        Box::pin(self.release_some_partitions(me, topic, held))
    }
}
