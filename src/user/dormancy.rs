//! Sleep: when a user's clients have everything and say nothing, no actor runs for the user. Each session lets go of its
//! connection first; then the user asks its shard, which keeps what is left, and gives it to the successor that it
//! starts with the next request. What the shard asks for meanwhile is held, and wakes all of them before it is done.

use ractor::{ActorProcessingErr, actor::messages::BoxedState};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{Attached, Config, Msg, Outcome, Request, Serving, State, UserRef, journal, metric};
use crate::{
    ids::{Sequence, SessionId, UserId},
    session::{self, Dormant},
    state::State as Became,
    store::{Opened, Opening, journal::Step},
};

/// What is left of a user that sleeps while its clients are connected.
#[derive(Default)]
pub struct Asleep {
    /// The highest number that it knew to exist.
    pub(super) newest: Sequence,
    pub(super) acknowledged: Sequence,
    /// Oldest first.
    pub(super) sessions: SmallVec<[Resting; 1]>,
}

/// A session at rest.
pub(super) struct Resting {
    pub(super) began: Instant,
    pub(super) dormant: Box<Dormant>,
}

/// How far a user is on its way to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It serves its sessions.
    Awake,
    /// Its sessions were asked whether they rest, and not all have answered.
    Settling {
        /// One of them does not.
        failed: bool,
    },
    /// All of its sessions rest.
    Asleep,
}

/// What a user's actor leaves to its successor when it has stopped, if that has somebody to serve.
#[must_use]
pub fn left_by(state: Option<BoxedState>) -> Option<Asleep> {
    let State { newest, acknowledged, sessions, .. } = state?.take().ok()?;
    let resting = |attached: Attached| Some(Resting { began: attached.began, dormant: attached.serving.dormant()? });
    let sessions: SmallVec<_> = sessions.into_iter().filter_map(resting).collect();
    let newest = sessions.iter().map(|resting: &Resting| resting.dormant.sent()).fold(newest, Sequence::max);
    (!sessions.is_empty()).then_some(Asleep { newest, acknowledged, sessions })
}

impl Asleep {
    /// Forgets the sessions whose connections have ended, and says so in the journal; whether any is left.
    pub fn forget_ended(&mut self, user: &UserId, config: &Config) -> bool {
        self.sessions.retain(|Resting { dormant, .. }| dormant.rests() || left(user, config, dormant));
        !self.sessions.is_empty()
    }
}

/// A session at rest has lost its connection: what its client had and had not acknowledged is stale. `false`.
fn left(user: &UserId, config: &Config, dormant: &Dormant) -> bool {
    if let Some(numbers) = dormant.unacknowledged() {
        let step: Step = journal::step(user, Became::Stale, numbers, dormant.id, dormant.device.clone());
        config.writer.note(step);
    }
    false
}

impl State {
    fn is_idle(&self) -> bool {
        let may_sleep = match self.phase {
            Phase::Awake => self.sessions.is_empty() || (self.config.dormancy && !self.has_waiting()),
            // It has asked; if the shard says no, something is on its way.
            Phase::Settling { .. } | Phase::Asleep => false,
        };
        may_sleep && self.pending == 0 && !self.is_recovering()
    }

    /// Keeps one timer going while nothing is under way; who is to leave does so then. What is held back has been taken,
    /// too: it is done before.
    pub(super) fn watch_idleness(&mut self, myself: &UserRef) {
        if self.leaving {
            if self.pending == 0 && self.held.is_empty() && !self.is_recovering() {
                self.leave(myself);
            }
            return;
        }
        if self.is_idle() && !self.timer_armed {
            self.timer_armed = true;
            let at = self.last_activity + self.config.idle_after;
            drop(myself.send_after(at.saturating_duration_since(Instant::now()), || Msg::CheckIdle));
        }
    }

    /// Stops behind its sessions, which pass on what they were given.
    fn leave(&mut self, myself: &UserRef) {
        let mut is_last = true;
        for attached in self.sessions.iter_mut().filter(|attached| matches!(attached.serving, Serving::Awake(_))) {
            is_last = false;
            if !std::mem::replace(&mut attached.leaves, true) {
                attached.cast(session::Msg::Leave);
            }
        }
        if is_last {
            myself.stop(None);
        }
    }

    pub(super) fn check_idle(&mut self) {
        if self.is_idle() && self.last_activity.elapsed() >= self.config.idle_after {
            // The next question is as far off as this one was.
            self.last_activity = Instant::now();
            if self.sessions.is_empty() { self.ask() } else { self.settle() }
        }
    }

    /// Does what the shard asks for, after waking up.
    pub(super) fn requested(&mut self, myself: &UserRef, request: Request) {
        match (self.phase, request) {
            (_, Request::Ended) => {
                self.handled += 1;
                self.forget_ended();
                self.ask_if_asleep();
            }
            (Phase::Awake, request) => self.request(myself, request),
            (phase, request) => {
                self.held.push(request);
                if phase == Phase::Asleep {
                    let _ = myself.cast(Msg::Rouse);
                }
            }
        }
    }

