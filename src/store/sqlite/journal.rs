//! The journal in SQLite.

use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection};

use super::{SqliteStore, queries, unavailable};
use crate::{
    event::{UnixMillis, unix_millis_now},
    ids::{NotificationId, Sequence, UserId},
    placement::shard,
    state::{Reason, State},
    store::{
        Acknowledgement, Answer, Error, Try,
        journal::{Account, Cancelled, Journal, Mark, Step, Superseding},
        metric::{Operation, counted},
        row::{number, reason_number, signed, state_number},
        steps::{self, Ended, OLDER_MAX, STEPS_MAX, Standing},
    },
};

/// So many rows go in one statement.
const ROWS_AT_ONCE: usize = 500;

/// Adds an entry to the journal.
pub(super) async fn note(connection: &mut SqliteConnection, step: &Step, shards: u16) -> sqlx::Result<()> {
    note_all(connection, std::slice::from_ref(step), shards).await
}

/// Adds entries to the journal, in the order given.
async fn note_all(connection: &mut SqliteConnection, steps: &[Step], shards: u16) -> sqlx::Result<()> {
    for steps in steps.chunks(ROWS_AT_ONCE) {
        let mut note = QueryBuilder::<Sqlite>::new(queries::NOTE);
        note.push_values(steps, |mut values, step| {
            values
                .push_bind(&*step.user)
                .push_bind(signed(step.first))
                .push_bind(signed(step.last))
                .push_bind(step.ids_text())
                .push_bind(state_number(step.state))
                .push_bind(step.reason.map(reason_number))
                .push_bind(step.session.map(|session| session.to_string()))
                .push_bind(step.device.as_deref())
                .push_bind(step.handed_at)
                .push_bind(step.at)
                .push_bind(shard(&step.user, shards).0);
        });
        note.build().persistent(false).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Raises cursors, each named once.
async fn raise(connection: &mut SqliteConnection, acks: &[Acknowledgement]) -> sqlx::Result<()> {
    let now = unix_millis_now();
    for acks in acks.chunks(ROWS_AT_ONCE) {
        let mut raise = QueryBuilder::<Sqlite>::new(queries::ACKNOWLEDGED);
        raise.push_values(acks, |mut values, Acknowledgement { user, device, seq }| {
            let device = device.as_deref().unwrap_or_default();
            values.push_bind(&**user).push_bind(device).push_bind(signed(*seq)).push_bind(now);
        });
        raise.push(")").push(queries::ACKNOWLEDGE).build().persistent(false).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Adds an entry that may stand there already: the outcome of an earlier attempt is not known.
async fn note_again(connection: &mut SqliteConnection, step: &Step, shards: u16) -> sqlx::Result<()> {
    let query = if step.last > 0 { queries::NOTE_AGAIN } else { queries::NOTE_UNNUMBERED_AGAIN };
    let note = sqlx::query(query)
        .bind(&*step.user)
        .bind(signed(step.first))
        .bind(signed(step.last))
        .bind(step.ids_text())
        .bind(state_number(step.state))
        .bind(step.reason.map(reason_number))
        .bind(step.session.map(|session| session.to_string()))
        .bind(step.device.as_deref())
        .bind(step.handed_at)
        .bind(step.at)
        .bind(shard(&step.user, shards).0);
    note.execute(connection).await?;
    Ok(())
}

fn deleted(user: &UserId, id: &NotificationId, seq: Sequence, reason: Reason, at: UnixMillis) -> Step {
    Step {
        user: user.clone(),
        first: seq,
        last: seq,
        ids: vec![id.clone()],
        state: State::Deleted,
        reason: Some(reason),
        session: None,
        device: None,
        handed_at: None,
        at,
    }
}

/// Ends one that waits, and notes it; whether it did.
pub(super) async fn note_ended(
    connection: &mut SqliteConnection,
    user: &UserId,
    id: &NotificationId,
    reason: Reason,
    now: UnixMillis,
    shards: u16,
) -> sqlx::Result<bool> {
    let end = sqlx::query(queries::END).bind(&**user).bind(&**id).bind(reason_number(reason)).bind(now);
    let waited = end.execute(&mut *connection).await?.rows_affected() > 0;
    if waited {
        note(connection, &deleted(user, id, 0, reason, now), shards).await?;
    }
    Ok(waited)
}

/// Sees that a number is not delivered, and notes it.
async fn remove(
    connection: &mut SqliteConnection,
    (user, id, seq): (&UserId, &NotificationId, Sequence),
    reason: Reason,
    now: UnixMillis,
    shards: u16,
) -> sqlx::Result<()> {
    let remove = sqlx::query(queries::REMOVE).bind(&**user).bind(signed(seq)).bind(reason_number(reason)).bind(now);
    remove.execute(&mut *connection).await?;
    note(connection, &deleted(user, id, seq, reason, now), shards).await
}

impl SqliteStore {
    pub(super) async fn raise_cursors(
        &self,
        acks: &[Acknowledgement],
        steps: &[Step],
        attempt: Try,
    ) -> Result<(), Error> {
        let mut transaction = self.begin_owned().await?;
        raise(&mut transaction, acks).await.map_err(unavailable)?;
        let steps: Vec<Step> = steps.iter().flat_map(Step::apart).collect();
        match attempt {
            Try::First => note_all(&mut transaction, &steps, self.shards).await.map_err(unavailable)?,
            Try::Again => {
                for step in &steps {
                    note_again(&mut transaction, step, self.shards).await.map_err(unavailable)?;
                }
            }
        }
        transaction.commit().await.map_err(unavailable)
    }

    async fn account_of(&self, user: &UserId, id: &NotificationId) -> sqlx::Result<Option<Account>> {
        let mut found = None;
        for query in [queries::ACCOUNT, queries::ACCOUNT_WAITING] {
            if found.is_none() {
                found = sqlx::query(query).bind(&**user).bind(&**id).fetch_optional(&self.reads).await?;
            }
        }
        let Some(row) = found else { return Ok(None) };
        let Some(mut account) = steps::account(user, &row)? else { return Ok(None) };
        let seq = signed(account.seq.unwrap_or_default());
        let noted = sqlx::query(queries::STEPS).bind(&**user).bind(seq).bind(&**id).bind(STEPS_MAX);
        let noted = noted.fetch_all(&self.reads).await?;
        let noted = noted.iter().rev().map(|row| Step::of(row, 0)).collect::<sqlx::Result<Vec<_>>>()?;
        account.steps = noted.into_iter().flatten().collect();
        Ok(Some(account))
    }

    async fn cancel_one(&self, user: &UserId, id: &NotificationId) -> Result<Cancelled, Error> {
        let mut transaction = self.begin_owned().await?;
        let done = self.cancel_owned(&mut transaction, user, id).await.map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)?;
        Ok(done)
    }

    async fn cancel_owned(
        &self,
        connection: &mut SqliteConnection,
        user: &UserId,
        id: &NotificationId,
    ) -> sqlx::Result<Cancelled> {
        let now = unix_millis_now();
        if note_ended(connection, user, id, Reason::Cancelled, now, self.shards).await? {
            return Ok(Cancelled::Done(None));
        }
        let standing =
            sqlx::query(queries::STANDING).bind(&**user).bind(&**id).fetch_optional(&mut *connection).await?;
        let Some(standing) = standing.as_ref().map(Standing::of).transpose()? else {
            let ended = sqlx::query(queries::ACCOUNT_WAITING).bind(&**user).bind(&**id);
            let ended = ended.fetch_optional(connection).await?;
            return Ok(ended.map_or(Cancelled::Unknown, |_| Cancelled::Ended(State::Deleted)));
        };
        if let Some(state) = standing.ended(now) {
            return Ok(Cancelled::Ended(state));
        }
        remove(connection, (user, id, standing.seq), Reason::Cancelled, now, self.shards).await?;
        Ok(Cancelled::Done(Some(standing.seq)))
    }

    async fn supersede_all(&self, superseding: &[Superseding]) -> Result<(), Error> {
        let mut transaction = self.begin_owned().await?;
        for one in superseding {
            self.supersede_one(&mut transaction, one).await.map_err(unavailable)?;
        }
        transaction.commit().await.map_err(unavailable)
    }

    async fn supersede_one(&self, connection: &mut SqliteConnection, superseding: &Superseding) -> sqlx::Result<()> {
        let (Superseding { user, collapse_key, seq, together_from }, now) = (superseding, unix_millis_now());
        let find = sqlx::query_as(queries::SUPERSEDED)
            .bind(&**user)
            .bind(&**collapse_key)
            .bind(signed(*seq))
            .bind(signed(*together_from))
            .bind(now)
            .bind(OLDER_MAX);
        let older: Vec<(i64, String)> = find.fetch_all(&mut *connection).await?;
        for (seq, id) in older {
            let Ok(id) = NotificationId::new(id) else { continue };
            remove(connection, (user, &id, number(seq)), Reason::Superseded, now, self.shards).await?;
        }
        Ok(())
    }

    async fn read_ended(&self, mark: &Mark, limit: usize) -> sqlx::Result<(Vec<Step>, Mark)> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        // Nothing that this program has written: the journal's beginning.
        let after: i64 = mark.0.parse().unwrap_or_default();
        let rows = sqlx::query(queries::ENDED_AFTER).bind(after).bind(limit).fetch_all(&self.reads).await?;
        let ended = rows.iter().map(|row| Ok(Ended { place: row.try_get::<i64, _>(0)?, step: Step::of(row, 1)? }));
        let ended = steps::at_once(ended.collect::<sqlx::Result<Vec<_>>>()?);
        let mark = ended.last().map_or(mark.clone(), |last| Mark(last.place.to_string()));
        let mut steps: Vec<Step> = ended.into_iter().filter_map(|one| one.step).collect();
        for step in &mut steps {
            if step.may_name_removed() {
                let removed = self.ids_of(queries::REMOVED, step).await?;
                step.ids.retain(|id| !removed.contains(id));
            } else if step.lacks_ids() {
                step.ids = self.ids_of(queries::IDS, step).await?;
            }
        }
        Ok((steps, mark))
    }

    /// Ids that belong to the numbers of an entry.
    async fn ids_of(&self, query: &'static str, step: &Step) -> sqlx::Result<Vec<NotificationId>> {
        let find = sqlx::query_scalar(query).bind(&*step.user).bind(signed(step.first)).bind(signed(step.last));
        let ids: Vec<String> = find.fetch_all(&self.reads).await?;
        Ok(ids.into_iter().filter_map(|id| NotificationId::new(id).ok()).collect())
    }

    async fn read_receipted(&self) -> sqlx::Result<Mark> {
        let mark: Option<String> = sqlx::query_scalar(queries::RECEIPTED).fetch_one(&self.reads).await?;
        Ok(Mark(mark.unwrap_or_default()))
    }

    async fn write_receipted(&self, mark: &Mark) -> Result<(), Error> {
        let mut transaction = self.begin_owned().await?;
        let write = sqlx::query("update meta set receipted = ?1").bind(&mark.0);
        write.execute(&mut *transaction).await.map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)
    }
}

impl Journal for SqliteStore {
    fn account<'a>(&'a self, user: &'a UserId, id: &'a NotificationId) -> Answer<'a, Option<Account>> {
        counted(Operation::Read, async move { self.account_of(user, id).await.map_err(unavailable) })
    }

    fn cancel<'a>(&'a self, user: &'a UserId, id: &'a NotificationId) -> Answer<'a, Cancelled> {
        counted(Operation::Write, self.cancel_one(user, id))
    }

    fn supersede<'a>(&'a self, superseding: &'a [Superseding]) -> Answer<'a, ()> {
        counted(Operation::Write, self.supersede_all(superseding))
    }

    fn ended_after<'a>(&'a self, mark: &'a Mark, limit: usize) -> Answer<'a, (Vec<Step>, Mark)> {
        counted(Operation::Read, async move { self.read_ended(mark, limit).await.map_err(unavailable) })
    }

    fn receipted(&self) -> Answer<'_, Mark> {
        counted(Operation::Read, async { self.read_receipted().await.map_err(unavailable) })
    }

    fn set_receipted<'a>(&'a self, mark: &'a Mark) -> Answer<'a, ()> {
        counted(Operation::Write, self.write_receipted(mark))
    }
}
