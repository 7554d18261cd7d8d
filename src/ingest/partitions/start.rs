//! Where a partition begins: the position that the store has of it, as far as the log has that.

use rdkafka::{Offset, consumer::Consumer as _};

use super::{ASK, Obstacle, Partitions};
use crate::{ingest::consumer::list, store::positions::Known};

impl Partitions {
    /// Where each of these partitions begins for us, and where it ends now.
    pub(super) fn starts(&self, partitions: &[i32]) -> Result<Vec<(i32, i64, i64)>, Obstacle> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let topic = &self.config.topic;
        let asked = list(topic, partitions.iter().map(|p| (*p, 0)));
        let committed = self.consumer.committed_offsets(asked, ASK)?;
        let copy = |partition| match committed.find_partition(topic, partition)?.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        let taken = self.keeper.take(partitions)?;
        let ahead = taken.iter().filter_map(|(partition, known)| Some((*partition, ahead(*known, copy(*partition))?)));
        let ahead: Vec<_> = ahead.collect();
        if !ahead.is_empty() {
            tracing::error!(partitions = ?ahead, "positions committed to kafka are ahead of the store's: it has lost commits");
            self.keeper.went_back(&ahead)?;
        }
        let mut starts = Vec::with_capacity(partitions.len());
        for (partition, known) in taken {
            let (low, high) = self.consumer.fetch_watermarks(topic, partition, ASK)?;
            let position = match known {
                Known::At { position, .. } => Some(position),
                Known::Foreign => {
                    if self.config.is_cluster_new {
                        tracing::debug!(partition, "a new cluster: beginning at the log's start");
                    } else {
                        tracing::warn!(partition, "the position was of another cluster: beginning at the log's start");
                    }
                    Some(low)
                }
                Known::Nothing => copy(partition).max(self.released.get(&partition).copied()),
            };
            let from_latest = self.config.from_latest && !self.knows_topic;
            starts.push((partition, start(partition, position, (low, high), from_latest), high));
        }
        let begin: Vec<_> = starts.iter().map(|(partition, start, _)| (*partition, *start)).collect();
        let begun = self.keeper.begin(&begin)?;
        starts.retain(|(partition, ..)| begun.contains(partition));
        Ok(starts)
    }
}

/// Kafka's copy, when it is ahead of what the store knows and that is news: it is written after the store's.
fn ahead(known: Known, copy: Option<i64>) -> Option<i64> {
    let Known::At { position, ahead } = known else { return None };
    copy.filter(|copy| *copy > position && Some(*copy) > ahead)
}

/// The contract's rule: the stored position; one that the log does not have any more, or not yet, is replaced.
fn start(partition: i32, known: Option<i64>, (low, high): (i64, i64), from_latest: bool) -> i64 {
    match known {
        None if from_latest => high,
        None => low,
        Some(position) if position > high => {
            tracing::error!(
                partition,
                position,
                high,
                "the log ends before our position: beginning again at its start"
            );
            low
        }
        Some(position) if position < low => {
            tracing::error!(partition, position, low, "records were deleted before they were read");
            low
        }
        Some(position) => position,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_ahead_of_the_stores_position_is_noticed_once() {
        let at = |position, ahead| Known::At { position, ahead };
        assert_eq!(ahead(at(10, None), Some(12)), Some(12));
        assert_eq!(ahead(at(10, None), Some(10)), None);
        assert_eq!(ahead(at(10, None), None), None);
        assert_eq!(ahead(at(10, Some(12)), Some(12)), None, "seen before");
        assert_eq!(ahead(at(10, Some(12)), Some(13)), Some(13));
        assert_eq!(ahead(Known::Nothing, Some(5)), None, "a new store begins at the copy");
    }

    #[test]
    fn a_partition_begins_at_its_position_when_the_log_has_it() {
        let log = (10, 20);
        assert_eq!(start(0, Some(15), log, false), 15);
        assert_eq!(start(0, Some(20), log, true), 20);
        assert_eq!(start(0, None, log, false), 10);
        assert_eq!(start(0, None, log, true), 20);
        assert_eq!(start(0, Some(21), log, true), 10, "a position beyond the end is another log's");
        assert_eq!(start(0, Some(3), log, true), 10);
    }
}
