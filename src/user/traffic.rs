//! What a user's limits do to events: they go into the log at once, or wait in the buffer, or are counted in a digest.
//! Whatever waits is stored first, and so settled; it gets its number when it is released.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    Attach, Msg, Outcome, State, UserRef,
    buffer::{self, Buffer, DIGEST_TYPE, Place},
    limiter::{Limiter, Limits},
    metric,
};
use crate::{
    event::{Event, InFlight, unix_millis_now},
    state::Reason,
    store::{
        Appended,
        waiting::{Backlog, Ending, Folded, Held},
    },
};

/// What one user's limits have let go, and what waits for them.
#[derive(Default)]
pub(super) struct Traffic {
    limiter: Limiter,
    pub(super) buffer: Buffer,
    /// Newer ones on their way into the store, each with the one that waits and whose place it takes then.
    overtaking: Vec<(Arc<Event>, Arc<Event>)>,
    /// When the timer for the next one fires.
    timer_at: Option<Instant>,
    /// While the store is asked what waits since before a crash: what must not overtake it.
    recovering: Option<Vec<InFlight>>,
    /// So many connections that have had a session come back: the store is asked where each begins.
    returning: usize,
    /// Meanwhile: transient events, which they would miss.
    unseen: Vec<InFlight>,
    /// And new connections, which may be of the same started session, and newer.
    #[expect(clippy::vec_box, reason = "they come in boxes, and go on in them")]
    newcomers: Vec<Box<Attach>>,
}

impl Traffic {
    pub(super) fn new(limiter: Limiter) -> Self {
        Self { limiter, ..Self::default() }
    }

    /// Whether an event may go now; takes its token. None overtakes those of its priority that wait.
    fn passes(&mut self, limits: &Limits, event: &Event) -> bool {
        let priority = event.options.priority;
        let Some(limit) = limits.of(priority) else { return true };
        if !self.buffer.has(priority) && self.limiter.try_take(limits, priority, Instant::now()) {
            return true;
        }
        metric::rate_limited(priority, limit.dry_run);
        limit.dry_run
    }

    /// An event is in the store, or not: the one whose place it takes, if it is and takes any.
    fn arrived(&mut self, newer: &Arc<Event>, is_stored: bool) -> Option<Arc<Event>> {
        let at = self.overtaking.iter().position(|(one, _)| Arc::ptr_eq(one, newer))?;
        let (_, older) = self.overtaking.swap_remove(at);
        if !is_stored {
            self.buffer.stays(&older);
            return None;
        }
        self.buffer.remove_same(&older)
    }
}

impl State {
    /// One event that is stored: into the log at once, or behind those that wait.
    pub(super) fn enter(&mut self, myself: &UserRef, mut in_flight: InFlight) {
        if let Some(behind) = self.traffic.as_mut().and_then(|traffic| traffic.recovering.as_mut()) {
            in_flight.permit.pause();
            return behind.push(in_flight);
        }
        self.pending += 1;
        if self.sessions.is_empty() {
            return self.config.writer.append(in_flight, true, myself.get_derived());
        }
        let traffic = self.traffic.get_or_insert_default();
        let event = in_flight.event.clone();
        let older = traffic.buffer.overtaken_by(&event);
        if traffic.passes(&self.config.limits, &event) {
            // An earlier copy that waits gets its number with this one.
            traffic.buffer.remove(&event.id);
            self.config.writer.append(in_flight, false, myself.get_derived());
        } else {
            let digest = match traffic.buffer.insert(&event, self.config.buffer, older.is_some()) {
                Place::Waits | Place::Known => None,
                Place::Folded(digest) => Some(digest),
            };
            self.config.writer.hold(in_flight, digest, myself.get_derived());
        }
        traffic.overtaking.extend(older.map(|older| (event, older)));
        self.watch_buffer(myself);
    }

    /// An event is in the store, or not: an older one that waits goes for it if it is.
    pub(super) fn arrived(&mut self, event: &Arc<Event>, is_stored: bool) {
        if let Some(older) = self.traffic.as_mut().and_then(|traffic| traffic.arrived(event, is_stored)) {
            self.end_waiting(&older, Reason::Superseded);
        }
    }

