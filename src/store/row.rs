//! What durable engines share, and decide without a database: where a row belongs and how long it is kept, which
//! events of a group need a row at all, and what a page of rows comes to.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{Appended, Entry, Page};
use crate::{
    event::{Durability, Event, Notification, Options, Priority, UnixMillis},
    ids::{NotificationId, Sequence, UserId},
    wire::{Gap, GapReason},
};

/// One day in milliseconds.
pub(super) const DAY: UnixMillis = 24 * 3600 * 1000;
/// Nothing is kept for longer, in days.
pub(super) const KEEP_DAYS_MAX: i64 = 400;
/// Rows of older records stand with those of this many days ago, so that few partitions have to exist.
pub(super) const BACK_DAYS: i64 = 8;

/// Rows that are kept for about as long share partitions, so that an hour and a month never share a drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class {
    /// How the database calls it.
    pub(super) number: i16,
    /// The longest that its rows are kept, in days.
    pub(super) keep_days: i64,
    /// How many days one partition covers.
    pub(super) width_days: i64,
}

/// Every class, shortest first.
pub(super) const CLASSES: [Class; 4] = [
    Class { number: 0, keep_days: 1, width_days: 1 },
    Class { number: 1, keep_days: 8, width_days: 1 },
    Class { number: 2, keep_days: 32, width_days: 7 },
    Class { number: 3, keep_days: KEEP_DAYS_MAX, width_days: 31 },
];

impl Class {
    /// The class of rows that are kept for so long.
    pub(super) fn of(keep: UnixMillis) -> Self {
        let fits = |class: &&Self| keep <= class.keep_days * DAY;
        *CLASSES.iter().find(fits).unwrap_or(&CLASSES[CLASSES.len() - 1])
    }
}

/// How engines keep rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keeping {
    /// How long an event without a time to live is kept.
    pub(super) retention: Duration,
    /// Within this time an id is recognised again.
    pub(super) dedup_window: Duration,
    /// Notifications a user; the oldest stop to count.
    pub(super) per_user_max: Sequence,
}

/// Where an event's row belongs. It depends on the record, so that a record that is read again meets its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) class: Class,
    /// Days since 1970.
    pub(super) day: i64,
    /// Not delivered from here on, in ms.
    pub(super) expires_at: UnixMillis,
    /// A row with the same id counts if its record was written at this time or later, in ms.
    pub(super) known_since: UnixMillis,
    /// Such a row stands on this day or later.
    pub(super) known_day: i64,
}

impl Keeping {
    /// Where the event's row belongs; `None` when its time to live is over.
    pub(super) fn place(&self, event: &Event, now: UnixMillis) -> Option<Place> {
        if event.expires_at().is_some_and(|at| at <= now) {
            return None;
        }
        let keep = millis(event.options.ttl.unwrap_or(self.retention)).min(KEEP_DAYS_MAX * DAY);
        let mut at = event.recorded_at.min(now.saturating_add(DAY));
        if at.saturating_add(keep) <= now {
            // Nonsense (−1, 1970), or older than what is kept, and still nobody said that it must not come.
            at = now;
        }
        let own_day = day(at).max(day(now) - BACK_DAYS);
        let known_since = event.recorded_at.saturating_sub(millis(self.dedup_window));
        Some(Place {
            class: Class::of(keep),
            day: own_day,
            expires_at: at.saturating_add(keep),
            known_since,
            // A record from the future stands with tomorrow's, which was another day when it was read first.
            known_day: match event.recorded_at > now {
                true => own_day - day(millis(self.dedup_window)) - 1,
                false => day(known_since).min(own_day),
            },
        })
    }
}

/// The day of a time.
pub(super) fn day(at: UnixMillis) -> i64 {
    at.div_euclid(DAY)
}

pub(super) fn millis(time: Duration) -> UnixMillis {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// One event that needs a row.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) event: &'a Event,
    pub(super) place: Place,
}

/// A group of events, told apart by what has to be done for them.
pub(super) struct Group<'a> {
    pub(super) rows: Vec<Row<'a>>,
    fates: Vec<Fate>,
}

enum Fate {
    Expired,
    /// Its row.
    Row(usize),
    /// It came twice in this group: the row of the first.
    Again(usize),
}

impl<'a> Group<'a> {
    pub(super) fn new(events: &'a [Arc<Event>], keeping: &Keeping, now: UnixMillis) -> Self {
        let mut rows: Vec<Row<'a>> = Vec::with_capacity(events.len());
        let mut seen: HashMap<(&UserId, &NotificationId), usize> = HashMap::with_capacity(events.len());
        let fate = |event: &'a Arc<Event>| {
            let Some(place) = keeping.place(event, now) else { return Fate::Expired };
            let next = rows.len();
            let first = seen.entry((&event.user, &event.id)).or_insert(next);
            if *first < next && rows[*first].event.recorded_at >= place.known_since {
                return Fate::Again(*first);
            }
            *first = next;
            rows.push(Row { event, place });
            Fate::Row(next)
        };
        let fates = events.iter().map(fate).collect();
        Self { rows, fates }
    }

    /// What became of every event, from what became of every row.
    pub(super) fn outcomes(&self, of_rows: &[Appended]) -> Vec<Appended> {
        let outcome = |fate: &Fate| match fate {
            Fate::Expired => Appended::Expired,
            Fate::Row(row) => of_rows[*row],
            Fate::Again(row) => match of_rows[*row] {
                Appended::Stored(seq) => Appended::Duplicate(seq),
                other => other,
            },
        };
        self.fates.iter().map(outcome).collect()
    }
}

