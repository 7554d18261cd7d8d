//! The store in PostgreSQL (14 or newer). Every append is one statement, which checks under a lock that its shards
//! are still this process's. Reads and takes have connections of their own, so that they never wait for writes.

mod append;
mod at_hand;
mod claims;
mod days;
mod fence;
mod journal;
pub mod membership;
mod open;
mod positions;
pub(in crate::store) mod queries;
pub(in crate::store) mod retention;
mod sessions;
mod waiting;

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use self::membership::PostgresMembership;
use futures_util::TryFutureExt as _;
use parking_lot::Mutex;
use sqlx::{
    ConnectOptions as _,
    postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions},
};

use self::at_hand::AtHand;
use super::{
    Acknowledgement, Answer, Appended, Config, Epochs, Error, Grouping, Opened, Opening, Page, PageLimit, Store, Try,
    claims::Epoch,
    journal::Step,
    metric::{Operation, counted},
    page::page,
    positions::{HeldPartitions, behind},
    row::{Keeping, signed},
    schema::{POSTGRES, SchemaError, reason},
};
use crate::{
    event::{Event, unix_millis_now},
    ids::{Incarnation, LogEpoch, Sequence, UserId},
    placement::ShardId,
};

/// Appends under way at one time. One group is at work in the server while the next one is made, or is on its way.
const WRITE_LANES: u16 = 2;
/// A statement costs the server about as much to begin as ten rows do.
const GROUP_INTERVAL: Duration = Duration::from_millis(3);
/// Connections for writes: one for each lane, as many for those of notes, and one more.
const WRITES_MAX: u32 = 2 * WRITE_LANES as u32 + 1;
/// Connections for the other writes of lanes, which change what is there: a lane has one call under way.
const CHANGES_MAX: u32 = WRITE_LANES as u32;
/// Connections for everything else.
const READS_MAX: u32 = 8;
/// How long to wait for a connection.
const ACQUIRE: Duration = Duration::from_secs(5);
/// How long to wait for an answer: a little longer than the server tries, so that mostly it says so itself.
const WRITE_TIMEOUT: Duration = Duration::from_secs(7);
/// What every connection begins with. A client that stands still in a transaction must not hold its locks for long.
/// Plans over all partitions take longer to make, or to compile, than to run: they are made once.
const SETTINGS: &str = "set statement_timeout = '5s'; set lock_timeout = '3s'; \
                        set idle_in_transaction_session_timeout = '2s'; set client_min_messages = 'warning'; \
                        set jit = off; set plan_cache_mode = force_generic_plan";

/// The server does not know how many rows an array holds, and would compare each row of a group with each other one:
/// without nested loops it hashes them. Statements that write look into tables by subqueries, which need no such loop.
const WRITE_SETTINGS: &str = "set statement_timeout = '5s'; set lock_timeout = '3s'; \
                              set idle_in_transaction_session_timeout = '2s'; set client_min_messages = 'warning'; \
                              set jit = off; set plan_cache_mode = force_generic_plan; set enable_nestloop = off";

/// The store in PostgreSQL.
pub struct PostgresStore {
    keeping: Keeping,
    shards: u16,
    lives: Epochs,
    /// This incarnation of the node, as claims name it.
    owner: String,
    /// What it shares with other nodes, if it does.
    common: Option<(Incarnation, PostgresMembership)>,
    writes: AtHand,
    /// For cancellations and the like, which a storm of reads must not hold up: a whole lane stands behind each.
    changes: PgPool,
    reads: PgPool,
    /// The epochs under which shards are held, by shard.
    epochs: Mutex<Vec<i64>>,
    /// Shards with a statement whose outcome is not known.
    doubts: Mutex<HashSet<ShardId>>,
    /// Held by who raises epochs.
    raising: tokio::sync::Mutex<()>,
    partitions: HeldPartitions,
    days_missing: AtomicBool,
    password: Password,
}

/// What a node's connections are called at the server: so it can be seen whether it has any.
fn called(incarnation: Option<Incarnation>) -> String {
    incarnation.map_or_else(|| "notifier".to_owned(), |incarnation| format!("notifier {incarnation}"))
}

/// A password that may change while the node runs.
struct Password {
    options: PgConnectOptions,
    file: Option<PathBuf>,
    read: Mutex<Option<String>>,
}

impl Password {
    fn of(config: &Config) -> sqlx::Result<Self> {
        let options: PgConnectOptions = config.url.parse()?;
        // Every statement would be an event, for nobody to read.
        let options = options.application_name(&called(config.incarnation)).disable_statement_logging();
        Ok(Self { options, file: config.password_file.clone(), read: Mutex::default() })
    }

