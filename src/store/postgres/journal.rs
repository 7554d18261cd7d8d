//! The journal in PostgreSQL.

use sqlx::{Connection as _, PgTransaction, Row as _, postgres::PgConnection};

use super::{
    PostgresStore, ask,
    fence::{Fence, call, single},
    queries, unavailable,
};
use crate::{
    event::{UnixMillis, unix_millis_now},
    ids::{NotificationId, UserId},
    state::{Reason, State},
    store::{
        Acknowledgement, Answer, Error, Try,
        journal::{Account, Cancelled, Journal, Mark, Step, Superseding},
        metric::{Operation, counted},
        row::{DAY, reason_number, signed, state_number},
        steps::{self, Ended, OLDER_MAX, STEPS_MAX, Standing},
    },
};

/// What a transaction under the fence came to: the shards whose claims it found, and, when it found all, its answer.
type Fenced<T> = (Vec<i32>, Option<T>);

impl PostgresStore {
    pub(super) async fn raise_cursors(
        &self,
        acks: &[Acknowledgement],
        steps: &[Step],
        attempt: Try,
    ) -> Result<(), Error> {
        let steps: Vec<Step> = steps.iter().flat_map(Step::apart).collect();
        if acks.is_empty() && steps.is_empty() {
            return Ok(());
        }
        let users = acks.iter().map(|one| &one.user).chain(steps.iter().map(|step| &step.user));
        let fence = self.fence(users).await?;
        let raised = single!(self.writes, |connection| raise(connection, self, (acks, &steps, attempt), &fence));
        self.check_fence(&fence, raised.map_err(|error| self.failed(error, &fence))?).await
    }

    async fn account_of(&self, user: &UserId, id: &NotificationId) -> Result<Option<Account>, Error> {
        let mut found = None;
        for query in [queries::ACCOUNT, queries::ACCOUNT_WAITING] {
            if found.is_none() {
                found = ask!(self.reads, |connection| {
                    sqlx::query(query).bind(&**user).bind(&**id).fetch_optional(connection)
                })?;
            }
        }
        let Some(row) = found else { return Ok(None) };
        let Some(mut account) = steps::account(user, &row).map_err(unavailable)? else { return Ok(None) };
        let noted = ask!(self.reads, |connection| {
            sqlx::query(queries::STEPS)
                .bind(&**user)
                .bind(signed(account.seq.unwrap_or_default()))
                .bind(&**id)
                .bind(STEPS_MAX)
                .fetch_all(connection)
        })?;
        let noted = noted.iter().rev().map(|row| Step::of(row, 0)).collect::<sqlx::Result<Vec<_>>>();
        account.steps = noted.map_err(unavailable)?.into_iter().flatten().collect();
        Ok(Some(account))
    }

    async fn cancel_one(&self, user: &UserId, id: &NotificationId) -> Result<Cancelled, Error> {
        let fence = self.fence([user].into_iter()).await?;
        let done = call!(self.changes, |connection| cancel(connection, self, &fence, user, id));
        let (found, done) = done.map_err(|error| self.failed(error, &fence))?;
        self.check_fence(&fence, found).await?;
        Ok(done.expect("every claim was found"))
    }

    async fn supersede_all(&self, superseding: &[Superseding]) -> Result<(), Error> {
        let fence = self.fence(superseding.iter().map(|one| &one.user)).await?;
        let done = call!(self.changes, |connection| supersede(connection, self, &fence, superseding));
        let (found, _) = done.map_err(|error| self.failed(error, &fence))?;
        self.check_fence(&fence, found).await
    }

