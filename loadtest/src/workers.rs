//! The processes of clients that a run has started, as one.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command as Program, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;

use crate::client::Endpoint;
use crate::interrupt::Undo;
use crate::latency::{Latencies, histogram};
use crate::order::Verdict;
use crate::process::Process;
use crate::receiver::{Expected, Odd};
use crate::worker::{Answer, Command, Status, Summary};

/// How long an answer that costs nothing may take, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// All of them. They end with this.
pub struct Workers {
    workers: Vec<Worker>,
    answers: mpsc::Receiver<(usize, Option<Answer>)>,
    /// Latencies since [`Self::take_recent`].
    recent: Histogram<u64>,
    /// Sessions that were asked for so far.
    sessions: usize,
    /// Answers other than a status that have come and were not asked for yet.
    pending: Vec<Answer>,
    fresh: usize,
}

struct Worker {
    child: Child,
    process: Process,
    input: ChildStdin,
    status: Status,
    _undo: Undo,
}

/// What all connects of one step came to.
pub struct Connected {
    /// From when each was due until its `$hello`, in microseconds.
    pub latency: Histogram<u64>,
    /// From when each was due until it was begun, in microseconds.
    pub lateness: Histogram<u64>,
}

/// What all processes saw of a run.
pub struct Outcome {
    pub verdict: Verdict,
    pub odd: Odd,
    pub latencies: Latencies,
    /// What became of the sessions that ended, and how long they were away, in microseconds.
    pub away: Summary,
    pub outages: Histogram<u64>,
}

