//! Appending: a few statements for the whole group in one transaction, which nobody else can write beside.

use std::collections::HashMap;

use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection};

use super::{SqliteStore, queries, unavailable};
use crate::{
    event::unix_millis_now,
    store::{
        Appended, Error,
        poison::Attempt,
        row::{self, Row, durability_number, number, priority_number, signed},
    },
};

/// SQLITE_TOOBIG, SQLITE_CONSTRAINT and SQLITE_MISMATCH: what is in a row is not accepted.
const POISON: [i64; 3] = [18, 19, 20];

impl SqliteStore {
    /// One attempt to write rows.
    pub(super) async fn attempt(&self, rows: &[Row<'_>]) -> Result<Attempt, Error> {
        let mut transaction = self.writes.begin_with("begin immediate").await.map_err(unavailable)?;
        self.check_owner(&mut transaction).await?;
        match self.write(&mut transaction, rows).await {
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

    async fn write(&self, connection: &mut SqliteConnection, rows: &[Row<'_>]) -> sqlx::Result<Vec<Appended>> {
        let mut outcomes = known(connection, rows).await?;
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

/// The numbers of those whose id is known.
async fn known(connection: &mut SqliteConnection, rows: &[Row<'_>]) -> sqlx::Result<Vec<Option<Appended>>> {
    let mut find = QueryBuilder::<Sqlite>::new(queries::INCOMING);
    find.push_values(rows.iter().zip(0i64..), |mut values, (row, place)| {
        values.push_bind(place).push_bind(&*row.event.user).push_bind(&*row.event.id).push_bind(row.place.known_since);
    });
    find.push(") ").push(queries::KNOWN);
    let mut outcomes = vec![None; rows.len()];
    for found in find.build().persistent(false).fetch_all(connection).await? {
        let place = usize::try_from(found.try_get::<i64, _>(0)?).unwrap_or(usize::MAX);
        if let Some(outcome) = outcomes.get_mut(place) {
            *outcome = Some(Appended::Duplicate(number(found.try_get(1)?)));
        }
    }
    Ok(outcomes)
}

async fn insert(connection: &mut SqliteConnection, fresh: &[(i64, &Row<'_>)]) -> sqlx::Result<()> {
    let now = unix_millis_now();
    let mut insert = QueryBuilder::<Sqlite>::new(
        "insert into log (user_id, seq, notification_id, notification_type, payload, durability, priority, \
         collapse_key, ttl_ms, created_at, recorded_at, stored_at, expires_at) ",
    );
    insert.push_values(fresh, |mut values, (seq, row)| {
        let event = row.event;
        values
            .push_bind(&*event.user)
            .push_bind(*seq)
            .push_bind(&*event.id)
            .push_bind(&*event.notification_type)
            .push_bind(event.payload.as_bytes())
            .push_bind(durability_number(event.options.durability))
            .push_bind(priority_number(event.options.priority))
            .push_bind(event.options.collapse_key.as_deref())
            .push_bind(event.options.ttl.map(row::millis))
            .push_bind(event.created_at)
            .push_bind(event.recorded_at)
            .push_bind(now)
            .push_bind(row.place.expires_at);
    });
    insert.build().persistent(false).execute(connection).await?;
    Ok(())
}
