//! What is kept: `[store]`, `[log]`.

use std::{path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    secret::StoreUrl,
    value::{DurationText, SizeText, duration, size},
};

/// Where users' logs, cursors, positions and started sessions are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// `postgres://USER:PASSWORD@HOST/DATABASE` (14 or newer; `?sslmode=verify-full&sslrootcert=FILE` for TLS) or `sqlite:PATH`. Without it everything is kept in memory and ends with the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<StoreUrl>,
    /// A file that holds PostgreSQL's password, instead of the URL; read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// What happens at the start when the schema is older than the program: `auto` brings it up, `check` stops.
    pub migrate: Migrate,
}

/// What happens when the store's schema is older than the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Migrate {
    /// It is brought up.
    #[default]
    Auto,
    /// The start stops.
    Check,
}

/// The users' logs of notifications.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// How long a notification without a `ttl` of its own is kept for a user who is away, up to 400 days; what is lost to it is announced as a gap (`expired`).
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub retention: Duration,
    /// How many notifications a user's log holds; beyond it the oldest goes, announced as a gap (`evicted`).
    pub per_user_max: usize,
    /// For how long the same notification id of a user is known and not delivered again.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub dedup_window: Duration,
    /// How long a client may leave a notification unacknowledged before its session is closed; it resumes where it was.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub ack_deadline: Duration,
    /// How much memory all users' logs take together when no store is set; beyond it the oldest notifications go, announced as a gap (`evicted`).
    #[serde(with = "size")]
    #[schemars(with = "SizeText")]
    pub memory_bytes_max: usize,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            retention: Duration::from_secs(7 * 24 * 3600),
            per_user_max: 10_000,
            dedup_window: Duration::from_secs(24 * 3600),
            ack_deadline: Duration::from_secs(60),
            memory_bytes_max: 1 << 30,
        }
    }
}
