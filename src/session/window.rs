//! What was sent to a client and is not acknowledged yet, in items and bytes. Pure: time is passed in.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::{
    ids::{NotificationId, Sequence},
    wire::Gap,
};

/// So many gaps are remembered until they are acknowledged.
const GAPS_MAX: usize = 256;

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
    /// Hardly any session has some.
    gaps: Option<Box<Gaps>>,
}

/// What the client was told will not come, and has not acknowledged.
#[derive(Debug, Default)]
struct Gaps(VecDeque<Gap>);

#[derive(Clone, Debug)]
struct Sent {
    seq: Sequence,
    /// None for what an earlier session of the connection has sent.
    id: Option<NotificationId>,
    bytes: usize,
    at: Instant,
}

/// What an acknowledgement is about.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    /// The numbers and ids of what was sent, when all of them are known.
    pub ids: Option<Vec<(Sequence, NotificationId)>>,
    /// The numbers among them that the client was told will not come.
    pub gaps: Vec<Gap>,
}

impl Window {
    /// An empty window.
    #[must_use]
    pub fn new(limits: Limits, counts: bool) -> Self {
        Self { limits, counts, acknowledged: 0, bytes: 0, unacknowledged: VecDeque::new(), gaps: None }
    }

    /// Takes over from an earlier session on the same connection: `sent` was passed on, `acknowledged` of it
    /// came back. The sizes of what lies between are not known any more; it counts as one item.
    pub fn resume(&mut self, acknowledged: Sequence, sent: Sequence, now: Instant) {
        self.acknowledged = acknowledged;
        if self.counts && acknowledged < sent {
            self.unacknowledged.push_back(Sent { seq: sent, id: None, bytes: 0, at: now });
        }
    }

    /// Whether one more may be sent.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.unacknowledged.len() < self.limits.items && self.bytes < self.limits.bytes
    }

    /// A notification was passed on.
    pub fn on_sent(&mut self, seq: Sequence, id: &NotificationId, bytes: usize, now: Instant) {
        if self.counts {
            self.bytes += bytes;
            self.unacknowledged.push_back(Sent { seq, id: Some(id.clone()), bytes, at: now });
        }
    }

    /// The client was told that these numbers will not come.
    pub fn on_gap(&mut self, gap: Gap) {
        let Gaps(told) = &mut **self.gaps.get_or_insert_default();
        if told.len() < GAPS_MAX {
            told.push_back(gap);
        }
    }

    /// The client took everything up to `seq`; what that is, if it is news.
    pub fn on_acknowledged(&mut self, seq: Sequence) -> Option<Taken> {
        if seq <= self.acknowledged {
            return None;
        }
        self.acknowledged = seq;
        let mut ids = self.counts.then(Vec::new);
        while self.unacknowledged.front().is_some_and(|sent| sent.seq <= seq) {
            let Some(sent) = self.unacknowledged.pop_front() else { break };
            self.bytes -= sent.bytes;
            match (sent.id, &mut ids) {
                (Some(id), Some(ids)) => ids.push((sent.seq, id)),
                _ => ids = None,
            }
        }
        if self.unacknowledged.is_empty() {
            // An idle session must not keep the memory of its busiest moment.
            self.unacknowledged = VecDeque::new();
        }
        // An earlier session's tail that was acknowledged in part only counts as one, with the number at its end.
        let tail_begun = self.unacknowledged.front().is_some_and(|sent| sent.id.is_none());
        let mut gaps = Vec::new();
        if let Some(Gaps(told)) = self.gaps.as_deref_mut() {
            let taken = told.partition_point(|gap| gap.to <= seq);
            gaps.extend(told.drain(..taken));
            if told.is_empty() {
                self.gaps = None;
            }
        }
        Some(Taken { ids: ids.filter(|_| !tail_begun), gaps })
    }

    /// Everything up to this number is acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> Sequence {
        self.acknowledged
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

    fn id(seq: Sequence) -> NotificationId {
        NotificationId::new(seq.to_string()).unwrap()
    }

    fn ids(seqs: impl IntoIterator<Item = Sequence>) -> Option<Taken> {
        Some(Taken { ids: Some(seqs.into_iter().map(|seq| (seq, id(seq))).collect()), gaps: Vec::new() })
    }

    const UNKNOWN: Option<Taken> = Some(Taken { ids: None, gaps: Vec::new() });

    fn filled(sizes: &[usize]) -> Window {
        let mut window = Window::new(LIMITS, true);
        let now = Instant::now();
        sizes.iter().enumerate().for_each(|(i, bytes)| window.on_sent(i as u64 + 1, &id(i as u64 + 1), *bytes, now));
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
        assert_eq!(window.on_acknowledged(2), ids([1, 2]));
        assert!(window.has_room() && window.bytes == 40);
        assert!(window.on_acknowledged(2).is_none() && window.on_acknowledged(1).is_none());
        assert_eq!(window.on_acknowledged(3), ids([3]));
        assert_eq!(window.oldest_unacknowledged(), None);
    }

    #[test]
    fn a_protocol_without_acknowledgements_is_not_held_back_here() {
        let mut window = Window::new(LIMITS, false);
        (1..50).for_each(|seq| window.on_sent(seq, &id(seq), 1000, Instant::now()));
        assert!(window.has_room() && window.oldest_unacknowledged().is_none());
        assert_eq!(window.on_acknowledged(7), UNKNOWN);
    }

    #[test]
    fn gaps_are_told_of_when_they_are_acknowledged_and_bounded() {
        let gap = |from, to| Gap { from, to, reason: crate::wire::GapReason::Expired };
        let mut window = Window::new(LIMITS, true);
        window.on_gap(gap(1, 3));
        window.on_sent(4, &id(4), 1, Instant::now());
        window.on_gap(gap(5, 9));
        let taken = window.on_acknowledged(4).unwrap();
        assert_eq!((taken.ids, taken.gaps), (Some(vec![(4, id(4))]), vec![gap(1, 3)]));
        assert_eq!(window.on_acknowledged(9).unwrap().gaps, [gap(5, 9)]);
        (0..1000).for_each(|n| window.on_gap(gap(10 + n, 10 + n)));
        assert_eq!(window.gaps.unwrap().0.len(), GAPS_MAX);
    }

    #[test]
    fn a_taken_over_tail_is_one_item_until_it_is_acknowledged() {
        let mut window = Window::new(LIMITS, true);
        window.resume(5, 9, Instant::now());
        assert!(window.has_room() && window.oldest_unacknowledged().is_some());
        window.on_sent(10, &id(10), 1, Instant::now());
        assert_eq!(window.on_acknowledged(5), None);
        assert_eq!(window.on_acknowledged(7), UNKNOWN, "whose ids the earlier session knew");
        assert_eq!(window.on_acknowledged(10), UNKNOWN);
        assert!(window.oldest_unacknowledged().is_none());
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
