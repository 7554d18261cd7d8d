//! Who a client is. The one place that decides; what goes inward is a user and an expiry, or a service and what it
//! may do, never a token or key.

mod api_keys;
mod files;
mod jwks;
mod key;
mod metric;
mod token;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::task::JoinSet;

use crate::{
    event::UnixMillis,
    ids::{InvalidId, UserId},
};

pub use self::{
    api_keys::{ApiKey, Scope, Service},
    files::FileError,
    jwks::InvalidUrl,
    key::{Algorithm, InvalidKey},
    token::issue,
};
use self::{
    files::{Files, LocalKeys},
    jwks::{Issuer, Source},
    key::Key,
    token::Rules,
};

/// Keys of an issuer that are tried for a token that names none.
const TRIES_MAX: usize = 16;

/// What tokens and keys are checked against.
#[derive(Clone, Default)]
pub struct Config {
    /// The HS256 secret. With neither this nor other keys nobody gets in.
    pub hs256_secret: Option<Box<[u8]>>,
    /// The file that the secret is in, if it is in one.
    pub hs256_secret_file: Option<PathBuf>,
    /// PEM files with public keys or certificates.
    pub public_key_files: Vec<PathBuf>,
    /// Where the issuer publishes its keys.
    pub jwks_url: Option<String>,
    /// What tokens may be signed with; `None`: whatever there are keys for.
    pub algorithms: Option<Vec<Algorithm>>,
    /// Clock difference that is forgiven.
    pub leeway: Duration,
    /// Required `iss`, if any.
    pub issuer: Option<String>,
    /// Required `aud`, if any.
    pub audience: Option<String>,
    /// Keys of services.
    pub api_keys: Vec<ApiKey>,
}

/// Why a configuration cannot be used. Each text begins with the configuration's key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The issuer's URL.
    #[error("auth.jwt.jwks_url: {0}")]
    Url(#[from] InvalidUrl),
    /// Tokens that nothing could verify.
    #[error("auth.jwt.algorithms: there is no key for {}", .0.as_str())]
    NoKey(Algorithm),
}

/// Who asks: a user with a token, or a service with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// A user, about itself.
    User(Identity),
    /// A service, about any user, within its scopes.
    Service(Arc<Service>),
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
    #[error("{} is required", .0.as_str())]
    Missing(Wanted),
    /// It does not look like a token.
    #[error("a user's token (a JWT) is wanted here, and this is none; an API key does not do")]
    NotAToken,
    /// It looks like a token.
    #[error("an API key is wanted here; a user's token does not do")]
    NotAKey,
    /// It is no JWT, or its signature is not ours.
    #[error("the token is not valid")]
    Invalid,
    /// It was signed with a key that the issuer's set does not have: perhaps a newer one.
    #[error("the token's key is not known here")]
    UnknownKid,
    /// It may be good: the issuer's keys have never been fetched.
    #[error("the issuer's keys could not be fetched yet, so that the token cannot be checked")]
    NoKeys,
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
    /// No service has this key.
    #[error("the API key is not known")]
    UnknownKey,
    /// The key is known and does not do for this.
    #[error("the API key lacks the scope {}", .0.as_str())]
    Scope(Scope),
    /// Its user is not an identifier.
    #[error("the token's sub {0}")]
    User(InvalidId),
}

/// What shows who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A user's.
    Token,
    /// A service's.
    Key,
    /// One of them.
    Either,
}

impl Wanted {
    /// In words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "a token",
            Self::Key => "an API key",
            Self::Either => "a token or an API key",
        }
    }
}

impl Denied {
    /// Whether the answer could be another one after [`Authenticator::fetched_again`].
    #[must_use]
    pub fn awaits_keys(&self) -> bool {
        matches!(self, Self::UnknownKid | Self::NoKeys)
    }
}

/// Checks tokens and keys.
pub struct Authenticator {
    local: Arc<LocalKeys>,
    issuer: Option<Arc<Issuer>>,
    rules: Rules,
    api_keys: Vec<ApiKey>,
    /// What keeps the keys fresh; ends with the value.
    tasks: JoinSet<()>,
}

