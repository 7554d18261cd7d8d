//! Which version of the link two nodes speak: the newest that both know. Of two releases that follow each other the
//! newer one still speaks what the older one does, so that a cluster is updated node by node.

use std::{fmt, str::FromStr};

use tonic::metadata::AsciiMetadataValue;

/// Versions of the link, all from the oldest to the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    oldest: u32,
    newest: u32,
}

impl Versions {
    /// What this build speaks.
    pub const OURS: Self = Self { oldest: 1, newest: 1 };

    /// What both speak, if there is anything.
    pub(super) fn common(self, other: Self) -> Option<Self> {
        let (oldest, newest) = (self.oldest.max(other.oldest), self.newest.min(other.newest));
        (oldest <= newest).then_some(Self { oldest, newest })
    }

    /// Whether that is one of them.
    pub(super) fn has(self, version: u32) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }

    /// The newest of them.
    pub(super) fn newest(self) -> u32 {
        self.newest
    }

    /// As a header has them.
    pub(super) fn header(self) -> AsciiMetadataValue {
        AsciiMetadataValue::try_from(self.to_string()).expect("digits")
    }
}

/// `1`, or `1-2`.
impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { oldest, newest } = self;
        if oldest == newest { write!(f, "{newest}") } else { write!(f, "{oldest}-{newest}") }
    }
}

/// Not versions of the link.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not versions of the link, as in 1 or 1-2")]
pub struct NotVersions;

impl FromStr for Versions {
    type Err = NotVersions;

    fn from_str(text: &str) -> Result<Self, NotVersions> {
        let (oldest, newest) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.parse().map_err(|_| NotVersions);
        let (oldest, newest) = (number(oldest)?, number(newest)?);
        if oldest > newest { Err(NotVersions) } else { Ok(Self { oldest, newest }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(text: &str) -> Versions {
        text.parse().unwrap()
    }

    #[test]
    fn two_agree_on_the_newest_that_both_speak() {
        let agreed = |a, b| {
            let (a, b) = (versions(a), versions(b));
            assert_eq!(a.common(b), b.common(a));
            a.common(b).map(Versions::newest)
        };
        assert_eq!(agreed("1", "1"), Some(1));
        assert_eq!(agreed("1", "1-2"), Some(1));
        assert_eq!(agreed("1-2", "2-3"), Some(2));
        assert_eq!(agreed("1-3", "1-3"), Some(3));
        assert_eq!(agreed("1", "2-3"), None);
        assert_eq!(agreed("1-2", "3"), None);
    }

    #[test]
    fn they_are_read_as_they_are_written() {
        for text in ["1", "1-2", "7-12"] {
            assert_eq!(versions(text).to_string(), text);
        }
        for text in ["", "-", "1-", "2-1", "-1", "one", "1-2-3"] {
            assert_eq!(text.parse::<Versions>(), Err(NotVersions), "{text}");
        }
    }
}
