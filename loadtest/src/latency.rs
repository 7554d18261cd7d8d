//! Latencies as histograms, which can be sent between processes and put together.

use anyhow::{Context, Result};
use data_encoding::BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2Serializer};
use serde::{Deserialize, Serialize};

use crate::report::Report;

/// Highest latency told apart from others, in microseconds.
const LATENCY_MAX: u64 = 600_000_000;

/// The percentiles that stand in every report.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)];

/// The latencies of one run, in microseconds.
#[derive(Debug, Clone)]
pub struct Latencies {
    /// From when each event was due; without the calm ones and the hot user's.
    pub from_due: Histogram<u64>,
    /// Of the same events, from when they were given to Kafka.
    pub from_record: Histogram<u64>,
    /// From when it was due, before a disturbance.
    pub calm: Histogram<u64>,
    /// From when it was due, of the hot user.
    pub hot: Histogram<u64>,
    /// Of those of [`Self::from_due`], the ones of sessions whose connection has never ended.
    pub survivors: Histogram<u64>,
    /// From when it was due, of all since [`Self::take_recent`].
    recent: Histogram<u64>,
}

/// A histogram on its way between processes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Packed(String);

/// Those that a finished run has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PackedLatencies([Packed; 5]);

pub fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, LATENCY_MAX, 3).context("histogram")
}

impl Latencies {
    pub fn new() -> Result<Self> {
        let empty = histogram()?;
        Ok(Self {
            from_due: empty.clone(),
            from_record: empty.clone(),
            calm: empty.clone(),
            hot: empty.clone(),
            survivors: empty.clone(),
            recent: empty,
        })
    }

    pub fn record(&mut self, from_due: u64, from_record: u64, calm: bool, hot: bool) {
        self.recent.saturating_record(from_due);
        match (hot, calm) {
            (true, _) => self.hot.saturating_record(from_due),
            (false, true) => self.calm.saturating_record(from_due),
            (false, false) => {
                self.from_due.saturating_record(from_due);
                self.from_record.saturating_record(from_record);
            }
        }
    }

    /// Counts one that [`Self::record`] has counted as a survivor's too.
    pub fn record_survivor(&mut self, from_due: u64) {
        self.survivors.saturating_record(from_due);
    }

    /// What came since the last time.
    pub fn take_recent(&mut self) -> Result<Option<Packed>> {
        let packed = (!self.recent.is_empty()).then(|| Packed::new(&self.recent)).transpose();
        self.recent.reset();
        packed
    }

    pub fn pack(&self) -> Result<PackedLatencies> {
        let all = [&self.from_due, &self.from_record, &self.calm, &self.hot, &self.survivors];
        let [due, record, calm, hot, survivors] = all.map(Packed::new);
        Ok(PackedLatencies([due?, record?, calm?, hot?, survivors?]))
    }

    /// Adds another process's.
    pub fn add(&mut self, packed: &PackedLatencies) -> Result<()> {
        let Self { from_due, from_record, calm, hot, survivors, .. } = self;
        let own = [from_due, from_record, calm, hot, survivors];
        own.into_iter().zip(&packed.0).try_for_each(|(own, packed)| packed.add_to(own))
    }

    /// Adds the percentiles, in milliseconds, of those that there are.
    pub fn figures(&self, report: &mut Report) {
        for (name, histogram) in [
            ("latency_from_due", &self.from_due),
            ("latency_from_record", &self.from_record),
            ("calm_latency_from_due", &self.calm),
            ("hot_latency_from_due", &self.hot),
            ("survivors_latency_from_due", &self.survivors),
        ] {
            if !histogram.is_empty() {
                percentiles(report, name, histogram);
            }
        }
        if !self.calm.is_empty() && !self.from_due.is_empty() {
            let p99 = |histogram: &Histogram<u64>| histogram.value_at_quantile(0.99).max(1) as f64;
            report.value("p99_times_calm", p99(&self.from_due) / p99(&self.calm));
        }
    }
}

/// Adds the percentiles of one histogram of microseconds, in milliseconds.
pub fn percentiles(report: &mut Report, name: &str, histogram: &Histogram<u64>) {
    for (label, quantile) in QUANTILES {
        report.value(format!("{name}_{label}_ms"), histogram.value_at_quantile(quantile) as f64 / 1e3);
    }
}

/// A histogram of microseconds as a curve: (share of the events that are slower, milliseconds), from half of them
/// to the slowest.
pub fn curve(histogram: &Histogram<u64>) -> Vec<[f64; 2]> {
    let slowest = 1.0 / histogram.len().max(1) as f64;
    let mut shares: Vec<f64> =
        (0..).map(|step| 10f64.powf(-f64::from(step) / 8.0)).take_while(|&share| share > slowest).collect();
    shares.push(slowest);
    shares.into_iter().map(|share| [share, histogram.value_at_quantile(1.0 - share) as f64 / 1e3]).collect()
}

impl Packed {
    pub fn new(histogram: &Histogram<u64>) -> Result<Self> {
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(histogram, &mut bytes).context("packing a histogram")?;
        Ok(Self(BASE64.encode(&bytes)))
    }

    pub fn add_to(&self, histogram: &mut Histogram<u64>) -> Result<()> {
        let bytes = BASE64.decode(self.0.as_bytes()).context("a histogram that is no base64")?;
        let other: Histogram<u64> = Deserializer::new().deserialize(&mut &bytes[..]).context("no histogram")?;
        histogram.add(&other).context("a histogram of another size")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_processes_counted_is_one_histogram() {
        let mut parts = [Latencies::new().unwrap(), Latencies::new().unwrap()];
        for value in 1..=1_000 {
            parts[value as usize % 2].record(value * 1_000, 1, false, value > 900);
        }
        let mut whole = Latencies::new().unwrap();
        for part in &parts {
            whole.add(&part.pack().unwrap()).unwrap();
        }
        assert_eq!((whole.from_due.len(), whole.hot.len(), whole.calm.len()), (900, 100, 0));
        let mut report = Report::new("test");
        whole.figures(&mut report);
        let p50 = report.get("latency_from_due_p50_ms").unwrap();
        assert!((p50 - 450.0).abs() < 1.0, "{p50}");
        assert_eq!(report.get("p99_times_calm"), None);
    }

    #[test]
    fn recent_ones_are_taken_once() {
        let mut latencies = Latencies::new().unwrap();
        assert!(latencies.take_recent().unwrap().is_none());
        latencies.record(5, 5, true, false);
        let mut histogram = histogram().unwrap();
        latencies.take_recent().unwrap().expect("one").add_to(&mut histogram).unwrap();
        assert_eq!((histogram.len(), latencies.take_recent().unwrap().is_none()), (1, true));
    }

    #[test]
    fn a_curve_falls_in_share_and_rises_in_time_to_the_slowest() {
        let mut histogram = histogram().unwrap();
        (1..=10_000u64).for_each(|value| histogram.saturating_record(value * 100));
        let curve = curve(&histogram);
        assert!(curve.windows(2).all(|pair| pair[0][0] > pair[1][0] && pair[0][1] <= pair[1][1]), "{curve:?}");
        let last = curve.last().unwrap();
        assert!((last[1] - 1_000.0).abs() < 2.0, "{last:?}");
    }
}