impl Authenticator {
    /// Checks against what is in `config` itself: the secret and the API keys, no files and no issuer.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let own = config.hs256_secret.as_deref().map(Key::secret);
        Self::with(config, Arc::new(LocalKeys::new(own)))
    }

    /// Checks against all of `config`, and keeps keys fresh that are in files or that an issuer publishes. Does not
    /// wait for the issuer.
    ///
    /// # Errors
    /// Names the configuration's key that cannot be used.
    pub fn start(config: &Config) -> Result<Arc<Self>, Error> {
        let (files, source) = sources(config)?;
        let mut started = Self::with(config, files.keys());
        for key in files.keys().get().iter().filter(|key| !started.rules.accepts(key.algorithm)) {
            let algorithm = key.algorithm.as_str();
            tracing::warn!(algorithm, "auth.jwt: there is a key for it, and auth.jwt.algorithms does not list it");
        }
        if files.any() {
            started.tasks.spawn(files.watch());
        }
        if let Some(source) = source {
            let issuer = started.issuer.insert(Arc::default()).clone();
            started.tasks.spawn(issuer.keep_fresh(source));
        }
        Ok(Arc::new(started))
    }

    fn with(config: &Config, local: Arc<LocalKeys>) -> Self {
        Self {
            local,
            issuer: None,
            rules: Rules::new(config),
            api_keys: config.api_keys.clone(),
            tasks: JoinSet::new(),
        }
    }

    /// Who the token says its bearer is. Never waits: an answer that [awaits keys](Denied::awaits_keys) may be another
    /// one from [`Self::check_fresh`].
    ///
    /// # Errors
    /// Says why the token is not accepted.
    pub fn check(&self, token: &str) -> Result<Identity, Denied> {
        if token.is_empty() {
            return Err(Denied::Missing(Wanted::Token));
        }
        if !looks_like_a_token(token) {
            return Err(Denied::NotAToken);
        }
        let header = self.rules.header(token).ok_or(Denied::Invalid)?;
        let is_for = |key: &&Key| key.algorithm == header.alg;
        // Keys of this node have no names: whatever the token says, one of them may have signed it.
        if let Some(answer) = self.rules.verified(token, self.local.get().iter().filter(is_for)) {
            return answer;
        }
        let Some(issuer) = self.issuer.as_ref().filter(|_| header.alg.is_asymmetric()) else {
            return Err(Denied::Invalid);
        };
        let keys = issuer.keys().ok_or(Denied::NoKeys)?;
        let may_be = |key: &&Key| is_for(key) && (header.kid.is_none() || key.id.is_none() || key.id == header.kid);
        if let Some(answer) = self.rules.verified(token, keys.iter().filter(may_be).take(TRIES_MAX)) {
            return answer;
        }
        let is_known = match header.kid {
            Some(_) => keys.iter().any(|key| key.id == header.kid),
            None => keys.iter().any(|key| is_for(&key)),
        };
        Err(if is_known { Denied::Invalid } else { Denied::UnknownKid })
    }

    /// As [`Self::check`]; a token whose key is not known gets a second look when the issuer's keys have been fetched
    /// again, which nobody can cause more than once in ten seconds: beyond that the answer comes at once.
    /// Cancel safe.
    ///
    /// # Errors
    /// Says why the token is not accepted.
    pub async fn check_fresh(&self, token: &str) -> Result<Identity, Denied> {
        match self.check(token) {
            Err(denied) if denied.awaits_keys() && self.fetched_again().await => self.check(token),
            answer => answer,
        }
    }

    /// Waits, a few seconds at the most, until the issuer's keys have been fetched again; `false` at once when they
    /// will not be now. For who asked [`Self::check`] and got an answer that [awaits keys](Denied::awaits_keys).
    /// Cancel safe.
    pub async fn fetched_again(&self) -> bool {
        match &self.issuer {
            Some(issuer) => issuer.fetched_again().await,
            None => false,
        }
    }

    /// The service that has this key, if it may do what `scope` says.
    ///
    /// # Errors
    /// Says why the key is not accepted.
    pub fn service(&self, key: &str, scope: Scope) -> Result<Arc<Service>, Denied> {
        if key.is_empty() {
            return Err(Denied::Missing(Wanted::Key));
        }
        let unknown = || if looks_like_a_token(key) { Denied::NotAKey } else { Denied::UnknownKey };
        let service = api_keys::find(&self.api_keys, key).ok_or_else(unknown)?;
        if service.scopes.contains(&scope) { Ok(service) } else { Err(Denied::Scope(scope)) }
    }

    /// Who has this credential: a key that may do what `scope` says.
    ///
    /// # Errors
    /// Says why the credential is not accepted.
    pub fn principal(&self, credential: &str, scope: Scope) -> Result<Principal, Denied> {
        match self.service(credential, scope) {
            Err(Denied::NotAKey) => self.check(credential).map(Principal::User),
            Err(Denied::Missing(_)) => Err(Denied::Missing(Wanted::Either)),
            answer => answer.map(Principal::Service),
        }
    }

    /// As [`Self::principal`], with [`Self::check_fresh`] for tokens. Cancel safe.
    ///
    /// # Errors
    /// Says why the credential is not accepted.
    pub async fn principal_fresh(&self, credential: &str, scope: Scope) -> Result<Principal, Denied> {
        match self.principal(credential, scope) {
            Err(denied) if denied.awaits_keys() && self.fetched_again().await => self.principal(credential, scope),
            answer => answer,
        }
    }
}

/// By its form alone, which says nothing of what is known here.
fn looks_like_a_token(credential: &str) -> bool {
    credential.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// Whether [`Authenticator::start`] could use the configuration; asks nobody and starts nothing.
///
/// # Errors
/// Names the configuration's key that cannot be used.
pub fn validate(config: &Config) -> Result<(), Error> {
    sources(config).map(drop)
}

fn sources(config: &Config) -> Result<(Files, Option<Source>), Error> {
    let files = Files::read(config)?;
    let source = config.jwks_url.as_deref().map(Source::new).transpose()?;
    let keys = files.keys().get();
    let has_key = |algorithm: Algorithm| {
        (algorithm.is_asymmetric() && source.is_some()) || keys.iter().any(|key| key.algorithm == algorithm)
    };
    match config.algorithms.iter().flatten().find(|algorithm| !has_key(**algorithm)) {
        Some(algorithm) => Err(Error::NoKey(*algorithm)),
        None => Ok((files, source)),
    }
}

#[cfg(test)]
mod tests;
