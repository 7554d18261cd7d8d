//! What waits, in SQLite.

use super::{SqliteStore, journal::note_ended, queries, unavailable};
use crate::{
    event::unix_millis_now,
    ids::{NotificationId, UserId},
    store::{
        Answer, Error,
        metric::{Operation, counted},
        steps,
        waiting::{Backlog, Ending, Held, Holding, Waiting},
    },
};

impl SqliteStore {
    async fn end_waiting(&self, endings: &[Ending]) -> Result<(), Error> {
        let mut transaction = self.begin_owned().await?;
        for Ending { user, id, reason } in endings {
            let ended = note_ended(&mut transaction, user, id, *reason, unix_millis_now(), self.shards);
            ended.await.map_err(unavailable)?;
        }
        transaction.commit().await.map_err(unavailable)
    }

    async fn note_digested(&self, digests: &[(UserId, NotificationId)]) -> Result<(), Error> {
        let mut transaction = self.begin_owned().await?;
        for (user, digest) in digests {
            let told = sqlx::query(queries::DIGESTED).bind(&**user).bind(&**digest);
            told.execute(&mut *transaction).await.map_err(unavailable)?;
        }
        transaction.commit().await.map_err(unavailable)
    }

    async fn backlog_of(&self, user: &UserId) -> sqlx::Result<Backlog> {
        let events = sqlx::query(queries::BACKLOG).bind(&**user).fetch_all(&self.reads).await?;
        let folded = sqlx::query(queries::OWED).bind(&**user).fetch_all(&self.reads).await?;
        steps::backlog(user, &events, &folded)
    }

    async fn waiting_users(&self) -> sqlx::Result<Vec<UserId>> {
        let users: Vec<String> = sqlx::query_scalar(queries::USERS_WAITING).fetch_all(&self.reads).await?;
        Ok(users.into_iter().filter_map(|user| UserId::new(user).ok()).collect())
    }
}

impl Waiting for SqliteStore {
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
        counted(Operation::Read, async move { self.backlog_of(user).await.map_err(unavailable) })
    }

    fn users_waiting(&self) -> Answer<'_, Vec<UserId>> {
        counted(Operation::Read, async { self.waiting_users().await.map_err(unavailable) })
    }
}
