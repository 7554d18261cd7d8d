//! Who gets in, before anything is spent on them: connections in all and per address, handshakes under way,
//! connects per second, memory. Each refusal has a reason, and a permit is given back however a connection ends.
//! Behind a proxy the address is known only later: the connection moves under it then.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{memory, metric};

/// Descriptors for everything but clients: Kafka, the admin port, the store, files.
const SPARE_DESCRIPTORS: u64 = 128;
/// Without a configured limit, one connection for so much of the machine's memory.
const MEMORY_PER_CONNECTION: u64 = 64 * 1024;

/// The limits of `[limits]`; 0 means none, except for `connections_max`: from descriptors and memory.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Authenticated connects a second.
    pub connects_per_second: u32,
    /// Connections in all.
    pub connections_max: usize,
    /// Connections that have not shown who they are.
    pub handshakes_max: usize,
    /// The same of one address.
    pub handshakes_per_address: usize,
    /// Connections of one address.
    pub connections_per_address: usize,
    /// How long a handshake may take.
    pub handshake_deadline: Duration,
}

/// Why a connection is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Connections,
    ConnectionsPerAddress,
    Handshakes,
    HandshakesPerAddress,
    HandshakeDeadline,
    Memory,
    ProxyHeader,
    TlsHandshake,
    ConnectRate,
    Unauthenticated,
    Origin,
    Draining,
}

impl Refusal {
    pub(super) const ALL: [Self; 12] = [
        Self::Connections,
        Self::ConnectionsPerAddress,
        Self::Handshakes,
        Self::HandshakesPerAddress,
        Self::HandshakeDeadline,
        Self::Memory,
        Self::ProxyHeader,
        Self::TlsHandshake,
        Self::ConnectRate,
        Self::Unauthenticated,
        Self::Origin,
        Self::Draining,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::ConnectionsPerAddress => "connections_per_address",
            Self::Handshakes => "handshakes",
            Self::HandshakesPerAddress => "handshakes_per_address",
            Self::HandshakeDeadline => "handshake_deadline",
            Self::Memory => "memory",
            Self::ProxyHeader => "proxy_header",
            Self::TlsHandshake => "tls_handshake",
            Self::ConnectRate => "connect_rate",
            Self::Unauthenticated => "unauthenticated",
            Self::Origin => "origin",
            Self::Draining => "draining",
        }
    }
}

/// Keeps count.
pub(super) struct Admission {
    pub(super) limits: Limits,
    counts: Arc<Mutex<Counts>>,
    rate: Mutex<Bucket>,
    /// So much memory is used that nobody else is let in.
    memory_full: AtomicBool,
}

struct Counts {
    limits: Limits,
    connections: usize,
    handshakes: usize,
    by_address: HashMap<IpAddr, PerAddress>,
}

impl Counts {
    fn measure(&self) {
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        metric::connections(self.connections as f64 / self.limits.connections_max as f64);
    }

    /// Whether one more of this address may be there.
    fn has_room(&self, address: IpAddr, in_handshake: bool) -> Result<(), Refusal> {
        let Some(of_address) = self.by_address.get(&address) else { return Ok(()) };
        if !allows(self.limits.connections_per_address, of_address.connections) {
            return Err(Refusal::ConnectionsPerAddress);
        }
        if in_handshake && !allows(self.limits.handshakes_per_address, of_address.handshakes) {
            return Err(Refusal::HandshakesPerAddress);
        }
        Ok(())
    }

    fn add(&mut self, address: IpAddr, in_handshake: bool) {
        let of_address = self.by_address.entry(address).or_default();
        of_address.connections += 1;
        of_address.handshakes += usize::from(in_handshake);
    }

    fn remove(&mut self, address: IpAddr, in_handshake: bool) {
        let Some(of_address) = self.by_address.get_mut(&address) else { return };
        of_address.connections -= 1;
        of_address.handshakes -= usize::from(in_handshake);
        if of_address.connections == 0 {
            self.by_address.remove(&address);
        }
    }
}

/// A limit of 0 is none.
fn allows(limit: usize, count: usize) -> bool {
    limit == 0 || count < limit
}

#[derive(Default)]
struct PerAddress {
    connections: usize,
    handshakes: usize,
}

/// A connection that is let in; counted until it is dropped.
pub(super) struct Admitted {
    counts: Arc<Mutex<Counts>>,
    client: IpAddr,
    /// What limits per address count it under; not at all, when it comes from a trusted proxy itself.
    counted: Option<IpAddr>,
    in_handshake: bool,
}

/// A session beside others on one connection; counted until it is dropped.
pub(super) struct AdmittedStream {
    counts: Arc<Mutex<Counts>>,
    counted: Option<IpAddr>,
}

impl Admission {
    pub(super) fn new(mut limits: Limits) -> Self {
        if limits.connections_max == 0 {
            limits.connections_max = connections_from_machine();
        }
        let rate = Mutex::new(Bucket::new(f64::from(limits.connects_per_second), Instant::now()));
        let counts = Counts { limits: limits.clone(), connections: 0, handshakes: 0, by_address: HashMap::new() };
        Self { limits, counts: Arc::new(Mutex::new(counts)), rate, memory_full: AtomicBool::new(false) }
    }