    async fn read_ended(&self, mark: &Mark, limit: usize) -> Result<(Vec<Step>, Mark), Error> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let (xid, place) = read_mark(mark);
        let rows = ask!(self.reads, |connection| {
            sqlx::query(queries::ENDED_AFTER).bind(xid).bind(place).bind(limit).fetch_all(connection)
        })?;
        let ended = rows.iter().map(|row| {
            let place: (String, i64) = (row.try_get(0)?, row.try_get(1)?);
            Ok(Ended { place, step: Step::of(row, 2)? })
        });
        let ended = steps::at_once(ended.collect::<sqlx::Result<Vec<_>>>().map_err(unavailable)?);
        let mark = ended.last().map_or(mark.clone(), |last| Mark(format!("{}:{}", last.place.0, last.place.1)));
        let mut steps: Vec<Step> = ended.into_iter().filter_map(|one| one.step).collect();
        let removed = self.ids_of(queries::REMOVED, &steps, Step::may_name_removed).await?;
        let ids = self.ids_of(queries::IDS, &steps, Step::lacks_ids).await?;
        removed.into_iter().for_each(|(at, id)| steps[at].ids.retain(|one| *one != id));
        ids.into_iter().for_each(|(at, id)| steps[at].ids.push(id));
        Ok((steps, mark))
    }

    /// Ids that belong to the numbers of some of these entries, each with the entry's place among them.
    async fn ids_of(
        &self,
        query: &'static str,
        steps: &[Step],
        concerns: fn(&Step) -> bool,
    ) -> Result<Vec<(usize, NotificationId)>, Error> {
        let concerned: Vec<(usize, &Step)> = steps.iter().enumerate().filter(|(_, step)| concerns(step)).collect();
        if concerned.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<(i64, String)> = ask!(self.reads, |connection| {
            sqlx::query_as(query)
                .bind(concerned.iter().map(|(_, step)| &*step.user).collect::<Vec<_>>())
                .bind(concerned.iter().map(|(_, step)| signed(step.first)).collect::<Vec<_>>())
                .bind(concerned.iter().map(|(_, step)| signed(step.last)).collect::<Vec<_>>())
                .fetch_all(connection)
        })?;
        let of_step = |(nth, id): (i64, String)| {
            let (at, _) = usize::try_from(nth - 1).ok().and_then(|nth| concerned.get(nth))?;
            Some((*at, NotificationId::new(id).ok()?))
        };
        Ok(rows.into_iter().filter_map(of_step).collect())
    }

    async fn read_receipted(&self) -> Result<Mark, Error> {
        let mark: Option<String> =
            ask!(self.reads, |connection| sqlx::query_scalar(queries::RECEIPTED).fetch_one(connection))?;
        Ok(Mark(mark.unwrap_or_default()))
    }

    async fn write_receipted(&self, mark: &Mark) -> Result<(), Error> {
        let write = "update meta set receipted = $1 where exists (select 1 from shard_claims where owner = $2)";
        let done =
            ask!(self.reads, |connection| { sqlx::query(write).bind(&mark.0).bind(&self.owner).execute(connection) })?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(self.lost(None).await) }
    }
}

async fn raise(
    connection: &mut PgConnection,
    store: &PostgresStore,
    (acks, steps, attempt): (&[Acknowledgement], &[Step], Try),
    fence: &Fence,
) -> sqlx::Result<Vec<i32>> {
    let query = match attempt {
        Try::First => queries::ACKNOWLEDGE,
        Try::Again => queries::ACKNOWLEDGE_AGAIN,
    };
    let shard_of = fence.shard_of();
    let (of_acks, of_steps) = shard_of.split_at(acks.len());
    let now = unix_millis_now();
    let texts = |of: fn(&Step) -> Option<String>| steps.iter().map(of).collect::<Vec<_>>();
    let times = |of: fn(&Step) -> i64| steps.iter().map(of).collect::<Vec<_>>();
    #[cfg(feature = "mutants")]
    let query = super::append::unfenced(query);
    let raise = sqlx::query_scalar(query)
        .bind(fence.shards())
        .bind(&fence.epochs)
        .bind(&store.owner)
        .bind(of_acks)
        .bind(acks.iter().map(|one| &*one.user).collect::<Vec<_>>())
        .bind(acks.iter().map(|one| one.device.as_deref().unwrap_or_default()).collect::<Vec<_>>())
        .bind(acks.iter().map(|one| signed(one.seq)).collect::<Vec<_>>())
        .bind(now)
        .bind(of_steps)
        .bind(steps.iter().map(|step| &*step.user).collect::<Vec<_>>())
        .bind(times(|step| signed(step.first)))
        .bind(times(|step| signed(step.last)))
        .bind(texts(Step::ids_text))
        .bind(steps.iter().map(|step| state_number(step.state)).collect::<Vec<_>>())
        .bind(steps.iter().map(|step| step.reason.map(reason_number)).collect::<Vec<_>>())
        .bind(texts(|step| step.session.map(|session| session.to_string())))
        .bind(steps.iter().map(|step| step.device.as_deref()).collect::<Vec<_>>())
        .bind(steps.iter().map(|step| step.handed_at).collect::<Vec<_>>())
        // Partitions of these days are there.
        .bind(steps.iter().map(|step| step.at.clamp(now - DAY, now + DAY)).collect::<Vec<_>>());
    raise.fetch_all(connection).await
}

/// A transaction that has taken the fence: what it asks now sees all that was written before.
async fn begin<'c>(
    connection: &'c mut PgConnection,
    store: &PostgresStore,
    fence: &Fence,
) -> sqlx::Result<(PgTransaction<'c>, Vec<i32>)> {
    let mut transaction = connection.begin().await?;
    let take = sqlx::query_scalar(queries::FENCE).bind(fence.shards()).bind(&fence.epochs).bind(&store.owner);
    let found = take.fetch_all(&mut *transaction).await?;
    Ok((transaction, found))
}

