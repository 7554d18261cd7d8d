//! What a user's actor says in the journal: who was given what, who has acknowledged it, what was taken back.

use super::State;
use crate::{
    event::unix_millis_now,
    ids::{DeviceId, NotificationId, Sequence, SessionId},
    session::{self, Handed, What},
    state::State as Became,
    store::{Acknowledgement, journal::Step, writer::CancelReply},
};

impl State {
    pub(super) fn session(&mut self, outcome: session::Outcome) {
        let session::Outcome { session, device, what } = outcome;
        match what {
            What::Acknowledged { seq, ids, handed } => self.acknowledged(session, device, seq, ids, handed),
            What::Handed(handed) => {
                let step = self.step(Became::Active, (handed.first, handed.last), session, device);
                self.config.writer.note(Step { at: handed.at, ..step });
            }
            // Its connection has another session already, and goes on.
            What::Left { .. } if self.sessions.iter().any(|attached| attached.id == session) => {}
            What::Left { first, last, handed_at } => {
                let step = self.step(Became::Stale, (first, last), session, device);
                self.config.writer.note(Step { handed_at, ..step });
            }
        }
    }

    /// Raises the device's cursor. What no other device had acknowledged is sent from here on.
    pub(super) fn acknowledged(
        &mut self,
        session: SessionId,
        device: Option<DeviceId>,
        seq: Sequence,
        ids: Option<Vec<(Sequence, NotificationId)>>,
        handed: Option<Handed>,
    ) {
        let mut steps = Vec::new();
        let news = self.acknowledged + 1;
        if let Some(handed) = handed.filter(|handed| handed.first < news) {
            let last = handed.last.min(self.acknowledged);
            let step = self.step(Became::Active, (handed.first, last), session, device.clone());
            steps.push(Step { at: handed.at, ..step });
        }
        if seq >= news {
            let handed_at = handed.filter(|handed| handed.last >= news).map(|handed| handed.at);
            let sent = |numbers| Step { handed_at, ..self.step(Became::Sent, numbers, session, device.clone()) };
            match ids {
                None => steps.push(sent((news, seq))),
                Some(mut ids) => {
                    ids.retain(|(seq, _)| *seq >= news);
                    // Between two runs are numbers that never came.
                    let runs = ids.chunk_by(|(one, _), (next, _)| one + 1 == *next);
                    steps.extend(runs.map(|run| Step {
                        ids: run.iter().map(|(_, id)| id.clone()).collect(),
                        ..sent((run[0].0, run[run.len() - 1].0))
                    }));
                }
            }
            self.acknowledged = seq;
        }
        self.config.writer.acknowledge(Acknowledgement { user: self.user.clone(), device, seq }, steps);
    }

    fn step(
        &self,
        state: Became,
        (first, last): (Sequence, Sequence),
        session: SessionId,
        device: Option<DeviceId>,
    ) -> Step {
        Step {
            user: self.user.clone(),
            first,
            last,
            ids: Vec::new(),
            state,
            reason: None,
            session: Some(session.into()),
            device,
            handed_at: None,
            at: unix_millis_now(),
        }
    }

    /// Sees that a notification is not delivered, wherever it is by now. It goes the way of the writes, so that an
    /// acknowledgement is either before it or does not count.
    pub(super) fn cancel(&mut self, id: NotificationId, reply: CancelReply) {
        if let Some(traffic) = &mut self.traffic {
            traffic.buffer.remove(&id);
        }
        self.config.writer.cancel(self.user.clone(), id, reply);
    }
}
