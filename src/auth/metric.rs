//! Metrics of authentication.

use std::{collections::BTreeMap, time::Duration};

use metrics::{counter, describe_counter, describe_gauge, gauge};

const FETCHES: &str = "notifier_jwks_fetches_total";
const LAST_SUCCESS: &str = "notifier_jwks_last_success_timestamp_seconds";
const KEY_EXPIRY: &str = "notifier_token_key_expiry_timestamp_seconds";

/// How a fetch of the issuer's keys ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FetchOutcome {
    Ok,
    Unreachable,
    Status,
    TooLarge,
    Invalid,
}

impl FetchOutcome {
    const ALL: [Self; 5] = [Self::Ok, Self::Unreachable, Self::Status, Self::TooLarge, Self::Invalid];

    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unreachable => "unreachable",
            Self::Status => "status",
            Self::TooLarge => "too_large",
            Self::Invalid => "invalid",
        }
    }
}

pub(super) fn describe() {
    describe_gauge!(
        KEY_EXPIRY,
        "When the certificate of a key file ends, in seconds since 1970; files without certificates have none"
    );
}

/// There is an issuer to fetch from: zeros are shown from the start.
pub(super) fn describe_issuer() {
    describe_counter!(FETCHES, "Fetches of auth.jwt.jwks_url, by outcome");
    describe_gauge!(
        LAST_SUCCESS,
        "When auth.jwt.jwks_url was fetched last, in seconds since 1970; 0: not yet. Its age says how stale the keys are"
    );
    for outcome in FetchOutcome::ALL {
        counter!(FETCHES, "outcome" => outcome.as_str()).increment(0);
    }
    gauge!(LAST_SUCCESS).set(0.0);
}

pub(super) fn fetched(outcome: FetchOutcome) {
    counter!(FETCHES, "outcome" => outcome.as_str()).increment(1);
    if outcome == FetchOutcome::Ok {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        gauge!(LAST_SUCCESS).set(now.as_ref().map_or(0.0, Duration::as_secs_f64));
    }
}

/// When certificates end, by the name of their file, and of those that were shown `before` and are gone.
pub(super) fn key_expiries(before: &BTreeMap<String, i64>, now: &BTreeMap<String, i64>) {
    for gone in before.keys().filter(|key| !now.contains_key(*key)) {
        // There is no taking a sample back; this one compares with nothing.
        gauge!(KEY_EXPIRY, "key" => gone.clone()).set(f64::NAN);
    }
    for (key, expires_at) in now {
        #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^52")]
        gauge!(KEY_EXPIRY, "key" => key.clone()).set(*expires_at as f64);
    }
}
