//! The user actor: owns one user's sessions and the order of what they get. Events come from the shard only;
//! durable ones are stored first and pushed when their number is known. It knows neither Kafka nor sockets.

use std::{future::ready, sync::Arc, time::Duration};

use futures_util::future::Either;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, DerivedActorRef, SpawnErr, SupervisionEvent};
use smallvec::{SmallVec, smallvec};
use tokio::time::Instant;

use crate::{
    event::{Event, InFlight, Notification},
    ids::{DeviceId, Sequence, SessionId, Since, UserId},
    session::{self, Attachment, Batch, SessionRef, Start},
    settlement::Permit,
    store::{
        Appended, Opened, Store,
        writer::{Stored, Writer},
    },
    wire::{self, Close, CloseCode, Frame, Gap, GapReason},
};

pub mod metric;

/// How a user is spoken to.
pub type UserRef = ActorRef<Msg>;

/// How long to wait for a store that does not answer before asking again.
const OPEN_RETRY: Duration = Duration::from_millis(500);

/// What every user of a node shares.
#[derive(Clone)]
pub struct Config {
    /// What their sessions share.
    pub session: Arc<session::Config>,
    /// Sessions a user; a further one takes the place of the oldest.
    pub sessions_max: usize,
    /// A user without sessions and without traffic goes to sleep after this long.
    pub idle_after: Duration,
    /// The log.
    pub store: Arc<dyn Store>,
    /// The way into it.
    pub writer: Writer,
}

/// What a user can be told. The shard counts the first two.
pub enum Msg {
    /// Events for this user, in order.
    Events(SmallVec<[InFlight; 1]>),
    /// A connection wants a session.
    Attach(Box<Attach>),
    /// The store knows where that session begins.
    Opened(Box<Attach>, Opened),
    /// The store answered an append.
    Stored(Stored),
    /// A session has something to say.
    Session(session::Outcome),
    /// The user may have nothing to do any more.
    CheckIdle,
}

impl From<Stored> for Msg {
    fn from(stored: Stored) -> Self {
        Self::Stored(stored)
    }
}

impl TryFrom<Msg> for Stored {
    type Error = ();
    fn try_from(msg: Msg) -> Result<Self, ()> {
        if let Msg::Stored(stored) = msg { Ok(stored) } else { Err(()) }
    }
}

impl From<session::Outcome> for Msg {
    fn from(outcome: session::Outcome) -> Self {
        Self::Session(outcome)
    }
}

impl TryFrom<Msg> for session::Outcome {
    type Error = ();
    fn try_from(msg: Msg) -> Result<Self, ()> {
        if let Msg::Session(outcome) = msg { Ok(outcome) } else { Err(()) }
    }
}

/// A connection's wish for a session.
pub struct Attach {
    /// Whose it is.
    pub user: UserId,
    /// The session's id; it stays the same over all attachments of a connection.
    pub session: SessionId,
    /// The device, if the client named one.
    pub device: Option<DeviceId>,
    /// Where the session begins.
    pub from: Origin,
    /// Whether the protocol lets the client acknowledge in-band.
    pub counts_acknowledgements: bool,
    /// Where frames go.
    pub attachment: Attachment,
}

/// Where a session begins.
pub enum Origin {
    /// After the cursor.
    Cursor,
    /// After what the client says it has seen.
    Since(Since),
    /// A connection that has had a session goes on where it was.
    Connection {
        /// The last number passed on.
        passed: Sequence,
        /// The last one acknowledged.
        acknowledged: Sequence,
    },
}

/// What a user tells its shard.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing to do, after this many messages of the shard's: may I stop?
    Idle {
        /// Who asks.
        user: UserId,
        /// Messages handled.
        handled: u64,
    },
}

/// What a user is made of.
pub struct Args {
    /// Who it is.
    pub user: UserId,
    /// What all users share.
    pub config: Arc<Config>,
    /// The shard.
    pub outcomes: DerivedActorRef<Outcome>,
}

