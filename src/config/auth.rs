//! Who may connect: `[auth.jwt]`, `[[auth.api_keys]]`.

use std::{path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    secret::Secret,
    value::{DurationText, duration},
};

/// Who may connect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// Users' tokens: JSON Web Tokens whose `sub` is the user. `sub` and `exp` are required.
    pub jwt: Jwt,
    /// Keys of services. Without any, no service can publish or read over HTTP.
    pub api_keys: Vec<ApiKey>,
}

/// Users' tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Jwt {
    /// The secret that HS256 tokens are signed with: at least 32 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hs256_secret: Option<Secret>,
    /// A file that holds `hs256_secret`; a line end after it is cut off. It is read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "file"))]
    pub hs256_secret_file: Option<PathBuf>,
    /// Public keys that tokens are checked with: PEM files with keys or certificates, RSA (2048 to 4096 bits), EC on
    /// P-256, or Ed25519. Every key in them is trusted, whatever a certificate's dates say. They are read again when
    /// they change.
    pub public_key_files: Vec<PathBuf>,
    /// Where the issuer publishes its public keys (a JSON Web Key Set), `http://` or `https://`. It is fetched at start,
    /// as often as the answer's `max-age` says (between 1 minute and 1 hour; 10 minutes when it says nothing), and when
    /// a token names a key that is not in it (once in 10 seconds at the most).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_url: Option<String>,
    /// Signature algorithms that are accepted; there has to be a key for each. Unset: those that there are keys for:
    /// `HS256` with a secret, what the public keys are for, and all but `HS256` with `jwks_url`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithms: Option<Vec<Algorithm>>,
    /// How far clocks may differ when `exp` and `nbf` are checked.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub leeway: Duration,
    /// What `iss` has to be. Unset: not checked (a warning at start).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// What `aud` has to be, or contain. Unset: not checked (a warning at start).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
}

/// A service that may use the HTTP API. Repeat the section for each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Names the service in logs.
    pub name: String,
    /// The SHA-256 of the key, 64 hexadecimal digits.
    pub sha256: KeyHash,
    /// What it may do.
    pub scopes: Vec<Scope>,
}

/// The SHA-256 of an API key, written as hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The hash itself.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl TryFrom<String> for KeyHash {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut hash = [0; 32];
        hex::decode_to_slice(text, &mut hash).map_err(|_| "expected the 64 hexadecimal digits of a SHA-256")?;
        Ok(Self(hash))
    }
}

impl From<KeyHash> for String {
    fn from(hash: KeyHash) -> Self {
        hex::encode(hash.0)
    }
}

/// A signature algorithm of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    #[serde(rename = "HS256")]
    Hs256,
    /// RSA with SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
}

/// What an API key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Write events.
    Publish,
    /// Start, list and end sessions.
    Sessions,
    /// Read users' notifications.
    Read,
}

impl Default for Jwt {
    fn default() -> Self {
        Self {
            hs256_secret: None,
            hs256_secret_file: None,
            public_key_files: Vec::new(),
            jwks_url: None,
            algorithms: None,
            leeway: Duration::from_secs(5),
            issuer: None,
            audience: None,
        }
    }
}
