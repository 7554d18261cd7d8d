//! A process of clients: it is told what to do on its standard input and says what it saw on its standard output,
//! a line of JSON each.
//!
//! One process has at most as many connections as it may open files and a core can serve; a run takes several.

mod returns;

use std::collections::VecDeque;
use std::io::{BufRead as _, Write as _};
use std::net::Ipv4Addr;
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::client::{Endpoint, Fleet, Message, Sink};
use crate::latency::{Packed, PackedLatencies, histogram};
use crate::order::Verdict;
use crate::process::ThreadTime;
use crate::receiver::{Expected, Odd, Receiver};
use crate::token::token;
use crate::workload::micros;
use hdrhistogram::Histogram;
use returns::Returns;
pub use returns::{Away, Summary};

/// How often the process says how far it is.
const STATUS_INTERVAL: u64 = 200_000;
/// How long a command may wait for the sockets.
const TURN: Duration = Duration::from_millis(10);
/// Connects that are not open this long after the last was due have failed.
const CONNECT_LIMIT: u64 = 60_000_000;
/// When none of so many first connects succeeded, the others are not tried.
const HOPELESS: usize = 20;

/// What the process is started with.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which of the processes this is, from 0
    #[arg(long)]
    number: usize,
    /// How many there are
    #[arg(long)]
    of: usize,
    /// HS256 secret that the clients' tokens are signed with
    #[arg(long, env = "NOTIFIER_LOADTEST_SECRET", hide_env_values = true)]
    secret: String,
}

/// Times are on the clock of `workload::micros`.
#[derive(Debug, Serialize, Deserialize)]
pub enum Command {
    /// Open the sessions of the users from `first` on, below `end`: this process those whose index has its number
    /// as remainder. The endpoints are used in turn. `returns`: once all are open, those that end come back.
    Open { endpoints: Vec<Endpoint>, first: usize, end: usize, start: u64, per_second: f64, returns: bool },
    /// Expect the events of a run. `busy`: look at the sockets all the time instead of waiting for them.
    Expect { expected: Expected, busy: bool },
    /// Read nothing more on the sessions of these users.
    Stall(Vec<u32>),
    /// So many events were sent to each user, this process's only.
    Sent(Vec<u32>),
    /// Say at once how far you are.
    Report,
    /// Say what came. `is_whole`: all that was sent has had its time to come, so that what is missing is lost.
    Finish { is_whole: bool },
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    Status(Status),
    /// To [`Command::Report`].
    Fresh(Status),
    Opened(Opened),
    Finished(Box<Finished>),
}

/// How far the process is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Status {
    pub open: usize,
    /// Connections that ended or never opened, and will not come back.
    pub failed: usize,
    /// Connections that ended and will come back.
    pub away: usize,
    pub first_failure: Option<String>,
    pub received: u64,
    /// Events that were sent and have not come; `None` before that is known.
    pub outstanding: Option<u64>,
    pub last_arrival: u64,
    /// Latencies since the last status.
    pub recent: Option<Packed>,
    /// CPU of the thread that has the sockets, in microseconds, and time that it waited for a core.
    pub running: u64,
    pub waiting: u64,
}

/// All connects have succeeded or failed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Opened {
    pub status: Status,
    /// From when each connect was due until its `$hello`.
    pub latency: Packed,
    /// From when each connect was due until it was begun.
    pub lateness: Packed,
}

/// What came of a run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Finished {
    pub status: Status,
    pub verdict: Verdict,
    pub odd: Odd,
    pub latencies: PackedLatencies,
    /// Of sessions that come back, since the first connect.
    pub away: Option<Away>,
}

struct Worker<'a> {
    args: &'a Args,
    fleet: Fleet,
    clients: Clients,
    /// Users whose connect is due later, with the time.
    connects: VecDeque<(u32, u64)>,
    endpoints: Vec<Endpoint>,
    lateness: Histogram<u64>,
    /// Until when the connects may take; `None` when none is under way.
    connecting: Option<u64>,
    busy: bool,
    sent: Vec<u32>,
    was_complete: bool,
    next_status: u64,
}

/// The sink of all connections.
struct Clients {
    /// User of each connection, and when it was due.
    conns: Vec<(u32, u64)>,
    connect_latency: Histogram<u64>,
    receiver: Receiver,
    /// `None`: who ends has failed.
    returns: Option<Returns>,
}

