//! Light traffic that goes on while a test does damage: a producer, clients at all nodes that reconnect as real ones do,
//! and notes of everything for [`History`].

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::{
    Event, Feed,
    carrier::{self, Ask, Carrier, Doors},
    cluster::Cluster,
    history::{Connection, History, Saw, Written},
    node::Node,
    token,
    wait::{eventually, within},
    ws::Step,
};

/// What the producer writes, so often, for so many users each time; and who reads it.
#[derive(Clone, Copy)]
pub struct Load {
    pub every: Duration,
    pub users: usize,
    /// Events of each.
    pub each: usize,
    /// Whether every third user gets something now and then only, and has time to fall asleep.
    pub has_sleepers: bool,
    /// What clients speak, in turn.
    pub carriers: &'static [Carrier],
}

pub const LIGHT: Load = Load {
    every: Duration::from_millis(50),
    users: 4,
    each: 1,
    has_sleepers: false,
    carriers: &[Carrier::WebSocketJson],
};
/// So that something is always under way.
pub const BUSY: Load = Load { every: Duration::from_millis(20), users: 8, ..LIGHT };
/// A sleeper gets something in one of so many of its turns: every four to five seconds, while busy.
const SELDOM: usize = 75;
/// Each user has had its turn.
const ROUND: Duration = Duration::from_secs(1);
/// Of so many events, one is transient.
const TRANSIENT: u64 = 5;
/// Events of a burst.
const BURST: usize = 500;
/// Clients acknowledge one of so many numbers.
const ACKNOWLEDGED: u64 = 3;
/// Those that need a request of its own for it, one of so many.
const ACKNOWLEDGED_BY_REQUEST: u64 = 24;
/// After so long a silence they acknowledge all: nobody may be taken for one that never does.
const QUIET: Duration = Duration::from_secs(5);
/// The same of sleepers: before that they stay awake.
const DROWSY: Duration = Duration::from_millis(300);
/// How long a client waits for a node's greeting, and before it tries the next one.
const GREETING: Duration = Duration::from_secs(8);
const RETRY: Duration = Duration::from_millis(200);
/// What the names of its users begin with.
const USER: &str = "user-";
/// How long everybody may take to get everything when all is well again.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often to look whether everybody has everything.
const LOOK: Duration = Duration::from_millis(100);
/// How long something that must not come is waited for.
const AFTERMATH: Duration = Duration::from_millis(500);
/// So many faults are printed.
const SHOWN: usize = 30;

/// Where clients connect, and what happened to the node there.
#[derive(Clone, Copy)]
struct Place {
    doors: Doors,
    /// It may end connections now.
    is_hurt: bool,
    /// How often it was hurt so far.
    hurts: u64,
}

#[derive(Default)]
struct Shared {
    history: Mutex<History>,
    places: Mutex<Vec<Place>>,
    stop: AtomicBool,
    /// So many bursts in which a user's actor crashes are to be written.
    crashes: AtomicUsize,
}

/// Traffic that runs.
pub struct Traffic {
    shared: Arc<Shared>,
    producer: JoinHandle<()>,
    clients: Vec<JoinHandle<()>>,
}

/// Every third user has a second client, at another node.
const SECOND: usize = 3;

/// Every third user, of whom some have a second client and some not.
fn is_sleeper(user: usize) -> bool {
    (user + user / SECOND).is_multiple_of(3)
}

impl Traffic {
    /// Connects clients of so many users to all nodes, and begins to write a little when all are there.
    pub async fn start(cluster: &Cluster, users: usize) -> Self {
        Self::start_with(cluster, users, LIGHT).await
    }

    /// The same, and writes more.
    pub async fn start_busy(cluster: &Cluster, users: usize) -> Self {
        Self::start_with(cluster, users, BUSY).await
    }