    /// How to connect now; `None` when that is as it was when this was asked last.
    fn changed(&self) -> Option<PgConnectOptions> {
        let file = self.file.as_ref()?;
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text.trim_end_matches(['\r', '\n']).to_owned(),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "store.password_file cannot be read: the last password stays");
                return None;
            }
        };
        let mut read = self.read.lock();
        if read.as_ref() == Some(&text) {
            return None;
        }
        let options = self.options.clone().password(&text);
        *read = Some(text);
        Some(options)
    }

    fn options(&self) -> PgConnectOptions {
        self.changed().unwrap_or_else(|| self.options.clone())
    }
}

fn unavailable(error: sqlx::Error) -> Error {
    Error::Unavailable { reason: reason(&error) }
}

/// A connection that says why there is none: of a pool one only hears that it took too long.
async fn connect(options: &PgConnectOptions) -> Result<PgConnection, SchemaError> {
    let reason = |why: String| SchemaError::Unusable { reason: format!("{}: {why}", options.get_host()) };
    match tokio::time::timeout(ACQUIRE, options.connect()).await {
        Ok(connection) => connection.map_err(|error| reason(self::reason(&error))),
        Err(_) => Err(reason(format!("no answer within {ACQUIRE:?}"))),
    }
}

fn pool(options: PgConnectOptions, connections: u32, settings: &'static str) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE)
        .max_lifetime(Duration::from_secs(1800))
        .after_connect(move |connection, _| Box::pin(sqlx::raw_sql(settings).execute(connection).map_ok(drop)))
        .connect_lazy_with(options)
}

impl PostgresStore {
    /// Connects, brings the schema up if that is wanted, makes partitions, and takes all shards.
    ///
    /// # Errors
    /// When the database does not answer or its schema is of another version.
    pub async fn open(config: &Config) -> Result<Self, SchemaError> {
        let password = Password::of(config)?;
        let options = password.options();
        let mut connection = connect(&options).await?;
        let writes = AtHand::of(pool(options.clone(), WRITES_MAX, WRITE_SETTINGS));
        let changes = pool(options.clone(), CHANGES_MAX, SETTINGS);
        let reads = pool(options, READS_MAX, SETTINGS);
        let applied = POSTGRES.establish(&mut connection, config.may_migrate).await?;
        if applied > 0 {
            tracing::info!(applied, "the store's schema was brought up");
        }
        drop(connection);
        let stored = establish(&reads, config.shards).await?;
        if stored != i64::from(config.shards) {
            return Err(SchemaError::Shards { stored, configured: config.shards.into() });
        }
        let lives = read_lives(&reads).await?;
        let incarnation = config.incarnation.unwrap_or_else(Incarnation::random);
        // With connections of its own: renewals must not wait for the claims of partitions.
        let common = match config.is_shared {
            true => Some((incarnation, PostgresMembership::open(config).await?)),
            false => None,
        };
        let store = Self {
            keeping: config.keeping(),
            shards: config.shards,
            lives,
            owner: incarnation.to_string(),
            common,
            writes,
            changes,
            reads,
            epochs: Mutex::new(vec![0; usize::from(config.shards)]),
            doubts: Mutex::default(),
            raising: tokio::sync::Mutex::default(),
            partitions: HeldPartitions::default(),
            days_missing: AtomicBool::new(false),
            password,
        };
        store.keep_days(unix_millis_now()).await.map_err(as_sqlx)?;
        if store.common.is_none() {
            store.take_shards().await?;
        }
        // A dump that was restored holds entries of another cluster's transactions: they are told of anew.
        sqlx::query(queries::ADOPT).execute(&store.reads).await?;
        Ok(store)
    }
}

/// Asks on a connection of the pool. One that does not answer in time is closed.
macro_rules! ask {
    ($pool:expr, |$connection:ident| $call:expr) => {
        $crate::store::postgres::fence::call!($pool, |$connection| $call).map_err($crate::store::postgres::unavailable)
    };
}
use ask;

/// Brings the schema up.
pub(super) async fn migrate(config: &Config) -> Result<usize, SchemaError> {
    POSTGRES.establish(&mut connect(&Password::of(config)?.options()).await?, true).await
}

/// The one row that says what this store is; how many shards it was created with.
async fn establish(pool: &PgPool, shards: u16) -> Result<i64, sqlx::Error> {
    sqlx::query("insert into meta (epoch, shards) values ($1, $2) on conflict (one) do nothing")
        .bind(&*LogEpoch::random())
        .bind(i32::from(shards))
        .execute(pool)
        .await?;
    let stored: i32 = sqlx::query_scalar("select shards from meta").fetch_one(pool).await?;
    Ok(stored.into())
}

async fn read_lives(pool: &PgPool) -> Result<Epochs, sqlx::Error> {
    let current: String = sqlx::query_scalar("select epoch from meta").fetch_one(pool).await?;
    let former = sqlx::query_scalar("select epoch from former_epochs order by ended_at desc limit 100");
    Ok(Epochs { current: LogEpoch::named(&current), former: former.fetch_all(pool).await? })
}

