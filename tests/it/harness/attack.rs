//! Attacks, and what a good client on another address notices of them: nothing.
//!
//! An attack is a row: how many attackers, and what one of them does. While it goes on, events for a good client are
//! timed. Phases with and without the attack alternate, so that whatever else the machine does is in both, and their
//! medians are compared. The attackers have the lowest priority: on a small machine it would be their own use of the
//! processor that is measured, not what they make the node do.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustls::ClientConfig;
use tokio::sync::{Mutex, watch};
use toml::Value as Toml;

use super::{
    Event, Feed, Node,
    certs::Certs,
    dial::Dial,
    eventually,
    node::Builder,
    raw::RawWs,
    token,
    ws::{Connect, WsClient},
};

/// Where the good client is; attackers come from 127.0.0.1.
const GOOD_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const GOOD_USER: &str = "good";
/// How long a phase with, or without, the attack lasts.
const PHASE: Duration = Duration::from_millis(700);
/// Between two events for the good client: some hundred in each phase.
const PACE: Duration = Duration::from_millis(3);
/// Between two events for each attacker, in a row that has some.
const OTHERS_PACE: Duration = Duration::from_millis(30);
/// Phases after which the good client's log is full, and so is what is remembered of a thousand that have ended.
const WARM_UP: usize = 5;
/// How many notifications a user's log keeps: less than come in a phase.
const LOG: i64 = 300;
/// Pairs of phases: so many at least, and further ones while the ratio is not good. What the attack really costs stays;
/// what the machine did does not.
const ROUNDS: std::ops::RangeInclusive<usize> = 5..=20;
/// What the good client's 99th percentile may be, compared with that of the quiet phases.
const RATIO_MAX: f64 = 1.5;
/// What it may be where the attackers use all that the machine has left, and the ratio says how small that is.
const FULL_SPEED_MAX: Duration = Duration::from_secs(1);
/// How much the node's memory may grow while it goes on, in bytes.
const GROWTH_MAX: f64 = 20e6;
/// What the node's memory may be afterwards, compared with before.
const MEMORY_MAX: f64 = 1.1;

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Quiet,
    Attack,
}

/// A row of the table.
pub struct Attack {
    attackers: usize,
    keys: Vec<(&'static str, Toml)>,
    tls: Option<Arc<ClientConfig>>,
    events: Option<Event>,
    strikes_min: usize,
    at_full_speed: bool,
}

/// One who attacks.
pub struct Attacker {
    pub addr: SocketAddr,
    /// The gRPC port.
    pub grpc: SocketAddr,
    user: String,
    phase: watch::Receiver<Phase>,
    work: Arc<AtomicU64>,
}

impl Attacker {
    /// A good token of a user of its own.
    pub fn token(&self) -> String {
        token::valid(&self.user)
    }

    /// A WebSocket after its handshake.
    pub async fn websocket(&self) -> RawWs {
        RawWs::open(self.addr, &self.token()).await
    }

    /// Waits until the attack goes on, and counts one piece of it.
    pub async fn strike(&mut self) {
        // The other end is dropped when all is over, and this future with it.
        let _ = self.phase.wait_for(|phase| *phase == Phase::Attack).await;
        self.work.fetch_add(1, Ordering::Relaxed);
    }
}

impl Attack {
    /// By so many attackers at a time.
    pub fn by(attackers: usize) -> Self {
        Self { attackers, keys: Vec::new(), tls: None, events: None, strikes_min: attackers, at_full_speed: false }
    }

    /// By more than the node has threads to serve them.
    pub fn by_many() -> Self {
        Self::by(2 * std::thread::available_parallelism().map_or(4, usize::from) + 2)
    }

    /// With another value of a configuration key.
    pub fn set(mut self, key: &'static str, value: impl Into<Toml>) -> Self {
        self.keys.push((key, value.into()));
        self
    }

