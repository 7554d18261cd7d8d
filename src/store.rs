//! The store as the rest sees it: a log per user, and cursors. Engines are behind [`Store`]: in memory, for as long
//! as the process lives; SQLite, for one node; PostgreSQL.

pub mod claims;
pub mod journal;
pub mod membership;
pub mod memory;
pub mod metric;
mod page;
mod poison;
pub mod positions;
pub mod postgres;
mod row;
pub mod schema;
pub mod sessions;
pub mod sqlite;
mod steps;
pub mod waiting;
pub mod writer;

use std::{future::Future, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use self::{
    claims::{Claims, Epoch},
    journal::{Journal, Step},
    membership::Membership,
    positions::Positions,
    postgres::{
        PostgresStore,
        membership::{Announcements, PostgresMembership},
    },
    row::Keeping,
    schema::SchemaError,
    sessions::StartedSessions,
    sqlite::SqliteStore,
    waiting::Waiting,
};

use crate::{
    event::{Event, Notification},
    ids::{DeviceId, Incarnation, LogEpoch, Sequence, UserId},
    lock::FileLock,
    placement::ShardId,
    wire::Gap,
};

/// What a call to the store comes to. Dropping it abandons the answer; a write may still happen.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// Why the store did not answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// It is away or overloaded: the same call may succeed later.
    #[error("the store is unavailable: {reason}")]
    Unavailable {
        /// What the engine said.
        reason: String,
    },
    /// It is no longer what this process began with: somebody else writes, or it is another database, or it has lost
    /// what it had. Nothing that is known of it counts any more: the process has to begin anew.
    #[error("the store is not this process's any more: {reason}")]
    Lost {
        /// What was seen.
        reason: String,
    },
}

/// A client chooses its device's name: without a bound one user could fill the store with cursors.
const DEVICES_PER_USER_MAX: i64 = 64;

/// Keeps users' logs and cursors. Every promise is per user; calls for different users are independent.
pub trait Store: Journal + Waiting {
    /// How writes are put together before they are made.
    fn grouping(&self) -> Grouping;

    /// Names this life of the log. Numbers of another epoch mean nothing here.
    fn epoch(&self) -> LogEpoch;

    /// Whether that was an earlier life of this log, which ended because the store went back.
    fn was(&self, epoch: &str) -> bool;

    /// Where users' logs end and what devices have acknowledged; the answer has one entry for each.
    fn open_all<'a>(&'a self, opening: &'a [Opening]) -> Answer<'a, Vec<Opened>>;

    /// The same of one.
    fn open<'a>(&'a self, user: &'a UserId, device: Option<&'a DeviceId>) -> Answer<'a, Opened> {
        Box::pin(async move {
            let one = [Opening { user: user.clone(), device: device.cloned() }];
            Ok(self.open_all(&one).await?.pop().unwrap_or_default())
        })
    }

    /// Appends events to their users' logs, in the order given; the answer has one entry for each. One that waits
    /// ([`Waiting::hold`]) does so no more.
    fn append<'a>(&'a self, events: &'a [Arc<Event>]) -> Answer<'a, Vec<Appended>>;

    /// What follows `after` in a user's log, oldest first.
    fn read<'a>(&'a self, user: &'a UserId, after: Sequence, limit: PageLimit) -> Answer<'a, Page>;

    /// Raises cursors, each named once, and adds to the journal. Cursors never go down, and never pass the head. Entries
    /// stand in the journal once, if every further attempt says that it is one.
    fn acknowledge<'a>(
        &'a self,
        acknowledged: &'a [Acknowledgement],
        steps: &'a [Step],
        attempt: Try,
    ) -> Answer<'a, ()>;

    /// Whether it answers, and is still what this process began with. To be asked every second.
    fn check(&self) -> Answer<'_, ()>;

    /// Begins another epoch, because the log lacks what it had: what follows gets numbers that were given before.
    fn begin_epoch(&self) -> Answer<'_, ()>;

    /// Writes for these shards' users from here on, under these epochs. An engine of one node holds all shards always.
    fn hold_shards(&self, _held: &[(ShardId, Epoch)]) {}

    /// Writes nothing for these shards' users any more; the epochs under which they were held. No write of theirs may be
    /// under way.
    fn let_shards_go(&self, _shards: &[ShardId]) -> Vec<(ShardId, Epoch)> {
        Vec::new()
    }

    /// Lets the engine end in good order: what is open is written and closed. Nothing may be asked afterwards.
    fn close(&self) -> Answer<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Makes room for the days to come and lets go of what is over. To be called every hour.
    fn tidy(&self) -> Answer<'_, ()>;
}

/// How writes are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grouping {
    /// So many are under way at one time, each with users of its own: more make smaller groups.
    pub lanes: u16,
    /// A lane begins no two calls within this time, where a call costs much the same for one as for fifty. What comes to
    /// a lane that has rested goes at once.
    pub interval: Duration,
}

/// Whether a call may have happened already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Try {
    /// It has not been made before.
    First,
    /// It has, and failed or was not answered: it may have happened all the same.
    Again,
}

/// What a device has acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// Whose log.
    pub user: UserId,
    /// The device; none: the user's shared cursor.
    pub device: Option<DeviceId>,
    /// Everything up to this number.
    pub seq: Sequence,
}

/// Whose log is opened, for which device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The user.
    pub user: UserId,
    /// The device; none: the user's shared cursor.
    pub device: Option<DeviceId>,
}

/// The marks of a user's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// The highest number given; 0: none yet.
    pub head: Sequence,
    /// The highest number that the device has acknowledged (a new device: the user's shared cursor).
    pub cursor: Sequence,
    /// The highest number that any device has acknowledged.
    pub acknowledged: Sequence,
}

