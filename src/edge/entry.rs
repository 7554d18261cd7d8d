//! How a client gets in, the same for all protocols: who it is, whether it may, and as what it is known from there on.

use std::{net::IpAddr, time::Duration};

use axum::http::StatusCode;

use super::{
    Shared,
    admission::{AdmittedStream, Refusal},
    metric,
    relay::Client,
};
use crate::{
    auth::{Denied, Identity},
    event::UnixMillis,
    ids::{DeviceId, SessionId, Since, UserId},
    problem::Problem,
    store::{self, sessions},
};

/// What a client shows, and what it asks for; texts as they came.
#[derive(Default)]
pub(super) struct Wish<'a> {
    /// A token.
    pub(super) token: Option<&'a str>,
    /// The id of a session that was started for it.
    pub(super) session: Option<&'a str>,
    /// Whom it says that it is, which must be true.
    pub(super) user: Option<&'a str>,
    /// Its device.
    pub(super) device: Option<&'a str>,
    /// Where it resumes.
    pub(super) since: Option<&'a str>,
}

/// A client that is let in.
pub(super) struct Entered {
    pub(super) client: Client,
    pub(super) since: Option<Since>,
}

/// Why a client is not let in, or may not do what it asks for. The texts go to the client.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// Its credentials.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// No such session; ended and expired ones are not told apart from guessed ones.
    #[error("there is no such session: it was never started, has expired or was ended")]
    NoSession,
    /// Nothing has the id that it names.
    #[error("there is no such session")]
    Unknown,
    /// What it asks for is another user's.
    #[error("{0} belongs to another user")]
    NotYours(&'static str),
    /// Something that it sent.
    #[error("{0}")]
    Invalid(String),
    /// The user has too many started sessions.
    #[error("the user has {} started sessions, and more are not possible", sessions::PER_USER_MAX)]
    TooManySessions,
    /// The node serves as many clients as it can.
    #[error("this node has no room for more connections")]
    TooManyConnections,
    /// It serves as many clients of one address as it may.
    #[error("too many connections of this address")]
    TooManyOfAddress,
    /// The node drains.
    #[error("this node is going away")]
    Draining,
    /// Too many connects this second.
    #[error("too many connects at the moment")]
    Busy(Duration),
    /// Other nodes, which are named, do not say what they know.
    #[error("no answer from {}: what is connected there is not known", .0.join(", "))]
    Silent(Vec<String>),
    /// The store of started sessions.
    #[error("started sessions cannot be looked up at the moment")]
    Store,
}

impl From<store::Error> for Refused {
    fn from(error: store::Error) -> Self {
        tracing::warn!(%error, "started sessions");
        Self::Store
    }
}

impl Refused {
    /// When to try again, if that may help.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            // Not the client's fault, and soon over.
            Self::Denied(Denied::NoKeys)
            | Self::Draining
            | Self::Store
            | Self::Silent(_)
            | Self::TooManyConnections
            | Self::TooManyOfAddress => Some(Duration::from_secs(1)),
            Self::Busy(wait) => Some(*wait),
            _ => None,
        }
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let status = match &refused {
            Refused::Denied(denied) => return denied.clone().into(),
            Refused::NotYours(_) => StatusCode::FORBIDDEN,
            Refused::NoSession => StatusCode::UNAUTHORIZED,
            Refused::Unknown => StatusCode::NOT_FOUND,
            Refused::Invalid(_) => StatusCode::BAD_REQUEST,
            Refused::TooManySessions => StatusCode::TOO_MANY_REQUESTS,
            Refused::TooManyConnections
            | Refused::TooManyOfAddress
            | Refused::Draining
            | Refused::Busy(_)
            | Refused::Silent(_)
            | Refused::Store => StatusCode::SERVICE_UNAVAILABLE,
        };
        let problem = Self::new(status, refused.to_string());
        match refused.retry_after() {
            Some(wait) => problem.retry_after(wait.as_secs() + u64::from(wait.subsec_nanos() > 0)),
            None => problem,
        }
    }
}

/// Who a client has shown to be.
struct Known {
    user: UserId,
    session: SessionId,
    expires_at: UnixMillis,
}

