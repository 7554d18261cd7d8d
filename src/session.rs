//! The session actor: one per connected session, linked under its user's actor. It decides what its client
//! gets next: what follows in the log while it is behind, what arrives while it is not. It knows no protocol
//! and no socket: frames go to an [`Outlet`].

mod dormant;
mod latest;
pub mod metric;
mod outcome;
mod outlet;
pub mod window;

use std::{future::ready, sync::Arc, time::Duration};

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, DerivedActorRef, SpawnErr};
use smallvec::SmallVec;
use tokio::{task::AbortHandle, time::Instant};

pub use self::{
    dormant::Dormant,
    outcome::{Handed, Outcome, What},
    outlet::{Attachment, FarSession, Kind, Line, Outgoing, Outlet, Pushed},
};
use self::{latest::Latest, window::Window};
use crate::{
    event::{Event, Notification, UnixMillis, unix_millis_now},
    ids::{DeviceId, Sequence, SessionId, UserId},
    store::{Entry, Page, PageLimit, Store},
    wire::{Close, CloseCode, Control, Frame, Gap},
};

/// How a session is spoken to.
pub type SessionRef = ActorRef<Msg>;

/// Notifications of one page of the log.
const PAGE: PageLimit = PageLimit { items: 64, bytes: 256 * 1024 };
/// What a session was given and has not acknowledged is told of after this long.
const TELL_AFTER: Duration = Duration::from_secs(1);
/// How long to wait for a store that does not answer before asking again.
const READ_RETRY: Duration = Duration::from_millis(500);

/// What every session of a node shares.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bounds of what is sent and not acknowledged.
    pub window: window::Limits,
    /// How long a session may take nothing while something waits for it.
    pub slow_deadline: Duration,
    /// How long an acknowledgement may take.
    pub ack_deadline: Duration,
    /// Announced to clients; the edge sends the heartbeats.
    pub heartbeat: Duration,
    /// Announced to clients: the ceiling of their wait before connecting again.
    pub reconnect: Duration,
}

/// Notifications with their frames, in order; mostly one.
pub type Batch = SmallVec<[(Notification, Frame); 1]>;

/// What a session can be told.
pub enum Msg {
    /// Notifications for this session, encoded.
    Deliver(Batch),
    /// The log has grown to this number.
    Grown(Sequence),
    /// What the log holds after the last number sent; `None`: the store did not answer.
    Page(Option<Page>),
    /// The client took everything up to this number.
    Acknowledged(Sequence),
    /// The outlet has room again.
    Drained,
    /// A deadline may have passed.
    CheckDeadlines,
    /// Answer whether there is nothing to do: with [`What::Rests`] or [`What::Busy`], after all that was said before.
    Rest,
    /// Somebody else serves the connection next: stop, after all that was said before.
    Leave,
    /// End the connection and stop.
    Close(Close),
    /// The connection is gone.
    Disconnected,
}

/// Where a session begins.
pub struct Start {
    /// The last number the client has.
    pub after: Sequence,
    /// What it has and has not acknowledged.
    pub window: Window,
    /// Sent before everything else; none when the client has seen it on this connection.
    pub hello: Option<Frame>,
    /// Sent after that.
    pub gap: Option<Gap>,
    /// The log's last number: below it, there is something to read first.
    pub head: Sequence,
}

/// What a session is made of.
pub struct Args {
    /// Its id.
    pub id: SessionId,
    /// Whose it is.
    pub user: UserId,
    /// The device, if the client named one.
    pub device: Option<DeviceId>,
    /// Where frames go.
    pub attachment: Attachment,
    /// Where it begins.
    pub start: Start,
    /// The log.
    pub store: Arc<dyn Store>,
    /// Bounds and times.
    pub config: Arc<Config>,
    /// Who wants to know.
    pub outcomes: DerivedActorRef<Outcome>,
}

/// Starts a session under its user's actor.
///
/// # Errors
/// When the supervisor is already stopping.
pub async fn spawn(args: Args, supervisor: ActorCell) -> Result<SessionRef, SpawnErr> {
    let (session, _) = Actor::spawn_linked(None, Session, args, supervisor).await?;
    Ok(session)
}

