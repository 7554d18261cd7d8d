//! Figures of several runs side by side, as the terminal and the page show them: medians, and ratios to the bare server's
//! of the same round. Figures with a fault are left out.

use serde::Serialize;

use super::Run;
use crate::report::Spread;

/// The server that the others are compared with.
const BASE: &str = "floor";

/// Runs of one file.
#[derive(Debug, Clone, Copy)]
pub struct Set<'a> {
    /// What tells it from the others; `None` when there are none.
    pub name: Option<&'a str>,
    pub runs: &'a [Run],
}

#[derive(Debug, Serialize)]
pub struct Table {
    pub columns: Vec<Column>,
    pub rows: Vec<Row>,
}

/// One server of one file.
#[derive(Debug, Serialize)]
pub struct Column {
    pub name: String,
    /// What each figure is divided by, in a second column.
    pub base: Option<&'static str>,
    #[serde(skip)]
    set: usize,
    #[serde(skip)]
    target: String,
}

/// One figure of one phase.
#[derive(Debug, Serialize)]
pub struct Row {
    pub scenario: String,
    pub phase: String,
    pub figure: String,
    /// One for each column.
    pub cells: Vec<Cell>,
}

/// Texts for people; `None`: there is nothing that counts.
#[derive(Debug, Default, Serialize)]
pub struct Cell {
    pub figure: Option<String>,
    pub ratio: Option<String>,
}

/// What a server is called where the runs of several files are shown.
pub fn column_name(target: &str, set: Option<&str>) -> String {
    set.map_or(target.to_owned(), |set| format!("{target}, {set}"))
}

impl Table {
    /// Of the figures with these names, or of all.
    pub fn of(sets: &[Set<'_>], names: Option<&[&str]>) -> Self {
        let columns: Vec<_> = sets.iter().enumerate().flat_map(|(number, set)| columns(number, set)).collect();
        let mut rows: Vec<Row> = Vec::new();
        for (scenario, phase) in phases(sets) {
            let all = names.map_or_else(|| figures(sets, scenario, phase), <[&str]>::to_vec);
            rows.extend(all.into_iter().filter_map(|figure| row(sets, &columns, scenario, phase, figure)));
        }
        Self { columns, rows }
    }
}

fn columns(number: usize, set: &Set<'_>) -> Vec<Column> {
    let mut targets: Vec<&str> = Vec::new();
    each_once(&mut targets, set.runs.iter().map(|run| run.target.as_str()));
    targets.sort_by_key(|target| *target != BASE);
    let base = targets.first().copied().filter(|target| *target == BASE).map(|_| BASE);
    let column = |target: &str| Column {
        name: column_name(target, set.name),
        base: base.filter(|base| target != *base),
        set: number,
        target: target.to_owned(),
    };
    targets.into_iter().map(column).collect()
}

/// Scenarios with their phases, in the order in which they come.
fn phases<'a>(sets: &[Set<'a>]) -> Vec<(&'a str, &'a str)> {
    let mut phases = Vec::new();
    for run in sets.iter().flat_map(|set| set.runs) {
        each_once(&mut phases, run.phases.iter().map(|phase| (run.scenario.as_str(), phase.report.scenario())));
    }
    phases
}

fn figures<'a>(sets: &[Set<'a>], scenario: &str, phase: &str) -> Vec<&'a str> {
    let runs = sets.iter().flat_map(|set| set.runs).filter(|run| run.scenario == scenario);
    let reports = runs.flat_map(|run| &run.phases).map(|phase| &phase.report);
    let values = reports.filter(|report| report.scenario() == phase).flat_map(|report| report.values());
    let mut names = Vec::new();
    each_once(&mut names, values.map(|(name, _)| name.as_str()));
    names
}

fn each_once<T: PartialEq>(all: &mut Vec<T>, more: impl Iterator<Item = T>) {
    for one in more {
        if !all.contains(&one) {
            all.push(one);
        }
    }
}

