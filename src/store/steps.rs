//! What durable engines share of the journal and of what waits, and decide without a database: how entries stand in
//! rows, and whether a notification can still be taken back.

use super::{
    journal::{Account, Step},
    page::{Cells, Read},
    row::{number, reason_of, signed, state_of},
    waiting::{Backlog, Folded},
};
use crate::{
    event::UnixMillis,
    ids::{DeviceId, NotificationId, Sequence, SessionTag, UserId},
    state::State,
};

/// Between ids in one text: a control character, which no id holds.
pub(super) const BETWEEN: char = '\u{1f}';
/// An account has at most so many steps.
pub(super) const STEPS_MAX: i64 = 100;
/// Of those with a key that came before, so many of the last are looked at when a newer one takes their place.
pub(super) const OLDER_MAX: i64 = 16;
/// An entry of the journal stands for at most so many numbers. Statements know it: who looks for the entries that cover
/// a number need not look far behind it.
const STRETCH_MAX: usize = 1000;
/// So many numbers, of which the log is asked, and ids, which entries bring, are read at once.
const NUMBERS_MAX: Sequence = 10_000;

impl Step {
    /// Ids as one text.
    pub(super) fn ids_text(&self) -> Option<String> {
        let ids: Vec<&str> = self.ids.iter().map(|id| &**id).collect();
        (!ids.is_empty()).then(|| ids.join(&BETWEEN.to_string()))
    }

    /// As the journal keeps it: what has no number stands alone, so that it is found by its id, and a long stretch of
    /// numbers in pieces. Its ids, if they are known, are those of its numbers, one by one.
    pub(super) fn apart(&self) -> Vec<Self> {
        if self.last == 0 {
            return self.ids.iter().map(|id| Self { ids: vec![id.clone()], ..self.clone() }).collect();
        }
        let mut ids = self.ids.iter().cloned();
        let piece = |first: Sequence| {
            let last = self.last.min(first + STRETCH_MAX as Sequence - 1);
            Self { first, last, ids: ids.by_ref().take(STRETCH_MAX).collect(), ..self.clone() }
        };
        (self.first..=self.last).step_by(STRETCH_MAX).map(piece).collect()
    }

    /// Whether the log is to be asked for its ids.
    pub(super) fn lacks_ids(&self) -> bool {
        self.last > 0 && self.ids.is_empty()
    }

    /// Whether a number of its may have been taken back before: whoever acknowledges, acknowledges all that is not above.
    pub(super) fn may_name_removed(&self) -> bool {
        self.last > 0 && self.state != State::Deleted && !self.ids.is_empty()
    }

    /// From the columns user, first, last, ids, state, reason, session, device, handed_at, at, which begin at `from`.
    pub(super) fn of(row: &impl Cells, from: usize) -> sqlx::Result<Option<Self>> {
        let ids: Option<String> = row.cell(from + 3)?;
        let ids = ids.iter().flat_map(|ids| ids.split(BETWEEN)).filter_map(|id| NotificationId::new(id).ok());
        let (user, state) = (UserId::new(row.cell::<String>(from)?), state_of(row.cell(from + 4)?));
        let (Ok(user), Some(state)) = (user, state) else { return Ok(None) };
        Ok(Some(Self {
            user,
            first: number(row.cell(from + 1)?),
            last: number(row.cell(from + 2)?),
            ids: ids.collect(),
            state,
            reason: row.cell::<Option<i16>>(from + 5)?.and_then(reason_of),
            session: row.cell::<Option<String>>(from + 6)?.and_then(|session| SessionTag::parse(&session)),
            device: row.cell::<Option<String>>(from + 7)?.and_then(|device| DeviceId::new(device).ok()),
            handed_at: row.cell(from + 8)?,
            at: row.cell(from + 9)?,
        }))
    }
}

/// An entry of the journal that says that something has ended, and its place.
pub(super) struct Ended<P> {
    pub(super) place: P,
    /// `None`: nothing that this program has written.
    pub(super) step: Option<Step>,
}

/// As many of these entries as stand for so much as can be read at once; at least one.
pub(super) fn at_once<P>(mut ended: Vec<Ended<P>>) -> Vec<Ended<P>> {
    let mut numbers = 0;
    let fits = |one: &&Ended<P>| {
        numbers += one.step.as_ref().map_or(0, |step| match step.lacks_ids() {
            true => (step.last + 1).saturating_sub(step.first),
            false => step.ids.len() as Sequence,
        });
        numbers <= NUMBERS_MAX
    };
    let count = ended.iter().take_while(fits).count();
    ended.truncate(count.max(1));
    ended
}

/// How a numbered notification stands when it is to be taken back.
pub(super) struct Standing {
    pub(super) seq: Sequence,
    pub(super) expires_at: UnixMillis,
    pub(super) floor: Sequence,
    pub(super) acknowledged: Sequence,
    pub(super) is_removed: bool,
}

impl Standing {
    /// From the columns seq, expires_at, floor, the highest cursor, and the reason of its removal.
    pub(super) fn of(row: &impl Cells) -> sqlx::Result<Self> {
        Ok(Self {
            seq: number(row.cell(0)?),
            expires_at: row.cell(1)?,
            floor: number(row.cell(2)?),
            acknowledged: number(row.cell(3)?),
            is_removed: row.cell::<Option<i16>>(4)?.is_some(),
        })
    }

