//! The store in SQLite, for one node. One connection writes: its transactions begin with the look whether the file is
//! still this process's. Others read beside it (write-ahead log).

mod append;
mod positions;
pub(in crate::store) mod queries;
mod sessions;

use std::{path::Path, str::FromStr as _, sync::Arc, time::Duration};

use sqlx::{
    ConnectOptions as _, Row as _, SqliteConnection,
    sqlite::{
        SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
        SqliteSynchronous,
    },
};

use super::{
    Acknowledgement, Answer, Appended, Config, DEVICES_PER_USER_MAX, Epochs, Error, Opened, Page, PageLimit, Store,
    poison,
    positions::HeldPartitions,
    row::{self, Ends, Group, Keeping, Read, number, signed},
    schema::{SQLITE, SchemaError, reason},
};
use crate::{
    event::{Event, unix_millis_now},
    ids::{DeviceId, LogEpoch, Sequence, UserId},
};

/// Connections that read.
const READS_MAX: u32 = 4;
/// How long a statement waits for another process that writes.
const BUSY: Duration = Duration::from_secs(5);
/// So many expired rows go in one transaction, between two writes.
const EXPIRED_AT_ONCE: i64 = 2000;

/// The store in SQLite.
pub struct SqliteStore {
    keeping: Keeping,
    lives: Epochs,
    /// This process, as the file names its owner.
    owner: String,
    claim: i64,
    writes: SqlitePool,
    reads: SqlitePool,
    partitions: HeldPartitions,
}

fn unavailable(error: sqlx::Error) -> Error {
    Error::Unavailable { reason: reason(&error) }
}

fn options(config: &Config) -> sqlx::Result<SqliteConnectOptions> {
    let options = SqliteConnectOptions::from_str(&config.url)?;
    Ok(options
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // A commit is on the disk when it is answered: what is settled survives the loss of power too.
        .synchronous(SqliteSynchronous::Full)
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .busy_timeout(BUSY)
        // Rows of many users touch many pages: they must not be read again for each group, nor be moved from the
        // write-ahead log into the file after each.
        .pragma("cache_size", "-65536")
        .pragma("wal_autocheckpoint", "8000")
        // What would take one statement of a transaction back: not through a file.
        .pragma("temp_store", "memory")
        .disable_statement_logging())
}

/// Makes the file if it is not there, for this user only: it holds payloads, and ids that connect. What SQLite puts
/// beside it gets the same permissions. What goes wrong here is said when the file is opened.
fn create_private(path: &Path) {
    let mut open = std::fs::OpenOptions::new();
    open.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut open, 0o600);
    let _ = open.open(path);
}

/// Brings the schema up.
pub(super) async fn migrate(config: &Config) -> Result<usize, SchemaError> {
    create_private(options(config)?.get_filename());
    SQLITE.establish(&mut options(config)?.connect().await?, true).await
}

/// Who owns the file, and which life of its log it holds.
async fn owner_of(connection: &mut SqliteConnection) -> sqlx::Result<Option<(String, Option<String>, i64)>> {
    match sqlx::query_as("select epoch, owner, claim from meta").fetch_optional(connection).await {
        Err(sqlx::Error::Database(error)) if error.message().contains("no such table") => Ok(None),
        other => other,
    }
}

