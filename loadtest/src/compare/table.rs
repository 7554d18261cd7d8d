//! What the tables of all comparisons are made of: figures by round, their spread, ratios inside a round.

use std::fmt::Write as _;

use super::Sample;
use crate::report::Spread;

/// A scenario and the name of its figure.
pub type Figure = (&'static str, &'static str);

/// One server's figures, with their rounds; faulty ones are left out.
pub fn figures(samples: &[Sample], server: &str, (scenario, name): Figure) -> Vec<(usize, f64)> {
    samples
        .iter()
        .filter(|sample| sample.server == server)
        .filter_map(|sample| Some((sample.round, sample.value(scenario, name)?)))
        .collect()
}

/// Compares each figure with the base of the same round, where there is one.
pub fn against(figures: &[(usize, f64)], base: &[(usize, f64)], compare: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    let of_round = |round| base.iter().find_map(|(other, base)| (*other == round).then_some(*base));
    figures.iter().filter_map(|&(round, value)| Some(compare(value, of_round(round)?))).collect()
}

/// Each figure divided by the base of the same round.
pub fn ratios(figures: &[(usize, f64)], base: &[(usize, f64)]) -> Vec<f64> {
    against(figures, base, |value, base| value / base).into_iter().filter(|ratio| ratio.is_finite()).collect()
}

pub fn values(figures: &[(usize, f64)]) -> impl Iterator<Item = f64> {
    figures.iter().map(|(_, value)| *value)
}

/// A cell: the spread, or a dash without values.
pub fn cell(values: impl IntoIterator<Item = f64>) -> String {
    Spread::of(values).map_or("–".to_owned(), |spread| spread.to_string())
}

pub fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("writing to a String cannot fail");
}

/// Names what is not in the table.
pub fn faults(text: &mut String, samples: &[Sample]) {
    for fault in samples.iter().flat_map(Sample::faults) {
        line(text, &format!("- FAULT, left out of the table: {fault}"));
    }
}