fn as_sqlx(error: Error) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::other(error))
}

impl PostgresStore {
    /// Takes every shard from whoever had it: from here on nothing of theirs is written.
    async fn take_shards(&self) -> Result<(), SchemaError> {
        let mut transaction = self.writes.pool().begin().await?;
        // Beside nothing that is still written.
        sqlx::query("select from shard_claims order by shard for update").execute(&mut *transaction).await?;
        let take = "insert into shard_claims as c (shard, owner, epoch) \
                    select shard, $2, 1 from generate_series(0, $1 - 1) as shard order by shard \
                    on conflict (shard) do update set owner = excluded.owner, epoch = c.epoch + 1 \
                    returning shard, epoch";
        let taken: Vec<(i32, i64)> =
            sqlx::query_as(take).bind(i32::from(self.shards)).bind(&self.owner).fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        let mut epochs = self.epochs.lock();
        for (shard, epoch) in taken {
            epochs[usize::try_from(shard).expect("a shard's number")] = epoch;
        }
        Ok(())
    }

    /// Whether this is still the log that the process began with.
    async fn check_epoch(&self) -> Result<(), Error> {
        let found = ask!(self.reads, |connection| async {
            match sqlx::query_scalar::<_, String>("select epoch from meta").fetch_optional(connection).await {
                // The tables are gone: somebody has put an empty database in the place of ours.
                Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => Ok(None),
                other => other,
            }
        })?;
        self.lives.compare(found.as_deref())
    }

    async fn read_page(&self, user: &UserId, after: Sequence, limit: PageLimit) -> Result<Page, Error> {
        let items = i64::try_from(limit.items.max(1)).unwrap_or(i64::MAX);
        let bytes = i64::try_from(limit.bytes.max(1)).unwrap_or(i64::MAX);
        let rows = ask!(self.reads, |connection| {
            sqlx::query(queries::READ)
                .bind(&**user)
                .bind(signed(after))
                .bind(unix_millis_now())
                .bind(items)
                .bind(bytes)
                .fetch_all(connection)
        })?;
        page(user, after, &rows, items).map_err(unavailable)
    }

    async fn look(&self) -> Result<(), Error> {
        if let Some(options) = self.password.changed() {
            self.writes.pool().set_connect_options(options.clone());
            self.changes.set_connect_options(options.clone());
            self.reads.set_connect_options(options);
        }
        self.check_epoch().await?;
        let held: i64 = ask!(self.reads, |connection| {
            sqlx::query_scalar("select count(*) from shard_claims where owner = $1")
                .bind(&self.owner)
                .fetch_one(connection)
        })?;
        // Of several nodes each has its own; who has lost them all hears it from the others.
        if self.common.is_none() && held != i64::from(self.shards) {
            return Err(Error::Lost { reason: "another process has taken its shards".into() });
        }
        let written = self.partitions.written_by_now();
        let found: Vec<(i32, i64, i64)> = ask!(self.reads, |connection| {
            sqlx::query_as("select partition, epoch, position from partition_claims where owner = $1")
                .bind(&self.owner)
                .fetch_all(connection)
        })?;
        let Some(error) = behind(&written, &found) else { return Ok(()) };
        self.renew_epoch("", &[]).await?;
        Err(error)
    }
}

impl Store for PostgresStore {
    fn grouping(&self) -> Grouping {
        Grouping { lanes: WRITE_LANES, interval: GROUP_INTERVAL }
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
        counted(Operation::Read, self.read_page(user, after, limit))
    }

    fn acknowledge<'a>(
        &'a self,
        acknowledged: &'a [Acknowledgement],
        steps: &'a [Step],
        attempt: Try,
    ) -> Answer<'a, ()> {
        counted(Operation::Write, self.raise_cursors(acknowledged, steps, attempt))
    }

    fn hold_shards(&self, held: &[(ShardId, Epoch)]) {
        let mut epochs = self.epochs.lock();
        for (shard, epoch) in held {
            epochs[usize::from(shard.0)] = *epoch;
        }
    }

    fn let_shards_go(&self, shards: &[ShardId]) -> Vec<(ShardId, Epoch)> {
        let mut epochs = self.epochs.lock();
        let mut doubts = self.doubts.lock();
        let let_go = |shard: &ShardId| {
            doubts.remove(shard);
            (*shard, std::mem::take(&mut epochs[usize::from(shard.0)]))
        };
        shards.iter().map(let_go).collect()
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
            self.writes.close().await;
            self.changes.close().await;
            self.reads.close().await;
            Ok(())
        })
    }

    fn check(&self) -> Answer<'_, ()> {
        counted(Operation::Check, async {
            self.look().await?;
            self.make_missing_days().await
        })
    }

    fn tidy(&self) -> Answer<'_, ()> {
        counted(Operation::Tidy, self.forget_expired(unix_millis_now()))
    }
}
