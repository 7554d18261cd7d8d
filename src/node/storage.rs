//! The node's store: which engine, and the look at it that does not wait for a write to fail.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;

use crate::{
    config::{self, Config},
    health::Health,
    ids::{Incarnation, UserId},
    lock::FileLock,
    member::alone::Alone,
    store::{
        self, Common, Engine, Store,
        memory::{self, MemoryStore},
        sessions::MemorySessions,
        writer::Lost,
    },
};

/// How often to ask the store whether it is there and still ours.
const CHECK: Duration = Duration::from_secs(1);
/// How often the store makes room and lets go of what is over.
const TIDY: Duration = Duration::from_secs(3600);
/// How long to wait for the store's answer to that question.
const ANSWER: Duration = Duration::from_secs(10);
/// How long saying that this node has ended may take.
const LET_GO: Duration = Duration::from_secs(3);
/// The health part that says whether the store answers.
const HEALTH_PART: &str = "store connection";

/// How the store is opened; `None` when none is set.
#[must_use]
pub fn store_config(config: &Config) -> Option<store::Config> {
    Some(store::Config {
        url: config.store.url.as_ref()?.expose().to_owned(),
        password_file: config.store.password_file.clone(),
        may_migrate: config.store.migrate == config::Migrate::Auto,
        shards: u16::try_from(config.cluster.shards).unwrap_or(u16::MAX),
        incarnation: None,
        is_shared: false,
        retention: config.log.retention,
        per_user_max: config.log.per_user_max,
        dedup_window: config.log.dedup_window,
    })
}

/// What keeps others out of the store, of a node that does not share it.
pub(super) struct Hold {
    _file: Option<FileLock>,
    alone: Option<Alone>,
}

impl Hold {
    /// Nothing is written any more: the next node need not wait.
    pub(super) async fn let_go(&self) {
        if let Some(alone) = &self.alone
            && tokio::time::timeout(LET_GO, alone.leave()).await.is_err()
        {
            tracing::warn!("the store did not hear that this node has ended; the next one waits a few seconds");
        }
    }
}

/// Opens what the configuration names; without it, memory.
///
/// # Errors
/// When somebody else uses it, it does not answer, or its schema is of another version.
pub(super) async fn open(config: &Config, member: Option<Incarnation>, lost: &Lost) -> anyhow::Result<(Engine, Hold)> {
    if let Some(store) = store_config(config) {
        let file = store::lock(&store).context("store.url")?;
        let (is_shared, needs_no_table) = (member.is_some(), file.is_some());
        let incarnation = member.unwrap_or_else(Incarnation::random);
        let store = store::Config { incarnation: Some(incarnation), is_shared, ..store };
        let alone = if is_shared || needs_no_table {
            None
        } else {
            let common = Common::open(&store).await.context("store.url")?;
            let named = (super::cluster::name(config)?, config.node.zone.clone());
            Some(Alone::join(common, incarnation, named, lost.clone()).await?)
        };
        let engine = Engine::open(&store).await.context("store.url")?;
        return Ok((engine, Hold { _file: file, alone }));
    }
    let log = Arc::new(MemoryStore::new(memory::Config {
        retention: config.log.retention,
        per_user_max: config.log.per_user_max,
        dedup_window: config.log.dedup_window,
        bytes_max: config.log.memory_bytes_max,
    }));
    let engine = Engine { log: log.clone(), sessions: Arc::new(MemorySessions::default()), positions: log };
    Ok((engine, Hold { _file: None, alone: None }))
}

/// Users for whom something waits since before a crash; `None`: the store did not say.
pub(super) async fn users_waiting(store: &dyn Store) -> Option<Vec<UserId>> {
    match tokio::time::timeout(ANSWER, store.users_waiting()).await {
        Ok(Ok(users)) => {
            if !users.is_empty() {
                tracing::info!(users = users.len(), "notifications wait since before a crash: they go on now");
            }
            Some(users)
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "the store does not say for whom something waits: every user will ask");
            None
        }
        Err(_) => None,
    }
}

/// Sees that the store is away before somebody needs it, and that it is not what it was.
pub(super) async fn watch(store: Arc<dyn Store>, health: Health, lost: Lost) {
    let mut ticks = tokio::time::interval(CHECK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut was_away = false;
    loop {
        ticks.tick().await;
        let failure = match tokio::time::timeout(ANSWER, store.check()).await {
            Ok(Ok(())) => {
                health.ready(HEALTH_PART);
                if std::mem::take(&mut was_away) {
                    tracing::info!("the store is back");
                }
                continue;
            }
            Ok(Err(error @ store::Error::Lost { .. })) => {
                health.not_ready(HEALTH_PART, error.to_string());
                let _ = lost.send(error);
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the store does not answer".to_owned(),
        };
        if !std::mem::replace(&mut was_away, true) {
            tracing::error!(failure, "the store is away; asking again every {CHECK:?}");
        }
        health.not_ready(HEALTH_PART, failure);
    }
}

/// Makes room and lets go of what is over, for ever.
pub(super) async fn tidy(store: Arc<dyn Store>) {
    let mut ticks = tokio::time::interval(TIDY);
    loop {
        ticks.tick().await;
        if let Err(error) = store.tidy().await {
            tracing::error!(%error, "the store could not be tidied; trying again in {TIDY:?}");
        }
    }
}
