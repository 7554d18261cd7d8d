//! Clients that flood: more of them than the node has workers, and a good client does not notice.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::harness::{
    Event, Feed, Node, eventually,
    raw::{RawWs, opcode},
};

/// What an event to a good client may take while the flood goes on.
const LATENCY_MAX: Duration = Duration::from_secs(1);
/// How much the node's memory may grow, in bytes.
const GROWTH_MAX: f64 = 20e6;
const FLOOD: Duration = Duration::from_secs(4);

/// Threads that write the same bytes again and again, and read nothing.
struct Flood {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    /// One thread for each of `sockets`, which are past their handshake.
    fn start(sockets: Vec<TcpStream>, bytes: &[u8]) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let flood = |mut socket: TcpStream| {
            // A write that the node does not take must not keep the thread from its end.
            socket.set_write_timeout(Some(Duration::from_millis(200))).expect("a valid time");
            let (stop, written, bytes) = (stop.clone(), written.clone(), bytes.to_vec());
            thread::spawn(move || {
                let mut at = 0;
                while !stop.load(Ordering::Relaxed) {
                    match socket.write(&bytes[at..]) {
                        Ok(count) => {
                            written.fetch_add(count as u64, Ordering::Relaxed);
                            at = (at + count) % bytes.len();
                        }
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        // The node has ended the connection: its right.
                        Err(_) => return,
                    }
                }
            })
        };
        let threads = sockets.into_iter().map(flood).collect();
        Self { stop, written, threads }
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// More than the node has workers.
fn flooders() -> usize {
    2 * thread::available_parallelism().map_or(4, usize::from) + 2
}

/// Opens a connection per flooder with `open`, floods them with `bytes`, and looks after a good client.
async fn is_harmless(open: impl AsyncFn(SocketAddr, &str) -> TcpStream, bytes: &[u8]) {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut good = node.connect("good").await;
    feed.send(&Event::numbered("good", 0)).await;
    good.one().await;
    let memory = async || node.metrics().await.sum("process_resident_memory_bytes");
    let mut sockets = Vec::new();
    for n in 0..flooders() {
        sockets.push(open(node.addr(), &node.token(&format!("flood-{n}"))).await);
    }
    let before = memory().await;
    let flood = Flood::start(sockets, bytes);
    let (started, mut worst, mut highest) = (Instant::now(), Duration::ZERO, before);
    let mut n = 1;
    while started.elapsed() < FLOOD {
        let sent = Instant::now();
        feed.send(&Event::numbered("good", n)).await;
        assert_eq!(good.one().await.n(), n);
        worst = worst.max(sent.elapsed());
        highest = highest.max(memory().await);
        n += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(flood.written() > 100_000, "no flood: {} bytes", flood.written());
    assert!(worst < LATENCY_MAX, "an event took {worst:?} beside the flood");
    let growth = highest - before;
    assert!(growth < GROWTH_MAX, "memory grew by {growth} bytes");
    drop(flood);
    eventually("only the good client is left", async || {
        (node.metrics().await.sum("notifier_connections") == 1.0).then_some(())
    })
    .await;
}

async fn websocket(addr: SocketAddr, token: &str) -> TcpStream {
    RawWs::open(addr, token).await.into_blocking()
}

async fn stream(addr: SocketAddr, token: &str) -> TcpStream {
    let authorization = format!("Bearer {token}");
    let headers = [("Authorization", authorization.as_str())];
    let request = crate::harness::http::Request { method: "GET", path: "/v1/stream", headers: &headers, body: "" };
    let opened = crate::harness::http::open(addr, request).await.expect("the client port answers");
    assert_eq!(opened.head.status, 200, "{:?}", opened.head);
    let socket = opened.socket.into_std().expect("a socket of the runtime");
    socket.set_nonblocking(false).expect("a socket");
    socket
}

/// Many whole masked frames of one kind.
fn frames(opcode: u8, payload: usize) -> Vec<u8> {
    let length = u8::try_from(payload).expect("a control frame's payload");
    let mut frame = vec![0x80 | opcode, 0x80 | length, 0, 0, 0, 0];
    frame.resize(frame.len() + payload, b'x');
    frame.repeat(4096)
}

#[tokio::test]
async fn pings_from_clients_that_read_nothing_harm_nobody() {
    is_harmless(websocket, &frames(opcode::PING, 125)).await;
}

#[tokio::test]
async fn pongs_that_nobody_asked_for_harm_nobody() {
    is_harmless(websocket, &frames(opcode::PONG, 0)).await;
}

#[tokio::test]
async fn repeated_acknowledgements_harm_nobody() {
    let mut frame = vec![0x80 | opcode::TEXT, 0x80 | 9, 0, 0, 0, 0];
    frame.extend_from_slice(b"{\"ack\":0}");
    is_harmless(websocket, &frame.repeat(4096)).await;
}

#[tokio::test]
async fn bytes_on_an_event_stream_harm_nobody() {
    is_harmless(stream, &vec![b'x'; 1 << 16]).await;
}

/// The CPU time that a process has used.
fn cpu(pid: u32) -> Duration {
    /// `sysconf(_SC_CLK_TCK)` on every Linux of today.
    const TICKS_PER_SECOND: u64 = 100;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    // The second field, in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(')').expect("proc(5)");
    let field = |index: usize| rest.split_whitespace().nth(index).and_then(|text| text.parse::<u64>().ok());
    let (user, system) = (field(11).expect("utime"), field(12).expect("stime"));
    Duration::from_millis((user + system) * 1000 / TICKS_PER_SECOND)
}

#[tokio::test]
async fn clients_that_ignore_their_close_cost_no_cpu_even_when_events_arrive_for_them() {
    const WINDOW: Duration = Duration::from_secs(2);
    const CPU_MAX: Duration = Duration::from_millis(500);
    // Named: what it is; the opcode and the payload that are sent.
    let garbage: [(&str, u8, &[u8]); 4] = [
        ("a reserved opcode", 3, b"x"),
        ("text that is no acknowledgement", opcode::TEXT, b"hello"),
        ("text that is not UTF-8", opcode::TEXT, b"\xff\xfe"),
        ("a binary frame", 2, b"x"),
    ];
    for (what, opcode, payload) in garbage {
        let feed = Feed::new(1).await;
        let mut node = Node::start(&feed).await;
        let mut hostile = Vec::new();
        for _ in 0..flooders() {
            let mut peer = RawWs::open(node.addr(), &node.token("101")).await;
            peer.send(opcode, payload).await;
            // And something behind it that nobody will read as frames.
            peer.write(&[0xff; 2000]).await;
            hostile.push(peer);
        }
        let pid = node.process().id();
        let (before, started) = (cpu(pid), Instant::now());
        let mut n = 0;
        while started.elapsed() < WINDOW {
            feed.send(&Event::numbered("101", n)).await;
            n += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let used = cpu(pid) - before;
        assert!(used < CPU_MAX, "{what}: {used:?} of CPU in {WINDOW:?}");
        // They do not stay for ever either.
        eventually("no connections", async || (node.metrics().await.sum("notifier_connections") == 0.0).then_some(()))
            .await;
        drop(hostile);
    }
}
