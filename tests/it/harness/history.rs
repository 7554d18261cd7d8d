//! What producers wrote and clients saw while a test did damage, and whether that is what was promised.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use notifier::placement::shard;

#[cfg(test)]
mod tests;

/// Everything that happened.
#[derive(Debug, Default)]
pub struct History {
    pub written: Vec<Written>,
    pub connections: Vec<Connection>,
    /// The log's rows at the end.
    pub rows: Vec<Row>,
    /// Who has written them, and who owned what, if somebody has watched that.
    pub writers: Writers,
}

/// An event that the broker has confirmed.
#[derive(Clone, Debug)]
pub struct Written {
    pub user: String,
    /// Rises by event for each user, in the order of writing.
    pub n: u64,
    pub durable: bool,
    pub at: Instant,
}

/// One connection of a client.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The client; it has one connection at a time.
    pub client: usize,
    pub user: String,
    /// `since`, or else the cursor that the node named.
    pub begins_after: u64,
    /// What the node named.
    pub cursor: u64,
    pub since: Instant,
    pub saw: Vec<(Instant, Saw)>,
}

/// What a client notes on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saw {
    Notification {
        seq: Option<u64>,
        n: u64,
        id: String,
    },
    Gap {
        from: u64,
        to: u64,
    },
    Acknowledged(u64),
    /// The end. Excused: the node was being killed, stopped or cut off.
    Closed {
        code: Option<u16>,
        excused: bool,
    },
}

/// Who has written rows, in the order of the locks that the database gave out.
#[derive(Debug, Default)]
pub struct Writers {
    /// Into how many shards the users are divided.
    pub shards: u16,
    /// When, the shard, its next owner.
    pub takes: Vec<(i64, i32, Option<String>)>,
    /// When, the user, its number, the writer.
    pub writes: Vec<(i64, String, u64, String)>,
}

/// One row of the log.
#[derive(Clone, Debug)]
pub struct Row {
    pub user: String,
    pub seq: u64,
    pub id: String,
    pub n: u64,
}

/// What a durable event took to a connection.
#[derive(Clone, Copy, Debug)]
pub struct Delay {
    pub client: usize,
    pub n: u64,
    pub written: Instant,
    pub seen: Instant,
    /// When the connection ended.
    pub closed: Option<Instant>,
}

impl Delay {
    pub fn took(&self) -> Duration {
        self.seen.saturating_duration_since(self.written)
    }
}

/// What was promised and is not so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A client never got a durable event.
    Lost { client: usize, user: String, n: u64 },
    /// A connection got a number or an id twice.
    Repeated { client: usize, user: String, seq: u64 },
    /// A number came after a higher one.
    OutOfOrder { client: usize, user: String, seq: u64, after: u64 },
    /// A number came that the connection began after, or that was acknowledged on it.
    Acknowledged { client: usize, user: String, seq: u64, up_to: u64 },
    /// A node named a lower cursor to a client than one had before.
    CursorFell { client: usize, user: String, cursor: u64, named: u64 },
    /// Numbers were left out, and no gap said so.
    Skipped { client: usize, user: String, from: u64, to: u64 },
    /// A node that nothing happened to has ended a connection.
    Closed { client: usize, user: String, code: Option<u16> },
    /// A client got what nobody wrote.
    Invented { user: String, n: u64 },
    /// What a client got is not what the log holds under that number.
    NotAsStored { client: usize, user: String, seq: u64 },
    /// A durable event has no row.
    NotStored { user: String, n: u64 },
    /// A transient event, or one that nobody wrote, has a row.
    StoredInVain { user: String, seq: u64 },
    /// A notification has two rows.
    StoredTwice { user: String, seq: u64, id: String },
    /// The log's numbers have a hole, or one twice, where this one stands.
    Numbers { user: String, seq: u64 },
    /// Somebody who did not own the user has written.
    Stranger { user: String, seq: u64, writer: String, owner: Option<String> },
    /// The log's order is not the producer's.
    StoredOutOfOrder { user: String, seq: u64 },
}

