//! Keys of services: known by their hash, compared in constant time.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

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
    let found = matching(keys, |known| known.sha256[..].ct_eq(&hash[..]));
    found.map(|known| known.service.clone())
}

/// The last one that matches, after a look at all.
fn matching(keys: &[ApiKey], mut is_it: impl FnMut(&ApiKey) -> Choice) -> Option<&ApiKey> {
    keys.iter().fold(None, |found, known| if bool::from(is_it(known)) { Some(known) } else { found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_compared_wherever_the_right_one_stands() {
        let service = |name: &str| Arc::new(Service { name: name.into(), scopes: Vec::new() });
        let keys = [0, 1, 2].map(|at| ApiKey { sha256: [at; 32], service: service(&at.to_string()) });
        for right in 0..=3 {
            let mut compared = Vec::new();
            let found = matching(&keys, |known| {
                compared.push(known.sha256[0]);
                Choice::from(u8::from(known.sha256[0] == right))
            });
            assert_eq!(found.map(|known| known.sha256[0]), (right < 3).then_some(right));
            assert_eq!(compared, [0, 1, 2], "looking for {right}");
        }
    }
}
