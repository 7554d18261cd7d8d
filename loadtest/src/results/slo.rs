//! Objectives: what figures have to be, e.g. `p99<50ms,loss=0`.

use std::slice;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{Phase, Run, figures};

/// Short names of figures.
const NAMES: [(&str, &str); 11] = [
    ("p50", "latency_from_due_p50_ms"),
    ("p99", "latency_from_due_p99_ms"),
    ("p999", "latency_from_due_p999_ms"),
    ("max", "latency_from_due_max_ms"),
    ("connect_p99", "connect_latency_p99_ms"),
    ("loss", "lost"),
    ("duplicates", "duplicates"),
    ("reordered", "reordered"),
    ("gaps", "gaps"),
    ("cpu", "server_cpu_us_per_delivery"),
    ("memory", "rss_highest_bytes"),
];

/// All of them have to hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Objectives(Vec<Objective>);

#[derive(Debug, Clone, PartialEq)]
struct Objective {
    text: String,
    figure: String,
    comparison: Comparison,
    bound: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Less,
    AtMost,
    Equal,
    AtLeast,
    Greater,
}

/// What became of one objective in one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    pub objective: String,
    pub is_met: bool,
    /// The figure that is furthest off, with its phase; `None` when there was none.
    pub worst: Option<(String, f64)>,
}

impl FromStr for Objectives {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let objectives: Vec<_> = text.split(',').map(Objective::parse).collect::<Result<_>>()?;
        Ok(Self(objectives))
    }
}

impl Objectives {
    /// Each by its worst phase; one of whose figure there is none is not met.
    pub fn judge(&self, run: &Run) -> Vec<Verdict> {
        self.0.iter().map(|objective| objective.judge(&run.phases)).collect()
    }

    /// The same of one phase alone.
    pub fn judge_phase(&self, phase: &Phase) -> Vec<Verdict> {
        self.0.iter().map(|objective| objective.judge(slice::from_ref(phase))).collect()
    }
}

impl Objective {
    fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let at =
            text.find(['<', '=', '>']).with_context(|| format!("{text:?}: needs <, <=, =, >= or >, as in p99<50ms"))?;
        let (name, rest) = (text[..at].trim(), &text[at..]);
        let operators = [
            ("<=", Comparison::AtMost),
            (">=", Comparison::AtLeast),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
            ("=", Comparison::Equal),
        ];
        let (bound, comparison) = operators
            .iter()
            .find_map(|(sign, comparison)| rest.strip_prefix(sign).map(|bound| (bound.trim(), *comparison)))
            .context("an operator")?;
        ensure!(!name.is_empty(), "{text:?}: which figure?");
        let figure = NAMES.iter().find_map(|(short, figure)| (*short == name).then_some(*figure));
        let figure = match figure {
            Some(figure) => figure,
            None if figures::is_known(name) => name,
            None => {
                let known: Vec<_> = NAMES.iter().map(|(short, _)| *short).collect();
                bail!(
                    "{text:?}: no phase has a figure {name}; there are {}, and every name that a report has",
                    known.join(", ")
                );
            }
        };
        let bound = in_unit_of(figure, bound).with_context(|| format!("{text:?}: the bound"))?;
        let objective = Self { text: text.to_owned(), figure: figure.to_owned(), comparison, bound };
        ensure!(
            !figures::FAULTS.contains(&figure) || (objective.holds(0.0) && !objective.holds(1.0)),
            "{text:?}: one is a fault of the run already, whatever is asked for: only {name}=0 can be"
        );
        Ok(objective)
    }

    fn judge(&self, phases: &[Phase]) -> Verdict {
        let figures = phases
            .iter()
            .filter_map(|phase| Some((phase.report.scenario().to_owned(), phase.report.get(&self.figure)?)));
        let worst = figures.max_by(|(_, a), (_, b)| self.excess(*a).total_cmp(&self.excess(*b)));
        let is_met = worst.as_ref().is_some_and(|(_, value)| self.holds(*value));
        Verdict { objective: self.text.clone(), is_met, worst }
    }

    /// How far off it is; what holds is below.
    fn excess(&self, value: f64) -> f64 {
        match self.comparison {
            Comparison::Less | Comparison::AtMost => value - self.bound,
            Comparison::Equal => (value - self.bound).abs(),
            Comparison::AtLeast | Comparison::Greater => self.bound - value,
        }
    }

    fn holds(&self, value: f64) -> bool {
        match self.comparison {
            Comparison::Less => value < self.bound,
            Comparison::AtMost => value <= self.bound,
            Comparison::Equal => value == self.bound,
            Comparison::AtLeast => value >= self.bound,
            Comparison::Greater => value > self.bound,
        }
    }
}

