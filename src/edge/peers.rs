//! What nodes ask each other about sessions: any of them may have a connection of a user's. How a question gets to
//! another node is not known here.

use std::{future::Future, pin::Pin, sync::Arc};

use super::{Shared, connection, protocol::Protocol, relay::Relay};
use crate::{
    event::UnixMillis,
    ids::{DeviceId, Incarnation, Sequence, SessionId, UserId},
    wire::{Close, CloseCode},
};

/// Something that every node has to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Which sessions of the user are connected?
    Sessions(UserId),
    /// End this session of the user's, or all of them.
    End(UserId, Option<SessionId>),
    /// Whose is the session, if it is connected?
    Find(SessionId),
    /// A client acknowledges, on another way than its connection; if it has shown who it is, as this user.
    Acknowledge(SessionId, Sequence, Option<UserId>),
}

/// The answer to the question of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Those that are connected.
    Sessions(Vec<Connected>),
    /// So many were.
    Ended(u64),
    /// `None`: it is not connected.
    Found(Option<UserId>),
    /// What became of it.
    Acknowledged(Acknowledged),
}

/// What became of an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledged {
    /// The session is not connected.
    Unknown,
    /// It counts.
    Taken,
    /// It names what was never sent, and has ended the session.
    NeverSent,
    /// The session is another user's.
    NotYours,
}

/// A session that is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// Its id.
    pub session: SessionId,
    /// How it is connected.
    pub protocol: String,
    /// The device, if the client named one.
    pub device: Option<DeviceId>,
    /// When its token, or itself if it was started, expires.
    pub expires_at: UnixMillis,
}

impl Connected {
    fn of(relay: &Relay) -> Self {
        Self {
            session: relay.client.session,
            protocol: Protocol::NAMES[relay.protocol.index()].to_owned(),
            device: relay.client.device.clone(),
            expires_at: relay.client.expires_at,
        }
    }
}

/// A node and what it has answered. `None`: nothing, in time.
pub type Heard = (String, Option<Answer>);

/// The other nodes.
pub trait Peers: Send + Sync + 'static {
    /// What this node is called among them.
    fn me(&self) -> String;

    /// Asks all of them at once, for a short time. Cancel safe.
    fn ask(&self, question: Question) -> Pin<Box<dyn Future<Output = Vec<Heard>> + Send + '_>>;
}

/// This node's connections, as others ask about them. Cheap to clone.
#[derive(Clone)]
pub struct Connections(pub(super) Arc<Shared>);

impl Connections {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.registry.count()
    }

    /// Has those of these users ask for their sessions again, whom this owner serves from here on; `None`: this node. All
    /// that nobody serves any more have done so when this returns, and all others when the future ends.
    pub fn attach_again(
        &self,
        is_theirs: impl Fn(&UserId) -> bool,
        owner: Option<Incarnation>,
    ) -> impl Future<Output = ()> + Send + 'static {
        connection::attach_again(self.0.clone(), self.0.registry.of_users(is_theirs), owner)
    }

    /// The answer of this node alone. It never waits.
    #[must_use]
    pub fn answer(&self, question: &Question) -> Answer {
        self.0.answer(question)
    }
}

impl Shared {
    /// The answer of this node alone.
    pub(super) fn answer(&self, question: &Question) -> Answer {
        match question {
            Question::Sessions(user) => {
                Answer::Sessions(self.registry.of_user(user).iter().map(|relay| Connected::of(relay)).collect())
            }
            Question::End(user, session) => {
                let mut ended = self.registry.of_user(user);
                ended.retain(|relay| session.is_none_or(|session| relay.client.session == session));
                for relay in &ended {
                    relay.close(Close::new(CloseCode::Replaced, "ended by the API"));
                }
                Answer::Ended(ended.len() as u64)
            }
            Question::Find(session) => {
                Answer::Found(self.registry.find(*session).map(|relay| relay.client.user.clone()))
            }
            Question::Acknowledge(session, seq, user) => {
                let relay = self.registry.find(*session);
                Answer::Acknowledged(relay.map_or(Acknowledged::Unknown, |relay| match user {
                    Some(user) if *user != relay.client.user => Acknowledged::NotYours,
                    _ => acknowledge(&relay, *seq),
                }))
            }
        }
    }

    /// The answers of all nodes, and the names of those that did not answer.
    pub(super) async fn ask(&self, question: Question) -> (Vec<(Option<String>, Answer)>, Vec<String>) {
        let here = self.answer(&question);
        let Some(peers) = &self.peers else { return (vec![(None, here)], Vec::new()) };
        let (mut answers, mut silent) = (vec![(Some(peers.me()), here)], Vec::new());
        for (node, answer) in peers.ask(question).await {
            match answer {
                Some(answer) => answers.push((Some(node), answer)),
                None => silent.push(node),
            }
        }
        silent.sort_unstable();
        (answers, silent)
    }
}

/// Passes an acknowledgement on; one of what was never sent ends the session.
pub(super) fn acknowledge(relay: &Relay, seq: Sequence) -> Acknowledged {
    if relay.acknowledge(seq) {
        return Acknowledged::Taken;
    }
    relay.close(Close::new(CloseCode::BadFrame, "not an acknowledgement of what was sent"));
    Acknowledged::NeverSent
}

#[cfg(test)]
mod tests;
