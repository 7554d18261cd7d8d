//! What was read from Kafka and is not settled: bounds it, and knows how far each partition's position may go.
//! Pure: no Kafka, no clock.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use crate::{
    event::{Event, UnixMillis},
    settlement::RecordRef,
};

/// Bounds of what is read and not settled.
#[derive(Clone, Copy, Debug)]
pub struct Credits {
    /// Events, over all partitions.
    pub events: usize,
    /// Bytes of records, over all partitions.
    pub bytes: usize,
    /// Events of one partition.
    pub partition_events: usize,
    /// Bytes of one partition.
    pub partition_bytes: usize,
    /// Records between a partition's position and the last one read, settled ones included.
    pub span: usize,
}

/// The records under way, partition by partition.
#[derive(Debug)]
pub struct Ledger {
    credits: Credits,
    partitions: BTreeMap<i32, Partition>,
    events: usize,
    bytes: usize,
    next_number: u64,
}

#[derive(Debug)]
struct Partition {
    assignment: u64,
    /// One past the last record read, or where reading begins.
    next: i64,
    /// From the first unsettled record on, in the order of offsets, which may have holes.
    entries: VecDeque<Entry>,
    events: usize,
    bytes: usize,
    last_recorded_at: Option<UnixMillis>,
}

/// One record.
#[derive(Debug)]
pub struct Entry {
    /// Kafka offset.
    pub offset: i64,
    /// Its place in the order of reading, over all partitions.
    pub number: u64,
    /// The event, until it is settled or becomes a dead letter.
    pub event: Option<Arc<Event>>,
    /// How often an actor crashed on it.
    pub crashes: u8,
    recorded_at: UnixMillis,
    bytes: usize,
    settled: bool,
}

