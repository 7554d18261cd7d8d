//! Partitions of the log: made ahead, and dropped whole when their last row has expired.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use sqlx::{AssertSqlSafe, Connection as _, postgres::PgConnection};

use super::{PostgresStore, unavailable};
use crate::{
    event::{UnixMillis, unix_millis_now},
    store::{
        Error,
        row::{BACK_DAYS, CLASSES, Class, day},
    },
};

/// Partitions exist this many days ahead.
const AHEAD_DAYS: i64 = 7;
/// Clocks of nodes differ, and a statement may take a while: a partition goes this much later than it could.
const GRACE_DAYS: i64 = 1;
/// One maker at a time, over all nodes: the key of an advisory lock.
const LOCK: i64 = 0x6e6f_7469_6669_6572;

/// One partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    class: Class,
    /// Its first day, a multiple of the class's width.
    first_day: i64,
}

impl Part {
    fn of(class: Class, day: i64) -> Self {
        Self { class, first_day: day.div_euclid(class.width_days) * class.width_days }
    }

    fn name(self) -> String {
        format!("log_{}_{}", self.class.number, self.first_day)
    }

    fn parse(name: &str) -> Option<Self> {
        let (class, first_day) = name.strip_prefix("log_")?.split_once('_')?;
        let class: i16 = class.parse().ok()?;
        let class = *CLASSES.iter().find(|known| known.number == class)?;
        Some(Self { class, first_day: first_day.parse().ok()? })
    }

    fn is_over(self, today: i64) -> bool {
        self.first_day + self.class.width_days + self.class.keep_days + GRACE_DAYS <= today
    }
}

/// The partitions that a row could need today and in the days to come.
fn wanted(today: i64) -> Vec<Part> {
    let of_class = |class: &Class| {
        // Rows stand at most `BACK_DAYS` back, and none that has expired is written.
        let first = Part::of(*class, today - BACK_DAYS.min(class.keep_days) - 1).first_day;
        let width = usize::try_from(class.width_days).expect("a few days");
        let class = *class;
        (first..=today + AHEAD_DAYS).step_by(width).map(move |first_day| Part { class, first_day })
    };
    CLASSES.iter().flat_map(of_class).collect()
}

impl PostgresStore {
    /// Makes what will be needed, and drops what is over. Nodes do this one at a time.
    pub(in crate::store) async fn keep_days(&self, now: UnixMillis) -> Result<(), Error> {
        let mut connection = self.reads.acquire().await.map_err(unavailable)?;
        let done = keep(&mut connection, day(now)).await;
        // Whatever it was in the middle of ends with the connection, and so does its lock.
        drop(connection.detach());
        done.map_err(unavailable)
    }

    /// The same soon, when a row has found no partition: the clock has jumped.
    pub(super) async fn make_missing_days(&self) -> Result<(), Error> {
        if !self.days_missing.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        tracing::warn!("a row has found no partition: making those of today and the days to come");
        self.keep_days(unix_millis_now()).await
    }
}

async fn keep(connection: &mut PgConnection, today: i64) -> sqlx::Result<()> {
    // Waiting for a reader must not be cut off as a statement of a user's would be.
    sqlx::raw_sql("set statement_timeout = '5min'; set lock_timeout = '30s'").execute(&mut *connection).await?;
    sqlx::query("select pg_advisory_lock($1)").bind(LOCK).execute(&mut *connection).await?;
    let there = sqlx::query_as::<_, (String, bool, bool)>(
        "select c.relname::text, i.inhrelid is not null, coalesce(i.inhdetachpending, false) \
         from pg_class c left join pg_inherits i on i.inhrelid = c.oid and i.inhparent = 'log'::regclass \
         where c.relnamespace = (select relnamespace from pg_class where oid = 'log'::regclass) \
         and c.relkind = 'r' and c.relname ~ '^log_[0-9]+_[0-9]+$'",
    );
    let there = there.fetch_all(&mut *connection).await?;
    let there: BTreeMap<String, (bool, bool)> =
        there.into_iter().map(|(name, attached, detaching)| (name, (attached, detaching))).collect();
    for part in wanted(today) {
        if there.get(&part.name()).is_none_or(|(attached, _)| !attached) {
            make(connection, part).await?;
        }
    }
    for (name, (attached, detaching)) in &there {
        if Part::parse(name).is_some_and(|part| part.is_over(today)) {
            retire(connection, name, *attached, *detaching).await?;
        }
    }
    Ok(())
}

/// Made on its own and then attached, which does not wait for those who read or write the log.
async fn make(connection: &mut PgConnection, part: Part) -> sqlx::Result<()> {
    let (name, class, first) = (part.name(), part.class.number, part.first_day);
    let end = first + part.class.width_days;
    let sql = format!(
        "create table if not exists {name} (like log including all); \
         alter table log attach partition {name} for values from ({class}, {first}) to ({class}, {end})"
    );
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await?;
    transaction.commit().await
}

/// Users' highest numbers are in `heads` already, so that nothing has to be saved first.
async fn retire(connection: &mut PgConnection, name: &str, attached: bool, detaching: bool) -> sqlx::Result<()> {
    if attached {
        // A plain detach, or a drop, would wait behind readers and make all writers wait behind it.
        let how = if detaching { "finalize" } else { "concurrently" };
        let sql = format!("alter table log detach partition {name} {how}");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await?;
    }
    sqlx::raw_sql(AssertSqlSafe(format!("drop table {name}"))).execute(&mut *connection).await?;
    tracing::info!(partition = name, "a partition of the log is over and gone");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::row::DAY;

    #[test]
    fn partitions_of_a_class_meet_without_a_hole_and_cover_the_days_in_use() {
        for today in 20_000..20_100 {
            let parts = wanted(today);
            for class in CLASSES {
                let of_class: Vec<i64> =
                    parts.iter().filter(|part| part.class == class).map(|part| part.first_day).collect();
                assert!(of_class.windows(2).all(|pair| pair[0] + class.width_days == pair[1]));
                assert!(of_class[0] <= today - BACK_DAYS.min(class.keep_days));
                assert!(of_class[of_class.len() - 1] + class.width_days > today + AHEAD_DAYS);
            }
            assert!(parts.len() < 50 && !parts.iter().any(|part| part.is_over(today)));
        }
    }

    #[test]
    fn a_partition_is_over_when_its_last_row_has_expired() {
        for class in CLASSES {
            let part = Part::of(class, 20_000);
            let last_expiry = (part.first_day + class.width_days + class.keep_days) * DAY;
            assert!(!part.is_over(day(last_expiry)));
            assert!(part.is_over(day(last_expiry) + GRACE_DAYS));
            assert_eq!(Part::parse(&part.name()), Some(part));
        }
        assert_eq!(Part::parse("log_ids"), None);
    }
}