/// A row as it was read.
pub(super) struct Read {
    pub(super) seq: i64,
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
    /// `None`: nothing that this program has written.
    fn event(self, user: &UserId) -> Option<Event> {
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

/// How the database calls a durability.
pub(super) fn durability_number(durability: Durability) -> i16 {
    match durability {
        Durability::Transient => 0,
        Durability::Durable => 1,
        Durability::Inbox => 2,
    }
}

/// How the database calls a priority.
pub(super) fn priority_number(priority: Priority) -> i16 {
    match priority {
        Priority::Critical => 0,
        Priority::High => 1,
        Priority::Normal => 2,
        Priority::Low => 3,
    }
}

fn priority_of(number: i16) -> Option<Priority> {
    [Priority::Critical, Priority::High, Priority::Normal, Priority::Low]
        .into_iter()
        .find(|priority| priority_number(*priority) == number)
}

/// The ends of a user's log.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ends {
    pub(super) head: Sequence,
    /// The cap took what is not above.
    pub(super) floor: Sequence,
}

/// Rows after `after` that count, in order, as a page that accounts for every number. `is_all`: no row follows them,
/// so that the rest up to the head is gone.
pub(super) fn page(user: &UserId, after: Sequence, ends: Ends, rows: Vec<Read>, is_all: bool) -> Page {
    let mut page = Page { entries: Vec::with_capacity(rows.len()), covers: after };
    for row in rows {
        let seq = number(row.seq);
        let id = row.id.clone();
        let Some(event) = row.event(user) else {
            tracing::error!(%user, seq, id, "a row of the log cannot be read; it is left out");
            page.miss(seq, ends.floor);
            continue;
        };
        page.miss(seq - 1, ends.floor);
        page.entries.push(Entry::Notification(Notification { seq: Some(seq), event: Arc::new(event) }));
        page.covers = seq;
    }
    if is_all {
        page.miss(ends.head, ends.floor);
    }
    page
}

impl Page {
    /// Notes that nothing comes up to this number.
    fn miss(&mut self, to: Sequence, floor: Sequence) {
        for (end, reason) in [(to.min(floor), GapReason::Evicted), (to, GapReason::Expired)] {
            if self.covers < end {
                self.entries.push(Entry::Gap(Gap { from: self.covers + 1, to: end, reason }));
                self.covers = end;
            }
        }
    }
}

/// A number of the database, which has no unsigned ones.
pub(super) fn number(seq: i64) -> Sequence {
    Sequence::try_from(seq).unwrap_or_default()
}

/// A number for the database.
pub(super) fn signed(seq: Sequence) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::{event::unix_millis_now, fakes};

    const KEEPING: Keeping = Keeping {
        retention: Duration::from_secs(7 * 86_400),
        dedup_window: Duration::from_secs(86_400),
        per_user_max: 10,
    };

    fn event(recorded_at: UnixMillis, ttl: Option<Duration>) -> Event {
        let mut event = (*fakes::durable(&fakes::user(), "id")).clone();
        (event.recorded_at, event.options.ttl) = (recorded_at, ttl);
        event
    }

    fn read(seq: i64) -> Read {
        Read {
            seq,
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

    #[test]
    fn a_ttl_of_an_hour_and_one_of_a_month_never_share_a_partition() {
        let now = unix_millis_now();
        let class =
            |hours: u64| KEEPING.place(&event(now, Some(Duration::from_secs(hours * 3600))), now).unwrap().class.number;
        assert_eq!([1, 24, 25, 8 * 24, 30 * 24, 40 * 24, 20_000].map(class), [0, 0, 1, 1, 2, 3, 3]);
        assert_eq!(KEEPING.place(&event(now, None), now).unwrap().class.number, 1, "log.retention");
    }

    proptest! {
        /// Whatever a record says of its time, its row stands in a partition that exists until the row has expired,
        /// and is looked for where it stands when the record is read again.
        #[test]
        fn a_row_stands_where_it_is_found_again(recorded_at in any::<i64>(), near in -40i64..40, again_after in 0i64..DAY) {
            let now = unix_millis_now();
            for at in [recorded_at, now + near * DAY / 2] {
                let event = event(at, None);
                let place = KEEPING.place(&event, now).unwrap();
                prop_assert!((day(now) - BACK_DAYS..=day(now) + 1).contains(&place.day), "{} {}", at, place.day);
                prop_assert!(place.expires_at > now);
                prop_assert!(day(place.expires_at) <= place.day + place.class.keep_days + 1);
                let again = KEEPING.place(&event, now + again_after).unwrap();
                prop_assert!((again.known_day..=again.day.max(day(now + again_after))).contains(&place.day));
                prop_assert!(event.recorded_at >= again.known_since);
            }
        }

        /// Whatever rows are left, a page accounts for every number once and in order.
        #[test]
        fn a_page_accounts_for_every_number(rows in prop::collection::btree_set(1i64..50, 0..30), floor in 0u64..50, after in 0u64..50) {
            let head = 50;
            let kept: BTreeSet<i64> = rows.into_iter().filter(|seq| *seq > signed(floor.max(after))).collect();
            let page = page(&fakes::user(), after, Ends { head, floor }, kept.iter().map(|seq| read(*seq)).collect(), true);
            let mut covered = Vec::new();
            for entry in &page.entries {
                match entry {
                    Entry::Notification(n) => covered.push(n.seq.unwrap()),
                    Entry::Gap(gap) => {
                        let evicted = gap.reason == GapReason::Evicted;
                        prop_assert_eq!(evicted, gap.to <= floor, "{:?} {}", gap, floor);
                        covered.extend(gap.from..=gap.to);
                    }
                }
            }
            prop_assert_eq!(covered, (after + 1..=head).collect::<Vec<_>>());
            prop_assert_eq!(page.covers, head);
        }
    }
}