/// Starts a user under its shard.
///
/// # Errors
/// When the supervisor is already stopping.
pub async fn spawn(args: Args, supervisor: ActorCell) -> Result<UserRef, SpawnErr> {
    let (user, _) = Actor::spawn_linked(None, User, args, supervisor).await?;
    Ok(user)
}

struct User;

struct State {
    user: UserId,
    config: Arc<Config>,
    outcomes: DerivedActorRef<Outcome>,
    /// Oldest first.
    sessions: SmallVec<[Attached; 1]>,
    /// Messages of the shard's.
    handled: u64,
    /// The highest number that was stored while this actor ran.
    newest: Sequence,
    /// Appends and openings under way.
    pending: usize,
    last_activity: Instant,
    timer_armed: bool,
    _counted: metric::Active,
}

struct Attached {
    id: SessionId,
    actor: SessionRef,
}

impl Actor for User {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, _: UserRef, args: Args) -> Result<State, ActorProcessingErr> {
        let Args { user, config, outcomes } = args;
        Ok(State {
            user,
            config,
            outcomes,
            sessions: SmallVec::new(),
            handled: 0,
            newest: 0,
            pending: 0,
            last_activity: Instant::now(),
            timer_armed: false,
            _counted: metric::Active::one(),
        })
    }

    /// Not an `async fn`: every user would keep room for its messages, several times over, while it waits.
    fn handle(
        &self,
        myself: UserRef,
        msg: Msg,
        state: &mut State,
    ) -> impl Future<Output = Result<(), ActorProcessingErr>> + Send {
        match msg {
            Msg::Events(events) => {
                state.handled += 1;
                state.events(&myself, events);
            }
            Msg::Attach(attach) => {
                state.handled += 1;
                state.attach(&myself, attach);
            }
            Msg::Opened(attach, opened) => {
                return Either::Right(Box::pin(async move {
                    state.opened(&myself, *attach, opened).await?;
                    state.watch_idleness(&myself);
                    Ok(())
                }));
            }
            Msg::Stored(stored) => state.stored(stored),
            Msg::Session(outcome) => state.session(outcome),
            Msg::CheckIdle => {
                state.timer_armed = false;
                state.check_idle();
            }
        }
        state.watch_idleness(&myself);
        Either::Left(ready(Ok(())))
    }

    fn handle_supervisor_evt(
        &self,
        myself: UserRef,
        event: SupervisionEvent,
        state: &mut State,
    ) -> impl Future<Output = Result<(), ActorProcessingErr>> + Send {
        match event {
            SupervisionEvent::ActorFailed(session, error) => {
                // Its state is gone, and with it its attachment: the connection attaches again.
                metric::restarted("session");
                tracing::error!(user = %state.user, %error, "session actor crashed");
                state.ended(&session);
            }
            SupervisionEvent::ActorTerminated(session, ..) => state.ended(&session),
            _ => {}
        }
        state.watch_idleness(&myself);
        ready(Ok(()))
    }
}

impl State {
    fn events(&mut self, myself: &UserRef, events: SmallVec<[InFlight; 1]>) {
        self.last_activity = Instant::now();
        let mut for_all = Batch::new();
        let mut handed: SmallVec<[Permit; 1]> = SmallVec::new();
        for mut in_flight in events {
            in_flight.permit.begin();
            fault(&in_flight.event);
            if in_flight.event.is_stored() {
                self.pending += 1;
                self.config.writer.append(in_flight, myself.get_derived());
                continue;
            }
            match &in_flight.event.session {
                Some(session) => {
                    self.push(std::mem::take(&mut for_all));
                    self.push_to(session, &in_flight.event);
                }
                None if self.sessions.is_empty() => metric::event(metric::Event::Away),
                None => {
                    metric::event(metric::Event::Delivered);
                    for_all.push(encoded(None, &in_flight.event));
                }
            }
            // Whatever comes after it in this message is not its fault.
            in_flight.permit.pause();
            handed.push(in_flight.permit);
        }
        self.push(for_all);
        handed.into_iter().for_each(Permit::settle);
    }