impl SqliteStore {
    /// Opens or creates the file, brings the schema up if that is wanted, and takes the file.
    ///
    /// # Errors
    /// When the file cannot be opened or its schema is of another version.
    pub async fn open(config: &Config) -> Result<Self, SchemaError> {
        let options = options(config)?;
        create_private(options.get_filename());
        let pool = |connections| SqlitePoolOptions::new().max_connections(connections).acquire_timeout(BUSY * 2);
        let writes = pool(1).idle_timeout(None).max_lifetime(None).connect_lazy_with(options.clone());
        let reads = pool(READS_MAX).connect_lazy_with(options);
        let mut connection = writes.acquire().await?;
        let applied = SQLITE.establish(&mut *connection, config.may_migrate).await?;
        if applied > 0 {
            tracing::info!(applied, "the store's schema was brought up");
        }
        let owner = uuid::Uuid::new_v4().simple().to_string();
        let take = "insert into meta (epoch, shards, owner, claim) values (?1, ?2, ?3, 1) \
                    on conflict (one) do update set owner = excluded.owner, claim = claim + 1 \
                    returning epoch, shards, claim";
        let (epoch, stored, claim): (String, i64, i64) = sqlx::query_as(take)
            .bind(&*LogEpoch::random())
            .bind(i64::from(config.shards))
            .bind(&owner)
            .fetch_one(&mut *connection)
            .await?;
        if stored != i64::from(config.shards) {
            return Err(SchemaError::Shards { stored, configured: config.shards.into() });
        }
        let former = sqlx::query_scalar("select epoch from former_epochs order by ended_at desc limit 100");
        let lives = Epochs { current: LogEpoch::named(&epoch), former: former.fetch_all(&mut *connection).await? };
        drop(connection);
        let partitions = HeldPartitions::default();
        Ok(Self { keeping: config.keeping(), lives, owner, claim, writes, reads, partitions })
    }

    /// Fails when the file is another process's, or another file.
    async fn check_owner(&self, connection: &mut SqliteConnection) -> Result<(), Error> {
        let found = owner_of(connection).await.map_err(unavailable)?;
        self.lives.compare(found.as_ref().map(|(epoch, ..)| &**epoch))?;
        match found {
            Some((_, Some(owner), claim)) if owner == self.owner && claim == self.claim => Ok(()),
            _ => Err(Error::Lost { reason: "another process has opened it".into() }),
        }
    }

    async fn open_log(&self, user: &UserId, device: Option<&DeviceId>) -> Result<Opened, Error> {
        let asked = sqlx::query_as(queries::OPEN).bind(&**user).bind(device.map_or("", |device| device));
        let (head, shared, own): (i64, i64, Option<i64>) = asked.fetch_one(&self.reads).await.map_err(unavailable)?;
        let cursor = match (device, own) {
            (None, _) => shared,
            (Some(_), Some(own)) => own,
            (Some(device), None) => self.new_device(user, device, shared).await.map_err(unavailable)?,
        };
        Ok(Opened { head: number(head), cursor: number(cursor) })
    }

    /// A device that was seen keeps the cursor it started with, even when the shared one moves on.
    async fn new_device(&self, user: &UserId, device: &DeviceId, shared: i64) -> sqlx::Result<i64> {
        let note = "insert into cursors (user_id, device, cursor, used_at) values (?1, ?2, ?3, ?4) \
                    on conflict (user_id, device) do update set used_at = excluded.used_at returning cursor";
        let note = sqlx::query_scalar(note).bind(&**user).bind(&**device).bind(shared).bind(unix_millis_now());
        let cursor = note.fetch_one(&self.writes).await?;
        sqlx::query(queries::FORGET_DEVICES).bind(&**user).bind(DEVICES_PER_USER_MAX).execute(&self.writes).await?;
        Ok(cursor)
    }

    async fn append_group(&self, events: &[Arc<Event>]) -> Result<Vec<Appended>, Error> {
        let group = Group::new(events, &self.keeping, unix_millis_now());
        let name = |row: &row::Row<'_>| format!("{} of {}", row.event.id, row.event.user);
        let of_rows = poison::isolate(&group.rows, |rows| self.attempt(rows), name).await?;
        Ok(group.outcomes(&of_rows))
    }

    async fn read_page(&self, user: &UserId, after: Sequence, limit: PageLimit) -> sqlx::Result<Page> {
        let items = i64::try_from(limit.items.max(1)).unwrap_or(i64::MAX);
        let bytes = i64::try_from(limit.bytes.max(1)).unwrap_or(i64::MAX);
        let asked = sqlx::query(queries::READ)
            .bind(&**user)
            .bind(signed(after))
            .bind(unix_millis_now())
            .bind(items)
            .bind(bytes);
        page(user, after, &asked.fetch_all(&self.reads).await?, items)
    }

