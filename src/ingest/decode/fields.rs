//! Values that several forms share: enumerations, durations, times.

use std::time::Duration;

use super::Rejected;
use crate::{
    event::{Durability, Priority, UnixMillis},
    proto,
};

/// The longest time-to-live: the range of protobuf's `Duration`, about 10,000 years.
const TTL_MAX: Duration = Duration::from_secs(315_576_000_000);
/// The range of protobuf's `Timestamp`: years 1 to 9999.
const SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
const NANOS: std::ops::Range<i32> = 0..1_000_000_000;

/// Numbers that this version does not know count as unspecified, as protobuf wants it.
pub(super) fn durability_number(number: i32) -> Option<Durability> {
    match proto::Durability::try_from(number).unwrap_or_default() {
        proto::Durability::Unspecified => None,
        proto::Durability::Transient => Some(Durability::Transient),
        proto::Durability::Durable => Some(Durability::Durable),
        proto::Durability::Inbox => Some(Durability::Inbox),
    }
}

/// As [`durability_number`].
pub(super) fn priority_number(number: i32) -> Option<Priority> {
    match proto::Priority::try_from(number).unwrap_or_default() {
        proto::Priority::Unspecified => None,
        proto::Priority::Critical => Some(Priority::Critical),
        proto::Priority::High => Some(Priority::High),
        proto::Priority::Normal => Some(Priority::Normal),
        proto::Priority::Low => Some(Priority::Low),
    }
}

/// The number of an enumeration's value by its name, `DURABILITY_INBOX` or short `inbox`.
pub(super) fn durability_name(name: &str) -> Option<i32> {
    let long = proto::Durability::from_str_name(name);
    long.or_else(|| proto::Durability::from_str_name(&long_name("DURABILITY_", name)?)).map(i32::from)
}

/// As [`durability_name`].
pub(super) fn priority_name(name: &str) -> Option<i32> {
    let long = proto::Priority::from_str_name(name);
    long.or_else(|| proto::Priority::from_str_name(&long_name("PRIORITY_", name)?)).map(i32::from)
}

fn long_name(prefix: &str, short: &str) -> Option<String> {
    let is_short = short.bytes().all(|b| b.is_ascii_lowercase());
    is_short.then(|| prefix.to_owned() + &short.to_ascii_uppercase())
}

/// Reads `3600s`, `1.5s`, `1h`, `2h 30m`; a number without unit counts seconds.
pub(super) fn duration(text: &str) -> Option<Duration> {
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return humantime::parse_duration(&format!("{text}s")).ok();
    }
    humantime::parse_duration(text).ok()
}

pub(super) fn proto_duration(duration: prost_types::Duration, name: &str) -> Result<Duration, Rejected> {
    let seconds = u64::try_from(duration.seconds).ok();
    let nanos = u32::try_from(duration.nanos).ok().filter(|_| NANOS.contains(&duration.nanos));
    match (seconds, nanos) {
        (Some(seconds), Some(nanos)) => Ok(Duration::new(seconds, nanos)),
        _ => Err(Rejected::field(name, "is negative or no duration")),
    }
}

pub(super) fn check_ttl(ttl: Duration, name: &str) -> Result<Duration, Rejected> {
    if ttl.is_zero() {
        return Err(Rejected::field(name, "is zero"));
    }
    if ttl > TTL_MAX {
        return Err(Rejected::field(name, "is longer than 10,000 years"));
    }
    Ok(ttl)
}

pub(super) fn proto_time(time: prost_types::Timestamp, name: &str) -> Result<UnixMillis, Rejected> {
    if !SECONDS.contains(&time.seconds) || !NANOS.contains(&time.nanos) {
        return Err(Rejected::field(name, "is not a time of the years 1 to 9999"));
    }
    Ok(time.seconds * 1000 + i64::from(time.nanos / 1_000_000))
}

/// Reads a time as RFC 3339 writes it.
pub(super) fn rfc3339(text: &str, name: &str) -> Result<UnixMillis, Rejected> {
    let time: Option<jiff::Timestamp> = text.parse().ok();
    let time = time.filter(|time| SECONDS.contains(&time.as_second()));
    time.map(jiff::Timestamp::as_millisecond).ok_or_else(|| Rejected::field(name, "is not an RFC 3339 time"))
}

/// Cuts JSON's white space (RFC 8259, 2) off both ends.
pub(super) fn trim_json(text: &str) -> &str {
    text.trim_matches([' ', '\t', '\n', '\r'])
}
