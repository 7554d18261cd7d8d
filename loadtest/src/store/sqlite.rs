//! A SQLite file of a run's own.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};
use tempfile::TempDir;

use super::{Footprint, block_on};
use crate::process::Process;

/// How long the file's owner may keep the write-ahead log from being emptied.
const PATIENCE: Duration = Duration::from_secs(30);

/// In a directory of its own, gone when this is dropped.
pub struct File {
    directory: TempDir,
}

impl File {
    pub fn create() -> Result<Self> {
        Ok(Self { directory: tempfile::tempdir().context("temporary directory")? })
    }

    pub fn url(&self) -> String {
        format!("sqlite:{}", self.path().display())
    }

    /// Empties the write-ahead log first, so that the file's size is all there is. What that writes is counted like
    /// what the node has written.
    pub fn footprint(&self, node: &Process) -> Result<Footprint> {
        let deadline = Instant::now() + PATIENCE;
        while !self.checkpoint()? {
            if Instant::now() > deadline {
                bail!("SQLite's write-ahead log could not be emptied within {PATIENCE:?}");
            }
            thread::sleep(Duration::from_millis(50));
        }
        let written = node.written()? + Process::current().written()?;
        let bytes = fs::metadata(self.path()).context("SQLite's file")?.len();
        Ok(Footprint { rows: self.rows()?, bytes, written, cpu: None })
    }

    /// False when somebody was reading or writing.
    fn checkpoint(&self) -> Result<bool> {
        block_on(async {
            let mut connection = SqliteConnection::connect(&self.url()).await?;
            let (busy, ..): (i64, i64, i64) =
                sqlx::query_as("pragma wal_checkpoint(truncate)").fetch_one(&mut connection).await?;
            connection.close().await?;
            Ok(busy == 0)
        })
    }

    fn rows(&self) -> Result<u64> {
        block_on(async {
            let mut connection = SqliteConnection::connect(&self.url()).await?;
            let tables =
                "select name from sqlite_master where type = 'table' and name not like 'sqlite\\_%' escape '\\'";
            let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut connection).await?;
            let mut rows = 0;
            for table in tables {
                let count = AssertSqlSafe(format!("select count(*) from \"{table}\""));
                rows += sqlx::query_scalar::<_, i64>(count).fetch_one(&mut connection).await?;
            }
            connection.close().await?;
            Ok(rows as u64)
        })
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("notifier.db")
    }
}
