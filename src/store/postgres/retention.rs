//! What is over goes. Any node does this, whoever owns the users: these statements have no fence, and need none.
//!
//! * They touch only what nobody is given any more. Time alone makes it so: somebody who was frozen brings an older time
//!   along, and finds less.
//! * A row goes, and what had not ended is noted, in one statement: of two who want the row one has it, by its lock. An
//!   owner that would give a number to what waits, or end it, at that moment, either was first, or finds it gone, and that
//!   is an end ([`super::queries::APPEND`]).
//! * Partitions go whole, under a lock that one node has at a time ([`super::days`]).

use super::{PostgresStore, ask};
use crate::{event::UnixMillis, store::Error};

/// So many expired rows go in one statement.
const EXPIRED_AT_ONCE: i64 = 2000;

/// One that waited and has expired goes; what still waited then is noted.
pub(in crate::store) const FORGET_WAITING: &str = "
with gone as (
    delete from waiting where place = any(array(
        select place from waiting where expires_at <= $1 and not owed order by expires_at limit $2))
    returning user_id, notification_id, ended, shard
), noted as (
    insert into journal (user_id, first, last, ids, state, reason, at, shard)
    select user_id, 0, 0, array[notification_id], 5, 0, $1, shard from gone where ended is null
)
select count(*) from gone";

/// Numbers of which the log knows nothing any more need no reason.
pub(in crate::store) const FORGET_REMOVED: &str = "
with gone as (
    delete from removed where ctid = any(array(
        select ctid from removed where expires_at <= $1 order by expires_at limit $2))
    returning 1
)
select count(*) from gone";

/// Forgets started sessions that are over. The others are written by whichever node their clients ask: who knows the id
/// of one may use it everywhere.
pub(in crate::store) const FORGET_SESSIONS: &str = "delete from sessions where expires_at <= $1";

/// What of a partition of the log, which nobody sees any more, had not ended before: whole stretches of numbers, each
/// within one thousand.
pub(in crate::store) fn gone_unacknowledged(partition: &str) -> String {
    format!(
        "with gone as (
            select l.user_id, l.seq, l.notification_id, case when l.seq <= h.floor then 1 else 0 end as reason
            from {partition} l
            left join heads h on h.user_id = l.user_id
            left join (select user_id, max(cursor) as cursor from cursors group by user_id) c on c.user_id = l.user_id
            left join removed r on r.user_id = l.user_id and r.seq = l.seq
            where l.seq > coalesce(c.cursor, 0) and r.seq is null
        ), stretches as (
            select *, seq - row_number() over (partition by user_id, reason order by seq) as stretch from gone
        )
        insert into journal (user_id, first, last, ids, state, reason, at)
        select user_id, min(seq), max(seq), array_agg(notification_id order by seq), 5, reason, $1
        from stretches group by user_id, reason, stretch, seq / 1000"
    )
}

impl PostgresStore {
    /// What fails keeps nothing of the rest; the first failure is told of.
    pub(super) async fn forget_expired(&self, now: UnixMillis) -> Result<(), Error> {
        let days = self.keep_days(now).await;
        let sessions = self.forget_sessions(now).await;
        let waiting = self.forget(FORGET_WAITING, now).await;
        let removed = self.forget(FORGET_REMOVED, now).await;
        days.and(sessions).and(waiting).and(removed)
    }

    async fn forget_sessions(&self, now: UnixMillis) -> Result<(), Error> {
        ask!(self.reads, |connection| sqlx::query(FORGET_SESSIONS).bind(now).execute(connection))?;
        Ok(())
    }

    /// Lets go of what is over, a piece at a time.
    async fn forget(&self, pieces: &'static str, now: UnixMillis) -> Result<(), Error> {
        loop {
            let gone: i64 = ask!(self.reads, |connection| {
                sqlx::query_scalar(pieces).bind(now).bind(EXPIRED_AT_ONCE).fetch_one(connection)
            })?;
            if gone == 0 {
                return Ok(());
            }
        }
    }
}
