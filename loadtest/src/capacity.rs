//! `notifier-loadtest capacity`: more and more, until an objective breaks.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::bench::{self, Bench};
use crate::report::{Report, number};
use crate::results::slo::Objectives;
use crate::results::{Phase, Results, Run};
use crate::scenario::{Events, Scenario, Steps};
use crate::schedule::Schedule;
use crate::{process, target};

/// What `notifier-loadtest capacity` is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Scenario with arrivals: its sessions, users and events, but for what grows
    scenario: String,
    #[command(flatten)]
    target: target::Args,
    /// What has to hold
    #[arg(long, default_value = "p99<100ms,loss=0")]
    slo: Objectives,
    /// What grows: events a second, or sessions at the scenario's rate for each
    #[arg(long, value_enum, default_value = "rate")]
    grow: Grow,
    /// The first level
    #[arg(long, default_value_t = 1_000.0)]
    from: f64,
    /// Each level is so many times the one before
    #[arg(long, default_value_t = 1.5)]
    factor: f64,
    /// The last level, when nothing breaks before
    #[arg(long, default_value_t = 200_000.0)]
    to: f64,
    /// How long each level lasts, the first second of which is not measured
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    each: Duration,
    /// Sessions, instead of the scenario's
    #[arg(long)]
    sessions: Option<usize>,
    /// How late the generator itself may be at its 99th percentile, instead of the scenario's
    #[arg(long, value_parser = humantime::parse_duration)]
    lateness_max: Option<Duration>,
    /// Sessions of each process of clients
    #[arg(long, default_value_t = 10_000)]
    per_process: usize,
    /// Writes everything as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<std::path::PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Grow {
    Rate,
    Sessions,
}

/// Where it ended.
struct Found {
    /// The highest level that held, with its figures.
    held: Option<(f64, Report)>,
    /// The first that did not, and why.
    broke: Option<(f64, String)>,
}

impl Args {
    fn levels(&self) -> Vec<f64> {
        let levels = std::iter::successors(Some(self.from), |level| Some(level * self.factor));
        levels.map(f64::round).take_while(|level| *level <= self.to).collect()
    }
}

/// Runs it and prints the capacity.
///
/// # Errors
///
/// When not even the first level held, or the run ended early.
pub fn run(args: &Args) -> Result<ExitCode> {
    ensure!(
        args.factor > 1.0 && args.from >= 1.0 && args.from <= args.to,
        "levels must rise from --from, at least 1, to --to"
    );
    ensure!(args.each > Duration::from_secs(1), "--each must be longer than the second that is not measured");
    ensure!(args.target.target.len() == 1, "one --target at a time");
    process::raise_descriptors()?;
    let mut scenario = Scenario::load(&args.scenario)?;
    if let Some(max) = args.lateness_max {
        scenario.allow_lateness(max);
    }
    scenario.resize(args.sessions, None, None)?;
    ensure!(scenario.sessions.count.0.len() == 1, "{}: sessions.count must be one number", scenario.name);
    let events = scenario.events.clone().context("the scenario has no events")?;
    let schedule = events.schedule().context("the scenario has no arrivals")?;
    let levels = args.levels();
    let per_session = schedule.peak() / scenario.sessions.count.most() as f64;
    if args.grow == Grow::Sessions {
        scenario.sessions.count = Steps(levels.iter().map(|level| *level as usize).collect());
    }
    scenario.disturbance = None;
    scenario.nodes.iter_mut().for_each(|nodes| nodes.fault = None);
    let (layout, _) = scenario.layouts().pop().context("no way to start it")?;
    let kind = args.target.target[0];
    args.target.check(&scenario, kind)?;
    if args.target.starts_servers() {
        fits(args, scenario.sessions.count.most(), process::Process::current().sockets_max()?)?;
    }
    let mut target = args.target.start(&scenario, kind, layout)?;
    let mut run = Run::new(&scenario, kind.name(), 1);
    let mut found = Found { held: None, broke: None };
    let measured = bench::measure(&scenario, &mut target, args.per_process, &mut run, |bench| {
        climb(args, bench, &events, &levels, per_session, &mut found)
    });
    let log = if measured.is_err() { target.log_tail() } else { String::new() };
    let stopped = target.stop();
    run.error = measured.context(log)?.filter(|_| found.held.is_none());
    if let Some(path) = &args.json {
        Results::new(vec![run.clone()]).write(path)?;
    }
    stopped?;
    let (level, report) = found.held.context(match (&run.error, &found.broke) {
        (Some(error), _) => format!("nothing was found: {error}"),
        (None, Some((level, why))) => format!("not even the first level ({level}) held: {why}; lower --from"),
        (None, None) => "no level was measured".to_owned(),
    })?;
    println!("{}", answer(args, level, &report, found.broke.as_ref()));
    Ok(ExitCode::SUCCESS)
}

