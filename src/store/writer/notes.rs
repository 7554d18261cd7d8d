//! Cursors and what the journal is told, on their way into the store. Gathered for a moment: nobody waits for them, and a
//! call costs the store much the same for one as for fifty.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{Patient, gather, of_user};
use crate::{
    ids::UserId,
    store::{Acknowledgement, Error, journal::Step},
};

/// How long the first one waits for others. Who waits for a note has it written at once.
const WAIT: Duration = Duration::from_millis(30);
/// When so many wait in a lane, appends wait for it: it is their deliveries that are acknowledged.
const BEHIND: usize = 10_000;

/// Hands notes to their lanes. Of one user they are written in the order given. Cheap to clone.
#[derive(Clone)]
pub(super) struct Notes {
    lanes: Arc<[Lane]>,
    unwritten: Arc<Unwritten>,
    store: Patient,
}

struct Lane {
    sender: mpsc::UnboundedSender<Note>,
    waiting: Arc<AtomicUsize>,
}

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
        let unwritten = Arc::new(Unwritten::default());
        let lanes = (0..store.inner.grouping().lanes.max(1)).map(|_| {
            let (sender, receiver) = mpsc::unbounded_channel();
            let waiting = Arc::new(AtomicUsize::new(0));
            tokio::spawn(run(store.clone(), receiver, waiting.clone(), unwritten.clone()));
            Lane { sender, waiting }
        });
        Self { lanes: lanes.collect(), unwritten, store: store.clone() }
    }

    /// Takes a note.
    pub(super) fn send(&self, user: &str, note: Note) {
        if let Note::Raise(Some(acknowledgement), _) = &note {
            self.unwritten.add(&acknowledgement.user);
        }
        let lane = of_user(&self.lanes, user);
        lane.waiting.fetch_add(1, Ordering::Relaxed);
        if lane.sender.send(note).is_err() {
            let _ = self.store.lost.send(Error::Lost { reason: "nobody writes acknowledgements any more".into() });
        }
    }

    /// Whether something that this user has acknowledged is not in the store yet.
    pub(super) fn has_unwritten(&self, user: &UserId) -> bool {
        self.unwritten.0.lock().contains_key(user)
    }

    /// Answers when all notes on this user from before are written. Cancel safe.
    pub(super) async fn written_of(&self, user: &str) {
        written(of_user(&self.lanes, user)).await;
    }

    /// The same when there are very many, so that they do not become more without end. Cancel safe.
    pub(super) async fn keep_up(&self, user: &str) {
        if of_user(&self.lanes, user).waiting.load(Ordering::Relaxed) > BEHIND {
            self.written_of(user).await;
        }
    }

    /// Answers when all notes from before are written. Cancel safe.
    pub(super) async fn written(&self) {
        for lane in self.lanes.iter() {
            written(lane).await;
        }
    }
}

async fn written(lane: &Lane) {
    let (answer, written) = oneshot::channel();
    lane.waiting.fetch_add(1, Ordering::Relaxed);
    if lane.sender.send(Note::Written(answer)).is_ok() {
        let _ = written.await;
    }
}

async fn run(
    store: Patient,
    mut queue: mpsc::UnboundedReceiver<Note>,
    waiting: Arc<AtomicUsize>,
    unwritten: Arc<Unwritten>,
) {
    let mut notes = Vec::new();
    let is_awaited = |note: &Note| matches!(note, Note::Written(_));
    while gather(&mut queue, &mut notes, || Instant::now() + WAIT, is_awaited).await {
        let taken = notes.len();
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
            let highest = highest(acknowledged.clone());
            store.until_done(|store, attempt| store.acknowledge(&highest, &steps, attempt)).await;
            unwritten.remove(&acknowledged);
        }
        waiting.fetch_sub(taken, Ordering::Relaxed);
        for answer in answers {
            let _ = answer.send(());
        }
    }
}

/// How many acknowledgements of each user are on their way.
#[derive(Default)]
struct Unwritten(Mutex<HashMap<UserId, usize>>);

impl Unwritten {
    fn add(&self, user: &UserId) {
        let mut users = self.0.lock();
        match users.get_mut(user) {
            Some(count) => *count += 1,
            None => _ = users.insert(user.clone(), 1),
        }
    }

    fn remove(&self, written: &[Acknowledgement]) {
        let mut users = self.0.lock();
        for Acknowledgement { user, .. } in written {
            let Some(count) = users.get_mut(user) else { continue };
            *count -= 1;
            if *count == 0 {
                users.remove(user);
            }
        }
    }
}

/// Each cursor once, with the highest number that was acknowledged.
fn highest(mut acknowledged: Vec<Acknowledgement>) -> Vec<Acknowledgement> {
    acknowledged.sort_by(|a, b| (&a.user, &a.device, b.seq).cmp(&(&b.user, &b.device, a.seq)));
    acknowledged.dedup_by(|later, first| later.user == first.user && later.device == first.device);
    acknowledged
}