    fn forget_ended(&mut self) {
        let (user, config) = (&self.user, &self.config);
        self.sessions.retain(|attached| match &attached.serving {
            Serving::Asleep(dormant) => dormant.rests() || left(user, config, dormant),
            Serving::Awake(_) => true,
        });
    }

    /// Asks all sessions whether they rest.
    fn settle(&mut self) {
        self.phase = Phase::Settling { failed: false };
        for attached in &mut self.sessions {
            attached.asked = true;
            attached.cast(session::Msg::Rest);
        }
    }

    /// A session rests, and has said all that it had to say.
    pub(super) fn rests(&mut self, myself: &UserRef, dormant: Box<Dormant>) {
        let Some(attached) = self.sessions.iter_mut().find(|attached| attached.asked && attached.id == dormant.id)
        else {
            // Its connection attaches again.
            return;
        };
        attached.asked = false;
        if let Serving::Awake(actor) = std::mem::replace(&mut attached.serving, Serving::Asleep(dormant)) {
            actor.stop(None);
        }
        self.forget_ended();
        self.settled(myself);
    }

    /// A session does not rest.
    pub(super) fn busy(&mut self, myself: &UserRef, session: SessionId) {
        if let Some(attached) = self.sessions.iter_mut().find(|attached| attached.asked && attached.id == session) {
            attached.asked = false;
            self.disturbed(myself);
        }
    }

    /// Something has happened that keeps the user awake.
    pub(super) fn disturbed(&mut self, myself: &UserRef) {
        if let Phase::Settling { failed } = &mut self.phase {
            *failed = true;
            self.settled(myself);
        }
    }

    fn settled(&mut self, myself: &UserRef) {
        let Phase::Settling { failed } = self.phase else { return };
        if self.sessions.iter().any(|attached| attached.asked) {
            return;
        }
        if failed || !self.held.is_empty() {
            let _ = myself.cast(Msg::Rouse);
        } else {
            self.phase = Phase::Asleep;
            self.ask_if_asleep();
        }
    }

    fn ask_if_asleep(&self) {
        if self.phase == Phase::Asleep && self.held.is_empty() {
            self.ask();
        }
    }

    /// Asks the shard whether this actor may stop.
    fn ask(&self) {
        let (user, handled, limiter) = (self.user.clone(), self.handled, self.limiter());
        let _ = self.outcomes.send_message(Outcome::Idle { user, handled, limiter });
    }

    /// Starts the sessions again that rest, and goes on with what was held.
    pub(super) async fn rouse(&mut self, myself: &UserRef) -> Result<(), ActorProcessingErr> {
        let is_settling = matches!(self.phase, Phase::Settling { .. });
        if self.phase == Phase::Awake || is_settling && self.sessions.iter().any(|attached| attached.asked) {
            return Ok(());
        }
        self.phase = Phase::Awake;
        self.last_activity = Instant::now();
        // Their connections may not have said so yet.
        self.forget_ended();
        let mut slept = false;
        for Attached { id, began, serving, asked, leaves } in std::mem::take(&mut self.sessions) {
            let (actor, leaves) = match serving {
                Serving::Awake(actor) => (actor, leaves),
                Serving::Asleep(dormant) => {
                    slept = true;
                    // The one that rested did not hear that it was told to leave.
                    (self.wake(myself, *dormant).await?, false)
                }
            };
            self.sessions.push(Attached { id, began, serving: Serving::Awake(actor), asked, leaves });
        }
        if slept {
            metric::woken();
            self.compare(myself);
        }
        for request in std::mem::take(&mut self.held) {
            self.request(myself, request);
        }
        Ok(())
    }

    async fn wake(&self, myself: &UserRef, dormant: Dormant) -> Result<session::SessionRef, ActorProcessingErr> {
        let (id, device) = (dormant.id, dormant.device.clone());
        let (attachment, start) = dormant.wake(self.newest);
        Ok(session::spawn(self.session_args(myself, (id, device), attachment, start), myself.get_cell()).await?)
    }

    /// Looks whether the log still ends where it did. Nobody waits for the answer.
    fn compare(&mut self, myself: &UserRef) {
        self.pending += 1;
        let (myself, newest) = (myself.clone(), self.newest);
        let answer = move |opened| _ = myself.cast(Msg::Compared(opened, newest));
        self.config.writer.open(Opening { user: self.user.clone(), device: None }, Box::new(answer));
    }

    pub(super) fn compared(&mut self, opened: Opened, newest: Sequence) {
        self.pending -= 1;
        if opened.head < newest {
            return self.went_back(opened.head, newest);
        }
        self.acknowledged = self.acknowledged.max(opened.acknowledged);
        if opened.head > self.newest {
            // The newest number stays: of a write under way, the log may tell before its answer comes.
            self.tell_of_growth(opened.head);
        }
    }
}
