//! Who takes part in a cluster, and who is alive: decisions alone. The truth is a table in the store; every change of it
//! is one compare-and-set of its version, so that all nodes see the same sequence of views. Nothing here does I/O or
//! looks at a clock: time is passed in, from clocks that only ever measure how long something took on one node. What
//! ages in the table is measured in renewals, or by the store.
//!
//! A death is declared for one of three reasons: the host *refused* (one member's word is enough), the member is
//! *silent* ([`probe`], then [`votes`]), or its row is *stale* ([`stale`]). [`watch`] puts the three together for one
//! node; whoever does its I/O needs nothing else, but [`arrival`] until it is active and [`solitude`] while it lives.

pub mod arrival;
pub mod changes;
pub mod probe;
pub mod solitude;
pub mod stale;
pub mod table;
pub mod view;
pub mod votes;
pub mod watch;

use std::time::Duration;

/// How often a node renews its row, and sees who else has.
pub const RENEW_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
pub(crate) mod tests;