struct Session;

struct State {
    id: SessionId,
    user: UserId,
    device: Option<DeviceId>,
    attachment: Attachment,
    window: Window,
    /// The last number that the client has, by frame or by gap.
    sent: Sequence,
    /// The last number that the user's actor was told of.
    told: Sequence,
    /// When the first one after it was sent.
    untold_since: Option<UntoldSince>,
    /// The highest number known to exist.
    newest: Sequence,
    reading: bool,
    /// The outlet refused a frame and will say when it has room.
    outlet_full: bool,
    /// Transient ones that wait for that.
    latest: Option<Box<Latest>>,
    /// The outlet takes nothing from this session any more.
    gone: bool,
    /// It has let go of its connection, and is not needed any more.
    rests: bool,
    stalled_since: Option<Instant>,
    /// When the one timer that counts will fire.
    timer: Option<Timer>,
    store: Arc<dyn Store>,
    config: Arc<Config>,
    outcomes: DerivedActorRef<Outcome>,
    _counted: metric::Counted,
}

/// Ends with the session, which it would keep in memory.
struct Timer {
    at: Instant,
    task: AbortHandle,
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Copy)]
struct UntoldSince {
    at: UnixMillis,
    tell_at: Instant,
}

impl Actor for Session {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, myself: SessionRef, args: Args) -> Result<State, ActorProcessingErr> {
        let Args { id, user, device, attachment, start, store, config, outcomes } = args;
        let mut state = State {
            id,
            user,
            device,
            attachment,
            window: start.window,
            sent: start.after,
            told: start.after,
            untold_since: None,
            newest: start.head,
            reading: false,
            outlet_full: false,
            latest: None,
            gone: false,
            rests: false,
            stalled_since: None,
            timer: None,
            store,
            config,
            outcomes,
            _counted: metric::Counted::one(metric::Kind::Active),
        };
        if !state.attachment.attached(myself.clone().into(), start.after) {
            myself.stop(None);
            return Ok(state);
        }
        if let Some(hello) = &start.hello {
            state.attachment.push(&Outgoing { frame: hello, kind: Kind::Control("$hello", None) });
        }
        if let Some(gap) = start.gap {
            state.gap(gap, start.after);
        }
        state.catch_up(&myself);
        Ok(state)
    }

    /// Not an `async fn`: every session would keep room for its messages, several times over, while it waits.
    fn handle(
        &self,
        myself: SessionRef,
        msg: Msg,
        state: &mut State,
    ) -> impl Future<Output = Result<(), ActorProcessingErr>> + Send {
        if state.rests {
            // What is left of it is somebody else's.
            return ready(Ok(()));
        }
        match msg {
            Msg::Deliver(batch) => state.deliver(&myself, &batch),
            Msg::Grown(head) => {
                state.newest = state.newest.max(head);
                state.catch_up(&myself);
            }
            Msg::Page(page) => state.page(&myself, page),
            Msg::Acknowledged(seq) => state.acknowledged(&myself, seq),
            Msg::Drained => state.drained(&myself),
            Msg::CheckDeadlines => state.check_deadlines(&myself),
            Msg::Rest => state.rest(),
            Msg::Leave => {
                state.rests = true;
                myself.stop(None);
            }
            Msg::Close(close) => state.close(&myself, close),
            Msg::Disconnected => myself.stop(None),
        }
        if state.gone {
            myself.stop(None);
        }
        ready(Ok(()))
    }

    fn post_stop(
        &self,
        _: SessionRef,
        state: &mut State,
    ) -> impl Future<Output = Result<(), ActorProcessingErr>> + Send {
        state.leave();
        ready(Ok(()))
    }
}

impl State {
    fn deliver(&mut self, myself: &SessionRef, batch: &Batch) {
        for (notification, frame) in batch {
            match notification.seq {
                None => self.transient(notification, frame),
                Some(seq) => {
                    self.newest = self.newest.max(seq);
                    // Anything but the very next number is read from the log, so that no number is ever jumped.
                    if seq == self.sent + 1 && !self.reading && self.has_room() {
                        self.send(seq, &notification.event, frame);
                    }
                }
            }
        }
        self.catch_up(myself);
        self.watch_deadlines(myself);
    }

