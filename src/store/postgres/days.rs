//! Partitions of the log and of the journal: made ahead, and dropped whole when their last row is over.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use sqlx::{AssertSqlSafe, Connection as _, postgres::PgConnection};

use super::{PostgresStore, retention, unavailable};
use crate::{
    event::{UnixMillis, unix_millis_now},
    store::{
        Error,
        row::{BACK_DAYS, CLASSES, Class, DAY, day},
    },
};

/// Partitions exist this many days ahead.
const AHEAD_DAYS: i64 = 7;
/// Clocks of nodes differ, and a statement may take a while: a partition goes this much later than it could.
const GRACE_DAYS: i64 = 1;
/// One maker at a time, over all nodes: the key of an advisory lock.
const LOCK: i64 = 0x6e6f_7469_6669_6572;

/// What a partition holds rows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The log's rows that are kept for about as long.
    Log(Class),
    /// The journal's.
    Journal,
}

/// One partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    kind: Kind,
    /// Its first day, a multiple of its width.
    first_day: i64,
}

impl Kind {
    fn table(self) -> &'static str {
        match self {
            Self::Log(_) => "log",
            Self::Journal => "journal",
        }
    }

    fn width_days(self) -> i64 {
        match self {
            Self::Log(class) => class.width_days,
            Self::Journal => 1,
        }
    }

    /// Rows stand at most so many days back, and none that is over is written.
    fn back_days(self) -> i64 {
        match self {
            Self::Log(class) => BACK_DAYS.min(class.keep_days),
            Self::Journal => 0,
        }
    }

    fn part(self, day: i64) -> Part {
        Part { kind: self, first_day: day.div_euclid(self.width_days()) * self.width_days() }
    }
}

impl Part {
    fn name(self) -> String {
        match self.kind {
            Kind::Log(class) => format!("log_{}_{}", class.number, self.first_day),
            Kind::Journal => format!("journal_{}", self.first_day),
        }
    }

    fn parse(name: &str) -> Option<Self> {
        if let Some(first_day) = name.strip_prefix("journal_") {
            return Some(Self { kind: Kind::Journal, first_day: first_day.parse().ok()? });
        }
        let (class, first_day) = name.strip_prefix("log_")?.split_once('_')?;
        let class: i16 = class.parse().ok()?;
        let class = *CLASSES.iter().find(|known| known.number == class)?;
        Some(Self { kind: Kind::Log(class), first_day: first_day.parse().ok()? })
    }

    fn end_day(self) -> i64 {
        self.first_day + self.kind.width_days()
    }

    /// Which rows belong to it.
    fn bounds(self) -> String {
        let (first, end) = (self.first_day, self.end_day());
        match self.kind {
            Kind::Log(Class { number, .. }) => format!("from ({number}, {first}) to ({number}, {end})"),
            Kind::Journal => format!("from ({}) to ({})", first * DAY, end * DAY),
        }
    }

    fn is_over(self, today: i64, journal_days: i64) -> bool {
        match self.kind {
            Kind::Log(class) => self.end_day() + class.keep_days + GRACE_DAYS <= today,
            Kind::Journal => self.end_day() + journal_days <= today,
        }
    }
}

/// The partitions that a row could need today and in the days to come.
fn wanted(today: i64) -> Vec<Part> {
    let of_kind = |kind: Kind| {
        let first = kind.part(today - kind.back_days() - 1).first_day;
        let width = usize::try_from(kind.width_days()).expect("a few days");
        (first..=today + AHEAD_DAYS).step_by(width).map(move |first_day| Part { kind, first_day })
    };
    CLASSES.into_iter().map(Kind::Log).chain([Kind::Journal]).flat_map(of_kind).collect()
}

