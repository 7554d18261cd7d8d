//! What durable engines share, and decide without a database: where a row belongs and how long it is kept, which
//! events of a group need a row at all, and which numbers stand for what.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{
    Appended, metric,
    waiting::{Held, Holding},
};
use crate::{
    event::{Durability, Event, Priority, UnixMillis},
    ids::{NotificationId, Sequence, UserId},
    state::{Reason, State},
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
    /// How long the journal is kept: longer than the log, in whole days.
    pub(super) fn journal_days(&self) -> i64 {
        (millis(self.retention) / DAY + 1).min(KEEP_DAYS_MAX) + 1
    }

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

/// What is wished for one event of a group.
pub(super) struct Wish<'a> {
    event: &'a Event,
    digest: Option<&'a NotificationId>,
}

impl<'a> From<&'a Arc<Event>> for Wish<'a> {
    fn from(event: &'a Arc<Event>) -> Self {
        Self { event, digest: None }
    }
}

impl<'a> From<&'a Holding> for Wish<'a> {
    fn from(holding: &'a Holding) -> Self {
        Self { event: &holding.event, digest: holding.digest.as_ref() }
    }
}

/// One event that needs a row.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) event: &'a Event,
    pub(super) place: Place,
    /// It does not even wait: it is counted in this digest.
    pub(super) digest: Option<&'a NotificationId>,
}

/// What can become of an event of a group.
pub(super) trait Outcome: Copy {
    /// Its time to live was over.
    const EXPIRED: Self;
    /// The database does not accept it.
    const REFUSED: Self;

    /// The same of an event with the same id, later in the group.
    fn again(self) -> Self;
}

impl Outcome for Appended {
    const EXPIRED: Self = Self::Expired;
    const REFUSED: Self = Self::Refused;

    fn again(self) -> Self {
        match self {
            Self::Stored(seq) => Self::Duplicate(seq),
            other => other,
        }
    }
}

impl Outcome for Held {
    const EXPIRED: Self = Self::Expired;
    const REFUSED: Self = Self::Refused;

    fn again(self) -> Self {
        self
    }
}

/// A group of events, told apart by what has to be done for them.
pub(super) struct Group<'a> {
    pub(super) rows: Vec<Row<'a>>,
    fates: Vec<Fate>,
}

#[derive(PartialEq, Eq)]
enum Fate {
    Expired,
    /// Its row.
    Row(usize),
    /// It came twice in this group: the row of the first.
    Again(usize),
}

impl<'a> Group<'a> {
    pub(super) fn new<W: Into<Wish<'a>>>(
        wishes: impl IntoIterator<Item = W>,
        keeping: &Keeping,
        now: UnixMillis,
    ) -> Self {
        let (mut rows, mut fates, mut clamped) = (Vec::<Row<'a>>::new(), Vec::new(), 0);
        let mut seen: HashMap<(&UserId, &NotificationId), usize> = HashMap::new();
        for Wish { event, digest } in wishes.into_iter().map(Into::into) {
            let Some(place) = keeping.place(event, now) else {
                fates.push(Fate::Expired);
                continue;
            };
            clamped += u64::from(place.day != day(event.recorded_at));
            let next = rows.len();
            let first = seen.entry((&event.user, &event.id)).or_insert(next);
            if *first < next && rows[*first].event.recorded_at >= place.known_since {
                fates.push(Fate::Again(*first));
                continue;
            }
            *first = next;
            rows.push(Row { event, place, digest });
            fates.push(Fate::Row(next));
        }
        if clamped > 0 {
            metric::clamped(clamped);
        }
        Self { rows, fates }
    }

    /// What became of every event, from what became of every row.
    pub(super) fn outcomes<T: Outcome>(&self, of_rows: &[T]) -> Vec<T> {
        let outcome = |fate: &Fate| match fate {
            Fate::Expired => T::EXPIRED,
            Fate::Row(row) => of_rows[*row],
            Fate::Again(row) => of_rows[*row].again(),
        };
        self.fates.iter().map(outcome).collect()
    }
}

impl Row<'_> {
    /// How logs call it.
    pub(super) fn name(&self) -> String {
        format!("{} of {}", self.event.id, self.event.user)
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

pub(super) fn priority_of(number: i16) -> Option<Priority> {
    [Priority::Critical, Priority::High, Priority::Normal, Priority::Low]
        .into_iter()
        .find(|priority| priority_number(*priority) == number)
}

/// How the database calls a state. Statements say `state >= 3` for ends.
pub(super) fn state_number(state: State) -> i16 {
    match state {
        State::Pending => 0,
        State::Active => 1,
        State::Stale => 2,
        State::Sent => 3,
        State::Failed => 4,
        State::Deleted => 5,
    }
}

pub(super) fn state_of(number: i16) -> Option<State> {
    State::ALL.into_iter().find(|state| state_number(*state) == number)
}

/// How the database calls a reason.
pub(super) fn reason_number(reason: Reason) -> i16 {
    match reason {
        Reason::Expired => 0,
        Reason::Evicted => 1,
        Reason::Superseded => 2,
        Reason::Digested => 3,
        Reason::Cancelled => 4,
        Reason::NoSession => 5,
        Reason::Away => 6,
        Reason::RateLimited => 7,
        Reason::Unstorable => 8,
    }
}

pub(super) fn reason_of(number: i16) -> Option<Reason> {
    Reason::ALL.into_iter().find(|reason| reason_number(*reason) == number)
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
    use std::sync::Arc;

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

    #[test]
    fn a_ttl_of_an_hour_and_one_of_a_month_never_share_a_partition() {
        let now = unix_millis_now();
        let class =
            |hours: u64| KEEPING.place(&event(now, Some(Duration::from_secs(hours * 3600))), now).unwrap().class.number;
        assert_eq!([1, 24, 25, 8 * 24, 30 * 24, 40 * 24, 20_000].map(class), [0, 0, 1, 1, 2, 3, 3]);
        assert_eq!(KEEPING.place(&event(now, None), now).unwrap().class.number, 1, "log.retention");
    }

    /// Statements and rows that are written already say these numbers.
    #[test]
    fn numbers_of_states_and_reasons_never_change_and_read_what_they_write() {
        for state in State::ALL {
            assert_eq!(state_of(state_number(state)), Some(state));
            assert_eq!(state.is_end(), state_number(state) >= 3, "statements ask for ends so");
        }
        for (number, reason) in (0..).zip(Reason::ALL) {
            assert_eq!((reason_number(reason), reason_of(number)), (number, Some(reason)));
        }
    }

    #[test]
    fn two_with_one_id_have_the_row_of_the_first() {
        let (first, copy) = (event(unix_millis_now(), None), event(unix_millis_now(), None));
        let group = [first, copy].map(Arc::new);
        let appended = Group::new(&group, &KEEPING, unix_millis_now());
        assert_eq!(appended.rows.len(), 1);
        let expected = [Appended::Stored(7), Appended::Duplicate(7)];
        assert_eq!(appended.outcomes(&[Appended::Stored(7)]), expected);
        let group = group.map(|event| Holding { event, digest: None });
        let held = Group::new(&group, &KEEPING, unix_millis_now());
        assert_eq!((held.rows.len(), held.outcomes(&[Held::Waiting])), (1, vec![Held::Waiting; 2]));
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
    }
}
