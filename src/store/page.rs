//! Rows of either database as what they stand for: events, and pages that account for every number.

use std::{sync::Arc, time::Duration};

use sqlx::{Decode, Postgres, Row as _, Sqlite, Type, postgres::PgRow, sqlite::SqliteRow};

use super::{
    Entry, Page,
    row::{number, priority_of, reason_of},
};
use crate::{
    event::{Durability, Event, Notification, Options},
    ids::{NotificationId, Sequence, UserId},
    state::Reason,
    wire::{Gap, GapReason},
};

/// What both databases can say in one cell.
pub(super) trait Cell:
    Type<Postgres> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + for<'r> Decode<'r, Sqlite>
{
}

impl<T> Cell for T where T: Type<Postgres> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + for<'r> Decode<'r, Sqlite> {}

/// A row of either database.
pub(super) trait Cells {
    /// The cell in this column, counted from 0.
    fn cell<T: Cell>(&self, column: usize) -> sqlx::Result<T>;
}

impl Cells for PgRow {
    fn cell<T: Cell>(&self, column: usize) -> sqlx::Result<T> {
        self.try_get(column)
    }
}

impl Cells for SqliteRow {
    fn cell<T: Cell>(&self, column: usize) -> sqlx::Result<T> {
        self.try_get(column)
    }
}

/// An event as it was read.
pub(super) struct Read {
    pub(super) id: String,
    pub(super) notification_type: String,
    pub(super) payload: Vec<u8>,
    pub(super) durability: i16,
    pub(super) priority: i16,
    pub(super) collapse_key: Option<String>,
    pub(super) ttl_ms: Option<i64>,
    pub(super) created_at: i64,
    pub(super) recorded_at: i64,
}

impl Read {
    /// So many columns does it take.
    pub(super) const COLUMNS: usize = 9;

    /// From the columns that begin at `from`.
    pub(super) fn of(row: &impl Cells, from: usize) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.cell(from)?,
            notification_type: row.cell(from + 1)?,
            payload: row.cell(from + 2)?,
            durability: row.cell(from + 3)?,
            priority: row.cell(from + 4)?,
            collapse_key: row.cell(from + 5)?,
            ttl_ms: row.cell(from + 6)?,
            created_at: row.cell(from + 7)?,
            recorded_at: row.cell(from + 8)?,
        })
    }

    /// `None`: nothing that this program has written.
    pub(super) fn event(self, user: &UserId) -> Option<Event> {
        let options = Options {
            durability: if self.durability == 2 { Durability::Inbox } else { Durability::Durable },
            priority: priority_of(self.priority)?,
            collapse_key: self.collapse_key.map(Into::into),
            ttl: self.ttl_ms.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis),
        };
        Some(Event {
            user: user.clone(),
            session: None,
            id: NotificationId::new(self.id).ok()?,
            notification_type: self.notification_type.into(),
            payload: String::from_utf8(self.payload).ok()?.into(),
            options,
            created_at: self.created_at,
            recorded_at: self.recorded_at,
        })
    }
}

/// The ends of a user's log.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ends {
    pub(super) head: Sequence,
    /// The cap took what is not above.
    pub(super) floor: Sequence,
}

/// One row of a user's log.
pub(super) struct Line {
    pub(super) seq: Sequence,
    pub(super) content: Content,
}

/// What there is to a row.
pub(super) enum Content {
    /// To be delivered.
    Event(Read),
    /// It must not be, for this reason.
    Removed(i16),
}

/// What READ has answered: on each row the head, the floor, how many rows were found (none: nothing follows `after`),
/// the number, why it was removed, and the event.
pub(super) fn page<R: Cells>(user: &UserId, after: Sequence, rows: &[R], items: i64) -> sqlx::Result<Page> {
    let Some(first) = rows.first() else { return Ok(Page { entries: Vec::new(), covers: after }) };
    let ends = Ends { head: number(first.cell(0)?), floor: number(first.cell(1)?) };
    let Some(found) = first.cell::<Option<i64>>(2)? else {
        return Ok(Page::of(user, after, ends, Vec::new(), true));
    };
    let is_all = found < items && i64::try_from(rows.len()) == Ok(found);
    let line = |row: &R| {
        let content = match row.cell::<Option<i16>>(4)? {
            Some(reason) => Content::Removed(reason),
            None => Content::Event(Read::of(row, 5)?),
        };
        Ok(Line { seq: number(row.cell(3)?), content })
    };
    let lines = rows.iter().map(line).collect::<sqlx::Result<_>>()?;
    Ok(Page::of(user, after, ends, lines, is_all))
}

