//! Writes what sessions have pushed, many sockets in a row: a write between two actors' messages costs half as
//! much again as one in a loop, and what came for a socket meanwhile goes out in the same write. With little to
//! do it runs at once; under load it waits until a batch is together or nothing more comes.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::relay::Relay;

/// So many sockets are written at the latest: the more users a burst is for, the longer it takes until two
/// notifications of one user meet in one write.
const BATCH: usize = 4096;
/// So many writes in a row, before others have their turn.
const WRITES_PER_TURN: usize = 512;

/// The sockets that have something to write.
#[derive(Default)]
pub(super) struct Flusher {
    dirty: Mutex<Vec<Arc<Relay>>>,
    wake: Notify,
}

impl Flusher {
    /// Writes this one soon.
    pub(super) fn add(&self, relay: Arc<Relay>) {
        let mut dirty = self.dirty.lock();
        dirty.push(relay);
        let is_first = dirty.len() == 1;
        drop(dirty);
        if is_first {
            self.wake.notify_one();
        }
    }

    /// Runs for as long as it is polled.
    pub(super) async fn run(self: Arc<Self>) {
        let mut batch = Vec::new();
        loop {
            self.wake.notified().await;
            self.gather().await;
            std::mem::swap(&mut batch, &mut *self.dirty.lock());
            for (at, relay) in batch.drain(..).enumerate() {
                relay.flush();
                if at % WRITES_PER_TURN == WRITES_PER_TURN - 1 {
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Lets the actors that are ready to run go first, for as long as they add to the batch.
    async fn gather(&self) {
        let mut seen = 0;
        loop {
            tokio::task::yield_now().await;
            let now = self.dirty.lock().len();
            if now == seen || now >= BATCH {
                return;
            }
            seen = now;
        }
    }
}
