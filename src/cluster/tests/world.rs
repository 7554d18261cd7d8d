//! A cluster without anything real: hosts that stop, freeze and come back, links that lose what is sent, a store that
//! takes its time, and clocks that are hours apart. Each host runs what a node runs. Time is counted in milliseconds.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{incarnation, node, table::Table};
use crate::{
    cluster::{
        arrival::{Answered, Arrival, Verdict, may_own},
        changes::Change,
        probe::PROBE_EVERY,
        table::Changed,
        view::{Node, State, Version, View},
        watch::{Question, Watch},
    },
    ids::Incarnation,
};

/// Evidence may be so old when a death is declared by it: a poll, and the store's answer.
const GRACE: u64 = 1500;
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Host {
    Runs,
    /// Until then nothing moves, and what is sent to it waits.
    Frozen(u64),
    /// The process has ended; the host says so to whoever asks.
    Refuses,
    /// The machine is off.
    Off,
}

struct Process {
    node: Node,
    host: Host,
    reaches_store: bool,
    /// What its clock shows at the beginning.
    clock: Instant,
    arrival: Option<Arrival>,
    watch: Watch,
    known: View,
    next_turn: u64,
    next_renewal: u64,
    is_trying: bool,
    /// Whether it renews, and is heard by more than half.
    is_well: bool,
    /// The last moment at which that was not so.
    unwell: u64,
}

enum Mail {
    Probe { from: Incarnation, to: Incarnation },
    Answer { from: Incarnation, to: Incarnation },
    Refusal { by: Incarnation, to: Incarnation },
    Ask { from: Incarnation, to: Incarnation, about: Incarnation, poll: u64 },
    Told { from: Incarnation, to: Incarnation, about: Incarnation, poll: u64, hears: bool },
    Try { by: Incarnation, change: Change },
}

pub(super) struct World {
    now: u64,
    random: StdRng,
    pub(super) table: Table,
    /// Each version's members and their states.
    history: HashMap<Version, Vec<(Incarnation, State)>>,
    living: Vec<Incarnation>,
    processes: Vec<Process>,
    started: u64,
    /// Where each incarnation runs, or ran.
    places: HashMap<Incarnation, usize>,
    links: Vec<Vec<bool>>,
    mail: BTreeMap<(u64, u64), Mail>,
    sent: u64,
    /// Something has happened that may have made somebody well or unwell.
    has_changed: bool,
}

fn shape(view: &View) -> Vec<(Incarnation, State)> {
    view.members.iter().map(|member| (member.node.incarnation, member.state)).collect()
}

impl World {
    /// So many hosts, all of them active.
    pub(super) fn new(hosts: usize, seed: u64) -> Self {
        let mut world = Self {
            now: 0,
            random: StdRng::seed_from_u64(seed),
            table: Table::default(),
            history: HashMap::from([(0, Vec::new())]),
            living: Vec::new(),
            processes: Vec::new(),
            started: 0,
            places: HashMap::new(),
            links: vec![vec![true; hosts]; hosts],
            mail: BTreeMap::new(),
            sent: 0,
            has_changed: true,
        };
        for at in 0..hosts {
            let process = world.process(at);
            world.processes.push(process);
            world.run(100);
        }
        while world.view().candidates().len() < hosts || !world.has_settled() {
            assert!(world.now < 120_000, "all join");
            world.run(500);
        }
        world
    }

    fn process(&mut self, at: usize) -> Process {
        self.has_changed = true;
        let number = self.started;
        self.started += 1;
        self.places.insert(incarnation(number), at);
        Process {
            node: node(&format!("n{at}"), number),
            host: Host::Runs,
            reaches_store: true,
            clock: Instant::now() + self.random.random_range(0..120) * HOUR / 60,
            arrival: Some(Arrival::default()),
            watch: Watch::new(incarnation(number)),
            known: View::default(),
            next_turn: self.now + self.random.random_range(0..300),
            next_renewal: self.now + self.random.random_range(0..1000),
            is_trying: false,
            is_well: false,
            unwell: self.now,
        }
    }

    pub(super) fn view(&self) -> View {
        self.table.view(Duration::from_millis(self.now))
    }

    pub(super) fn now(&self) -> u64 {
        self.now
    }

    pub(super) fn random(&mut self) -> &mut StdRng {
        &mut self.random
    }

    pub(super) fn runs(&self, at: usize) -> bool {
        self.processes[at].host == Host::Runs
    }

    /// The incarnation that runs, or ran last, on a host.
    pub(super) fn incarnation(&self, at: usize) -> Incarnation {
        self.processes[at].node.incarnation
    }

    pub(super) fn set(&mut self, at: usize, host: Host) {
        self.has_changed = true;
        self.processes[at].host = host;
    }

    /// What has ended starts anew.
    pub(super) fn restart(&mut self, at: usize) {
        if matches!(self.processes[at].host, Host::Refuses | Host::Off) {
            let process = self.process(at);
            self.processes[at] = process;
        }
    }

