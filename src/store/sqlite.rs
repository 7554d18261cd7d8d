//! The store in SQLite, for one node. One connection writes: its transactions begin with the look whether the file is
//! still this process's. Others read beside it (write-ahead log).

mod append;
mod journal;
mod positions;
pub(in crate::store) mod queries;
mod sessions;
mod waiting;

use std::{path::Path, str::FromStr as _, sync::Arc, time::Duration};

use sqlx::{
    ConnectOptions as _, Connection as _, Sqlite, SqliteConnection, Transaction,
    sqlite::{
        SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
    },
};

use super::{
    Acknowledgement, Answer, Appended, Config, DEVICES_PER_USER_MAX, Epochs, Error, Grouping, Opened, Opening, Page,
    PageLimit, Store, Try,
    journal::Step,
    metric::{Operation, counted},
    page::page,
    positions::{HeldPartitions, behind},
    row::{DAY, Keeping, number, signed},
    schema::{SQLITE, SchemaError, reason},
};
use crate::{
    event::{Event, UnixMillis, unix_millis_now},
    ids::{DeviceId, LogEpoch, Sequence, UserId},
    lock::{self, FileLock},
};

/// Every commit waits for the disk.
const GROUP_INTERVAL: Duration = Duration::from_millis(3);
/// Connections that read.
const READS_MAX: u32 = 4;
/// How long a statement waits for another process that writes.
const BUSY: Duration = Duration::from_secs(5);
/// So many expired rows go in one transaction, between two writes.
const EXPIRED_AT_ONCE: i64 = 2000;

/// The store in SQLite.
pub struct SqliteStore {
    keeping: Keeping,
    shards: u16,
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

/// Takes the file that stands beside the database for whoever uses it. A lock on the database's own would be let go of
/// by SQLite, or let go of SQLite's.
pub(super) fn lock(config: &Config) -> Result<Option<FileLock>, SchemaError> {
    let options = options(config)?;
    create_private(options.get_filename());
    // By whatever path.
    let database = options.get_filename().canonicalize().unwrap_or_else(|_| options.get_filename().to_owned());
    let mut name = database.clone().into_os_string();
    name.push("-lock");
    FileLock::take(Path::new(&name)).map(Some).map_err(|error| match error {
        lock::Error::Held { by } => SchemaError::Held { by, file: database.display().to_string() },
        lock::Error::Io(error) => SchemaError::Unusable { reason: format!("{}: {error}", Path::new(&name).display()) },
    })
}

/// Brings the schema up.
pub(super) async fn migrate(config: &Config) -> Result<usize, SchemaError> {
    create_private(options(config)?.get_filename());
    SQLITE.establish(&mut options(config)?.connect().await?, true).await
}

/// Whether a connection that is given back has no transaction left. Without room, or after an error of the disk, SQLite
/// takes a transaction back by itself: taking it back once more fails, and the connection counts as within one for ever.
async fn is_reusable(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
    // The end of a transaction that was dropped is queued before this.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
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
        // A file does not go away as a server does: nobody needs to ask a connection whether it lives.
        let pool = |connections| {
            let pool = SqlitePoolOptions::new().max_connections(connections).acquire_timeout(BUSY * 2);
            pool.test_before_acquire(false)
        };
        let writes = pool(1).idle_timeout(None).max_lifetime(None);
        let writes = writes.after_release(|connection, _| Box::pin(is_reusable(connection)));
        let writes = writes.connect_lazy_with(options.clone());
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
        Ok(Self { keeping: config.keeping(), shards: config.shards, lives, owner, claim, writes, reads, partitions })
    }

    /// The file gets no larger than so many pages, or than it is.
    #[cfg(test)]
    pub(in crate::store) async fn bound(&self, pages: u32) {
        let pragma = sqlx::AssertSqlSafe(format!("pragma max_page_count = {pages}"));
        sqlx::query(pragma).execute(&self.writes).await.unwrap();
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

    /// A transaction in a file that is still this process's.
    async fn begin_owned(&self) -> Result<Transaction<'static, Sqlite>, Error> {
        let mut transaction = self.writes.begin_with("begin immediate").await.map_err(unavailable)?;
        self.check_owner(&mut transaction).await?;
        Ok(transaction)
    }

    async fn open_logs(&self, opening: &[Opening]) -> Result<Vec<Opened>, Error> {
        let mut opened = Vec::with_capacity(opening.len());
        for one in opening {
            opened.push(self.open_log(one).await?);
        }
        Ok(opened)
    }

    async fn open_log(&self, Opening { user, device }: &Opening) -> Result<Opened, Error> {
        let asked = sqlx::query_as(queries::OPEN).bind(&**user).bind(device.as_deref().unwrap_or_default());
        let (head, shared, own, highest): (i64, i64, Option<i64>, i64) =
            asked.fetch_one(&self.reads).await.map_err(unavailable)?;
        let cursor = match (device, own) {
            (None, _) => shared,
            (Some(_), Some(own)) => own,
            (Some(device), None) => self.new_device(user, device, shared).await?,
        };
        Ok(Opened { head: number(head), cursor: number(cursor), acknowledged: number(highest) })
    }

