//! The messages of the link, and what they mean here. What cannot be read is an error of the peer's, and ends the link.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::Held;
use crate::{
    event::{Durability, Event, Options, Priority},
    ids::{DeviceId, NotificationId, SessionId, Since, UserId},
    placement::ShardId,
    settlement::Outcome as Became,
    state::State,
    store::journal::Cancelled as Ended,
    user::{self, Origin},
    wire::{self, CloseCode},
};

include!(concat!(env!("OUT_DIR"), "/atlas.notifier.link.v1.rs"));

/// The generated service.
pub(super) mod service {
    include!(concat!(env!("OUT_DIR"), "/link/atlas.notifier.link.v1.Link.rs"));
}

/// A message that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the peer sent a message whose {0} cannot be read")]
pub(super) struct Unreadable(pub(super) &'static str);

impl From<&Event> for Content {
    fn from(event: &Event) -> Self {
        let Options { durability, priority, collapse_key, ttl } = &event.options;
        Self {
            user: event.user.to_string(),
            session: event.session.as_deref().unwrap_or_default().to_owned(),
            id: event.id.to_string(),
            notification_type: event.notification_type.to_string(),
            payload: event.payload.to_string(),
            durability: match durability {
                Durability::Transient => 0,
                Durability::Durable => 1,
                Durability::Inbox => 2,
            },
            priority: *priority as u32,
            collapse_key: collapse_key.as_deref().map(str::to_owned),
            ttl: ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
            created_at: event.created_at,
            recorded_at: event.recorded_at,
        }
    }
}

/// An event that many share.
pub(super) fn shared(event: Content) -> Result<Arc<Event>, Unreadable> {
    Ok(Arc::new(Event {
        user: UserId::new(event.user).map_err(|_| Unreadable("user"))?,
        session: Some(event.session).filter(|session| !session.is_empty()).map(String::into_boxed_str),
        id: NotificationId::new(event.id).map_err(|_| Unreadable("notification id"))?,
        notification_type: event.notification_type.into(),
        payload: event.payload.into(),
        options: Options {
            durability: match event.durability {
                0 => Durability::Transient,
                1 => Durability::Durable,
                2 => Durability::Inbox,
                _ => return Err(Unreadable("durability")),
            },
            priority: usize::try_from(event.priority)
                .ok()
                .and_then(|number| Priority::ALL.get(number))
                .copied()
                .ok_or(Unreadable("priority"))?,
            collapse_key: event.collapse_key.map(String::into_boxed_str),
            ttl: event.ttl.map(Duration::from_millis),
        },
        created_at: event.created_at,
        recorded_at: event.recorded_at,
    }))
}

/// What became of an event, as a number.
pub(super) fn outcome_number(outcome: Became) -> u32 {
    match outcome {
        Became::Settled => 0,
        Became::Refused => 1,
        Became::Buried => 2,
        Became::Lost => 3,
        Became::Crashed => 4,
    }
}

pub(super) fn outcome(number: u32) -> Result<Became, Unreadable> {
    match number {
        0 => Ok(Became::Settled),
        1 => Ok(Became::Refused),
        2 => Ok(Became::Buried),
        3 => Ok(Became::Lost),
        4 => Ok(Became::Crashed),
        _ => Err(Unreadable("outcome")),
    }
}

/// A wish for a session, under a line's name.
pub(super) fn attach(line: u64, attach: &user::Attach) -> Attach {
    Attach {
        age: u64::try_from(attach.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        line,
        user: attach.user.to_string(),
        session: attach.session.to_string(),
        device: attach.device.as_deref().map(str::to_owned),
        counts_acknowledgements: attach.counts_acknowledgements,
        from: match &attach.from {
            Origin::Cursor => None,
            Origin::Since(Since { epoch, seq }) => {
                Some(attach::From::Since(Seen { epoch: epoch.to_string(), seq: *seq }))
            }
            Origin::Connection { passed, acknowledged } => {
                Some(attach::From::Reached(Reached { passed: *passed, acknowledged: *acknowledged }))
            }
        },
    }
}

/// Who wants a session, and where it begins.
pub(super) struct Wish {
    pub(super) user: UserId,
    pub(super) session: SessionId,
    pub(super) device: Option<DeviceId>,
    pub(super) from: Origin,
    pub(super) began: Instant,
}

pub(super) fn wish(attach: Attach) -> Result<Wish, Unreadable> {
    let device = attach.device.map(DeviceId::new).transpose().map_err(|_| Unreadable("device"))?;
    let now = Instant::now();
    Ok(Wish {
        began: now.checked_sub(Duration::from_millis(attach.age)).unwrap_or(now),
        user: UserId::new(attach.user).map_err(|_| Unreadable("user"))?,
        session: SessionId::parse(&attach.session).ok_or(Unreadable("session"))?,
        device,
        from: match attach.from {
            None => Origin::Cursor,
            Some(attach::From::Since(since)) => Origin::Since(Since { epoch: since.epoch.into(), seq: since.seq }),
            Some(attach::From::Reached(Reached { passed, acknowledged })) => {
                Origin::Connection { passed, acknowledged }
            }
        },
    })
}

pub(super) fn close(line: u64, close: &wire::Close) -> Close {
    Close {
        line,
        code: close.code as u32,
        reason: close.reason.to_string(),
        reconnect: close.reconnect.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
    }
}

pub(super) fn closed(close: Close) -> Result<wire::Close, Unreadable> {
    Ok(wire::Close {
        code: CloseCode::ALL.into_iter().find(|code| *code as u32 == close.code).ok_or(Unreadable("close code"))?,
        reason: close.reason.into(),
        reconnect: close.reconnect.map(Duration::from_millis),
    })
}

pub(super) fn cancelled(number: u64, cancelled: Option<Ended>) -> Cancelled {
    let place = |state| State::ALL.iter().position(|one| *one == state).unwrap_or_default() as u64;
    let (outcome, detail) = match cancelled {
        Some(Ended::Unknown) => (0, None),
        Some(Ended::Done(seq)) => (1, seq),
        Some(Ended::Ended(state)) => (2, Some(place(state))),
        None => (3, None),
    };
    Cancelled { number, outcome, detail }
}

/// `None`: it cannot be said.
pub(super) fn became(cancelled: &Cancelled) -> Option<Ended> {
    let state = || State::ALL.get(usize::try_from(cancelled.detail?).ok()?).copied();
    match cancelled.outcome {
        0 => Some(Ended::Unknown),
        1 => Some(Ended::Done(cancelled.detail)),
        2 => state().map(Ended::Ended),
        _ => None,
    }
}

fn claims(shards: &[Held]) -> Vec<Claim> {
    shards.iter().map(|(shard, epoch)| Claim { shard: shard.0.into(), epoch: *epoch }).collect()
}

/// Shards whose connections are wanted.
pub(super) fn list(shards: &[Held]) -> List {
    List { claims: claims(shards) }
}

/// Shards whose connections have come.
pub(super) fn listed(shards: &[Held]) -> Listed {
    Listed { claims: claims(shards) }
}

pub(super) fn held(claims: Vec<Claim>) -> Result<Vec<Held>, Unreadable> {
    let id = |shard| u16::try_from(shard).map(ShardId).map_err(|_| Unreadable("shard"));
    claims.into_iter().map(|Claim { shard, epoch }| Ok((id(shard)?, epoch))).collect()
}

/// A control frame's JSON text and name.
pub(super) fn control(line: u64, name: &str, covers: Option<u64>, frame: &wire::Frame) -> Control {
    Control { line, name: name.to_owned(), covers, json: Bytes::copy_from_slice(frame.json()) }
}
