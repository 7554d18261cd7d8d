//! What stands behind a node for one run, and how it grows by what the node does.

pub mod postgres;
mod sqlite;

use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::Process;
use crate::report::Report;

/// The engines by name; any other name stands for no store.
pub const SQLITE: &str = "sqlite";
pub const POSTGRES: &str = "postgres";

/// CPU of the store's own processes, an event.
pub const CPU: &str = "store_cpu_us_per_event";

pub const ROWS: &str = "rows_per_event";
pub const BYTES: &str = "bytes_per_event";
pub const WRITTEN: &str = "written_bytes_per_event";

/// A fresh store, gone when this is dropped.
pub struct Store {
    engine: Engine,
    /// How many events [`Self::watch`] has seen.
    events: f64,
}

enum Engine {
    Nothing,
    Sqlite(sqlite::File),
    Postgres(postgres::Database),
}

/// A store at one time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Footprint {
    /// In all tables together.
    rows: u64,
    /// What it takes on the disk now, without what only waits to be written again elsewhere.
    bytes: u64,
    /// What was written to the disk so far, also twice.
    written: u64,
    /// CPU of its own processes; `None` when it has none or they are not on this machine.
    cpu: Option<Duration>,
}

impl Store {
    /// `server` is one of the comparison's; `name` is free to be used for what is made.
    pub fn create(server: &str, postgres: Option<&str>, name: String) -> Result<Self> {
        let engine = match server {
            SQLITE => Engine::Sqlite(sqlite::File::create()?),
            POSTGRES => Engine::Postgres(postgres::Database::create(postgres.context("no URL of PostgreSQL")?, name)?),
            _ => Engine::Nothing,
        };
        Ok(Self { engine, events: 0.0 })
    }

    /// The node's configuration of it, as whole TOML sections.
    pub fn configuration(&self) -> String {
        let url = match &self.engine {
            Engine::Nothing => return String::new(),
            Engine::Sqlite(file) => file.url(),
            Engine::Postgres(database) => database.url(),
        };
        // A literal string: an URL has no single quotes that are not escaped.
        format!("[store]\nurl = '{url}'\n")
    }

    /// Measures, and adds how much the store grew meanwhile, an event.
    pub fn watch(&mut self, node: &Process, measure: impl FnOnce() -> Result<Report>) -> Result<Report> {
        let before = self.footprint(node)?;
        let mut report = measure()?;
        let after = self.footprint(node)?;
        let events = report.get("events").context("a scenario without events")?;
        self.events += events;
        if let (Some(before), Some(after)) = (before, after) {
            growth(&mut report, before, after, events);
        }
        Ok(report)
    }

    /// What the store itself says was written, an event of all that were watched. The node must have been stopped.
    pub fn statistics(&self) -> Result<Option<Report>> {
        let Engine::Postgres(database) = &self.engine else { return Ok(None) };
        let (inserted, updated, deleted) = database.tuples()?;
        let mut report = Report::new("statistics");
        for (name, count) in [("inserted", inserted), ("updated", updated), ("deleted", deleted)] {
            report.value(format!("rows_{name}_per_event"), count as f64 / self.events.max(1.0));
        }
        Ok(Some(report))
    }

    /// CPU of its own processes so far; `None` when it has none or they are not on this machine.
    pub fn cpu(&self) -> Result<Option<Duration>> {
        match &self.engine {
            Engine::Postgres(database) => database.cpu(),
            Engine::Nothing | Engine::Sqlite(_) => Ok(None),
        }
    }

    fn footprint(&self, node: &Process) -> Result<Option<Footprint>> {
        match &self.engine {
            Engine::Nothing => Ok(None),
            Engine::Sqlite(file) => file.footprint(node).map(Some),
            Engine::Postgres(database) => database.footprint().map(Some),
        }
    }
}

fn growth(report: &mut Report, before: Footprint, after: Footprint, events: f64) {
    let mut grown = |name: &str, before: f64, after: f64| report.value(name, (after - before) / events.max(1.0));
    grown(ROWS, before.rows as f64, after.rows as f64);
    grown(BYTES, before.bytes as f64, after.bytes as f64);
    grown(WRITTEN, before.written as f64, after.written as f64);
    if let (Some(before), Some(after)) = (before.cpu, after.cpu) {
        grown(CPU, before.as_secs_f64() * 1e6, after.as_secs_f64() * 1e6);
    }
}

/// Runs one conversation with a database.
fn block_on<T>(conversation: impl Future<Output = sqlx::Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?;
    runtime.block_on(conversation).context("the store did not answer as expected")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_by_event_and_a_store_without_processes_has_no_cpu() {
        let before = Footprint { rows: 10, bytes: 4_096, written: 100, cpu: None };
        let after = Footprint { rows: 40, bytes: 24_096, written: 40_100, cpu: None };
        let mut report = Report::new("test");
        growth(&mut report, before, after, 20.0);
        assert_eq!(report.get("rows_per_event"), Some(1.5));
        assert_eq!(report.get("bytes_per_event"), Some(1_000.0));
        assert_eq!(report.get("written_bytes_per_event"), Some(2_000.0));
        assert_eq!(report.get(CPU), None);
        let of = |seconds| Footprint { cpu: Some(Duration::from_secs(seconds)), ..before };
        growth(&mut report, of(1), of(3), 1_000.0);
        assert_eq!(report.get(CPU), Some(2_000.0));
    }

    #[test]
    fn without_a_store_nothing_is_configured_and_nothing_grows() {
        let mut store = Store::create("transient", None, String::new()).unwrap();
        assert_eq!(store.configuration(), "");
        let mut measured = Report::new("test");
        measured.value("events", 5.0);
        let report = store.watch(&Process::current(), || Ok(measured)).unwrap();
        assert_eq!(report.get("rows_per_event"), None);
        assert!(store.statistics().unwrap().is_none());
    }

    #[test]
    fn a_file_s_rows_and_bytes_are_seen_also_while_somebody_has_it_open() {
        use sqlx::{ConnectOptions as _, sqlite::SqliteConnectOptions};

        let store = Store::create(SQLITE, None, String::new()).unwrap();
        let Engine::Sqlite(file) = &store.engine else { panic!("not a file") };
        let grown = block_on(async {
            let options: SqliteConnectOptions = file.url().parse()?;
            let options = options.create_if_missing(true).journal_mode(sqlx::sqlite::SqliteJournalMode::Wal);
            let mut connection = options.connect().await?;
            sqlx::raw_sql("create table a (x); create table b (x); insert into a values (1)")
                .execute(&mut connection)
                .await?;
            let ask = || std::thread::scope(|scope| scope.spawn(|| file.footprint(&Process::current())).join());
            let before = ask().unwrap().unwrap();
            sqlx::raw_sql("insert into a values (2); insert into b values (zeroblob(100000))")
                .execute(&mut connection)
                .await?;
            let after = ask().unwrap().unwrap();
            Ok((after.rows - before.rows, after.bytes - before.bytes))
        });
        let (rows, bytes) = grown.unwrap();
        assert_eq!(rows, 2);
        // Without what fitted into a page that was there already.
        assert!((100_000 - 4_096..120_000).contains(&bytes), "{bytes}");
    }
}
