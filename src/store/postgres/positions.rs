//! Positions of Kafka partitions in PostgreSQL.

use std::collections::BTreeSet;

use super::{PostgresStore, ask, fence::single, membership::PostgresMembership, unavailable};
use crate::{
    event::unix_millis_now,
    ids::{Incarnation, LogEpoch},
    store::{
        Answer, Error,
        claims::{Beginning, Claims, PartitionClaim},
        positions::{Held, Known, LogName, Positions, Unmoved, behind_its_copies},
    },
};

impl PostgresStore {
    async fn take_partitions(&self, log: &LogName, partitions: &[i32]) -> Result<Vec<(i32, Known)>, Error> {
        if let Some((me, common)) = &self.common {
            return self.take_free(*me, common, log, partitions).await;
        }
        let take = "update partition_claims set owner = $1, epoch = epoch + 1 \
                    where topic = $2 and partition = any($3) returning partition, cluster, epoch, position, ahead";
        let found: Vec<(i32, String, i64, i64, Option<i64>)> = single!(self.writes, |connection| {
            sqlx::query_as(take).bind(&self.owner).bind(&log.topic).bind(partitions).fetch_all(connection)
        })
        .map_err(unavailable)?;
        let known = |partition: &i32| {
            let row = found.iter().find(|row| row.0 == *partition);
            let known = row.map_or(Known::Nothing, |(_, cluster, epoch, position, ahead)| {
                self.partitions.hold(*partition, Held { epoch: *epoch, position: *position });
                if *cluster == log.cluster { Known::At { position: *position, ahead: *ahead } } else { Known::Foreign }
            });
            (*partition, known)
        };
        Ok(partitions.iter().map(known).collect())
    }

    /// Takes what no other living member has.
    async fn take_free(
        &self,
        me: Incarnation,
        common: &PostgresMembership,
        log: &LogName,
        partitions: &[i32],
    ) -> Result<Vec<(i32, Known)>, Error> {
        let known = common.partitions(&log.topic).await?;
        let is_new = |partition: &&i32| known.iter().all(|claim| claim.partition != **partition);
        let mut taken: Vec<(i32, Known)> = partitions.iter().filter(is_new).map(|one| (*one, Known::Nothing)).collect();
        let wanted = known.iter().filter(|claim| partitions.contains(&claim.partition));
        let wanted: Vec<_> = wanted.map(|claim| (claim.partition, claim.epoch)).collect();
        if wanted.is_empty() {
            return Ok(taken);
        }
        for claim in Claims::take_partitions(common, me, &log.topic, &wanted).await? {
            let PartitionClaim { partition, epoch, cluster, position, ahead, .. } = claim;
            self.partitions.hold(partition, Held { epoch, position });
            let is_ours = cluster == log.cluster;
            taken.push((partition, if is_ours { Known::At { position, ahead } } else { Known::Foreign }));
        }
        Ok(taken)
    }

    async fn begin_held(
        &self,
        me: Incarnation,
        common: &PostgresMembership,
        log: &LogName,
        positions: &[(i32, i64)],
    ) -> Result<Vec<i32>, Error> {
        let beginning = |(partition, position): &(i32, i64)| Beginning {
            partition: *partition,
            epoch: self.partitions.held(*partition).map_or(0, |held| held.epoch),
            position: *position,
        };
        let beginnings: Vec<_> = positions.iter().map(beginning).collect();
        let begun = Claims::begin_partitions(common, me, log, &beginnings).await?;
        for (partition, epoch) in &begun {
            let position = positions.iter().find(|(one, _)| one == partition).map_or(0, |(_, position)| *position);
            self.partitions.hold(*partition, Held { epoch: *epoch, position });
        }
        Ok(begun.into_iter().map(|(partition, _)| partition).collect())
    }

    async fn owners_of(&self, log: &LogName) -> Result<Vec<(i32, Option<Incarnation>)>, Error> {
        let Some((_, common)) = &self.common else { return Ok(Vec::new()) };
        let claims = common.partitions(&log.topic).await?;
        Ok(claims.into_iter().map(|claim| (claim.partition, claim.owner)).collect())
    }

    async fn release_all_but(&self, log: &LogName, held: &BTreeSet<i32>) -> Result<usize, Error> {
        let Some((me, common)) = &self.common else { return Ok(0) };
        let claims = common.partitions(&log.topic).await?;
        let is_left_over = |claim: &&PartitionClaim| claim.owner == Some(*me) && !held.contains(&claim.partition);
        let left_over: Vec<_> =
            claims.iter().filter(is_left_over).map(|claim| (claim.partition, claim.epoch)).collect();
        if !left_over.is_empty() {
            Claims::release_partitions(common, *me, &log.topic, &left_over).await?;
        }
        // Not before: who fails asks again.
        self.partitions.keep_only(held);
        Ok(left_over.len())
    }

    async fn begin_partitions(&self, log: &LogName, positions: &[(i32, i64)]) -> Result<Vec<i32>, Error> {
        if let Some((me, common)) = &self.common {
            return self.begin_held(*me, common, log, positions).await;
        }
        let begin = "insert into partition_claims as c (topic, partition, cluster, owner, epoch, position) \
                     select $1, p.partition, $2, $3, 1, p.position \
                     from unnest($4::integer[], $5::bigint[]) as p (partition, position) \
                     on conflict (topic, partition) do update set cluster = excluded.cluster, \
                     owner = excluded.owner, epoch = c.epoch + 1, position = excluded.position \
                     returning partition, epoch, position";
        let (partitions, offsets): (Vec<i32>, Vec<i64>) = positions.iter().copied().unzip();
        let begun: Vec<(i32, i64, i64)> = single!(self.writes, |connection| {
            sqlx::query_as(begin)
                .bind(&log.topic)
                .bind(&log.cluster)
                .bind(&self.owner)
                .bind(&partitions)
                .bind(&offsets)
                .fetch_all(connection)
        })
        .map_err(unavailable)?;
        for (partition, epoch, position) in begun {
            self.partitions.hold(partition, Held { epoch, position });
        }
        Ok(partitions)
    }

