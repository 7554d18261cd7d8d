//! The user actor: owns one user's sessions and the order of what they get. Events come from the shard only;
//! durable ones are stored first and pushed when their number is known. It knows neither Kafka nor sockets.

use std::{future::ready, sync::Arc, time::Duration};

use futures_util::future::Either;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, DerivedActorRef, SpawnErr, SupervisionEvent};
use smallvec::{SmallVec, smallvec};
use tokio::time::Instant;

use self::{
    dormancy::Phase,
    limiter::{Limiter, Limits},
    traffic::Traffic,
};
use crate::{
    event::{Event, InFlight, Notification},
    ids::{NotificationId, Sequence, SessionId, UserId},
    receipt::{Receipt, Receipts},
    session::{self, Batch},
    settlement::Permit,
    state::{Reason, State as Became},
    store::{
        Appended, Opened, Store,
        waiting::{Backlog, Folded},
        writer::{CancelReply, Writer, Written},
    },
    wire::Frame,
};

mod attach;
pub mod buffer;
mod dormancy;
mod journal;
pub mod limiter;
pub mod metric;
mod traffic;

pub(crate) use attach::USED_BY_ANOTHER;
pub use attach::{Attach, Origin};
use attach::{Attached, Serving};
use dormancy::Resting;
pub use dormancy::{Asleep, left_by};

/// How a user is spoken to.
pub type UserRef = ActorRef<Msg>;

/// What every user of a node shares.
#[derive(Clone)]
pub struct Config {
    /// What their sessions share.
    pub session: Arc<session::Config>,
    /// Sessions a user; a further one takes the place of the oldest.
    pub sessions_max: usize,
    /// A user without traffic goes to sleep after this long.
    pub idle_after: Duration,
    /// Whether that holds for those with open sessions, too.
    pub dormancy: bool,
    /// How fast their notifications may come while a session is open.
    pub limits: Limits,
    /// How many may wait for that.
    pub buffer: buffer::Bounds,
    /// The log.
    pub store: Arc<dyn Store>,
    /// The way into it.
    pub writer: Writer,
    /// Who wants to know what became of events that no log keeps.
    pub receipts: Arc<dyn Receipts>,
}

/// What the shard asks of a user; both count it.
pub enum Request {
    /// Events for this user, in order.
    Events(SmallVec<[InFlight; 1]>),
    /// A connection wants a session.
    Attach(Box<Attach>),
    /// A notification must not be delivered any more.
    Cancel(NotificationId, CancelReply),
    /// The client of a session at rest said something.
    Wake,
    /// The connection of a session at rest has ended.
    Ended,
}

/// What a user can be told.
pub enum Msg {
    /// The shard asks for something.
    Request(Request),
    /// The store knows where that session begins; it was asked when this was the newest number.
    Opened(Box<Attach>, Opened, Sequence),
    /// The store answered a write.
    Written(Written),
    /// The store says what has waited since before a crash.
    Backlog(Backlog),
    /// The store says what digests have to tell of.
    Folded(Vec<Folded>),
    /// One that waits may go by now.
    Release,
    /// A session has something to say.
    Session(session::Outcome),
    /// The user may have nothing to do any more.
    CheckIdle,
    /// Go on with what was held while the sessions rested.
    Rouse,
    /// The store says where the log of one that slept ends; it was known to be at this number.
    Compared(Opened, Sequence),
    /// Somebody else serves the user next: stop as soon as nothing is under way.
    Leave,
}

impl From<Written> for Msg {
    fn from(written: Written) -> Self {
        Self::Written(written)
    }
}