impl Workers {
    /// Starts so many.
    pub fn start(count: usize, secret: &str) -> Result<Self> {
        let (sender, answers) = mpsc::channel();
        let workers = (0..count).map(|number| {
            let mut child = Program::new(std::env::current_exe().context("own binary")?)
                .args(["clients", "--number", &number.to_string(), "--of", &count.to_string()])
                .env("NOTIFIER_LOADTEST_SECRET", secret)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .context("cannot start a process of clients")?;
            let output = child.stdout.take().context("no pipe")?;
            let input = child.stdin.take().context("no pipe")?;
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(output).lines() {
                    let answer = line.ok().and_then(|line| serde_json::from_str(&line).ok());
                    if answer.is_none() || sender.send((number, answer)).is_err() {
                        break;
                    }
                }
                let _ = sender.send((number, None));
            });
            let process = Process::new(child.id())?;
            Ok(Worker { child, process, input, status: Status::default(), _undo: process.kill_on_interrupt() })
        });
        let workers = workers.collect::<Result<Vec<_>>>()?;
        Ok(Self { workers, answers, recent: histogram()?, sessions: 0, pending: Vec::new(), fresh: 0 })
    }

    /// CPU of all so far.
    pub fn cpu(&self) -> Result<Duration> {
        self.workers.iter().map(|worker| worker.process.cpu()).sum()
    }

    /// Their memory now, in bytes.
    pub fn rss(&self) -> Result<u64> {
        self.workers.iter().map(|worker| worker.process.rss()).sum()
    }

    /// Sessions that were asked for so far.
    pub fn sessions(&self) -> usize {
        self.sessions
    }

    pub fn open(&self) -> usize {
        self.statuses().map(|status| status.open).sum()
    }

    /// Sessions that ended and will come back.
    pub fn away(&self) -> usize {
        self.statuses().map(|status| status.away).sum()
    }

    pub fn received(&self) -> u64 {
        self.statuses().map(|status| status.received).sum()
    }

    /// `None` before all know what was sent.
    pub fn outstanding(&self) -> Option<u64> {
        self.statuses().map(|status| status.outstanding).sum()
    }

    /// When the last event arrived, on the clock of `workload::micros`.
    pub fn last_arrival(&self) -> u64 {
        self.statuses().map(|status| status.last_arrival).max().unwrap_or(0)
    }

    /// Connections that failed or ended, and why the first of them did.
    pub fn failures(&self) -> Option<(usize, &str)> {
        let first = self.statuses().find_map(|status| status.first_failure.as_deref())?;
        Some((self.statuses().map(|status| status.failed).sum(), first))
    }

    /// Of each, what its sockets' thread has cost: CPU and time that it waited for a core, in microseconds.
    pub fn times(&self) -> Vec<(u64, u64)> {
        self.statuses().map(|status| (status.running, status.waiting)).collect()
    }

    /// Latencies since the last time, in microseconds.
    pub fn take_recent(&mut self) -> Result<Histogram<u64>> {
        Ok(std::mem::replace(&mut self.recent, histogram()?))
    }

    /// Begins to open the sessions up to this many, at that rate, from `start` on. `returns`: once all are open, those
    /// that end come back.
    pub fn connect(
        &mut self,
        endpoints: &[Endpoint],
        sessions: usize,
        (start, per_second): (u64, f64),
        returns: bool,
    ) -> Result<()> {
        let first = std::mem::replace(&mut self.sessions, sessions);
        self.tell(|_| Command::Open { endpoints: endpoints.to_vec(), first, end: sessions, start, per_second, returns })
    }

    /// What the connects came to; `None` while some are under way.
    pub fn connected(&mut self) -> Result<Option<Connected>> {
        let opened = |answer: &mut Answer| matches!(answer, Answer::Opened(_));
        if self.pending.iter_mut().filter(|answer| matches!(answer, Answer::Opened(_))).count() < self.workers.len() {
            return Ok(None);
        }
        let mut connected = Connected { latency: histogram()?, lateness: histogram()? };
        for answer in self.pending.extract_if(.., opened) {
            if let Answer::Opened(opened) = answer {
                opened.latency.add_to(&mut connected.latency)?;
                opened.lateness.add_to(&mut connected.lateness)?;
            }
        }
        Ok(Some(connected))
    }

    pub fn expect(&mut self, expected: Expected, busy: bool) -> Result<()> {
        self.tell(|_| Command::Expect { expected, busy })
    }

    pub fn stall(&mut self, users: &[u32]) -> Result<()> {
        self.tell(|_| Command::Stall(users.to_vec()))
    }

    /// So many events were sent to each user.
    pub fn sent(&mut self, sent: &[u32]) -> Result<()> {
        let of = self.workers.len();
        self.tell(|number| Command::Sent(sent.iter().copied().skip(number).step_by(of).collect()))
    }

    /// Waits until each has said how far it is from now on.
    pub fn refresh(&mut self) -> Result<()> {
        self.fresh = 0;
        self.tell(|_| Command::Report)?;
        let deadline = Instant::now() + PATIENCE;
        while self.fresh < self.workers.len() {
            ensure!(Instant::now() < deadline, "the clients do not answer");
            self.listen(Duration::from_millis(100))?;
        }
        Ok(())
    }

    /// What came of the run.
    pub fn finish(&mut self) -> Result<Outcome> {
        self.tell(|_| Command::Finish)?;
        let deadline = Instant::now() + PATIENCE;
        let finished = |answer: &Answer| matches!(answer, Answer::Finished(_));
        while self.pending.iter().filter(|answer| finished(answer)).count() < self.workers.len() {
            ensure!(Instant::now() < deadline, "the clients do not answer");
            self.listen(Duration::from_millis(100))?;
        }
        let mut outcome = Outcome {
            verdict: Verdict::default(),
            odd: Odd::default(),
            latencies: Latencies::new()?,
            away: Summary::default(),
            outages: histogram()?,
        };
        for answer in self.pending.extract_if(.., |answer| finished(answer)) {
            let Answer::Finished(finished) = answer else { continue };
            outcome.verdict.add(finished.verdict);
            outcome.odd.add(finished.odd);
            outcome.latencies.add(&finished.latencies)?;
            if let Some(away) = &finished.away {
                outcome.away.add(away.summary);
                away.outages.add_to(&mut outcome.outages)?;
            }
        }
        Ok(outcome)
    }

    /// Takes in what they say, for that long at the most.
    ///
    /// # Errors
    ///
    /// When one has ended.
    pub fn listen(&mut self, length: Duration) -> Result<()> {
        let end = Instant::now() + length;
        loop {
            let (number, answer) = match self.answers.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(answer) => answer,
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => bail!("all processes of clients have ended"),
            };
            let status = match answer {
                None => bail!("a process of clients ended; what it said stands above"),
                Some(Answer::Status(status)) => status,
                Some(Answer::Fresh(status)) => {
                    self.fresh += 1;
                    status
                }
                Some(Answer::Opened(opened)) => {
                    let status = opened.status.clone();
                    self.pending.push(Answer::Opened(opened));
                    status
                }
                Some(Answer::Finished(finished)) => {
                    let status = finished.status.clone();
                    self.pending.push(Answer::Finished(finished));
                    status
                }
            };
            if let Some(recent) = &status.recent {
                recent.add_to(&mut self.recent)?;
            }
            self.workers[number].status = status;
        }
    }

    fn statuses(&self) -> impl Iterator<Item = &Status> {
        self.workers.iter().map(|worker| &worker.status)
    }

    fn tell(&mut self, command: impl Fn(usize) -> Command) -> Result<()> {
        for (number, worker) in self.workers.iter_mut().enumerate() {
            let mut line = serde_json::to_string(&command(number)).context("a command")?;
            line.push('\n');
            worker.input.write_all(line.as_bytes()).context("a process of clients has ended")?;
        }
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
