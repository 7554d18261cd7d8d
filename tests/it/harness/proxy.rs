//! A TCP proxy between clients and a node: it can cut what goes through it, or ask for another path.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, copy},
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
    accepting: JoinHandle<()>,
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
        let (counter, cuts, muted) = (accepted.clone(), cut.clone(), mute.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(pass(client, target, path.clone(), cuts.subscribe(), muted.clone()));
            }
        });
        Self { addr, accepted, cut, mute, accepting }
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
    mut cut: watch::Receiver<()>,
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
        _ = both_ways(&mut client, &mut server, &mute) => {}
        _ = cut.changed() => {
            for socket in [&client, &server] {
                // Without a time to linger, closing resets.
                let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
            }
        }
    }
}

/// Passes bytes on until both sides have said their last.
async fn both_ways(client: &mut TcpStream, server: &mut TcpStream, mute: &AtomicBool) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let up = async {
        copy(&mut from_client, &mut to_server).await?;
        to_server.shutdown().await
    };
    let down = async {
        let mut chunk = vec![0; 16 << 10];
        loop {
            let count = from_server.read(&mut chunk).await?;
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