    fn transient(&mut self, notification: &Notification, frame: &Frame) {
        let event = &notification.event;
        fault(event, self.id);
        // One without a key never waits: when the outlet is full it counts the frame as dropped.
        let waits = self.latest.is_some() && event.options.collapse_key.is_some();
        let taken = !waits && self.push(&Outgoing { frame, kind: Kind::Notification(None, event) });
        if !taken && !self.gone && event.options.collapse_key.is_some() {
            self.latest.get_or_insert_default().keep(notification, frame);
        }
    }

    /// Sends the transient ones that have waited for room.
    fn send_latest(&mut self) {
        let Some(mut latest) = self.latest.take() else { return };
        while let Some((notification, frame)) = latest.next() {
            if !self.push(&Outgoing { frame: &frame, kind: Kind::Notification(None, &notification.event) }) {
                latest.put_back((notification, frame));
                self.latest = Some(latest);
                return;
            }
        }
    }

    /// Sends one numbered notification; whether it was taken.
    fn send(&mut self, seq: Sequence, event: &Event, frame: &Frame) -> bool {
        fault(event, self.id);
        let outgoing = Outgoing { frame, kind: Kind::Notification(Some(seq), event) };
        let taken = self.push(&outgoing);
        if taken {
            let now = Instant::now();
            self.sent = seq;
            self.window.on_sent(seq, &event.id, frame.len(), now);
            self.untold_since.get_or_insert_with(|| UntoldSince { at: unix_millis_now(), tell_at: now + TELL_AFTER });
        }
        taken
    }

    /// Whether the outlet took it; what else it said is noted.
    fn push(&mut self, outgoing: &Outgoing<'_>) -> bool {
        let pushed = self.attachment.push(outgoing);
        self.outlet_full |= pushed == Pushed::Full;
        self.gone |= pushed == Pushed::Gone;
        pushed == Pushed::Taken
    }

    fn gap(&mut self, gap: Gap, covers: Sequence) -> bool {
        let frame = Frame::control(&Control::Gap(gap));
        let outgoing = Outgoing { frame: &frame, kind: Kind::Control("$gap", Some(covers)) };
        let taken = self.push(&outgoing);
        if taken {
            self.sent = self.sent.max(covers);
            self.window.on_gap(gap);
        }
        taken
    }

    fn has_room(&self) -> bool {
        !self.gone && !self.outlet_full && self.window.has_room()
    }

    /// Asks the log for what follows, when something does, there is room, and nobody has asked yet.
    fn catch_up(&mut self, myself: &SessionRef) {
        if self.reading || self.sent >= self.newest || !self.has_room() {
            return;
        }
        self.reading = true;
        let (store, user, after, myself) = (self.store.clone(), self.user.clone(), self.sent, myself.clone());
        tokio::spawn(async move {
            let page = store.read(&user, after, PAGE).await;
            if let Err(error) = &page {
                tracing::warn!(%error, "reading the log failed, trying again");
                tokio::time::sleep(READ_RETRY).await;
            }
            let _ = myself.cast(Msg::Page(page.ok()));
        });
    }

    fn page(&mut self, myself: &SessionRef, page: Option<Page>) {
        self.reading = false;
        if let Some(page) = page
            && page.entries.iter().all(|entry| self.send_entry(entry))
        {
            // Numbers that were superseded come neither as notifications nor in gaps.
            self.sent = self.sent.max(page.covers);
        }
        self.catch_up(myself);
        self.watch_deadlines(myself);
    }

    /// Whether it was taken.
    fn send_entry(&mut self, entry: &Entry) -> bool {
        match entry {
            Entry::Gap(gap) => self.gap(*gap, gap.to),
            Entry::Notification(notification) => {
                let seq = notification.seq.expect("what the log holds has a number");
                self.has_room() && self.send(seq, &notification.event, &Frame::notification(notification))
            }
        }
    }

