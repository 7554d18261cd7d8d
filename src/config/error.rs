//! What is wrong with a configuration, and where it was written.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::PathBuf,
};

/// What is wrong with a configuration. Every message names the key and where its value came from;
/// none contains a secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no reading the file.
    #[error("cannot read the configuration file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{}, line {line}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where, counted from 1.
        line: usize,
        /// What was expected.
        reason: String,
    },
    /// The file has a key that does not exist.
    #[error("{key}: no such key{origin}; expected one of {known}")]
    UnknownKey {
        /// The dotted path.
        key: String,
        /// Where it was written.
        origin: Origin,
        /// The keys that exist beside it.
        known: String,
    },
    /// A variable that looks like a key's and is none.
    #[error("the variable {variable} names no configuration key: {reason}")]
    UnknownVariable {
        /// Its name.
        variable: String,
        /// What was expected.
        reason: String,
    },
    /// Two variables that mean the same key.
    #[error("{key}: set by two variables, {first} and {second}")]
    TwoVariables {
        /// The dotted path.
        key: String,
        /// One of them.
        first: String,
        /// The other one.
        second: String,
    },
    /// A value that the key does not take.
    #[error("{key}: {reason}{origin}")]
    Value {
        /// The dotted path.
        key: String,
        /// What was expected.
        reason: String,
        /// Where it was written.
        origin: Origin,
    },
    /// A file that a key names cannot be read.
    #[error("{key}: cannot read {}{origin}", path.display())]
    Unreadable {
        /// The dotted path.
        key: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// Where the key was written.
        origin: Origin,
    },
    /// Two listeners on one port.
    #[error("{first} and {second} are both on port {port}{origin}")]
    SamePort {
        /// One listener's key.
        first: &'static str,
        /// The other one's.
        second: &'static str,
        /// The port.
        port: u16,
        /// Where the second was written.
        origin: Origin,
    },
}

/// Where a value was written; as text, an addition to an error message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: it is the default.
    Default,
    /// In the configuration file.
    File(PathBuf),
    /// In an environment variable.
    Variable(String),
}

/// Where each value was written.
#[derive(Clone, Debug, Default)]
pub(super) struct Origins {
    pub(super) file: Option<PathBuf>,
    /// Keys in the file, as dotted paths.
    pub(super) keys: BTreeSet<String>,
    /// Variables by key.
    pub(super) variables: BTreeMap<String, String>,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Default => Ok(()),
            Self::File(path) => write!(formatter, " (in {})", path.display()),
            Self::Variable(name) => write!(formatter, " (in the variable {name})"),
        }
    }
}

impl Origins {
    /// Where the value of a key was written: itself, a section or list that holds it, or what is in it.
    pub(super) fn of(&self, key: &str) -> Origin {
        let at_or_above = |candidate: &str| {
            key.strip_prefix(candidate).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let below = |candidate: &str| candidate.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'));
        if let Some((_, variable)) = self.variables.iter().rev().find(|(candidate, _)| at_or_above(candidate)) {
            return Origin::Variable(variable.clone());
        }
        match &self.file {
            Some(path) if self.keys.iter().any(|candidate| at_or_above(candidate) || below(candidate)) => {
                Origin::File(path.clone())
            }
            _ => Origin::Default,
        }
    }
}
