//! A process on this machine as `/proc` shows it: CPU, memory, descriptors, and how to stop it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit, test_kill_process};

use crate::interrupt::Undo;

/// Descriptors a process needs besides its sockets: libraries, logs, Kafka's connections.
pub const SPARE_DESCRIPTORS: u64 = 200;

/// One process, by its id. Nothing is held: it may end at any time, and then every reading fails.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    pid: Pid,
}

/// A process stopped by SIGSTOP; continues when this is dropped, also on an error's way out.
#[derive(Debug)]
pub struct Paused {
    process: Process,
    _undo: Undo,
}

impl Process {
    /// # Errors
    ///
    /// When there is no such process or it may not be measured by this user.
    pub fn new(pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).with_context(|| format!("{pid} is no process id"))?;
        test_kill_process(pid).with_context(|| format!("process {pid} cannot be measured"))?;
        Ok(Self { pid })
    }

    pub fn current() -> Self {
        Self { pid: rustix::process::getpid() }
    }

    /// User and system time of all its threads, those that ended included. The kernel gives it in
    /// ticks of 10 ms.
    pub fn cpu(&self) -> Result<Duration> {
        cpu_of_stat(&self.read("stat")?, rustix::param::clock_ticks_per_second())
            .context("unexpected form of /proc/PID/stat")
    }

    /// CPU of this process and of all the children that it has or had: what a PostgreSQL server has cost.
    pub fn cpu_with_children(&self) -> Result<Duration> {
        let ticks = rustix::param::clock_ticks_per_second();
        let unexpected = "unexpected form of /proc/PID/stat";
        let mut total = cpu_with_ended_children_of_stat(&self.read("stat")?, ticks).context(unexpected)?;
        for entry in fs::read_dir("/proc").context("/proc")?.flatten() {
            // What has no number is no process; what cannot be read has just ended.
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            let Some(stat) = pid.and_then(|pid| Self { pid }.read("stat").ok()) else { continue };
            if parent_of_stat(&stat) == Some(self.pid) {
                total += cpu_of_stat(&stat, ticks).context(unexpected)?;
            }
        }
        Ok(total)
    }

    /// The process that started it.
    pub fn parent(&self) -> Result<Self> {
        let pid = parent_of_stat(&self.read("stat")?).context("a process without a parent")?;
        Ok(Self { pid })
    }

    /// The name of its program, cut to 15 bytes.
    pub fn name(&self) -> Result<String> {
        Ok(self.read("comm")?.trim_end().to_owned())
    }

    /// Bytes that it has caused to be written to a disk, once for each time that a page became dirty.
    pub fn written(&self) -> Result<u64> {
        let io = self.read("io")?;
        let line = io.lines().find_map(|line| line.strip_prefix("write_bytes:"));
        line.and_then(|rest| rest.trim().parse().ok()).context("no write_bytes in /proc/PID/io")
    }

    /// Resident memory now, in bytes.
    pub fn rss(&self) -> Result<u64> {
        self.kilobytes("status", "VmRSS:")
    }

    /// Highest resident memory since [`Self::reset_peak`], in bytes.
    pub fn peak_rss(&self) -> Result<u64> {
        self.kilobytes("status", "VmHWM:")
    }

    /// Proportional memory now (shared pages divided among their users), in bytes.
    pub fn pss(&self) -> Result<u64> {
        self.kilobytes("smaps_rollup", "Pss:")
    }

    /// Context switches of the threads that it has now, asked for and not.
    pub fn context_switches(&self) -> Result<u64> {
        let threads = fs::read_dir(self.path("task")).context("its threads cannot be read: has it ended?")?;
        let statuses = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
        Ok(statuses.map(|status| switches_of_status(&status)).sum())
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        self.read("stat").is_ok_and(|stat| !matches!(state_of_stat(&stat), None | Some('Z' | 'X')))
    }

    /// How many files it may open; `None`: no limit.
    pub fn descriptors(&self) -> Result<Option<u64>> {
        let limits = self.read("limits")?;
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        let soft = line.and_then(|rest| rest.split_whitespace().next());
        Ok(soft.context("no line about open files in /proc/PID/limits")?.parse().ok())
    }

    /// How many sockets it may have at the most, besides what else it opens.
    pub fn sockets_max(&self) -> Result<usize> {
        let limit = self.descriptors()?.unwrap_or(u64::MAX / 2);
        Ok(usize::try_from(limit.saturating_sub(SPARE_DESCRIPTORS)).unwrap_or(usize::MAX))
    }

    /// Starts a new peak: see `clear_refs` in proc(5).
    pub fn reset_peak(&self) -> Result<()> {
        fs::write(self.path("clear_refs"), "5").context("cannot reset the peak memory")
    }

    /// Checks before the start that this many sockets fit.
    ///
    /// # Errors
    ///
    /// Says which process has too few descriptors, and what to do.
    pub fn check_descriptors(&self, who: &str, sockets: usize) -> Result<()> {
        let Some(soft) = self.descriptors()? else { return Ok(()) };
        let needed = sockets as u64 + SPARE_DESCRIPTORS;
        ensure!(
            soft >= needed,
            "{who} may open {soft} files, and {sockets} sessions need {needed}: raise it where \
             that process is started (`ulimit -n {needed}`, hard limit here: {}), or measure with \
             fewer sessions",
            getrlimit(Resource::Nofile).maximum.map_or("none".to_owned(), |hard| hard.to_string()),
        );
        Ok(())
    }

    /// Stops it with SIGSTOP and waits until all its threads stand still.
    pub fn pause(&self) -> Result<Paused> {
        let paused = Paused { process: *self, _undo: Undo::new(self.pid, Signal::CONT) };
        self.signal(Signal::STOP)?;
        let deadline = Instant::now() + Duration::from_secs(5);
        while state_of_stat(&self.read("stat")?) != Some('T') {
            if Instant::now() > deadline {
                bail!("process {} did not stop on SIGSTOP", self.pid);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(paused)
    }

    /// As long as the answer lives, an interrupt of this tool kills the process.
    pub fn kill_on_interrupt(&self) -> Undo {
        Undo::new(self.pid, Signal::KILL)
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid, signal).with_context(|| format!("cannot signal process {}", self.pid))
    }

    fn path(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.pid)
    }

    fn read(&self, file: &str) -> Result<String> {
        fs::read_to_string(self.path(file))
            .with_context(|| format!("process {} cannot be read: has it ended?", self.pid))
    }

    fn kilobytes(&self, file: &str, key: &str) -> Result<u64> {
        kilobytes(&self.read(file)?, key)
            .with_context(|| format!("no {key} in /proc/{}/{file}: has it ended?", self.pid))
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        // Fails only when the process has ended, which every later reading reports.
        let _ = self.process.signal(Signal::CONT);
    }
}