    /// Whether a transient event is within the limits; it never waits.
    pub(super) fn may_pass(&mut self, event: &Event) -> bool {
        self.traffic.get_or_insert_default().passes(&self.config.limits, event)
    }

    fn end_waiting(&self, event: &Event, reason: Reason) {
        metric::waited(match reason {
            Reason::Superseded => metric::Waited::Superseded,
            _ => metric::Waited::Expired,
        });
        self.config.writer.end(Ending { user: event.user.clone(), id: event.id.clone(), reason });
    }

    /// The store has, or has not, taken one that waits.
    pub(super) fn held(&mut self, myself: &UserRef, mut in_flight: InFlight, outcome: Held) {
        in_flight.permit.begin();
        self.arrived(&in_flight.event, outcome == Held::Waiting);
        if outcome == Held::Waiting {
            metric::event(metric::Event::Buffered);
            return in_flight.permit.settle();
        }
        if let Some(traffic) = &mut self.traffic {
            traffic.buffer.remove_same(&in_flight.event);
        }
        match outcome {
            Held::Duplicate(seq) => {
                metric::event(metric::Event::Duplicate);
                self.grown(seq);
            }
            Held::Waiting | Held::Known => metric::event(metric::Event::Duplicate),
            Held::Expired => metric::event(metric::Event::Expired),
            Held::Refused => metric::event(metric::Event::Refused),
        }
        self.watch_buffer(myself);
        if outcome == Held::Refused { in_flight.permit.bury() } else { in_flight.permit.settle() }
    }

    /// Lets go what the limits let go by now.
    pub(super) fn release(&mut self, myself: &UserRef) {
        let Some(mut traffic) = self.traffic.take() else { return };
        traffic.timer_at = None;
        for expired in traffic.buffer.expired(unix_millis_now()) {
            self.end_waiting(&expired, Reason::Expired);
        }
        let now = Instant::now();
        while let Some(event) = traffic.buffer.release(&mut traffic.limiter, &self.config.limits, now) {
            self.release_one(myself, event);
        }
        self.traffic = Some(traffic);
        self.watch_buffer(myself);
    }

    /// Nobody is there any more whom it could be too much for.
    pub(super) fn release_all(&mut self, myself: &UserRef) {
        let Some(mut traffic) = self.traffic.take() else { return };
        while let Some(event) = traffic.buffer.take_any() {
            self.release_one(myself, event);
        }
        self.traffic = Some(traffic);
        self.watch_buffer(myself);
    }

    fn release_one(&mut self, myself: &UserRef, event: Arc<Event>) {
        self.pending += 1;
        self.config.writer.release(event, myself.get_derived());
    }

    /// Sends the digest when all that was before it is gone, and keeps one timer going while something waits.
    fn watch_buffer(&mut self, myself: &UserRef) {
        let Some(traffic) = &mut self.traffic else { return };
        if traffic.buffer.close_digest() {
            // The store knows what it has to tell of: copies, and what was refused, do not count.
            self.pending += 1;
            let myself = myself.clone();
            let answer = move |backlog: Backlog| _ = myself.cast(Msg::Folded(backlog.folded));
            return self.config.writer.backlog(self.user.clone(), Box::new(answer));
        }
        let now = Instant::now();
        let Some(at) = traffic.buffer.next(&traffic.limiter, &self.config.limits, now) else { return };
        if traffic.timer_at.is_none_or(|armed| at < armed) {
            traffic.timer_at = Some(at);
            drop(myself.send_after(at.saturating_duration_since(now), || Msg::Release));
        }
    }

    pub(super) fn released(&mut self, event: &Arc<Event>, outcome: Appended) {
        match outcome {
            Appended::Stored(seq) if seq <= self.newest => return self.went_back(seq, self.newest),
            Appended::Stored(seq) => {
                metric::waited(metric::Waited::Released);
                self.push_stored(seq, event);
            }
            Appended::Duplicate(seq) => self.grown(seq),
            // Cancelled in this moment.
            Appended::Known => {}
            Appended::Expired => self.end_waiting(event, Reason::Expired),
            Appended::Refused => self.end_waiting(event, Reason::Unstorable),
        }
        if &*event.notification_type == DIGEST_TYPE && matches!(outcome, Appended::Stored(_) | Appended::Duplicate(_)) {
            self.config.writer.digested(self.user.clone(), event.id.clone());
        }
    }

