//! The table of a cluster's members, for all its nodes: kept where every node finds it. What is decided about it is in [`crate::cluster`].

use super::Answer;
use crate::{
    cluster::{
        changes::Change,
        table::{Changed, Renewed},
        view::View,
    },
    ids::Incarnation,
};

/// Keeps the table.
pub trait Membership: Send + Sync + 'static {
    /// The view as it is now.
    fn view(&self) -> Answer<'_, View>;

    /// Changes it, whole or not at all. When no answer comes it may have happened, or happen still: whoever asked reads
    /// the view before it tries anything else.
    fn change<'a>(&'a self, change: &'a Change) -> Answer<'a, Changed>;

    /// Renews a member's row: its counter rises, unless it is dead. To be called every
    /// [`crate::cluster::RENEW_EVERY`], one after the other.
    fn renew(&self, me: Incarnation) -> Answer<'_, Renewed>;
}
