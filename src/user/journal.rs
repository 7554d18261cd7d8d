//! What a user's actor says in the journal: who was given what, who has acknowledged it, what was taken back.

use tokio::time::Instant;

use super::{State, UserRef};
use crate::{
    event::unix_millis_now,
    ids::{DeviceId, NotificationId, Sequence, SessionId, UserId},
    session::{self, Handed, What, window::Taken},
    state::{Reason, State as Became},
    store::{Acknowledgement, journal::Step, writer::CancelReply},
    wire::{Gap, GapReason},
};

impl State {
    pub(super) fn session(&mut self, myself: &UserRef, outcome: session::Outcome) {
        let session::Outcome { session, device, what } = outcome;
        match what {
            What::Rests(dormant) => self.rests(myself, dormant),
            What::Busy => self.busy(myself, session),
            What::Acknowledged { seq, ids, gaps, handed } => {
                self.last_activity = Instant::now();
                self.acknowledged(session, device, seq, Some(Taken { ids, gaps }), handed);
            }
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

    /// Raises the device's cursor. What no other device had acknowledged is sent from here on, and what the client was
    /// told will not come has ended with that.
    pub(super) fn acknowledged(
        &mut self,
        session: SessionId,
        device: Option<DeviceId>,
        seq: Sequence,
        taken: Option<Taken>,
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
            let Taken { ids, gaps } = taken.unwrap_or(Taken { ids: None, gaps: Vec::new() });
            let gaps = gaps.into_iter().filter(|gap| gap.to >= news && gap.from <= seq);
            let gaps: Vec<Gap> = gaps.map(|gap| Gap { from: gap.from.max(news), to: gap.to.min(seq), ..gap }).collect();
            let sent = |numbers| Step { handed_at, ..self.step(Became::Sent, numbers, session, device.clone()) };
            match ids {
                None => steps.extend(between(&gaps, (news, seq)).map(sent)),
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
            for gap in gaps {
                let reason = match gap.reason {
                    GapReason::Expired => Reason::Expired,
                    GapReason::Evicted => Reason::Evicted,
                    // Noted when it was taken back; or nothing is known of these numbers.
                    GapReason::Cancelled | GapReason::Epoch | GapReason::Restored => continue,
                };
                let step = self.step(Became::Deleted, (gap.from, gap.to), session, device.clone());
                steps.push(Step { reason: Some(reason), ..step });
            }
            self.acknowledged = seq;
        }
        self.config.writer.acknowledge(Acknowledgement { user: self.user.clone(), device, seq }, steps);
    }

    fn step(&self, state: Became, numbers: (Sequence, Sequence), session: SessionId, device: Option<DeviceId>) -> Step {
        step(&self.user, state, numbers, session, device)
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

/// What has become of these numbers at a session.
pub(super) fn step(
    user: &UserId,
    state: Became,
    (first, last): (Sequence, Sequence),
    session: SessionId,
    device: Option<DeviceId>,
) -> Step {
    Step {
        user: user.clone(),
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

/// The stretches of numbers that are in no gap. Gaps are in order.
fn between(gaps: &[Gap], (first, last): (Sequence, Sequence)) -> impl Iterator<Item = (Sequence, Sequence)> {
    let starts = std::iter::once(first).chain(gaps.iter().map(|gap| gap.to + 1));
    let ends = gaps.iter().map(|gap| gap.from - 1).chain(std::iter::once(last));
    starts.zip(ends).filter(|(from, to)| from <= to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_between_gaps_leave_out_every_number_of_a_gap_and_no_other() {
        let gap = |from, to| Gap { from, to, reason: GapReason::Expired };
        let of = |gaps: &[Gap]| between(gaps, (3, 9)).collect::<Vec<_>>();
        assert_eq!(of(&[]), [(3, 9)]);
        assert_eq!(of(&[gap(3, 3), gap(5, 6)]), [(4, 4), (7, 9)]);
        assert_eq!(of(&[gap(4, 5), gap(6, 9)]), [(3, 3)]);
        assert_eq!(of(&[gap(3, 9)]), []);
    }
}