/// Serves until its standard input ends.
///
/// # Errors
///
/// When it cannot go on; the process that started it sees the message.
pub fn run(args: &Args) -> Result<()> {
    let (lines, commands) = mpsc::channel();
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if line.map_or(true, |line| lines.send(line).is_err()) {
                return;
            }
        }
    });
    let fleet = Fleet::from(source(args.number, std::process::id()))?;
    let (connect_latency, receiver) = (histogram()?, Receiver::expecting(Expected::default())?);
    let mut worker = Worker {
        args,
        fleet,
        clients: Clients { conns: Vec::new(), connect_latency, receiver, returns: None },
        connects: VecDeque::new(),
        endpoints: Vec::new(),
        lateness: histogram()?,
        connecting: None,
        busy: false,
        sent: Vec::new(),
        was_complete: false,
        next_status: 0,
    };
    loop {
        match commands.try_recv() {
            Ok(line) => worker.obey(serde_json::from_str(&line).context("a command")?)?,
            Err(TryRecvError::Disconnected) => return Ok(()),
            // Without connections there is nothing to wait for but a command.
            Err(TryRecvError::Empty) if worker.is_idle() => match commands.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => worker.obey(serde_json::from_str(&line).context("a command")?)?,
                Err(RecvTimeoutError::Timeout) => worker.turn()?,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            },
            Err(TryRecvError::Empty) => worker.turn()?,
        }
    }
}

/// Each process connects from an address of its own, since an address has only so many ports: other processes than those of
/// the run before, whose ports are not free yet, and not 127.0.0.1, where nodes have to find theirs free again.
fn source(number: usize, pid: u32) -> Ipv4Addr {
    let [_, run, high, low] = (u32::from(Ipv4Addr::new(0, 1 + (pid % 250) as u8, 0, 1)) + number as u32).to_be_bytes();
    Ipv4Addr::new(127, run, high, low)
}

