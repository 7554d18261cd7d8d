//! The processes of clients that a run has started, as one.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command as Program, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
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
/// How long a process that says nothing more may take to end.
const END_LIMIT: Duration = Duration::from_secs(1);

/// All of them. They end with this.
pub struct Workers {
    workers: Vec<Worker>,
    answers: mpsc::Receiver<(usize, Option<Answer>)>,
    /// Latencies since [`Self::take_recent`].
    recent: Histogram<u64>,
    /// Sessions that were asked for so far.
    sessions: usize,
    /// Answers other than a status that have come and were not asked for yet, with whose they are.
    pending: Vec<(usize, Answer)>,
    fresh: usize,
    expected: Expected,
}

struct Worker {
    child: Child,
    process: Process,
    input: ChildStdin,
    status: Status,
    /// Latencies of this run that it has told of: what there is when it ends midway.
    told: Histogram<u64>,
    /// `None`: it has ended.
    undo: Option<Undo>,
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
    /// Why some is missing.
    pub incomplete: Option<Error>,
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
            let (status, undo) = (Status::default(), Some(process.kill_on_interrupt()));
            Ok(Worker { child, process, input, status, told: histogram()?, undo })
        });
        let workers = workers.collect::<Result<Vec<_>>>()?;
        let (recent, pending, expected) = (histogram()?, Vec::new(), Expected::default());
        Ok(Self { workers, answers, recent, sessions: 0, pending, fresh: 0, expected })
    }

    /// CPU of all so far.
    pub fn cpu(&self) -> Result<Duration> {
        self.alive().map(|worker| worker.process.cpu()).sum()
    }

    /// Their memory now, in bytes. One that has just ended has none.
    pub fn rss(&self) -> u64 {
        self.alive().filter_map(|worker| worker.process.rss().ok()).sum()
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
        let is_opened = |answer: &Answer| matches!(answer, Answer::Opened(_));
        if !self.have_all_said(is_opened) {
            return Ok(None);
        }
        let mut connected = Connected { latency: histogram()?, lateness: histogram()? };
        for (_, answer) in self.pending.extract_if(.., |(_, answer)| is_opened(answer)) {
            if let Answer::Opened(opened) = answer {
                opened.latency.add_to(&mut connected.latency)?;
                opened.lateness.add_to(&mut connected.lateness)?;
            }
        }
        Ok(Some(connected))
    }

    pub fn expect(&mut self, expected: Expected, busy: bool) -> Result<()> {
        self.expected = expected;
        for worker in &mut self.workers {
            worker.told.reset();
            worker.status.received = 0;
        }
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
        while self.fresh < self.alive().count() {
            ensure!(Instant::now() < deadline, "the clients do not answer");
            self.listen(Duration::from_millis(100))?;
        }
        Ok(())
    }

    /// What came of the run. `is_whole`: all that was sent has had its time to come, so that what is missing is lost. Of a
    /// process that has ended it is what that had told until then.
    pub fn finish(&mut self, is_whole: bool) -> Result<Outcome> {
        // Who cannot be told any more is missed below.
        let _ = self.tell(|_| Command::Finish { is_whole });
        let deadline = Instant::now() + PATIENCE;
        let is_finished = |answer: &Answer| matches!(answer, Answer::Finished(_));
        let mut incomplete = None;
        while !self.have_all_said(is_finished) {
            if Instant::now() >= deadline {
                incomplete.get_or_insert(anyhow!("the clients do not answer"));
                break;
            }
            if let Err(error) = self.listen(Duration::from_millis(100)) {
                incomplete.get_or_insert(error);
            }
        }
        let mut outcome = Outcome {
            verdict: Verdict::default(),
            odd: Odd::default(),
            latencies: Latencies::new()?,
            away: Summary::default(),
            outages: histogram()?,
            incomplete,
        };
        let mut has_finished = vec![false; self.workers.len()];
        for (number, answer) in self.pending.extract_if(.., |(_, answer)| is_finished(answer)) {
            let Answer::Finished(finished) = answer else { continue };
            has_finished[number] = true;
            outcome.verdict.add(finished.verdict);
            outcome.odd.add(finished.odd);
            outcome.latencies.add(&finished.latencies)?;
            if let Some(away) = &finished.away {
                outcome.away.add(away.summary);
                away.outages.add_to(&mut outcome.outages)?;
            }
        }
        for (worker, _) in self.workers.iter().zip(has_finished).filter(|(_, has_finished)| !has_finished) {
            outcome.verdict.received += worker.status.received;
            // Of a disturbed run nobody knows any more which were the calm ones.
            if self.expected.disturbed_from.is_none() {
                outcome.latencies.from_due.add(&worker.told).context("histograms")?;
            }
        }
        Ok(outcome)
    }

    /// Takes in what they say, for that long at the most.
    ///
    /// # Errors
    ///
    /// When one has ended, once for each; the others can be listened to further.
    pub fn listen(&mut self, length: Duration) -> Result<()> {
        let end = Instant::now() + length;
        loop {
            let (number, answer) = match self.answers.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(answer) => answer,
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => bail!("all processes of clients have ended"),
            };
            let status = match answer {
                None => return Err(self.ended(number)),
                Some(Answer::Status(status)) => status,
                Some(Answer::Fresh(status)) => {
                    self.fresh += 1;
                    status
                }
                Some(Answer::Opened(opened)) => {
                    let status = opened.status.clone();
                    self.pending.push((number, Answer::Opened(opened)));
                    status
                }
                Some(Answer::Finished(finished)) => {
                    let status = finished.status.clone();
                    self.pending.push((number, Answer::Finished(finished)));
                    status
                }
            };
            let worker = &mut self.workers[number];
            if let Some(recent) = &status.recent {
                recent.add_to(&mut self.recent)?;
                recent.add_to(&mut worker.told)?;
            }
            worker.status = status;
        }
    }

    /// Expects nothing more of one, and says why.
    fn ended(&mut self, number: usize) -> Error {
        let of = self.workers.len();
        let Worker { child, status, undo, .. } = &mut self.workers[number];
        (status.open, *undo) = (0, None);
        let deadline = Instant::now() + END_LIMIT;
        let how = loop {
            match child.try_wait() {
                Ok(Some(how)) => break how.to_string(),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
                _ => break "it says nothing more".to_owned(),
            }
        };
        anyhow!("process {} of {of} of the clients ended ({how}); if it said why, that stands above", number + 1)
    }

    fn alive(&self) -> impl Iterator<Item = &Worker> {
        self.workers.iter().filter(|worker| worker.undo.is_some())
    }

    /// Whether all that have not ended have given such an answer.
    fn have_all_said(&self, is_such: impl Fn(&Answer) -> bool) -> bool {
        let has_said = |number| self.pending.iter().any(|(whose, answer)| *whose == number && is_such(answer));
        self.workers.iter().enumerate().all(|(number, worker)| worker.undo.is_none() || has_said(number))
    }

    fn statuses(&self) -> impl Iterator<Item = &Status> {
        self.workers.iter().map(|worker| &worker.status)
    }

    /// Tells all that have not ended, also behind one that cannot be told.
    fn tell(&mut self, command: impl Fn(usize) -> Command) -> Result<()> {
        let mut told = Ok(());
        for (number, worker) in self.workers.iter_mut().enumerate().filter(|(_, worker)| worker.undo.is_some()) {
            let mut line = serde_json::to_string(&command(number)).context("a command")?;
            line.push('\n');
            told = told.and(worker.input.write_all(line.as_bytes()).context("a process of clients has ended"));
        }
        told
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
