//! Sessions seen from outside their connection: started ahead of it, listed, ended, acknowledged for. The same for HTTP
//! and gRPC, and wherever the connection is.

use std::{collections::HashSet, sync::Arc, time::Duration};

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Shared,
    entry::{Refused, unauthenticated},
    peers::{self, Acknowledged, Answer, Connected, Question},
    relay::Relay,
};
use crate::{
    auth::{Denied, Principal, Scope, Wanted},
    event::{UnixMillis, unix_millis_now},
    ids::{Sequence, SessionId, UserId},
    store::sessions::{Started, Starting},
};

/// A session as an operator sees it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Listed {
    session: String,
    /// Whether a client is connected.
    connected: bool,
    /// How, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<String>,
    /// To which node, in a cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// When its token, or itself if it was started, expires; in ms since 1970.
    expires_at_ms: UnixMillis,
}

impl Listed {
    fn connected(node: Option<&str>, connected: Connected) -> Self {
        Self {
            session: connected.session.to_string(),
            connected: true,
            protocol: Some(connected.protocol),
            node: node.map(str::to_owned),
            device: connected.device.as_ref().map(ToString::to_string),
            expires_at_ms: connected.expires_at,
        }
    }

    fn started(started: &Started) -> Self {
        Self {
            session: started.session.to_string(),
            connected: false,
            protocol: None,
            node: None,
            device: None,
            expires_at_ms: started.expires_at,
        }
    }
}

/// Where a session is connected for which somebody acknowledges.
pub(super) enum Holder {
    Here(Arc<Relay>),
    /// On another node, if anywhere; for whoever has shown that it is this user.
    Elsewhere(SessionId, Option<UserId>),
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

    /// The user's sessions on all nodes, and those started for it; and the nodes that did not answer.
    pub(super) async fn list_sessions(
        &self,
        credential: &str,
        user: &str,
    ) -> Result<(Vec<Listed>, Vec<String>), Refused> {
        let user = self.acting_for(credential, user, &[Scope::Sessions, Scope::Read]).await?;
        let (answers, silent) = self.ask(Question::Sessions(user.clone())).await;
        let (mut connected, mut listed) = (HashSet::new(), Vec::new());
        for (node, answer) in answers {
            if let Answer::Sessions(sessions) = answer {
                connected.extend(sessions.iter().map(|one| one.session));
                listed.extend(sessions.into_iter().map(|one| Listed::connected(node.as_deref(), one)));
            }
        }
        let started = self.started.of_user(&user).await?;
        listed.extend(started.iter().filter(|one| !connected.contains(&one.session)).map(Listed::started));
        Ok((listed, silent))
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
        let session = session.map(|session| SessionId::parse(session).ok_or(Refused::Unknown)).transpose()?;
        let mut started = self.started.of_user(user).await?;
        started.retain(|one| session.is_none_or(|session| one.session == session));
        // In the store first: a connection that comes meanwhile looks there once it can be found by its node.
        for one in &started {
            self.started.end(one.session).await?;
        }
        let (answers, silent) = self.ask(Question::End(user.clone(), session)).await;
        let ended = |(_, answer): &(_, Answer)| matches!(answer, Answer::Ended(count) if *count > 0);
        let is_ended = answers.iter().any(ended);
        match session {
            // It has one connection at the most.
            Some(_) if is_ended => Ok(()),
            _ if !silent.is_empty() => Err(Refused::Silent(silent)),
            Some(_) if started.is_empty() => Err(Refused::Unknown),
            _ => Ok(()),
        }
    }

    /// Who passes on what is acknowledged for a session. Its id is the right to do it; a token, when there is one, must
    /// be its user's.
    pub(super) async fn holder(&self, session: &str, token: Option<&str>) -> Result<Holder, Refused> {
        let session = SessionId::parse(session).ok_or(Refused::Unknown)?;
        if let Some(relay) = self.registry.find(session) {
            if let Some(token) = token {
                self.must_be_user(token, &relay.client.user).await?;
            }
            return Ok(Holder::Here(relay));
        }
        if self.peers.is_none() {
            return Err(Refused::Unknown);
        }
        let user = match token {
            Some(token) => Some(self.authenticator.check_fresh(token).await.map_err(unauthenticated)?.user),
            None => None,
        };
        Ok(Holder::Elsewhere(session, user))
    }

    /// Acknowledges; `false`: what it names was never sent, which has ended the session.
    pub(super) async fn acknowledge(&self, holder: &Holder, seq: Sequence) -> Result<bool, Refused> {
        let (session, user) = match holder {
            Holder::Here(relay) => return Ok(peers::acknowledge(relay, seq) == Acknowledged::Taken),
            Holder::Elsewhere(session, user) => (*session, user.clone()),
        };
        let (answers, silent) = self.ask(Question::Acknowledge(session, seq, user)).await;
        let mut became = answers.iter().filter_map(|(_, answer)| match answer {
            Answer::Acknowledged(became) if *became != Acknowledged::Unknown => Some(*became),
            _ => None,
        });
        match became.next() {
            Some(Acknowledged::NotYours) => Err(unauthenticated(Refused::NotYours("the session"))),
            Some(became) => Ok(became == Acknowledged::Taken),
            None if silent.is_empty() => Err(Refused::Unknown),
            None => Err(Refused::Silent(silent)),
        }
    }

    /// Whose session it is.
    async fn user_of(&self, session: &str) -> Result<UserId, Refused> {
        let session = SessionId::parse(session).ok_or(Refused::Unknown)?;
        if let Some(started) = self.started.find(session).await? {
            return Ok(started.user);
        }
        let (answers, silent) = self.ask(Question::Find(session)).await;
        let mut found = answers.into_iter().filter_map(|(_, answer)| match answer {
            Answer::Found(user) => user,
            _ => None,
        });
        match found.next() {
            Some(user) => Ok(user),
            None if silent.is_empty() => Err(Refused::Unknown),
            None => Err(Refused::Silent(silent)),
        }
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
