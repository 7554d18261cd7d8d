//! What a node asks another one about itself and its connections, and how that goes over the link.

use super::wire::{self, Unreadable, answer, ask};
use crate::{
    edge::peers::{self, Acknowledged},
    ids::{DeviceId, SessionId, UserId},
};

/// A question to another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// How does it stand?
    Standing,
    /// Something about sessions.
    Sessions(peers::Question),
}

/// The answer to the question of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// How it stands.
    Standing(Standing),
    /// Something about sessions.
    Sessions(peers::Answer),
}

/// How a node stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Connections of clients.
    pub connections: u64,
    /// The partitions that it reads, in order.
    pub partitions: Vec<i32>,
}

/// Answers what other nodes ask.
pub trait Answering: Send + Sync + 'static {
    /// The answer; `None`: there is none. Never waits.
    fn answer(&self, question: Question) -> Option<Answer>;
}

impl Question {
    pub(super) fn sent(self, number: u64) -> wire::Ask {
        use peers::Question::{Acknowledge, End, Find, Sessions};
        let question = match self {
            Self::Standing => ask::Question::How(wire::How {}),
            Self::Sessions(Sessions(user)) => ask::Question::SessionsOf(user.to_string()),
            Self::Sessions(End(user, session)) => ask::Question::End(wire::End {
                user: user.to_string(),
                session: session.as_ref().map(ToString::to_string),
            }),
            Self::Sessions(Find(session)) => ask::Question::Find(session.to_string()),
            Self::Sessions(Acknowledge(session, seq, user)) => ask::Question::Acknowledged(wire::AcknowledgedFor {
                session: session.to_string(),
                seq,
                user: user.as_deref().map(str::to_owned),
            }),
        };
        wire::Ask { number, question: Some(question) }
    }

    /// Its name, and what is asked; `None`: a later release's, which is not known here.
    pub(super) fn received(wire::Ask { number, question }: wire::Ask) -> Result<(u64, Option<Self>), Unreadable> {
        use peers::Question::{Acknowledge, End, Find, Sessions};
        let Some(question) = question else { return Ok((number, None)) };
        let question = match question {
            ask::Question::How(_) => Self::Standing,
            ask::Question::SessionsOf(of) => Self::Sessions(Sessions(user(of)?)),
            ask::Question::End(wire::End { user: of, session: which }) => {
                Self::Sessions(End(user(of)?, which.as_deref().map(session).transpose()?))
            }
            ask::Question::Find(which) => Self::Sessions(Find(session(&which)?)),
            ask::Question::Acknowledged(wire::AcknowledgedFor { session: which, seq, user: of }) => {
                Self::Sessions(Acknowledge(session(&which)?, seq, of.map(user).transpose()?))
            }
        };
        Ok((number, Some(question)))
    }
}

impl Answer {
    pub(super) fn sent(number: u64, answer: Option<Self>) -> wire::Answer {
        use peers::Answer::{Acknowledged, Ended, Found, Sessions};
        let answer = answer.map(|answer| match answer {
            Self::Standing(Standing { connections, partitions }) => {
                answer::Answer::Stands(wire::Stands { connections, partitions })
            }
            Self::Sessions(Sessions(sessions)) => {
                answer::Answer::Connected(wire::Connected { sessions: sessions.into_iter().map(sent).collect() })
            }
            Self::Sessions(Ended(count)) => answer::Answer::Ended(count),
            Self::Sessions(Found(user)) => {
                answer::Answer::Found(wire::Found { user: user.as_deref().map(str::to_owned) })
            }
            Self::Sessions(Acknowledged(became)) => answer::Answer::Acknowledged(acknowledged_number(became)),
        });
        wire::Answer { number, answer }
    }

    /// `None`: the other node had none.
    pub(super) fn received(wire::Answer { answer, .. }: wire::Answer) -> Result<Option<Self>, Unreadable> {
        use peers::Answer::{Acknowledged, Ended, Found, Sessions};
        let Some(answer) = answer else { return Ok(None) };
        Ok(Some(match answer {
            answer::Answer::Stands(wire::Stands { connections, partitions }) => {
                Self::Standing(Standing { connections, partitions })
            }
            answer::Answer::Connected(wire::Connected { sessions }) => {
                let sessions: Result<_, _> = sessions.into_iter().map(received).collect();
                Self::Sessions(Sessions(sessions?))
            }
            answer::Answer::Ended(count) => Self::Sessions(Ended(count)),
            answer::Answer::Found(wire::Found { user: of }) => Self::Sessions(Found(of.map(user).transpose()?)),
            answer::Answer::Acknowledged(became) => Self::Sessions(Acknowledged(acknowledged(became)?)),
        }))
    }
}

