//! `notifier-loadtest run`: scenarios on servers, in turns, and what became of them.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::results::slo::Objectives;
use crate::results::{Results, Run, comparison, page, ratios};
use crate::scenario::Scenario;
use crate::{bench, process, target};

/// An objective was missed, and nothing else was wrong.
const MISSED: u8 = 3;

/// What `notifier-loadtest run` is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Scenarios: names of those that come with this tool (see `scenarios`), or TOML files
    #[arg(required = true)]
    scenarios: Vec<String>,
    #[command(flatten)]
    target: target::Args,
    /// How often each is run
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Sessions, instead of the scenario's (of several steps the highest; the others in proportion)
    #[arg(long)]
    sessions: Option<usize>,
    /// Events a second at the highest, instead of the scenario's
    #[arg(long)]
    rate: Option<f64>,
    /// Length of the arrivals, or of the idle time, instead of the scenario's, e.g. 20s
    #[arg(long, value_parser = humantime::parse_duration)]
    length: Option<Duration>,
    /// Of a backlog, and of events for users who are away: how many, instead of the scenario's
    #[arg(long)]
    events: Option<u64>,
    /// How late the generator itself may be at its 99th percentile, instead of the scenario's (and Kafka's confirmations,
    /// if that is more than the scenario allows them)
    #[arg(long, value_parser = humantime::parse_duration)]
    lateness_max: Option<Duration>,
    /// Sessions of each process of clients
    #[arg(long, default_value_t = 10_000)]
    per_process: usize,
    /// What has to hold, e.g. "p99<50ms,loss=0": exit code 3 when it does not
    #[arg(long)]
    slo: Option<Objectives>,
    /// Writes everything as JSON, for `compare` and `page`
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes one HTML page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// What `notifier-loadtest compare` is told.
#[derive(Debug, clap::Args)]
pub struct CompareArgs {
    /// Results before
    before: PathBuf,
    /// Results after
    after: PathBuf,
}

/// What `notifier-loadtest page` is told.
#[derive(Debug, clap::Args)]
pub struct PageArgs {
    /// Results; those of several files stand on one page
    #[arg(required = true)]
    json: Vec<PathBuf>,
    /// The page
    #[arg(long, short, value_name = "FILE", default_value = "results.html")]
    output: PathBuf,
}

impl Args {
    fn scenario(&self, name: &str) -> Result<Scenario> {
        let mut scenario = Scenario::load(name)?;
        if let (Some(count), Some(events)) = (self.events, &mut scenario.events) {
            events.backlog = events.backlog.map(|_| count);
            events.away = events.away.map(|_| count);
        }
        if let Some(max) = self.lateness_max {
            scenario.allow_lateness(max);
        }
        scenario.resize(self.sessions, self.rate, self.length).with_context(|| format!("scenario {name}"))?;
        Ok(scenario)
    }
}

/// Runs all, writes what was asked for and says what was wrong.
///
/// # Errors
///
/// When nothing could be run; what goes wrong in a run is in the results, and the exit code is 1.
pub fn run(args: &Args) -> Result<ExitCode> {
    let scenarios: Vec<_> = args.scenarios.iter().map(|name| args.scenario(name)).collect::<Result<_>>()?;
    let objectives = |scenario: &Scenario| -> Result<Option<Objectives>> {
        let own =
            scenario.slo.as_deref().map(str::parse).transpose().with_context(|| format!("{}: slo", scenario.name))?;
        Ok(args.slo.clone().or(own))
    };
    process::raise_descriptors()?;
    for scenario in &scenarios {
        objectives(scenario)?;
        for kind in &args.target.target {
            args.target.check(scenario, *kind)?;
        }
        // The servers that are started inherit this process's limit; one that runs has its own.
        if args.target.starts_servers() {
            process::Process::current().check_descriptors("the server", scenario.sessions_of_a_node())?;
        }
    }
    let mut runs = Vec::new();
    for scenario in &scenarios {
        eprintln!("{}: {}", scenario.name, scenario.question);
        for round in 1..=args.rounds {
            for &kind in &args.target.target {
                let mut run = bench::run(scenario, &args.target, kind, round, args.per_process);
                run.objectives = objectives(scenario)?.map(|objectives| objectives.judge(&run)).unwrap_or_default();
                if let Some(error) = &run.error {
                    eprintln!("{} on {}, round {round}: {error}", scenario.name, kind.name());
                }
                runs.push(run);
                // A later run that hangs or is interrupted takes nothing of the earlier ones with it.
                save(args, &runs)?;
            }
        }
    }
    println!("{}", ratios::markdown(&runs));
    let (missed, total) = verdicts(&runs);
    let faults = runs.iter().flat_map(Run::faults).count();
    Ok(match (faults, missed) {
        (0, 0) => ExitCode::SUCCESS,
        (0, missed) => {
            eprintln!("{missed} of {total} objectives missed");
            ExitCode::from(MISSED)
        }
        (faults, _) => {
            eprintln!("error: {faults} faults: see below the table");
            ExitCode::FAILURE
        }
    })
}