    fn acknowledged(&mut self, myself: &SessionRef, seq: Sequence) {
        // The connection has checked that the number was sent.
        if let Some(window::Taken { ids, gaps }) = self.window.on_acknowledged(seq) {
            let handed = self.untold(seq);
            self.tell(What::Acknowledged { seq, ids, gaps, handed });
            self.progress(myself);
        }
    }

    fn tell(&self, what: What) {
        let _ = self.outcomes.send_message(Outcome { session: self.id, device: self.device.clone(), what });
    }

    /// What up to `last` the user's actor does not know to be here.
    fn untold(&mut self, last: Sequence) -> Option<Handed> {
        let since = self.untold_since?;
        let first = self.told + 1;
        if last < first {
            return None;
        }
        self.told = last;
        if last >= self.sent {
            self.untold_since = None;
        }
        Some(Handed { first, last, at: since.at })
    }

    fn tell_what_is_here(&mut self) {
        if self.untold_since.is_some_and(|since| since.tell_at <= Instant::now())
            && let Some(handed) = self.untold(self.sent)
        {
            self.tell(What::Handed(handed));
        }
    }

    fn leave(&mut self) {
        let first = self.window.acknowledged() + 1;
        if first <= self.sent && !self.rests {
            let handed_at = self.untold_since.map(|since| since.at);
            self.tell(What::Left { first, last: self.sent, handed_at });
        }
    }

    fn drained(&mut self, myself: &SessionRef) {
        self.outlet_full = false;
        self.send_latest();
        self.progress(myself);
    }

    fn progress(&mut self, myself: &SessionRef) {
        self.stalled_since = None;
        self.catch_up(myself);
        self.watch_deadlines(myself);
    }

    /// Keeps one timer going while there is a deadline that could pass.
    fn watch_deadlines(&mut self, myself: &SessionRef) {
        let waits = self.outlet_full || (self.sent < self.newest && !self.window.has_room());
        let now = Instant::now();
        if waits {
            self.stalled_since.get_or_insert(now);
        }
        let telling = self.untold_since.map(|since| since.tell_at);
        let Some(at) = self.next_deadline().into_iter().chain(telling).min() else { return };
        if self.timer.as_ref().is_none_or(|armed| at < armed.at) {
            let task = myself.send_after(at.saturating_duration_since(now), || Msg::CheckDeadlines).abort_handle();
            self.timer = Some(Timer { at, task });
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let stalled = self.stalled_since.map(|since| since + self.config.slow_deadline);
        let unacknowledged = self.window.oldest_unacknowledged().map(|since| since + self.config.ack_deadline);
        stalled.into_iter().chain(unacknowledged).min()
    }

    fn check_deadlines(&mut self, myself: &SessionRef) {
        // An earlier deadline may have taken the place of the one that this timer was set for.
        self.timer.take_if(|timer| timer.at <= Instant::now());
        self.tell_what_is_here();
        if self.next_deadline().is_none_or(|at| at > Instant::now()) {
            return self.watch_deadlines(myself);
        }
        metric::slow_consumer();
        tracing::info!(session = ?self.id, "slow consumer closed");
        self.close(myself, Close::come_back(CloseCode::SlowConsumer, "slow consumer", self.config.reconnect));
    }

    fn close(&mut self, myself: &SessionRef, close: Close) {
        self.attachment.close(close);
        myself.stop(None);
    }
}

/// Test builds only: an event of type `fault.session` crashes its session, once while the connection lives.
#[cfg_attr(not(feature = "faults"), expect(unused_variables, reason = "release builds have no faults"))]
fn fault(event: &Event, session: SessionId) {
    #[cfg(feature = "faults")]
    if &*event.notification_type == "fault.session" {
        static CRASHED: parking_lot::Mutex<Vec<SessionId>> = parking_lot::Mutex::new(Vec::new());
        let mut crashed = CRASHED.lock();
        if !crashed.contains(&session) {
            crashed.push(session);
            drop(crashed);
            panic!("fault.session");
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
