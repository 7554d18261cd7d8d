//! A server's HTTP API, for commands that ask it something with a service's key.

use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, StatusCode};

use super::{
    credentials::Credentials,
    endpoint::Endpoint,
    http::{ANSWER, Server},
    retry::{Decision, Failure, decide},
    tls,
};
use crate::{cli::Usage, config::Config};

/// More than this is not read.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// A server that is asked.
pub(in crate::cli) struct Api(Server);

/// No answer.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(in crate::cli) struct NoAnswer {
    text: String,
    /// Asking again would end the same way.
    pub(in crate::cli) is_final: bool,
}

impl From<Failure> for NoAnswer {
    fn from(failure: Failure) -> Self {
        Self { text: failure.to_string(), is_final: decide(&failure, false, None) == Decision::GiveUp }
    }
}

impl Api {
    /// The server at `url`, or else the one that `config` describes, on this machine.
    ///
    /// # Errors
    /// Names the flag that cannot be used.
    pub(in crate::cli) fn new(
        url: Option<&str>,
        ca_file: Option<&Path>,
        key: &str,
        config: &Config,
    ) -> Result<Self, Usage> {
        let endpoint = match url {
            Some(url) if url.contains(['?', '@']) => {
                return Err(Usage("--url must be the server's alone, such as http://127.0.0.1:8000".to_owned()));
            }
            Some(url) => Endpoint::parse(url)?,
            None => Endpoint::local("client.listen", config.client.listen, config.client.tls_cert_file.is_some())?,
        };
        let tls = match (endpoint.is_secure(), ca_file) {
            (true, ca_file) => Some(tls::connector(ca_file, b"http/1.1")?),
            (false, None) => None,
            (false, Some(_)) => return Err(Usage("--ca-file is of no use without https://".to_owned())),
        };
        let credentials = Credentials::given(key).map_err(|_| Usage("--api-key is no key".to_owned()))?;
        Ok(Self(Server { endpoint, credentials, tls }))
    }

    /// The body that the server has at this path.
    ///
    /// # Errors
    /// When nobody answers, or with an error. Cancel safe.
    pub(in crate::cli) async fn get(&self, path: &str) -> Result<Bytes, NoAnswer> {
        let lost = |text: String| NoAnswer::from(Failure::Lost(text));
        let request = Request::get(self.0.endpoint.target(path, &[]));
        let response = self.0.request(request, Full::default(), StatusCode::OK).await?;
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect();
        let body = tokio::time::timeout(ANSWER, body).await.map_err(|_| lost("the answer has no end".to_owned()))?;
        Ok(body.map_err(|error| lost(error.to_string()))?.to_bytes())
    }
}
