//! The issuer's keys: a JSON Web Key Set (RFC 7517), fetched from its URL, now and then and when a token names a key
//! that is not in it. Nobody can make us fetch more often than once per [`FLOOR`].

mod fetch;

use std::{sync::Arc, time::Duration};

use jsonwebtoken::jwk::Jwk;
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{Instant, sleep, timeout},
};

pub use self::fetch::InvalidUrl;
pub(super) use self::fetch::Source;
use self::fetch::{FetchError, Fetched};
use super::{key::Key, metric};
use crate::backoff::Backoff;

/// Tokens with unknown keys cause at most one fetch in this time, counted from begin to begin.
const FLOOR: Duration = Duration::from_secs(10);
/// How long a request waits for the fetch that it caused. Longer than a fetch may take: the answer is the fetch's.
const WAIT_MAX: Duration = Duration::from_secs(6);
/// Requests that may wait for one fetch: each holds a handshake's place.
const WAITING_MAX: usize = 64;
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// The keys of an issuer, as they are now.
pub(super) struct Issuer {
    /// `None` until the first fetch has succeeded.
    keys: RwLock<Option<Arc<[Key]>>>,
    phase: Mutex<Phase>,
    wanted: Notify,
    finished: watch::Sender<()>,
    waiting: Semaphore,
}

enum Phase {
    /// A fetch is under way, or about to be.
    Fetching,
    /// None is; the last one began then.
    Idle { last: Instant },
}

impl Default for Issuer {
    fn default() -> Self {
        Self {
            keys: RwLock::default(),
            phase: Mutex::new(Phase::Fetching),
            wanted: Notify::new(),
            finished: watch::Sender::default(),
            waiting: Semaphore::new(WAITING_MAX),
        }
    }
}

impl Issuer {
    /// One that has been fetched, or not yet, and will not be again.
    #[cfg(test)]
    pub(super) fn with_keys(keys: Option<Vec<Key>>) -> Self {
        Self { keys: RwLock::new(keys.map(Arc::from)), ..Self::default() }
    }

    /// The keys, once they are known.
    pub(super) fn keys(&self) -> Option<Arc<[Key]>> {
        self.keys.read().clone()
    }

    /// Waits until the keys have been fetched again; `false` at once when they will not be now: they were a moment
    /// ago, or too many wait already. Cancel safe.
    pub(super) async fn fetched_again(&self) -> bool {
        let Ok(_permit) = self.waiting.try_acquire() else { return false };
        let mut finished = {
            let mut phase = self.phase.lock();
            if let Phase::Idle { last } = *phase {
                if last.elapsed() < FLOOR {
                    return false;
                }
                *phase = Phase::Fetching;
                self.wanted.notify_one();
            }
            // Under the lock, or the end of an earlier fetch could be taken for this one's.
            self.finished.subscribe()
        };
        matches!(timeout(WAIT_MAX, finished.changed()).await, Ok(Ok(())))
    }

    /// Fetches from `source` for ever. What was fetched stays when the issuer cannot be reached.
    pub(super) async fn keep_fresh(self: Arc<Self>, source: Source) {
        metric::describe_issuer();
        self.keep_fresh_with(|| source.fetch()).await;
    }

    async fn keep_fresh_with<F>(&self, mut fetch: impl FnMut() -> F)
    where
        F: Future<Output = Result<Fetched, FetchError>>,
    {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        loop {
            *self.phase.lock() = Phase::Fetching;
            let last = Instant::now();
            let wait = match fetch().await {
                Ok(fetched) => {
                    backoff.reset();
                    self.take(fetched.set);
                    fetched.fresh_for
                }
                Err(error) => {
                    metric::fetched(error.outcome());
                    let (wait, keys) = (backoff.next_wait(), self.keys());
                    let has = if keys.is_some() { "the last ones stay" } else { "tokens that need them are refused" };
                    tracing::warn!(%error, has, "auth.jwt.jwks_url: the issuer's keys could not be fetched");
                    // Who has keys is in no hurry.
                    if keys.is_some() { wait.max(FLOOR) } else { wait }
                }
            };
            {
                let mut phase = self.phase.lock();
                *phase = Phase::Idle { last };
                self.finished.send_replace(());
            }
            // Whoever wanted a fetch while this one ran has got it.
            let wanted = async {
                loop {
                    self.wanted.notified().await;
                    if last.elapsed() >= FLOOR {
                        return;
                    }
                }
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = wanted => {}
            }
        }
    }

    fn take(&self, set: KeySet) {
        metric::fetched(metric::FetchOutcome::Ok);
        let names = |keys: &[Key]| keys.iter().map(|key| key.id.clone()).collect::<Vec<_>>();
        let before = self.keys.write().replace(set.keys.clone());
        if before.is_none_or(|before| names(&before) != names(&set.keys)) {
            let (usable, ignored) = (set.keys.len(), set.ignored);
            tracing::info!(usable, ignored, "auth.jwt.jwks_url: the issuer has other keys than before");
            if usable == 0 {
                tracing::error!("auth.jwt.jwks_url: the issuer's set has no key that can be used");
            }
        }
    }
}

/// What is in a JSON Web Key Set for us.
pub(super) struct KeySet {
    keys: Arc<[Key]>,
    /// Keys for encryption, of kinds that we do not know, or broken.
    ignored: usize,
}

impl KeySet {
    /// Reads a set; `None` when it is none. What is wrong with one key costs that key only.
    fn parse(body: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let Set { keys } = serde_json::from_slice(body).ok()?;
        let all = keys.len();
        let usable = |value| Key::from_jwk(&serde_json::from_value::<Jwk>(value).ok()?).ok();
        let keys: Arc<[Key]> = keys.into_iter().filter_map(usable).collect();
        Some(Self { ignored: all - keys.len(), keys })
    }
}

#[cfg(test)]
mod tests;