    async fn write_positions(&self, log: &LogName, positions: &[(i32, i64)]) -> Result<(), Error> {
        let moved = self.partitions.moved(positions);
        if moved.is_empty() {
            return Ok(());
        }
        let write = "update partition_claims c set position = p.position \
                     from unnest($3::integer[], $4::bigint[], $5::bigint[], $6::bigint[]) \
                     as p (partition, epoch, held, position) \
                     where c.topic = $1 and c.owner = $2 and c.partition = p.partition and c.epoch = p.epoch \
                     and c.position between p.held and p.position returning c.partition";
        let column = |of: fn(&(i32, Held, i64)) -> i64| moved.iter().map(of).collect::<Vec<_>>();
        let partitions: Vec<i32> = moved.iter().map(|(partition, ..)| *partition).collect();
        let written: Vec<i32> = single!(self.writes, |connection| {
            sqlx::query_scalar(write)
                .bind(&log.topic)
                .bind(&self.owner)
                .bind(&partitions)
                .bind(column(|(_, held, _)| held.epoch))
                .bind(column(|(_, held, _)| held.position))
                .bind(column(|(.., position)| *position))
                .fetch_all(connection)
        })
        .map_err(unavailable)?;
        for (partition, held, position) in moved {
            let is_held = self.partitions.held(partition).is_some_and(|now| now.epoch == held.epoch);
            if is_held && !written.contains(&partition) {
                self.explain(log, partition, held).await?;
            }
            self.partitions.written(partition, held, position);
        }
        Ok(())
    }

    /// Why a position did not move.
    async fn explain(&self, log: &LogName, partition: i32, held: Held) -> Result<(), Error> {
        self.check_epoch().await?;
        let look =
            "select coalesce(owner, ''), epoch, position from partition_claims where topic = $1 and partition = $2";
        let found: Option<(String, i64, i64)> = ask!(self.reads, |connection| sqlx::query_as(look)
            .bind(&log.topic)
            .bind(partition)
            .fetch_optional(connection))?;
        match held.explain(partition, &self.owner, found) {
            Unmoved::Passed => Ok(()),
            Unmoved::Taken(error) => Err(error),
            Unmoved::WentBack(error) => {
                self.renew_epoch(&log.topic, &[]).await?;
                Err(error)
            }
        }
    }

    async fn forget_topic(&self, log: &LogName) -> Result<(), Error> {
        single!(self.writes, |connection| {
            sqlx::query("delete from partition_claims where topic = $1").bind(&log.topic).execute(connection)
        })
        .map_err(unavailable)?;
        self.partitions.clear();
        Ok(())
    }

    /// The log's numbers may be given a second time from here on: they get another epoch, in one statement.
    pub(super) async fn renew_epoch(&self, topic: &str, copies: &[(i32, i64)]) -> Result<(), Error> {
        let renew = "with former as (insert into former_epochs (epoch, ended_at) select epoch, $2 from meta \
                     on conflict (epoch) do update set ended_at = excluded.ended_at returning 1), \
                     noticed as (update partition_claims c set ahead = p.copy \
                     from unnest($4::integer[], $5::bigint[]) as p (partition, copy) \
                     where c.topic = $3 and c.partition = p.partition returning 1) \
                     update meta set epoch = $1";
        let (partitions, offsets): (Vec<i32>, Vec<i64>) = copies.iter().copied().unzip();
        single!(self.writes, |connection| {
            sqlx::query(renew)
                .bind(&*LogEpoch::random())
                .bind(unix_millis_now())
                .bind(topic)
                .bind(&partitions)
                .bind(&offsets)
                .execute(connection)
        })
        .map_err(unavailable)?;
        Ok(())
    }
}

impl Positions for PostgresStore {
    fn take<'a>(&'a self, log: &'a LogName, partitions: &'a [i32]) -> Answer<'a, Vec<(i32, Known)>> {
        Box::pin(self.take_partitions(log, partitions))
    }

    fn begin<'a>(&'a self, log: &'a LogName, positions: &'a [(i32, i64)]) -> Answer<'a, Vec<i32>> {
        Box::pin(self.begin_partitions(log, positions))
    }

    fn owners<'a>(&'a self, log: &'a LogName) -> Answer<'a, Vec<(i32, Option<Incarnation>)>> {
        Box::pin(self.owners_of(log))
    }

    fn keep_only<'a>(&'a self, log: &'a LogName, held: &'a BTreeSet<i32>) -> Answer<'a, usize> {
        Box::pin(self.release_all_but(log, held))
    }

    fn write<'a>(&'a self, log: &'a LogName, positions: &'a [(i32, i64)]) -> Answer<'a, ()> {
        Box::pin(self.write_positions(log, positions))
    }

    fn forget<'a>(&'a self, log: &'a LogName) -> Answer<'a, ()> {
        Box::pin(self.forget_topic(log))
    }

    fn went_back<'a>(&'a self, log: &'a LogName, copies: &'a [(i32, i64)]) -> Answer<'a, ()> {
        Box::pin(async move {
            self.renew_epoch(&log.topic, copies).await?;
            Err(behind_its_copies())
        })
    }
}
