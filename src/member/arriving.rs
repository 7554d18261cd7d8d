//! The way into the table of members: nobody who must not be there is alive. And the way to what this node is to own:
//! others are linked with it.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{ANSWER, JoinError};
use crate::{
    cluster::{
        arrival::{self, Answered, Arrival, Verdict},
        table::Changed,
        view::{Member, Node, View},
    },
    ids::Incarnation,
    store::Common,
};

/// How often a newcomer looks whether it may join.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often a member that may not be active yet looks whether it may.
const LINKED_EVERY: Duration = Duration::from_millis(20);
/// How often it says that it may not.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// Joins. `ask` says who answers at the addresses of one that is there.
///
/// # Errors
/// When it must not be there.
pub(super) async fn join(
    common: &Common,
    newcomer: &Node,
    ask: impl AsyncFn(&Member) -> Result<Answered, JoinError>,
) -> Result<(), JoinError> {
    let (mut arrival, mut has_waited) = (Arrival::default(), false);
    loop {
        let view = common.membership.view().await?;
        let others = view.living().filter(|member| member.node.incarnation != newcomer.incarnation);
        let asked = others.map(async |member| {
            let answer = match ask(member).await? {
                // Of this node's own former life, which nobody can be asked about, the store may know more.
                Answered::Nobody if is_former(member, newcomer) && is_gone(common, member).await => Answered::Gone,
                answer => answer,
            };
            Ok((member.node.incarnation, answer))
        });
        let answered: Result<HashMap<_, _>, JoinError> = join_all(asked).await.into_iter().collect();
        let answered = answered?;
        // Asking takes its time, in which a rival may have renewed.
        let view = common.membership.view().await?;
        let says = |rival: &Member| answered.get(&rival.node.incarnation).copied().unwrap_or(Answered::Nobody);
        match arrival.look(&view, newcomer, says) {
            Verdict::Join(change) => match common.membership.change(&change).await? {
                Changed::Done(_) => return Ok(()),
                Changed::Overtaken => continue,
            },
            Verdict::Wait => {
                if !std::mem::replace(&mut has_waited, true) {
                    let rivals: Vec<&str> = view.rivals(newcomer).iter().map(|rival| &*rival.node.id).collect();
                    tracing::info!(?rivals, "waiting for a few seconds, to be sure that nobody else uses the store");
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Verdict::Occupied(id) => {
                let is_shared = !newcomer.is_alone && view.living().all(|member| !member.node.is_alone);
                return Err(if is_shared { JoinError::Occupied(id) } else { JoinError::Alone(id) });
            }
            Verdict::Joined => return Ok(()),
        }
    }
}

fn is_former(member: &Member, newcomer: &Node) -> bool {
    member.node.is_alone && newcomer.is_alone && member.node.id == newcomer.id
}

/// Whether the store has no connection of its. What the store does not say counts as no.
async fn is_gone(common: &Common, member: &Member) -> bool {
    let connected = tokio::time::timeout(ANSWER, common.is_connected(member.node.incarnation)).await;
    matches!(connected, Ok(Ok(false)))
}

impl super::Member {
    /// It is ready to own something, and becomes active as soon as it is linked with enough of the others and can read
    /// the topic, if it is not declared dead before. Cancel safe.
    pub(super) async fn activate(self: &Arc<Self>, reads: impl Fn() -> bool) {
        let me = self.me();
        let mut say_at = Instant::now() + SAID_EVERY;
        loop {
            let view = self.view();
            let is_linked = arrival::may_own(&view, me, |elder| self.is_linked(elder));
            // Alone, it owns what there is anyway.
            if is_linked && (reads() || arrival::elders(&view, me).next().is_none()) {
                // It is active, then, or it leaves, or is dead.
                let Ok(change) = view.activate(me) else { return };
                let changed = timeout(ANSWER, self.common.membership.change(&change)).await;
                let _ = self.refresh().await;
                if matches!(changed, Ok(Ok(Changed::Done(_)))) {
                    self.is_active.store(true, Ordering::Relaxed);
                    return;
                }
            } else {
                self.keep_links();
                if Instant::now() >= say_at {
                    say_at += SAID_EVERY;
                    if is_linked {
                        tracing::warn!("waiting until kafka can be read: other nodes keep what they have");
                    } else {
                        let failures = self.failures(&view);
                        tracing::warn!(failures, "waiting for links with more than half of the active nodes");
                    }
                }
            }
            tokio::time::sleep(LINKED_EVERY).await;
        }
    }

    /// Whether there is a link in each direction.
    fn is_linked(&self, other: Incarnation) -> bool {
        self.links.is_open(other) && self.callers.lock().contains(&other)
    }

    /// With whom it is not linked, and why.
    pub(super) fn failures(&self, view: &View) -> String {
        let unlinked = arrival::elders(view, self.me()).filter(|elder| !self.is_linked(elder.node.incarnation));
        let failure = |elder: &Member| {
            let Node { id, incarnation, addresses, .. } = &elder.node;
            let why = self.links.failure(*incarnation).unwrap_or_else(|| "it has not called this node".to_owned());
            format!("{id} ({}): {why}", addresses.join(", "))
        };
        unlinked.map(failure).collect::<Vec<_>>().join("; ")
    }
}
