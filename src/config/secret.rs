//! Values that must not reach logs, error messages or `check-config`.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What stands where a secret is.
pub(super) const MASK: &str = "***";

/// A secret: `Debug` and `Serialize` show that it is there, not what it is.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(Box<str>);

/// Where the store is, as a URL: shown without its password.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreUrl(Box<str>);

impl Secret {
    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

impl JsonSchema for Secret {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "secret" })
    }
}

impl StoreUrl {
    const EXPECTED: &str = "postgres://… or sqlite:PATH";

    /// Takes a URL of an engine that exists.
    ///
    /// # Errors
    /// Returns what is accepted instead.
    pub fn new(url: impl Into<Box<str>>) -> Result<Self, &'static str> {
        let url = url.into();
        let known = ["postgres://", "postgresql://", "sqlite:"];
        match known.iter().any(|scheme| url.len() > scheme.len() && url.starts_with(scheme)) {
            true => Ok(Self(url)),
            false => Err(Self::EXPECTED),
        }
    }

    /// Whether it names a file of SQLite's.
    #[must_use]
    pub fn is_sqlite(&self) -> bool {
        self.0.starts_with("sqlite:")
    }

    /// The URL with its password.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The URL without its password and without its parameters, which can hold one too.
    #[must_use]
    pub fn redacted(&self) -> String {
        let (base, parameters) = match self.0.split_once('?') {
            Some((base, _)) => (base, "?***"),
            None => (&*self.0, ""),
        };
        // A password may hold an unescaped `@`; the host never does.
        let credentials = base.split_once("://").and_then(|(scheme, rest)| {
            let (credentials, host) = rest.rsplit_once('@')?;
            let (user, _password) = credentials.split_once(':')?;
            Some((scheme, user, host))
        });
        match credentials {
            Some((scheme, user, host)) => format!("{scheme}://{user}:{MASK}@{host}{parameters}"),
            None => format!("{base}{parameters}"),
        }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(&self.redacted())
    }
}

impl Serialize for StoreUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.redacted())
    }
}

impl<'de> Deserialize<'de> for StoreUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The text is not in the message: it can hold a password.
        Self::new(String::deserialize(deserializer)?)
            .map_err(|expected| de::Error::custom(format_args!("expected {expected}")))
    }
}

impl JsonSchema for StoreUrl {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "StoreUrl".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "url" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_is_never_shown() {
        let secret = Secret::from("hunter2");
        assert_eq!(format!("{secret:?}"), MASK);
        assert_eq!(serde_json::to_string(&secret).expect("serializes"), r#""***""#);
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn store_url_is_shown_without_its_password() {
        for (url, shown) in [
            ("postgres://notifier:p@ss:w@db:5432/notifier", "postgres://notifier:***@db:5432/notifier"),
            ("postgres://notifier@db/notifier", "postgres://notifier@db/notifier"),
            ("postgresql://db/notifier?password=x", "postgresql://db/notifier?***"),
            ("sqlite:data/notifier.db", "sqlite:data/notifier.db"),
        ] {
            let url = StoreUrl::new(url).expect("an accepted URL");
            assert_eq!(format!("{url:?}"), shown);
        }
    }

    #[test]
    fn store_url_of_no_known_engine_is_refused() {
        for url in ["", "mysql://db", "sqlite:", "postgres", "data.db"] {
            assert_eq!(StoreUrl::new(url), Err(StoreUrl::EXPECTED), "{url}");
        }
    }
}
