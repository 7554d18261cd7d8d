//! Identifiers as newtypes. They know their limits (contract: 1–256 bytes of UTF-8 without control
//! characters) and nothing of where they come from.

use std::{fmt, ops::Deref, sync::Arc};

use uuid::Uuid;

/// The longest identifier that is accepted, in bytes.
pub const ID_BYTES_MAX: usize = 256;

/// Why a text is no identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Nothing was given.
    #[error("is empty")]
    Empty,
    /// More than [`ID_BYTES_MAX`] bytes.
    #[error("is longer than {ID_BYTES_MAX} bytes")]
    TooLong,
    /// A control character, or one that reorders the text around it (Unicode Bidi_Control).
    #[error("holds a control character")]
    ControlCharacter,
}

/// Checks the rule that all identifiers of the contract share.
///
/// # Errors
/// Says which part of the rule is broken.
pub fn check(text: &str) -> Result<(), InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::Empty);
    }
    if text.len() > ID_BYTES_MAX {
        return Err(InvalidId::TooLong);
    }
    let plain = text.bytes().all(|b| (0x20..0x7f).contains(&b));
    if !plain && text.chars().any(|c| c.is_control() || is_bidi_control(c)) {
        return Err(InvalidId::ControlCharacter);
    }
    Ok(())
}

/// Unicode's property Bidi_Control: such a character makes an id look like another one in a log.
fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes a text that keeps the rule of [`check`].
            ///
            /// # Errors
            /// Says which part of the rule is broken.
            pub fn new(text: impl Into<Arc<str>>) -> Result<Self, InvalidId> {
                let text = text.into();
                check(&text)?;
                Ok(Self(text))
            }
        }

        impl Deref for $name {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id! {
    /// A user: the `sub` of a token, the `target` of an event.
    UserId
}
text_id! {
    /// A device of a user: the name of a cursor of its own.
    DeviceId
}
text_id! {
    /// A notification, unique per user; chosen by the producer or derived from the record.
    NotificationId
}

text_id! {
    /// A node: the same in all its incarnations, and unique in its cluster.
    NodeId
}

impl NotificationId {
    /// A new one: a UUID of version 7 (RFC 9562), which sorts by time and is unique by its random bits.
    #[must_use]
    pub fn time_ordered() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(now.as_millis()).unwrap_or_default();
        Self::of_uuid(uuid::Builder::from_unix_timestamp_millis(millis, &rand::random()).into_uuid())
    }

    /// A UUID as an id.
    #[must_use]
    pub fn of_uuid(id: Uuid) -> Self {
        Self(id.hyphenated().to_string().into())
    }
}

/// A UUID in the one form that is written here: 32 lowercase digits.
fn simple(text: &str) -> Option<Uuid> {
    let id = Uuid::try_parse(text).ok()?;
    (id.simple().encode_lower(&mut Uuid::encode_buffer()) == text).then_some(id)
}

/// A session: 122 random bits, so that knowing one is the right to act for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Uuid);

impl SessionId {
    /// A new one from the operating system's random numbers.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Reads the form that `Display` writes; anything else names no session.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        simple(text).map(Self)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

/// Enough to recognise it in logs, and too little to use it: who has the id of a started session is its user.
impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", &self.0.simple().encode_lower(&mut Uuid::encode_buffer())[..8])
    }
}

/// What is told of a session to others than its own client: enough to recognise it, and too little to act for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionTag(u32);

impl SessionTag {
    /// Reads the form that `Display` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 8).then(|| u32::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl From<SessionId> for SessionTag {
    fn from(id: SessionId) -> Self {
        Self(id.0.as_fields().0)
    }
}

impl fmt::Display for SessionTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// One life of a node's process. What it owned it has lost when it ends; its successor is another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(Uuid);

impl Incarnation {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Reads the form that `Display` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        simple(text).map(Self)
    }

    /// Its sixteen bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A durable notification's place in its user's order of delivery: 1, 2, 3 …; 0 stands before the first.
pub type Sequence = u64;

/// Names one life of the log: numbers of different epochs cannot be compared.
#[derive(Clone, PartialEq, Eq)]
pub struct LogEpoch(Arc<str>);

impl LogEpoch {
    /// A new one: eight random characters, without a dash (contract: `since=<epoch>-<seq>`).
    #[must_use]
    pub fn random() -> Self {
        let id = Uuid::new_v4().simple().to_string();
        Self(id[..8].into())
    }

    /// The one that a store remembers.
    #[must_use]
    pub fn named(text: &str) -> Self {
        Self(text.into())
    }
}

impl Deref for LogEpoch {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

/// Where a client resumes: `<epoch>-<seq>` (`since`, `Last-Event-ID`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Since {
    /// The log's epoch that the number belongs to, as the client wrote it.
    pub epoch: Box<str>,
    /// The last number that the client has seen.
    pub seq: Sequence,
}

impl Since {
    /// Reads `<epoch>-<seq>`; `None` when the text is not of that form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (epoch, seq) = text.split_once('-')?;
        let seq_is_plain = !seq.is_empty() && seq.bytes().all(|b| b.is_ascii_digit());
        if epoch.is_empty() || epoch.len() > 32 || !seq_is_plain || check(epoch).is_err() {
            return None;
        }
        Some(Self { epoch: epoch.into(), seq: seq.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_has_1_to_256_bytes_without_control_characters() {
        assert_eq!(check(""), Err(InvalidId::Empty));
        assert_eq!(check(&"x".repeat(256)), Ok(()));
        assert_eq!(check(&"x".repeat(257)), Err(InvalidId::TooLong));
        assert_eq!(check("Zoë 用户"), Ok(()));
        for bad in ["a\0b", "line\n", "\u{7f}", "\u{85}", "abc\u{202e}fdp", "\u{2066}x"] {
            assert_eq!(check(bad), Err(InvalidId::ControlCharacter), "{bad:?}");
        }
    }

    #[test]
    fn a_session_id_reads_only_what_it_writes() {
        let id = SessionId::random();
        assert_eq!(SessionId::parse(&id.to_string()), Some(id));
        assert_eq!(SessionId::parse(&id.to_string().to_uppercase()), None);
        assert_eq!(SessionId::parse("nobody"), None);
        assert_eq!(format!("{id:?}"), format!("{}…", &id.to_string()[..8]), "logs do not hold it");
        let tag = SessionTag::from(id);
        assert_eq!(tag.to_string(), id.to_string()[..8], "nor does the journal");
        assert_eq!((SessionTag::parse(&tag.to_string()), SessionTag::parse(&id.to_string())), (Some(tag), None));
    }

    #[test]
    fn an_incarnation_reads_only_what_it_writes() {
        let one = Incarnation::random();
        assert_eq!(Incarnation::parse(&one.to_string()), Some(one));
        assert_eq!(Incarnation::parse(&one.to_string().to_uppercase()), None);
        assert_ne!(one, Incarnation::random());
    }

    #[test]
    fn since_is_an_epoch_a_dash_and_a_number() {
        assert_eq!(Since::parse("k3f9-12"), Some(Since { epoch: "k3f9".into(), seq: 12 }));
        for bad in ["", "12", "k3f9-", "-12", "k3f9-+1", "k3f9-1x", "a-b-1", "k3f9-99999999999999999999"] {
            assert_eq!(Since::parse(bad), None, "{bad}");
        }
    }
}