impl Worker<'_> {
    fn is_idle(&self) -> bool {
        self.fleet.started() == 0 && self.connecting.is_none()
    }

    fn obey(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Open { endpoints, first, end, start, per_second, returns } => {
                if returns && self.clients.returns.is_none() {
                    self.clients.returns = Some(Returns::new(start ^ (self.args.number as u64) << 56)?);
                }
                let due = |user: usize| start + ((user - first) as f64 / per_second * 1e6) as u64;
                let own = (first..end).filter(|user| user % self.args.of == self.args.number);
                self.connects.extend(own.map(|user| (user as u32, due(user))));
                self.connecting = Some(self.connects.back().map_or(start, |(_, due)| *due) + CONNECT_LIMIT);
                self.endpoints = endpoints;
                self.lateness.reset();
                self.clients.connect_latency.reset();
            }
            Command::Expect { expected, busy } => {
                let mut receiver = Receiver::expecting(expected)?;
                self.clients.conns.iter().for_each(|(user, due)| receiver.add(*user, *due));
                self.clients.receiver = receiver;
                self.busy = busy;
                self.sent.clear();
                self.was_complete = false;
            }
            Command::Stall(users) => {
                for (conn, (user, _)) in self.clients.conns.iter().enumerate() {
                    if users.contains(user) {
                        self.fleet.stall(conn)?;
                        self.clients.receiver.stall(conn);
                    }
                }
            }
            Command::Sent(sent) => self.sent = sent,
            Command::Report => {
                let status = self.status()?;
                say(&Answer::Fresh(status))?;
            }
            Command::Finish { is_whole } => {
                self.busy = false;
                let receiver = &self.clients.receiver;
                let (verdict, odd) = (receiver.verdict(if is_whole { &self.sent } else { &[] }), receiver.odd());
                let latencies = receiver.latencies.pack()?;
                let away = self.clients.returns.as_ref().map(Returns::report).transpose()?;
                let status = self.status()?;
                say(&Answer::Finished(Box::new(Finished { status, verdict, odd, latencies, away })))?;
            }
        }
        Ok(())
    }

    /// Looks after the sockets for a moment.
    fn turn(&mut self) -> Result<()> {
        self.connect()?;
        self.come_back()?;
        if self.busy {
            self.fleet.sweep(&mut self.clients)?;
        } else {
            let turn = if self.connects.is_empty() { TURN } else { Duration::from_millis(1) };
            self.fleet.turn(turn, &mut self.clients)?;
        }
        let now = micros();
        let is_complete = !self.was_complete && self.outstanding() == Some(0);
        if is_complete || now >= self.next_status {
            self.was_complete |= is_complete;
            self.next_status = now + STATUS_INTERVAL;
            let status = self.status()?;
            say(&Answer::Status(status))?;
        }
        Ok(())
    }

    fn connect(&mut self) -> Result<()> {
        let Some(deadline) = self.connecting else { return Ok(()) };
        let now = micros();
        while let Some(&(user, due)) = self.connects.front().filter(|(_, due)| *due <= now) {
            self.connects.pop_front();
            let conn = self.clients.conns.len();
            let number = user as usize % self.endpoints.len();
            let endpoint = &self.endpoints[number];
            self.clients.returns.iter_mut().for_each(|returns| returns.add(number));
            self.clients.conns.push((user, due));
            self.clients.receiver.add(user, due);
            self.fleet.start(endpoint, &token(&self.args.secret, user as usize)?)?;
            debug_assert_eq!(conn + 1, self.fleet.started());
            self.lateness.saturating_record(micros().saturating_sub(due));
        }
        let failed = self.fleet.failures().map_or(0, |(failed, _)| failed);
        if self.fleet.open() == 0 && failed >= HOPELESS {
            self.connects.clear();
        }
        let settled = self.connects.is_empty() && self.fleet.open() + failed >= self.fleet.started();
        if settled || now > deadline {
            self.connecting = None;
            if self.clients.returns.is_some() {
                self.fleet.may_end();
            }
            let status = self.status()?;
            let latency = Packed::new(&self.clients.connect_latency)?;
            say(&Answer::Opened(Opened { status, latency, lateness: Packed::new(&self.lateness)? }))?;
        }
        Ok(())
    }

    /// Has those that ended connect again when it is time for them.
    fn come_back(&mut self) -> Result<()> {
        let Clients { returns: Some(returns), receiver, conns, .. } = &mut self.clients else { return Ok(()) };
        let now = micros();
        for (conn, why) in self.fleet.take_ended() {
            receiver.ended(conn);
            if let Err(why) = returns.ended(conn, why, now) {
                self.fleet.give_up(why);
            }
        }
        while let Some((conn, endpoint, since)) = returns.next(now, &self.endpoints, |conn| receiver.sequence(conn)) {
            let token = token(&self.args.secret, conns[conn].0 as usize)?;
            if let Err(error) = self.fleet.again(conn, &self.endpoints[endpoint], &token, Some(&since))
                && let Err(why) = returns.ended(conn, format!("{error:#}"), now)
            {
                self.fleet.give_up(why);
            }
        }
        Ok(())
    }

    fn outstanding(&self) -> Option<u64> {
        (!self.sent.is_empty() && self.connecting.is_none()).then(|| self.clients.receiver.verdict(&self.sent).lost)
    }

    fn status(&mut self) -> Result<Status> {
        let time = ThreadTime::now();
        let failures = self.fleet.failures();
        Ok(Status {
            open: self.fleet.open(),
            failed: failures.map_or(0, |(failed, _)| failed),
            away: self.clients.returns.as_ref().map_or(0, Returns::away),
            first_failure: failures.map(|(_, first)| first.to_owned()),
            received: self.clients.receiver.received(),
            outstanding: self.outstanding(),
            last_arrival: self.clients.receiver.last_arrival(),
            recent: self.clients.receiver.latencies.take_recent()?,
            running: time.running.as_micros() as u64,
            waiting: time.waiting.as_micros() as u64,
        })
    }
}

impl Sink for Clients {
    fn opened(&mut self, conn: usize, hello: &Message<'_>, now: u64) {
        self.connect_latency.saturating_record(now.saturating_sub(self.conns[conn].1));
        self.returns.iter_mut().for_each(|returns| returns.hello(conn, hello, now));
    }

    fn message(&mut self, conn: usize, message: &Message<'_>, now: u64) -> Option<u64> {
        let others = self.receiver.odd().others;
        let acknowledge = self.receiver.message(conn, message, now);
        if let Some(returns) = &mut self.returns
            && self.receiver.odd().others > others
            && message.control().as_deref() == Some("$bye")
        {
            returns.bye(conn, message);
        }
        acknowledge
    }
}

fn say(answer: &Answer) -> Result<()> {
    let mut line = serde_json::to_string(answer).context("an answer")?;
    line.push('\n');
    let mut out = std::io::stdout().lock();
    if out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_err() {
        bail!("the process that started this one is gone");
    }
    Ok(())
}