/// A number with a unit or without, in the unit that ends the figure's name.
fn in_unit_of(figure: &str, text: &str) -> Result<f64> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number: f64 = text[..digits].parse().with_context(|| format!("{text:?} is no number"))?;
    let is = |unit: &str| figure.ends_with(unit) || figure.contains(&format!("{unit}_per_"));
    let factor = match text[digits..].trim() {
        "" => 1.0,
        "us" | "µs" if is("_ms") => 1e-3,
        "ms" if is("_ms") => 1.0,
        "s" if is("_ms") => 1e3,
        "us" | "µs" if is("_us") => 1.0,
        "ms" if is("_us") => 1e3,
        "ms" if is("_seconds") => 1e-3,
        "s" if is("_seconds") => 1.0,
        "KiB" if is("_bytes") => 1024.0,
        "MiB" if is("_bytes") => 1_048_576.0,
        "GiB" if is("_bytes") => 1_073_741_824.0,
        "KiB" if is("_kib") => 1.0,
        "%" if figure.contains("percent") => 1.0,
        unit => bail!("{unit:?} is no unit of {figure}"),
    };
    Ok(number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;
    use crate::scenario::Scenario;

    fn run(phases: &[&[(&str, f64)]]) -> Run {
        let (name, text) = Scenario::bundled().next().unwrap();
        let mut run = Run::new(&Scenario::parse(name, text).unwrap(), "test", 1);
        for (number, figures) in phases.iter().enumerate() {
            let mut report = Report::new(format!("phase {number}"));
            figures.iter().for_each(|(name, value)| report.value(*name, *value));
            run.phases.push(Phase { report, curves: Vec::new() });
        }
        run
    }

    fn met(objectives: &str, run: &Run) -> Vec<bool> {
        objectives.parse::<Objectives>().unwrap().judge(run).iter().map(|verdict| verdict.is_met).collect()
    }

    #[test]
    fn the_worst_phase_decides_and_units_are_known() {
        let run = run(&[
            &[("latency_from_due_p99_ms", 40.0), ("lost", 0.0)],
            &[("latency_from_due_p99_ms", 60.0)],
            &[("rss_bytes", 2e6)],
        ]);
        assert_eq!(met("p99<50ms,loss=0", &run), [false, true]);
        assert_eq!(met("p99<=0.06s, p99>60, p99>=60000us", &run), [true, false, false]);
        assert_eq!(met("rss_bytes<2MiB,loss<1,lost<=0", &run), [true, true, true]);
        let verdict = &"p99<50ms".parse::<Objectives>().unwrap().judge(&run)[0];
        assert_eq!(verdict.worst, Some(("phase 1".to_owned(), 60.0)));
    }

    #[test]
    fn an_objective_without_a_figure_is_not_met() {
        assert_eq!(met("loss=0", &run(&[])), [false]);
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        for (wrong, said) in [
            ("p99", "needs <"),
            ("p98<5ms", "no phase has a figure p98"),
            ("latency_from_due_p98_ms<5ms", "no phase has a figure latency_from_due_p98_ms"),
            ("loss<10", "only loss=0 can be"),
            ("reordered>0", "only reordered=0 can be"),
            ("p99<fast", "no number"),
            ("p99<5MiB", "no unit"),
            ("loss=0,", "needs <"),
            ("<5", "which figure"),
        ] {
            let error = format!("{:#}", wrong.parse::<Objectives>().unwrap_err());
            assert!(error.contains(said), "{wrong}: {error}");
        }
    }
}