    /// On a client port that speaks TLS.
    pub fn over_tls(mut self, certs: &Certs) -> Self {
        let text = |path: std::path::PathBuf| path.to_str().expect("UTF-8").to_owned();
        self.tls = Some(certs.client());
        self.set("client.tls_cert_file", text(certs.cert())).set("client.tls_key_file", text(certs.key()))
    }

    /// It is no attack without so many strikes.
    pub fn at_least(mut self, strikes: usize) -> Self {
        self.strikes_min = strikes;
        self
    }

    /// As fast as the attackers can: the good client may notice, and is served all the same.
    pub fn at_full_speed(mut self) -> Self {
        self.at_full_speed = true;
        self
    }

    /// While such events come for the attackers too.
    pub fn with_events(mut self, event: Event) -> Self {
        self.events = Some(event);
        self
    }

    /// Runs it against a node of its own. Each attacker calls `turn` again and again until all is over, at whatever
    /// `await` it then is; [`Attacker::strike`] stands before each piece of the attack. A panic in it fails the test.
    pub async fn harms_nobody(self, turn: impl AsyncFn(&mut Attacker) + Clone + Send + 'static) {
        // Another row beside it would be an attack in the quiet phases too.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
        let _alone = ONE_AT_A_TIME.lock().await;
        let feed = Feed::new(1).await;
        let set = |builder: Builder, (key, value): (&str, Toml)| builder.set(key, value);
        let builder = Node::builder(&feed).set("log.per_user_max", LOG).set("sessions.idle_after", "1s");
        let node = self.keys.iter().cloned().fold(builder, set).start().await;
        let mut good = Good::connect(&node, feed.clone(), self.tls.clone()).await;
        let memory = async || node.metrics().await.sum("process_resident_memory_bytes");
        // What a log and its journal keep is no damage: all are full before memory is looked at.
        for _ in 0..WARM_UP {
            good.phase(None).await;
        }
        if let Some(event) = &self.events {
            for _ in 0..LOG {
                feed.send_all(&to_each(event, self.attackers, attacker)).await;
                feed.send_all(&to_each(event, self.attackers, absent)).await;
            }
        }
        let before = memory().await;

        let (phase, seen) = watch::channel(Phase::Quiet);
        let work = Arc::new(AtomicU64::new(0));
        let attackers: Vec<_> = (0..self.attackers)
            .map(|n| {
                let (phase, work) = (seen.clone(), work.clone());
                let (addr, grpc) = (node.addr(), node.grpc_addr());
                start(Attacker { addr, grpc, user: attacker(n), phase, work }, turn.clone())
            })
            .collect();

        let (mut quiet, mut attacked) = (Vec::new(), Vec::new());
        for round in 1..=*ROUNDS.end() {
            // The same traffic in both: it is no attack by itself.
            let events = |user| self.events.as_ref().map(|event| to_each(event, self.attackers, user));
            quiet.push(good.phase(events(absent)).await);
            phase.send_replace(Phase::Attack);
            attacked.push(good.phase(events(attacker)).await);
            phase.send_replace(Phase::Quiet);
            let struck = work.load(Ordering::Relaxed) >= self.strikes_min as u64;
            let enough = round >= *ROUNDS.start() && struck;
            if enough && (self.at_full_speed || median(&attacked) <= RATIO_MAX * median(&quiet)) {
                break;
            }
        }
        let (ratio, highest) = (median(&attacked) / median(&quiet), memory().await);
        drop(phase);
        for attacker in attackers {
            if let Err(panic) = attacker.join() {
                std::panic::resume_unwind(panic);
            }
        }
        let work = work.load(Ordering::Relaxed);
        println!("ratio {ratio:.2}, {work} strikes, memory {:.2} of that before", highest / before);
        println!("  quiet {quiet:.1?}\n  attacked {attacked:.1?} ms");
        assert!(work >= self.strikes_min as u64, "no attack: {work} strikes");
        let growth = highest - before;
        assert!(growth < GROWTH_MAX, "memory grew by {growth} bytes");
        if self.at_full_speed {
            let max = FULL_SPEED_MAX.as_secs_f64() * 1000.0;
            assert!(median(&attacked) <= max, "p99 is {:.0} ms", median(&attacked));
        } else {
            assert!(
                ratio <= RATIO_MAX,
                "p99 is {ratio:.2} x that of the quiet phases ({quiet:.1?}, {attacked:.1?} ms)"
            );
        }

        let after = eventually("only the good client is left, and memory is back", async || {
            let metrics = node.metrics().await;
            let after = metrics.sum("process_resident_memory_bytes");
            (metrics.sum("notifier_connections") == 1.0 && after <= MEMORY_MAX * before).then_some(after)
        });
        println!("  memory afterwards {:.2}", after.await / before);
    }
}

/// The good client and what comes for it.
struct Good {
    feed: Feed,
    client: WsClient,
    next: u64,
}

impl Good {
    async fn connect(node: &Node, feed: Feed, tls: Option<Arc<ClientConfig>>) -> Self {
        let dial = Dial::new(node.addr()).from(GOOD_ADDRESS);
        let dial = tls.into_iter().fold(dial, Dial::tls);
        let client = Connect::bearer(node.addr(), &node.token(GOOD_USER)).over(&dial).open().await;
        Self { feed, client, next: 0 }
    }