    /// A device that was seen keeps the cursor it started with, even when the shared one moves on.
    async fn new_device(&self, user: &UserId, device: &DeviceId, shared: i64) -> Result<i64, Error> {
        let note = "insert into cursors (user_id, device, cursor, used_at) values (?1, ?2, ?3, ?4) \
                    on conflict (user_id, device) do update set used_at = excluded.used_at returning cursor";
        let note = sqlx::query_scalar(note).bind(&**user).bind(&**device).bind(shared).bind(unix_millis_now());
        let mut transaction = self.begin_owned().await?;
        let cursor = note.fetch_one(&mut *transaction).await.map_err(unavailable)?;
        let forget = sqlx::query(queries::FORGET_DEVICES).bind(&**user).bind(DEVICES_PER_USER_MAX);
        forget.execute(&mut *transaction).await.map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)?;
        Ok(cursor)
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

    /// Lets what is over go along its indexes, a piece at a time, so that writes come between. What had not ended
    /// before is noted in the same transaction.
    async fn forget_expired(&self, now: UnixMillis) -> Result<(), Error> {
        let journal_since = now - self.keeping.journal_days() * DAY;
        // The log goes first: what was removed of it must be known until then. What fails keeps nothing else.
        let log = match self.forget(Some(queries::NOTE_EXPIRED), queries::FORGET_EXPIRED, now).await {
            Ok(()) => self.forget(None, queries::FORGET_REMOVED, now).await,
            failed => failed,
        };
        let waiting = self.forget(Some(queries::NOTE_EXPIRED_WAITING), queries::FORGET_WAITING, now).await;
        let journal = self.forget(None, queries::FORGET_JOURNAL, journal_since).await;
        let over = self.forget_sessions(now).await;
        log.and(waiting).and(journal).and(over)
    }

    /// Sessions that are over, and pages of the file that nothing is in.
    async fn forget_sessions(&self, now: UnixMillis) -> Result<(), Error> {
        let mut transaction = self.begin_owned().await?;
        let sessions = sqlx::query(queries::FORGET_SESSIONS).bind(now);
        sessions.execute(&mut *transaction).await.map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)?;
        let vacuum = sqlx::raw_sql("pragma incremental_vacuum(10000); pragma optimize");
        vacuum.execute(&self.writes).await.map_err(unavailable)?;
        Ok(())
    }

    async fn forget(&self, note: Option<&'static str>, forget: &'static str, until: UnixMillis) -> Result<(), Error> {
        loop {
            let mut transaction = self.begin_owned().await?;
            let mut gone = 0;
            for statement in note.into_iter().chain([forget]) {
                let statement = sqlx::query(statement).bind(until).bind(EXPIRED_AT_ONCE);
                gone = statement.execute(&mut *transaction).await.map_err(unavailable)?.rows_affected();
            }
            transaction.commit().await.map_err(unavailable)?;
            if gone == 0 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Store for SqliteStore {
    /// One connection writes: what waited for it in a lane of its own would be a commit of its own.
    fn grouping(&self) -> Grouping {
        Grouping { lanes: 1, interval: GROUP_INTERVAL }
    }

    fn epoch(&self) -> LogEpoch {
        self.lives.current.clone()
    }

    fn was(&self, epoch: &str) -> bool {
        self.lives.was(epoch)
    }

    fn open_all<'a>(&'a self, opening: &'a [Opening]) -> Answer<'a, Vec<Opened>> {
        counted(Operation::Open, self.open_logs(opening))
    }

    fn append<'a>(&'a self, events: &'a [Arc<Event>]) -> Answer<'a, Vec<Appended>> {
        counted(Operation::Write, self.append_group(events))
    }

    fn read<'a>(&'a self, user: &'a UserId, after: Sequence, limit: PageLimit) -> Answer<'a, Page> {
        counted(Operation::Read, async move { self.read_page(user, after, limit).await.map_err(unavailable) })
    }

    fn acknowledge<'a>(
        &'a self,
        acknowledged: &'a [Acknowledgement],
        steps: &'a [Step],
        attempt: Try,
    ) -> Answer<'a, ()> {
        counted(Operation::Write, self.raise_cursors(acknowledged, steps, attempt))
    }

    fn begin_epoch(&self) -> Answer<'_, ()> {
        Box::pin(async {
            // Of somebody else's log nothing is known.
            self.check().await?;
            self.renew_epoch("", &[]).await
        })
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
        counted(Operation::Check, async {
            let written = self.partitions.written_by_now();
            let mut connection = self.reads.acquire().await.map_err(unavailable)?;
            self.check_owner(&mut connection).await?;
            let found: Vec<(i32, i64, i64)> =
                sqlx::query_as("select partition, epoch, position from partition_claims where owner = ?1")
                    .bind(&self.owner)
                    .fetch_all(&mut *connection)
                    .await
                    .map_err(unavailable)?;
            drop(connection);
            let Some(error) = behind(&written, &found) else { return Ok(()) };
            self.renew_epoch("", &[]).await?;
            Err(error)
        })
    }

    fn tidy(&self) -> Answer<'_, ()> {
        counted(Operation::Tidy, self.forget_expired(unix_millis_now()))
    }
}
