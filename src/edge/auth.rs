//! Who a client is. The one place that decides; what goes inward is a user and an expiry, never a token.

use std::time::Duration;

use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode, errors::ErrorKind,
};
use serde::{Deserialize, Serialize};

use crate::{
    event::{UnixMillis, unix_millis_now},
    ids::{InvalidId, UserId},
};

/// A longer token is refused unread: it is no identity but an attack.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// What tokens are checked against.
#[derive(Clone)]
pub struct Config {
    /// The HS256 secret; without one nobody gets in.
    pub hs256_secret: Option<Box<[u8]>>,
    /// Clock difference that is forgiven.
    pub leeway: Duration,
    /// Required `iss`, if any.
    pub issuer: Option<String>,
    /// Required `aud`, if any.
    pub audience: Option<String>,
}

/// A client that has shown who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The token's `sub`.
    pub user: UserId,
    /// The token's `exp` and leeway.
    pub expires_at: UnixMillis,
}

/// Why a client is not let in. The texts go to the client and hold nothing of the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// There is none.
    #[error("a token is required: Authorization: Bearer, subprotocol notifier.token.<JWT>, or ?access_token=")]
    Missing,
    /// It is no JWT, or its signature is not ours.
    #[error("the token is not valid")]
    Invalid,
    /// A claim is missing or has the wrong type.
    #[error("the token needs the claims sub and exp")]
    Claims,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    NotYet,
    /// It is meant for somebody else.
    #[error("the token's issuer or audience is not accepted here")]
    Foreign,
    /// Its user is not an identifier.
    #[error("the token's sub {0}")]
    User(InvalidId),
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
}

/// Checks tokens.
pub struct Authenticator {
    key: Option<DecodingKey>,
    validation: Validation,
    leeway: Duration,
}

impl Authenticator {
    /// Checks tokens against `config`.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = config.leeway.as_secs();
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp", "sub"]);
        validation.validate_aud = config.audience.is_some();
        if let Some(audience) = &config.audience {
            validation.set_audience(&[audience]);
            validation.required_spec_claims.insert("aud".into());
        }
        if let Some(issuer) = &config.issuer {
            validation.set_issuer(&[issuer]);
            validation.required_spec_claims.insert("iss".into());
        }
        let key = config.hs256_secret.as_deref().map(DecodingKey::from_secret);
        Self { key, validation, leeway: config.leeway }
    }

    /// Who the token says its bearer is.
    ///
    /// # Errors
    /// Says why the token is not accepted.
    pub fn check(&self, token: &str) -> Result<Identity, Denied> {
        if token.is_empty() {
            return Err(Denied::Missing);
        }
        let Some(key) = self.key.as_ref().filter(|_| token.len() <= TOKEN_BYTES_MAX) else {
            return Err(Denied::Invalid);
        };
        let claims = decode::<Claims>(token, key, &self.validation)
            .map_err(|error| match decode_header(token) {
                // A header that is no JSON would read as missing claims.
                Err(_) => Denied::Invalid,
                Ok(_) => denied(error.kind()),
            })?
            .claims;
        let user = UserId::new(claims.sub).map_err(Denied::User)?;
        let expires_at = Duration::from_secs(claims.exp).saturating_add(self.leeway).as_millis();
        Ok(Identity { user, expires_at: UnixMillis::try_from(expires_at).unwrap_or(UnixMillis::MAX) })
    }
}

fn denied(error: &ErrorKind) -> Denied {
    match error {
        ErrorKind::ExpiredSignature => Denied::Expired,
        ErrorKind::ImmatureSignature => Denied::NotYet,
        ErrorKind::InvalidIssuer | ErrorKind::InvalidAudience => Denied::Foreign,
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::Json(_) | ErrorKind::InvalidClaimFormat(_) => Denied::Claims,
        _ => Denied::Invalid,
    }
}

