//! One fetch of a key set over HTTP, within bounds of time, size and redirects.

use std::{sync::Arc, time::Duration};

use reqwest::{
    Client, Response, StatusCode, Url,
    header::{ACCEPT, CACHE_CONTROL, HeaderMap},
    redirect::Policy,
};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;

use super::KeySet;
use crate::auth::metric::FetchOutcome;

/// From the connect to the last byte.
const TIMEOUT: Duration = Duration::from_secs(5);
const REDIRECTS_MAX: usize = 3;
/// A longer body is no key set.
const BODY_BYTES_MAX: usize = 1 << 20;
/// How long a set is fresh when the answer does not say.
const FRESH_DEFAULT: Duration = Duration::from_secs(10 * 60);
/// Whatever the answer says: a removed key stops working within the longest of these.
const FRESH_MIN: Duration = Duration::from_secs(60);
const FRESH_MAX: Duration = Duration::from_secs(60 * 60);

/// Why a URL cannot be fetched from.
#[derive(Debug, thiserror::Error)]
pub enum InvalidUrl {
    /// It is none that we could ask.
    #[error("is no URL; expected http:// or https:// and a host")]
    Url,
    /// It would be shown with the configuration.
    #[error("holds a user or a password; expected a URL that everybody may read")]
    Credentials,
    /// There is nothing to verify the issuer's certificate with, or the like.
    #[error("cannot be fetched from with TLS: {0}")]
    Tls(String),
}

/// Where a key set is.
pub(in crate::auth) struct Source {
    client: Client,
    url: Url,
}

/// What a fetch gave.
pub(super) struct Fetched {
    pub(super) set: KeySet,
    pub(super) fresh_for: Duration,
}

/// Why a fetch gave nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// No connection, no trust, too slow, too many redirects.
    #[error("{}", with_sources(.0))]
    Unreachable(reqwest::Error),
    #[error("the answer's status is {0}")]
    Status(StatusCode),
    #[error("the answer is longer than {BODY_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the answer is no JSON Web Key Set")]
    Invalid,
}

/// The cause is what an operator needs: the error's own text is that a request failed.
fn with_sources(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl FetchError {
    pub(super) fn outcome(&self) -> FetchOutcome {
        match self {
            Self::Unreachable(_) => FetchOutcome::Unreachable,
            Self::Status(_) => FetchOutcome::Status,
            Self::TooLarge => FetchOutcome::TooLarge,
            Self::Invalid => FetchOutcome::Invalid,
        }
    }
}

impl From<reqwest::Error> for FetchError {
    fn from(error: reqwest::Error) -> Self {
        // Queries of URLs, of redirects too, may hold what is not for logs.
        Self::Unreachable(error.without_url())
    }
}

impl Source {
    /// Checks the URL and makes ready to ask. Over HTTPS the system's certificates are trusted, and no redirect leads
    /// out of it.
    pub(in crate::auth) fn new(url: &str) -> Result<Self, InvalidUrl> {
        let url = Url::parse(url).ok().filter(Url::has_host).ok_or(InvalidUrl::Url)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(InvalidUrl::Url);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidUrl::Credentials);
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| InvalidUrl::Tls(error.to_string()))?;
        let is_https = url.scheme() == "https";
        let tls = if is_https {
            tls.with_platform_verifier().map_err(|error| InvalidUrl::Tls(error.to_string()))?
        } else {
            // Certificates are not asked for: images without any can do without.
            tls.with_root_certificates(RootCertStore::empty())
        };
        let client = Client::builder()
            .tls_backend_preconfigured(tls.with_no_client_auth())
            .https_only(is_https)
            .redirect(Policy::limited(REDIRECTS_MAX))
            .timeout(TIMEOUT)
            .user_agent(concat!("notifier/", env!("CARGO_PKG_VERSION")))
            // It is used once in minutes.
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|error| InvalidUrl::Tls(error.to_string()))?;
        Ok(Self { client, url })
    }

    /// Asks once.
    pub(super) async fn fetch(&self) -> Result<Fetched, FetchError> {
        let request = self.client.get(self.url.clone()).header(ACCEPT, "application/jwk-set+json, application/json");
        let response = request.send().await?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let fresh_for = fresh_for(response.headers());
        let set = KeySet::parse(&body(response).await?).ok_or(FetchError::Invalid)?;
        Ok(Fetched { set, fresh_for })
    }
}

async fn body(mut response: Response) -> Result<Vec<u8>, FetchError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(FetchError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// How long the answer says that it is fresh, within our bounds.
fn fresh_for(headers: &HeaderMap) -> Duration {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut directives = values.flat_map(|value| value.split(',')).map(str::trim);
    let max_age = directives.find_map(|directive| {
        let (name, seconds) = directive.split_once('=')?;
        name.eq_ignore_ascii_case("max-age").then(|| seconds.trim_matches('"').parse().ok()).flatten()
    });
    max_age.map_or(FRESH_DEFAULT, Duration::from_secs).clamp(FRESH_MIN, FRESH_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freshness_is_what_the_answer_says_within_bounds() {
        for (said, seconds) in [
            ("", 600),
            ("public, max-age=120", 120),
            ("Max-Age=\"300\"", 300),
            ("max-age=0, must-revalidate", 60),
            ("max-age=86400", 3600),
            ("max-age=99999999999999999999999", 600),
            ("max-age=-1", 600),
            ("no-store", 600),
        ] {
            let headers = HeaderMap::from_iter([(CACHE_CONTROL, said.parse().unwrap())]);
            assert_eq!(fresh_for(&headers).as_secs(), seconds, "{said}");
        }
    }

    #[test]
    fn only_urls_that_can_be_asked_and_shown_are_accepted() {
        for good in ["http://127.0.0.1:8080/jwks", "https://login.example/keys?v=1"] {
            assert!(Source::new(good).is_ok(), "{good}");
        }
        for bad in ["", "login.example/keys", "file:///etc/jwks", "ftp://a/b", "https://"] {
            let result = Source::new(bad).map(|source| source.url.to_string());
            assert!(matches!(result, Err(InvalidUrl::Url)), "{bad}: {result:?}");
        }
        for bad in ["https://user@login.example", "https://:word@login.example"] {
            assert!(matches!(Source::new(bad), Err(InvalidUrl::Credentials)), "{bad}");
        }
    }
}
