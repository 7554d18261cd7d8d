//! What a schedule is: drawn from its seed, and nothing else.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

use crate::harness::carrier::Carrier;

/// The longest pause before a strike.
const PAUSE: Duration = Duration::from_secs(2);
/// So long that the others take what a frozen node had.
const TAKEN: Duration = Duration::from_secs(6);
/// Strikes of a short schedule, which then takes about half a minute.
const SHORT: usize = 7;
/// Of so many long schedules, one has a broker of its own.
const BROKER: u32 = 4;
/// The same of a PostgreSQL, and a standby.
const SERVER: u32 = 3;

/// How much time there is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// Some kinds of faults, drawn from those that last for seconds.
    Short,
    /// Every kind that its cluster can have.
    Long,
}

/// A cluster, and what happens to it.
#[derive(Debug)]
pub struct Schedule {
    pub seed: u64,
    pub nodes: usize,
    /// Whether the ways between the nodes, and that of one to the store, can be cut. Behind a proxy nobody hears that a host refuses, so
    /// some clusters have none.
    pub has_ways: bool,
    /// Whether it has a broker of its own, and one node its own way to that.
    pub has_broker: bool,
    /// Whether it has a PostgreSQL of its own, with a synchronous standby.
    pub has_server: bool,
    /// `sessions.idle_after` in seconds, and users who get something now and then only.
    pub idle_after: Option<u64>,
    /// What clients speak.
    pub carriers: &'static [Carrier],
    pub strikes: Vec<Strike>,
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Strike {
    /// Before it.
    pub pause: Duration,
    pub fault: Fault,
    /// Who is hit, unless only one can be.
    pub node: usize,
    /// Another one.
    pub other: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// SIGKILL, and it starts again so much later.
    Kill(Duration),
    /// The store takes no rows for so long, and then a node is killed.
    KillBehindALock(Duration),
    /// Two at once.
    KillTwo(Duration),
    /// SIGTERM, and SIGKILL so much later.
    KillDraining(Duration),
    /// It stands still, and nobody takes it for dead.
    Freeze(Duration),
    /// It stands still until others have taken its place, or longer.
    FreezeLong(Duration),
    /// SIGTERM, and it starts again when it has ended.
    Restart,
    /// One that has left joins while another one leaves.
    JoinDuringLeave,
    /// All connections to the store end.
    CutStore,
    /// Actors of a few users crash, each twice in a burst of its events.
    Crash,
    /// All links between nodes break, again and again.
    CutLinks,
    /// A node does not reach another one, which reaches it.
    CutOneWay(Duration),
    /// Two do not reach each other.
    CutBothWays(Duration),
    /// Nobody reaches a node, which reaches the others, until it ends.
    Unreachable,
    /// A node does not reach the store, but renews in time.
    NoStore(Duration),
    /// A node does not reach the store until it ends.
    LosesStore,
    /// A node reaches neither the others nor the store, nor they it, until it ends.
    CutOff,
    /// A node does not reach Kafka.
    NoKafka(Duration),
    /// Kafka's broker is killed, and starts again so much later.
    KillBroker(Duration),
    /// PostgreSQL ends, and starts again so much later.
    RestartServer(Duration),
    /// PostgreSQL ends as in a crash and writes its log again as it starts, so much later.
    CrashServer(Duration),
    /// PostgreSQL ends as in a crash, and its standby takes its place so much later.
    FailOver(Duration),
}

impl Fault {
    /// The kind by its name.
    pub fn kind(&self) -> String {
        let whole = format!("{self:?}");
        whole.split('(').next().expect("a name").to_owned()
    }

    /// How long an event may be under way to a client that stays connected: as long as the fault stands in its way,
    /// and then what is promised of its kind. `None`: nothing is.
    pub fn promise(&self, has_ways: bool) -> Option<Duration> {
        let [killed, silent, longest] = [2, 5, 15].map(Duration::from_secs);
        // Nobody hears that nothing listens there.
        let refused = if has_ways { silent } else { killed };
        match self {
            Self::Kill(_) | Self::KillDraining(_) => Some(refused),
            Self::KillBehindALock(time) => Some(*time + refused),
            // A server needs a moment to start.
            Self::RestartServer(time) | Self::CrashServer(time) | Self::FailOver(time) => Some(*time + silent),
            Self::KillTwo(_) => Some(if has_ways { longest } else { silent }),
            Self::Freeze(time) | Self::NoStore(time) => Some(*time + killed),
            // The others do not wait for it.
            Self::FreezeLong(_) | Self::Unreachable | Self::CutOff => Some(silent),
            // Until then nobody but the store knows.
            Self::LosesStore => Some(longest),
            // Nobody is missed; shards move, links go through a third node, actors start again.
            Self::Restart | Self::JoinDuringLeave | Self::CutStore | Self::Crash => Some(silent),
            Self::CutLinks | Self::CutOneWay(_) | Self::CutBothWays(_) => Some(silent),
            // What a partition holds waits until it can be read.
            Self::NoKafka(_) | Self::KillBroker(_) => None,
        }
    }
}

impl Schedule {
    /// So many kinds there are for short ones.
    pub const KINDS_SHORT: usize = 16;

