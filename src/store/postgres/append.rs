//! Appending and holding back: one statement for many users, under the fence. Appending, it numbers its rows itself.

use std::{collections::HashSet, sync::Arc};

use sqlx::{Row as _, postgres::PgConnection};

use super::{
    PostgresStore,
    fence::{Failure, Fence, single},
    queries::{APPEND, HOLD},
};
use crate::{
    event::{Event, unix_millis_now},
    ids::Sequence,
    store::{
        Appended, Error,
        poison::{self, Attempt},
        row::{self, Group, Outcome, Row, day, durability_number, number, priority_number, signed},
        waiting::{Held, Holding},
    },
};

/// The kind of an answer's row that names a shard of the fence.
const FENCED: i32 = 2;

/// What a statement for a group of rows has to say of each.
trait Written: Outcome {
    const STATEMENT: &'static str;

    fn of(kind: i32, seq: Sequence) -> Option<Self>;
}

impl Written for Appended {
    const STATEMENT: &'static str = APPEND;

    fn of(kind: i32, seq: Sequence) -> Option<Self> {
        match kind {
            0 => Some(Self::Duplicate(seq)),
            1 => Some(Self::Stored(seq)),
            3 => Some(Self::Known),
            _ => None,
        }
    }
}

impl Written for Held {
    const STATEMENT: &'static str = HOLD;

    fn of(kind: i32, seq: Sequence) -> Option<Self> {
        match kind {
            0 => Some(Self::Duplicate(seq)),
            1 => Some(Self::Waiting),
            3 => Some(Self::Known),
            _ => None,
        }
    }
}

impl PostgresStore {
    pub(super) async fn append_group(&self, events: &[Arc<Event>]) -> Result<Vec<Appended>, Error> {
        self.write_group(&Group::new(events, &self.keeping, unix_millis_now())).await
    }

    pub(super) async fn hold_group(&self, holding: &[Holding]) -> Result<Vec<Held>, Error> {
        self.write_group(&Group::new(holding, &self.keeping, unix_millis_now())).await
    }

    async fn write_group<T: Written>(&self, group: &Group<'_>) -> Result<Vec<T>, Error> {
        let of_rows = poison::isolate(&group.rows, |rows| self.attempt(rows), Row::name).await?;
        Ok(group.outcomes(&of_rows))
    }

    /// One attempt to write rows.
    async fn attempt<T: Written>(&self, rows: &[Row<'_>]) -> Result<Attempt<T>, Error> {
        let fence = self.fence(rows.iter().map(|row| &row.event.user)).await?;
        match single!(self.writes, |connection| send(connection, T::STATEMENT, self, rows, &fence)) {
            Ok(answer) => self.outcomes(rows.len(), &fence, answer).await,
            Err(error) => match self.failed(error, &fence) {
                Failure::Poison(why) => Ok(Attempt::Poison(why)),
                Failure::Other(error) => Err(error),
            },
        }
    }

    async fn outcomes<T: Written>(
        &self,
        rows: usize,
        fence: &Fence,
        answer: Vec<(i32, i64, i64)>,
    ) -> Result<Attempt<T>, Error> {
        let mut outcomes = vec![None; rows];
        let mut fenced = HashSet::new();
        for (kind, nth, seq) in answer {
            if kind == FENCED {
                fenced.extend(i32::try_from(nth));
            } else if let Some(outcome) = usize::try_from(nth - 1).ok().and_then(|at| outcomes.get_mut(at)) {
                *outcome = T::of(kind, number(seq));
            }
        }
        match outcomes.into_iter().collect::<Option<Vec<_>>>() {
            Some(outcomes) => Ok(Attempt::Done(outcomes)),
            None => {
                self.check_fence(fence, fenced).await?;
                Err(self.lost(None).await)
            }
        }
    }
}

async fn send(
    connection: &mut PgConnection,
    statement: &'static str,
    store: &PostgresStore,
    rows: &[Row<'_>],
    fence: &Fence,
) -> sqlx::Result<Vec<(i32, i64, i64)>> {
    let now = unix_millis_now();
    // A row of tomorrow is there only for a record that says tomorrow.
    let last_day = rows.iter().map(|row| row.place.day).fold(day(now), i64::max);
    let first_day = rows.iter().map(|row| row.place.known_day).fold(last_day, i64::min);
    let days = |of: fn(&Row<'_>) -> i64| rows.iter().map(|row| day_number(of(row))).collect::<Vec<_>>();
    let texts = |of: for<'x> fn(&'x Row<'_>) -> &'x str| rows.iter().map(of).collect::<Vec<_>>();
    let smalls = |of: fn(&Row<'_>) -> i16| rows.iter().map(of).collect::<Vec<_>>();
    let times = |of: fn(&Row<'_>) -> i64| rows.iter().map(of).collect::<Vec<_>>();
    let ttls: Vec<Option<i64>> = rows.iter().map(|row| row.event.options.ttl.map(row::millis)).collect();
    let keys: Vec<Option<&str>> = rows.iter().map(|row| row.event.options.collapse_key.as_deref()).collect();
    let payloads: Vec<&[u8]> = rows.iter().map(|row| row.event.payload.as_bytes()).collect();
    #[cfg(feature = "mutants")]
    let statement = unfenced(statement);
    let query = sqlx::query(statement)
        .bind(fence.shards())
        .bind(&fence.epochs)
        .bind(&store.owner)
        .bind(fence.shard_of())
        .bind(texts(|row| &row.event.user))
        .bind(texts(|row| &row.event.id))
        .bind(smalls(|row| row.place.class.number))
        .bind(days(|row| row.place.day))
        .bind(times(|row| row.place.known_since))
        .bind(day_number(first_day))
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
        .bind(now)
        .bind(rows.iter().map(|row| row.digest.map(|id| &**id)).collect::<Vec<_>>())
        .bind(signed(store.keeping.per_user_max));
    let rows = query.fetch_all(&mut *connection).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))).collect()
}

#[cfg(feature = "mutants")]
pub(super) fn unfenced(statement: &'static str) -> sqlx::AssertSqlSafe<String> {
    let fence = [(" and c.epoch = held.epoch", ""), ("c.owner = $3 and", "$3::text is not null and")];
    let fence = fence.into_iter().filter(|_| crate::mutant::is(crate::mutant::Mutant::Unfenced));
    sqlx::AssertSqlSafe(fence.fold(statement.to_owned(), |sql, (part, without)| {
        assert!(sql.contains(part), "the fence is another one");
        sql.replace(part, without)
    }))
}

/// A day as the database writes it: far beyond what any record says.
fn day_number(day: i64) -> i32 {
    i32::try_from(day).unwrap_or(if day < 0 { i32::MIN } else { i32::MAX })
}
