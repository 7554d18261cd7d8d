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
    /// A file that holds `hs256_secret`; a line end after it is cut off.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "file"))]
    pub hs256_secret_file: Option<PathBuf>,
    /// Public keys that tokens are checked with, PEM files.
    pub public_key_files: Vec<PathBuf>,
    /// Where the issuer publishes its public keys (a JSON Web Key Set).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_url: Option<String>,
    /// Signature algorithms that are accepted.
    pub algorithms: Vec<Algorithm>,
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
    pub sha256: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
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
            algorithms: vec![Algorithm::Hs256],
            leeway: Duration::from_secs(5),
            issuer: None,
            audience: None,
        }
    }
}
