//! A durable store for a node: a file or a database of its own, and what can happen to it.

use std::time::Duration;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};
use tempfile::TempDir;

use super::{
    history::{Row, Writers},
    node::Builder,
    process::required,
};

/// Where a node keeps what must survive it.
pub enum Store {
    Sqlite { directory: TempDir, lock: Option<SqliteConnection> },
    Postgres { server: String, name: String },
}

impl Store {
    /// One of each engine.
    pub async fn each() -> [Self; 2] {
        [Self::sqlite(), Self::postgres().await]
    }

    pub fn sqlite() -> Self {
        Self::Sqlite { directory: tempfile::tempdir().expect("a temporary directory"), lock: None }
    }

    pub async fn postgres() -> Self {
        Self::on(required("NOTIFIER_TEST_POSTGRES")).await
    }

    /// A database of its own on that server, which is a URL without one.
    pub async fn on(server: String) -> Self {
        let name = format!("it{}", uuid::Uuid::new_v4().simple());
        let store = Self::Postgres { server, name: name.clone() };
        store.on_server(format!("create database {name}")).await;
        store
    }

    /// The engine, for messages.
    pub fn engine(&self) -> &'static str {
        match self {
            Self::Sqlite { .. } => "sqlite",
            Self::Postgres { .. } => "postgres",
        }
    }

    /// What `store.url` is set to.
    pub fn url(&self) -> String {
        match self {
            Self::Sqlite { directory, .. } => format!("sqlite:{}", directory.path().join("notifier.db").display()),
            Self::Postgres { server, name } => format!("{server}/{name}"),
        }
    }

    /// A node that keeps what it has here.
    pub fn of(&self, builder: Builder) -> Builder {
        builder.set("store.url", self.url())
    }

    /// The store does not answer from here on: the file is locked, the database lets nobody in.
    pub async fn away(&mut self) {
        let url = self.url();
        match self {
            Self::Sqlite { lock, .. } => {
                let mut connection = SqliteConnection::connect(&url).await.expect("the file opens");
                let begin = "pragma busy_timeout = 20000; begin immediate";
                sqlx::raw_sql(begin).execute(&mut connection).await.expect("the lock is free in time");
                *lock = Some(connection);
            }
            Self::Postgres { name, .. } => {
                let name = name.clone();
                self.on_server(format!("alter database {name} with allow_connections false")).await;
                self.cut().await;
            }
        }
    }

    /// It answers again.
    pub async fn back(&mut self) {
        match self {
            Self::Sqlite { lock, .. } => drop(lock.take()),
            Self::Postgres { name, .. } => {
                let name = name.clone();
                self.on_server(format!("alter database {name} with allow_connections true")).await;
            }
        }
    }

    /// Ends all connections to the database.
    pub async fn cut(&self) {
        if let Self::Postgres { name, .. } = self {
            let cut = format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'");
            self.on_server(cut).await;
        }
    }

    /// What the connections to the database are called.
    pub async fn visitors(&self) -> Vec<String> {
        let names = "select distinct application_name from pg_stat_activity \
                     where datname = current_database() and application_name like 'notifier%'";
        sqlx::query_scalar(names).fetch_all(&mut self.session().await).await.expect("an answer")
    }

    /// Ends all connections that are called so.
    pub async fn cut_off(&self, names: &[String]) {
        let cut = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = any($1)";
        sqlx::query(cut).bind(names).execute(&mut self.session().await).await.expect("an answer");
    }

    /// Another, empty database stands in its place.
    pub async fn wipe(&self) {
        match self {
            Self::Sqlite { .. } => {
                let mut connection = SqliteConnection::connect(&self.url()).await.expect("the file opens");
                let ours = "select name from sqlite_master where type = 'table' and name not like '\\_%' escape '\\' \
                            and name not like 'sqlite\\_%' escape '\\'";
                let tables: Vec<String> = sqlx::query_scalar(ours).fetch_all(&mut connection).await.expect("tables");
                let drops: String = tables.iter().map(|table| format!("drop table {table};")).collect();
                self.execute(&format!("{drops} delete from _sqlx_migrations")).await;
            }
            Self::Postgres { .. } => self.execute("drop schema public cascade; create schema public").await,
        }
    }

    /// Runs statements in it.
    pub async fn execute(&self, sql: &str) {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql));
        let done = match self {
            Self::Sqlite { .. } => {
                let mut connection = SqliteConnection::connect(&self.url()).await.expect("the file opens");
                sql.execute(&mut connection).await.map(drop)
            }
            Self::Postgres { .. } => {
                let mut connection = PgConnection::connect(&self.url()).await.expect("the database lets us in");
                sql.execute(&mut connection).await.map(drop)
            }
        };
        done.expect("the statement is good");
    }

    /// Another session holds every row of a table until the answer is dropped.
    pub async fn lock(&self, table: &str) -> PgConnection {
        let mut connection = self.session().await;
        let lock = format!("begin; select * from {table} for update");
        sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut connection).await.expect("the rows are free in time");
        connection
    }

    /// Waits until a statement waits for a lock.
    pub async fn hangs(&self) {
        let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' \
                       and datname = current_database()";
        let mut connection = self.session().await;
        super::eventually("a statement that waits", async || {
            let waiting = sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut connection).await.expect("an answer");
            (waiting > 0).then_some(())
        })
        .await;
    }

    /// Waits until a take of that node's waits for shards that another session has locked.
    pub async fn waits_to_take(&self, node: &str) {
        let waiting = "select count(*) from pg_stat_activity a \
                       join members m on a.application_name = 'notifier ' || m.incarnation \
                       where m.node_id = $1 and a.wait_event_type = 'Lock' and a.query like '%update shard_claims%'";
        self.counts_some("a take that waits", waiting, node).await;
    }

    /// How many rows a table has.
    pub async fn count(&self, table: &str) -> i64 {
        let count = AssertSqlSafe(format!("select count(*) from {table}"));
        sqlx::query_scalar(count).fetch_one(&mut self.session().await).await.expect("an answer")
    }

    /// The log of all users, of events that have a number in their data.
    pub async fn rows(&self) -> Vec<Row> {
        let rows = "select user_id, seq, notification_id, payload from log";
        let rows: Vec<(String, i64, String, Vec<u8>)> =
            sqlx::query_as(rows).fetch_all(&mut self.session().await).await.expect("an answer");
        let n = |payload: &[u8]| serde_json::from_slice::<Value>(payload).ok()?["n"].as_u64();
        let row = |(user, seq, id, payload): (String, i64, String, Vec<u8>)| Row {
            user,
            seq: seq.unsigned_abs(),
            id,
            n: n(&payload).expect("a number"),
        };
        rows.into_iter().map(row).collect()
    }

    /// From here on it is noted who writes rows, and who owns what: the lock that a write has on a claim, and a take too,
    /// makes one order of both. What has expired may be let go of by anybody.
    pub async fn watch_writers(&self) {
        self.execute(
            "create sequence watched;
             create table watched_takes (at bigint not null, shard integer not null, owner text);
             create table watched_writes (at bigint not null, user_id text not null, seq bigint not null, writer text);
             create function watch_take() returns trigger language plpgsql as $$ begin
                 insert into watched_takes values (nextval('watched'), new.shard, new.owner);
                 return null;
             end $$;
             create function watch_write() returns trigger language plpgsql as $$ declare written jsonb; begin
                 if tg_op = 'DELETE' then written := to_jsonb(old); else written := to_jsonb(new); end if;
                 insert into watched_writes
                 values (nextval('watched'), written ->> 'user_id', (written ->> tg_argv[0])::bigint,
                         current_setting('application_name'));
                 return null;
             end $$;
             begin;
             lock table shard_claims in share row exclusive mode;
             create trigger watch_take after update on shard_claims for each row execute function watch_take();
             insert into watched_takes select nextval('watched'), shard, owner from shard_claims;
             create trigger watch_write after insert on log for each row execute function watch_write('seq');
             create trigger watch_note after insert on journal for each row execute function watch_write('last');
             create trigger watch_cursor after insert or update or delete on cursors for each row
                 execute function watch_write('cursor');
             create trigger watch_waiting after insert or update on waiting for each row
                 execute function watch_write('place');
             create trigger watch_released after delete on waiting for each row
                 when (old.expires_at > extract(epoch from clock_timestamp()) * 1000)
                 execute function watch_write('place');
             create trigger watch_removed after insert on removed for each row execute function watch_write('seq');
             commit",
        )
        .await;
    }

    /// Waits until a node of that name is dead in the table of members.
    pub async fn declares_dead(&self, node: &str) {
        let dead = "select count(*) from members where node_id = $1 and state = 3";
        self.counts_some("a death in the table of members", dead, node).await;
    }

    async fn counts_some(&self, what: &str, count: &'static str, node: &str) {
        let mut connection = self.session().await;
        super::eventually(what, async || {
            let count = sqlx::query_scalar::<_, i64>(count).bind(node).fetch_one(&mut connection);
            (count.await.expect("an answer") > 0).then_some(())
        })
        .await;
    }

    /// How often a node of that name was seen to take a shard, or to have one when it began to be noted.
    pub async fn takes_of(&self, node: &str) -> i64 {
        let takes =
            "select count(*) from watched_takes t join members m on m.incarnation = t.owner where m.node_id = $1";
        sqlx::query_scalar(takes).bind(node).fetch_one(&mut self.session().await).await.expect("an answer")
    }

    /// What was noted, if it was.
    pub async fn writers(&self) -> Writers {
        let mut session = self.session().await;
        let watched = "select to_regclass('watched_writes') is not null";
        if !sqlx::query_scalar::<_, bool>(watched).fetch_one(&mut session).await.expect("an answer") {
            return Writers::default();
        }
        let takes = sqlx::query_as("select * from watched_takes").fetch_all(&mut session).await.expect("takes");
        let writes = "select at, user_id, seq, replace(writer, 'notifier ', '') from watched_writes";
        let writes: Vec<(i64, String, i64, String)> =
            sqlx::query_as(writes).fetch_all(&mut session).await.expect("writes");
        assert!(!writes.is_empty(), "nobody was seen to write");
        let writes = writes.into_iter().map(|(at, user, seq, writer)| (at, user, seq.unsigned_abs(), writer)).collect();
        let shards = u16::try_from(self.count("shard_claims").await).expect("a number of shards");
        Writers { shards, takes, writes }
    }

    /// From here on it is noted how many shards and partitions are nobody's, whenever some are let go.
    pub async fn watch_moves(&self) {
        self.execute(
            "create table watched_moves (claims text not null, released bigint not null, free bigint not null);
             create function watch_move() returns trigger language plpgsql as $$
             declare free bigint;
             begin
                 execute format('select count(*) from %I where owner is null', tg_table_name) into free;
                 insert into watched_moves select tg_table_name, count(*), free from next where owner is null
                 having count(*) > 0;
                 return null;
             end $$;
             create trigger watch_move after update on shard_claims referencing new table as next
             for each statement execute function watch_move();
             create trigger watch_move after update on partition_claims referencing new table as next
             for each statement execute function watch_move()",
        )
        .await;
    }

    /// How many of these claims were let go since the last time this was asked, and how many were nobody's at most.
    pub async fn moves(&self, claims: &str) -> (i64, i64) {
        let moves = "with seen as (delete from watched_moves where claims = $1 returning released, free) \
                     select coalesce(sum(released), 0)::bigint, coalesce(max(free), 0) from seen";
        sqlx::query_as(moves).bind(claims).fetch_one(&mut self.session().await).await.expect("an answer")
    }

    async fn session(&self) -> PgConnection {
        assert!(matches!(self, Self::Postgres { .. }), "of PostgreSQL");
        PgConnection::connect(&self.url()).await.expect("the database lets us in")
    }

    async fn on_server(&self, sql: String) {
        let Self::Postgres { server, .. } = self else { return };
        let connect = async { PgConnection::connect(&format!("{server}/postgres")).await };
        let connected = tokio::time::timeout(Duration::from_secs(20), connect).await.expect("an answer in time");
        let mut connection = connected.expect("the server of the tests answers");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.expect("the statement is good");
    }
}