    /// Events for one phase, and now and then some for others; the 99th percentile of their latencies, in ms.
    async fn phase(&mut self, others: Option<Vec<Event>>) -> f64 {
        let started = Instant::now();
        let (feed, first) = (self.feed.clone(), self.next);
        let (sent, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
        let producing = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(PACE);
            let mut n = first;
            while started.elapsed() < PHASE {
                ticks.tick().await;
                let (feed, event) = (feed.clone(), Event::numbered(GOOD_USER, n));
                let _ = sent.send(Instant::now());
                // Not waited for here: the next one goes out in time.
                let written = tokio::spawn(async move { feed.send(&event).await });
                drop(written);
                n += 1;
            }
        });
        let others = others.map(|events| {
            let feed = self.feed.clone();
            tokio::spawn(async move {
                while started.elapsed() < PHASE {
                    feed.send_all(&events).await;
                    tokio::time::sleep(OTHERS_PACE).await;
                }
            })
        });
        let mut latencies = Vec::new();
        while let Some(sent) = arrivals.recv().await {
            let frame = self.client.one().await;
            latencies.push(sent.elapsed().as_secs_f64() * 1000.0);
            assert_eq!(frame.n(), self.next, "lost, repeated or out of order");
            self.next += 1;
            self.client.ack(frame.number()).await;
        }
        producing.await.expect("a producer never panics");
        if let Some(others) = others {
            others.await.expect("a producer never panics");
        }
        latencies.sort_by(f64::total_cmp);
        latencies[latencies.len() * 99 / 100]
    }
}

fn attacker(n: usize) -> String {
    format!("attacker-{n}")
}

/// A user who is away.
fn absent(n: usize) -> String {
    format!("absent-{n}")
}

fn to_each(event: &Event, count: usize, user: fn(usize) -> String) -> Vec<Event> {
    (0..count).map(|n| Event { user: user(n), ..event.clone() }).collect()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// A thread of the lowest priority with a runtime of its own.
fn start(mut attacker: Attacker, turn: impl AsyncFn(&mut Attacker) + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let this = Some(rustix::thread::gettid());
        rustix::process::setpriority_process(this, 19).expect("everybody may lower their priority");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut over = attacker.phase.clone();
            let attack = async {
                loop {
                    turn(&mut attacker).await;
                }
            };
            let over = async { while over.changed().await.is_ok() {} };
            tokio::select! { () = attack => {}, () = over => {} }
        });
    })
}