    /// What the limiter has let go, if a successor has to know it.
    pub(super) fn limiter(&self) -> Option<Limiter> {
        let limiter = &self.traffic.as_ref()?.limiter;
        (!limiter.is_rested(Instant::now())).then(|| limiter.clone())
    }

    /// Whether this actor knows of something that waits, or asks what does.
    pub(super) fn has_waiting(&self) -> bool {
        self.traffic.as_ref().is_some_and(|traffic| traffic.recovering.is_some() || !traffic.buffer.is_empty())
    }

    /// Whether the store has not said yet what waits since before a crash.
    pub(super) fn is_recovering(&self) -> bool {
        self.traffic.as_ref().is_some_and(|traffic| traffic.recovering.is_some())
    }

    /// A connection comes back.
    pub(super) fn returns(&mut self) {
        self.traffic.get_or_insert_default().returning += 1;
    }

    /// Keeps a new connection, if one is on its way back.
    pub(super) fn keep_behind_returning(&mut self, attach: Box<Attach>) -> Option<Box<Attach>> {
        match self.traffic.as_mut().filter(|traffic| traffic.returning > 0) {
            Some(traffic) => traffic.newcomers.push(attach),
            None => return Some(attach),
        }
        None
    }

    /// Keeps a transient event, if a connection would miss it that comes back.
    pub(super) fn keep_for_returning(&mut self, mut in_flight: InFlight) -> Option<InFlight> {
        let Some(traffic) = self.traffic.as_mut().filter(|traffic| traffic.returning > 0) else {
            return Some(in_flight);
        };
        in_flight.permit.pause();
        traffic.unseen.push(in_flight);
        None
    }

    /// One is there, or will never be: what was kept goes on when that was the last.
    pub(super) fn returned(&mut self, myself: &UserRef) {
        let Some(traffic) = &mut self.traffic else { return };
        traffic.returning -= 1;
        if traffic.returning == 0 {
            let (newcomers, unseen) = (std::mem::take(&mut traffic.newcomers), std::mem::take(&mut traffic.unseen));
            newcomers.into_iter().for_each(|attach| self.attach(myself, attach));
            self.events(myself, unseen.into());
        }
    }

    /// Asks the store what waits since before a crash; events that are stored stay behind it.
    pub(super) fn recover(&mut self, myself: &UserRef) {
        self.traffic.get_or_insert_default().recovering = Some(Vec::new());
        let myself = myself.clone();
        let answer = move |backlog| _ = myself.cast(Msg::Backlog(backlog));
        self.config.writer.backlog(self.user.clone(), Box::new(answer));
    }

    /// Sends digests; one that may still grow comes later.
    pub(super) fn folded(&mut self, myself: &UserRef, folded: Vec<Folded>) {
        let buffer = self.traffic.as_ref().map(|traffic| &traffic.buffer);
        let is_whole = |folded: &Folded| !buffer.is_some_and(|buffer| buffer.is_open(&folded.digest));
        for folded in folded.into_iter().filter(is_whole).collect::<Vec<_>>() {
            metric::waited(metric::Waited::Digest);
            self.release_one(myself, buffer::digest(&self.user, folded, unix_millis_now()));
        }
    }

    /// Gives a number to everything that waited, in the order that it would have had.
    pub(super) fn recovered(&mut self, myself: &UserRef, backlog: Backlog) {
        let Backlog { mut events, folded } = backlog;
        events.sort_by_key(|event| event.options.priority);
        for event in events {
            self.release_one(myself, event);
        }
        self.folded(myself, folded);
        let behind = self.traffic.as_mut().and_then(|traffic| traffic.recovering.take());
        for in_flight in behind.into_iter().flatten() {
            self.enter(myself, in_flight);
        }
        let _ = self.outcomes.send_message(Outcome::Recovered);
    }
}
