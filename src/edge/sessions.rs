//! Sessions seen from outside their connection: started ahead of it, listed, ended. The same for HTTP and gRPC.

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Shared,
    entry::{Refused, unauthenticated},
    protocol::Protocol,
    relay::Relay,
};
use crate::{
    auth::{Denied, Principal, Scope, Wanted},
    event::{UnixMillis, unix_millis_now},
    ids::{SessionId, UserId},
    store::sessions::{Started, Starting},
    wire::{Close, CloseCode},
};

/// A session as an operator sees it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Listed {
    session: String,
    /// Whether a client is connected.
    connected: bool,
    /// How, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// When its token, or itself if it was started, expires; in ms since 1970.
    expires_at_ms: UnixMillis,
}

impl Listed {
    fn connected(relay: &Relay) -> Self {
        Self {
            session: relay.client.session.to_string(),
            connected: true,
            protocol: Some(Protocol::NAMES[relay.protocol.index()]),
            device: relay.client.device.as_ref().map(ToString::to_string),
            expires_at_ms: relay.client.expires_at,
        }
    }

    fn started(started: &Started) -> Self {
        Self {
            session: started.session.to_string(),
            connected: false,
            protocol: None,
            device: None,
            expires_at_ms: started.expires_at,
        }
    }
}

impl Shared {
    /// Starts a session for a user, who may ask for it, as may a service. Without a name it is for whoever asks.
    pub(super) async fn start_session(&self, credential: &str, user: Option<&str>) -> Result<Started, Refused> {
        let user = match user {
            Some(user) => self.acting_for(credential, user, &[Scope::Sessions]).await?,
            None => match self.principal(credential, &[Scope::Sessions]).await? {
                Principal::User(identity) => identity.user,
                Principal::Service(_) => return Err(Refused::Invalid("user is missing".into())),
            },
        };
        self.take_place()?;
        let ttl = i64::try_from(self.config.issued_ttl.as_millis()).unwrap_or(i64::MAX);
        let expires_at = unix_millis_now().saturating_add(ttl);
        let started = Started { session: SessionId::random(), user, expires_at };
        match self.started.start(started.clone()).await? {
            Starting::Done => Ok(started),
            Starting::TooManyOfUser => Err(Refused::TooManySessions),
            Starting::Full => Err(Refused::Busy(Duration::from_secs(60))),
        }
    }

    /// The user's sessions on this node, and those started for it.
    pub(super) async fn list_sessions(&self, credential: &str, user: &str) -> Result<Vec<Listed>, Refused> {
        let user = self.acting_for(credential, user, &[Scope::Sessions, Scope::Read]).await?;
        let connected = self.registry.of_user(&user);
        let is_connected = |started: &Started| connected.iter().any(|relay| relay.client.session == started.session);
        let started = self.started.of_user(&user).await?;
        let waiting = started.iter().filter(|started| !is_connected(started)).map(Listed::started);
        Ok(connected.iter().map(|relay| Listed::connected(relay)).chain(waiting).collect())
    }

    /// Ends a session of a user, or all of them: its connection is closed, and its id is of no use any more.
    pub(super) async fn end_sessions(
        &self,
        credential: &str,
        user: &str,
        session: Option<&str>,
    ) -> Result<(), Refused> {
        let user = self.acting_for(credential, user, &[Scope::Sessions]).await?;
        self.end_of_user(&user, session).await
    }

    /// Ends a session by its id alone: the caller's own, or for a service anybody's.
    pub(super) async fn end_session(&self, credential: &str, session: &str) -> Result<(), Refused> {
        let principal = self.principal(credential, &[Scope::Sessions]).await?;
        let user = self.user_of(session).await?;
        if matches!(principal, Principal::User(identity) if identity.user != user) {
            return Err(Refused::NotYours("the session"));
        }
        self.end_of_user(&user, Some(session)).await
    }

    async fn end_of_user(&self, user: &UserId, session: Option<&str>) -> Result<(), Refused> {
        let mut sessions: Vec<SessionId> = self.registry.of_user(user).iter().map(|one| one.client.session).collect();
        sessions.extend(self.started.of_user(user).await?.iter().map(|started| started.session));
        if let Some(wanted) = session {
            let wanted = SessionId::parse(wanted);
            sessions.retain(|session| Some(*session) == wanted);
            if sessions.is_empty() {
                return Err(Refused::Unknown);
            }
        }
        for session in sessions {
            self.started.end(session).await?;
            if let Some(relay) = self.registry.find(session) {
                relay.close(Close::new(CloseCode::Replaced, "ended by the API"));
            }
        }
        Ok(())
    }

    /// Whose session it is.
    async fn user_of(&self, session: &str) -> Result<UserId, Refused> {
        let session = SessionId::parse(session).ok_or(Refused::Unknown)?;
        if let Some(relay) = self.registry.find(session) {
            return Ok(relay.client.user.clone());
        }
        self.started.find(session).await?.map(|started| started.user).ok_or(Refused::Unknown)
    }

    async fn acting_for(&self, credential: &str, user: &str, scopes: &[Scope]) -> Result<UserId, Refused> {
        let user = UserId::new(user).map_err(|error| Refused::Invalid(format!("user {error}")))?;
        match self.principal(credential, scopes).await? {
            Principal::User(identity) if identity.user != user => Err(Refused::NotYours("the session")),
            Principal::User(_) | Principal::Service(_) => Ok(user),
        }
    }

    /// Who asks: a user, or a service with one of the scopes.
    async fn principal(&self, credential: &str, scopes: &[Scope]) -> Result<Principal, Refused> {
        let mut answer = Err(Denied::Missing(Wanted::Either));
        for scope in scopes {
            answer = self.authenticator.principal_fresh(credential, *scope).await;
            if !matches!(answer, Err(Denied::Scope(_))) {
                break;
            }
        }
        answer.map_err(unauthenticated)
    }
}
