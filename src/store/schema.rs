//! The schema's versions, which are part of the program, and how a database is brought to the newest.

use std::borrow::Cow;

use sqlx::{
    SqlSafeStr as _,
    migrate::{AppliedMigration, Migrate, MigrateError, Migration, MigrationType},
};

/// Where the versions that were applied are noted.
const TABLE: &str = "_sqlx_migrations";

/// The versions of an engine's schema, oldest first.
pub(super) struct Schema(pub(super) &'static [(&'static str, &'static str)]);

/// PostgreSQL's.
pub(super) const POSTGRES: Schema = Schema(&[
    ("log", include_str!("../../migrations/postgres/0001_log.sql")),
    ("states", include_str!("../../migrations/postgres/0002_states.sql")),
    ("membership", include_str!("../../migrations/postgres/0003_membership.sql")),
]);
/// SQLite's.
pub(super) const SQLITE: Schema = Schema(&[
    ("log", include_str!("../../migrations/sqlite/0001_log.sql")),
    ("states", include_str!("../../migrations/sqlite/0002_states.sql")),
]);

/// Why a database's schema cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// Another, newer program has been at work.
    #[error("the store's schema has version {found}, this program knows up to {known}: use a newer notifier")]
    Newer {
        /// What the database has.
        found: i64,
        /// What this program has.
        known: i64,
    },
    /// It must be brought up first.
    #[error(
        "the store's schema has version {found}, this program needs {needed}, and store.migrate is \"check\": \
         run `notifier migrate`"
    )]
    Older {
        /// What the database has; 0: nothing.
        found: i64,
        /// What this program has.
        needed: i64,
    },
    /// The versions that the database has are not the program's.
    #[error("the store's schema could not be brought up: {reason}")]
    Failed {
        /// What is wrong with them.
        reason: String,
    },
    /// The database does not answer, or says no.
    #[error("the store cannot be used: {reason}")]
    Unusable {
        /// What was heard of it.
        reason: String,
    },
    /// Another process of this host has its file.
    #[error("process {by} uses {file} and is alive")]
    Held {
        /// Its number.
        by: String,
        /// The file.
        file: String,
    },
    /// Numbers of shards cannot change: users would change their shards.
    #[error("the store was created with {stored} shards (cluster.shards), which cannot change to {configured}")]
    Shards {
        /// When it was created.
        stored: i64,
        /// Now.
        configured: i64,
    },
}

/// What an engine says of a call that failed; what is in rows is never in it.
pub(super) fn reason(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(refused) => {
            format!("{} ({})", refused.message(), refused.code().unwrap_or_default())
        }
        other => other.to_string(),
    }
}

impl SchemaError {
    /// Whether starting again cannot help: somebody has to change something first.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::Unusable { .. } | Self::Failed { .. })
    }
}

impl From<sqlx::Error> for SchemaError {
    fn from(error: sqlx::Error) -> Self {
        Self::Unusable { reason: reason(&error) }
    }
}

impl From<MigrateError> for SchemaError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
            error => Self::Failed { reason: error.to_string() },
        }
    }
}

impl Schema {
    fn migrations(&self) -> impl Iterator<Item = Migration> {
        (1..).zip(self.0).map(|(version, (name, sql))| {
            Migration::new(version, Cow::Borrowed(*name), MigrationType::Simple, sql.into_sql_str(), false)
        })
    }

    /// Brings the schema up, or only looks at it. The answer is how many versions were applied.
    ///
    /// # Errors
    /// Says which version was found and which is needed.
    pub(super) async fn establish<C: Migrate>(
        &self,
        connection: &mut C,
        may_change: bool,
    ) -> Result<usize, SchemaError> {
        if !may_change {
            let applied = or_none(connection.list_applied_migrations(TABLE).await)?;
            return if self.missing(&applied)?.is_empty() { Ok(0) } else { Err(self.older(&applied)) };
        }
        connection.lock().await?;
        connection.ensure_migrations_table(TABLE).await?;
        let applied = connection.list_applied_migrations(TABLE).await?;
        let missing = self.missing(&applied)?;
        for migration in &missing {
            connection.apply(TABLE, migration).await?;
        }
        connection.unlock().await?;
        Ok(missing.len())
    }

    /// The versions that the database does not have.
    fn missing(&self, applied: &[AppliedMigration]) -> Result<Vec<Migration>, SchemaError> {
        let known = i64::try_from(self.0.len()).expect("a few versions");
        if let Some(newer) = applied.iter().find(|one| one.version > known) {
            return Err(SchemaError::Newer { found: newer.version, known });
        }
        let mut missing = Vec::new();
        for migration in self.migrations() {
            match applied.iter().find(|one| one.version == migration.version) {
                None => missing.push(migration),
                Some(one) if one.checksum != migration.checksum => {
                    return Err(MigrateError::VersionMismatch(one.version).into());
                }
                Some(_) => {}
            }
        }
        Ok(missing)
    }

    fn older(&self, applied: &[AppliedMigration]) -> SchemaError {
        let found = applied.iter().map(|one| one.version).max().unwrap_or(0);
        SchemaError::Older { found, needed: i64::try_from(self.0.len()).expect("a few versions") }
    }
}

/// A database that nobody has prepared has no table of versions.
fn or_none(applied: Result<Vec<AppliedMigration>, MigrateError>) -> Result<Vec<AppliedMigration>, MigrateError> {
    match applied {
        Err(MigrateError::Execute(sqlx::Error::Database(error)))
            if error.code().as_deref() == Some("42P01") || error.message().contains("no such table") =>
        {
            Ok(Vec::new())
        }
        other => other,
    }
}
