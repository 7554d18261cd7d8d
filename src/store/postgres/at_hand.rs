//! Connections for single statements, kept at hand between them. The pool asks a connection whether it lives when it is
//! taken, and once more when it comes back: three round trips where a statement needs one.

use std::{
    ops::{Deref, DerefMut},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use sqlx::{
    Postgres,
    pool::PoolConnection,
    postgres::{PgConnection, PgPool},
};

/// One that has rested for longer is asked whether it still lives.
const RESTED_MAX: Duration = Duration::from_secs(1);
/// After so long one goes back to the pool in any case, which sees to it that none gets too old.
const OUT_MAX: Duration = Duration::from_secs(60);

/// Connections of a pool, of which those in use lately are kept out of it.
pub(super) struct AtHand {
    pool: PgPool,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    connections: Vec<Held>,
    /// So many wait for the pool: what comes back is theirs.
    waiting: usize,
    is_closed: bool,
}

/// A connection that was taken. Dropped, it goes back to the pool, which looks whether it is good for anybody else.
pub(super) struct Held {
    connection: PoolConnection<Postgres>,
    out_since: Instant,
    used_at: Instant,
}

impl Held {
    /// Takes it out of the pool for good.
    pub(super) fn detach(self) -> PgConnection {
        self.connection.detach()
    }

    fn is_fresh(&self, now: Instant) -> bool {
        now.duration_since(self.used_at) < RESTED_MAX && now.duration_since(self.out_since) < OUT_MAX
    }
}

impl Deref for Held {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

/// Counts one that waits, also when it gives up.
struct Waiting<'a>(&'a Mutex<Kept>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

impl Drop for AtHand {
    fn drop(&mut self) {
        // Going back to the pool takes a runtime, which may be gone.
        self.kept.get_mut().connections.drain(..).for_each(|held| drop(held.detach()));
    }
}

impl AtHand {
    pub(super) fn of(pool: PgPool) -> Self {
        Self { pool, kept: Mutex::default() }
    }

    /// The pool behind it. Whoever takes connections from there may find none while all are kept.
    pub(super) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// A connection, at hand or from the pool. Cancel safe.
    pub(super) async fn take(&self) -> sqlx::Result<Held> {
        let (found, rested) = self.find();
        drop(rested);
        if let Some(held) = found {
            return Ok(held);
        }
        let _waiting = Waiting(&self.kept);
        let connection = self.pool.acquire().await?;
        let now = Instant::now();
        Ok(Held { connection, out_since: now, used_at: now })
    }

    /// One that is fresh, if there is any, else this one waits; and those that are not.
    fn find(&self) -> (Option<Held>, Vec<Held>) {
        let mut kept = self.kept.lock();
        let now = Instant::now();
        let rested = kept.connections.extract_if(.., |held| !held.is_fresh(now)).collect();
        let found = kept.connections.pop();
        kept.waiting += usize::from(found.is_none());
        (found, rested)
    }

    /// Keeps one whose statement was answered to its end.
    pub(super) fn keep(&self, mut held: Held) {
        held.used_at = Instant::now();
        let mut kept = self.kept.lock();
        if kept.waiting == 0 && !kept.is_closed {
            kept.connections.push(held);
        }
    }

    /// Closes the pool, when all that was taken has come back.
    pub(super) async fn close(&self) {
        let kept = {
            let mut kept = self.kept.lock();
            kept.is_closed = true;
            std::mem::take(&mut kept.connections)
        };
        drop(kept);
        self.pool.close().await;
    }
}
