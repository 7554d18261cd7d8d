//! What a token has to say, whichever key has signed it.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{EncodingKey, Validation, decode, encode, errors::ErrorKind};
use serde::{Deserialize, Serialize, de::IgnoredAny};

use super::{
    Config, Denied, Identity,
    key::{Algorithm, Key},
};
use crate::{
    event::{UnixMillis, unix_millis_now},
    ids::UserId,
};

/// A longer token is refused unread: it is no identity but an attack.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// What a token says about its signature, before anything of it is believed.
#[derive(Deserialize)]
pub(super) struct Header {
    pub(super) alg: Algorithm,
    pub(super) kid: Option<String>,
    /// Extensions that whoever checks has to understand (RFC 7515, section 4.1.11): we know none.
    crit: Option<IgnoredAny>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
}

/// What every token is checked for.
pub(super) struct Rules {
    /// One for each algorithm, in the order of [`Algorithm::ALL`]: a key is good for its own only.
    validations: [Validation; 4],
    algorithms: Option<Vec<Algorithm>>,
    leeway: Duration,
}

impl Header {
    fn of(token: &str) -> Option<Self> {
        let (header, _) = token.split_once('.')?;
        let header: Self = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        header.crit.is_none().then_some(header)
    }
}

impl Rules {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            validations: Algorithm::ALL.map(|algorithm| validation(config, algorithm)),
            algorithms: config.algorithms.clone(),
            leeway: config.leeway,
        }
    }

    pub(super) fn accepts(&self, algorithm: Algorithm) -> bool {
        self.algorithms.as_ref().is_none_or(|listed| listed.contains(&algorithm))
    }

    /// The token's header; `None`: it is no token for us, whatever key it was signed with.
    pub(super) fn header(&self, token: &str) -> Option<Header> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        Header::of(token).filter(|header| self.accepts(header.alg))
    }

    /// What the first key that has signed the token makes of it; `None`: none of them has.
    pub(super) fn verified<'a>(
        &self,
        token: &str,
        keys: impl Iterator<Item = &'a Key>,
    ) -> Option<Result<Identity, Denied>> {
        for key in keys {
            let validation = &self.validations[key.algorithm as usize];
            match decode::<Claims>(token, &key.decoding, validation) {
                Ok(token) => return Some(self.identity(token.claims)),
                Err(error) if *error.kind() == ErrorKind::InvalidSignature => {}
                Err(error) => return Some(Err(denied(error.kind()))),
            }
        }
        None
    }

    fn identity(&self, claims: Claims) -> Result<Identity, Denied> {
        let user = UserId::new(claims.sub).map_err(Denied::User)?;
        let expires_at = Duration::from_secs(claims.exp).saturating_add(self.leeway).as_millis();
        Ok(Identity { user, expires_at: UnixMillis::try_from(expires_at).unwrap_or(UnixMillis::MAX) })
    }
}

fn validation(config: &Config, algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm.library());
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
    validation
}

fn denied(error: &ErrorKind) -> Denied {
    match error {
        ErrorKind::ExpiredSignature => Denied::Expired,
        ErrorKind::ImmatureSignature => Denied::NotYet,
        ErrorKind::InvalidIssuer | ErrorKind::InvalidAudience => Denied::Foreign,
        ErrorKind::MissingRequiredClaim(claim) if matches!(&**claim, "iss" | "aud") => Denied::Foreign,
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
    let token =
        encode(&jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256), &claims, &EncodingKey::from_secret(secret))?;
    Ok((token, UnixMillis::try_from(exp.saturating_mul(1000)).unwrap_or(UnixMillis::MAX)))
}
