//! Positions of Kafka partitions in SQLite.

use super::{SqliteStore, unavailable};
use crate::{
    event::unix_millis_now,
    ids::LogEpoch,
    store::{
        Answer, Error,
        positions::{Held, Known, LogName, Positions, Unmoved, behind_its_copies},
    },
};

impl SqliteStore {
    async fn take_partitions(&self, log: &LogName, partitions: &[i32]) -> Result<Vec<(i32, Known)>, Error> {
        let take = "update partition_claims set owner = ?1, epoch = epoch + 1 where topic = ?2 and partition = ?3 \
                    returning cluster, epoch, position, ahead";
        let mut transaction = self.begin_owned().await?;
        let mut taken = Vec::with_capacity(partitions.len());
        for &partition in partitions {
            let take = sqlx::query_as(take).bind(&self.owner).bind(&log.topic).bind(partition);
            let found: Option<(String, i64, i64, Option<i64>)> =
                take.fetch_optional(&mut *transaction).await.map_err(unavailable)?;
            let known = found.map_or(Known::Nothing, |(cluster, epoch, position, ahead)| {
                self.partitions.hold(partition, Held { epoch, position });
                if cluster == log.cluster { Known::At { position, ahead } } else { Known::Foreign }
            });
            taken.push((partition, known));
        }
        transaction.commit().await.map_err(unavailable)?;
        Ok(taken)
    }

    async fn begin_partitions(&self, log: &LogName, positions: &[(i32, i64)]) -> Result<Vec<i32>, Error> {
        let begin = "insert into partition_claims as c (topic, partition, cluster, owner, epoch, position) \
                     values (?1, ?2, ?3, ?4, 1, ?5) \
                     on conflict (topic, partition) do update set cluster = excluded.cluster, \
                     owner = excluded.owner, epoch = c.epoch + 1, position = excluded.position returning epoch";
        let mut transaction = self.begin_owned().await?;
        for &(partition, position) in positions {
            let begin = sqlx::query_scalar(begin).bind(&log.topic).bind(partition).bind(&log.cluster);
            let begin = begin.bind(&self.owner).bind(position);
            let epoch = begin.fetch_one(&mut *transaction).await.map_err(unavailable)?;
            self.partitions.hold(partition, Held { epoch, position });
        }
        transaction.commit().await.map_err(unavailable)?;
        Ok(positions.iter().map(|(partition, _)| *partition).collect())
    }

    async fn write_positions(&self, log: &LogName, positions: &[(i32, i64)]) -> Result<(), Error> {
        let moved = self.partitions.moved(positions);
        if moved.is_empty() {
            return Ok(());
        }
        let write = "update partition_claims set position = ?1 where topic = ?2 and partition = ?3 and owner = ?4 \
                     and epoch = ?5 and position between ?6 and ?1";
        let mut transaction = self.begin_owned().await?;
        let mut unmoved = Vec::new();
        for &(partition, held, position) in &moved {
            let write = sqlx::query(write).bind(position).bind(&log.topic).bind(partition).bind(&self.owner);
            let written = write.bind(held.epoch).bind(held.position).execute(&mut *transaction).await;
            if written.map_err(unavailable)?.rows_affected() == 0 {
                unmoved.push((partition, held));
            }
        }
        transaction.commit().await.map_err(unavailable)?;
        for (partition, held, position) in
            moved.iter().filter(|(one, ..)| !unmoved.iter().any(|(other, _)| one == other))
        {
            self.partitions.written(*partition, *held, *position);
        }
        for (partition, held) in unmoved {
            self.explain(log, partition, held).await?;
        }
        Ok(())
    }

    /// Why a position did not move.
    async fn explain(&self, log: &LogName, partition: i32, held: Held) -> Result<(), Error> {
        let look = "select owner, epoch, position from partition_claims where topic = ?1 and partition = ?2";
        let look = sqlx::query_as(look).bind(&log.topic).bind(partition);
        let found: Option<(String, i64, i64)> = look.fetch_optional(&self.reads).await.map_err(unavailable)?;
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
        let mut transaction = self.begin_owned().await?;
        let forget = sqlx::query("delete from partition_claims where topic = ?1").bind(&log.topic);
        forget.execute(&mut *transaction).await.map_err(unavailable)?;
        self.partitions.clear();
        transaction.commit().await.map_err(unavailable)
    }

    /// The log's numbers may be given a second time from here on: they get another epoch.
    pub(super) async fn renew_epoch(&self, topic: &str, copies: &[(i32, i64)]) -> Result<(), Error> {
        let mut transaction = self.begin_owned().await?;
        let former = "insert into former_epochs (epoch, ended_at) select epoch, ?1 from meta where true \
                      on conflict (epoch) do update set ended_at = excluded.ended_at";
        sqlx::query(former).bind(unix_millis_now()).execute(&mut *transaction).await.map_err(unavailable)?;
        for (partition, copy) in copies {
            let notice = "update partition_claims set ahead = ?1 where topic = ?2 and partition = ?3";
            let notice = sqlx::query(notice).bind(copy).bind(topic).bind(partition);
            notice.execute(&mut *transaction).await.map_err(unavailable)?;
        }
        let renew = sqlx::query("update meta set epoch = ?1").bind(LogEpoch::random().to_string());
        renew.execute(&mut *transaction).await.map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)
    }
}

impl Positions for SqliteStore {
    fn take<'a>(&'a self, log: &'a LogName, partitions: &'a [i32]) -> Answer<'a, Vec<(i32, Known)>> {
        Box::pin(self.take_partitions(log, partitions))
    }

    fn begin<'a>(&'a self, log: &'a LogName, positions: &'a [(i32, i64)]) -> Answer<'a, Vec<i32>> {
        Box::pin(self.begin_partitions(log, positions))
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
