//! Started sessions in SQLite.

use super::{SqliteStore, queries, unavailable};
use crate::{
    event::unix_millis_now,
    ids::{SessionId, UserId},
    store::{
        Answer, Error,
        sessions::{PER_USER_MAX, Started, StartedSessions, Starting},
    },
};

impl SqliteStore {
    async fn start_session(&self, started: Started) -> Result<Starting, Error> {
        let start = "insert into sessions (session, user_id, expires_at) select ?1, ?2, ?3 \
                     where (select count(*) from sessions where user_id = ?2 and expires_at > ?4) < ?5";
        let start = sqlx::query(start)
            .bind(started.session.to_string())
            .bind(&*started.user)
            .bind(started.expires_at)
            .bind(unix_millis_now())
            .bind(i64::try_from(PER_USER_MAX).expect("a hundred"));
        let mut transaction = self.begin_owned().await?;
        let done = start.execute(&mut *transaction).await.map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)?;
        Ok(if done.rows_affected() == 0 { Starting::TooManyOfUser } else { Starting::Done })
    }

    async fn find_session(&self, session: SessionId) -> sqlx::Result<Option<Started>> {
        let find = sqlx::query_as(queries::FIND_SESSION).bind(session.to_string()).bind(unix_millis_now());
        let found: Option<(String, i64)> = find.fetch_optional(&self.reads).await?;
        Ok(found.and_then(|(user, expires_at)| Some(Started { session, user: UserId::new(user).ok()?, expires_at })))
    }

    async fn sessions_of(&self, user: &UserId) -> sqlx::Result<Vec<Started>> {
        let find = sqlx::query_as(queries::SESSIONS_OF_USER).bind(&**user).bind(unix_millis_now());
        let found: Vec<(String, i64)> = find.fetch_all(&self.reads).await?;
        let started = |(session, expires_at): (String, i64)| {
            Some(Started { session: SessionId::parse(&session)?, user: user.clone(), expires_at })
        };
        Ok(found.into_iter().filter_map(started).collect())
    }

    async fn end_session(&self, session: SessionId) -> Result<bool, Error> {
        let end = sqlx::query("delete from sessions where session = ?1 and expires_at > ?2");
        let end = end.bind(session.to_string()).bind(unix_millis_now());
        let mut transaction = self.begin_owned().await?;
        let ended = end.execute(&mut *transaction).await.map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)?;
        Ok(ended.rows_affected() > 0)
    }
}

impl StartedSessions for SqliteStore {
    fn start(&self, started: Started) -> Answer<'_, Starting> {
        Box::pin(self.start_session(started))
    }

    fn find(&self, session: SessionId) -> Answer<'_, Option<Started>> {
        Box::pin(async move { self.find_session(session).await.map_err(unavailable) })
    }

    fn of_user<'a>(&'a self, user: &'a UserId) -> Answer<'a, Vec<Started>> {
        Box::pin(async move { self.sessions_of(user).await.map_err(unavailable) })
    }

    fn end(&self, session: SessionId) -> Answer<'_, bool> {
        Box::pin(self.end_session(session))
    }
}
