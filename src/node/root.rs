//! The root of all actors: starts the shard actors, and a successor for each that crashes.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::task::JoinHandle;

use super::{SHARD_ACTORS, storage};
use crate::{
    ids::UserId,
    kafka,
    placement::owners::Owners,
    shard::{self, Sealed, Shards},
    user,
};

struct Root;

struct RootState {
    config: Arc<user::Config>,
    shards: Shards,
    fatal: kafka::Fatal,
}

/// Starts the root with its shard actors.
pub(super) async fn start(
    config: Arc<user::Config>,
    owners: Owners,
    fatal: kafka::Fatal,
) -> anyhow::Result<(ActorRef<()>, JoinHandle<()>, Shards)> {
    let (sender, shards) = tokio::sync::oneshot::channel();
    let (root, ended) = Actor::spawn(None, Root, (config, owners, fatal, sender)).await?;
    Ok((root, ended, shards.await?))
}

impl Actor for Root {
    type Msg = ();
    type State = RootState;
    type Arguments = (Arc<user::Config>, Owners, kafka::Fatal, tokio::sync::oneshot::Sender<Shards>);

    async fn pre_start(&self, myself: ActorRef<()>, args: Self::Arguments) -> Result<RootState, ActorProcessingErr> {
        let (config, owners, fatal, started) = args;
        let sealed = Sealed::by(&owners);
        let mut waiting = storage::users_waiting(&*config.store).await;
        let mut actors = Vec::with_capacity(SHARD_ACTORS);
        for index in 0..SHARD_ACTORS {
            let is_here = |user: &mut UserId| shard::actor_of(user, owners.shards(), SHARD_ACTORS) == index;
            let waiting = waiting.as_mut().map(|users| users.extract_if(.., is_here).collect());
            let args = shard::Args { config: config.clone(), waiting, sealed: sealed.clone() };
            actors.push(shard::spawn(args, myself.get_cell()).await?);
        }
        let shards = Shards::of(actors, owners);
        let _ = started.send(shards.clone());
        Ok(RootState { config, shards, fatal })
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<()>,
        event: SupervisionEvent,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        let SupervisionEvent::ActorFailed(crashed, error) = event else { return Ok(()) };
        let Some(index) = state.shards.index_of(crashed.get_id()) else { return Ok(()) };
        user::metric::restarted("shard");
        tracing::error!(index, %error, "shard actor crashed");
        let mut waiting = storage::users_waiting(&*state.config.store).await;
        if let Some(users) = &mut waiting {
            users.retain(|user| state.shards.actor_of(user) == index);
        }
        let sealed = Sealed::by(state.shards.owners());
        match shard::spawn(shard::Args { config: state.config.clone(), waiting, sealed }, myself.get_cell()).await {
            Ok(successor) => state.shards.replace(index, successor),
            Err(error) => _ = state.fatal.send(format!("a shard actor could not be started again: {error}")),
        }
        Ok(())
    }
}
