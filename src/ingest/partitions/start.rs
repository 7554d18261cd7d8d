//! Where a partition begins: the position that the store has of it, as far as the log has that.

use std::{collections::BTreeMap, time::Duration};

use rdkafka::{Offset, TopicPartitionList, consumer::Consumer as _, error::KafkaError};

use super::{ASK, Obstacle, Partitions};
use crate::{ingest::consumer::list, store::positions::Known};

/// How long a broker may take to say where its partitions begin and end: those of others wait for it.
const LEADER: Duration = Duration::from_secs(3);
const NO_PANIC: &str = "a question does not panic";

/// A partition, where it begins for us, and where it ends now.
pub(super) type Start = (i32, i64, i64);

impl Partitions {
    /// Where each of these partitions begins for us, and where it ends now; of those that nobody else has. And why some
    /// are missing of which no answer came.
    pub(super) fn starts(&mut self, partitions: &[i32]) -> Result<(Vec<Start>, Option<KafkaError>), Obstacle> {
        if partitions.is_empty() {
            return Ok((Vec::new(), None));
        }
        let asked = list(&self.config.topic, partitions.iter().map(|p| (*p, 0)));
        let copies = offsets(&self.consumer.committed_offsets(asked, ASK)?)?;
        // What is taken and cannot begin should not be kept from others who can, once they are to read it.
        let had_more = std::mem::replace(&mut self.may_have_more, true);
        let taken = self.keeper.take(partitions)?;
        let count = taken.len();
        let copy = |partition| copies.get(&partition).copied();
        let ahead = taken.iter().filter_map(|(partition, known)| Some((*partition, ahead(*known, copy(*partition))?)));
        let ahead: Vec<_> = ahead.collect();
        if !ahead.is_empty() {
            tracing::error!(partitions = ?ahead, "positions committed to kafka are ahead of the store's: it has lost commits");
            self.keeper.went_back(&ahead)?;
        }
        let (logs, unanswered) = self.logs(taken.iter().map(|(partition, _)| *partition));
        let mut starts = Vec::with_capacity(taken.len());
        for (partition, known) in taken {
            let Some(&(low, high)) = logs.get(&partition) else { continue };
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
        self.may_have_more = had_more || begun.len() < count;
        starts.retain(|(partition, ..)| begun.contains(partition));
        Ok((starts, unanswered))
    }

    /// Whether all that a broker leads could be read, without taking any of it.
    pub(super) fn try_all(&self) -> Result<(), Obstacle> {
        let asked = list(&self.config.topic, self.leaders.keys().map(|p| (*p, 0)));
        offsets(&self.consumer.committed_offsets(asked, ASK)?)?;
        self.logs(self.leaders.keys().copied()).1.map_or(Ok(()), |error| Err(error.into()))
    }

    /// The first offset of each of these partitions, and the one behind the last, as far as an answer comes; else why
    /// not. One question per broker: one that has nothing to send answers behind a fetch, half a second later, and one by
    /// one that adds up. A broker that does not answer keeps nobody from the others' partitions.
    fn logs(&self, partitions: impl Iterator<Item = i32>) -> (BTreeMap<i32, (i64, i64)>, Option<KafkaError>) {
        let mut brokers = BTreeMap::<_, Vec<i32>>::new();
        partitions.for_each(|partition| brokers.entry(self.leaders.get(&partition)).or_default().push(partition));
        let (consumer, topic) = (&self.consumer, &*self.config.topic);
        // Where a time is asked for, Kafka takes the first and the last offset as well.
        let ask = |partitions: &[i32], which: Offset| {
            let mut times = TopicPartitionList::new();
            for partition in partitions {
                times.add_partition_offset(topic, *partition, which)?;
            }
            offsets(&consumer.offsets_for_times(times, LEADER)?)
        };
        let (mut logs, mut failure) = (BTreeMap::new(), None);
        std::thread::scope(|scope| {
            let asked = brokers.values().map(|partitions| {
                let first = scope.spawn(|| ask(partitions, Offset::Beginning));
                (first, scope.spawn(|| ask(partitions, Offset::End)))
            });
            for (first, end) in asked.collect::<Vec<_>>() {
                match (first.join().expect(NO_PANIC), end.join().expect(NO_PANIC)) {
                    (Ok(first), Ok(end)) => logs.extend(
                        first
                            .into_iter()
                            .filter_map(|(partition, low)| Some((partition, (low, *end.get(&partition)?)))),
                    ),
                    (Err(error), _) | (_, Err(error)) => failure = Some(error),
                }
            }
        });
        (logs, failure)
    }
}

/// The partitions of an answer that have an offset in it.
fn offsets(answer: &TopicPartitionList) -> Result<BTreeMap<i32, i64>, KafkaError> {
    let mut offsets = BTreeMap::new();
    for one in answer.elements() {
        one.error()?;
        if let Offset::Offset(offset) = one.offset() {
            offsets.insert(one.partition(), offset);
        }
    }
    Ok(offsets)
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