/// A token for `user`, signed with the HS256 secret, and its expiry in ms.
///
/// # Errors
/// When the secret cannot sign, which HS256 never refuses.
pub fn issue(
    user: &UserId,
    ttl: Duration,
    config: &Config,
    secret: &[u8],
) -> Result<(String, UnixMillis), jsonwebtoken::errors::Error> {
    #[derive(Serialize)]
    struct Issued<'a> {
        sub: &'a str,
        exp: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        iss: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        aud: Option<&'a str>,
    }
    let now = u64::try_from(unix_millis_now()).unwrap_or(0) / 1000;
    let exp = now.saturating_add(ttl.as_secs());
    let claims = Issued { sub: user, exp, iss: config.issuer.as_deref(), aud: config.audience.as_deref() };
    let token = encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret))?;
    Ok((token, UnixMillis::try_from(exp.saturating_mul(1000)).unwrap_or(UnixMillis::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn config() -> Config {
        Config { hs256_secret: Some(SECRET.into()), leeway: Duration::from_secs(5), issuer: None, audience: None }
    }

    fn now() -> u64 {
        u64::try_from(unix_millis_now()).unwrap() / 1000
    }

    fn signed(algorithm: Algorithm, claims: &serde_json::Value, secret: &[u8]) -> String {
        encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret)).unwrap()
    }

    fn check(config: &Config, claims: &serde_json::Value) -> Result<Identity, Denied> {
        Authenticator::new(config).check(&signed(Algorithm::HS256, claims, SECRET))
    }

    #[test]
    fn what_is_issued_is_accepted_and_names_user_and_expiry() {
        let config = Config { issuer: Some("i".into()), audience: Some("a".into()), ..config() };
        let user = UserId::new("101").unwrap();
        let (token, expires_at) = issue(&user, Duration::from_secs(60), &config, SECRET).unwrap();
        let identity = Authenticator::new(&config).check(&token).unwrap();
        assert_eq!(identity, Identity { user, expires_at: expires_at + 5000 });
    }

    #[test]
    fn claims_that_are_missing_wrong_or_out_of_time_are_refused() {
        let later = now() + 60;
        let cases = [
            (serde_json::json!({ "sub": "u" }), Denied::Claims),
            (serde_json::json!({ "exp": later }), Denied::Claims),
            (serde_json::json!({ "sub": 7, "exp": later }), Denied::Claims),
            (serde_json::json!({ "sub": "", "exp": later }), Denied::User(InvalidId::Empty)),
            (serde_json::json!({ "sub": "a\u{0}", "exp": later }), Denied::User(InvalidId::ControlCharacter)),
            (serde_json::json!({ "sub": "u", "exp": now() - 10 }), Denied::Expired),
            (serde_json::json!({ "sub": "u", "exp": later, "nbf": now() + 30 }), Denied::NotYet),
        ];
        for (claims, expected) in cases {
            assert_eq!(check(&config(), &claims).unwrap_err(), expected, "{claims}");
        }
        assert!(check(&config(), &serde_json::json!({ "sub": "u", "exp": now() - 3 })).is_ok(), "within the leeway");
    }

    #[test]
    fn issuer_and_audience_are_checked_when_they_are_configured() {
        let claims = serde_json::json!({ "sub": "u", "exp": now() + 60, "iss": "other", "aud": "other" });
        assert!(check(&config(), &claims).is_ok());
        assert_eq!(check(&Config { issuer: Some("i".into()), ..config() }, &claims).unwrap_err(), Denied::Foreign);
        let audience = Config { audience: Some("a".into()), ..config() };
        assert_eq!(check(&audience, &claims).unwrap_err(), Denied::Foreign);
        let without = serde_json::json!({ "sub": "u", "exp": now() + 60 });
        assert_eq!(check(&audience, &without).unwrap_err(), Denied::Claims);
    }

    #[test]
    fn another_key_another_algorithm_none_and_garbage_are_refused() {
        let claims = serde_json::json!({ "sub": "u", "exp": now() + 60 });
        let other_key = signed(Algorithm::HS256, &claims, b"another secret of more than 32 bytes");
        let other_algorithm = signed(Algorithm::HS512, &claims, SECRET);
        let body = signed(Algorithm::HS256, &claims, SECRET).split('.').nth(1).unwrap().to_owned();
        // {"alg":"none"} in base64url
        let unsigned = format!("eyJhbGciOiJub25lIn0.{body}.");
        let authenticator = Authenticator::new(&config());
        for token in [&other_key, &other_algorithm, &unsigned, "x.y.z", "\u{0}", &"a".repeat(1 << 20)] {
            assert_eq!(authenticator.check(token).unwrap_err(), Denied::Invalid);
        }
        assert_eq!(authenticator.check("").unwrap_err(), Denied::Missing);
        let closed = Authenticator::new(&Config { hs256_secret: None, ..config() });
        let good = signed(Algorithm::HS256, &claims, SECRET);
        assert_eq!(closed.check(&good).unwrap_err(), Denied::Invalid, "without a key nobody gets in");
    }
}