fn user(text: String) -> Result<UserId, Unreadable> {
    UserId::new(text).map_err(|_| Unreadable("user"))
}

fn session(text: &str) -> Result<SessionId, Unreadable> {
    SessionId::parse(text).ok_or(Unreadable("session"))
}

fn acknowledged_number(became: Acknowledged) -> u32 {
    match became {
        Acknowledged::Unknown => 0,
        Acknowledged::Taken => 1,
        Acknowledged::NeverSent => 2,
        Acknowledged::NotYours => 3,
    }
}

fn acknowledged(number: u32) -> Result<Acknowledged, Unreadable> {
    match number {
        0 => Ok(Acknowledged::Unknown),
        1 => Ok(Acknowledged::Taken),
        2 => Ok(Acknowledged::NeverSent),
        3 => Ok(Acknowledged::NotYours),
        _ => Err(Unreadable("acknowledgement's outcome")),
    }
}

fn sent(peers::Connected { session, protocol, device, expires_at }: peers::Connected) -> wire::Session {
    let device = device.as_deref().map(str::to_owned);
    wire::Session { session: session.to_string(), protocol, device, expires_at }
}

fn received(connected: wire::Session) -> Result<peers::Connected, Unreadable> {
    let wire::Session { session: id, protocol, device, expires_at } = connected;
    let device = device.map(DeviceId::new).transpose().map_err(|_| Unreadable("device"))?;
    Ok(peers::Connected { session: session(&id)?, protocol, device, expires_at })
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn every_question_and_answer_comes_over_as_it_was() {
        use peers::{Answer as Said, Question as Asked};
        let (user, session) = (UserId::new("101").unwrap(), SessionId::random());
        let asked = [
            Asked::Sessions(user.clone()),
            Asked::End(user.clone(), None),
            Asked::End(user.clone(), Some(session)),
            Asked::Find(session),
            Asked::Acknowledge(session, 7, None),
            Asked::Acknowledge(session, 0, Some(user.clone())),
        ];
        for question in asked.map(Question::Sessions).into_iter().chain([Question::Standing]) {
            let sent = question.clone().sent(3).encode_to_vec();
            let received = Question::received(wire::Ask::decode(&*sent).unwrap()).unwrap();
            assert_eq!(received, (3, Some(question)));
        }
        let device = Some(DeviceId::new("phone").unwrap());
        let connected = |device| peers::Connected { session, protocol: "sse".into(), device, expires_at: 12 };
        let said = [
            Said::Sessions(vec![connected(device), connected(None)]),
            Said::Sessions(Vec::new()),
            Said::Ended(2),
            Said::Found(Some(user)),
            Said::Found(None),
            Said::Acknowledged(Acknowledged::Unknown),
            Said::Acknowledged(Acknowledged::Taken),
            Said::Acknowledged(Acknowledged::NeverSent),
            Said::Acknowledged(Acknowledged::NotYours),
        ];
        let standing = Standing { connections: 5, partitions: vec![0, 3] };
        for answer in said.map(Answer::Sessions).into_iter().chain([Answer::Standing(standing)]) {
            let sent = Answer::sent(3, Some(answer.clone())).encode_to_vec();
            assert_eq!(Answer::received(wire::Answer::decode(&*sent).unwrap()).unwrap(), Some(answer));
        }
        assert_eq!(Answer::received(Answer::sent(3, None)).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let asked = |question| Question::received(wire::Ask { number: 1, question: Some(question) }).unwrap_err().0;
        assert_eq!(asked(ask::Question::SessionsOf(String::new())), "user");
        assert_eq!(asked(ask::Question::Find("x".into())), "session");
        let answered = wire::Answer { number: 1, answer: Some(answer::Answer::Acknowledged(9)) };
        assert!(Answer::received(answered).is_err());
        // A later release asks something else.
        assert_eq!(Question::received(wire::Ask { number: 1, question: None }).unwrap(), (1, None));
    }
}