    pub(super) fn link(&mut self, from: usize, to: usize, works: bool) {
        self.has_changed = true;
        self.links[from][to] = works;
    }

    pub(super) fn reach_store(&mut self, at: usize, reaches: bool) {
        self.has_changed = true;
        self.processes[at].reaches_store = reaches;
    }

    /// All links work, all see the store, nothing is frozen.
    pub(super) fn heal(&mut self) {
        self.has_changed = true;
        self.links.iter_mut().flatten().for_each(|link| *link = true);
        for process in &mut self.processes {
            process.reaches_store = true;
            if matches!(process.host, Host::Frozen(_)) {
                process.host = Host::Runs;
            }
        }
    }

    pub(super) fn run(&mut self, millis: u64) {
        let end = self.now + millis;
        while self.now < end {
            self.now += 10;
            self.look_after_health();
            while let Some(first) = self.mail.first_entry().filter(|first| first.key().0 <= self.now) {
                let mail = first.remove();
                self.deliver(mail);
            }
            for at in 0..self.processes.len() {
                self.step(at);
            }
        }
    }

    fn send(&mut self, mail: Mail) {
        let latency = self.random.random_range(1..20);
        self.send_at(self.now + latency, mail);
    }

    fn send_at(&mut self, at: u64, mail: Mail) {
        self.sent += 1;
        self.mail.insert((at, self.sent), mail);
    }

    fn clock(&self, at: usize) -> Instant {
        self.processes[at].clock + Duration::from_millis(self.now)
    }

    fn is_there(&self, one: Incarnation) -> bool {
        let process = &self.processes[self.places[&one]];
        process.node.incarnation == one && process.host == Host::Runs
    }

    fn hear_each_other(&self, one: Incarnation, other: Incarnation) -> bool {
        let (a, b) = (self.places[&one], self.places[&other]);
        self.is_there(one) && self.is_there(other) && self.links[a][b] && self.links[b][a]
    }

    fn look_after_health(&mut self) {
        for at in 0..self.processes.len() {
            if matches!(self.processes[at].host, Host::Frozen(until) if until <= self.now) {
                self.set(at, Host::Runs);
            }
        }
        for at in 0..self.processes.len() {
            if self.has_changed {
                self.processes[at].is_well = self.is_well(at);
            }
            if !self.processes[at].is_well {
                self.processes[at].unwell = self.now;
            }
        }
        self.has_changed = false;
    }

    fn is_well(&self, at: usize) -> bool {
        let me = self.incarnation(at);
        let hearing = self.living.iter().filter(|one| **one == me || self.hear_each_other(**one, me)).count();
        self.is_there(me) && self.processes[at].reaches_store && hearing * 2 > self.living.len()
    }

    fn deliver(&mut self, mail: Mail) {
        let (from, to) = match &mail {
            Mail::Probe { from, to } | Mail::Answer { from, to } | Mail::Ask { from, to, .. } => (*from, *to),
            Mail::Refusal { by, to } => (*by, *to),
            Mail::Told { from, to, .. } => (*from, *to),
            Mail::Try { by, change } => return self.change(*by, &change.clone()),
        };
        let (sender, receiver) = (self.places[&from], self.places[&to]);
        if !self.links[sender][receiver] {
            return;
        }
        match self.processes[receiver].host {
            Host::Frozen(until) => return self.send_at(until.max(self.now + 10), mail),
            Host::Off => return,
            Host::Refuses | Host::Runs => {}
        }
        if !self.is_there(to) {
            if let Mail::Probe { .. } = mail {
                self.send(Mail::Refusal { by: to, to: from });
            }
            return;
        }
        match mail {
            Mail::Probe { .. } => {
                self.processes[receiver].watch.heard(from);
                self.send(Mail::Answer { from: to, to: from });
            }
            Mail::Answer { .. } => self.processes[receiver].watch.heard(from),
            Mail::Refusal { .. } => self.processes[receiver].watch.refused(from),
            Mail::Ask { about, poll, .. } => {
                let hears = self.hear_each_other(to, about);
                let answered = self.now + if hears { 20 } else { 310 };
                self.send_at(answered, Mail::Told { from: to, to: from, about, poll, hears });
            }
            Mail::Told { about, poll, hears, .. } => {
                self.processes[receiver].watch.told(from, about, poll, hears);
            }
            Mail::Try { .. } => unreachable!("to the store"),
        }
        self.act(receiver);
    }

    fn step(&mut self, at: usize) {
        if self.processes[at].host != Host::Runs {
            return;
        }
        let now = self.clock(at);
        if self.now >= self.processes[at].next_renewal {
            self.processes[at].next_renewal = self.now + 1000;
            self.renew(at);
        }
        let process = &mut self.processes[at];
        if process.host == Host::Runs && process.arrival.is_none() && self.now >= process.next_turn {
            process.next_turn = self.now + u64::try_from(PROBE_EVERY.as_millis()).unwrap();
            let me = process.node.incarnation;
            for question in process.watch.turn(now, &process.known) {
                self.send(match question {
                    Question::Probe(to) => Mail::Probe { from: me, to },
                    Question::Hears { whom, about, poll } => Mail::Ask { from: me, to: whom, about, poll },
                });
            }
            self.act(at);
        }
    }