async fn cancel(
    connection: &mut PgConnection,
    store: &PostgresStore,
    fence: &Fence,
    user: &UserId,
    id: &NotificationId,
) -> sqlx::Result<Fenced<Cancelled>> {
    let (mut transaction, found) = begin(connection, store, fence).await?;
    if found.is_empty() {
        return Ok((found, None));
    }
    let now = unix_millis_now();
    let done = cancel_owned(&mut transaction, user, id, found[0], now).await?;
    transaction.commit().await?;
    Ok((found, Some(done)))
}

async fn cancel_owned(
    connection: &mut PgConnection,
    user: &UserId,
    id: &NotificationId,
    shard: i32,
    now: UnixMillis,
) -> sqlx::Result<Cancelled> {
    let cancelled = reason_number(Reason::Cancelled);
    let wait = sqlx::query(queries::CANCEL_WAITING).bind(&**user).bind(&**id).bind(cancelled).bind(now);
    if wait.execute(&mut *connection).await?.rows_affected() > 0 {
        return Ok(Cancelled::Done(None));
    }
    let standing = sqlx::query(queries::STANDING).bind(&**user).bind(&**id).fetch_optional(&mut *connection).await?;
    let Some(standing) = standing.as_ref().map(Standing::of).transpose()? else {
        let ended = sqlx::query(queries::ACCOUNT_WAITING).bind(&**user).bind(&**id);
        let ended = ended.fetch_optional(connection).await?;
        return Ok(ended.map_or(Cancelled::Unknown, |_| Cancelled::Ended(State::Deleted)));
    };
    if let Some(state) = standing.ended(now) {
        return Ok(Cancelled::Ended(state));
    }
    let remove = sqlx::query(queries::REMOVE).bind(&**user).bind(&**id).bind(signed(standing.seq));
    remove.bind(cancelled).bind(now).bind(shard).execute(connection).await?;
    Ok(Cancelled::Done(Some(standing.seq)))
}

async fn supersede(
    connection: &mut PgConnection,
    store: &PostgresStore,
    fence: &Fence,
    superseding: &[Superseding],
) -> sqlx::Result<Fenced<()>> {
    let (mut transaction, found) = begin(connection, store, fence).await?;
    if fence.lost(&found.iter().copied().collect()).is_some() {
        return Ok((found, None));
    }
    let supersede = sqlx::query(queries::SUPERSEDE)
        .bind(fence.shard_of())
        .bind(superseding.iter().map(|one| &*one.user).collect::<Vec<_>>())
        .bind(superseding.iter().map(|one| &*one.collapse_key).collect::<Vec<_>>())
        .bind(superseding.iter().map(|one| signed(one.seq)).collect::<Vec<_>>())
        .bind(superseding.iter().map(|one| signed(one.together_from)).collect::<Vec<_>>())
        .bind(unix_millis_now())
        .bind(OLDER_MAX);
    supersede.execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok((found, Some(())))
}

/// Nothing that this program has written: the journal's beginning.
fn read_mark(mark: &Mark) -> (String, i64) {
    let read = mark.0.split_once(':').and_then(|(xid, place)| Some((xid.parse::<u64>().ok()?, place.parse().ok()?)));
    read.map_or(("0".to_owned(), 0), |(xid, place)| (xid.to_string(), place))
}

impl Journal for PostgresStore {
    fn account<'a>(&'a self, user: &'a UserId, id: &'a NotificationId) -> Answer<'a, Option<Account>> {
        counted(Operation::Read, self.account_of(user, id))
    }

    fn cancel<'a>(&'a self, user: &'a UserId, id: &'a NotificationId) -> Answer<'a, Cancelled> {
        counted(Operation::Write, self.cancel_one(user, id))
    }

    fn supersede<'a>(&'a self, superseding: &'a [Superseding]) -> Answer<'a, ()> {
        counted(Operation::Write, self.supersede_all(superseding))
    }

    fn ended_after<'a>(&'a self, mark: &'a Mark, limit: usize) -> Answer<'a, (Vec<Step>, Mark)> {
        counted(Operation::Read, self.read_ended(mark, limit))
    }

    fn receipted(&self) -> Answer<'_, Mark> {
        counted(Operation::Read, self.read_receipted())
    }

    fn set_receipted<'a>(&'a self, mark: &'a Mark) -> Answer<'a, ()> {
        counted(Operation::Write, self.write_receipted(mark))
    }
}