/// Prints what became of the objectives; (missed, all).
fn verdicts(runs: &[Run]) -> (usize, usize) {
    let (mut missed, mut total) = (0, 0);
    for run in runs {
        for verdict in &run.objectives {
            total += 1;
            missed += usize::from(!verdict.is_met);
            let found = match &verdict.worst {
                Some((phase, value)) => format!("{value} in {phase}"),
                None => "there is no such figure".to_owned(),
            };
            let word = if verdict.is_met { "met" } else { "MISSED" };
            println!(
                "- {} on {}, round {}: {}: {word} ({found})",
                run.scenario, run.target, run.round, verdict.objective
            );
        }
    }
    (missed, total)
}

fn save(args: &Args, runs: &[Run]) -> Result<()> {
    let results = Results::new(runs.to_vec());
    if let Some(path) = &args.json {
        results.write(path)?;
    }
    if let Some(path) = &args.html {
        fs::write(path, page::html(&[(None, &results)])?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Says what changed between two files.
pub fn compare(args: &CompareArgs) -> Result<ExitCode> {
    let rows = comparison::compare(&Results::read(&args.before)?, &Results::read(&args.after)?);
    ensure!(!rows.is_empty(), "the two have no figure in common: other scenarios, or every run has a fault");
    print!("{}", comparison::text(&rows));
    Ok(ExitCode::SUCCESS)
}

/// Makes a page of files.
pub fn page(args: &PageArgs) -> Result<ExitCode> {
    let results: Vec<_> = args.json.iter().map(|path| Results::read(path)).collect::<Result<_>>()?;
    let names = names(&args.json)?;
    let files: Vec<_> = names.iter().map(|name| (names.len() > 1).then_some(name.as_str())).zip(&results).collect();
    fs::write(&args.output, page::html(&files)?).with_context(|| format!("cannot write {}", args.output.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// What the files are called on a page: their names without the ending, or, where two would be the same, whole paths.
fn names(paths: &[PathBuf]) -> Result<Vec<String>> {
    let distinct = |names: Vec<String>| {
        let different: HashSet<_> = names.iter().collect();
        (different.len() == names.len()).then_some(names)
    };
    let stems = paths.iter().map(|path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
    let whole = || distinct(paths.iter().map(|path| path.display().to_string()).collect());
    distinct(stems.collect()).or_else(whole).context("a file was given twice")
}

/// Lists the scenarios that come with the tool.
pub fn list() -> Result<ExitCode> {
    for (name, text) in Scenario::bundled() {
        println!("{name:20}{}", Scenario::parse(name, text)?.question);
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_apart_by_as_little_as_possible() {
        let names = |paths: &[&str]| names(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(names(&["x/before.json", "y/after.json"]).unwrap(), ["before", "after"]);
        assert_eq!(names(&["x/a.json", "y/a.json"]).unwrap(), ["x/a.json", "y/a.json"]);
        assert!(names(&["a.json", "a.json"]).unwrap_err().to_string().contains("twice"));
    }
}
