//! Keys of services: known by their hash, compared in constant time.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// A service that may use the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// SHA-256 of the key.
    pub sha256: [u8; 32],
    /// Whose it is.
    pub service: Arc<Service>,
}

/// Who stands behind an API key, and what it may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name, for logs.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
}

/// What an API key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Write events.
    Publish,
    /// Start, list and end sessions.
    Sessions,
    /// Read users' notifications.
    Read,
}

impl Scope {
    /// As it stands in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Sessions => "sessions",
            Self::Read => "read",
        }
    }
}

/// Whose key it is. All are compared, each in constant time, so that the time taken says nothing about any of them.
pub(super) fn find(keys: &[ApiKey], key: &str) -> Option<Arc<Service>> {
    let hash = Sha256::digest(key.as_bytes());
    let found = keys.iter().fold(None, |found, known| {
        let is_it = bool::from(known.sha256[..].ct_eq(&hash[..]));
        if is_it { Some(known) } else { found }
    });
    found.map(|known| known.service.clone())
}
