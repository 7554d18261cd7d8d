//! `Idempotency-Key`: a request that is sent again gives its events the same ids, and the log does the rest: an id
//! that it has is not delivered twice. Nothing is remembered here.

use axum::http::{HeaderMap, HeaderName};
use sha2::{Digest as _, Sha256};

use crate::ids::NotificationId;

/// The header's name.
pub(super) const HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// The longest key, in characters.
const KEY_CHARS_MAX: usize = 255;

/// What a caller calls a request that it may send again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct IdempotencyKey(String);

impl IdempotencyKey {
    /// The request's key, if it has one: as the IETF's draft writes it, a structured field's string in quotes, or the
    /// bare text that most clients send.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, &'static str> {
        let mut values = headers.get_all(HEADER).into_iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err("Idempotency-Key: there are several");
        }
        let text = value.to_str().map_err(|_| "Idempotency-Key: expected printable ASCII characters")?;
        let key = match text.strip_prefix('"') {
            Some(rest) => unquoted(rest).ok_or("Idempotency-Key: not a quoted string")?,
            None if text.contains([' ', '\t']) => return Err("Idempotency-Key: white space needs quotes around it"),
            None => text.to_owned(),
        };
        match key.len() {
            0 => Err("Idempotency-Key: is empty"),
            1..=KEY_CHARS_MAX => Ok(Some(Self(key))),
            _ => Err("Idempotency-Key: is longer than 255 characters"),
        }
    }

    /// The id of the request's event number `index`. It depends on the caller's name too: services do not know each
    /// other's keys. A UUID of version 8 (RFC 9562, 5.8) out of a SHA-256, which nobody can aim at another's id.
    pub(super) fn id(&self, caller: &str, index: usize) -> NotificationId {
        let mut hash = Sha256::new();
        for text in [caller, &self.0] {
            // With its length in front, no pair of texts runs into another pair.
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        hash.update((index as u64).to_be_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize()[..16]);
        NotificationId::of_uuid(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }
}

/// What stands before the closing quote, which has to be the end; RFC 9651, 4.2.5.
fn unquoted(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            '"' => return chars.next().is_none().then_some(out),
            '\\' => out.push(chars.next().filter(|c| matches!(c, '"' | '\\'))?),
            c @ ' '..='~' => out.push(c),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn of(values: &[&[u8]]) -> Result<Option<IdempotencyKey>, &'static str> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HEADER, HeaderValue::from_bytes(value).unwrap());
        }
        IdempotencyKey::of(&headers)
    }

    #[test]
    fn a_key_is_read_with_and_without_quotes() {
        let key = |text: &str| Ok(Some(IdempotencyKey(text.into())));
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[b"8e03978e-40d5"]), key("8e03978e-40d5"));
        assert_eq!(of(&[br#""8e03978e-40d5""#]), key("8e03978e-40d5"));
        assert_eq!(of(&[br#""with space, \" and \\""#]), key(r#"with space, " and \"#));
        assert_eq!(of(&["k".repeat(255).as_bytes()]), key(&"k".repeat(255)));
        let long = "k".repeat(256);
        let bad: [&[u8]; 10] =
            [b"", br#""""#, br#"""#, br#""open"#, br#""a"b"#, br#""\x""#, b"a b", b"\xff", b"\"\t\"", long.as_bytes()];
        for bad in bad {
            assert!(of(&[bad]).is_err(), "{}", String::from_utf8_lossy(bad));
        }
        assert!(of(&[b"a", b"a"]).is_err());
    }

    #[test]
    fn ids_depend_on_caller_key_and_index_and_on_nothing_else() {
        let id = |key: &str, caller, index| IdempotencyKey(key.into()).id(caller, index);
        // Written down: another version of this program has to give a repeated request the same ids.
        assert_eq!(&*id("key", "billing", 0), "b2f8671c-e83d-8871-83f0-56aca2e95800");
        let all = [id("key", "billing", 0), id("key", "billing", 1), id("yek", "billing", 0), id("key", "b", 0)];
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert_ne!(id("bc", "a", 0), id("c", "ab", 0), "a caller cannot reach into another's keys");
    }
}
