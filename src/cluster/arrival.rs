//! Whether a node may join: nobody who must not be there is. And whether it may own anything then: others are linked with
//! it.

use std::collections::HashMap;

use super::{
    changes::{Change, Refused},
    view::{Member, Node, State, View},
};
use crate::ids::{Incarnation, NodeId};

/// A rival whose counter has stood still for so many looks, a second apart, is dead.
const LOOKS: u32 = 6;
/// The same of one that the store has no connection of: as many as one that lives, and was cut off, needs to renew.
const LOOKS_GONE: u32 = 3;

/// Who answers at a rival's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// The rival itself.
    Rival,
    /// Its host says that nothing listens there, or another node answers: the newcomer itself, mostly.
    NotTheRival,
    /// Nobody, as yet; or it has no address.
    Nobody,
    /// Nobody, and the store has no connection of its: it has ended, or was cut off just now.
    Gone,
}

/// What a newcomer may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Join, by this change.
    Join(Change),
    /// Look again in a second.
    Wait,
    /// Nothing: that node is alive. The newcomer ends.
    Occupied(NodeId),
    /// It has joined: an earlier attempt, whose answer was lost, has happened.
    Joined,
}

/// Those that a newcomer has to be linked with, or with enough of them: all that have been active before it.
pub fn elders(view: &View, newcomer: Incarnation) -> impl Iterator<Item = &Member> {
    view.living().filter(move |member| member.node.incarnation != newcomer && member.state != State::Joining)
}

/// Whether a newcomer may become active: together with those of its [`elders`] that are linked with it, in both
/// directions, it is more than half of them and itself. So one that nobody trusts, or nobody reaches, never owns
/// anything, and one that a single elder of several does not reach is not kept waiting. Where there are none, all begin
/// at once.
pub fn may_own(view: &View, newcomer: Incarnation, is_linked: impl Fn(Incarnation) -> bool) -> bool {
    let all = elders(view, newcomer).count() + 1;
    let linked = elders(view, newcomer).filter(|elder| is_linked(elder.node.incarnation)).count() + 1;
    linked * 2 > all
}

/// What a newcomer has seen of its rivals.
#[derive(Debug, Default)]
pub struct Arrival {
    /// Each one's counter at the first look, and how many looks there were.
    seen: HashMap<Incarnation, (u64, u32)>,
}

impl Arrival {
    /// Looks at a view that was just read. To be asked once a second, with who answers at the addresses of each of
    /// [`View::rivals`].
    pub fn look(&mut self, view: &View, newcomer: &Node, answered: impl Fn(&Member) -> Answered) -> Verdict {
        let (mut dead, mut waits) = (Vec::new(), false);
        for rival in view.rivals(newcomer).into_iter().filter(|it| it.node.incarnation != newcomer.incarnation) {
            let one = rival.node.incarnation;
            let (first, looks) = self.seen.entry(one).or_insert((rival.counter, 0));
            *looks += 1;
            let has_moved = rival.counter != *first;
            match answered(rival) {
                Answered::Rival => return Verdict::Occupied(rival.node.id.clone()),
                _ if has_moved => return Verdict::Occupied(rival.node.id.clone()),
                Answered::Nobody if *looks < LOOKS => waits = true,
                Answered::Gone if *looks < LOOKS_GONE => waits = true,
                Answered::NotTheRival | Answered::Nobody | Answered::Gone => dead.push(one),
            }
        }
        if waits {
            return Verdict::Wait;
        }
        match view.join(newcomer.clone(), &dead) {
            Ok(change) => Verdict::Join(change),
            Err(Refused::Rival { id }) => Verdict::Occupied(id),
            Err(_) => Verdict::Joined,
        }
    }
}
