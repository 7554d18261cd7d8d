//! The tokens that clients show.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use jsonwebtoken::{Algorithm, EncodingKey, Header};

use crate::workload::user_name;

/// How long a token made here is valid.
const TTL: Duration = Duration::from_secs(24 * 3600);

/// An HS256 token for the user with this index.
pub fn token(secret: &str, user: usize) -> Result<String> {
    #[derive(serde::Serialize)]
    struct Claims {
        sub: String,
        exp: u64,
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock is before 1970")?;
    let claims = Claims { sub: user_name(user), exp: (now + TTL).as_secs() };
    let key = EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).context("signing a token")
}