impl Shared {
    /// Lets a client in, if nothing has to be waited for; else `None`.
    pub(super) fn enter_at_once(&self, wish: &Wish<'_>) -> Option<Result<Entered, Refused>> {
        if wish.session.is_some() {
            return None;
        }
        let checked = match self.authenticator.check(wish.token.unwrap_or_default()) {
            Err(denied) if denied.awaits_keys() => return None,
            checked => checked,
        };
        Some(of_token(checked, wish).and_then(|known| self.let_in(known, wish)))
    }

    /// Lets a client in.
    pub(super) async fn enter(&self, wish: &Wish<'_>) -> Result<Entered, Refused> {
        let known = match wish.session {
            Some(session) => self.by_session(session, wish).await,
            None => of_token(self.authenticator.check_fresh(wish.token.unwrap_or_default()).await, wish),
        };
        self.let_in(known?, wish)
    }

    async fn by_session(&self, session: &str, wish: &Wish<'_>) -> Result<Known, Refused> {
        let found = match SessionId::parse(session) {
            Some(session) => self.started.find(session).await?,
            None => None,
        };
        let started = found.ok_or_else(|| unauthenticated(Refused::NoSession))?;
        must_be(wish.user, &started.user)?;
        if let Some(token) = wish.token {
            self.must_be_user(token, &started.user).await?;
        }
        Ok(Known { user: started.user, session: started.session, expires_at: started.expires_at })
    }

    fn let_in(&self, known: Known, wish: &Wish<'_>) -> Result<Entered, Refused> {
        let device = wish.device.map(device).transpose()?;
        let since = wish.since.map(since).transpose()?;
        self.take_place()?;
        let Known { user, session, expires_at } = known;
        Ok(Entered { client: Client { session, user, device, expires_at, is_started: wish.session.is_some() }, since })
    }

    /// Takes one of this second's connects, unless the node drains.
    pub(super) fn take_place(&self) -> Result<(), Refused> {
        if *self.draining.borrow() {
            metric::rejected(Refusal::Draining);
            return Err(Refused::Draining);
        }
        if self.admission.is_memory_full() {
            metric::rejected(Refusal::Memory);
            return Err(Refused::TooManyConnections);
        }
        self.admission.connect().map_err(|wait| {
            metric::rejected(Refusal::ConnectRate);
            Refused::Busy(wait)
        })
    }

    /// Takes a place beside others on one connection, for a client that a proxy may have named.
    pub(super) fn take_stream(&self, counted: Option<IpAddr>) -> Result<AdmittedStream, Refused> {
        self.admission.admit_stream(counted).map_err(|refusal| {
            metric::rejected(refusal);
            match refusal {
                Refusal::ConnectionsPerAddress => Refused::TooManyOfAddress,
                _ => Refused::TooManyConnections,
            }
        })
    }
}

impl Shared {
    /// Whether the token is this user's.
    pub(super) async fn must_be_user(&self, token: &str, user: &UserId) -> Result<(), Refused> {
        let identity = self.authenticator.check_fresh(token).await.map_err(unauthenticated)?;
        must_be(Some(&identity.user), user)
    }
}

fn of_token(checked: Result<Identity, Denied>, wish: &Wish<'_>) -> Result<Known, Refused> {
    let identity = checked.map_err(unauthenticated)?;
    must_be(wish.user, &identity.user)?;
    Ok(Known { user: identity.user, session: SessionId::random(), expires_at: identity.expires_at })
}

/// Counts a client that is not let in for what it shows.
pub(super) fn unauthenticated(refused: impl Into<Refused>) -> Refused {
    metric::rejected(Refusal::Unauthenticated);
    refused.into()
}

fn must_be(said: Option<&str>, user: &UserId) -> Result<(), Refused> {
    if said.is_none_or(|said| *said == **user) {
        Ok(())
    } else {
        Err(unauthenticated(Refused::NotYours("the session")))
    }
}

fn device(text: &str) -> Result<DeviceId, Refused> {
    // What was no UTF-8 in a URL has become this character; nobody names a device so.
    if text.contains(char::REPLACEMENT_CHARACTER) {
        return Err(Refused::Invalid("device is not UTF-8".into()));
    }
    DeviceId::new(text).map_err(|error| Refused::Invalid(format!("device {error}")))
}

fn since(text: &str) -> Result<Since, Refused> {
    Since::parse(text).ok_or_else(|| Refused::Invalid("since must be <epoch>-<seq>".into()))
}

#[cfg(test)]
mod tests;