    fn renew(&mut self, at: usize) {
        if !self.processes[at].reaches_store {
            return;
        }
        if self.processes[at].arrival.is_some() {
            return self.arrive(at);
        }
        let me = self.incarnation(at);
        let renewed = self.table.renew(me);
        if !renewed.is_alive {
            self.set(at, Host::Refuses);
            return;
        }
        if renewed.version != self.processes[at].known.version {
            self.read(at);
        }
        let now = self.clock(at);
        self.processes[at].watch.renewed(now, &renewed.counters);
        let known = &self.processes[at].known;
        let is_joining = known.alive(me).is_some_and(|member| member.state == State::Joining);
        if is_joining && may_own(known, me, |elder| self.hear_each_other(me, elder)) {
            let change = self.processes[at].known.activate(me).unwrap();
            self.attempt(at, change);
        }
        self.act(at);
    }

    fn arrive(&mut self, at: usize) {
        let view = self.view();
        let newcomer = self.processes[at].node.clone();
        let mut arrival = self.processes[at].arrival.take().unwrap();
        // Its former self is on the same host: nobody but itself answers there.
        let verdict = arrival.look(&view, &newcomer, |_| Answered::NotTheRival);
        self.processes[at].arrival = Some(arrival);
        match verdict {
            Verdict::Join(change) => self.attempt(at, change),
            Verdict::Wait => {}
            Verdict::Joined => {
                self.processes[at].arrival = None;
                self.read(at);
            }
            Verdict::Occupied(id) => panic!("{id} is on one host"),
        }
    }

    /// Each view that is read is the one that this version is.
    fn read(&mut self, at: usize) {
        let view = self.view();
        assert_eq!(Some(&shape(&view)), self.history.get(&view.version));
        assert!(view.version >= self.processes[at].known.version, "views only follow each other");
        self.processes[at].known = view;
    }

    fn act(&mut self, at: usize) {
        let now = self.clock(at);
        let process = &mut self.processes[at];
        if !process.reaches_store || process.is_trying || process.watch.wants(now, &process.known).is_none() {
            return;
        }
        self.read(at);
        let process = &mut self.processes[at];
        if let Some(change) = process.watch.wants(now, &process.known) {
            self.attempt(at, change);
        }
    }

    fn attempt(&mut self, at: usize, change: Change) {
        if !self.processes[at].is_trying {
            self.processes[at].is_trying = true;
            let by = self.incarnation(at);
            let takes = self.random.random_range(1..60);
            self.send_at(self.now + takes, Mail::Try { by, change });
        }
    }

    fn change(&mut self, by: Incarnation, change: &Change) {
        let before = self.view();
        let changed = self.table.change(change, Duration::from_millis(self.now));
        let at = self.places[&by];
        if self.incarnation(at) == by {
            self.processes[at].is_trying = false;
        }
        let Changed::Done(version) = changed else { return };
        let after = self.view();
        assert_eq!(version, before.version + 1);
        assert!(self.history.insert(version, shape(&after)).is_none(), "each version is made once");
        self.check(&before, &after);
        self.living = super::living(&after);
        self.has_changed = true;
        if self.incarnation(at) == by && self.processes[at].arrival.is_none() && self.is_there(by) {
            self.read(at);
        }
    }

    fn check(&self, before: &View, after: &View) {
        for member in before.living().filter(|member| after.alive(member.node.incarnation).is_none()) {
            let one = member.node.incarnation;
            let process = &self.processes[self.places[&one]];
            let was_well = process.node.incarnation == one && self.now - process.unwell >= GRACE;
            assert!(
                !was_well,
                "{} was well since {} and was declared dead at {}",
                member.node.id, process.unwell, self.now
            );
        }
        for member in after.living() {
            let named = after.living().filter(|other| other.node.id == member.node.id);
            assert_eq!(named.count(), 1, "{} lives once", member.node.id);
            let was = before.member(member.node.incarnation);
            assert!(was.is_none_or(|was| was.is_alive()), "nobody rises from the dead");
        }
    }

    /// The view that all running processes know, if they agree; and whether it has exactly those.
    pub(super) fn has_settled(&self) -> bool {
        let view = self.view();
        let running = |at: &usize| self.runs(*at);
        let of_running: Vec<usize> = (0..self.processes.len()).filter(running).collect();
        let all_know = of_running.iter().all(|at| self.processes[*at].known.version == view.version);
        let all_live = of_running.iter().all(|at| view.alive(self.incarnation(*at)).is_some());
        all_know && all_live && view.living().count() == of_running.len()
    }
}