/// What the calling thread has cost so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThreadTime {
    pub running: Duration,
    /// Ready to run, but no core was free.
    pub waiting: Duration,
}

impl ThreadTime {
    /// Zero where the kernel keeps no such statistics.
    pub fn now() -> Self {
        let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let mut nanos = text.split_whitespace().map_while(|word| word.parse().ok());
        let mut next = || Duration::from_nanos(nanos.next().unwrap_or(0));
        Self { running: next(), waiting: next() }
    }

    /// From an earlier reading to this one.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            running: self.running.saturating_sub(earlier.running),
            waiting: self.waiting.saturating_sub(earlier.waiting),
        }
    }
}

/// Raises this process's soft limit of open files to the hard one: the processes that it starts inherit it.
pub fn raise_descriptors() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).context("raising the limit of open files")
}

fn switches_of_status(status: &str) -> u64 {
    let of =
        |key| status.lines().find_map(|line: &str| line.strip_prefix(key)?.trim().parse::<u64>().ok()).unwrap_or(0);
    of("voluntary_ctxt_switches:") + of("nonvoluntary_ctxt_switches:")
}

/// The command's name may hold blanks and brackets: fields are counted after its last bracket.
fn after_name(stat: &str) -> Option<impl Iterator<Item = &str>> {
    Some(stat.get(stat.rfind(')')? + 1..)?.split_whitespace())
}

