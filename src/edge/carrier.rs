//! The connection that carries requests, as far as they have a say in it: it is a handshake until one of them has shown
//! who asks.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// The connection of a request; an extension of each.
#[derive(Clone, Default)]
pub struct Carrier(Arc<State>);

#[derive(Default)]
struct State {
    is_identified: AtomicBool,
    identified: Notify,
    sessions: AtomicUsize,
    hung_up: Notify,
}

impl Carrier {
    /// A caller has shown who it is: from here on the deadline for handshakes does not hold, and the connection does not
    /// count as one.
    pub fn identify(&self) {
        if !self.0.is_identified.swap(true, Ordering::Relaxed) {
            self.0.identified.notify_one();
        }
    }

    pub(super) fn is_identified(&self) -> bool {
        self.0.is_identified.load(Ordering::Relaxed)
    }

    /// Waits for the first caller who shows who it is. Cancel safe.
    pub(super) async fn identified(&self) {
        self.0.identified.notified().await;
    }

    /// Counts a session that it carries, until that is dropped.
    pub(super) fn carries(&self) -> Carried {
        self.0.sessions.fetch_add(1, Ordering::Relaxed);
        Carried(self.clone())
    }

    /// Ends the connection, unless it carries other sessions.
    pub(super) fn hang_up(&self) {
        if self.0.sessions.load(Ordering::Relaxed) == 0 {
            self.0.hung_up.notify_one();
        }
    }

    /// Waits until somebody wants its end. Cancel safe.
    pub(super) async fn hung_up(&self) {
        self.0.hung_up.notified().await;
    }
}

/// A session that a connection carries.
pub(super) struct Carried(Carrier);

impl Drop for Carried {
    fn drop(&mut self) {
        self.0.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_connection_ends_with_the_last_of_its_sessions() {
        let carrier = Carrier::default();
        let (first, second) = (carrier.carries(), carrier.carries());
        drop(first);
        carrier.hang_up();
        assert!(carrier.hung_up().now_or_never().is_none(), "another session is there");
        drop(second);
        carrier.hang_up();
        assert!(carrier.hung_up().now_or_never().is_some());
    }
}