    /// The same, and writes that much.
    pub async fn start_with(cluster: &Cluster, users: usize, load: Load) -> Self {
        let shared = Arc::new(Shared::default());
        for node in &cluster.nodes {
            place(&shared, node);
        }
        let nodes = cluster.nodes.len();
        let mut clients = Vec::new();
        for user in 0..users {
            let devices: &[&str] = if user % SECOND == 0 { &["first", "second"] } else { &[""] };
            for (at, device) in devices.iter().enumerate() {
                let client = Client {
                    shared: shared.clone(),
                    me: clients.len(),
                    user: name(user),
                    device: (*device).to_owned(),
                    node: (user + at) % nodes,
                    carrier: load.carriers[clients.len() % load.carriers.len()],
                    quiet: if load.has_sleepers && is_sleeper(user) { DROWSY } else { QUIET },
                    // The others take what follows the cursor.
                    names_since: user % 2 == 0,
                    last: None,
                };
                clients.push(tokio::spawn(client.run()));
            }
        }
        let all = clients.len();
        eventually("all clients are connected", async || {
            (shared.history.lock().connections.len() >= all).then_some(())
        })
        .await;
        let producer = tokio::spawn(produce(cluster.feed.clone(), shared.clone(), users, load));
        Self { shared, producer, clients }
    }

    /// A node that joined later.
    pub fn joined(&self, node: &Node) {
        place(&self.shared, node);
    }

    /// From here on the node may end connections.
    pub fn hurt(&self, node: usize) {
        let place = &mut self.shared.places.lock()[node];
        place.is_hurt = true;
        place.hurts += 1;
    }

    /// From here on it must keep those that clients make to it.
    pub fn well(&self, node: usize) {
        self.shared.places.lock()[node].is_hurt = false;
    }