/// What became of an appended event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It has this number now.
    Stored(Sequence),
    /// An event with its id had this number already.
    Duplicate(Sequence),
    /// An event with its id has ended while it waited; it got no number.
    Known,
    /// Its time to live had ended before it came; it got no number.
    Expired,
    /// The engine does not accept what is in it, and never will; it got no number.
    Refused,
}

/// The most that one page may hold; at least one notification comes in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimit {
    /// Notifications.
    pub items: usize,
    /// Bytes of events.
    pub bytes: usize,
}

/// A stretch of a user's log.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// What it holds, in the order of numbers.
    pub entries: Vec<Entry>,
    /// The last number that it covers: the next page begins after it.
    pub covers: Sequence,
}

/// One place in a page.
#[derive(Clone, Debug)]
pub enum Entry {
    /// To be delivered.
    Notification(Notification),
    /// Numbers that will not come.
    Gap(Gap),
}

/// How durable engines are opened.
#[derive(Clone)]
pub struct Config {
    /// `postgres://…` or `sqlite:PATH`.
    pub url: String,
    /// Where the password is, unless it is in the URL; read again when it changes.
    pub password_file: Option<PathBuf>,
    /// Whether an older schema is brought up.
    pub may_migrate: bool,
    /// Into how many shards users are divided, for ever.
    pub shards: u16,
    /// This life of the node, as the table of members and claims name it; none: it is in no table.
    pub incarnation: Option<Incarnation>,
    /// Whether it takes what claims give it, beside others; else all.
    pub is_shared: bool,
    /// How long an event without a time to live is kept.
    pub retention: Duration,
    /// Notifications a user; the oldest go first.
    pub per_user_max: usize,
    /// Within this time an id is recognised again.
    pub dedup_window: Duration,
}

impl Config {
    fn keeping(&self) -> Keeping {
        let per_user_max = Sequence::try_from(self.per_user_max).unwrap_or(Sequence::MAX);
        Keeping { retention: self.retention, dedup_window: self.dedup_window, per_user_max }
    }

    fn is_sqlite(&self) -> bool {
        self.url.starts_with("sqlite:")
    }
}

/// An open engine: what it keeps, by what it is used for.
#[derive(Clone)]
pub struct Engine {
    /// Users' logs.
    pub log: Arc<dyn Store>,
    /// Started sessions.
    pub sessions: Arc<dyn StartedSessions>,
    /// Kafka positions.
    pub positions: Arc<dyn Positions>,
}

/// What the nodes of a cluster keep in common.
#[derive(Clone)]
pub struct Common {
    /// Who takes part.
    pub membership: Arc<dyn Membership>,
    /// Who owns what.
    pub claims: Arc<dyn Claims>,
    announcements: Arc<PostgresMembership>,
}

impl Common {
    /// Opens what the URL names. Nothing is taken from anybody.
    ///
    /// # Errors
    /// When it does not answer, or its schema is of another version.
    pub async fn open(config: &Config) -> Result<Self, SchemaError> {
        let common = Arc::new(PostgresMembership::open(config).await?);
        Ok(Self { membership: common.clone(), claims: common.clone(), announcements: common })
    }

    /// Whether the server has a connection of that node: one that lives may have none for a moment.
    ///
    /// # Errors
    /// When it does not say.
    pub async fn is_connected(&self, node: Incarnation) -> Result<bool, Error> {
        self.announcements.is_connected(node).await
    }

    /// Hears of changes as they happen.
    ///
    /// # Errors
    /// When there is no connection.
    pub async fn listen(&self) -> Result<Announcements, Error> {
        self.announcements.listen().await
    }
}

impl Engine {
    /// Opens the engine that the URL names, and takes it for this process.
    ///
    /// # Errors
    /// When it does not answer, or its schema is of another version.
    pub async fn open(config: &Config) -> Result<Self, SchemaError> {
        if config.is_sqlite() {
            Ok(Self::of(Arc::new(SqliteStore::open(config).await?)))
        } else {
            Ok(Self::of(Arc::new(PostgresStore::open(config).await?)))
        }
    }

    fn of<E: Store + StartedSessions + Positions>(engine: Arc<E>) -> Self {
        Self { log: engine.clone(), sessions: engine.clone(), positions: engine }
    }
}

/// Keeps other processes of this host out of the file that the URL names, until the answer is dropped. A server's store
/// is kept by the table of its members.
///
/// # Errors
/// When one has it.
pub fn lock(config: &Config) -> Result<Option<FileLock>, SchemaError> {
    if config.is_sqlite() { sqlite::lock(config) } else { Ok(None) }
}

/// Brings a store's schema up; how many versions were applied.
///
/// # Errors
/// When it does not answer, or its schema is newer than this program.
pub async fn migrate(config: &Config) -> Result<usize, SchemaError> {
    if config.is_sqlite() { sqlite::migrate(config).await } else { postgres::migrate(config).await }
}

/// The lives of a log: the one that this process began with, and earlier ones.
struct Epochs {
    current: LogEpoch,
    former: Vec<String>,
}

impl Epochs {
    fn was(&self, epoch: &str) -> bool {
        self.former.iter().any(|one| one == epoch)
    }

    /// Compares what the database says now.
    fn compare(&self, found: Option<&str>) -> Result<(), Error> {
        match found {
            Some(found) if *found == *self.current => Ok(()),
            Some(_) => Err(Error::Lost { reason: "its log has another epoch".into() }),
            None => Err(Error::Lost { reason: "it is empty".into() }),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