    fn push_to(&self, session: &str, event: &Arc<Event>) {
        let wanted = SessionId::parse(session);
        match self.sessions.iter().find(|attached| Some(attached.id) == wanted) {
            None => metric::event(metric::Event::NoSession),
            Some(attached) => {
                metric::event(metric::Event::Delivered);
                let _ = attached.actor.cast(session::Msg::Deliver(smallvec![encoded(None, event)]));
            }
        }
    }

    /// Gives notifications to every session, encoded once.
    fn push(&self, batch: Batch) {
        let Some((last, others)) = self.sessions.split_last().filter(|_| !batch.is_empty()) else { return };
        for attached in others {
            let _ = attached.actor.cast(session::Msg::Deliver(batch.clone()));
        }
        let _ = last.actor.cast(session::Msg::Deliver(batch));
    }

    fn stored(&mut self, stored: Stored) {
        self.pending -= 1;
        self.last_activity = Instant::now();
        let Stored { mut in_flight, outcome } = stored;
        in_flight.permit.begin();
        fault_stored(&in_flight.event);
        match outcome {
            Appended::Stored(seq) => {
                metric::event(metric::Event::Stored);
                self.newest = self.newest.max(seq);
                self.push_stored(seq, &in_flight.event);
            }
            // A row of an earlier attempt: whoever has not seen its number yet reads it from the log.
            Appended::Duplicate(seq) => {
                metric::event(metric::Event::Duplicate);
                self.newest = self.newest.max(seq);
                for attached in &self.sessions {
                    let _ = attached.actor.cast(session::Msg::Grown(seq));
                }
            }
            Appended::Expired => metric::event(metric::Event::Expired),
            Appended::Refused => {
                metric::event(metric::Event::Refused);
                return in_flight.permit.bury();
            }
        }
        in_flight.permit.settle();
    }

    fn push_stored(&self, seq: Sequence, event: &Arc<Event>) {
        if !self.sessions.is_empty() {
            self.push(smallvec![encoded(Some(seq), event)]);
        }
    }

    fn attach(&mut self, myself: &UserRef, attach: Box<Attach>) {
        self.last_activity = Instant::now();
        self.pending += 1;
        let (store, myself) = (self.config.store.clone(), myself.clone());
        tokio::spawn(async move {
            let opened = loop {
                match store.open(&attach.user, attach.device.as_ref()).await {
                    Ok(opened) => break opened,
                    Err(error) => tracing::warn!(%error, "opening a log failed, trying again"),
                }
                tokio::time::sleep(OPEN_RETRY).await;
            };
            let _ = myself.cast(Msg::Opened(attach, opened));
        });
    }

    async fn opened(&mut self, myself: &UserRef, attach: Attach, opened: Opened) -> Result<(), ActorProcessingErr> {
        self.pending -= 1;
        // A session of an earlier attachment of the same connection has nobody to talk to any more.
        if let Some(at) = self.sessions.iter().position(|old| old.id == attach.session) {
            self.sessions.remove(at).actor.stop(None);
        }
        let is_new = !matches!(attach.from, Origin::Connection { .. });
        if is_new && self.sessions.len() >= self.config.sessions_max {
            let oldest = self.sessions.remove(0);
            let close = Close::new(CloseCode::Replaced, "replaced by a newer session");
            let _ = oldest.actor.cast(session::Msg::Close(close));
        }
        let start = self.start(&attach, opened);
        let args = session::Args {
            id: attach.session,
            user: self.user.clone(),
            device: attach.device,
            attachment: attach.attachment,
            start,
            counts_acknowledgements: attach.counts_acknowledgements,
            store: self.config.store.clone(),
            config: self.config.session.clone(),
            outcomes: myself.get_derived(),
        };
        let actor = session::spawn(args, myself.get_cell()).await?;
        self.sessions.push(Attached { id: attach.session, actor });
        Ok(())
    }

