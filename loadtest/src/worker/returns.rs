//! Sessions whose connection has ended, and when each may come back: as the server's own rules say.
//!
//! A `$bye` names the time for its client. Without one, a client waits a random part of what its `$hello` named, so that
//! all do not come at once; after a connect that failed, longer each time. Pure: knows no socket and no clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::client::{Endpoint, Message};
use crate::latency::{Packed, histogram};

/// Between connects that fail, in microseconds: the first wait is a random part of it, twice as much each time.
const BACKOFF: u64 = 200_000;
/// What that grows to.
const BACKOFF_MAX: u64 = 3_000_000;
/// Without a `$hello` that says otherwise.
const SPREAD: u64 = 1_500_000;
/// Close codes after which a client stays away: see the README's table.
const FINAL: [u16; 8] = [1002, 1003, 1007, 1008, 1009, 4001, 4003, 4004];

/// Times are on the clock of `workload::micros`.
pub struct Returns {
    sessions: Vec<Session>,
    /// Who is to connect when.
    due: BinaryHeap<Reverse<(u64, usize)>>,
    random: u64,
    summary: Summary,
    outages: Histogram<u64>,
}

/// One connection's, also of those that never ended.
#[derive(Debug, Default)]
struct Session {
    epoch: Box<str>,
    cursor: u64,
    /// The longest that it may wait after an end without a goodbye, in microseconds.
    spread: u64,
    /// What the goodbye named, in microseconds.
    told: Option<u64>,
    /// Which of the endpoints it was connected to last.
    endpoint: usize,
    /// When it ended; `None` while it is open.
    ended: Option<u64>,
    failed_in_a_row: u32,
}

/// What became of those that ended.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Sessions that ended and were open again; one that did so twice counts twice.
    pub back: u64,
    /// Of those that ended, how many were told so by a `$bye`.
    pub told: u64,
    /// Connects in between that failed.
    pub refused: u64,
    /// When the last of them was open again.
    pub last_back: u64,
}

/// The summary, and how long each was away.
#[derive(Debug, Serialize, Deserialize)]
pub struct Away {
    pub summary: Summary,
    pub outages: Packed,
}

impl Summary {
    /// Of another process.
    pub fn add(&mut self, other: Self) {
        self.back += other.back;
        self.told += other.told;
        self.refused += other.refused;
        self.last_back = self.last_back.max(other.last_back);
    }
}

impl Returns {
    pub fn new(seed: u64) -> Result<Self> {
        let random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let (sessions, due) = (Vec::new(), BinaryHeap::new());
        Ok(Self { sessions, due, random, summary: Summary::default(), outages: histogram()? })
    }

    /// The next connection, at this endpoint.
    pub fn add(&mut self, endpoint: usize) {
        self.sessions.push(Session { spread: SPREAD, endpoint, ..Session::default() });
    }

    /// It is open.
    pub fn hello(&mut self, conn: usize, hello: &Message<'_>, now: u64) {
        let session = &mut self.sessions[conn];
        session.epoch = hello.epoch().unwrap_or_default().into();
        session.cursor = hello.cursor().unwrap_or(0);
        session.spread = hello.reconnect_ms().filter(|&wait| wait > 0).map_or(SPREAD, |wait| wait * 1_000);
        (session.told, session.failed_in_a_row) = (None, 0);
        if let Some(ended) = session.ended.take() {
            self.summary.back += 1;
            self.summary.last_back = now;
            self.outages.saturating_record(now.saturating_sub(ended));
        }
    }

    /// The server says goodbye.
    pub fn bye(&mut self, conn: usize, bye: &Message<'_>) {
        self.summary.told += 1;
        self.sessions[conn].told = bye.reconnect_ms().map(|wait| wait * 1_000);
    }

    /// Its connection has ended, or a connect has failed.
    ///
    /// # Errors
    ///
    /// The reason, when it has to stay away.
    pub fn ended(&mut self, conn: usize, why: String, now: u64) -> Result<(), String> {
        if is_final(&why) {
            return Err(why);
        }
        let random = self.random();
        let session = &mut self.sessions[conn];
        let up_to = |longest: u64| ((u128::from(random) * u128::from(longest)) >> 64) as u64;
        let wait = if session.ended.is_some() {
            self.summary.refused += 1;
            let longest = (BACKOFF << session.failed_in_a_row.min(8)).min(BACKOFF_MAX);
            session.failed_in_a_row += 1;
            up_to(longest)
        } else {
            session.ended = Some(now);
            session.told.take().unwrap_or_else(|| up_to(session.spread))
        };
        self.due.push(Reverse((now + wait, conn)));
        Ok(())
    }

    /// One that is to connect by now: which endpoint it takes, and what it goes on behind.
    ///
    /// `highest`: the last number that it has seen. Another node than the last one, as a balancer would choose that
    /// knows which one is gone.
    pub fn next(
        &mut self,
        now: u64,
        endpoints: &[Endpoint],
        highest: impl Fn(usize) -> u64,
    ) -> Option<(usize, usize, String)> {
        let Reverse((due, conn)) = *self.due.peek()?;
        if due > now {
            return None;
        }
        self.due.pop();
        let last = &endpoints[self.sessions[conn].endpoint];
        let same = |other: &Endpoint| other.protocol == last.protocol && other.address != last.address;
        let others: Vec<usize> = (0..endpoints.len()).filter(|&other| same(&endpoints[other])).collect();
        let random = self.random();
        let session = &mut self.sessions[conn];
        if !others.is_empty() {
            session.endpoint = others[(random >> 32) as usize % others.len()];
        }
        let since = format!("{}-{}", session.epoch, highest(conn).max(session.cursor));
        Some((conn, session.endpoint, since))
    }

