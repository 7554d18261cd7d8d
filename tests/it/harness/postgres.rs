//! A private PostgreSQL: a test may stop it, give it no room, or put an older copy in its place.

use std::{
    os::unix::fs::{MetadataExt as _, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tempfile::TempDir;

use super::{
    certs::Certs,
    node::free_ports,
    process::{Process, command, files_max, required},
    wait::{DEADLINE, eventually},
};

/// The password that the superuser begins with.
pub const PASSWORD: &str = "first";

/// How a server is told to end.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    /// Connections are ended, everything is written.
    Fast,
    /// As in a crash: the next start reads the write-ahead log.
    Immediate,
}

/// One real server with its data in a temporary directory.
pub struct PrivatePostgres {
    directory: TempDir,
    port: u16,
    settings: Vec<String>,
    process: Option<Process>,
    copies: usize,
}

impl PrivatePostgres {
    /// A running server that asks for [`PASSWORD`].
    pub async fn started() -> Self {
        Self::with(Vec::new(), |_| Vec::new()).await
    }

    /// One that has a certificate for the address that it listens on.
    pub async fn with_tls(certs: &Certs) -> Self {
        let (cert, key) = (certs.cert(), certs.key());
        Self::with(vec![("node.pem", cert), ("node.key", key)], |directory| {
            let path = |name| directory.join(name).display().to_string();
            vec![
                "ssl=on".into(),
                format!("ssl_cert_file={}", path("node.pem")),
                format!("ssl_key_file={}", path("node.key")),
            ]
        })
        .await
    }

    async fn with(files: Vec<(&str, PathBuf)>, settings: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let directory = room();
        let path = directory.path();
        std::fs::write(path.join("password"), PASSWORD).expect("a writable directory");
        for (name, from) in files {
            std::fs::copy(from, path.join(name)).expect("a writable directory");
            owned(&path.join(name), 0o600);
        }
        owned(&path.join("password"), 0o600);
        let [port] = free_ports();
        let mut server = Self { port, settings: settings(path), process: None, copies: 0, directory };
        let mut initdb = server.command("initdb");
        initdb.arg("-D").arg(server.data()).arg(format!("--pwfile={}", server.path("password").display()));
        // Small segments, so that a bound on the size of files leaves the write-ahead log alone.
        initdb.args(["-U", "notifier", "--auth=scram-sha-256", "--no-sync", "--locale=C", "--wal-segsize=1"]);
        initdb.arg("--encoding=UTF8");
        Process::run("initdb", initdb, DEADLINE).await.ok();
        server.start().await;
        server
    }

    /// A server that follows this one, which from here on answers a commit only when that one has it.
    pub async fn synchronous_standby(&self) -> Self {
        let directory = room();
        let [port] = free_ports();
        let mut standby = Self { port, settings: Vec::new(), process: None, copies: 0, directory };
        let mut copy = standby.command("pg_basebackup");
        let from = format!("host=127.0.0.1 port={} user=notifier password={PASSWORD}", self.port);
        copy.arg("-D").arg(standby.data()).args(["-R", "-X", "stream", "--checkpoint=fast", "--no-sync", "-d", &from]);
        Process::run("pg_basebackup", copy, DEADLINE).await.ok();
        standby.start().await;
        let mut primary = self.connect().await;
        for setting in ["alter system set synchronous_standby_names = '*'", "select pg_reload_conf()"] {
            execute(&mut primary, setting).await;
        }
        let follows = "select exists (select from pg_stat_replication where sync_state = 'sync')";
        eventually("a synchronous standby", async || {
            sqlx::query_scalar::<_, bool>(follows).fetch_one(&mut primary).await.expect("an answer").then_some(())
        })
        .await;
        standby
    }

    /// A standby takes its primary's place.
    pub async fn promote(&self) {
        execute(&mut self.connect().await, "select pg_promote()").await;
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn data(&self) -> PathBuf {
        self.path("data")
    }

    /// One of the server's programs.
    fn command(&self, program: &str) -> Command {
        self.as_its_user(&Path::new(&required("NOTIFIER_TEST_POSTGRES_BIN")).join(program))
    }

    /// A program as a user that the server accepts: it refuses to run as root.
    fn as_its_user(&self, program: &Path) -> Command {
        let Some((user, group)) = other_user(self.directory.path()) else { return command(program) };
        let mut command = command("setpriv");
        command.args([&format!("--reuid={user}"), &format!("--regid={group}"), "--clear-groups", "--"]);
        // The change of the user takes the wish of the outer one back.
        command.args(["setpriv", "--pdeathsig", "QUIT", "--"]).arg(program);
        command.current_dir("/");
        command
    }

    /// Starts it, with the data it had before, and waits until it serves.
    pub async fn start(&mut self) {
        assert!(self.process.is_none(), "the server runs already");
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string()]);
        let fixed =
            ["listen_addresses=127.0.0.1,127.0.0.2", "unix_socket_directories=", "fsync=off", "max_connections=100"];
        for setting in fixed.into_iter().chain(self.settings.iter().map(String::as_str)) {
            command.args(["-c", setting]);
        }
        let mut process = Process::spawn("postgres", command);
        eventually("a server that serves", async || {
            assert!(process.running(), "the server ended before it served: {}", process.stderr());
            process.stderr().contains("ready to accept").then_some(())
        })
        .await;
        self.process = Some(process);
    }

    /// Ends it and waits for that.
    pub async fn stop(&mut self, how: Stop) {
        let process = self.process.take().expect("the server runs");
        process.signal(match how {
            Stop::Fast => "INT",
            Stop::Immediate => "QUIT",
        });
        process.finish(DEADLINE).await;
    }

    /// Keeps a copy of what it holds now. The server must not run.
    pub fn copy(&mut self) -> PathBuf {
        self.copies += 1;
        let copy = self.path(&format!("copy{}", self.copies));
        self.copy_all(&self.data(), &copy);
        copy
    }

    /// Puts a copy in the place of what it holds. The server must not run.
    pub fn restore(&mut self, copy: &Path) {
        std::fs::remove_dir_all(self.data()).expect("our directory");
        self.copy_all(copy, &self.data());
    }

    fn copy_all(&self, from: &Path, to: &Path) {
        assert!(self.process.is_none(), "a copy of a running server is worth nothing");
        let status = Command::new("cp").arg("-a").arg(from).arg(to).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot copy {}", from.display());
    }

    /// Its address without a database.
    pub fn url(&self) -> String {
        format!("postgres://notifier:{PASSWORD}@127.0.0.1:{}", self.port)
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// No file may grow beyond so many bytes, as on a full disk; `None`: there is room again.
    pub async fn files_max(&self, bytes: Option<u64>, connection: &mut PgConnection) {
        let bound = |pid| files_max(self.as_its_user(Path::new("prlimit")), pid, bytes);
        // The first one is whom the others are born of.
        assert!(bound(self.process.as_ref().expect("the server runs").id()), "prlimit says no");
        let all = sqlx::query_scalar::<_, i32>("select pid from pg_stat_activity").fetch_all(connection).await;
        for pid in all.expect("an answer") {
            // One that has ended meanwhile is no harm.
            bound(u32::try_from(pid).expect("a process"));
        }
    }

    /// A connection of the test's own.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&format!("{}/postgres", self.url())).await.expect("the server lets us in")
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        // Killed, it would leave its shared memory behind.
        let Some(process) = &mut self.process else { return };
        process.signal("QUIT");
        for _ in 0..100 {
            if !process.running() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A directory with another one for data in it, whose user has to get in and may be another one.
fn room() -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o711)).expect("our directory");
    let data = directory.path().join("data");
    std::fs::create_dir(&data).expect("a writable directory");
    owned(&data, 0o700);
    directory
}

/// Gives a path to the server's user.
fn owned(path: &Path, mode: u32) {
    if let Some((user, group)) = other_user(path) {
        chown(path, Some(user), Some(group)).expect("root may do that");
    }
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("our file");
}

/// Runs statements on a connection of the test's own.
pub async fn execute(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.expect("the statement is good");
}

/// Whose the server has to be when the tests run as root: of what they make root is the owner.
fn other_user(made: &Path) -> Option<(u32, u32)> {
    if made.metadata().expect("made before").uid() != 0 {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").expect("a list of users");
    let of = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut ids = line.split(':').skip(2).map(|id| id.parse().ok());
        Some((ids.next()??, ids.next()??))
    };
    Some(of("postgres").or_else(|| of("nobody")).expect("a user that is not root"))
}