    fn start(&self, attach: &Attach, opened: Opened) -> Start {
        let Opened { head, cursor } = opened;
        // What was stored while the store was asked found no session to be pushed to.
        let head = head.max(self.newest);
        let hello = |cursor| {
            let config = &self.config.session;
            let epoch = self.config.store.epoch();
            Some(wire::hello(attach.session, &self.user, &epoch, (head, cursor), (config.heartbeat, config.reconnect)))
        };
        match &attach.from {
            Origin::Connection { passed, acknowledged } => {
                // An actor that crashed may have taken the last acknowledgements with it.
                if *acknowledged > cursor {
                    self.config.writer.acknowledge(self.user.clone(), attach.device.clone(), *acknowledged);
                }
                Start { after: *passed, acknowledged: *acknowledged, hello: None, gap: None, head }
            }
            Origin::Cursor => Start { after: cursor, acknowledged: cursor, hello: hello(cursor), gap: None, head },
            Origin::Since(since) if *since.epoch == *self.config.store.epoch() && since.seq <= head => {
                self.config.writer.acknowledge(self.user.clone(), attach.device.clone(), since.seq);
                let hello = hello(cursor.max(since.seq));
                Start { after: since.seq, acknowledged: since.seq, hello, gap: None, head }
            }
            Origin::Since(since) => {
                // Nothing up to the cursor can be compared with what the client has.
                let restored = self.config.store.was(&since.epoch);
                let reason = if restored { GapReason::Restored } else { GapReason::Epoch };
                let gap = Gap { from: cursor.min(1), to: cursor, reason };
                Start { after: cursor, acknowledged: cursor, hello: hello(cursor), gap: Some(gap), head }
            }
        }
    }

    fn session(&mut self, outcome: session::Outcome) {
        match outcome {
            session::Outcome::Acknowledged { device, seq } => {
                self.config.writer.acknowledge(self.user.clone(), device, seq);
            }
        }
    }

    fn ended(&mut self, session: &ActorCell) {
        self.sessions.retain(|attached| attached.actor.get_id() != session.get_id());
        self.last_activity = Instant::now();
    }

    fn is_idle(&self) -> bool {
        self.sessions.is_empty() && self.pending == 0
    }

    /// Keeps one timer going while there is no session.
    fn watch_idleness(&mut self, myself: &UserRef) {
        if self.is_idle() && !self.timer_armed {
            self.timer_armed = true;
            let at = self.last_activity + self.config.idle_after;
            drop(myself.send_after(at.saturating_duration_since(Instant::now()), || Msg::CheckIdle));
        }
    }

    fn check_idle(&mut self) {
        if self.is_idle() && self.last_activity.elapsed() >= self.config.idle_after {
            // If the shard says no, something is on its way; else the next question is as far off as this one was.
            self.last_activity = Instant::now();
            let _ = self.outcomes.send_message(Outcome::Idle { user: self.user.clone(), handled: self.handled });
        }
    }
}

fn encoded(seq: Option<Sequence>, event: &Arc<Event>) -> (Notification, Frame) {
    let notification = Notification { seq, event: event.clone() };
    let frame = Frame::notification(&notification);
    (notification, frame)
}

/// Test builds only: an event of type `fault.user` crashes its user's actor.
#[cfg_attr(not(feature = "faults"), expect(unused_variables, reason = "release builds have no faults"))]
fn fault(event: &Event) {
    #[cfg(feature = "faults")]
    assert!(&*event.notification_type != "fault.user", "fault.user");
}

/// Test builds only: an event of type `fault.stored` crashes its user's actor when it has been stored.
#[cfg_attr(not(feature = "faults"), expect(unused_variables, reason = "release builds have no faults"))]
fn fault_stored(event: &Event) {
    #[cfg(feature = "faults")]
    assert!(&*event.notification_type != "fault.stored", "fault.stored");
}

#[cfg(test)]
pub(crate) mod tests;
