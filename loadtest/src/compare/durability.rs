//! What keeping events costs: transient ones, durable ones in SQLite, durable ones in PostgreSQL, in turns.
//!
//! Each round gives each two stores: one for a node whose users are connected, one for a node whose users are away
//! and for its successor, to which they come back.

mod table;

use std::path::Path;

use anyhow::{Context, Result};

use super::{CommonArgs, SECRET, Sample, finish, in_turns};
use crate::event::Durability;
use crate::kafka::Topic;
use crate::measure::away::{self, Stored};
use crate::measure::{backlog, check_descriptors, connect, replay, steady, tokens};
use crate::report::Report;
use crate::server::{Program, Server};
use crate::store::{self, POSTGRES, SQLITE, Store};
use crate::workload::{Pick, Users};

/// What is compared with the two stores: a node that keeps nothing.
const TRANSIENT: &str = "transient";

/// Scenarios in which one user comes back, with how many events wait for it.
const REPLAYS: [(&str, u64); 2] = [("replay of 1,000", 1_000), ("replay of 10,000", 10_000)];
/// The users who get as many events as the cold ones together.
const FEW: usize = 10;
/// How many times as many others follow the cold ones.
const OTHERS: usize = 3;
/// The highest number of events that wait for one of the few: the default of `log.per_user_max`.
const PER_USER_MAX: u64 = 10_000;

/// What `notifier-loadtest compare-durability` is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: CommonArgs,
    /// PostgreSQL's URL, as of a role that may create databases; without it only SQLite is measured
    #[arg(long, value_name = "URL", env = "NOTIFIER_LOADTEST_POSTGRES")]
    postgres: Option<String>,
    /// Users who are away and get one event each
    #[arg(long, default_value_t = 10_000,
          value_parser = clap::value_parser!(u64).range(1..=FEW as u64 * PER_USER_MAX))]
    cold_users: u64,
    /// Seconds after which the node of those who are away stops the actors of idle users (its `sessions.idle_after`)
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=30))]
    idle_after: u64,
}

/// Runs all rounds and prints the table; a run that fails is named below it and the rest is kept.
///
/// # Errors
///
/// When any run failed or found a fault, after the table is printed.
pub fn run(args: &Args) -> Result<()> {
    let mut servers = vec![TRANSIENT, SQLITE];
    let mut title = args.common.title();
    if let Some(url) = &args.postgres {
        servers.push(POSTGRES);
        title = format!("{title}; {}", store::postgres::settings(url)?);
    }
    let samples = in_turns(&args.common, &servers, |notifier, sample| {
        connected(args, notifier, sample)?;
        absent(args, notifier, sample)
    })?;
    println!("{}", table::markdown(&samples, &title));
    finish(&args.common, &samples)
}

/// Users with open sessions: a steady rate, then a backlog.
fn connected(args: &Args, notifier: &Path, sample: &mut Sample) -> Result<()> {
    let common = &args.common;
    let durability = match sample.server {
        TRANSIENT => Durability::Transient,
        _ => Durability::Durable,
    };
    on_fresh_store(args, sample, "connected", |sample, store, topic| {
        with_node(notifier, store, topic, "", |server, store| {
            let process = server.process();
            check_descriptors(&process, common.users)?;
            let load = common.load(topic, Users::at_random(common.users), durability);
            let tokens = tokens(SECRET, 0..common.users)?;
            let (mut fleet, _) = connect::run(&process, server.endpoint(), &tokens, common.concurrency)?;
            let steady = store.watch(&process, || steady::run(&process, &mut fleet, &load, &common.rate))?;
            sample.add("steady", steady);
            let backlog = store.watch(&process, || backlog::run(&process, &mut fleet, &load, common.events))?;
            sample.add("backlog", backlog);
            Ok(())
        })?;
        if let Some(statistics) = store.statistics()? {
            sample.add("statistics", statistics);
        }
        Ok(())
    })
}

