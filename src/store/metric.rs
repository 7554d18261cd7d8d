//! Metrics of the store's calls.

use std::{future::Future, sync::LazyLock, time::Duration};

use metrics::{Histogram, counter, describe_counter, describe_histogram, histogram};

use super::{Answer, Error};

const SECONDS: &str = "notifier_store_write_seconds";
const ROWS: &str = "notifier_store_batch_rows";
const ERRORS: &str = "notifier_store_errors_total";
const CLAMPED: &str = "notifier_clamped_timestamps_total";

static WRITE: LazyLock<[Histogram; 2]> = LazyLock::new(|| [histogram!(SECONDS), histogram!(ROWS)]);

/// What the store is called for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    Open,
    Read,
    Write,
    Check,
    Tidy,
}

impl Operation {
    const ALL: [Self; 5] = [Self::Open, Self::Read, Self::Write, Self::Check, Self::Tidy];

    fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Write => "write",
            Self::Check => "check",
            Self::Tidy => "tidy",
        }
    }

    fn failed(self, times: u64) {
        counter!(ERRORS, "operation" => self.as_str()).increment(times);
    }
}

/// Registers names and meanings.
pub fn describe() {
    describe_histogram!(SECONDS, "Time that a group of rows took until the store had committed it");
    describe_histogram!(ROWS, "Rows of one group");
    describe_counter!(ERRORS, "Calls that the store did not answer");
    describe_counter!(CLAMPED, "Events whose record's timestamp is of a day for which the log has no place");
    LazyLock::force(&WRITE);
    clamped(0);
    Operation::ALL.into_iter().for_each(|operation| operation.failed(0));
}

/// Events that stand on another day than their records say.
pub(super) fn clamped(events: u64) {
    counter!(CLAMPED).increment(events);
}

pub(super) fn wrote(rows: usize, time: Duration) {
    WRITE[0].record(time.as_secs_f64());
    #[expect(clippy::cast_precision_loss, reason = "a group has at most 512 rows")]
    WRITE[1].record(rows as f64);
}

/// The answer of a call; that it failed is counted. Every call of an engine that can fail passes here.
pub(super) fn counted<'a, T>(
    operation: Operation,
    call: impl Future<Output = Result<T, Error>> + Send + 'a,
) -> Answer<'a, T> {
    Box::pin(async move {
        let answer = call.await;
        if answer.is_err() {
            operation.failed(1);
        }
        answer
    })
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use futures_util::FutureExt as _;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn a_call_that_fails_is_counted_under_what_it_was_for() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let failed = || Err::<(), _>(Error::Unavailable { reason: "as planned".into() });
        metrics::with_local_recorder(&recorder, || {
            for answer in [failed(), Ok(()), failed()] {
                let _ = counted(Operation::Read, ready(answer)).now_or_never();
            }
        });
        let page = recorder.handle().render();
        assert!(page.contains("notifier_store_errors_total{operation=\"read\"} 2"), "{page}");
    }
}