fn state_of_stat(stat: &str) -> Option<char> {
    after_name(stat)?.next()?.chars().next()
}

fn parent_of_stat(stat: &str) -> Option<Pid> {
    Pid::from_raw(after_name(stat)?.nth(1)?.parse().ok()?)
}

fn cpu_of_stat(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    ticks_of_stat(stat, 2, ticks_per_second)
}

fn cpu_with_ended_children_of_stat(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    ticks_of_stat(stat, 4, ticks_per_second)
}

/// User and system time, and behind them those of children that have ended and were waited for.
fn ticks_of_stat(stat: &str, count: usize, ticks_per_second: u64) -> Option<Duration> {
    let ticks: Option<Vec<u64>> = after_name(stat)?.skip(11).take(count).map(|field| field.parse().ok()).collect();
    let ticks = ticks.filter(|ticks| ticks.len() == count)?;
    Some(Duration::from_secs_f64(ticks.iter().sum::<u64>() as f64 / ticks_per_second as f64))
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(number * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = "77 (a) b (c) T 1 2 3 4 5 6 7 8 9 10 250 150 500 200";
        assert_eq!(cpu_of_stat(stat, 100), Some(Duration::from_secs(4)));
        assert_eq!(cpu_with_ended_children_of_stat(stat, 100), Some(Duration::from_secs(11)));
        assert_eq!(state_of_stat(stat), Some('T'));
        assert_eq!(parent_of_stat(stat), Pid::from_raw(1));
        assert_eq!(cpu_of_stat("77 (a) T 1 2 3", 100), None);
    }

    #[test]
    fn kilobytes_become_bytes() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(kilobytes(status, "VmRSS:"), Some(1 << 20));
        assert_eq!(kilobytes(status, "VmSwap:"), None);
    }

    #[test]
    fn both_kinds_of_context_switches_count() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t5\n";
        assert_eq!(switches_of_status(status), 12);
        let process = Process::current();
        let before = process.context_switches().unwrap();
        (0..50).for_each(|_| std::thread::sleep(Duration::from_millis(1)));
        assert!(process.context_switches().unwrap() >= before + 40);
        assert!(process.is_alive());
    }

    #[test]
    fn this_process_can_be_measured() {
        let process = Process::current();
        assert!(process.rss().unwrap() > 100_000);
        assert!(process.peak_rss().unwrap() >= process.rss().unwrap() / 2);
        assert!(process.pss().unwrap() > 0);
        let before = process.cpu().unwrap();
        let started = Instant::now();
        while process.cpu().unwrap() < before + Duration::from_millis(20) {
            assert!(started.elapsed() < Duration::from_secs(20));
        }
    }

    #[test]
    fn a_child_s_cpu_counts_while_it_runs_and_after_its_end() {
        let process = Process::current();
        let before = process.cpu_with_children().unwrap();
        let mut child = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let of_child = Process::new(child.id()).unwrap();
        assert_eq!(of_child.parent().unwrap().pid, process.pid);
        let started = Instant::now();
        while of_child.cpu().unwrap() < Duration::from_millis(50) {
            assert!(started.elapsed() < Duration::from_secs(20));
        }
        let (own, all) = (process.cpu().unwrap(), process.cpu_with_children().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(all >= own + Duration::from_millis(50), "{all:?}, {own:?}");
        assert!(process.cpu_with_children().unwrap() >= before + Duration::from_millis(50));
        assert!(process.written().is_ok());
    }

    #[test]
    fn too_few_descriptors_are_said_with_what_to_do() {
        let error = Process::current().check_descriptors("the test", 1 << 40).unwrap_err();
        assert!(error.to_string().contains("ulimit -n"), "{error}");
    }
}
