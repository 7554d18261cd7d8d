//! Appending: one statement for many users, which numbers its rows itself under the fence.

use std::{collections::HashSet, sync::atomic::Ordering};

use sqlx::{Row as _, postgres::PgConnection};

use super::{PostgresStore, WRITE_TIMEOUT, queries::APPEND, unavailable};
use crate::{
    event::unix_millis_now,
    placement::{ShardId, shard},
    store::{
        Appended, Error,
        poison::Attempt,
        row::{self, Row, day, durability_number, number, priority_number, signed},
    },
};

impl PostgresStore {
    /// One attempt to write rows. When its outcome is not known, the epochs of its shards are raised before the next
    /// one, so that it either has happened by then or never will.
    pub(super) async fn attempt(&self, rows: &[Row<'_>]) -> Result<Attempt, Error> {
        let shard_of: Vec<ShardId> = rows.iter().map(|row| shard(&row.event.user, self.shards)).collect();
        let mut shards = shard_of.clone();
        shards.sort_unstable();
        shards.dedup();
        self.settle_doubts(&shards).await?;
        let epochs: Vec<i64> = {
            let held = self.epochs.lock();
            shards.iter().map(|shard| held[usize::from(shard.0)]).collect()
        };
        let mut connection = self.writes.acquire().await.map_err(unavailable)?;
        let statement = append(&mut connection, self, rows, &shard_of, (&shards, &epochs));
        match tokio::time::timeout(WRITE_TIMEOUT, statement).await {
            Ok(Ok(answer)) => self.outcomes(rows.len(), &shard_of, answer).await,
            Ok(Err(error)) => self.failed(error, &shards),
            Err(_) => {
                // Dropped at once: a connection that goes back into the pool would wait for the answer.
                drop(connection.detach());
                self.doubt(&shards);
                Err(Error::Unavailable { reason: format!("no answer to a write within {WRITE_TIMEOUT:?}") })
            }
        }
    }

    fn failed(&self, error: sqlx::Error, shards: &[ShardId]) -> Result<Attempt, Error> {
        match &error {
            sqlx::Error::Database(refused) => {
                let code = refused.code().unwrap_or_default();
                let has_no_partition = code == "23514" && refused.constraint().is_none();
                if has_no_partition {
                    self.days_missing.store(true, Ordering::Relaxed);
                } else if code.starts_with("22") || code.starts_with("23") {
                    return Ok(Attempt::Poison(refused.message().to_owned()));
                }
            }
            // Never sent.
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => {}
            // The answer, or the statement itself, was lost on its way.
            _ => self.doubt(shards),
        }
        Err(unavailable(error))
    }

    async fn outcomes(
        &self,
        rows: usize,
        shard_of: &[ShardId],
        answer: Vec<(i32, i64, i64)>,
    ) -> Result<Attempt, Error> {
        let mut outcomes = vec![None; rows];
        let mut fenced = HashSet::new();
        for (kind, place, seq) in answer {
            // Places count from 1.
            let at = usize::try_from(place - 1).unwrap_or(usize::MAX);
            match (kind, outcomes.get_mut(at)) {
                (0, Some(outcome)) => *outcome = Some(Appended::Duplicate(number(seq))),
                (1, Some(outcome)) => *outcome = Some(Appended::Stored(number(seq))),
                _ => _ = fenced.insert(place),
            }
        }
        match outcomes.into_iter().collect::<Option<Vec<_>>>() {
            Some(outcomes) => Ok(Attempt::Done(outcomes)),
            None => {
                let lost = shard_of.iter().find(|shard| !fenced.contains(&i64::from(shard.0)));
                let reason = format!("shard {} is not this process's any more", lost.map_or(0, |shard| shard.0));
                // A database that was exchanged explains it better.
                self.check_epoch().await?;
                Err(Error::Lost { reason })
            }
        }
    }

    /// As if no answer had come for any shard.
    #[cfg(test)]
    pub(in crate::store) fn doubt_all(&self) {
        self.doubt(&(0..self.shards).map(ShardId).collect::<Vec<_>>());
    }

    /// The outcome of a statement for these shards is not known.
    fn doubt(&self, shards: &[ShardId]) {
        self.doubts.lock().extend(shards);
    }

    /// Raises the epochs of those among these shards whose last statement may still be under way.
    async fn settle_doubts(&self, shards: &[ShardId]) -> Result<(), Error> {
        let doubtful: Vec<ShardId> = {
            let doubts = self.doubts.lock();
            shards.iter().copied().filter(|shard| doubts.contains(shard)).collect()
        };
        if doubtful.is_empty() {
            return Ok(());
        }
        tracing::warn!(shards = doubtful.len(), "the outcome of a write is not known: raising epochs before the next");
        let numbers: Vec<i32> = doubtful.iter().map(|shard| i32::from(shard.0)).collect();
        let raise = sqlx::query_as::<_, (i32, i64)>(
            "update shard_claims c set epoch = c.epoch + 1 from (select shard from shard_claims \
             where shard = any($1) order by shard for no key update) locked \
             where c.shard = locked.shard and c.owner = $2 returning c.shard, c.epoch",
        );
        let mut connection = self.writes.acquire().await.map_err(unavailable)?;
        let raise = raise.bind(&numbers).bind(&self.owner).fetch_all(&mut *connection);
        let Ok(raised) = tokio::time::timeout(WRITE_TIMEOUT, raise).await else {
            drop(connection.detach());
            return Err(Error::Unavailable { reason: "raising epochs took too long".into() });
        };
        let raised = raised.map_err(unavailable)?;
        if raised.len() < doubtful.len() {
            self.check_epoch().await?;
            return Err(Error::Lost { reason: "shards are not this process's any more".into() });
        }
        let mut held = self.epochs.lock();
        for (shard, epoch) in raised {
            held[usize::try_from(shard).expect("a shard's number")] = epoch;
        }
        let mut doubts = self.doubts.lock();
        doubtful.iter().for_each(|shard| _ = doubts.remove(shard));
        Ok(())
    }
}

async fn append(
    connection: &mut PgConnection,
    store: &PostgresStore,
    rows: &[Row<'_>],
    shard_of: &[ShardId],
    (shards, epochs): (&[ShardId], &[i64]),
) -> sqlx::Result<Vec<(i32, i64, i64)>> {
    let now = unix_millis_now();
    // A row of tomorrow is there only for a record that says tomorrow.
    let last_day = rows.iter().map(|row| row.place.day).fold(day(now), i64::max);
    let numbers = |shards: &[ShardId]| shards.iter().map(|shard| i32::from(shard.0)).collect::<Vec<_>>();
    let days = |of: fn(&Row<'_>) -> i64| rows.iter().map(|row| day_number(of(row))).collect::<Vec<_>>();
    let texts = |of: for<'x> fn(&'x Row<'_>) -> &'x str| rows.iter().map(of).collect::<Vec<_>>();
    let smalls = |of: fn(&Row<'_>) -> i16| rows.iter().map(of).collect::<Vec<_>>();
    let times = |of: fn(&Row<'_>) -> i64| rows.iter().map(of).collect::<Vec<_>>();
    let ttls: Vec<Option<i64>> = rows.iter().map(|row| row.event.options.ttl.map(row::millis)).collect();
    let keys: Vec<Option<&str>> = rows.iter().map(|row| row.event.options.collapse_key.as_deref()).collect();
    let payloads: Vec<&[u8]> = rows.iter().map(|row| row.event.payload.as_bytes()).collect();
    let query = sqlx::query(APPEND)
        .bind(numbers(shards))
        .bind(epochs)
        .bind(&store.owner)
        .bind(numbers(shard_of))
        .bind(texts(|row| &row.event.user))
        .bind(texts(|row| &row.event.id))
        .bind(smalls(|row| row.place.class.number))
        .bind(days(|row| row.place.day))
        .bind(times(|row| row.place.known_since))
        .bind(days(|row| row.place.known_day))
        .bind(texts(|row| &row.event.notification_type))
        .bind(payloads)
        .bind(smalls(|row| durability_number(row.event.options.durability)))
        .bind(smalls(|row| priority_number(row.event.options.priority)))
        .bind(keys)
        .bind(ttls)
        .bind(times(|row| row.event.created_at))
        .bind(times(|row| row.event.recorded_at))
        .bind(times(|row| row.place.expires_at))
        .bind(day_number(last_day))
        .bind(signed(store.keeping.per_user_max))
        .bind(now);
    let rows = query.fetch_all(&mut *connection).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))).collect()
}

/// A day as the database writes it: far beyond what any record says.
fn day_number(day: i64) -> i32 {
    i32::try_from(day).unwrap_or(if day < 0 { i32::MIN } else { i32::MAX })
}
