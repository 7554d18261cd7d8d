//! What was sent to a client and is not acknowledged yet, in items and bytes. Pure: time is passed in.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::ids::Sequence;

/// The window's size.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Notifications.
    pub items: usize,
    /// Bytes of frames.
    pub bytes: usize,
}

/// The unacknowledged tail of one session.
#[derive(Debug)]
pub struct Window {
    limits: Limits,
    /// Whether the client can acknowledge in-band; else nothing is counted here and the outlet's queue decides.
    counts: bool,
    acknowledged: Sequence,
    bytes: usize,
    unacknowledged: VecDeque<Sent>,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    seq: Sequence,
    bytes: usize,
    at: Instant,
}

impl Window {
    /// An empty window.
    #[must_use]
    pub fn new(limits: Limits, counts: bool) -> Self {
        Self { limits, counts, acknowledged: 0, bytes: 0, unacknowledged: VecDeque::new() }
    }

    /// Takes over from an earlier session on the same connection: `sent` was passed on, `acknowledged` of it
    /// came back. The sizes of what lies between are not known any more; it counts as one item.
    pub fn resume(&mut self, acknowledged: Sequence, sent: Sequence, now: Instant) {
        self.acknowledged = acknowledged;
        if self.counts && acknowledged < sent {
            self.unacknowledged.push_back(Sent { seq: sent, bytes: 0, at: now });
        }
    }

    /// Whether one more may be sent.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.unacknowledged.len() < self.limits.items && self.bytes < self.limits.bytes
    }

    /// A notification was passed on.
    pub fn on_sent(&mut self, seq: Sequence, bytes: usize, now: Instant) {
        if self.counts {
            self.bytes += bytes;
            self.unacknowledged.push_back(Sent { seq, bytes, at: now });
        }
    }

    /// The client took everything up to `seq`; whether that is news.
    pub fn on_acknowledged(&mut self, seq: Sequence) -> bool {
        if seq <= self.acknowledged {
            return false;
        }
        self.acknowledged = seq;
        while let Some(sent) = self.unacknowledged.front().filter(|sent| sent.seq <= seq) {
            self.bytes -= sent.bytes;
            self.unacknowledged.pop_front();
        }
        if self.unacknowledged.is_empty() {
            // An idle session must not keep the memory of its busiest moment.
            self.unacknowledged = VecDeque::new();
        }
        true
    }

    /// When the oldest of what is not acknowledged was sent.
    #[must_use]
    pub fn oldest_unacknowledged(&self) -> Option<Instant> {
        self.unacknowledged.front().map(|sent| sent.at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { items: 3, bytes: 100 };

    fn filled(sizes: &[usize]) -> Window {
        let mut window = Window::new(LIMITS, true);
        let now = Instant::now();
        sizes.iter().enumerate().for_each(|(i, bytes)| window.on_sent(i as u64 + 1, *bytes, now));
        window
    }

    #[test]
    fn is_full_by_items_or_by_bytes() {
        assert!(filled(&[1, 1]).has_room());
        assert!(!filled(&[1, 1, 1]).has_room());
        assert!(!filled(&[100]).has_room());
    }

    #[test]
    fn an_acknowledgement_is_cumulative_and_counts_once() {
        let mut window = filled(&[40, 40, 40]);
        assert!(window.on_acknowledged(2));
        assert!(window.has_room() && window.bytes == 40);
        assert!(!window.on_acknowledged(2) && !window.on_acknowledged(1));
        assert!(window.on_acknowledged(3));
        assert_eq!(window.oldest_unacknowledged(), None);
    }

    #[test]
    fn a_protocol_without_acknowledgements_is_not_held_back_here() {
        let mut window = Window::new(LIMITS, false);
        (1..50).for_each(|seq| window.on_sent(seq, 1000, Instant::now()));
        assert!(window.has_room() && window.oldest_unacknowledged().is_none());
        assert!(window.on_acknowledged(7));
    }

    #[test]
    fn a_taken_over_tail_is_one_item_until_it_is_acknowledged() {
        let mut window = Window::new(LIMITS, true);
        window.resume(5, 9, Instant::now());
        assert!(window.has_room() && window.oldest_unacknowledged().is_some());
        assert!(!window.on_acknowledged(5));
        assert!(window.on_acknowledged(9) && window.oldest_unacknowledged().is_none());
    }

    proptest! {
        /// The bytes counted are always those of what is above the highest acknowledgement.
        #[test]
        fn counts_exactly_what_is_unacknowledged(sizes in prop::collection::vec(0usize..50, 1..40), acks in prop::collection::vec(0u64..50, 0..20)) {
            let mut window = filled(&sizes);
            let mut highest = 0;
            for ack in acks {
                window.on_acknowledged(ack);
                highest = highest.max(ack);
            }
            let left: usize = sizes.iter().enumerate().filter(|(i, _)| *i as u64 + 1 > highest).map(|(_, b)| b).sum();
            prop_assert_eq!(window.bytes, left);
        }
    }
}
