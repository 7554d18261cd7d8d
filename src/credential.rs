//! What callers show of themselves in a request's headers, a token or an API key, and what they hear when it does not do.
//! The same for clients and for services; gRPC's metadata are headers too.

use axum::http::{HeaderMap, HeaderName, StatusCode, header};

use crate::{
    auth::{Denied, Wanted},
    problem::Problem,
};

/// A key, for callers whose `Authorization` is taken by something on the way.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// When to come back while an issuer's keys are not known, in seconds.
const RETRY_KEYS: u64 = 1;

/// The bearer's credential, if the request has one in its header.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// A token or an API key.
pub(crate) fn shown(headers: &HeaderMap) -> Option<&str> {
    bearer(headers).or_else(|| headers.get(API_KEY)?.to_str().ok())
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        let detail = match denied {
            Denied::Missing(Wanted::Token) => {
                format!("{denied}: Authorization: Bearer, subprotocol notifier.token.<JWT>, or ?access_token=")
            }
            Denied::Missing(Wanted::Key | Wanted::Either) => format!("{denied}: Authorization: Bearer, or X-API-Key"),
            _ => denied.to_string(),
        };
        match denied {
            Denied::Scope(_) => Self::new(StatusCode::FORBIDDEN, detail),
            Denied::NoKeys => Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(RETRY_KEYS),
            _ => Self::new(StatusCode::UNAUTHORIZED, detail),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_shows_a_token_or_a_key() {
        let with = |name: HeaderName, value: &str| {
            let headers = HeaderMap::from_iter([(name, value.parse().unwrap())]);
            (bearer(&headers).map(str::to_owned), shown(&headers).map(str::to_owned))
        };
        let both = |text: &str| (Some(text.to_owned()), Some(text.to_owned()));
        assert_eq!(with(header::AUTHORIZATION, "bearer a.b.c"), both("a.b.c"));
        assert_eq!(with(API_KEY, "k"), (None, Some("k".to_owned())));
        assert_eq!(with(header::AUTHORIZATION, "Basic eA=="), (None, None));
    }
}
