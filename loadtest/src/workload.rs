//! The events that are sent and how they are known again at the clients.
//!
//! The payload reaches the client byte for byte (the contract promises it), so it begins with fixed
//! keys that are found without parsing the frame: run, user, running number, and two times.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime};

use memchr::memmem::Finder;
use rustix::time::{ClockId, clock_gettime};

use crate::event::{self, Durability, Event};

/// The type of every notification that this tool sends.
const KIND: &str = "loadtest";

const MARKER: &[u8] = br#""payload":{"r":"#;
static PAYLOAD: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(MARKER));
static SEQUENCE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""seq":"#));
/// Microseconds on the machine's monotonic clock, the same in every process of one run.
pub fn micros() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}

/// An instant on the clock of [`micros`].
pub fn micros_of(instant: Instant) -> u64 {
    let (now, reference) = (Instant::now(), micros());
    (reference + instant.saturating_duration_since(now).as_micros() as u64)
        .saturating_sub(now.saturating_duration_since(instant).as_micros() as u64)
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

/// A number that tells this run's events from those of earlier ones on the same topic.
pub fn new_run() -> u32 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_micros() as u32
}

/// The name of the user with that index.
pub fn user_name(user: usize) -> String {
    format!("load-{user}")
}

/// Finds the stamp in a frame; `None` when the frame is not one of this tool's events.
pub fn stamp_of(frame: &[u8]) -> Option<Stamp> {
    stamp_at(&frame[PAYLOAD.find(frame)? + MARKER.len()..])
}

/// The stamp of a payload that stands alone.
pub fn stamp_of_data(data: &[u8]) -> Option<Stamp> {
    stamp_at(data.strip_prefix(br#"{"r":"#)?)
}

fn stamp_at(mut rest: &[u8]) -> Option<Stamp> {
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
    pub pick: Pick,
}

/// How each event's user is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pick {
    /// Each as likely as the others.
    #[default]
    Uniform,
    /// One after the other.
    InTurn,
    /// Few get most: the likelihood of rank k falls with k to this power.
    Zipf(Exponent),
}

/// The exponent of Zipf's law, above 0 and at most 5.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "f64")]
pub struct Exponent(pub f64);

impl TryFrom<f64> for Exponent {
    type Error = String;

    fn try_from(value: f64) -> Result<Self, String> {
        if value > 0.0 && value <= 5.0 {
            Ok(Self(value))
        } else {
            Err("the exponent must be above 0 and at most 5".to_owned())
        }
    }
}

impl Users {
    pub fn at_random(count: usize) -> Self {
        Self { first: 0, count, pick: Pick::Uniform }
    }
}

/// Makes the events of one run: their users, running numbers, one reused buffer.
#[derive(Debug)]
pub struct Generator {
    run: u32,
    random: u64,
    users: Vec<String>,
    choice: Choice,
    sent: Vec<u32>,
    data_bytes: usize,
    durability: Durability,
    data: String,
    value: Vec<u8>,
}

#[derive(Debug)]
enum Choice {
    Uniform,
    /// Whose turn it is.
    InTurn(usize),
    /// The likelihoods of the ranks, summed up to 1, and the step from one rank's user to the next one's.
    Zipf(Vec<f64>, usize),
}

impl Choice {
    fn new(users: Users) -> Self {
        match users.pick {
            Pick::Uniform => Self::Uniform,
            Pick::InTurn => Self::InTurn(0),
            Pick::Zipf(Exponent(exponent)) => {
                let mut sum = 0.0;
                let sums = (1..=users.count).map(|rank| {
                    sum += (rank as f64).powf(-exponent);
                    sum
                });
                let mut sums: Vec<f64> = sums.collect();
                sums.iter_mut().for_each(|each| *each /= sum);
                Self::Zipf(sums, coprime_step(users.count))
            }
        }
    }
}

/// A step that meets every user before it comes back to the first, so that neighbours in rank are spread.
fn coprime_step(count: usize) -> usize {
    let gcd = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let golden = ((count as f64 * 0.618) as usize).max(1);
    (golden..).find(|&step| gcd(step, count) == 1).expect("every number has a greater one without a common divisor")
}

impl Generator {
    /// `data_bytes`: size of the payload's JSON text. The same `run` gives the same users.
    pub fn new(run: u32, users: Users, data_bytes: usize, durability: Durability) -> Self {
        Self {
            run,
            random: (u64::from(run) << 32) | 0x9E37_79B9,
            users: (users.first..users.first + users.count).map(user_name).collect(),
            choice: Choice::new(users),
            sent: vec![0; users.count],
            data_bytes,
            durability,
            data: String::new(),
            value: Vec::new(),
        }
    }

    /// The next event as (key, value) of a Kafka record; both times on the clock of [`micros`].
    pub fn next(&mut self, due: u64, sent: u64) -> (&str, &[u8]) {
        let user = self.next_user();
        self.next_for(user, due, sent)
    }

    /// The next event of the user with this index.
    pub fn next_for(&mut self, user: usize, due: u64, sent: u64) -> (&str, &[u8]) {
        use std::fmt::Write;
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
        let random = self.random();
        let count = self.users.len();
        match &mut self.choice {
            Choice::Uniform => ((u128::from(random) * count as u128) >> 64) as usize,
            Choice::InTurn(turn) => std::mem::replace(turn, (*turn + 1) % count),
            Choice::Zipf(sums, step) => {
                let point = (random >> 11) as f64 / (1u64 << 53) as f64;
                sums.partition_point(|&sum| sum <= point).min(count - 1) * *step % count
            }
        }
    }

    /// xorshift64* (Vigna 2016): good enough to spread users, and no dependency.
    fn random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_F491_4F6C_DD1D)
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
        let verdict = checker.verdict(&sent, |_| true);
        assert_eq!((verdict.received, verdict.lost), (5_000, 0));
    }

    #[test]
    fn zipf_gives_the_first_rank_its_share_and_everybody_a_chance() {
        let users = Users { first: 0, count: 100, pick: Pick::Zipf(Exponent(1.0)) };
        let mut generator = Generator::new(1, users, 100, Durability::Transient);
        for _ in 0..20_000 {
            generator.next(0, 0);
        }
        let mut sent = generator.into_sent();
        assert!(sent.iter().all(|&n| n > 0), "{sent:?}");
        sent.sort_unstable_by(|a, b| b.cmp(a));
        // 1 / H(100) = 0.193; the tenth rank gets a tenth of it.
        assert!((3_600..4_120).contains(&sent[0]), "{sent:?}");
        assert!((300..480).contains(&sent[9]), "{sent:?}");
    }

    #[test]
    fn the_clock_agrees_with_instants() {
        let (instant, reference) = (Instant::now(), micros());
        assert!(micros_of(instant).abs_diff(reference) < 5_000);
        let later = micros_of(instant + std::time::Duration::from_secs(3));
        assert!(later.abs_diff(reference + 3_000_000) < 5_000);
    }

    #[test]
    fn users_in_turn_get_one_each_and_begin_where_they_are_told_to() {
        let users = Users { first: 7, count: 3, pick: Pick::InTurn };
        let mut generator = Generator::new(1, users, 100, Durability::Durable);
        let names: Vec<String> = (0..4).map(|_| generator.next(0, 0).0.to_owned()).collect();
        assert_eq!(names, ["load-7", "load-8", "load-9", "load-7"]);
        assert_eq!(generator.into_sent(), [2, 1, 1]);
    }
}
