//! The fence: what writes says under which epochs it believes to hold its shards, and locks their claims. When the
//! outcome of a write is not known, the epochs of its shards are raised before the next one, so that it either has
//! happened by then or never will.

use std::{collections::HashSet, sync::atomic::Ordering};

use super::{PostgresStore, WRITE_TIMEOUT, unavailable};
use crate::{
    ids::UserId,
    placement::{self, ShardId},
    store::Error,
};

/// The epoch of a shard that this process does not hold: the first take raises it to 1.
const NOT_HELD: i64 = 0;

/// The shards that a write touches, and the epochs under which this process holds them.
pub(super) struct Fence {
    shard_of: Vec<ShardId>,
    shards: Vec<ShardId>,
    pub(super) epochs: Vec<i64>,
}

fn numbers(shards: &[ShardId]) -> Vec<i32> {
    shards.iter().map(|shard| i32::from(shard.0)).collect()
}

impl Fence {
    /// Each shard once, in order.
    pub(super) fn shards(&self) -> Vec<i32> {
        numbers(&self.shards)
    }

    /// The shard of each user, in the order in which they were named.
    pub(super) fn shard_of(&self) -> Vec<i32> {
        numbers(&self.shard_of)
    }

    /// The first of these shards that is not among those whose claims were found.
    pub(super) fn lost(&self, found: &HashSet<i32>) -> Option<ShardId> {
        self.shards.iter().copied().find(|shard| !found.contains(&i32::from(shard.0)))
    }
}

/// Why a write did not happen.
pub(super) enum Failure {
    /// The database does not accept what is in it.
    Poison(String),
    /// Anything else.
    Other(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Poison(reason) => Self::Unavailable { reason },
            Failure::Other(error) => error,
        }
    }
}

/// Asks on a connection of the pool. One that does not answer in time is closed: put back, it would make the next
/// caller wait for the old answer.
macro_rules! call {
    ($pool:expr, |$connection:ident| $call:expr) => {
        $crate::store::postgres::fence::call!($pool, $crate::store::postgres::WRITE_TIMEOUT, |$connection| $call)
    };
    ($pool:expr, $timeout:expr, |$connection:ident| $call:expr) => {
        match $pool.acquire().await {
            Err(error) => Err(error),
            Ok(mut held) => {
                let answer = {
                    let $connection = &mut *held;
                    tokio::time::timeout($timeout, $call).await
                };
                answer.unwrap_or_else(|_| {
                    drop(held.detach());
                    Err($crate::store::postgres::fence::no_answer())
                })
            }
        }
    };
}
pub(super) use call;

/// The same of a single statement, on a connection at hand. It stays there only when the statement was answered.
macro_rules! single {
    ($at_hand:expr, |$connection:ident| $call:expr) => {
        match $at_hand.take().await {
            Err(error) => Err(error),
            Ok(mut held) => {
                let answer = {
                    let $connection = &mut *held;
                    tokio::time::timeout($crate::store::postgres::WRITE_TIMEOUT, $call).await
                };
                match answer {
                    Ok(Ok(answer)) => {
                        $at_hand.keep(held);
                        Ok(answer)
                    }
                    Ok(failed) => failed,
                    Err(_) => {
                        drop(held.detach());
                        Err($crate::store::postgres::fence::no_answer())
                    }
                }
            }
        }
    };
}
pub(super) use single;

pub(super) fn no_answer() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time"))
}

