//! Appending and holding back: a few statements for the whole group in one transaction, which nobody else can write
//! beside.

use std::{collections::HashMap, sync::Arc};

use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection, Transaction, query_builder::Separated};

use super::{SqliteStore, journal::note, queries, unavailable};
use crate::{
    event::{Event, UnixMillis, unix_millis_now},
    ids::{NotificationId, Sequence},
    placement::shard,
    state::Reason,
    store::{
        Appended, Error,
        journal::Step,
        poison::{self, Attempt},
        row::{self, Group, Row, durability_number, number, priority_number, reason_number, signed},
        waiting::{Held, Holding},
    },
};

/// The columns of an event, which the log and those that wait share.
macro_rules! event_columns {
    () => {
        "user_id, notification_id, notification_type, payload, durability, priority, collapse_key, ttl_ms, created_at, \
         recorded_at, expires_at"
    };
}

/// SQLITE_TOOBIG, SQLITE_CONSTRAINT and SQLITE_MISMATCH: what is in a row is not accepted.
const POISON: [i64; 3] = [18, 19, 20];

/// What stands for an id among those that wait.
struct There {
    place: i64,
    has_ended: bool,
    digest: Option<String>,
}

impl There {
    /// What an earlier attempt of the same call has left.
    fn is_counted_in(&self, digest: Option<&NotificationId>) -> bool {
        digest.is_some_and(|digest| self.digest.as_deref() == Some(&**digest))
    }
}

/// Ends the transaction of an attempt.
async fn finish<T>(transaction: Transaction<'_, Sqlite>, done: sqlx::Result<Vec<T>>) -> Result<Attempt<T>, Error> {
    match done {
        Ok(outcomes) => {
            transaction.commit().await.map_err(unavailable)?;
            Ok(Attempt::Done(outcomes))
        }
        Err(sqlx::Error::Database(refused)) if is_poison(&*refused) => {
            transaction.rollback().await.map_err(unavailable)?;
            Ok(Attempt::Poison(refused.message().to_owned()))
        }
        Err(error) => Err(unavailable(error)),
    }
}

impl SqliteStore {
    pub(super) async fn append_group(&self, events: &[Arc<Event>]) -> Result<Vec<Appended>, Error> {
        let group = Group::new(events, &self.keeping, unix_millis_now());
        let of_rows = poison::isolate(&group.rows, |rows| self.attempt_append(rows), Row::name).await?;
        Ok(group.outcomes(&of_rows))
    }

    pub(super) async fn hold_group(&self, holding: &[Holding]) -> Result<Vec<Held>, Error> {
        let group = Group::new(holding, &self.keeping, unix_millis_now());
        let of_rows = poison::isolate(&group.rows, |rows| self.attempt_hold(rows), Row::name).await?;
        Ok(group.outcomes(&of_rows))
    }