impl TryFrom<Msg> for Written {
    type Error = ();
    fn try_from(msg: Msg) -> Result<Self, ()> {
        if let Msg::Written(written) = msg { Ok(written) } else { Err(()) }
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

/// What a user tells its shard.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing to do, after this many requests of the shard's: may I stop?
    Idle {
        /// Who asks.
        user: UserId,
        /// Requests handled.
        handled: u64,
        /// What its successor has to know, if it comes soon.
        limiter: Option<Limiter>,
    },
    /// What waited since before a crash goes on: somebody else may ask.
    Recovered,
}

/// What a user is made of.
pub struct Args {
    /// Who it is.
    pub user: UserId,
    /// What all users share.
    pub config: Arc<Config>,
    /// The shard.
    pub outcomes: DerivedActorRef<Outcome>,
    /// What an earlier actor of this user has let go.
    pub limiter: Option<Limiter>,
    /// What is left of sessions that rest.
    pub asleep: Option<Box<Asleep>>,
    /// Whether something may wait in the store that no actor knows of.
    pub recover: bool,
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
    phase: Phase,
    /// What came while it was not awake.
    held: Vec<Request>,
    leaving: bool,
    /// Requests of the shard's.
    handled: u64,
    /// The highest number that was stored while this actor ran.
    newest: Sequence,
    /// The highest number that any device has acknowledged, as far as it matters for the sessions that were open.
    acknowledged: Sequence,
    /// Limits, and what waits for them; none before the first event that they could hold back.
    traffic: Option<Box<Traffic>>,
    /// Appends and openings under way.
    pending: usize,
    last_activity: Instant,
    timer_armed: bool,
    _counted: metric::Active,
}

impl Actor for User {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, myself: UserRef, args: Args) -> Result<State, ActorProcessingErr> {
        let Args { user, config, outcomes, limiter, asleep, recover } = args;
        let is_asleep = asleep.is_some();
        let Asleep { newest, acknowledged, sessions } = asleep.map_or_else(Asleep::default, |asleep| *asleep);
        let attached = |Resting { began, dormant }| Attached::new(dormant.id, began, Serving::Asleep(dormant));
        let mut state = State {
            user,
            config,
            outcomes,
            sessions: sessions.into_iter().map(attached).collect(),
            phase: if is_asleep { Phase::Asleep } else { Phase::Awake },
            held: Vec::new(),
            leaving: false,
            handled: 0,
            newest,
            acknowledged,
            traffic: limiter.map(|limiter| Box::new(Traffic::new(limiter))),
            pending: 0,
            last_activity: Instant::now(),
            timer_armed: false,
            _counted: metric::Active::one(),
        };
        if recover {
            state.recover(&myself);
        }
        Ok(state)
    }

    /// Not an `async fn`: every user would keep room for its messages, several times over, while it waits.
    fn handle(
        &self,
        myself: UserRef,
        msg: Msg,
        state: &mut State,
    ) -> impl Future<Output = Result<(), ActorProcessingErr>> + Send {
        match msg {
            Msg::Request(request) => state.requested(&myself, request),
            Msg::Opened(_, opened, newest) if opened.head < newest => {
                state.pending -= 1;
                state.went_back(opened.head, newest);
            }
            msg @ (Msg::Opened(..) | Msg::Rouse) => {
                return Either::Right(Box::pin(async move {
                    match msg {
                        Msg::Opened(attach, opened, _) => state.opened(&myself, *attach, opened).await?,
                        _ => state.rouse(&myself).await?,
                    }
                    state.watch_idleness(&myself);
                    Ok(())
                }));
            }
            Msg::Written(written) => state.written(&myself, written),
            Msg::Backlog(backlog) => state.recovered(&myself, backlog),
            Msg::Folded(folded) => {
                state.pending -= 1;
                state.folded(&myself, folded);
            }
            Msg::Release => state.release(&myself),
            Msg::Session(outcome) => state.session(&myself, outcome),
            Msg::Compared(opened, newest) => state.compared(opened, newest),
            Msg::Leave => state.leaving = true,
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
                state.ended(&myself, &session);
            }
            SupervisionEvent::ActorTerminated(session, ..) => state.ended(&myself, &session),
            _ => {}
        }
        state.watch_idleness(&myself);
        ready(Ok(()))
    }
}

impl State {
    fn request(&mut self, myself: &UserRef, request: Request) {
        self.handled += 1;
        match request {
            Request::Events(events) => self.events(myself, events),
            Request::Attach(attach) => self.attach(myself, attach),
            Request::Cancel(id, reply) => self.cancel(id, reply),
            // All are awake.
            Request::Wake | Request::Ended => {}
        }
    }

    fn events(&mut self, myself: &UserRef, events: SmallVec<[InFlight; 1]>) {
        self.last_activity = Instant::now();
        let mut for_all = Batch::new();
        let mut handed: SmallVec<[Permit; 1]> = SmallVec::new();
        for mut in_flight in events {
            in_flight.permit.begin();
            fault(&in_flight.event);
            if in_flight.event.is_stored() {
                self.enter(myself, in_flight);
                continue;
            }
            let Some(mut in_flight) = self.keep_for_returning(in_flight) else { continue };
            self.transient(&in_flight.event, &mut for_all);
            // Whatever comes after it in this message is not its fault.
            in_flight.permit.pause();
            handed.push(in_flight.permit);
        }
        self.push(for_all);
        handed.into_iter().for_each(Permit::settle);
    }

