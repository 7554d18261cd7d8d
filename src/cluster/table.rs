//! What the table of members answers.

use super::view::Version;
use crate::ids::Incarnation;

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It has happened; this is the version that it made.
    Done(Version),
    /// Another one was faster, or what was to stand still has moved: nothing has happened, and one reads again.
    Overtaken,
}

/// What a member sees when it renews its row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewed {
    /// The table's version. One that is not known yet is to be read.
    pub version: Version,
    /// Whether it is alive itself. If not, it stops serving and ends.
    pub is_alive: bool,
    /// The counters of all that are alive.
    pub counters: Vec<(Incarnation, u64)>,
}
