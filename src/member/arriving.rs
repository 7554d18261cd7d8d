//! The way into the table of members: nobody who must not be there is alive.

use std::{collections::HashMap, time::Duration};

use futures_util::future::join_all;

use super::{ANSWER, JoinError};
use crate::{
    cluster::{
        arrival::{Answered, Arrival, Verdict},
        table::Changed,
        view::{Member, Node},
    },
    store::Common,
};

/// How often a newcomer looks whether it may join.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