impl PostgresStore {
    /// What a write for these users has to say. No write of theirs whose outcome is not known is under way any more when
    /// this is answered.
    pub(super) async fn fence<'u>(&self, users: impl Iterator<Item = &'u UserId> + Send) -> Result<Fence, Error> {
        let shard_of: Vec<ShardId> = users.map(|user| placement::shard(user, self.shards)).collect();
        let mut shards = shard_of.clone();
        shards.sort_unstable();
        shards.dedup();
        self.settle_doubts(&shards).await?;
        let held = self.epochs.lock();
        let epochs = shards.iter().map(|shard| held[usize::from(shard.0)]).collect();
        Ok(Fence { shard_of, shards, epochs })
    }

    /// Whether this process holds a user's shard, by what it knows itself.
    pub(super) fn holds(&self, user: &UserId) -> bool {
        self.epochs.lock()[usize::from(placement::shard(user, self.shards).0)] != NOT_HELD
    }

    /// The same as [`Self::fence`] for what no lane stands behind: a shard may be given away without waiting for it. That
    /// one is not held any more is no sign of another owner then.
    pub(super) async fn fence_held<'u>(&self, users: impl Iterator<Item = &'u UserId> + Send) -> Result<Fence, Error> {
        let fence = self.fence(users).await?;
        if fence.epochs.contains(&NOT_HELD) {
            return Err(Error::Unavailable { reason: "a shard was given away meanwhile".into() });
        }
        Ok(fence)
    }

    /// Fails when one of the fence's shards is not among those whose claims were found.
    pub(super) async fn check_fence(&self, fence: &Fence, found: impl IntoIterator<Item = i32>) -> Result<(), Error> {
        let Some(lost) = fence.lost(&found.into_iter().collect()) else { return Ok(()) };
        if self.was_raised(fence) {
            return Err(Error::Unavailable { reason: "its epoch was raised meanwhile".into() });
        }
        Err(self.lost(Some(lost)).await)
    }

    /// Whether this process itself has raised the epoch of one of these shards since, or is about to.
    fn was_raised(&self, fence: &Fence) -> bool {
        // In this order: a shard is in doubt until its new epoch is known.
        let in_doubt = {
            let doubts = self.doubts.lock();
            fence.shards.iter().any(|shard| doubts.contains(shard))
        };
        let held = self.epochs.lock();
        in_doubt || fence.shards.iter().zip(&fence.epochs).any(|(shard, epoch)| held[usize::from(shard.0)] != *epoch)
    }

    /// A shard is not this process's any more; a database that was exchanged explains it better.
    pub(super) async fn lost(&self, shard: Option<ShardId>) -> Error {
        let reason = match shard {
            Some(shard) => format!("shard {} is not this process's any more", shard.0),
            None => "shards are not this process's any more".to_owned(),
        };
        self.check_epoch().await.err().unwrap_or(Error::Lost { reason })
    }

    /// What a failed write comes to.
    pub(super) fn failed(&self, error: sqlx::Error, fence: &Fence) -> Failure {
        match &error {
            sqlx::Error::Database(refused) => {
                let code = refused.code().unwrap_or_default();
                let has_no_partition = code == "23514" && refused.constraint().is_none();
                if has_no_partition {
                    self.days_missing.store(true, Ordering::Relaxed);
                } else if code.starts_with("22") || code.starts_with("23") {
                    return Failure::Poison(refused.message().to_owned());
                }
            }
            // Never sent.
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => {}
            // The answer, or the statement itself, was lost on its way.
            _ => self.doubt(&fence.shards),
        }
        Failure::Other(unavailable(error))
    }

    /// As if no answer had come for any shard.
    #[cfg(test)]
    pub(in crate::store) fn doubt_all(&self) {
        self.doubt(&(0..self.shards).map(ShardId).collect::<Vec<_>>());
    }

    /// The outcome of a statement for these shards is not known.
    fn doubt(&self, shards: &[ShardId]) {
        self.doubts.lock().extend(shards);
    }

    /// Raises the epochs of those among these shards whose last statement may still be under way.
    async fn settle_doubts(&self, shards: &[ShardId]) -> Result<(), Error> {
        let in_doubt = |shard: &ShardId| self.doubts.lock().contains(shard);
        if !shards.iter().any(in_doubt) {
            return Ok(());
        }
        // Notes go beside the statements that give numbers: two must not raise the same epoch.
        let _alone = self.raising.lock().await;
        let doubtful: Vec<ShardId> = {
            let doubts = self.doubts.lock();
            shards.iter().copied().filter(|shard| doubts.contains(shard)).collect()
        };
        if doubtful.is_empty() {
            return Ok(());
        }
        tracing::warn!(shards = doubtful.len(), "the outcome of a write is not known: raising epochs before the next");
        let raise = sqlx::query_as::<_, (i32, i64)>(
            "update shard_claims c set epoch = c.epoch + 1 from (select shard from shard_claims \
             where shard = any($1) order by shard for update) locked \
             where c.shard = locked.shard and c.owner = $2 returning c.shard, c.epoch",
        );
        let mut connection = self.writes.take().await.map_err(unavailable)?;
        let raise = raise.bind(numbers(&doubtful)).bind(&self.owner).fetch_all(&mut *connection);
        let Ok(raised) = tokio::time::timeout(WRITE_TIMEOUT, raise).await else {
            drop(connection.detach());
            return Err(Error::Unavailable { reason: "raising epochs took too long".into() });
        };
        let raised = raised.map_err(unavailable)?;
        if raised.len() < doubtful.len() {
            return Err(self.lost(None).await);
        }
        let mut held = self.epochs.lock();
        for (shard, epoch) in raised {
            held[usize::try_from(shard).expect("a shard's number")] = epoch;
        }
        let mut doubts = self.doubts.lock();
        doubtful.iter().for_each(|shard| _ = doubts.remove(shard));
        Ok(())
    }
}
