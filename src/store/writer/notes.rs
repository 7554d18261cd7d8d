//! Cursors and what the journal is told, on their way into the store. Gathered for a moment: nobody waits for them, and a
//! call costs the store much the same for one as for fifty.

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot};

use super::{Patient, gather};
use crate::{
    placement::shard,
    store::{Acknowledgement, journal::Step},
};

/// How long the first one waits for others.
const WAIT: Duration = Duration::from_millis(10);

/// Hands notes to their lanes. Of one user they are written in the order given. Cheap to clone.
#[derive(Clone)]
pub(super) struct Notes(Arc<[mpsc::UnboundedSender<Note>]>);

/// What nobody waits for, mostly.
pub(super) enum Note {
    /// A cursor to raise, and entries of the journal.
    Raise(Option<Acknowledgement>, Vec<Step>),
    /// Answered when everything before it is written.
    Written(oneshot::Sender<()>),
}

impl Notes {
    /// Starts the lanes; they end when the last clone is dropped and all is written.
    pub(super) fn start(store: &Patient) -> Self {
        let lanes = (0..store.store.grouping().lanes.max(1)).map(|_| {
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(run(store.clone(), receiver));
            sender
        });
        Self(lanes.collect())
    }

    fn lane(&self, user: &str) -> &mpsc::UnboundedSender<Note> {
        let count = u16::try_from(self.0.len()).expect("started with a u16");
        &self.0[usize::from(shard(user, count).0)]
    }

    /// Takes a note.
    pub(super) fn send(&self, user: &str, note: Note) {
        // A lane that is gone: the runtime ends.
        let _ = self.lane(user).send(note);
    }

    /// Answers when all notes on this user from before are written. Cancel safe.
    pub(super) async fn written_of(&self, user: &str) {
        written(self.lane(user)).await;
    }

    /// Answers when all notes from before are written. Cancel safe.
    pub(super) async fn written(&self) {
        for lane in self.0.iter() {
            written(lane).await;
        }
    }
}

async fn written(lane: &mpsc::UnboundedSender<Note>) {
    let (answer, written) = oneshot::channel();
    if lane.send(Note::Written(answer)).is_ok() {
        let _ = written.await;
    }
}

async fn run(store: Patient, mut queue: mpsc::UnboundedReceiver<Note>) {
    let mut notes = Vec::new();
    let is_awaited = |note: &Note| matches!(note, Note::Written(_));
    while gather(&mut queue, &mut notes, WAIT, is_awaited).await {
        let (mut acknowledged, mut steps, mut answers) = (Vec::new(), Vec::new(), Vec::new());
        for note in notes.drain(..) {
            match note {
                Note::Raise(acknowledgement, entries) => {
                    acknowledged.extend(acknowledgement);
                    steps.extend(entries);
                }
                Note::Written(answer) => answers.push(answer),
            }
        }
        if !acknowledged.is_empty() || !steps.is_empty() {
            let acknowledged = highest(acknowledged);
            store.until_done(|store, attempt| store.acknowledge(&acknowledged, &steps, attempt)).await;
        }
        for answer in answers {
            let _ = answer.send(());
        }
    }
}

/// Each cursor once, with the highest number that was acknowledged.
fn highest(mut acknowledged: Vec<Acknowledgement>) -> Vec<Acknowledgement> {
    acknowledged.sort_by(|a, b| (&a.user, &a.device, b.seq).cmp(&(&b.user, &b.device, a.seq)));
    acknowledged.dedup_by(|later, first| later.user == first.user && later.device == first.device);
    acknowledged
}