/// Whether the highest level fits into the files that the server may open.
fn fits(args: &Args, most: usize, sockets_max: usize) -> Result<()> {
    let needed = most + process::SPARE_DESCRIPTORS as usize;
    let option = if args.grow == Grow::Sessions { "--to" } else { "--sessions" };
    ensure!(
        most <= sockets_max,
        "the highest level is {most} sessions, for which the server has to open {needed} files: {option} {sockets_max} is the \
         most that fits, or raise the limit (`ulimit -n {needed}`) before"
    );
    Ok(())
}

fn climb(
    args: &Args,
    bench: &mut Bench<'_>,
    events: &Events,
    levels: &[f64],
    per_session: f64,
    found: &mut Found,
) -> Result<()> {
    let second = Duration::from_secs(1);
    let mut events = events.clone();
    events.warmup.0 = second;
    if args.grow == Grow::Rate {
        bench.open_all()?;
    }
    for &level in levels {
        let (name, rate) = match args.grow {
            Grow::Rate => (format!("{level} events a second"), level),
            Grow::Sessions => (format!("{level} sessions"), level * per_session),
        };
        if args.grow == Grow::Sessions {
            bench.open_up_to(level as usize)?;
        }
        if !bench.is_broken() {
            bench.arrivals(&events, Schedule::constant(rate, args.each).at_random(), &name)?;
        }
        let Some(phase) = bench.last_phase() else { return Ok(()) };
        if let Some(why) = why_not(&args.slo, phase) {
            found.broke = Some((level, why));
            return Ok(());
        }
        found.held = Some((level, phase.report.clone()));
    }
    Ok(())
}

/// The first objective that a level misses, or its first fault.
fn why_not(objectives: &Objectives, phase: &Phase) -> Option<String> {
    if let Some(fault) = phase.report.faults().first() {
        return Some(fault.clone());
    }
    objectives.judge_phase(phase).into_iter().find(|verdict| !verdict.is_met).map(|verdict| match verdict.worst {
        Some((_, value)) => format!("{} was missed: {}", verdict.objective, number(value)),
        None => format!("{}: there is no such figure", verdict.objective),
    })
}

/// What the sizing table needs.
fn answer(args: &Args, level: f64, report: &Report, broke: Option<&(f64, String)>) -> String {
    let of = |name| report.get(name).unwrap_or(0.0);
    // A server that used next to nothing says nothing about a core.
    let cores = (of("server_cpu_percent_of_a_core") / 100.0).max(0.001);
    let what = match args.grow {
        Grow::Rate => "events a second",
        Grow::Sessions => "sessions",
    };
    let end = match broke {
        Some((level, why)) => format!("At {} it broke: {why}", number(*level)),
        None => format!("Nothing broke up to --to {}: there may be more", number(args.to)),
    };
    format!(
        "{} {what} held. {end}.\n\n| sessions | events a second | deliveries a second | p50 ms | p99 ms | cores of the server | \
         sessions per core | deliveries a second per core | KiB a session |\n|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n\
         | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        number(level),
        number(of("sessions")),
        number(of("sent_per_second")),
        number(of("deliveries_per_second")),
        number(of("latency_from_due_p50_ms")),
        number(of("latency_from_due_p99_ms")),
        number(cores),
        number(of("sessions") / cores),
        number(of("deliveries_per_second") / cores),
        number(of("rss_kib_per_session")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(p99: f64, fault: Option<&str>) -> Phase {
        let mut report = Report::new("level");
        report.value("latency_from_due_p99_ms", p99);
        fault.into_iter().for_each(|fault| report.fault(fault));
        Phase { report, curves: Vec::new() }
    }

    #[test]
    fn a_level_breaks_by_its_objective_or_by_a_fault() {
        let slo: Objectives = "p99<100ms".parse().unwrap();
        assert_eq!(why_not(&slo, &phase(99.0, None)), None);
        assert_eq!(why_not(&slo, &phase(150.0, None)).as_deref(), Some("p99<100ms was missed: 150.0"));
        assert_eq!(why_not(&slo, &phase(1.0, Some("3 lost"))).as_deref(), Some("3 lost"));
    }
}