impl PostgresStore {
    /// Makes what will be needed, and drops what is over. Nodes do this one at a time.
    pub(in crate::store) async fn keep_days(&self, now: UnixMillis) -> Result<(), Error> {
        let mut connection = self.reads.acquire().await.map_err(unavailable)?;
        let done = keep(&mut connection, now, self.keeping.journal_days()).await;
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

async fn keep(connection: &mut PgConnection, now: UnixMillis, journal_days: i64) -> sqlx::Result<()> {
    let today = day(now);
    // Waiting for a reader must not be cut off as a statement of a user's would be.
    sqlx::raw_sql("set statement_timeout = '5min'; set lock_timeout = '30s'").execute(&mut *connection).await?;
    sqlx::query("select pg_advisory_lock($1)").bind(LOCK).execute(&mut *connection).await?;
    let there = sqlx::query_as::<_, (String, bool, bool)>(
        "select c.relname::text, i.inhrelid is not null, coalesce(i.inhdetachpending, false) \
         from pg_class c left join pg_inherits i on i.inhrelid = c.oid \
         and i.inhparent in ('log'::regclass, 'journal'::regclass) \
         where c.relnamespace = (select relnamespace from pg_class where oid = 'log'::regclass) \
         and c.relkind = 'r' and c.relname ~ '^(log_[0-9]+|journal)_[0-9]+$'",
    );
    let there = there.fetch_all(&mut *connection).await?;
    let there: BTreeMap<String, (bool, bool)> =
        there.into_iter().map(|(name, attached, detaching)| (name, (attached, detaching))).collect();
    // One that resists keeps none of the others; the first failure is told of.
    let mut done = Ok(());
    for part in wanted(today) {
        if there.get(&part.name()).is_none_or(|(attached, _)| !attached) {
            done = done.and(make(connection, part).await);
        }
    }
    for (name, (attached, detaching)) in &there {
        if let Some(part) = Part::parse(name).filter(|part| part.is_over(today, journal_days)) {
            let detached = if *attached { detach(connection, part, *detaching).await } else { Ok(()) };
            done = done.and(match detached {
                Ok(()) => forget(connection, part, now).await,
                failed => failed,
            });
        }
    }
    done
}

/// Made on its own and then attached, which does not wait for those who read or write the table.
async fn make(connection: &mut PgConnection, part: Part) -> sqlx::Result<()> {
    let (name, table, bounds) = (part.name(), part.kind.table(), part.bounds());
    let sql = format!(
        "create table if not exists {name} (like {table} including all); \
         alter table {table} attach partition {name} for values {bounds}"
    );
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await?;
    transaction.commit().await
}

/// A plain detach, or a drop, would wait behind readers and make all writers wait behind it.
async fn detach(connection: &mut PgConnection, part: Part, is_pending: bool) -> sqlx::Result<()> {
    let how = if is_pending { "finalize" } else { "concurrently" };
    let sql = format!("alter table {} detach partition {} {how}", part.kind.table(), part.name());
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await?;
    Ok(())
}

/// Drops what nobody sees any more. In the same transaction the journal hears what of it had not ended before: however
/// often this has to be tried, it says so once. Users' highest numbers are in `heads` already.
async fn forget(connection: &mut PgConnection, part: Part, now: UnixMillis) -> sqlx::Result<()> {
    let name = part.name();
    let mut transaction = connection.begin().await?;
    if part.kind != Kind::Journal {
        let note = sqlx::query(AssertSqlSafe(retention::gone_unacknowledged(&name))).bind(now);
        note.execute(&mut *transaction).await?;
    }
    sqlx::raw_sql(AssertSqlSafe(format!("drop table {name}"))).execute(&mut *transaction).await?;
    transaction.commit().await?;
    tracing::info!(partition = name, "a partition is over and gone");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::postgres::queries;

    #[test]
    fn partitions_of_a_kind_meet_without_a_hole_and_cover_the_days_in_use() {
        for today in 20_000..20_100 {
            let parts = wanted(today);
            for kind in CLASSES.into_iter().map(Kind::Log).chain([Kind::Journal]) {
                let of_kind: Vec<i64> =
                    parts.iter().filter(|part| part.kind == kind).map(|part| part.first_day).collect();
                assert!(of_kind.windows(2).all(|pair| pair[0] + kind.width_days() == pair[1]));
                assert!(of_kind[0] < today - kind.back_days());
                assert!(of_kind[of_kind.len() - 1] + kind.width_days() > today + AHEAD_DAYS);
            }
            assert!(parts.len() < 60 && !parts.iter().any(|part| part.is_over(today, 2)));
        }
    }

    #[test]
    fn a_partition_is_over_when_its_last_row_has_expired() {
        for class in CLASSES {
            let part = Kind::Log(class).part(20_000);
            let last_expiry = (part.end_day() + class.keep_days) * DAY;
            assert!(!part.is_over(day(last_expiry), 0));
            assert!(part.is_over(day(last_expiry) + GRACE_DAYS, 0));
            assert_eq!(Part::parse(&part.name()), Some(part));
            // The day that statements reckon with, whichever day of the partition a row has.
            let certain = queries::GONE_AFTER_DAYS[usize::try_from(class.number).unwrap()];
            assert!((part.first_day..part.end_day()).all(|day| part.is_over(day + certain - 1, 0)));
        }
        let journal = Kind::Journal.part(20_000);
        assert_eq!(Part::parse(&journal.name()), Some(journal));
        assert!(!journal.is_over(20_008, 8) && journal.is_over(20_009, 8));
        assert_eq!(Part::parse("log_ids"), None);
    }
}
