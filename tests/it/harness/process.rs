//! A child process whose output is kept and which never outlives the test.

use std::{
    env,
    ffi::OsStr,
    io::Read,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, OnceLock},
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::Mutex;

use super::wait::{blocking, eventually_within};

/// How much of a log is printed when a test fails.
const LOG_TAIL_CHARS: usize = 8_000;

/// The value of an environment variable that `tests/run` sets.
///
/// # Panics
/// With a sentence that says how to start what is missing: a test never passes by skipping.
pub fn required(variable: &str) -> String {
    match env::var(variable) {
        Ok(value) if !value.is_empty() => value,
        _ => panic!(
            "{variable} is not set: run these tests with `tests/run`, or start `tests/run --keep` \
             in another terminal and export the lines that it prints"
        ),
    }
}

/// Where `program` is on the search path.
pub fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// A command that the kernel kills when the thread that spawns it ends, even if the whole test
/// process is killed. Without util-linux there is still the kill on drop.
///
/// Spawn it from the test's own thread: the kernel counts a helper thread's end as well.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    static SETPRIV: OnceLock<Option<PathBuf>> = OnceLock::new();
    match SETPRIV.get_or_init(|| find("setpriv")) {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// Has `prlimit` bound the size of files that a process writes, as a full disk does; `None`: any size.
pub fn files_max(mut prlimit: Command, id: u32, bytes: Option<u64>) -> bool {
    let size = bytes.map_or("unlimited".into(), |bytes| bytes.to_string());
    prlimit.args(["--pid", &id.to_string(), &format!("--fsize={size}:unlimited")]).stderr(Stdio::null());
    prlimit.status().expect("prlimit (util-linux) can be run").success()
}

/// What a finished process left.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// The exit code.
    ///
    /// # Panics
    /// When a signal ended the process.
    #[track_caller]
    pub fn code(&self) -> i32 {
        match self.status.code() {
            Some(code) => code,
            None => panic!("ended by a signal: {self:?}"),
        }
    }

    /// Fails unless the exit code is 0; gives the standard output.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code(), 0, "{self:?}");
        self.stdout
    }
}

/// A running child.
pub struct Process {
    name: String,
    child: Child,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts `command` with both outputs captured and no input.
    pub fn spawn(name: &str, mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("cannot start {name} ({command:?}): {error}"),
        };
        let (stdout, first) = collect(child.stdout.take().expect("stdout is piped"));
        let (stderr, second) = collect(child.stderr.take().expect("stderr is piped"));
        Self { name: name.to_owned(), child, stdout, stderr, readers: vec![first, second] }
    }

    /// Starts `command` and waits up to `deadline` for its end.
    pub async fn run(name: &str, command: Command, deadline: Duration) -> Finished {
        Self::spawn(name, command).finish(deadline).await
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.lock().clone()
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.lock().clone()
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, e.g. `TERM`; a process that is already gone is no error.
    pub fn signal(&self, signal: &str) {
        kill(signal, self.id());
    }

    /// Stands still for that long, and runs again. A thread of its own looks at the clock.
    pub async fn freeze(&self, time: Duration) {
        let id = self.id();
        blocking(move || {
            kill("STOP", id);
            thread::sleep(time);
            kill("CONT", id);
        })
        .await;
    }

    /// Stops it where it stands; returns when nothing of it moves any more.
    pub async fn stop(&self) {
        self.signal("STOP");
        let tasks = format!("/proc/{}/task", self.id());
        eventually_within(super::wait::DEADLINE, "a frozen process", async || {
            let mut tasks = std::fs::read_dir(&tasks).ok()?;
            let is_stopped = |task: std::fs::DirEntry| {
                let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('T'))
            };
            tasks.all(|task| task.is_ok_and(is_stopped)).then_some(())
        })
        .await;
    }

    /// No file that it writes may grow beyond so many bytes; `None`: any size.
    pub fn files_max(&self, bytes: Option<u64>) {
        assert!(files_max(Command::new("prlimit"), self.id(), bytes), "prlimit says no");
    }

    /// Whether it still runs.
    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for the end; panics after `deadline`.
    pub async fn finish(mut self, deadline: Duration) -> Finished {
        let what = format!("end of {} (process {})", self.name, self.id());
        let child = &mut self.child;
        let status = eventually_within(deadline, &what, async || child.try_wait().ok().flatten()).await;
        for reader in self.readers.drain(..) {
            reader.join().expect("an output reader never panics");
        }
        Finished { status, stdout: self.stdout(), stderr: self.stderr() }
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        // Fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            for (stream, text) in [("stdout", self.stdout()), ("stderr", self.stderr())] {
                let start = text.len().saturating_sub(LOG_TAIL_CHARS);
                let start = (start..=text.len()).find(|&at| text.is_char_boundary(at));
                eprintln!("--- {} {stream}\n{}", self.name, &text[start.unwrap_or(0)..]);
            }
        }
    }
}

fn kill(signal: &str, id: u32) {
    // The shell's own `kill`: the program of that name is not on every machine.
    let status = Command::new("sh").args(["-c", &format!("kill -{signal} {id} 2>/dev/null || true")]).status();
    assert!(status.is_ok_and(|status| status.success()), "cannot run sh");
}

fn collect(mut source: impl Read + Send + 'static) -> (Arc<Mutex<String>>, JoinHandle<()>) {
    let text = Arc::new(Mutex::new(String::new()));
    let sink = Arc::clone(&text);
    let reader = thread::spawn(move || {
        let mut pending = Vec::new();
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = source.read(&mut chunk) {
            pending.extend_from_slice(&chunk[..count]);
            // Whole lines only, so that a character cut by the read is never mangled.
            if let Some(end) = pending.iter().rposition(|&byte| byte == b'\n') {
                sink.lock().push_str(&String::from_utf8_lossy(&pending[..=end]));
                pending.drain(..=end);
            }
        }
        sink.lock().push_str(&String::from_utf8_lossy(&pending));
    });
    (text, reader)
}