/// Users without sessions: events wait for them, and some come back. Everything is durable, so the node without
/// a store keeps it in memory.
fn absent(args: &Args, notifier: &Path, sample: &mut Sample) -> Result<()> {
    let soon_idle = format!("[sessions]\nidle_after = \"{}s\"\n", args.idle_after);
    on_fresh_store(args, sample, "away", |sample, store, topic| {
        let pending = with_node(notifier, store, topic, &soon_idle, |server, store| {
            let pending = wait_for_some(args, server, topic)?;
            wait_for_many(args, server, store, topic, sample)?;
            // What it has in memory ends with it.
            if sample.server == TRANSIENT {
                come_back(server, &pending, sample)?;
            }
            Ok(pending)
        })?;
        // To a node that has not had the events in its hands: all of its memory that grows is the replay's.
        if sample.server != TRANSIENT {
            with_node(notifier, store, topic, &soon_idle, |server, _| come_back(server, &pending, sample))?;
        }
        Ok(())
    })
}

/// The first users, one for each replay. The node is warm afterwards.
fn wait_for_some(args: &Args, server: &Server, topic: &Topic) -> Result<Vec<Stored>> {
    let stored = REPLAYS.iter().enumerate().map(|(first, (_, pending))| {
        let load = args.common.load(topic, Users { first, count: 1, pick: Pick::InTurn }, Durability::Durable);
        away::store(&server.process(), server.admin(), &load, *pending)
    });
    let stored = stored.collect::<Result<_>>()?;
    away::until_nobody_is_active(server.admin())?;
    Ok(stored)
}

/// The users behind them: a few who get many events, many who get one, and others who do. What the last of those add to
/// the memory is theirs: the allocator and the store's caches have all they want by then.
fn wait_for_many(args: &Args, server: &Server, store: &mut Store, topic: &Topic, sample: &mut Sample) -> Result<()> {
    let process = server.process();
    let mut stored = |first, count| {
        let load = args.common.load(topic, Users { first, count, pick: Pick::InTurn }, Durability::Durable);
        store.watch(&process, || away::run(&process, server.admin(), &load, args.cold_users))
    };
    let few = stored(REPLAYS.len(), FEW)?;
    let (first, count) = (REPLAYS.len() + FEW, args.cold_users as usize);
    let mut cold = stored(first, count)?;
    activation(&few, &mut cold);
    for batch in 1..OTHERS {
        stored(first + batch * count, count)?;
    }
    let others = stored(first + OTHERS * count, count)?;
    sample.add("few", few);
    sample.add("cold", cold);
    sample.add("others", others);
    Ok(())
}

fn come_back(server: &Server, pending: &[Stored], sample: &mut Sample) -> Result<()> {
    let tokens = tokens(SECRET, 0..pending.len())?;
    for (((scenario, _), token), stored) in REPLAYS.iter().zip(&tokens).zip(pending) {
        let report = replay::run(&server.process(), server.admin(), server.endpoint(), token, stored)?;
        sample.add(scenario, report);
    }
    Ok(())
}

/// What a user's first event costs more than another event for a user who is active already.
fn activation(few: &Report, cold: &mut Report) {
    for (name, of) in [
        ("server_cpu_us_per_activation", away::CPU),
        ("server_cpu_us_per_activation_and_end", away::CPU_UNTIL_NOBODY),
        ("store_cpu_us_per_activation", store::CPU),
    ] {
        if let (Some(few), Some(cold_cpu)) = (few.get(of), cold.get(of)) {
            cold.value(name, cold_cpu - few);
        }
    }
}

/// Runs something with a store and a topic of its own; both are gone afterwards.
fn on_fresh_store(
    args: &Args,
    sample: &mut Sample,
    what: &str,
    run: impl FnOnce(&mut Sample, &mut Store, &Topic) -> Result<()>,
) -> Result<()> {
    let place = format!("{}-{what}-{}", sample.server, sample.round);
    args.common.on_fresh_topic(&place, |topic| {
        let name = format!("notifier_loadtest_{}_{}_{what}", std::process::id(), sample.round);
        let mut store = Store::create(sample.server, args.postgres.as_deref(), name)?;
        run(sample, &mut store, topic)
    })
}

/// Runs something while a node of its own is up.
fn with_node<T>(
    notifier: &Path,
    store: &mut Store,
    topic: &Topic,
    more: &str,
    run: impl FnOnce(&Server, &mut Store) -> Result<T>,
) -> Result<T> {
    let more = [store.configuration(), more.to_owned()];
    let mut server = Server::start(Program::Notifier { binary: notifier, more: &more }, topic, SECRET)?;
    let result = run(&server, store);
    let stopped = server.stop();
    let result = result.with_context(|| server.log_tail())?;
    stopped.map(|()| result)
}
