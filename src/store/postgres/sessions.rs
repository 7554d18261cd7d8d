//! Started sessions in PostgreSQL.

use super::{PostgresStore, ask, queries};
use crate::{
    event::unix_millis_now,
    ids::{SessionId, UserId},
    store::{
        Answer, Error,
        sessions::{PER_USER_MAX, Started, StartedSessions, Starting},
    },
};

impl PostgresStore {
    async fn start_session(&self, started: Started) -> Result<Starting, Error> {
        let start = "insert into sessions (session, user_id, expires_at) select $1, $2, $3 \
                     where (select count(*) from sessions where user_id = $2 and expires_at > $4) < $5";
        let done = ask!(self.reads, |connection| {
            sqlx::query(start)
                .bind(started.session.to_string())
                .bind(&*started.user)
                .bind(started.expires_at)
                .bind(unix_millis_now())
                .bind(i64::try_from(PER_USER_MAX).expect("a hundred"))
                .execute(connection)
        })?;
        Ok(if done.rows_affected() == 0 { Starting::TooManyOfUser } else { Starting::Done })
    }

    async fn find_session(&self, session: SessionId) -> Result<Option<Started>, Error> {
        let found: Option<(String, i64)> = ask!(self.reads, |connection| {
            sqlx::query_as(queries::FIND_SESSION)
                .bind(session.to_string())
                .bind(unix_millis_now())
                .fetch_optional(connection)
        })?;
        Ok(found.and_then(|(user, expires_at)| Some(Started { session, user: UserId::new(user).ok()?, expires_at })))
    }

    async fn sessions_of(&self, user: &UserId) -> Result<Vec<Started>, Error> {
        let found: Vec<(String, i64)> = ask!(self.reads, |connection| {
            sqlx::query_as(queries::SESSIONS_OF_USER).bind(&**user).bind(unix_millis_now()).fetch_all(connection)
        })?;
        let started = |(session, expires_at): (String, i64)| {
            Some(Started { session: SessionId::parse(&session)?, user: user.clone(), expires_at })
        };
        Ok(found.into_iter().filter_map(started).collect())
    }

    async fn end_session(&self, session: SessionId) -> Result<bool, Error> {
        let end = "delete from sessions where session = $1 and expires_at > $2";
        let ended = ask!(self.reads, |connection| {
            sqlx::query(end).bind(session.to_string()).bind(unix_millis_now()).execute(connection)
        })?;
        Ok(ended.rows_affected() > 0)
    }
}

impl StartedSessions for PostgresStore {
    fn start(&self, started: Started) -> Answer<'_, Starting> {
        Box::pin(self.start_session(started))
    }

    fn find(&self, session: SessionId) -> Answer<'_, Option<Started>> {
        Box::pin(self.find_session(session))
    }

    fn of_user<'a>(&'a self, user: &'a UserId) -> Answer<'a, Vec<Started>> {
        Box::pin(self.sessions_of(user))
    }

    fn end(&self, session: SessionId) -> Answer<'_, bool> {
        Box::pin(self.end_session(session))
    }
}
