//! The events that are sent and how they are known again at the clients.
//!
//! The payload reaches the client byte for byte (the contract promises it), so it begins with fixed
//! keys that are found without parsing the frame: run, user, running number, and two times.

use std::sync::LazyLock;
use std::time::Instant;

use memchr::memmem::Finder;

use crate::event::{self, Durability, Event};

/// The type of every notification that this tool sends.
const KIND: &str = "loadtest";

const MARKER: &[u8] = br#""payload":{"r":"#;
static PAYLOAD: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(MARKER));
static SEQUENCE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""seq":"#));
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Microseconds on this process's monotonic clock.
pub fn micros() -> u64 {
    START.elapsed().as_micros() as u64
}

/// An instant on the clock of [`micros`].
pub fn micros_of(instant: Instant) -> u64 {
    instant.saturating_duration_since(*START).as_micros() as u64
}

/// What a payload says about its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Which run sent it: topics may hold the events of earlier ones.
    pub run: u32,
    pub user: u32,
    /// Running number at this user.
    pub number: u32,
    /// When it was due, on the clock of [`micros`].
    pub due: u64,
    /// When it was given to Kafka's producer: the record's timestamp, in microseconds.
    pub sent: u64,
}

/// The name of the user with that index.
pub fn user_name(user: usize) -> String {
    format!("load-{user}")
}

/// Finds the stamp in a frame; `None` when the frame is not one of this tool's events.
pub fn stamp_of(frame: &[u8]) -> Option<Stamp> {
    let mut rest = &frame[PAYLOAD.find(frame)? + MARKER.len()..];
    let mut next = |key: &[u8]| {
        rest = rest.strip_prefix(key)?;
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        let value = decimal(&rest[..digits])?;
        rest = &rest[digits..];
        Some(value)
    };
    Some(Stamp {
        run: next(b"")? as u32,
        user: next(br#","u":"#)? as u32,
        number: next(br#","n":"#)? as u32,
        due: next(br#","t":"#)?,
        sent: next(br#","s":"#)?,
    })
}

/// The frame's `seq`, which durable notifications have.
pub fn sequence_of(frame: &[u8]) -> Option<u64> {
    let rest = &frame[SEQUENCE.find(frame)? + 6..];
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    decimal(&rest[..digits])
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    Some(digits.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0')))
}

/// Whom the events of a run are for.
#[derive(Debug, Clone, Copy)]
pub struct Users {
    /// The index of the first in its name; in stamps and in figures they begin at 0.
    pub first: usize,
    pub count: usize,
    /// One after the other, instead of uniformly at random.
    pub in_turn: bool,
}

impl Users {
    pub fn at_random(count: usize) -> Self {
        Self { first: 0, count, in_turn: false }
    }
}

/// Makes the events of one run: their users, running numbers, one reused buffer.
#[derive(Debug)]
pub struct Generator {
    run: u32,
    random: u64,
    users: Vec<String>,
    /// Whose turn it is; `None`: nobody's, users are drawn.
    turn: Option<usize>,
    sent: Vec<u32>,
    data_bytes: usize,
    durability: Durability,
    data: String,
    value: Vec<u8>,
}

impl Generator {
    /// `data_bytes`: size of the payload's JSON text. The same `run` gives the same users.
    pub fn new(run: u32, users: Users, data_bytes: usize, durability: Durability) -> Self {
        Self {
            run,
            random: (u64::from(run) << 32) | 0x9E37_79B9,
            users: (users.first..users.first + users.count).map(user_name).collect(),
            turn: users.in_turn.then_some(0),
            sent: vec![0; users.count],
            data_bytes,
            durability,
            data: String::new(),
            value: Vec::new(),
        }
    }

    /// The next event as (key, value) of a Kafka record; both times on the clock of [`micros`].
    pub fn next(&mut self, due: u64, sent: u64) -> (&str, &[u8]) {
        use std::fmt::Write;
        let user = self.next_user();
        let number = self.sent[user];
        self.sent[user] += 1;
        self.data.clear();
        write!(self.data, r#"{{"r":{},"u":{user},"n":{number},"t":{due},"s":{sent},"pad":""#, self.run)
            .expect("writing to a String cannot fail");
        while self.data.len() + 2 < self.data_bytes {
            self.data.push('x');
        }
        self.data.push_str("\"}");
        self.value.clear();
        let event = Event { user: &self.users[user], kind: KIND, data: &self.data };
        event::encode(&mut self.value, &event, self.durability);
        (&self.users[user], &self.value)
    }

    /// Events made so far for each user.
    pub fn into_sent(self) -> Vec<u32> {
        self.sent
    }

    fn next_user(&mut self) -> usize {
        match &mut self.turn {
            Some(turn) => {
                let user = *turn;
                *turn = (user + 1) % self.users.len();
                user
            }
            None => self.random_user(),
        }
    }

    /// xorshift64* (Vigna 2016): good enough to spread users, and no dependency.
    fn random_user(&mut self) -> usize {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let mixed = self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        ((mixed * self.users.len() as u64) >> 32) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_known_again_in_a_frame_whatever_the_order_of_keys() {
        let mut generator = Generator::new(9, Users::at_random(100), 512, Durability::Durable);
        let (key, value) = generator.next(1_234, 5_678);
        let event = event::decode(value).expect("an event");
        assert_eq!(event.user, key);
        assert_eq!(event.data.len(), 512);
        for frame in [
            format!(r#"{{"target":"{key}","payload":{},"seq":12}}"#, event.data),
            format!(r#"{{"seq":12,"payload":{},"id":"a"}}"#, event.data),
        ] {
            let stamp = stamp_of(frame.as_bytes()).expect("a stamp");
            assert_eq!((stamp.run, stamp.number), (9, 0));
            assert_eq!((stamp.due, stamp.sent), (1_234, 5_678));
            assert_eq!(user_name(stamp.user as usize), key);
            assert_eq!(sequence_of(frame.as_bytes()), Some(12));
        }
    }

    #[test]
    fn other_frames_have_no_stamp() {
        for frame in [
            r#"{"type":"$hello","payload":{"session":"s"}}"#,
            r#"{"payload":{"r":1,"u":2}}"#,
            r#"{"payload":{"r":}}"#,
            "",
        ] {
            assert_eq!(stamp_of(frame.as_bytes()), None, "{frame}");
        }
    }

    #[test]
    fn users_are_spread_and_their_numbers_have_no_gaps() {
        let mut generator = Generator::new(1, Users::at_random(50), 100, Durability::Transient);
        let mut checker = crate::order::Checker::new(50);
        for _ in 0..5_000 {
            let (_, value) = generator.next(0, 0);
            let data = event::decode(value).expect("an event").data;
            let stamp = stamp_of(format!(r#"{{"payload":{data}}}"#).as_bytes()).expect("a stamp");
            checker.arrived(stamp.user as usize, stamp.number);
        }
        let sent = generator.into_sent();
        assert!(sent.iter().all(|&n| (50..160).contains(&n)), "{sent:?}");
        let verdict = checker.verdict(&sent);
        assert_eq!((verdict.received, verdict.lost), (5_000, 0));
    }
    #[test]
    fn users_in_turn_get_one_each_and_begin_where_they_are_told_to() {
        let users = Users { first: 7, count: 3, in_turn: true };
        let mut generator = Generator::new(1, users, 100, Durability::Durable);
        let names: Vec<String> = (0..4).map(|_| generator.next(0, 0).0.to_owned()).collect();
        assert_eq!(names, ["load-7", "load-8", "load-9", "load-7"]);
        assert_eq!(generator.into_sent(), [2, 1, 1]);
    }
}
