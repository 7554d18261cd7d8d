//! What a user's limits do to events: they go into the log at once, or wait in the buffer, or are counted in a digest.
//! Whatever waits is stored first, and so settled; it gets its number when it is released.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Msg, State, UserRef,
    buffer::{self, Buffer, DIGEST_TYPE, Place},
    limiter::{Limiter, Limits},
    metric,
};
use crate::{
    event::{Event, InFlight, unix_millis_now},
    ids::NotificationId,
    state::Reason,
    store::{
        Appended,
        waiting::{Backlog, Ending, Held},
    },
};

/// How long to wait for a store that does not answer before asking again.
const BACKLOG_RETRY: Duration = Duration::from_millis(500);

/// What one user's limits have let go, and what waits for them.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    limiter: Limiter,
    pub(super) buffer: Buffer,
    /// What was taken back while sessions are open, which may have been given it: they do not send it any more.
    pub(super) cancelled: VecDeque<NotificationId>,
    /// When the timer for the next one fires.
    timer_at: Option<Instant>,
    /// While the store is asked what waits since before a crash: what must not overtake it.
    recovering: Option<Vec<InFlight>>,
}

impl Traffic {
    pub(super) fn new(limiter: Limiter) -> Self {
        Self { limiter, ..Self::default() }
    }

    /// Whether an event may go now; takes its token. `queues`: it could wait, and must not overtake those that do.
    fn passes(&mut self, limits: &Limits, event: &Event, queues: bool) -> bool {
        let priority = event.options.priority;
        let Some(limit) = limits.of(priority) else { return true };
        let overtakes = queues && self.buffer.has(priority);
        if !overtakes && self.limiter.try_take(limits, priority, Instant::now()) {
            return true;
        }
        metric::rate_limited(priority, limit.dry_run);
        limit.dry_run
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
        let superseded = traffic.buffer.superseded_by(&event);
        if traffic.passes(&self.config.limits, &event, true) {
            self.config.writer.append(in_flight, false, myself.get_derived());
        } else {
            let digest = match traffic.buffer.insert(&event, self.config.buffer) {
                Place::Waits | Place::Known => None,
                Place::Folded(digest) => Some(digest),
            };
            self.config.writer.hold(in_flight, digest, myself.get_derived());
        }
        if let Some(older) = superseded {
            self.end_waiting(&older, Reason::Superseded);
        }
        self.watch_buffer(myself);
    }

    /// Whether a transient event is within the limits; it never waits.
    pub(super) fn may_pass(&mut self, event: &Event) -> bool {
        self.traffic.get_or_insert_default().passes(&self.config.limits, event, false)
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
        if outcome == Held::Waiting {
            metric::event(metric::Event::Buffered);
            return in_flight.permit.settle();
        }
        if let Some(traffic) = &mut self.traffic {
            traffic.buffer.remove(&in_flight.event.id);
        }
        match outcome {
            Held::Duplicate(seq) => {
                metric::event(metric::Event::Duplicate);
                self.grown(seq);
            }
            Held::Waiting | Held::Known => metric::event(metric::Event::Duplicate),
            Held::Expired => self.dropped(&in_flight.event, metric::Event::Expired, Reason::Expired),
            Held::Refused => self.refused(&in_flight.event),
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
        traffic.cancelled = VecDeque::new();
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
        if let Some(digest) = traffic.buffer.digest(&self.user, unix_millis_now()) {
            metric::waited(metric::Waited::Digest);
            return self.release_one(myself, digest);
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

    /// Whether the store has not said yet what waits since before a crash.
    pub(super) fn is_recovering(&self) -> bool {
        self.traffic.as_ref().is_some_and(|traffic| traffic.recovering.is_some())
    }

    /// Asks the store what waits since before a crash; events that are stored stay behind it.
    pub(super) fn recover(&mut self, myself: &UserRef) {
        self.traffic.get_or_insert_default().recovering = Some(Vec::new());
        let (store, user, myself) = (self.config.store.clone(), self.user.clone(), myself.clone());
        tokio::spawn(async move {
            let backlog = loop {
                match store.backlog(&user).await {
                    Ok(backlog) => break backlog,
                    Err(error) => tracing::warn!(%error, "reading what waits failed, trying again"),
                }
                tokio::time::sleep(BACKLOG_RETRY).await;
            };
            let _ = myself.cast(Msg::Backlog(backlog));
        });
    }

    /// Gives a number to everything that waited, in the order that it would have had.
    pub(super) fn recovered(&mut self, myself: &UserRef, backlog: Backlog) {
        let Backlog { mut events, folded } = backlog;
        events.sort_by_key(|event| event.options.priority);
        for event in events {
            self.release_one(myself, event);
        }
        for folded in folded {
            self.release_one(myself, buffer::owed(&self.user, folded, unix_millis_now()));
        }
        let behind = self.traffic.as_mut().and_then(|traffic| traffic.recovering.take());
        for in_flight in behind.into_iter().flatten() {
            self.enter(myself, in_flight);
        }
    }
}