impl Partition {
    /// Where the record stands in `entries`: most logs have no holes, so the first guess is right.
    fn find(&self, offset: i64) -> Option<usize> {
        let guess = usize::try_from(offset - self.entries.front()?.offset).ok()?;
        if self.entries.get(guess).is_some_and(|entry| entry.offset == offset) {
            return Some(guess);
        }
        self.entries.binary_search_by_key(&offset, |entry| entry.offset).ok()
    }
}

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new(credits: Credits) -> Self {
        Self { credits, partitions: BTreeMap::new(), events: 0, bytes: 0, next_number: 0 }
    }

    /// Begins a partition at `start`; reports of earlier assignments of it will be ignored.
    pub fn assign(&mut self, partition: i32, assignment: u64, start: i64) {
        self.remove(partition);
        let fresh = Partition {
            assignment,
            next: start,
            entries: VecDeque::new(),
            events: 0,
            bytes: 0,
            last_recorded_at: None,
        };
        self.partitions.insert(partition, fresh);
    }

    /// Forgets a partition.
    pub fn remove(&mut self, partition: i32) {
        if let Some(gone) = self.partitions.remove(&partition) {
            self.events -= gone.events;
            self.bytes -= gone.bytes;
        }
    }

    /// Whether another record of the partition may be read.
    #[must_use]
    pub fn may_read(&self, partition: i32) -> bool {
        let credits = &self.credits;
        let Some(p) = self.partitions.get(&partition) else { return false };
        self.node_has_credit()
            && p.events < credits.partition_events
            && p.bytes < credits.partition_bytes
            && p.entries.len() < credits.span
    }

    /// Whether the node may read anything more.
    #[must_use]
    pub fn node_has_credit(&self) -> bool {
        self.events < self.credits.events && self.bytes < self.credits.bytes
    }

    /// Notes a record that was read, and gives it its number; `None` when it was read before.
    pub fn read(
        &mut self,
        partition: i32,
        offset: i64,
        recorded_at: UnixMillis,
        bytes: usize,
        event: Option<Arc<Event>>,
    ) -> Option<(RecordRef, u64)> {
        let p = self.partitions.get_mut(&partition).filter(|p| offset >= p.next)?;
        let number = self.next_number;
        self.next_number += 1;
        self.events += 1;
        self.bytes += bytes;
        p.events += 1;
        p.bytes += bytes;
        p.next = offset + 1;
        p.last_recorded_at = Some(recorded_at);
        p.entries.push_back(Entry { offset, number, event, crashes: 0, recorded_at, bytes, settled: false });
        Some((RecordRef { partition, assignment: p.assignment, offset }, number))
    }

    /// The unsettled record that a report names; `None` when it is settled or of an earlier assignment.
    pub fn get_mut(&mut self, record: RecordRef) -> Option<&mut Entry> {
        let p = self.partitions.get_mut(&record.partition).filter(|p| p.assignment == record.assignment)?;
        let at = p.find(record.offset)?;
        Some(&mut p.entries[at]).filter(|entry| !entry.settled)
    }

    /// The position may pass this record.
    pub fn settle(&mut self, record: RecordRef) {
        let Some(entry) = self.get_mut(record) else { return };
        entry.settled = true;
        entry.event = None;
        let bytes = entry.bytes;
        self.events -= 1;
        self.bytes -= bytes;
        let p = self.partitions.get_mut(&record.partition).expect("it holds the entry that was just settled");
        p.events -= 1;
        p.bytes -= bytes;
        while p.entries.front().is_some_and(|entry| entry.settled) {
            p.entries.pop_front();
        }
    }

    /// Everything before this offset is settled.
    #[must_use]
    pub fn position(&self, partition: i32) -> Option<i64> {
        let p = self.partitions.get(&partition)?;
        Some(p.entries.front().map_or(p.next, |entry| entry.offset))
    }

    /// Records of the partition that were read and are not settled.
    #[must_use]
    pub fn unsettled_of(&self, partition: i32) -> usize {
        self.partitions.get(&partition).map_or(0, |p| p.events)
    }

    /// Records that were read and are not settled.
    #[must_use]
    pub fn unsettled(&self) -> usize {
        self.events
    }

    /// The unsettled events of one user that have not become dead letters.
    #[must_use]
    pub fn unsettled_of_user(&self, user: &str) -> usize {
        let events = self.partitions.values().flat_map(|p| &p.entries).filter_map(|entry| entry.event.as_ref());
        events.filter(|event| &*event.user == user).count()
    }

    /// When the oldest unsettled record was written; with none, the last one read.
    #[must_use]
    pub fn oldest(&self, partition: i32) -> Option<UnixMillis> {
        let p = self.partitions.get(&partition)?;
        p.entries.front().map(|entry| entry.recorded_at).or(p.last_recorded_at)
    }

    /// The partitions that are assigned.
    pub fn partitions(&self) -> impl Iterator<Item = i32> {
        self.partitions.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CREDITS: Credits = Credits { events: 6, bytes: 1000, partition_events: 4, partition_bytes: 400, span: 8 };

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(CREDITS);
        ledger.assign(0, 1, 0);
        ledger.assign(1, 1, 100);
        ledger
    }

    fn read(ledger: &mut Ledger, partition: i32, offset: i64) -> RecordRef {
        ledger.read(partition, offset, offset, 10, None).unwrap().0
    }

    #[test]
    fn the_position_waits_for_the_oldest_unsettled_record() {
        let mut ledger = ledger();
        assert_eq!(ledger.position(0), Some(0));
        let refs: Vec<_> = [0, 1, 5].map(|offset| read(&mut ledger, 0, offset)).into();
        ledger.settle(refs[1]);
        assert_eq!(ledger.position(0), Some(0));
        ledger.settle(refs[0]);
        assert_eq!(ledger.position(0), Some(5), "a hole in the offsets is passed with what is settled before it");
        ledger.settle(refs[2]);
        assert_eq!((ledger.position(0), ledger.unsettled()), (Some(6), 0));
    }

    #[test]
    fn reports_of_an_earlier_assignment_move_nothing() {
        let mut ledger = ledger();
        let old = read(&mut ledger, 0, 0);
        ledger.assign(0, 2, 0);
        let new = read(&mut ledger, 0, 0);
        ledger.settle(old);
        assert_eq!((ledger.position(0), ledger.unsettled_of(0)), (Some(0), 1));
        ledger.settle(new);
        ledger.settle(new);
        assert_eq!((ledger.position(0), ledger.unsettled()), (Some(1), 0));
    }

    #[test]
    fn credits_hold_per_partition_and_per_node() {
        let mut ledger = ledger();
        let first = read(&mut ledger, 0, 0);
        (1..4).for_each(|offset| _ = read(&mut ledger, 0, offset));
        assert!(!ledger.may_read(0) && ledger.may_read(1));
        (100..102).for_each(|offset| _ = read(&mut ledger, 1, offset));
        assert!(!ledger.may_read(1) && !ledger.node_has_credit());
        ledger.settle(first);
        assert!(ledger.may_read(0) && ledger.may_read(1));
        assert!(!ledger.may_read(7), "a partition that is not assigned is not read");
    }

    #[test]
    fn bytes_count_as_credits_too() {
        let mut ledger = ledger();
        ledger.read(0, 0, 0, 400, None);
        assert!(!ledger.may_read(0) && ledger.may_read(1));
    }

    #[test]
    fn the_span_from_the_position_is_bounded() {
        let mut ledger = Ledger::new(Credits { events: 100, partition_events: 100, ..CREDITS });
        ledger.assign(0, 1, 0);
        read(&mut ledger, 0, 0);
        for offset in 1..8 {
            let record = read(&mut ledger, 0, offset);
            ledger.settle(record);
        }
        assert!(!ledger.may_read(0), "one unsettled record holds back a span of 8");
    }

    #[test]
    fn a_record_that_was_read_is_not_read_again() {
        let mut ledger = ledger();
        read(&mut ledger, 0, 3);
        assert!(ledger.read(0, 3, 0, 1, None).is_none() && ledger.read(0, 2, 0, 1, None).is_none());
    }

    proptest! {
        /// In whatever order records are settled, the position never passes an unsettled one and nothing is left over.
        #[test]
        fn the_position_never_passes_an_unsettled_record(order in Just((0..40i64).collect::<Vec<_>>()).prop_shuffle(), step in 1i64..4) {
            let mut ledger = Ledger::new(Credits { events: 100, partition_events: 100, span: 100, ..CREDITS });
            ledger.assign(0, 1, 0);
            let refs: Vec<_> = (0..40).map(|i| read(&mut ledger, 0, i * step)).collect();
            let mut unsettled: std::collections::BTreeSet<i64> = refs.iter().map(|r| r.offset).collect();
            for i in order {
                let record = refs[usize::try_from(i).unwrap()];
                ledger.settle(record);
                unsettled.remove(&record.offset);
                let position = ledger.position(0).unwrap();
                prop_assert!(unsettled.first().is_none_or(|oldest| position <= *oldest));
            }
            prop_assert_eq!(ledger.position(0), Some(39 * step + 1));
            prop_assert_eq!((ledger.events, ledger.bytes), (0, 0));
        }
    }
}
