//! A server of the comparison as a child process: configured, started, awaited and stopped.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::admin::Admin;
use crate::client::{Endpoint, Protocol};
use crate::interrupt::Undo;
use crate::kafka::Topic;
use crate::process::Process;

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// How much of a failed server's log is shown, in bytes.
const LOG_TAIL: usize = 2_000;

/// What is started.
#[derive(Debug, Clone, Copy)]
pub enum Program<'a> {
    /// This tool's bare server.
    Floor,
    /// The product, with more configuration over what every measurement needs, each over the one before.
    Notifier { binary: &'a Path, more: &'a [String] },
}

/// A running server. Killed when dropped, if it was not stopped before.
pub struct Server {
    command: Command,
    child: Child,
    process: Process,
    /// CPU of the lives before this one.
    spent: Duration,
    endpoint: Endpoint,
    grpc: SocketAddr,
    admin: Admin,
    log: PathBuf,
    /// `None`: it has ended.
    undo: Option<Undo>,
    /// Holds the configuration and the log.
    _dir: TempDir,
}

impl Server {
    /// Starts it on free ports of loopback and waits until it is ready.
    pub fn start(program: Program<'_>, topic: &Topic, secret: &str) -> Result<Self> {
        let dir = tempfile::tempdir().context("temporary directory")?;
        let [client, grpc, admin, link] = free_addresses()?;
        let mut command = match program {
            Program::Floor => {
                let mut command = Command::new(std::env::current_exe().context("own binary")?);
                command.args(["floor", "--listen", &client.to_string()]).args([
                    "--brokers",
                    &topic.brokers,
                    "--topic",
                    &topic.name,
                ]);
                command
            }
            Program::Notifier { binary, more } => {
                let path = dir.path().join("notifier.toml");
                let base = config([client, grpc, admin, link], topic, secret);
                let text = more.iter().try_fold(base, |base, over| merged(&base, over))?;
                fs::write(&path, text).context("configuration")?;
                let mut command = Command::new(binary);
                command.arg("serve").arg("--config").arg(path);
                command
            }
        };
        let log = dir.path().join("log");
        let out = File::create(&log).context("log")?;
        command.current_dir(dir.path()).stdin(Stdio::null()).stdout(out.try_clone().context("log")?).stderr(out);
        let child = spawned(&mut command)?;
        let process = Process::new(child.id())?;
        let mut server = Self {
            command,
            child,
            process,
            spent: Duration::ZERO,
            endpoint: Endpoint::parse(&format!("ws://{client}"), Protocol::Websocket, false)?,
            grpc,
            admin: Admin(admin),
            log,
            undo: Some(process.kill_on_interrupt()),
            _dir: dir,
        };
        match program {
            Program::Floor => server.wait(|| TcpStream::connect(client).is_ok())?,
            Program::Notifier { .. } => server.wait(|| Admin(admin).is_ready())?,
        }
        Ok(server)
    }

    pub fn process(&self) -> Process {
        self.process
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Where clients of that protocol come in; the bare server knows only one.
    pub fn endpoint_for(&self, protocol: Protocol) -> Result<Endpoint> {
        let url = match protocol {
            Protocol::Websocket | Protocol::WebsocketProto => format!("ws://{}", self.endpoint.address),
            Protocol::Sse => format!("http://{}", self.endpoint.address),
            Protocol::Grpc => format!("http://{}", self.grpc),
        };
        Endpoint::parse(&url, protocol, false)
    }

    /// The product's admin port; nobody listens on the bare server's.
    pub fn admin(&self) -> Admin {
        self.admin
    }

    /// CPU of the lives before this one.
    pub fn spent(&self) -> Duration {
        self.spent
    }

    /// SIGKILL. [`Self::ended`] says when it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("kill")
    }

    /// SIGTERM, without waiting.
    pub fn terminate(&self) -> Result<()> {
        self.process.terminate()
    }

