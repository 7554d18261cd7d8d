//! A TCP proxy between clients and a node: it can cut what goes through it, or ask for another path.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// A running proxy; its connections end with it.
pub struct Proxy {
    addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
    cut: watch::Sender<()>,
    mute: Arc<AtomicBool>,
    frozen: watch::Sender<Frozen>,
    target: Arc<Mutex<SocketAddr>>,
    accepting: JoinHandle<()>,
}

/// For whom nothing passes.
#[derive(Clone, Default)]
struct Frozen {
    all: bool,
    /// Processes.
    callers: BTreeSet<u32>,
}

/// Whose connection it is, as far as somebody has asked.
#[derive(Default)]
struct Caller {
    ports: (u16, u16),
    known: BTreeMap<u32, bool>,
}

impl Caller {
    fn is_among(&mut self, callers: &BTreeSet<u32>) -> bool {
        let ports = self.ports;
        callers.iter().any(|process| *self.known.entry(*process).or_insert_with(|| has_connection(*process, ports)))
    }
}

/// Whether a process has a connection from a port of this machine to another one.
fn has_connection(process: u32, (from, to): (u16, u16)) -> bool {
    let table = std::fs::read_to_string(format!("/proc/{process}/net/tcp")).unwrap_or_default();
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    let line = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|words| words.len() > 9 && port(words[1]) == Some(from) && port(words[2]) == Some(to));
    let Some(line) = line else { return false };
    let socket = format!("socket:[{}]", line[9]);
    let files = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    files.filter_map(|file| std::fs::read_link(file.path()).ok()).any(|link| link.as_os_str() == &*socket)
}

impl Proxy {
    /// Passes bytes on as they are.
    pub async fn to(target: SocketAddr) -> Self {
        Self::start(target, None).await
    }

    /// Asks for `path` whatever path the client asked for: for clients that cannot be told one.
    pub async fn to_path(target: SocketAddr, path: &str) -> Self {
        Self::start(target, Some(path.into())).await
    }

    async fn start(target: SocketAddr, path: Option<Arc<str>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let addr = listener.local_addr().expect("a bound socket");
        let (cut, _) = watch::channel(());
        let accepted = Arc::new(AtomicUsize::new(0));
        let mute = Arc::new(AtomicBool::new(false));
        let (frozen, _) = watch::channel(Frozen::default());
        let target = Arc::new(Mutex::new(target));
        let aim = target.clone();
        let (counter, cuts, muted, freezes) = (accepted.clone(), cut.clone(), mute.clone(), frozen.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((client, from)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                let caller = Caller { ports: (from.port(), addr.port()), known: BTreeMap::new() };
                let gate = Gate { frozen: freezes.subscribe(), caller: Arc::new(Mutex::new(caller)) };
                let (aim, path, cut, mute) = (aim.clone(), path.clone(), cuts.subscribe(), muted.clone());
                tokio::spawn(async move {
                    gate.clone().open().await;
                    let target = *aim.lock();
                    pass(client, target, path, (cut, gate), mute).await;
                });
            }
        });
        Self { addr, accepted, cut, mute, frozen, target, accepting }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many connections clients have made so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Whether what the server says is thrown away from here on.
    pub fn mute(&self, on: bool) {
        self.mute.store(on, Ordering::Relaxed);
    }

    /// Whether nothing passes from here on, in either direction, and nobody is told: a cable that is pulled. Nothing is
    /// lost, as TCP sends again what was.
    pub fn freeze(&self, on: bool) {
        self.frozen.send_modify(|frozen| frozen.all = on);
    }

    /// The same for the connections of one process of this machine.
    pub fn freeze_for(&self, process: u32, on: bool) {
        self.frozen.send_modify(|frozen| {
            _ = if on { frozen.callers.insert(process) } else { frozen.callers.remove(&process) }
        });
    }

    /// New connections go there; the others end.
    pub fn aim(&self, target: SocketAddr) {
        *self.target.lock() = target;
        self.cut();
    }

    /// Resets every connection; new ones are let through.
    pub fn cut(&self) {
        self.cut.send_replace(());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn pass(
    mut client: TcpStream,
    target: SocketAddr,
    path: Option<Arc<str>>,
    (mut cut, gate): (watch::Receiver<()>, Gate),
    mute: Arc<AtomicBool>,
) {
    // A node that is down: the client sees its connection end.
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    for socket in [&client, &server] {
        let _ = socket.set_nodelay(true);
    }
    if let Some(path) = path
        && replace_path(&mut client, &mut server, &path).await.is_err()
    {
        return;
    }
    tokio::select! {
        _ = both_ways(&mut client, &mut server, &mute, &gate) => {}
        _ = cut.changed() => {
            for socket in [&client, &server] {
                // Without a time to linger, closing resets.
                let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
            }
        }
    }
}

/// What each piece of a connection passes.
#[derive(Clone)]
struct Gate {
    frozen: watch::Receiver<Frozen>,
    caller: Arc<Mutex<Caller>>,
}

impl Gate {
    async fn open(&mut self) {
        let is_open = |frozen: &Frozen| !frozen.all && !self.caller.lock().is_among(&frozen.callers);
        // Without a proxy nothing freezes any more.
        let _ = self.frozen.wait_for(is_open).await;
    }
}

/// Passes bytes on until both sides have said their last.
async fn both_ways(
    client: &mut TcpStream,
    server: &mut TcpStream,
    mute: &AtomicBool,
    gate: &Gate,
) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let up = async {
        let (mut chunk, mut gate) = (vec![0; 16 << 10], gate.clone());
        loop {
            let count = from_client.read(&mut chunk).await?;
            gate.open().await;
            if count == 0 {
                return to_server.shutdown().await;
            }
            to_server.write_all(&chunk[..count]).await?;
        }
    };
    let down = async {
        let (mut chunk, mut gate) = (vec![0; 16 << 10], gate.clone());
        loop {
            let count = from_server.read(&mut chunk).await?;
            gate.open().await;
            if count == 0 {
                return to_client.shutdown().await;
            }
            if !mute.load(Ordering::Relaxed) {
                to_client.write_all(&chunk[..count]).await?;
            }
        }
    };
    tokio::try_join!(up, down).map(drop)
}

/// Passes on the request's first line with another path, and what was read behind it.
async fn replace_path(client: &mut TcpStream, server: &mut TcpStream, path: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(client);
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    let mut words = line.split(' ');
    let (method, version) = (words.next().unwrap_or_default(), words.next_back().unwrap_or_default());
    server.write_all(format!("{method} {path} {version}").as_bytes()).await?;
    server.write_all(reader.buffer()).await
}
