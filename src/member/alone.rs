//! A node that shares its store with nobody. It is in the table of members all the same, so that whoever else would
//! begin to use that store sees that it is taken. It takes part in nothing: it stays `joining`, watches nobody, and has
//! no address. What keeps two nodes from writing is the fence of the claims, not this.

use std::{num::NonZeroU8, time::Duration};

use tokio::{task::JoinHandle, time::MissedTickBehavior};

use super::{ANSWER, JoinError, arriving, insist};
use crate::{
    cluster::{RENEW_EVERY, arrival::Answered, view::Node},
    ids::{Incarnation, NodeId},
    store::{Common, Error, writer::Lost},
};

/// How often it looks who has been dead for long.
const FORGET_EVERY: Duration = Duration::from_secs(3600);

/// Its membership.
pub struct Alone {
    common: Common,
    me: Incarnation,
    renewing: JoinHandle<()>,
}

impl Alone {
    /// Joins as the only member, and renews its row from then on. A former self that was killed is waited for: for 2 s
    /// when the database has no connection of its any more, else until its row has stood still for 5 s.
    ///
    /// # Errors
    /// When another node is there, or was there a moment ago.
    pub async fn join(
        common: Common,
        me: Incarnation,
        (id, zone): (NodeId, String),
        lost: Lost,
    ) -> Result<Self, JoinError> {
        let node = Node { id, incarnation: me, addresses: Vec::new(), zone, weight: NonZeroU8::MIN, is_alone: true };
        // Without a secret it cannot ask members of a cluster who they are; their rows move.
        arriving::join(&common, &node, async |_| Ok(Answered::Nobody)).await?;
        let renewing = tokio::spawn(renew(common.clone(), me, lost));
        Ok(Self { common, me, renewing })
    }

    /// Says that it is gone: the next one need not wait.
    pub async fn leave(&self) {
        self.renewing.abort();
        insist(&self.common, |view| view.leave(self.me)).await;
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

/// Renews its row, and forgets those that have been dead for a day.
async fn renew(common: Common, me: Incarnation, lost: Lost) {
    let mut ticks = tokio::time::interval(RENEW_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looked = None;
    loop {
        ticks.tick().await;
        let Ok(Ok(renewed)) = tokio::time::timeout(ANSWER, common.membership.renew(me)).await else { continue };
        if !renewed.is_alive {
            let _ = lost
                .send(Error::Lost { reason: "another node has taken it, as this one did not renew its row".into() });
            return;
        }
        let is_due = looked.is_none_or(|at: tokio::time::Instant| at.elapsed() >= FORGET_EVERY);
        if is_due && let Ok(Ok(view)) = tokio::time::timeout(ANSWER, common.membership.view()).await {
            looked = Some(tokio::time::Instant::now());
            if let Some(change) = view.forget() {
                let _ = tokio::time::timeout(ANSWER, common.membership.change(&change)).await;
            }
        }
    }
}