    /// With the next events, a user gets a burst of them that crashes its actor.
    pub fn crash(&self) {
        self.shared.crashes.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes nothing more.
    pub fn pause(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// How many events were written, and which part of them the client has had that has had the fewest.
    pub fn so_far(&self) -> (usize, f64) {
        let history = self.shared.history.lock();
        let mut durable: HashMap<&str, usize> = HashMap::new();
        for event in history.written.iter().filter(|event| event.durable) {
            *durable.entry(&event.user).or_default() += 1;
        }
        let part = |connection: &Connection| {
            let is_durable = |saw: &&(Instant, Saw)| matches!(saw.1, Saw::Notification { seq: Some(_), .. });
            let seen = connection.saw.iter().filter(is_durable).count();
            seen as f64 / durable.get(connection.user.as_str()).copied().unwrap_or_default().max(1) as f64
        };
        (history.written.len(), history.connections.iter().map(part).fold(1.0, f64::min))
    }

    /// Whether everybody has had everything.
    pub fn is_complete(&self) -> bool {
        self.producer.is_finished() && self.shared.history.lock().is_complete()
    }

    /// Lets it go on for a while.
    pub async fn flow(&self, time: Duration) {
        tokio::time::sleep(time).await;
        assert!(!self.producer.is_finished(), "the producer has ended");
    }

    /// Waits until every client has had everything that is written by then; the traffic goes on.
    pub async fn flows(&self) {
        self.flow(ROUND).await;
        let until = self.shared.history.lock().written.len();
        let began = Instant::now();
        while !self.shared.history.lock().is_complete_up_to(until) {
            if began.elapsed() > PATIENCE {
                let history = self.shared.history.lock();
                let lost: Vec<_> = history.missing(&history.written[..until]).into_iter().take(SHOWN).collect();
                panic!("not within {PATIENCE:?}: everything that was written; lost (client, user, n): {lost:?}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends the traffic, and waits until everybody has everything, but no longer than that.
    pub async fn end(self, cluster: &Cluster, patience: Duration) -> History {
        self.shared.stop.store(true, Ordering::Relaxed);
        let Self { shared, producer, clients } = self;
        within("the producer's end", producer).await.expect("the producer does not panic");
        let ended = Instant::now();
        while !shared.history.lock().is_complete() && ended.elapsed() < patience {
            assert!(!clients.iter().any(JoinHandle::is_finished), "a client has ended");
            tokio::time::sleep(LOOK).await;
        }
        tokio::time::sleep(AFTERMATH).await;
        clients.iter().for_each(JoinHandle::abort);
        let mut history = std::mem::take(&mut *shared.history.lock());
        history.rows = cluster.store.rows().await;
        // A script may have users of its own beside it.
        history.rows.retain(|row| row.user.starts_with(USER));
        history.writers = cluster.store.writers().await;
        history
    }

    /// Ends the traffic, waits until everybody has everything, and checks all of it.
    pub async fn check(self, cluster: &Cluster) -> Checked {
        let history = self.end(cluster, PATIENCE).await;
        let faults = history.faults();
        let (events, connections) = (history.written.len(), history.connections.len());
        let stayed = history.delays().into_iter().filter(|delay| delay.closed.is_none());
        let longest = stayed.map(|delay| delay.took()).max().unwrap_or_default();
        let rows = history.rows.len();
        println!("{events} events, {connections} connections, {rows} rows; to who stayed {longest:.1?} at the most");
        for fault in faults.iter().take(SHOWN) {
            eprintln!("{fault:?}");
            history.explain(fault);
        }
        assert!(faults.is_empty(), "{} promises are broken; the first: {:?}", faults.len(), faults[0]);
        assert!(events > 0 && !history.rows.is_empty(), "nothing was written");
        Checked(history)
    }
}

/// A history without a fault.
pub struct Checked(History);

impl Checked {
    /// Everybody who stayed connected has had something new within `bound`: see [`History::silence_after`].
    pub fn is_silent_for_less_than(&self, bound: Duration, what: &str, fault: Instant) {
        let silence = self.0.silence_after(fault).expect("somebody has stayed connected");
        println!("{what}: everybody has had something {silence:?} later");
        assert!(silence < bound, "{what}: {silence:?} of silence, and {bound:?} are the bound");
    }

    pub fn history(&self) -> &History {
        &self.0
    }

    /// Since when all clients of a user have had an event. `None`: one has not.
    pub fn had(&self, user: &str, n: u64) -> Option<Instant> {
        let mut had: HashMap<usize, Option<Instant>> = HashMap::new();
        for connection in self.0.connections.iter().filter(|connection| connection.user == user) {
            let is_it = |saw: &Saw| matches!(saw, Saw::Notification { n: seen, .. } if *seen == n);
            let first = connection.saw.iter().find(|(_, saw)| is_it(saw)).map(|(at, _)| *at);
            let had = had.entry(connection.client).or_default();
            *had = had.or(first);
        }
        had.into_values().collect::<Option<Vec<_>>>()?.into_iter().max()
    }
}

fn name(user: usize) -> String {
    format!("{USER}{user}")
}

fn place(shared: &Shared, node: &Node) {
    shared.places.lock().push(Place { doors: Doors::of(node), is_hurt: false, hurts: 0 });
}

async fn produce(feed: Feed, shared: Arc<Shared>, users: usize, load: Load) {
    let mut next = vec![0; users];
    let mut turn = (0..users).cycle();
    let mut turns = vec![0_usize; users];
    let mut ticks = tokio::time::interval(load.every);
    while !shared.stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let (mut written, mut events) = (Vec::new(), Vec::new());
        let mut write = |user: usize, events: &mut Vec<Event>, written: &mut Vec<Written>| {
            let n = next[user];
            next[user] += 1;
            let durable = !(n + user as u64).is_multiple_of(TRANSIENT);
            let event = Event::numbered(&name(user), n);
            // Half of them have an id of their own.
            let event = if n.is_multiple_of(2) { event.id(&format!("{}-{n}", name(user))) } else { event };
            events.push(if durable { event } else { event.transient() });
            written.push(Written { user: name(user), n, durable, at: Instant::now() });
        };
        for user in turn.by_ref().take(load.users) {
            turns[user] += 1;
            let is_asleep = load.has_sleepers && is_sleeper(user) && !turns[user].is_multiple_of(SELDOM);
            let count = if is_asleep { 0 } else { load.each };
            (0..count).for_each(|_| write(user, &mut events, &mut written));
        }
        if shared.crashes.load(Ordering::Relaxed) > 0 {
            shared.crashes.fetch_sub(1, Ordering::Relaxed);
            let user = turn.next().expect("it goes on for ever");
            for at in 0..BURST {
                // One after the other: something is to be under way whenever the actor crashes.
                shared.history.lock().written.append(&mut written);
                feed.send_all(&std::mem::take(&mut events)).await;
                write(user, &mut events, &mut written);
                let next = turn.next().expect("it goes on for ever");
                write(next, &mut events, &mut written);
                if at % (BURST / 2) == 3 {
                    events.push(Event::new(&name(user), "fault.user"));
                }
            }
        }
        // Before the broker has confirmed them, clients may have them.
        shared.history.lock().written.extend(written);
        feed.send_all(&events).await;
    }
}

struct Client {
    shared: Arc<Shared>,
    me: usize,
    user: String,
    device: String,
    node: usize,
    names_since: bool,
    carrier: Carrier,
    /// After so long a silence it acknowledges all.
    quiet: Duration,
    /// The epoch and number that it has seen last.
    last: Option<(String, u64)>,
}

impl Client {
    async fn run(mut self) {
        loop {
            let place = self.shared.places.lock()[self.node];
            match self.connect(place).await {
                Some(socket) => self.follow(place, socket).await,
                None => tokio::time::sleep(RETRY).await,
            }
            self.node = (self.node + 1) % self.shared.places.lock().len();
        }
    }

    async fn connect(&self, place: Place) -> Option<carrier::Client> {
        let device = Some(self.device.clone()).filter(|device| !device.is_empty());
        let since = self.last.as_ref().filter(|_| self.names_since).map(|(epoch, seq)| format!("{epoch}-{seq}"));
        let ask = Ask { device, since, ..Ask::token(&token::valid(&self.user)) };
        carrier::attempt(place.doors, self.carrier, &ask, GREETING).await
    }

    /// Reads until the connection ends.
    async fn follow(&mut self, place: Place, mut socket: carrier::Client) {
        let (epoch, cursor) = (socket.hello().epoch.clone(), socket.hello().cursor);
        let since = self.last.as_ref().filter(|_| self.names_since).map(|(_, seq)| *seq);
        let index = {
            let connections = &mut self.shared.history.lock().connections;
            connections.push(Connection {
                client: self.me,
                user: self.user.clone(),
                begins_after: since.unwrap_or(cursor),
                cursor,
                since: Instant::now(),
                saw: Vec::new(),
            });
            connections.len() - 1
        };
        let shared = self.shared.clone();
        let note = |saw| shared.history.lock().connections[index].saw.push((Instant::now(), saw));
        // Only what has come on this connection: what it had before may be on its way again.
        let (mut seen_here, mut acknowledged) = (0, 0);
        let is_socket = matches!(self.carrier, Carrier::WebSocketJson | Carrier::WebSocketProtobuf);
        let every = if is_socket { ACKNOWLEDGED } else { ACKNOWLEDGED_BY_REQUEST };
        loop {
            match socket.step(self.quiet).await {
                Step::Frame(frame) if frame.kind == "$gap" => {
                    let field = |name| frame.payload()[name].as_u64().expect("a number");
                    note(Saw::Gap { from: field("from"), to: field("to") });
                }
                Step::Frame(frame) if frame.is_control() => {}
                Step::Frame(frame) => {
                    let (seq, id) = (frame.seq, frame.id.clone().expect("every notification has one"));
                    note(Saw::Notification { seq, n: frame.n(), id });
                    if let Some(seq) = seq {
                        let seen = self.last.as_ref().map_or(0, |(_, seen)| *seen);
                        self.last = Some((epoch.clone(), seen.max(seq)));
                        seen_here = seen_here.max(seq);
                        if seq % every == 0 {
                            note(Saw::Acknowledged(seq));
                            socket.ack_unheard(seq).await;
                            acknowledged = seq;
                        }
                    }
                }
                Step::Closed(code) => {
                    let now = shared.places.lock()[self.node];
                    let excused = now.is_hurt || place.is_hurt || now.hurts != place.hurts;
                    return note(Saw::Closed { code, excused });
                }
                Step::Nothing => {
                    if seen_here > acknowledged {
                        note(Saw::Acknowledged(seen_here));
                        socket.ack_unheard(seen_here).await;
                        acknowledged = seen_here;
                    }
                }
            }
        }
    }
}
