//! What waits, in PostgreSQL.

use super::{PostgresStore, ask, fence::call, queries};
use crate::{
    event::unix_millis_now,
    ids::{NotificationId, UserId},
    store::{
        Answer, Error,
        metric::{Operation, counted},
        row::reason_number,
        steps,
        waiting::{Backlog, Ending, Held, Holding, Waiting},
    },
};

impl PostgresStore {
    async fn end_waiting(&self, endings: &[Ending]) -> Result<(), Error> {
        let fence = self.fence(endings.iter().map(|one| &one.user)).await?;
        let ended = call!(self.changes, |connection| {
            sqlx::query_scalar(queries::END)
                .bind(fence.shards())
                .bind(&fence.epochs)
                .bind(&self.owner)
                .bind(fence.shard_of())
                .bind(endings.iter().map(|one| &*one.user).collect::<Vec<_>>())
                .bind(endings.iter().map(|one| &*one.id).collect::<Vec<_>>())
                .bind(endings.iter().map(|one| reason_number(one.reason)).collect::<Vec<_>>())
                .bind(unix_millis_now())
                .fetch_all(connection)
        });
        self.check_fence(&fence, ended.map_err(|error| self.failed(error, &fence))?).await
    }

    async fn note_digested(&self, digests: &[(UserId, NotificationId)]) -> Result<(), Error> {
        let fence = self.fence(digests.iter().map(|(user, _)| user)).await?;
        let noted = call!(self.changes, |connection| {
            sqlx::query_scalar(queries::DIGESTED)
                .bind(fence.shards())
                .bind(&fence.epochs)
                .bind(&self.owner)
                .bind(fence.shard_of())
                .bind(digests.iter().map(|(user, _)| &**user).collect::<Vec<_>>())
                .bind(digests.iter().map(|(_, digest)| &**digest).collect::<Vec<_>>())
                .fetch_all(connection)
        });
        self.check_fence(&fence, noted.map_err(|error| self.failed(error, &fence))?).await
    }

    async fn backlog_of(&self, user: &UserId) -> Result<Backlog, Error> {
        let events =
            ask!(self.reads, |connection| { sqlx::query(queries::BACKLOG).bind(&**user).fetch_all(connection) })?;
        let folded = ask!(self.reads, |connection| { sqlx::query(queries::OWED).bind(&**user).fetch_all(connection) })?;
        steps::backlog(user, &events, &folded).map_err(super::unavailable)
    }

    async fn waiting_users(&self) -> Result<Vec<UserId>, Error> {
        let users: Vec<String> =
            ask!(self.reads, |connection| { sqlx::query_scalar(queries::USERS_WAITING).fetch_all(connection) })?;
        Ok(users.into_iter().filter_map(|user| UserId::new(user).ok()).collect())
    }
}

impl Waiting for PostgresStore {
    fn hold<'a>(&'a self, holding: &'a [Holding]) -> Answer<'a, Vec<Held>> {
        counted(Operation::Write, self.hold_group(holding))
    }

    fn end<'a>(&'a self, endings: &'a [Ending]) -> Answer<'a, ()> {
        counted(Operation::Write, self.end_waiting(endings))
    }

    fn digested<'a>(&'a self, digests: &'a [(UserId, NotificationId)]) -> Answer<'a, ()> {
        counted(Operation::Write, self.note_digested(digests))
    }

    fn backlog<'a>(&'a self, user: &'a UserId) -> Answer<'a, Backlog> {
        counted(Operation::Read, self.backlog_of(user))
    }

    fn users_waiting(&self) -> Answer<'_, Vec<UserId>> {
        counted(Operation::Read, self.waiting_users())
    }
}