    async fn raise_cursors(&self, acknowledged: &[Acknowledgement]) -> sqlx::Result<()> {
        let mut transaction = self.writes.begin_with("begin immediate").await?;
        for Acknowledgement { user, device, seq } in acknowledged {
            let raise = sqlx::query(queries::ACKNOWLEDGE)
                .bind(&**user)
                .bind(device.as_deref().unwrap_or_default())
                .bind(signed(*seq))
                .bind(unix_millis_now());
            raise.execute(&mut *transaction).await?;
        }
        transaction.commit().await
    }

    /// Lets expired rows go along their index, a piece at a time, so that writes come between.
    async fn forget_expired(&self) -> sqlx::Result<()> {
        loop {
            let forget = sqlx::query(queries::FORGET_EXPIRED).bind(unix_millis_now()).bind(EXPIRED_AT_ONCE);
            if forget.execute(&self.writes).await?.rows_affected() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        sqlx::query(queries::FORGET_SESSIONS).bind(unix_millis_now()).execute(&self.writes).await?;
        sqlx::raw_sql("pragma incremental_vacuum(10000); pragma optimize").execute(&self.writes).await?;
        Ok(())
    }
}

fn page(user: &UserId, after: Sequence, rows: &[SqliteRow], items: i64) -> sqlx::Result<Page> {
    let Some(first) = rows.first() else { return Ok(Page { entries: Vec::new(), covers: after }) };
    let ends = Ends { head: number(first.try_get(0)?), floor: number(first.try_get(1)?) };
    let Some(found) = first.try_get::<Option<i64>, _>(12)? else {
        return Ok(row::page(user, after, ends, Vec::new(), true));
    };
    let is_all = found < items && i64::try_from(rows.len()) == Ok(found);
    let read = |row: &SqliteRow| {
        Ok(Read {
            seq: row.try_get(2)?,
            id: row.try_get(3)?,
            notification_type: row.try_get(4)?,
            payload: row.try_get(5)?,
            durability: row.try_get(6)?,
            priority: row.try_get(7)?,
            collapse_key: row.try_get(8)?,
            ttl_ms: row.try_get(9)?,
            created_at: row.try_get(10)?,
            recorded_at: row.try_get(11)?,
        })
    };
    let rows = rows.iter().map(read).collect::<sqlx::Result<_>>()?;
    Ok(row::page(user, after, ends, rows, is_all))
}

impl Store for SqliteStore {
    fn epoch(&self) -> LogEpoch {
        self.lives.current.clone()
    }

    fn was(&self, epoch: &str) -> bool {
        self.lives.was(epoch)
    }

    fn open<'a>(&'a self, user: &'a UserId, device: Option<&'a DeviceId>) -> Answer<'a, Opened> {
        Box::pin(self.open_log(user, device))
    }

    fn append<'a>(&'a self, events: &'a [Arc<Event>]) -> Answer<'a, Vec<Appended>> {
        Box::pin(self.append_group(events))
    }

    fn read<'a>(&'a self, user: &'a UserId, after: Sequence, limit: PageLimit) -> Answer<'a, Page> {
        Box::pin(async move { self.read_page(user, after, limit).await.map_err(unavailable) })
    }

    fn acknowledge<'a>(&'a self, acknowledged: &'a [Acknowledgement]) -> Answer<'a, ()> {
        Box::pin(async move { self.raise_cursors(acknowledged).await.map_err(unavailable) })
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async {
            self.reads.close().await;
            // The last connection moves the write-ahead log into the file.
            self.writes.close().await;
            Ok(())
        })
    }

    fn check(&self) -> Answer<'_, ()> {
        Box::pin(async {
            let mut connection = self.reads.acquire().await.map_err(unavailable)?;
            self.check_owner(&mut connection).await
        })
    }

    fn tidy(&self) -> Answer<'_, ()> {
        Box::pin(async { self.forget_expired().await.map_err(unavailable) })
    }
}