    pub fn new(seed: u64, length: Length) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        let is_long = length == Length::Long;
        let mut schedule = Self {
            seed,
            nodes: dice.random_range(3..=5),
            has_ways: dice.random_ratio(2, 3),
            has_broker: dice.random_ratio(1, BROKER) && is_long,
            has_server: is_long && dice.random_ratio(1, SERVER),
            idle_after: dice.random_bool(0.5).then(|| dice.random_range(1..=2)),
            carriers: &Carrier::ALL,
            strikes: Vec::new(),
        };
        let mut faults = schedule.faults(&mut dice, is_long);
        faults.shuffle(&mut dice);
        if length == Length::Short {
            faults.truncate(SHORT);
        }
        schedule.draw(&mut dice, faults);
        schedule
    }

    /// Those that find each of the mistakes in `src/mutant.rs`.
    #[cfg(feature = "mutants")]
    pub fn for_mutants(seed: u64) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        let lock = |dice: &mut StdRng| Fault::KillBehindALock(millis(dice, 2500..3500));
        let mut faults = vec![
            Fault::Kill(millis(&mut dice, 0..2000)),
            lock(&mut dice),
            lock(&mut dice),
            Fault::Freeze(Duration::from_secs(1)),
            Fault::FreezeLong(TAKEN),
            Fault::FreezeLong(TAKEN),
            Fault::Restart,
            Fault::CutStore,
            Fault::Crash,
            Fault::Crash,
        ];
        faults.shuffle(&mut dice);
        let mut schedule = Self {
            seed,
            nodes: 3,
            has_ways: false,
            has_broker: false,
            has_server: false,
            idle_after: None,
            carriers: &[Carrier::WebSocketJson],
            strikes: Vec::new(),
        };
        schedule.draw(&mut dice, faults);
        schedule
    }

    /// Each kind that there is time for, and that the cluster has what it takes for.
    fn faults(&self, dice: &mut StdRng, is_long: bool) -> Vec<Fault> {
        let mut faults = vec![
            Fault::Kill(millis(dice, 0..2000)),
            Fault::KillBehindALock(millis(dice, 2500..3500)),
            Fault::KillTwo(millis(dice, 0..2000)),
            Fault::KillDraining(millis(dice, 0..1000)),
            Fault::Freeze(Duration::from_secs(1)),
            Fault::FreezeLong(TAKEN),
            Fault::Restart,
            Fault::JoinDuringLeave,
            Fault::CutStore,
            Fault::Crash,
        ];
        if self.has_ways {
            faults.extend([
                Fault::CutLinks,
                Fault::CutOneWay(millis(dice, 2000..5000)),
                Fault::CutBothWays(millis(dice, 2000..5000)),
                Fault::Unreachable,
                Fault::NoStore(millis(dice, 1000..2000)),
                Fault::LosesStore,
            ]);
        }
        if is_long {
            faults.push(Fault::FreezeLong(Duration::from_secs(30)));
        }
        if is_long && self.has_ways {
            faults.push(Fault::CutOff);
        }
        if self.has_broker {
            faults.extend([Fault::NoKafka(millis(dice, 2000..8000)), Fault::KillBroker(millis(dice, 0..2000))]);
        }
        if self.has_server {
            let mut away = || millis(dice, 0..3000);
            faults.extend([Fault::RestartServer(away()), Fault::CrashServer(away()), Fault::FailOver(away())]);
        }
        faults
    }

    fn draw(&mut self, dice: &mut StdRng, faults: Vec<Fault>) {
        for fault in faults {
            let node = dice.random_range(0..self.nodes);
            let other = (node + dice.random_range(1..self.nodes)) % self.nodes;
            let pause = millis(dice, 0..u64::try_from(PAUSE.as_millis()).expect("seconds"));
            self.strikes.push(Strike { pause, fault, node, other });
        }
    }
}

fn millis(dice: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(dice.random_range(range))
}
