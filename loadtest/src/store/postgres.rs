//! A database of a run's own on a PostgreSQL server.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::{Footprint, block_on};
use crate::process::Process;

/// How long the node's connections may take to end, which is when their statistics are complete.
const PATIENCE: Duration = Duration::from_secs(30);
/// The server's settings that its figures depend on most.
const SETTINGS: [&str; 4] = ["fsync", "synchronous_commit", "full_page_writes", "wal_compression"];

/// Dropped from the server when this is.
pub struct Database {
    server: String,
    name: String,
    /// The server's first process, when it is on this machine.
    postmaster: Option<Process>,
}

impl Database {
    pub fn create(server: &str, name: String) -> Result<Self> {
        on_server(server, &format!("create database {name}"))?;
        let mut database = Self { server: server.to_owned(), name, postmaster: None };
        database.postmaster = database.find_postmaster()?;
        Ok(database)
    }

    pub fn url(&self) -> String {
        with_database(&self.server, &self.name)
    }

    /// The write-ahead log and the CPU are the whole server's: nothing else should be using it.
    pub fn footprint(&self) -> Result<Footprint> {
        let cpu = self.cpu()?;
        let (rows, bytes, written) = block_on(async {
            let mut connection = PgConnection::connect(&self.url()).await?;
            // Counted, because the server's statistics lag behind by up to ten seconds.
            let tables = "select relname::text from pg_class where relkind = 'r' and relnamespace = current_schema()::regnamespace";
            let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut connection).await?;
            let mut rows = 0;
            for table in tables {
                let count = AssertSqlSafe(format!("select count(*) from \"{table}\""));
                rows += sqlx::query_scalar::<_, i64>(count).fetch_one(&mut connection).await?;
            }
            let sizes = "select pg_database_size(current_database()), (pg_current_wal_lsn() - '0/0')::bigint";
            let (bytes, written): (i64, i64) = sqlx::query_as(sizes).fetch_one(&mut connection).await?;
            connection.close().await?;
            Ok((rows, bytes, written))
        })?;
        Ok(Footprint { rows: rows as u64, bytes: bytes as u64, written: written as u64, cpu })
    }

    /// CPU of all processes of the server so far; `None` when they are not on this machine.
    pub fn cpu(&self) -> Result<Option<Duration>> {
        self.postmaster.map(|postmaster| postmaster.cpu_with_children()).transpose()
    }

    /// Rows inserted, updated and deleted by the server's own statistics since the database was made, claims on
    /// shards and partitions left out. Waits for the node's connections to end.
    pub fn tuples(&self) -> Result<(i64, i64, i64)> {
        let deadline = Instant::now() + PATIENCE;
        while self.clients()? > 0 {
            ensure!(Instant::now() < deadline, "connections to {} are open after {PATIENCE:?}", self.name);
            thread::sleep(Duration::from_millis(100));
        }
        block_on(async {
            let mut connection = PgConnection::connect(&self.url()).await?;
            let sums = "select sum(n_tup_ins)::bigint, sum(n_tup_upd)::bigint, sum(n_tup_del)::bigint \
                        from pg_stat_user_tables where relname !~ '(_claims|^meta|_sqlx_migrations)$'";
            let tuples = sqlx::query_as(sums).fetch_one(&mut connection).await?;
            connection.close().await?;
            Ok(tuples)
        })
    }

    /// Connections besides the one that asks.
    fn clients(&self) -> Result<i64> {
        block_on(async {
            let mut connection = PgConnection::connect(&self.url()).await?;
            let others = "select count(*) from pg_stat_activity where datname = current_database() \
                          and backend_type = 'client backend' and pid <> pg_backend_pid()";
            let count = sqlx::query_scalar(others).fetch_one(&mut connection).await?;
            connection.close().await?;
            Ok(count)
        })
    }

    /// The parent of the process that serves a connection; `None` when that is not one of this machine.
    fn find_postmaster(&self) -> Result<Option<Process>> {
        block_on(async {
            let mut connection = PgConnection::connect(&self.url()).await?;
            let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut connection).await?;
            let is_one = |process: &Process| process.name().is_ok_and(|name| name == "postgres");
            let backend = Process::new(pid as u32).ok().filter(is_one);
            let postmaster = backend.and_then(|backend| backend.parent().ok()).filter(is_one);
            connection.close().await?;
            Ok(postmaster)
        })
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Err(error) = on_server(&self.server, &format!("drop database {} with (force)", self.name)) {
            eprintln!("the database {} is left behind: {error:#}", self.name);
        }
    }
}

/// The server's version and what its figures depend on, in words.
pub fn settings(server: &str) -> Result<String> {
    block_on(async {
        let mut connection = PgConnection::connect(&maintenance(server)).await?;
        let mut text = format!("PostgreSQL {}", setting(&mut connection, "server_version").await?);
        for name in SETTINGS {
            text = format!("{text}, {name}={}", setting(&mut connection, name).await?);
        }
        connection.close().await?;
        Ok(text)
    })
}

async fn setting(connection: &mut PgConnection, name: &str) -> sqlx::Result<String> {
    sqlx::query_scalar("select current_setting($1)").bind(name).fetch_one(connection).await
}

fn on_server(server: &str, statement: &str) -> Result<()> {
    block_on(async {
        let mut connection = PgConnection::connect(&maintenance(server)).await?;
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await?;
        connection.close().await
    })
}

/// The database that is always there.
fn maintenance(server: &str) -> String {
    with_database(server, "postgres")
}

/// The URL with another database, or with one.
fn with_database(url: &str, database: &str) -> String {
    let (place, query) = url.split_once('?').map_or((url, None), |(place, query)| (place, Some(query)));
    let authority = place.find("://").map_or(0, |at| at + 3);
    let end = place[authority..].find('/').map_or(place.len(), |at| authority + at);
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("{}/{database}{query}", &place[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_gets_the_database_whatever_it_had_before() {
        for (url, expected) in [
            ("postgres://me@localhost:5432", "postgres://me@localhost:5432/x"),
            ("postgres://me@localhost:5432/", "postgres://me@localhost:5432/x"),
            ("postgres://me:a@localhost/other", "postgres://me:a@localhost/x"),
            ("postgres://localhost?sslmode=disable", "postgres://localhost/x?sslmode=disable"),
            ("postgres://localhost/o?host=/run/postgresql", "postgres://localhost/x?host=/run/postgresql"),
        ] {
            assert_eq!(with_database(url, "x"), expected);
        }
    }
}