    /// A transient event ends without having been handed to anybody.
    fn dropped(&self, event: &Event, counted: metric::Event, reason: Reason) {
        metric::event(counted);
        self.config.receipts.hand_over(Receipt::unstored(event, Became::Deleted, reason));
    }

    /// Hands over one that is not stored: to the session that it names, or with others to all.
    fn transient(&mut self, event: &Arc<Event>, for_all: &mut Batch) {
        let named = event.session.as_deref().map(SessionId::parse);
        let is_there = match named {
            None => !self.sessions.is_empty(),
            Some(named) => self.sessions.iter().any(|attached| Some(attached.id) == named),
        };
        if !is_there {
            let (counted, reason) = match named {
                None => (metric::Event::Away, Reason::Away),
                Some(_) => (metric::Event::NoSession, Reason::NoSession),
            };
            return self.dropped(event, counted, reason);
        }
        if !self.may_pass(event) {
            return self.dropped(event, metric::Event::RateLimited, Reason::RateLimited);
        }
        metric::event(metric::Event::Delivered);
        let Some(named) = named else { return for_all.push(encoded(None, event)) };
        self.push(std::mem::take(for_all));
        for attached in self.sessions.iter().filter(|attached| Some(attached.id) == named) {
            attached.cast(session::Msg::Deliver(smallvec![encoded(None, event)]));
        }
    }

    /// Gives notifications to every session, encoded once.
    fn push(&self, batch: Batch) {
        let Some((last, others)) = self.sessions.split_last().filter(|_| !batch.is_empty()) else { return };
        for attached in others {
            attached.cast(session::Msg::Deliver(batch.clone()));
        }
        last.cast(session::Msg::Deliver(batch));
    }

    fn written(&mut self, myself: &UserRef, written: Written) {
        self.pending -= 1;
        self.last_activity = Instant::now();
        match written {
            Written::Stored { in_flight, outcome } => self.stored(myself, in_flight, outcome),
            Written::Released { event, outcome } => self.released(&event, outcome),
            Written::Held { in_flight, outcome } => self.held(myself, in_flight, outcome),
        }
    }

    fn stored(&mut self, myself: &UserRef, mut in_flight: InFlight, outcome: Appended) {
        in_flight.permit.begin();
        fault_stored(&in_flight.event);
        self.arrived(&in_flight.event, matches!(outcome, Appended::Stored(_)));
        match outcome {
            Appended::Stored(seq) if seq <= self.newest => {
                // Nobody is shown a number a second time. The event comes again, to whoever begins anew.
                in_flight.permit.pause();
                return self.went_back(seq, self.newest);
            }
            Appended::Stored(seq) => {
                metric::event(metric::Event::Stored);
                self.push_stored(seq, &in_flight.event);
            }
            Appended::Duplicate(seq) => {
                metric::event(metric::Event::Duplicate);
                self.grown(seq);
            }
            Appended::Known => {
                metric::event(metric::Event::Duplicate);
                // It may have been held back by an actor that has crashed: a digest may be owed for it.
                if !self.has_waiting() {
                    self.recover(myself);
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

    /// The log ends before a number that was given.
    fn went_back(&self, head: Sequence, newest: Sequence) {
        self.config.writer.went_back(format!("the log of a user ends at {head}, and {newest} was given"));
    }

    /// A row of an earlier attempt: whoever has not seen its number yet reads it from the log.
    fn grown(&mut self, seq: Sequence) {
        self.newest = self.newest.max(seq);
        self.tell_of_growth(seq);
    }

    fn tell_of_growth(&self, head: Sequence) {
        for attached in &self.sessions {
            attached.cast(session::Msg::Grown(head));
        }
    }

    fn push_stored(&mut self, seq: Sequence, event: &Arc<Event>) {
        self.newest = self.newest.max(seq);
        if !self.sessions.is_empty() {
            self.push(smallvec![encoded(Some(seq), event)]);
        }
    }

    fn ended(&mut self, myself: &UserRef, session: &ActorCell) {
        let Some(at) = self.sessions.iter().position(|attached| attached.is(session)) else { return };
        self.sessions.remove(at);
        self.last_activity = Instant::now();
        // What it said at last may not have been read yet.
        self.disturbed(myself);
        if self.sessions.is_empty() && !self.leaving {
            self.release_all(myself);
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