    /// As what it has ended, if it has.
    pub(super) fn ended(&self, now: UnixMillis) -> Option<State> {
        match self {
            // A cursor may have passed it later.
            _ if self.is_removed => Some(State::Deleted),
            _ if self.seq <= self.acknowledged => Some(State::Sent),
            _ if self.expires_at <= now || self.seq <= self.floor => Some(State::Deleted),
            _ => None,
        }
    }
}

/// From the columns of an event, when it was stored, when it expires, its number, the floor, the highest cursor, and why
/// and when it was ended.
pub(super) fn account(user: &UserId, row: &impl Cells) -> sqlx::Result<Option<Account>> {
    let Some(event) = Read::of(row, 0)?.event(user) else { return Ok(None) };
    let rest = Read::COLUMNS;
    let seq = row.cell::<Option<i64>>(rest + 2)?.map(number);
    let floor: i64 = row.cell(rest + 3)?;
    let acknowledged: i64 = row.cell(rest + 4)?;
    let reason = row.cell::<Option<i16>>(rest + 5)?.and_then(reason_of);
    Ok(Some(Account {
        ended: reason.zip(row.cell(rest + 6)?),
        event,
        seq,
        stored_at: row.cell(rest)?,
        expires_at: row.cell(rest + 1)?,
        acknowledged: seq.is_some_and(|seq| signed(seq) <= acknowledged),
        evicted: seq.is_some_and(|seq| signed(seq) <= floor),
        steps: Vec::new(),
    }))
}

/// From rows of events, and rows of digests, types, counts, and first and last times, those of one digest together.
pub(super) fn backlog<R: Cells>(user: &UserId, events: &[R], folded: &[R]) -> sqlx::Result<Backlog> {
    let mut backlog = Backlog::default();
    for row in events {
        let read = Read::of(row, 0)?;
        let id = read.id.clone();
        match read.event(user) {
            Some(event) => backlog.events.push(event.into()),
            None => tracing::error!(%user, id, "a row of what waits cannot be read; it is left out"),
        }
    }
    for row in folded {
        let Ok(digest) = NotificationId::new(row.cell::<String>(0)?) else { continue };
        let count = (row.cell::<String>(1)?.into(), number(row.cell(2)?));
        let (from, to) = (row.cell(3)?, row.cell(4)?);
        match backlog.folded.last_mut().filter(|last| last.digest == digest) {
            Some(last) => {
                last.counts.push(count);
                (last.from, last.to) = (last.from.min(from), last.to.max(to));
            }
            None => backlog.folded.push(Folded { digest, counts: vec![count], from, to }),
        }
    }
    Ok(backlog)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(ids: &[&str], last: Sequence) -> Step {
        Step {
            user: UserId::new("u").unwrap(),
            first: last.min(1),
            last,
            ids: ids.iter().map(|id| NotificationId::new(*id).unwrap()).collect(),
            state: State::Sent,
            reason: None,
            session: None,
            device: None,
            handed_at: None,
            at: 1,
        }
    }

    #[test]
    fn what_has_no_number_stands_alone_in_the_journal() {
        assert_eq!(step(&["a", "b"], 0).apart(), [step(&["a"], 0), step(&["b"], 0)]);
        assert_eq!(step(&["a", "b"], 2).apart(), [step(&["a", "b"], 2)]);
        assert_eq!(step(&["a", "b"], 2).ids_text().as_deref(), Some("a\u{1f}b"));
    }

    #[test]
    fn a_long_stretch_of_numbers_stands_in_pieces_with_their_ids() {
        let numbers = |pieces: &[Step]| pieces.iter().map(|one| (one.first, one.last)).collect::<Vec<_>>();
        let pieces = step(&[], 2500).apart();
        assert_eq!(numbers(&pieces), [(1, 1000), (1001, 2000), (2001, 2500)]);
        assert!(pieces.iter().all(|piece| piece.ids.is_empty()));
        let ids: Vec<String> = (1..=1001).map(|n| format!("id{n}")).collect();
        let pieces = step(&ids.iter().map(|id| &**id).collect::<Vec<_>>(), 1001).apart();
        assert_eq!(numbers(&pieces), [(1, 1000), (1001, 1001)]);
        assert_eq!((pieces[0].ids.len(), &*pieces[0].ids[999], &*pieces[1].ids[0]), (1000, "id1000", "id1001"));
    }

    #[test]
    fn of_entries_that_stand_for_too_many_numbers_at_least_one_is_asked_for() {
        let ended = |sizes: &[Sequence]| {
            let entry = |size: &Sequence| Ended { place: (), step: Some(step(&[], *size)) };
            at_once(sizes.iter().map(entry).collect()).len()
        };
        assert_eq!(ended(&[1, 2, 3]), 3);
        assert_eq!(ended(&[NUMBERS_MAX, 1]), 1);
        assert_eq!(ended(&[NUMBERS_MAX + 1, 1]), 1);
        assert_eq!(ended(&[]), 0);
        let brought = Step { ids: vec![NotificationId::new("i").unwrap(); 4000], ..step(&[], 4000) };
        let brought = (0..4).map(|_| Ended { place: (), step: Some(brought.clone()) });
        assert_eq!(at_once(brought.collect()).len(), 2, "ids that entries bring count too");
    }
}