    async fn attempt_append(&self, rows: &[Row<'_>]) -> Result<Attempt<Appended>, Error> {
        let mut transaction = self.begin_owned().await?;
        let done = self.write_append(&mut transaction, rows).await;
        finish(transaction, done).await
    }

    async fn attempt_hold(&self, rows: &[Row<'_>]) -> Result<Attempt<Held>, Error> {
        let mut transaction = self.begin_owned().await?;
        let done = self.write_hold(&mut transaction, rows).await;
        finish(transaction, done).await
    }

    async fn write_append(&self, connection: &mut SqliteConnection, rows: &[Row<'_>]) -> sqlx::Result<Vec<Appended>> {
        let (known, waiting) = (known(connection, rows).await?, waiting(connection, rows).await?);
        let mut released = Vec::new();
        let outcome = |(known, waiting): (Option<_>, Option<There>)| match (known, waiting) {
            (Some(seq), _) => Some(Appended::Duplicate(seq)),
            (None, Some(there)) if there.has_ended => Some(Appended::Known),
            (None, there) => {
                released.extend(there.map(|there| there.place));
                None
            }
        };
        let mut outcomes: Vec<_> = known.into_iter().zip(waiting).map(outcome).collect();
        if !released.is_empty() {
            release(connection, &released).await?;
        }
        let mut of_user: HashMap<&str, i64> = HashMap::new();
        for (row, _) in rows.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_none()) {
            *of_user.entry(&*row.event.user).or_default() += 1;
        }
        if !of_user.is_empty() {
            let mut next = self.grow(connection, &of_user).await?;
            let mut fresh = Vec::with_capacity(rows.len());
            for (row, outcome) in rows.iter().zip(&mut outcomes).filter(|(_, outcome)| outcome.is_none()) {
                let next = next.get_mut(&*row.event.user).ok_or(sqlx::Error::RowNotFound)?;
                *next += 1;
                *outcome = Some(Appended::Stored(number(*next)));
                fresh.push((*next, row));
            }
            insert(connection, &fresh).await?;
        }
        Ok(outcomes.into_iter().map(|outcome| outcome.expect("every row has a number by now")).collect())
    }

    async fn write_hold(&self, connection: &mut SqliteConnection, rows: &[Row<'_>]) -> sqlx::Result<Vec<Held>> {
        let (known, waiting) = (known(connection, rows).await?, waiting(connection, rows).await?);
        let outcome = |((row, known), there): ((&Row<'_>, Option<_>), &Option<There>)| match (known, there) {
            (Some(seq), _) => Held::Duplicate(seq),
            (None, Some(there)) if there.has_ended && !there.is_counted_in(row.digest) => Held::Known,
            (None, _) => Held::Waiting,
        };
        let outcomes = rows.iter().zip(known.iter().copied()).zip(&waiting).map(outcome).collect();
        let of_rows = rows.iter().zip(known).zip(waiting);
        let fresh = |((row, known), there): ((_, Option<_>), Option<There>)| {
            (known.is_none() && there.is_none()).then_some(row)
        };
        let fresh: Vec<&Row<'_>> = of_rows.filter_map(fresh).collect();
        if !fresh.is_empty() {
            self.keep(connection, &fresh, unix_millis_now()).await?;
        }
        Ok(outcomes)
    }

    async fn keep(&self, connection: &mut SqliteConnection, fresh: &[&Row<'_>], now: UnixMillis) -> sqlx::Result<()> {
        let mut insert = QueryBuilder::<Sqlite>::new(concat!(
            "insert into waiting (",
            event_columns!(),
            ", shard, held_at, ended, ended_at, digest, owed) "
        ));
        insert.push_values(fresh, |mut values, row| {
            let (event, ends) = (row.event, row.digest.is_some());
            push_event(&mut values, row);
            values
                .push_bind(shard(&event.user, self.shards).0)
                .push_bind(now)
                .push_bind(ends.then(|| reason_number(Reason::Digested)))
                .push_bind(ends.then_some(now))
                .push_bind(row.digest.map(|digest| &**digest))
                .push_bind(ends);
        });
        insert.build().persistent(false).execute(&mut *connection).await?;
        for row in fresh.iter().filter(|row| row.digest.is_some()) {
            note(connection, &Step::ended(row.event, 0, Reason::Digested, now), self.shards).await?;
        }
        Ok(())
    }

    /// Raises the heads of users; the numbers that they stood at.
    async fn grow(
        &self,
        connection: &mut SqliteConnection,
        of_user: &HashMap<&str, i64>,
    ) -> sqlx::Result<HashMap<String, i64>> {
        let cap = signed(self.keeping.per_user_max);
        let mut grow = QueryBuilder::<Sqlite>::new("insert into heads as h (user_id, head, floor) ");
        grow.push_values(of_user, |mut row, (user, count)| {
            row.push_bind(*user).push_bind(*count).push_bind((count - cap).max(0));
        });
        grow.push(" on conflict (user_id) do update set head = h.head + excluded.head, floor = max(h.floor, h.head + excluded.head - ");
        grow.push_bind(cap).push(") returning user_id, head");
        let heads: Vec<(String, i64)> = grow.build_query_as().persistent(false).fetch_all(connection).await?;
        let before = |(user, head): (String, i64)| {
            let count = of_user.get(&*user).copied().unwrap_or_default();
            (user, head - count)
        };
        Ok(heads.into_iter().map(before).collect())
    }
}

fn is_poison(error: &dyn sqlx::error::DatabaseError) -> bool {
    // Extended codes hold the plain one in their lowest byte.
    let code = error.code().and_then(|code| code.parse::<i64>().ok());
    code.is_some_and(|code| POISON.contains(&(code & 0xff)))
}

/// The rows as a table of places, users and ids.
fn incoming(rows: &[Row<'_>]) -> QueryBuilder<Sqlite> {
    let mut find = QueryBuilder::<Sqlite>::new(queries::INCOMING);
    find.push_values(rows.iter().zip(0i64..), |mut values, (row, place)| {
        values.push_bind(place).push_bind(&*row.event.user).push_bind(&*row.event.id).push_bind(row.place.known_since);
    });
    find.push(") ");
    find
}

/// The numbers of those whose id is known.
async fn known(connection: &mut SqliteConnection, rows: &[Row<'_>]) -> sqlx::Result<Vec<Option<Sequence>>> {
    let mut numbers = vec![None; rows.len()];
    let mut find = incoming(rows);
    for found in find.push(queries::KNOWN).build().persistent(false).fetch_all(connection).await? {
        let place = usize::try_from(found.try_get::<i64, _>(0)?).unwrap_or(usize::MAX);
        if let Some(seq) = numbers.get_mut(place) {
            *seq = Some(number(found.try_get(1)?));
        }
    }
    Ok(numbers)
}

/// What stands for their ids among those that wait.
async fn waiting(connection: &mut SqliteConnection, rows: &[Row<'_>]) -> sqlx::Result<Vec<Option<There>>> {
    let mut waiting: Vec<Option<There>> = rows.iter().map(|_| None).collect();
    let mut find = incoming(rows);
    for found in find.push(queries::STANDING_WAITING).build().persistent(false).fetch_all(connection).await? {
        let place = usize::try_from(found.try_get::<i64, _>(0)?).unwrap_or(usize::MAX);
        if let Some(there) = waiting.get_mut(place) {
            let has_ended = found.try_get::<Option<i64>, _>(2)?.is_some();
            *there = Some(There { place: found.try_get(1)?, has_ended, digest: found.try_get(3)? });
        }
    }
    Ok(waiting)
}

/// They wait no more.
async fn release(connection: &mut SqliteConnection, places: &[i64]) -> sqlx::Result<()> {
    let mut release = QueryBuilder::<Sqlite>::new(queries::RELEASE);
    let mut list = release.separated(", ");
    places.iter().for_each(|place| _ = list.push_bind(*place));
    release.push(")").build().persistent(false).execute(connection).await?;
    Ok(())
}

/// Their values, in the same order.
fn push_event(values: &mut Separated<'_, Sqlite, &'static str>, row: &Row<'_>) {
    let event = row.event;
    values
        .push_bind(&*event.user)
        .push_bind(&*event.id)
        .push_bind(&*event.notification_type)
        .push_bind(event.payload.as_bytes())
        .push_bind(durability_number(event.options.durability))
        .push_bind(priority_number(event.options.priority))
        .push_bind(event.options.collapse_key.as_deref())
        .push_bind(event.options.ttl.map(row::millis))
        .push_bind(event.created_at)
        .push_bind(event.recorded_at)
        .push_bind(row.place.expires_at);
}

async fn insert(connection: &mut SqliteConnection, fresh: &[(i64, &Row<'_>)]) -> sqlx::Result<()> {
    let now = unix_millis_now();
    let mut insert = QueryBuilder::<Sqlite>::new(concat!("insert into log (", event_columns!(), ", seq, stored_at) "));
    insert.push_values(fresh, |mut values, (seq, row)| {
        push_event(&mut values, row);
        values.push_bind(*seq).push_bind(now);
    });
    insert.build().persistent(false).execute(connection).await?;
    Ok(())
}
