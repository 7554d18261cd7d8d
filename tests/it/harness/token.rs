//! Tokens as an identity provider would sign them.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

/// The HS256 secret of every node that the harness starts.
pub const SECRET: &str = "a-secret-for-tests-only-0123456789abcdef";

/// Now, in seconds since the epoch.
pub fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_secs()
}

/// A good token for `user`, valid for two hours: also where a clock is an hour ahead.
pub fn valid(user: &str) -> String {
    signed(&json!({"sub": user, "exp": now_secs() + 2 * 3600}), SECRET)
}

/// `claims` signed with HS256 and `secret`.
pub fn signed(claims: &Value, secret: &str) -> String {
    encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret.as_bytes()))
        .expect("claims are JSON")
}

/// A good token's claims under another algorithm of the same family.
pub fn signed_hs512(user: &str) -> String {
    let claims = json!({"sub": user, "exp": now_secs() + 3600});
    encode(&Header::new(Algorithm::HS512), &claims, &EncodingKey::from_secret(SECRET.as_bytes()))
        .expect("claims are JSON")
}