    /// Lets a connection in that was just accepted, or says why not. Limits per address count it under `counted`,
    /// if there is one.
    pub(super) fn admit(&self, client: IpAddr, counted: Option<IpAddr>) -> Result<Admitted, Refusal> {
        if self.memory_full.load(Ordering::Relaxed) {
            return Err(Refusal::Memory);
        }
        let mut counts = self.counts.lock();
        if counts.connections >= counts.limits.connections_max {
            return Err(Refusal::Connections);
        }
        if !allows(counts.limits.handshakes_max, counts.handshakes) {
            return Err(Refusal::Handshakes);
        }
        if let Some(address) = counted {
            counts.has_room(address, true)?;
            counts.add(address, true);
        }
        counts.connections += 1;
        counts.handshakes += 1;
        counts.measure();
        Ok(Admitted { counts: self.counts.clone(), client, counted, in_handshake: true })
    }

    /// Lets a session in on a connection that carries several, or says why not. The connection counts for its own
    /// address; `counted` is the client's that a proxy has named for this session, if one has.
    pub(super) fn admit_stream(&self, counted: Option<IpAddr>) -> Result<AdmittedStream, Refusal> {
        if self.is_memory_full() {
            return Err(Refusal::Memory);
        }
        let mut counts = self.counts.lock();
        if counts.connections >= counts.limits.connections_max {
            return Err(Refusal::Connections);
        }
        if let Some(address) = counted {
            counts.has_room(address, false)?;
            counts.add(address, false);
        }
        counts.connections += 1;
        counts.measure();
        Ok(AdmittedStream { counts: self.counts.clone(), counted })
    }

    /// Whether there is no memory for further sessions.
    pub(super) fn is_memory_full(&self) -> bool {
        self.memory_full.load(Ordering::Relaxed)
    }

    /// Takes one of this second's connects; else how long to wait.
    pub(super) fn connect(&self) -> Result<(), Duration> {
        if self.limits.connects_per_second == 0 {
            return Ok(());
        }
        self.rate.lock().take(Instant::now())
    }

    /// Nobody else is let in while memory is full.
    pub(super) fn memory_full(&self, full: bool) {
        if self.memory_full.swap(full, Ordering::Relaxed) != full {
            if full {
                tracing::error!("memory is nearly used up: new connections are refused");
            } else {
                tracing::info!("there is memory again: new connections are let in");
            }
        }
    }
}

impl Admitted {
    /// Where the connection comes from, as far as that is known.
    pub(super) fn client(&self) -> IpAddr {
        self.client
    }

    /// A proxy has said where the connection, or its latest request, comes from: it counts there from here on.
    ///
    /// # Errors
    /// When there are enough of that address; nothing has changed then.
    pub(super) fn came_from(&mut self, client: IpAddr, counted: Option<IpAddr>) -> Result<(), Refusal> {
        if self.counted != counted {
            let mut counts = self.counts.lock();
            if let Some(address) = counted {
                counts.has_room(address, self.in_handshake)?;
                counts.add(address, self.in_handshake);
            }
            if let Some(address) = self.counted {
                counts.remove(address, self.in_handshake);
            }
        }
        self.client = client;
        self.counted = counted;
        Ok(())
    }

    /// The peer has shown who it is, or asked its first request.
    pub(super) fn handshake_done(&mut self) {
        if std::mem::take(&mut self.in_handshake) {
            let mut counts = self.counts.lock();
            counts.handshakes -= 1;
            if let Some(of_address) = self.counted.and_then(|address| counts.by_address.get_mut(&address)) {
                of_address.handshakes -= 1;
            }
        }
    }
}

impl Drop for AdmittedStream {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        counts.connections -= 1;
        if let Some(address) = self.counted {
            counts.remove(address, false);
        }
        counts.measure();
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        counts.connections -= 1;
        counts.handshakes -= usize::from(self.in_handshake);
        if let Some(address) = self.counted {
            counts.remove(address, self.in_handshake);
        }
        counts.measure();
    }
}

fn connections_from_machine() -> usize {
    let descriptors = rlimit::Resource::NOFILE.get().map_or(1024, |(soft, _)| soft);
    let from_descriptors = descriptors.saturating_sub(SPARE_DESCRIPTORS).max(16);
    let from_memory = memory::available_bytes().map_or(u64::MAX, |bytes| bytes / MEMORY_PER_CONNECTION);
    usize::try_from(from_descriptors.min(from_memory)).unwrap_or(usize::MAX)
}

/// A token bucket that holds one second's worth.
struct Bucket {
    per_second: f64,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn new(per_second: f64, now: Instant) -> Self {
        Self { per_second, tokens: per_second, at: now }
    }

    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * self.per_second;
        self.tokens = (self.tokens + gained).min(self.per_second.max(1.0));
        self.at = now;
        if self.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.tokens) / self.per_second));
        }
        self.tokens -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