impl History {
    /// Everything that was promised and is not so.
    pub fn faults(&self) -> Vec<Fault> {
        let durable = self.durable();
        let transient: HashSet<_> = self.of(false).collect();
        let rows: HashMap<_, _> = self.rows.iter().map(|row| ((row.user.as_str(), row.seq), row)).collect();
        let mut faults = Vec::new();
        for connection in &self.connections {
            connection.check(&rows, &mut faults);
            for (_, saw) in &connection.saw {
                if let Saw::Notification { seq, n, .. } = saw {
                    let user = connection.user.as_str();
                    let is_written = if seq.is_some() { &durable } else { &transient }.contains(&(user, *n));
                    if !is_written {
                        faults.push(Fault::Invented { user: user.into(), n: *n });
                    }
                }
            }
        }
        self.check_cursors(&mut faults);
        let missing = self.missing(&self.written).into_iter();
        faults.extend(missing.map(|(client, user, n)| Fault::Lost { client, user, n }));
        self.check_rows(&durable, &mut faults);
        self.writers.check(&mut faults);
        faults
    }

    fn of(&self, durable: bool) -> impl Iterator<Item = (&str, u64)> {
        let wanted = self.written.iter().filter(move |event| event.durable == durable);
        wanted.map(|event| (event.user.as_str(), event.n))
    }

    fn durable(&self) -> HashSet<(&str, u64)> {
        self.of(true).collect()
    }

    /// Those of these events that a client did not get on any of its connections, if they are durable.
    pub fn missing(&self, written: &[Written]) -> Vec<(usize, String, u64)> {
        let mut seen: BTreeMap<usize, (&str, HashSet<u64>)> = BTreeMap::new();
        for connection in &self.connections {
            let (_, seen) = seen.entry(connection.client).or_insert((&connection.user, HashSet::new()));
            seen.extend(connection.saw.iter().filter_map(|(_, saw)| match saw {
                Saw::Notification { seq: Some(_), n, .. } => Some(*n),
                _ => None,
            }));
        }
        let mut missing = Vec::new();
        for (client, (user, seen)) in seen {
            let durable = written.iter().filter(|event| event.durable && event.user == user);
            missing
                .extend(durable.filter(|event| !seen.contains(&event.n)).map(|event| (client, user.into(), event.n)));
        }
        missing
    }

    /// Whether every client has had everything so far.
    pub fn is_complete(&self) -> bool {
        self.is_complete_up_to(self.written.len())
    }

    /// Whether every client has had the first so many events.
    pub fn is_complete_up_to(&self, written: usize) -> bool {
        let written = &self.written[..written];
        // The first costs next to nothing, however much there is.
        self.has_last(written) && self.missing(written).is_empty()
    }

    /// Whether every client has had the last one of its user's durable events among these.
    fn has_last(&self, written: &[Written]) -> bool {
        let mut newest: BTreeMap<usize, (&str, u64)> = BTreeMap::new();
        for connection in &self.connections {
            let (_, newest) = newest.entry(connection.client).or_insert((&connection.user, 0));
            let durable = |(_, saw): &(Instant, Saw)| match saw {
                Saw::Notification { seq: Some(_), n, .. } => Some(*n),
                _ => None,
            };
            *newest = connection.saw.iter().rev().find_map(durable).unwrap_or_default().max(*newest);
        }
        newest.into_values().all(|(user, newest)| {
            let last = written.iter().rev().find(|event| event.durable && event.user == user);
            last.is_none_or(|last| newest >= last.n)
        })
    }