impl Page {
    /// Rows after `after` that count, in order, as a page that accounts for every number. `is_all`: no row follows
    /// them, so that the rest up to the head is gone.
    fn of(user: &UserId, after: Sequence, ends: Ends, lines: Vec<Line>, is_all: bool) -> Self {
        let mut page = Self { entries: Vec::with_capacity(lines.len()), covers: after };
        for Line { seq, content } in lines {
            page.miss(seq - 1, ends.floor);
            match content {
                Content::Event(read) => page.take(user, seq, read),
                // What took its place says all that there is to say.
                Content::Removed(reason) if reason_of(reason) == Some(Reason::Superseded) => page.covers = seq,
                Content::Removed(_) => page.gap(seq, GapReason::Cancelled),
            }
        }
        if is_all {
            page.miss(ends.head, ends.floor);
        }
        page
    }

    fn take(&mut self, user: &UserId, seq: Sequence, read: Read) {
        let id = read.id.clone();
        let Some(event) = read.event(user) else {
            tracing::error!(%user, seq, id, "a row of the log cannot be read; it is left out");
            return self.gap(seq, GapReason::Expired);
        };
        self.entries.push(Entry::Notification(Notification { seq: Some(seq), event: Arc::new(event) }));
        self.covers = seq;
    }

    /// Notes that nothing comes up to this number, because it is gone.
    fn miss(&mut self, to: Sequence, floor: Sequence) {
        self.gap(to.min(floor), GapReason::Evicted);
        self.gap(to, GapReason::Expired);
    }

    /// Notes that nothing comes up to this number; joined to the same before it.
    fn gap(&mut self, to: Sequence, reason: GapReason) {
        if to <= self.covers {
            return;
        }
        let covers = std::mem::replace(&mut self.covers, to);
        match self.entries.last_mut() {
            Some(Entry::Gap(gap)) if gap.reason == reason && gap.to == covers => gap.to = to,
            _ => self.entries.push(Entry::Gap(Gap { from: covers + 1, to, reason })),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{fakes, store::row::reason_number};

    fn read(seq: Sequence) -> Read {
        Read {
            id: format!("id{seq}"),
            notification_type: "t".into(),
            payload: b"1".to_vec(),
            durability: 1,
            priority: 2,
            collapse_key: None,
            ttl_ms: None,
            created_at: 0,
            recorded_at: 0,
        }
    }

    fn line(seq: Sequence, removed: Option<Reason>) -> Line {
        let content = match removed {
            Some(reason) => Content::Removed(reason_number(reason)),
            None => Content::Event(read(seq)),
        };
        Line { seq, content }
    }

    proptest! {
        /// Whatever rows are left, a page accounts for every number once and in order: as a notification, in a gap that
        /// is as long as it can be, or, where another took its place, by passing it over.
        #[test]
        fn a_page_accounts_for_every_number(
            rows in prop::collection::btree_map(1u64..50, 0usize..4, 0..30),
            floor in 0u64..50,
            after in 0u64..50,
            is_all in any::<bool>(),
        ) {
            let head = 50;
            let removed = |kind: usize| [None, None, Some(Reason::Cancelled), Some(Reason::Superseded)][kind];
            let rows: BTreeMap<Sequence, Option<Reason>> = rows.into_iter().filter(|(seq, _)| *seq > floor.max(after))
                .map(|(seq, kind)| (seq, removed(kind))).collect();
            let lines = rows.iter().map(|(seq, removed)| line(*seq, *removed)).collect();
            let page = Page::of(&fakes::user(), after, Ends { head, floor }, lines, is_all);
            let end = if is_all { head } else { rows.keys().next_back().copied().unwrap_or(after) };
            prop_assert_eq!(page.covers, end.max(after));
            let mut covered = BTreeMap::new();
            let mut last: Option<Gap> = None;
            for entry in &page.entries {
                match entry {
                    Entry::Notification(n) => prop_assert!(covered.insert(n.seq.unwrap(), None).is_none()),
                    Entry::Gap(gap) => {
                        prop_assert!(gap.from <= gap.to);
                        let joins = last.is_some_and(|last| last.to + 1 == gap.from && last.reason == gap.reason);
                        prop_assert!(!joins, "{:?} {:?}", last, gap);
                        last = Some(*gap);
                        for seq in gap.from..=gap.to {
                            prop_assert!(covered.insert(seq, Some(gap.reason)).is_none());
                        }
                    }
                }
                prop_assert!(covered.keys().next_back() <= Some(&page.covers));
            }
            for seq in after + 1..=end {
                let expected = match rows.get(&seq) {
                    Some(None) => Some(None),
                    Some(Some(Reason::Superseded)) => None,
                    Some(Some(_)) => Some(Some(GapReason::Cancelled)),
                    None if seq <= floor => Some(Some(GapReason::Evicted)),
                    None => Some(Some(GapReason::Expired)),
                };
                prop_assert_eq!(covered.remove(&seq), expected, "{}", seq);
            }
            prop_assert!(covered.is_empty(), "{:?}", covered);
        }
    }
}
