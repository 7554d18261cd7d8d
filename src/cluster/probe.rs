//! Who is probed, and who has gone silent. Every member probes the few that follow it on a ring, so that each is
//! probed by as many, and whoever has a vote against it is probed by all.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use xxhash_rust::xxh3::xxh3_64;

use super::{view::View, votes};
use crate::ids::Incarnation;

/// How often each is probed, and how long it has for its answer.
pub const PROBE_EVERY: Duration = Duration::from_millis(300);
/// So many probes in a row without an answer, and it is silent.
const MISSES: u32 = 3;
/// How many each member probes.
const PROBED: usize = 3;
/// A turn that comes later than this after the one before: this node stood still, and answers may have come meanwhile.
const LATE: Duration = PROBE_EVERY.saturating_mul(3).checked_div(2).expect("not by zero");

/// Whom a member probes: those that follow it on a ring in which all stand by their hash, and those that somebody has
/// voted against.
#[must_use]
pub fn targets(view: &View, me: Incarnation) -> Vec<Incarnation> {
    let mut ring: Vec<Incarnation> = view.living().map(|member| member.node.incarnation).collect();
    ring.sort_unstable_by_key(|one| (xxh3_64(one.as_bytes()), *one));
    let Some(at) = ring.iter().position(|one| *one == me) else { return Vec::new() };
    let mut targets: Vec<Incarnation> =
        ring.iter().cycle().skip(at + 1).take(PROBED.min(ring.len() - 1)).copied().collect();
    for member in view.living() {
        let one = member.node.incarnation;
        if one != me && !targets.contains(&one) && votes::standing(view, member).next().is_some() {
            targets.push(one);
        }
    }
    targets
}

#[derive(Clone, Copy, Debug, Default)]
struct Probed {
    awaits: bool,
    misses: u32,
    is_heard: bool,
}

/// The probes of one member.
#[derive(Debug, Default)]
pub struct Prober {
    probed: HashMap<Incarnation, Probed>,
    last: Option<Instant>,
}

impl Prober {
    /// The next turn, every [`PROBE_EVERY`]: each of the targets is to be probed now. When it comes late, all
    /// that was missed is forgotten.
    pub fn turn(&mut self, now: Instant, targets: &[Incarnation]) {
        let in_time = self.last.is_none_or(|last| now.saturating_duration_since(last) <= LATE);
        self.last = Some(now);
        self.probed.retain(|one, _| targets.contains(one));
        for target in targets {
            let probed = self.probed.entry(*target).or_default();
            if !in_time {
                *probed = Probed::default();
            } else if probed.awaits {
                probed.misses += 1;
                probed.is_heard = false;
            }
            probed.awaits = true;
        }
    }

    /// A probe was answered, or anything else came from that member.
    pub fn heard(&mut self, from: Incarnation) {
        if let Some(probed) = self.probed.get_mut(&from) {
            *probed = Probed { is_heard: true, ..Probed::default() };
        }
    }

    /// Whether it has answered the last probe that it could have answered.
    #[must_use]
    pub fn is_heard(&self, member: Incarnation) -> bool {
        self.probed.get(&member).is_some_and(|probed| probed.is_heard)
    }

    /// Whether it has missed enough.
    #[must_use]
    pub fn is_silent(&self, member: Incarnation) -> bool {
        self.probed.get(&member).is_some_and(|probed| probed.misses >= MISSES)
    }
}
