//! Metrics of shards.

use metrics::{counter, describe_counter};

const UNMARKED: &str = "notifier_shards_unmarked_total";

pub(super) fn describe() {
    describe_counter!(
        UNMARKED,
        "Shards taken for which a node did not say in time which connections it has: transient events may have missed some"
    );
    counter!(UNMARKED).increment(0);
}

pub(super) fn unmarked(shards: usize) {
    counter!(UNMARKED).increment(shards as u64);
}
