//! The token that a connect shows: one that was given, or one made anew for each connect.

use std::time::Duration;

use hyper::header::HeaderValue;

use crate::{auth, cli::Usage, ids::UserId};

/// How long a token that was made here is good for.
const TTL: Duration = Duration::from_secs(3600);

/// What shows who is connecting.
pub(super) struct Credentials(Source);

enum Source {
    Given(HeaderValue),
    Made { user: UserId, config: auth::Config, secret: Box<[u8]> },
}

impl Credentials {
    /// A token of somebody else's making.
    ///
    /// # Errors
    /// When it is none that a header can hold.
    pub(super) fn given(token: &str) -> Result<Self, Usage> {
        let header = bearer(token.trim()).filter(|_| !token.trim().is_empty());
        header.map(|header| Self(Source::Given(header))).ok_or_else(|| Usage("--token is no token".to_owned()))
    }

    /// Tokens signed here with the secret of `config`.
    ///
    /// # Errors
    /// When there is no secret.
    pub(super) fn made_for(user: UserId, config: auth::Config) -> Result<Self, Usage> {
        let secret = config.hs256_secret.clone();
        let secret =
            secret.ok_or_else(|| Usage("a token is needed: set auth.jwt.hs256_secret, or give --token".into()))?;
        Ok(Self(Source::Made { user, config, secret }))
    }

    /// Whether the next token is another one, so that an expired one is no obstacle.
    pub(super) fn are_renewed(&self) -> bool {
        matches!(self.0, Source::Made { .. })
    }

    /// The value of an `Authorization` header, good for now.
    ///
    /// # Errors
    /// When signing fails, which HS256 never does.
    pub(super) fn header(&self) -> anyhow::Result<HeaderValue> {
        match &self.0 {
            Source::Given(header) => Ok(header.clone()),
            Source::Made { user, config, secret } => {
                let (token, _) = auth::issue(user, TTL, config, secret)?;
                Ok(bearer(&token).expect("a JWT is base64url and dots"))
            }
        }
    }
}

fn bearer(token: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_secret_and_token_the_user_is_told_what_to_set() {
        let config = auth::Config::default();
        let problem = Credentials::made_for(UserId::new("101").unwrap(), config).err().unwrap();
        assert!(problem.0.contains("auth.jwt.hs256_secret") && problem.0.contains("--token"), "{problem}");
    }

    #[test]
    fn what_no_header_can_hold_is_no_token() {
        for token in ["", "  ", "a\nb", "a\0"] {
            assert!(Credentials::given(token).is_err(), "{token:?}");
        }
        let header = Credentials::given(" a.b.c\n").unwrap().header().unwrap();
        assert_eq!(header.to_str().unwrap(), "Bearer a.b.c");
        assert!(header.is_sensitive());
    }
}