/// `None` when no run has it without a fault.
fn row(sets: &[Set<'_>], columns: &[Column], scenario: &str, phase: &str, figure: &str) -> Option<Row> {
    let of = |set: usize, target: &str| -> Vec<(usize, f64)> {
        let runs = sets[set].runs.iter().filter(|run| run.scenario == scenario && run.target == target);
        runs.filter_map(|run| Some((run.round, run.figure(phase, figure)?))).collect()
    };
    let cells: Vec<_> = columns
        .iter()
        .map(|column| {
            let values = of(column.set, &column.target);
            let ratio = column.base.and_then(|base| ratio(&values, &of(column.set, base)));
            Cell { figure: text(values.iter().map(|(_, value)| *value)), ratio }
        })
        .collect();
    let (scenario, phase, figure) = (scenario.to_owned(), phase.to_owned(), figure.to_owned());
    cells.iter().any(|cell| cell.figure.is_some()).then_some(Row { scenario, phase, figure, cells })
}

/// Each divided by the base of its round.
fn ratio(values: &[(usize, f64)], base: &[(usize, f64)]) -> Option<String> {
    let of_round = |round| base.iter().find_map(|(other, base)| (*other == round).then_some(*base));
    text(values.iter().filter_map(|&(round, value)| Some(value / of_round(round)?)).filter(|ratio| ratio.is_finite()))
}

fn text(values: impl Iterator<Item = f64>) -> Option<String> {
    Spread::of(values).map(|spread| spread.to_string())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::report::Report;
    use crate::results::Phase;
    use crate::scenario::Scenario;

    /// A run of the first scenario with one phase, `events`, and one figure.
    pub fn run(target: &str, round: usize, cpu: f64, fault: Option<&str>) -> Run {
        let (name, text) = Scenario::bundled().next().unwrap();
        let mut run = Run::new(&Scenario::parse(name, text).unwrap(), target, round);
        let mut report = Report::new("events");
        report.value("server_cpu_us_per_delivery", cpu);
        fault.into_iter().for_each(|fault| report.fault(fault));
        run.phases.push(Phase { report, curves: Vec::new() });
        run
    }

    /// Three rounds whose ratios to the floor are 2 and 3, and one that has a fault.
    pub fn rounds() -> Vec<Run> {
        vec![
            run("notifier", 1, 10.0, None),
            run("floor", 1, 5.0, None),
            run("notifier", 2, 30.0, None),
            run("floor", 2, 10.0, None),
            run("notifier", 3, 1.0, Some("3 lost")),
            run("floor", 3, 10.0, None),
        ]
    }

    fn shown(table: &Table) -> Vec<(&str, &str, &str)> {
        let cells = table.columns.iter().zip(&table.rows[0].cells);
        let text = |cell: &Option<String>| cell.clone().unwrap_or_default().leak() as &str;
        cells.map(|(column, cell)| (column.name.as_str(), text(&cell.figure), text(&cell.ratio))).collect()
    }

    #[test]
    fn ratios_are_within_a_round_and_faulty_figures_are_left_out() {
        let runs = rounds();
        let table = Table::of(&[Set { name: None, runs: &runs }], None);
        assert_eq!(table.rows.len(), 1);
        let expected = [("floor", "10.0 (5.00–10.0)", ""), ("notifier", "20.0 (10.0–30.0)", "2.50 (2.00–3.00)")];
        assert_eq!(shown(&table), expected);
    }

    #[test]
    fn a_run_that_ended_early_is_left_out_and_without_any_there_is_no_row() {
        let mut runs = vec![run("notifier", 1, 10.0, None)];
        runs[0].error = Some("died".to_owned());
        assert!(Table::of(&[Set { name: None, runs: &runs }], None).rows.is_empty());
    }

    #[test]
    fn each_file_has_columns_and_a_base_of_its_own() {
        let before = [run("notifier", 1, 10.0, None), run("floor", 1, 5.0, None)];
        let after = [run("notifier", 1, 16.0, None), run("floor", 1, 4.0, None)];
        let later = [run("notifier", 1, 7.0, None)];
        let sets = [("before", &before[..]), ("after", &after[..]), ("later", &later[..])];
        let table = Table::of(&sets.map(|(name, runs)| Set { name: Some(name), runs }), None);
        let expected = [
            ("floor, before", "5.00 (5.00–5.00)", ""),
            ("notifier, before", "10.0 (10.0–10.0)", "2.00 (2.00–2.00)"),
            ("floor, after", "4.00 (4.00–4.00)", ""),
            ("notifier, after", "16.0 (16.0–16.0)", "4.00 (4.00–4.00)"),
            ("notifier, later", "7.00 (7.00–7.00)", ""),
        ];
        assert_eq!(shown(&table), expected);
    }
}