    /// Prints what the client of a fault met around it.
    pub fn explain(&self, fault: &Fault) {
        let (client, near) = match fault {
            Fault::Lost { client, n, .. } => (*client, *n),
            Fault::Repeated { client, seq, .. }
            | Fault::OutOfOrder { client, seq, .. }
            | Fault::Acknowledged { client, seq, .. }
            | Fault::NotAsStored { client, seq, .. } => (*client, *seq),
            Fault::Skipped { client, from, .. } => (*client, *from),
            Fault::CursorFell { client, cursor, .. } => (*client, *cursor),
            Fault::Closed { client, .. } => (*client, u64::MAX),
            Fault::StoredOutOfOrder { user, seq } => return self.explain_rows(user, *seq),
            _ => return,
        };
        for connection in self.connections.iter().filter(|connection| connection.client == client) {
            let near = |(_, saw): &&(Instant, Saw)| match saw {
                Saw::Notification { seq, n, .. } => n.abs_diff(near).min(seq.unwrap_or(*n).abs_diff(near)) <= 3,
                Saw::Acknowledged(_) => false,
                Saw::Gap { .. } | Saw::Closed { .. } => true,
            };
            let saw: Vec<_> =
                connection.saw.iter().filter(near).map(|(at, saw)| (*at - connection.since, saw)).collect();
            let Connection { begins_after, cursor, .. } = connection;
            eprintln!("    connection after {begins_after}, cursor {cursor}: {saw:?}");
        }
    }

    /// Prints the rows around one, who wrote them, and who took shards between.
    fn explain_rows(&self, user: &str, near: u64) {
        let mut rows: Vec<_> = self.rows.iter().filter(|row| row.user == user && row.seq.abs_diff(near) <= 5).collect();
        rows.sort_by_key(|row| row.seq);
        for Row { seq, id, n, .. } in rows {
            let wrote = self.writers.writes.iter().filter(|(_, of, number, _)| of == user && number == seq);
            let wrote: Vec<_> = wrote.map(|(at, _, _, writer)| (at, writer)).collect();
            let written = self.written.iter().find(|event| event.user == *user && event.n == *n);
            eprintln!("    row {seq}: event {n}, {id}, noted {wrote:?}, sent at {:?}", written.map(|event| event.at));
        }
    }

    /// A cursor is named once it is stored, so no later connection of the client may hear of a lower one, whoever owns
    /// the user then. (What a client has acknowledged counts once it is stored: the node that had heard it may die before.)
    fn check_cursors(&self, faults: &mut Vec<Fault>) {
        let mut highest: HashMap<usize, u64> = HashMap::new();
        for Connection { client, user, cursor, .. } in &self.connections {
            let named = highest.entry(*client).or_default();
            if cursor < named {
                faults.push(Fault::CursorFell { client: *client, user: user.clone(), cursor: *cursor, named: *named });
            }
            *named = (*named).max(*cursor);
        }
    }

    fn check_rows(&self, durable: &HashSet<(&str, u64)>, faults: &mut Vec<Fault>) {
        let mut logs: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
        for row in &self.rows {
            logs.entry(&row.user).or_default().push(row);
        }
        let stored: HashSet<_> = self.rows.iter().map(|row| (row.user.as_str(), row.n)).collect();
        let mut lost: Vec<_> = durable.difference(&stored).collect();
        lost.sort_unstable();
        faults.extend(lost.into_iter().map(|(user, n)| Fault::NotStored { user: (*user).into(), n: *n }));
        for (user, mut log) in logs {
            log.sort_by_key(|row| row.seq);
            let (mut ids, mut last) = (HashSet::new(), (0, None));
            for row in log {
                let Row { seq, id, n, .. } = row;
                let (user, seq) = (user.to_owned(), *seq);
                if !durable.contains(&(user.as_str(), *n)) {
                    faults.push(Fault::StoredInVain { user: user.clone(), seq });
                }
                if seq != last.0 + 1 {
                    faults.push(Fault::Numbers { user: user.clone(), seq });
                }
                if !ids.insert(id) {
                    faults.push(Fault::StoredTwice { user, seq, id: id.clone() });
                } else if last.1.is_some_and(|last| *n <= last) {
                    faults.push(Fault::StoredOutOfOrder { user, seq });
                }
                last = (seq, Some(*n));
            }
        }
    }

    /// How long after `fault` the last of the clients that stayed connected got its first durable event that was
    /// written after it: as long as the longest silence that the fault has made, and the time between two events.
    pub fn silence_after(&self, fault: Instant) -> Option<Duration> {
        let stayed = self.connections.iter().filter(|connection| connection.spans(fault));
        let first = |connection: &Connection| {
            let since: HashSet<u64> = self
                .written
                .iter()
                .filter(|event| event.durable && event.at >= fault && event.user == connection.user)
                .map(|event| event.n)
                .collect();
            let is_new = |saw: &Saw| matches!(saw, Saw::Notification { seq: Some(_), n, .. } if since.contains(n));
            connection.saw.iter().find(|(_, saw)| is_new(saw)).map(|(at, _)| at.saturating_duration_since(fault))
        };
        stayed.filter_map(first).max()
    }
}

