//! A fresh store of each engine.

use std::{sync::Arc, time::Duration};

use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, postgres::PgConnectOptions};
use tempfile::TempDir;

use crate::store::{
    Config, Engine,
    memory::{self, MemoryStore},
    sessions::MemorySessions,
};

/// Where a test keeps something durable; gone at its end.
pub(super) enum Place {
    Memory,
    File(TempDir),
    Database(String),
}

impl Place {
    /// A fresh place in each engine.
    pub(super) async fn all() -> [Self; 3] {
        [Self::Memory, Self::file(), Self::database().await]
    }

    /// The engines that outlive a process.
    pub(super) async fn durable() -> [Self; 2] {
        [Self::file(), Self::database().await]
    }

    pub(super) fn file() -> Self {
        Self::File(tempfile::tempdir().unwrap())
    }

    pub(super) async fn database() -> Self {
        let name = format!("t{}", uuid::Uuid::new_v4().simple());
        let mut server = server().await;
        sqlx::raw_sql(AssertSqlSafe(format!("create database {name}"))).execute(&mut server).await.unwrap();
        Self::Database(name)
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::File(_) => "sqlite",
            Self::Database(_) => "postgres",
        }
    }

    pub(super) fn config(&self) -> Config {
        let url = match self {
            Self::Memory => String::new(),
            Self::File(directory) => format!("sqlite:{}", directory.path().join("notifier.db").display()),
            Self::Database(name) => format!("{}/{name}", url()),
        };
        let day = Duration::from_secs(86_400);
        Config {
            url,
            password_file: None,
            may_migrate: true,
            incarnation: None,
            is_shared: false,
            shards: 64,
            retention: 7 * day,
            per_user_max: 1000,
            dedup_window: day,
        }
    }

    pub(super) async fn open(&self) -> Engine {
        self.open_with(&self.config()).await
    }

    pub(super) async fn open_with(&self, config: &Config) -> Engine {
        match self {
            Self::Memory => {
                let Config { retention, per_user_max, dedup_window, .. } = *config;
                let memory = memory::Config { retention, per_user_max, dedup_window, bytes_max: 1 << 30 };
                let log = Arc::new(MemoryStore::new(memory));
                Engine { log: log.clone(), sessions: Arc::new(MemorySessions::default()), positions: log }
            }
            _ => Engine::open(config).await.unwrap(),
        }
    }

    /// A connection to what is behind the engine.
    pub(super) async fn postgres(&self) -> PgConnection {
        let options: PgConnectOptions = self.config().url.parse().unwrap();
        options.connect().await.unwrap()
    }

    pub(super) async fn sqlite(&self) -> sqlx::SqliteConnection {
        sqlx::SqliteConnection::connect(&self.config().url).await.unwrap()
    }
}

/// The server, as a URL without a database.
fn url() -> String {
    std::env::var("NOTIFIER_TEST_POSTGRES").unwrap_or_else(|_| {
        panic!(
            "NOTIFIER_TEST_POSTGRES is not set: run these tests with `tests/run`, or start `tests/run --keep` in another \
             terminal and export the lines that it prints"
        )
    })
}

async fn server() -> PgConnection {
    PgConnection::connect(&format!("{}/postgres", url())).await.unwrap()
}