    /// Those that are not open now and will come back.
    pub fn away(&self) -> usize {
        self.sessions.iter().filter(|session| session.ended.is_some()).count()
    }

    pub fn report(&self) -> Result<Away> {
        Ok(Away { summary: self.summary, outages: Packed::new(&self.outages)? })
    }

    /// xorshift64*, as in `workload`.
    fn random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

/// Whether a reason names a close code after which the same client would be sent away again.
fn is_final(why: &str) -> bool {
    let code = why.strip_prefix("closed by the server: ").and_then(|rest| rest.split(' ').next()?.parse().ok());
    let status = why.strip_prefix("the server refused: HTTP/1.1 ").and_then(|rest| rest.get(..3));
    let refused = status.is_some_and(|status| status.starts_with('4') && !["408", "429"].contains(&status));
    refused || code.is_some_and(|code: u16| FINAL.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Protocol;

    const HELLO: &[u8] = br#"{"type":"$hello","payload":{"epoch":"k3","cursor":4,"reconnect_ms":1000}}"#;

    fn endpoints() -> Vec<Endpoint> {
        let parse = |port| Endpoint::parse(&format!("ws://127.0.0.1:{port}"), Protocol::Websocket, false);
        (1..=3).map(|port| parse(port).unwrap()).collect()
    }

    fn opened(count: usize) -> Returns {
        let mut returns = Returns::new(7).unwrap();
        for conn in 0..count {
            returns.add(0);
            returns.hello(conn, &Message::Json(HELLO), 0);
        }
        returns
    }

    #[test]
    fn who_ends_without_a_goodbye_waits_a_random_part_and_goes_on_elsewhere() {
        let (mut returns, endpoints) = (opened(100), endpoints());
        (0..100).for_each(|conn| returns.ended(conn, "reset".to_owned(), 10).unwrap());
        assert_eq!(returns.away(), 100);
        let early = std::iter::from_fn(|| returns.next(500_010, &endpoints, |_| 9)).collect::<Vec<_>>();
        assert!((30..70).contains(&early.len()), "{} within half of the time", early.len());
        let late = std::iter::from_fn(|| returns.next(1_000_010, &endpoints, |_| 9)).count();
        assert_eq!(early.len() + late, 100);
        assert!(early.iter().all(|(_, endpoint, since)| *endpoint > 0 && since == "k3-9"), "{early:?}");
        assert!([1, 2].iter().all(|node| early.iter().any(|(_, endpoint, _)| endpoint == node)));
    }

    #[test]
    fn a_goodbye_s_time_is_kept_and_an_end_that_is_final_is_said() {
        let (mut returns, endpoints) = (opened(2), endpoints());
        let bye = br#"{"type":"$bye","payload":{"code":1001,"reason":"draining","reconnect_ms":2750}}"#;
        returns.bye(0, &Message::Json(bye));
        returns.ended(0, "closed by the server: 1001 draining".to_owned(), 0).unwrap();
        assert_eq!(returns.next(2_749_999, &endpoints, |_| 0), None);
        // What it acknowledged before it saw anything on this connection.
        assert_eq!(returns.next(2_750_000, &endpoints, |_| 0).map(|(_, _, since)| since).as_deref(), Some("k3-4"));
        assert!(returns.ended(1, "closed by the server: 4003 replaced".to_owned(), 0).is_err());
        assert_eq!(returns.away(), 1);
        for (status, is_last) in [("401 Unauthorized", true), ("429 Too Many Requests", false), ("503 x", false)] {
            assert_eq!(is_final(&format!("the server refused: HTTP/1.1 {status}")), is_last, "{status}");
        }
    }

    #[test]
    fn an_outage_lasts_until_the_next_hello_whatever_failed_in_between() {
        let (mut returns, endpoints) = (opened(1), endpoints());
        returns.ended(0, "reset".to_owned(), 1_000).unwrap();
        assert!(returns.next(1_001_000, &endpoints, |_| 0).is_some());
        returns.ended(0, "connect: refused".to_owned(), 1_002_000).unwrap();
        assert_eq!(returns.next(1_001_999, &endpoints, |_| 0), None);
        assert!(returns.next(1_202_000, &endpoints, |_| 0).is_some());
        returns.hello(0, &Message::Json(HELLO), 1_301_000);
        let Away { summary, outages } = returns.report().unwrap();
        assert_eq!((summary.back, summary.refused, summary.last_back), (1, 1, 1_301_000));
        let mut histogram = histogram().unwrap();
        outages.add_to(&mut histogram).unwrap();
        assert!((1_299_000..=1_301_000).contains(&histogram.max()), "{}", histogram.max());
        assert_eq!(returns.away(), 0);
    }
}
