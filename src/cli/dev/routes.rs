//! What the page needs and only `notifier dev` serves: tokens for the asking, and a key to send with.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use serde_json::json;

use crate::{auth, config::Config, ids::UserId, node, problem::Problem};

const TOKEN_TTL: Duration = Duration::from_secs(3600);

struct Inner {
    auth: auth::Config,
    secret: Box<[u8]>,
    api_key: String,
}

/// The routes of `config`'s node, which knows `api_key`.
pub(super) fn routes(config: &Config, api_key: &str) -> anyhow::Result<Router> {
    let auth = node::auth_config(config);
    let secret = auth.hs256_secret.clone().context("dev always has a secret")?;
    let inner = Inner { auth, secret, api_key: api_key.to_owned() };
    Ok(Router::new().route("/dev/token", get(token)).with_state(Arc::new(inner)))
}

/// The page is served from this address; another origin's page must not get tokens here.
fn is_foreign(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-site").is_some_and(|site| site.as_bytes() != b"same-origin" && site.as_bytes() != b"none")
        || headers.get(header::HOST).and_then(|host| host.to_str().ok()).is_none_or(|host| !is_local(host))
}

/// Only names that cannot be pointed elsewhere: a page of a rebound name would be of the same origin.
fn is_local(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    matches!(name, "localhost" | "127.0.0.1" | "[::1]")
}

#[derive(Deserialize)]
struct TokenQuery {
    user: String,
}

async fn token(State(inner): State<Arc<Inner>>, headers: HeaderMap, Query(query): Query<TokenQuery>) -> Response {
    if is_foreign(&headers) {
        return Problem::new(StatusCode::FORBIDDEN, "tokens are only given to this node's own page").into_response();
    }
    let user = match UserId::new(query.user) {
        Ok(user) => user,
        Err(error) => return Problem::new(StatusCode::BAD_REQUEST, format!("user {error}")).into_response(),
    };
    match auth::issue(&user, TOKEN_TTL, &inner.auth, &inner.secret) {
        Ok((token, expires_at)) => {
            let expires_at = jiff::Timestamp::from_millisecond(expires_at).map(|at| at.to_string()).unwrap_or_default();
            let key = &inner.api_key;
            Json(json!({ "user": &*user, "token": token, "expires_at": expires_at, "api_key": key })).into_response()
        }
        Err(error) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_nodes_own_page_gets_tokens() {
        let foreign = |lines: &[(&'static str, &'static str)]| {
            let lines = lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            is_foreign(&lines.collect())
        };
        for host in ["localhost:8000", "127.0.0.1:8000", "[::1]:8000", "localhost"] {
            assert!(!foreign(&[("host", host)]), "{host}: not a browser, or an old one");
            for (site, is_foreign) in
                [("same-origin", false), ("none", false), ("same-site", true), ("cross-site", true)]
            {
                assert_eq!(foreign(&[("host", host), ("sec-fetch-site", site)]), is_foreign, "{host}: {site}");
            }
        }
        // Names that somebody may have pointed here.
        for host in ["rebound.example:8000", "localhost.rebound.example", "127.0.0.1.rebound.example", ""] {
            assert!(foreign(&[("host", host), ("sec-fetch-site", "same-origin")]), "{host}");
        }
        assert!(foreign(&[]), "no host at all");
    }
}
