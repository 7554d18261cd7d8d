//! Who gets in, before anything is spent on them: connections in all and per address, handshakes under way,
//! connects per second. Each refusal has a reason, and a permit is given back however a connection ends.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::metric;

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
    ConnectRate,
    Unauthenticated,
    Origin,
    Draining,
}

impl Refusal {
    pub(super) const ALL: [Self; 9] = [
        Self::Connections,
        Self::ConnectionsPerAddress,
        Self::Handshakes,
        Self::HandshakesPerAddress,
        Self::HandshakeDeadline,
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
}

#[derive(Default)]
struct Counts {
    connections: usize,
    handshakes: usize,
    by_address: HashMap<IpAddr, PerAddress>,
    connections_max: usize,
}

impl Counts {
    fn measure(&self) {
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        metric::capacity(self.connections as f64 / self.connections_max as f64);
    }
}

#[derive(Default)]
struct PerAddress {
    connections: usize,
    handshakes: usize,
}

/// A connection that is let in; counted until it is dropped.
pub(super) struct Admitted {
    counts: Arc<Mutex<Counts>>,
    address: IpAddr,
    in_handshake: bool,
}

impl Admission {
    pub(super) fn new(limits: Limits) -> Self {
        let connections_max = match limits.connections_max {
            0 => connections_from_machine(),
            configured => configured,
        };
        let rate = Mutex::new(Bucket::new(f64::from(limits.connects_per_second), Instant::now()));
        let counts = Arc::new(Mutex::new(Counts { connections_max, ..Counts::default() }));
        Self { limits, counts, rate }
    }

    /// Lets a connection in that was just accepted, or says why not.
    pub(super) fn admit(&self, address: IpAddr) -> Result<Admitted, Refusal> {
        let limits = &self.limits;
        let allows = |limit: usize, count: usize| limit == 0 || count < limit;
        let mut counts = self.counts.lock();
        if counts.connections >= counts.connections_max {
            return Err(Refusal::Connections);
        }
        if !allows(limits.handshakes_max, counts.handshakes) {
            return Err(Refusal::Handshakes);
        }
        let of_address = counts.by_address.entry(address).or_default();
        if !allows(limits.connections_per_address, of_address.connections) {
            return Err(Refusal::ConnectionsPerAddress);
        }
        if !allows(limits.handshakes_per_address, of_address.handshakes) {
            return Err(Refusal::HandshakesPerAddress);
        }
        of_address.connections += 1;
        of_address.handshakes += 1;
        counts.connections += 1;
        counts.handshakes += 1;
        counts.measure();
        Ok(Admitted { counts: self.counts.clone(), address, in_handshake: true })
    }

    /// Takes one of this second's connects; else how long to wait.
    pub(super) fn connect(&self) -> Result<(), Duration> {
        if self.limits.connects_per_second == 0 {
            return Ok(());
        }
        self.rate.lock().take(Instant::now())
    }
}

impl Admitted {
    /// The peer has shown who it is, or asked its first request.
    pub(super) fn handshake_done(&mut self) {
        if std::mem::take(&mut self.in_handshake) {
            let mut counts = self.counts.lock();
            counts.handshakes -= 1;
            if let Some(of_address) = counts.by_address.get_mut(&self.address) {
                of_address.handshakes -= 1;
            }
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.handshake_done();
        let mut counts = self.counts.lock();
        counts.connections -= 1;
        counts.measure();
        if let Some(of_address) = counts.by_address.get_mut(&self.address) {
            of_address.connections -= 1;
            if of_address.connections == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

fn connections_from_machine() -> usize {
    let descriptors = rlimit::Resource::NOFILE.get().map_or(1024, |(soft, _)| soft);
    let from_descriptors = descriptors.saturating_sub(SPARE_DESCRIPTORS).max(16);
    let from_memory = memory_bytes().map_or(u64::MAX, |bytes| bytes / MEMORY_PER_CONNECTION);
    usize::try_from(from_descriptors.min(from_memory)).unwrap_or(usize::MAX)
}

/// The memory that this process may use: its control group's limit, else the machine's.
fn memory_bytes() -> Option<u64> {
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    let machine = || {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let kib: u64 =
            text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().split(' ').next()?.parse().ok()?;
        Some(kib * 1024)
    };
    group.or_else(machine)
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
mod tests {
    use super::*;

    fn admission(limits: Limits) -> Admission {
        Admission::new(limits)
    }

    const NONE: Limits = Limits {
        connects_per_second: 0,
        connections_max: 100,
        handshakes_max: 0,
        handshakes_per_address: 0,
        connections_per_address: 0,
        handshake_deadline: Duration::from_secs(1),
    };

    fn address(last: u8) -> IpAddr {
        [127, 0, 0, last].into()
    }

    #[test]
    fn half_open_connections_of_one_address_do_not_count_for_another() {
        let admission = admission(Limits { handshakes_per_address: 2, handshakes_max: 3, ..NONE });
        let mut first = admission.admit(address(1)).ok().unwrap();
        let _second = admission.admit(address(1)).ok().unwrap();
        assert_eq!(admission.admit(address(1)).err(), Some(Refusal::HandshakesPerAddress));
        let _other = admission.admit(address(2)).ok().unwrap();
        assert_eq!(admission.admit(address(3)).err(), Some(Refusal::Handshakes));
        first.handshake_done();
        assert!(admission.admit(address(1)).is_ok());
    }

    #[test]
    fn connections_are_counted_until_they_end() {
        let admission = admission(Limits { connections_max: 3, connections_per_address: 1, ..NONE });
        let first = admission.admit(address(1)).ok().unwrap();
        assert_eq!(admission.admit(address(1)).err(), Some(Refusal::ConnectionsPerAddress));
        let _others = [2, 3].map(|last| admission.admit(address(last)).ok().unwrap());
        assert_eq!(admission.admit(address(4)).err(), Some(Refusal::Connections));
        drop(first);
        assert!(admission.admit(address(1)).is_ok());
        assert_eq!(admission.counts.lock().by_address.len(), 2, "an address without connections is forgotten");
    }

    #[test]
    fn a_second_has_so_many_connects_and_says_how_long_to_wait() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10.0, start);
        (0..10).for_each(|_| bucket.take(start).unwrap());
        let wait = bucket.take(start).unwrap_err();
        assert!(wait <= Duration::from_millis(100) && bucket.take(start + wait * 2).is_ok());
    }
}
