//! A TCP proxy between clients and a node: it can cut, stop or delay what goes through it, or ask for another path.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// A running proxy; its connections end with it.
pub struct Proxy {
    addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
    cut: watch::Sender<()>,
    mute: Arc<AtomicBool>,
    rules: watch::Sender<Rules>,
    late: Arc<Mutex<Vec<Late>>>,
    target: Arc<Mutex<SocketAddr>>,
    accepting: JoinHandle<()>,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From who has called.
    There,
    /// To it.
    Back,
}

/// What was delayed, and has come.
#[derive(Clone, Debug)]
pub struct Late {
    pub came: Instant,
    pub bytes: Vec<u8>,
}

/// What passes, and when.
#[derive(Clone, Default)]
struct Rules {
    /// Nothing does.
    frozen: bool,
    /// Nothing of these processes does.
    frozen_callers: BTreeSet<u32>,
    delays: Vec<Delay>,
}

/// What one process says, or hears, comes later.
#[derive(Clone, Copy)]
struct Delay {
    caller: u32,
    way: Way,
    by: Duration,
    since: Instant,
}

/// Whose connection it is, as far as somebody has asked.
#[derive(Default)]
struct Caller {
    ports: (u16, u16),
    known: BTreeMap<u32, bool>,
}

impl Caller {
    fn is(&mut self, process: u32) -> bool {
        let ports = self.ports;
        *self.known.entry(process).or_insert_with(|| has_connection(process, ports))
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
        let (rules, _) = watch::channel(Rules::default());
        let late = Arc::new(Mutex::default());
        let target = Arc::new(Mutex::new(target));
        let aim = target.clone();
        let (counter, cuts, muted, ruling) = (accepted.clone(), cut.clone(), mute.clone(), rules.clone());
        let delayed = late.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, from)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                let caller = Caller { ports: (from.port(), addr.port()), known: BTreeMap::new() };
                let (rules, late) = (ruling.subscribe(), delayed.clone());
                let gate = Gate { rules, caller: Arc::new(Mutex::new(caller)), late };
                let (aim, path, cut, mute) = (aim.clone(), path.clone(), cuts.subscribe(), muted.clone());
                tokio::spawn(async move {
                    gate.clone().open().await;
                    let target = *aim.lock();
                    pass(client, target, path, (cut, gate), mute).await;
                });
            }
        });
        Self { addr, accepted, cut, mute, rules, late, target, accepting }
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
        self.rules.send_modify(|rules| rules.frozen = on);
    }

    /// The same for the connections of one process of this machine.
    pub fn freeze_for(&self, process: u32, on: bool) {
        self.rules.send_modify(|rules| {
            let callers = &mut rules.frozen_callers;
            _ = if on { callers.insert(process) } else { callers.remove(&process) }
        });
    }

    /// From here on, what goes that way on the connections of one process of this machine comes so much later, in
    /// order. What is said in the first second comes up to a second later, and so on: no silence is at the beginning.
    pub fn delay_for(&self, caller: u32, way: Way, by: Duration) {
        let since = Instant::now();
        self.rules.send_modify(|rules| rules.delays.push(Delay { caller, way, by, since }));
    }

    /// What was delayed and has come, in the order of coming.
    pub fn came_late(&self) -> Vec<Late> {
        self.late.lock().clone()
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
    rules: watch::Receiver<Rules>,
    caller: Arc<Mutex<Caller>>,
    late: Arc<Mutex<Vec<Late>>>,
}

impl Gate {
    async fn open(&mut self) {
        let is_frozen = |process: &u32| self.caller.lock().is(*process);
        let is_open = |rules: &Rules| !rules.frozen && !rules.frozen_callers.iter().any(is_frozen);
        // Without a proxy nothing freezes any more.
        let _ = self.rules.wait_for(is_open).await;
    }

    /// When that comes which was said just now, if it is delayed.
    fn due(&self, way: Way) -> Option<Instant> {
        let (rules, now) = (self.rules.borrow(), Instant::now());
        let mut delays = rules.delays.iter();
        let Delay { by, since, .. } = delays.find(|delay| delay.way == way && self.caller.lock().is(delay.caller))?;
        Some(now + (*by).min(now - *since))
    }
}

/// Bytes on their way.
struct Piece {
    due: Instant,
    bytes: Vec<u8>,
}

/// Passes bytes on until both sides have said their last.
async fn both_ways(client: &mut TcpStream, server: &mut TcpStream, mute: &AtomicBool, gate: &Gate) -> io::Result<()> {
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let there = one_way(from_client, to_server, (Way::There, gate.clone()), None);
    let back = one_way(from_server, to_client, (Way::Back, gate.clone()), Some(mute));
    tokio::try_join!(there, back).map(drop)
}

/// Passes bytes on in order, each in its time, until there are no more.
async fn one_way(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    (way, mut gate): (Way, Gate),
    mute: Option<&AtomicBool>,
) -> io::Result<()> {
    let is_muted = || mute.is_some_and(|mute| mute.load(Ordering::Relaxed));
    let (mut chunk, mut end) = (vec![0; 16 << 10], None);
    let mut delayed = VecDeque::<Piece>::new();
    loop {
        let due = delayed.front().map_or_else(Instant::now, |Piece { due, .. }| *due);
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(due.into()), if !delayed.is_empty() => {
                gate.open().await;
                if let Some(Piece { bytes, .. }) = delayed.pop_front()
                    && !is_muted()
                {
                    to.write_all(&bytes).await?;
                    gate.late.lock().push(Late { came: Instant::now(), bytes });
                }
            }
            read = from.read(&mut chunk), if end.is_none() => match read {
                Ok(0) => end = Some(Ok(())),
                Err(error) => end = Some(Err(error)),
                Ok(count) => match gate.due(way) {
                    Some(due) => delayed.push_back(Piece { due, bytes: chunk[..count].to_vec() }),
                    None => {
                        gate.open().await;
                        if !is_muted() {
                            to.write_all(&chunk[..count]).await?;
                        }
                    }
                },
            },
        }
        if let Some(end) = end.take_if(|_| delayed.is_empty()) {
            end?;
            gate.open().await;
            return to.shutdown().await;
        }
    }
}

/// Passes on the request's first line with another path, and what was read behind it.
async fn replace_path(client: &mut TcpStream, server: &mut TcpStream, path: &str) -> io::Result<()> {
    let mut reader = BufReader::new(client);
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    let mut words = line.split(' ');
    let (method, version) = (words.next().unwrap_or_default(), words.next_back().unwrap_or_default());
    server.write_all(format!("{method} {path} {version}").as_bytes()).await?;
    server.write_all(reader.buffer()).await
}