impl History {
    /// Of each durable event, what it took to each connection that was there when it was written.
    pub fn delays(&self) -> Vec<Delay> {
        let written = self.written.iter().filter(|event| event.durable);
        let written: HashMap<_, _> = written.map(|event| ((event.user.as_str(), event.n), event.at)).collect();
        let mut delays = Vec::new();
        for connection in &self.connections {
            let (client, closed) = (connection.client, connection.closed());
            for (seen, saw) in &connection.saw {
                let Saw::Notification { seq: Some(_), n, .. } = saw else { continue };
                let written = written.get(&(connection.user.as_str(), *n)).filter(|at| **at > connection.since);
                delays.extend(written.map(|written| Delay { client, n: *n, written: *written, seen: *seen, closed }));
            }
        }
        delays
    }
}

impl Writers {
    fn check(&self, faults: &mut Vec<Fault>) {
        let mut owners: BTreeMap<i32, BTreeMap<i64, Option<&String>>> = BTreeMap::new();
        for (at, shard, owner) in &self.takes {
            owners.entry(*shard).or_default().insert(*at, owner.as_ref());
        }
        for (at, user, seq, writer) in &self.writes {
            let shard = shard(user, self.shards);
            let owners = owners.get(&i32::from(shard.0));
            let owner = owners.and_then(|owners| *owners.range(..at).next_back()?.1);
            if owner != Some(writer) {
                let (user, writer, owner) = (user.clone(), writer.clone(), owner.cloned());
                faults.push(Fault::Stranger { user, seq: *seq, writer, owner });
            }
        }
    }
}

impl Connection {
    fn spans(&self, moment: Instant) -> bool {
        self.since < moment && self.closed().is_none()
    }

    fn closed(&self) -> Option<Instant> {
        self.saw.iter().find(|(_, saw)| matches!(saw, Saw::Closed { .. })).map(|(at, _)| *at)
    }

    fn check(&self, rows: &HashMap<(&str, u64), &Row>, faults: &mut Vec<Fault>) {
        let client = self.client;
        let user = || self.user.clone();
        let (mut last, mut up_to) = (self.begins_after, self.begins_after);
        let (mut numbers, mut ids) = (HashSet::new(), HashSet::new());
        for (_, saw) in &self.saw {
            match saw {
                Saw::Notification { seq: Some(seq), n, id } => {
                    let seq = *seq;
                    if !numbers.insert(seq) || !ids.insert(id) {
                        faults.push(Fault::Repeated { client, user: user(), seq });
                    } else if seq <= up_to {
                        faults.push(Fault::Acknowledged { client, user: user(), seq, up_to });
                    } else if seq <= last {
                        faults.push(Fault::OutOfOrder { client, user: user(), seq, after: last });
                    } else if seq > last + 1 {
                        faults.push(Fault::Skipped { client, user: user(), from: last + 1, to: seq - 1 });
                    }
                    let stored = rows.get(&(self.user.as_str(), seq));
                    if stored.is_none_or(|row| row.id != *id || row.n != *n) {
                        faults.push(Fault::NotAsStored { client, user: user(), seq });
                    }
                    last = last.max(seq);
                }
                // Outside all promises but one: that somebody wrote it.
                Saw::Notification { seq: None, .. } => {}
                Saw::Gap { from, to } => {
                    if *from > last + 1 {
                        faults.push(Fault::Skipped { client, user: user(), from: last + 1, to: from - 1 });
                    }
                    last = last.max(*to);
                }
                Saw::Acknowledged(seq) => up_to = up_to.max(*seq),
                Saw::Closed { excused: true, .. } => {}
                Saw::Closed { code, excused: false } => {
                    faults.push(Fault::Closed { client, user: user(), code: *code });
                }
            }
        }
    }
}