    /// How it has ended; `None` while it runs. What it has cost until then is not forgotten.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.undo.is_some() {
            if self.process.is_alive() {
                return Ok(None);
            }
            // A process that has ended can be read until it is waited for.
            self.spent += self.process.cpu()?;
            self.undo = None;
        }
        self.child.wait().map(Some).context("waiting for the server")
    }

    /// Starts one that has ended once more, with the same addresses and configuration. Does not wait.
    pub fn start_again(&mut self) -> Result<()> {
        self.child = spawned(&mut self.command)?;
        self.process = Process::new(self.child.id())?;
        self.undo = Some(self.process.kill_on_interrupt());
        Ok(())
    }

    /// SIGTERM, and SIGKILL when that is not enough in time. The bare server knows no better end
    /// than the signal.
    pub fn stop(&mut self) -> Result<()> {
        self.tell_to_stop()?;
        self.stopped()
    }

    /// SIGTERM, unless this tool has ended it already.
    ///
    /// # Errors
    ///
    /// When it had ended by itself.
    pub fn tell_to_stop(&mut self) -> Result<()> {
        if self.undo.is_none() {
            return Ok(());
        }
        if let Some(status) = self.child.try_wait().context("waiting for the server")? {
            bail!("the server had ended by itself: {status}; {}", self.log_tail());
        }
        self.process.terminate()
    }

    /// Waits until it has ended, and kills it when that takes too long.
    pub fn stopped(&mut self) -> Result<()> {
        let deadline = Instant::now() + STOP_LIMIT;
        while Instant::now() < deadline {
            if self.child.try_wait().context("waiting for the server")?.is_some() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.child.kill().context("kill")?;
        self.child.wait().context("waiting for the server")?;
        bail!("the server did not end within {STOP_LIMIT:?} of SIGTERM");
    }

    /// The end of what it wrote, for error messages.
    pub fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(LOG_TAIL)..];
        format!("the server's log ends:\n{}", String::from_utf8_lossy(tail))
    }

    fn wait(&mut self, ready: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while !ready() {
            if let Some(status) = self.child.try_wait().context("waiting for the server")? {
                bail!("the server ended at its start: {status}; {}", self.log_tail());
            }
            if Instant::now() > deadline {
                bail!("not ready after {START_LIMIT:?}; {}", self.log_tail());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawned(command: &mut Command) -> Result<Child> {
    command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))
}

/// Everything as by default, but what a measurement on loopback needs otherwise.
fn config([client, grpc, admin, link]: [SocketAddr; 4], topic: &Topic, secret: &str) -> String {
    let Topic { brokers, name, .. } = topic;
    format!(
        r#"[node]
id = "loadtest"
[client]
listen = "{client}"
[grpc]
listen = "{grpc}"
[admin]
listen = "{admin}"
[cluster]
listen = "{link}"
[kafka]
brokers = "{brokers}"
topic = "{name}"
group = "{name}"
dead_letter_topic = "{name}.dlq"
receipts_topic = ""
[auth.jwt]
hs256_secret = "{secret}"
[limits]
connects_per_second = 0
# All clients of a process have one address.
handshakes_per_address = 512
# The floor has no limits: with one priority named, the others have none.
[[limits.delivery]]
priority = "low"
[drain]
deadline = "5s"
"#
    )
}

/// One configuration over another: tables are merged, other values replaced.
fn merged(base: &str, over: &str) -> Result<String> {
    let mut table: toml::Table = base.parse().context("configuration")?;
    merge(&mut table, over.parse().context("configuration")?);
    toml::to_string(&table).context("configuration")
}

fn merge(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Free now, all held at once so that they differ; nobody else on the machine should be taking
/// ports at random.
fn free_addresses<const N: usize>() -> Result<[SocketAddr; N]> {
    let listeners: Vec<TcpListener> = (0..N)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<Result<_, _>>()
        .context("no free port")?;
    let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); N];
    for (address, listener) in addresses.iter_mut().zip(&listeners) {
        *address = listener.local_addr().context("no free port")?;
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_configuration_over_another_keeps_what_it_does_not_name() {
        let base =
            "[limits]\nconnects_per_second = 0\n[[limits.delivery]]\npriority = \"low\"\n[drain]\ndeadline = \"5s\"\n";
        let over = "[store]\nurl = 'sqlite:x'\n[[limits.delivery]]\npriority = \"normal\"\n";
        let merged: toml::Table = merged(base, over).unwrap().parse().unwrap();
        assert_eq!(merged["limits"]["connects_per_second"].as_integer(), Some(0));
        let delivery = merged["limits"]["delivery"].as_array().unwrap();
        assert_eq!(delivery.len(), 1);
        assert_eq!(delivery[0]["priority"].as_str(), Some("normal"));
        assert_eq!(
            (merged["store"]["url"].as_str(), merged["drain"]["deadline"].as_str()),
            (Some("sqlite:x"), Some("5s"))
        );
    }
}
