//! The statements of the hot paths, each with the index it needs; a test looks at their plans.

/// The head and the rows come from one moment, so that what is missing between them is known to be gone. The first row
/// comes in any case.
pub(in crate::store) const READ: &str = r"
select h.head, h.floor, p.found, p.seq, p.removed, p.notification_id, p.notification_type, p.payload, p.durability,
       p.priority, p.collapse_key, p.ttl_ms, p.created_at, p.recorded_at
from heads h
left join (
    select l.*, sum(length(l.payload)) over (order by l.seq) - length(l.payload) as before, count(*) over () as found
    from (
        select *, (select r.reason from removed r where r.user_id = ?1 and r.seq = log.seq) as removed
        from log
        where user_id = ?1 and seq > max(?2, coalesce((select floor from heads where user_id = ?1), 0))
            and expires_at > ?3
        order by seq limit ?4
    ) l
) p on p.before < ?5
where h.user_id = ?1
order by p.seq";

/// What was acknowledged, as many rows as there are.
pub(in crate::store) const ACKNOWLEDGED: &str = "with acknowledged (user_id, device, seq, at) as (";

/// An acknowledgement never lowers a cursor, nor passes the head; a device's first one starts at the shared cursor.
pub(in crate::store) const ACKNOWLEDGE: &str = r"
insert into cursors as c (user_id, device, cursor, used_at)
select a.user_id, a.device,
       max(min(a.seq, coalesce((select head from heads where user_id = a.user_id), 0)),
           coalesce((select cursor from cursors where user_id = a.user_id and device = a.device),
                    (select cursor from cursors where user_id = a.user_id and device = ''), 0)),
       a.at
from acknowledged a
where true
on conflict (user_id, device) do update
    set cursor = max(c.cursor, excluded.cursor), used_at = excluded.used_at";

/// A user's head, the shared cursor, a device's own, and the highest.
pub(in crate::store) const OPEN: &str = r"
select coalesce((select head from heads where user_id = ?1), 0),
       coalesce((select cursor from cursors where user_id = ?1 and device = ''), 0),
       (select cursor from cursors where user_id = ?1 and device = ?2),
       coalesce((select max(cursor) from cursors where user_id = ?1), 0)";

/// The rows to come, as many as there are.
pub(in crate::store) const INCOMING: &str = "with incoming (place, user_id, id, known_since) as (";

/// The numbers of those whose id is known. The join's order is fixed: the few rows look into the large table.
pub(in crate::store) const KNOWN: &str = r"
select i.place, max(l.seq)
from incoming i
cross join log l on l.user_id = i.user_id and l.notification_id = i.id and l.recorded_at >= i.known_since
group by i.place";

/// What stands for these ids among those that wait.
pub(in crate::store) const STANDING_WAITING: &str = r"
select i.place, w.place, w.ended, w.digest
from incoming i
cross join waiting w on w.user_id = i.user_id and w.notification_id = i.id";

/// They wait no more; the places follow.
pub(in crate::store) const RELEASE: &str = "delete from waiting where place in (";

/// A piece of what has expired.
macro_rules! expired {
    () => {
        "(select rowid from log where expires_at <= ?1 order by expires_at, rowid limit ?2)"
    };
}

/// Notes what of that piece had not ended before.
pub(in crate::store) const NOTE_EXPIRED: &str = concat!(
    "
insert into journal (user_id, first, last, ids, state, reason, at)
select l.user_id, l.seq, l.seq, l.notification_id, 5,
       l.seq <= coalesce((select floor from heads where user_id = l.user_id), 0), ?1
from log l
where l.rowid in ",
    expired!(),
    "
    and l.seq > coalesce((select max(cursor) from cursors where user_id = l.user_id), 0)
    and not exists (select 1 from removed r where r.user_id = l.user_id and r.seq = l.seq)
order by l.user_id, l.seq"
);

/// Lets that piece go.
pub(in crate::store) const FORGET_EXPIRED: &str = concat!("delete from log where rowid in ", expired!());

/// Lets a piece of the journal go.
pub(in crate::store) const FORGET_JOURNAL: &str =
    "delete from journal where place in (select place from journal where at < ?1 order by at limit ?2)";

macro_rules! expired_waiting {
    () => {
        "(select place from waiting where expires_at <= ?1 and not owed order by expires_at, place limit ?2)"
    };
}

/// Notes what of a piece of those that have expired still waited.
pub(in crate::store) const NOTE_EXPIRED_WAITING: &str = concat!(
    "
insert into journal (user_id, first, last, ids, state, reason, at, shard)
select user_id, 0, 0, notification_id, 5, 0, ?1, shard from waiting
where ended is null and place in ",
    expired_waiting!()
);

/// Lets that piece go.
pub(in crate::store) const FORGET_WAITING: &str = concat!("delete from waiting where place in ", expired_waiting!());

/// Numbers of which the log knows nothing any more need no reason.
pub(in crate::store) const FORGET_REMOVED: &str = r"
delete from removed where (user_id, seq) in (
    select user_id, seq from removed where expires_at <= ?1 order by expires_at limit ?2)";

macro_rules! note {
    () => {
        "
insert into journal (user_id, first, last, ids, state, reason, session, device, handed_at, at, shard) "
    };
}

/// Adds to the journal what does not stand there yet.
macro_rules! note_again {
    ($index:literal, $found_by:literal) => {
        concat!(
            note!(),
            "select ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11
where not exists (
    select 1 from journal indexed by ",
            $index,
            " where user_id = ?1 and ",
            $found_by,
            " and at = ?10 and state = ?5 and session is ?7 and device is ?8)"
        )
    };
}

/// Adds entries to the journal; they follow.
pub(in crate::store) const NOTE: &str = note!();

/// Adds an entry of a stretch of numbers that may stand there already.
pub(in crate::store) const NOTE_AGAIN: &str = note_again!("journal_numbers", "last = ?3 and first = ?2");

/// Adds an entry of what has no number that may stand there already.
pub(in crate::store) const NOTE_UNNUMBERED_AGAIN: &str = note_again!("journal_ids", "last = 0 and ids = ?4");

/// One that waits ends.
pub(in crate::store) const END: &str = r"
update waiting set ended = ?3, ended_at = ?4 where user_id = ?1 and notification_id = ?2 and ended is null";

/// A digest is in its user's log.
pub(in crate::store) const DIGESTED: &str =
    "update waiting set owed = 0 where user_id = ?1 and digest = ?2 and (ended is null or owed)";

/// What waits for a user, in the order in which it was held back.
pub(in crate::store) const BACKLOG: &str = r"
select notification_id, notification_type, payload, durability, priority, collapse_key, ttl_ms, created_at, recorded_at
from waiting where user_id = ?1 and ended is null order by place";

/// What digests that a user is owed have to say.
pub(in crate::store) const OWED: &str = r"
select digest, notification_type, count(*), min(recorded_at), max(recorded_at)
from waiting where user_id = ?1 and owed and (ended is null or owed) and digest is not null
group by digest, notification_type order by digest, notification_type";

/// Users for whom something waits, or to whom a digest is owed.
pub(in crate::store) const USERS_WAITING: &str = "select distinct user_id from waiting where ended is null or owed";

/// One notification of the log: the newest with this id.
pub(in crate::store) const ACCOUNT: &str = r"
select l.notification_id, l.notification_type, l.payload, l.durability, l.priority, l.collapse_key, l.ttl_ms,
       l.created_at, l.recorded_at, l.stored_at, l.expires_at, l.seq,
       coalesce((select floor from heads where user_id = ?1), 0),
       coalesce((select max(cursor) from cursors where user_id = ?1), 0),
       (select r.reason from removed r where r.user_id = ?1 and r.seq = l.seq),
       (select r.at from removed r where r.user_id = ?1 and r.seq = l.seq)
from log l indexed by log_ids where l.user_id = ?1 and l.notification_id = ?2
order by l.seq desc limit 1";

/// One notification that waits, or has ended while it waited.
pub(in crate::store) const ACCOUNT_WAITING: &str = r"
select notification_id, notification_type, payload, durability, priority, collapse_key, ttl_ms, created_at,
       recorded_at, held_at, expires_at, null, 0, 0, ended, ended_at
from waiting where user_id = ?1 and notification_id = ?2";

/// The last entries that cover a number, or name an id that has none. None covers more than a thousand numbers
/// (src/store/steps.rs), so none that ends far behind this one is looked at.
pub(in crate::store) const STEPS: &str = r"
select user_id, first, last, ids, state, reason, session, device, handed_at, at
from (
    select * from journal indexed by journal_numbers
    where ?2 > 0 and user_id = ?1 and last between ?2 and ?2 + 999 and first <= ?2
    union all
    select * from journal where user_id = ?1 and last = 0 and ids = ?3
) j
order by at desc, place desc limit ?4";

/// Entries that say that something has ended. One connection writes, so none can come before what was read.
pub(in crate::store) const ENDED_AFTER: &str = r"
select place, user_id, first, last, ids, state, reason, session, device, handed_at, at
from journal indexed by journal_ended where state >= 3 and place > ?1 order by place limit ?2";

/// Up to where receipts were written.
pub(in crate::store) const RECEIPTED: &str = "select receipted from meta";

/// The ids of a stretch of numbers, without what was taken back, or superseded.
pub(in crate::store) const IDS: &str = r"
select l.notification_id from log l
where l.user_id = ?1 and l.seq between ?2 and ?3
    and not exists (select 1 from removed r where r.user_id = ?1 and r.seq = l.seq)
order by l.seq";

/// The ids of what was taken back, or superseded, in a stretch of numbers.
pub(in crate::store) const REMOVED: &str = r"
select l.notification_id from removed r cross join log l on l.user_id = r.user_id and l.seq = r.seq
where r.user_id = ?1 and r.seq between ?2 and ?3";

/// How a numbered notification stands.
pub(in crate::store) const STANDING: &str = r"
select l.seq, l.expires_at, coalesce((select floor from heads where user_id = ?1), 0),
       coalesce((select max(cursor) from cursors where user_id = ?1), 0),
       (select r.reason from removed r where r.user_id = ?1 and r.seq = l.seq)
from log l indexed by log_ids where l.user_id = ?1 and l.notification_id = ?2
order by l.seq desc limit 1";

/// Sees that a number is not delivered.
pub(in crate::store) const REMOVE: &str = r"
insert into removed (user_id, seq, reason, at, expires_at)
select user_id, seq, ?3, ?4, expires_at from log where user_id = ?1 and seq = ?2";

/// What is older, has the same key, and was given to nobody. Of what did not come together with the newer one, the last
/// few are looked at: all that was older was superseded when these came.
pub(in crate::store) const SUPERSEDED: &str = r"
with given (seq) as materialized (
    select max(coalesce((select floor from heads where user_id = ?1), 0),
               coalesce((select max(cursor) from cursors where user_id = ?1), 0),
               coalesce((select last from journal indexed by journal_given
                         where user_id = ?1 and state in (1, 2, 3) order by last desc limit 1), 0))
), older (seq, notification_id, expires_at) as (
    select seq, notification_id, expires_at from log indexed by log_keys
    where user_id = ?1 and collapse_key = ?2 and seq >= max(?4, (select seq + 1 from given)) and seq < ?3
    union all
    select * from (
        select seq, notification_id, expires_at from log indexed by log_keys
        where user_id = ?1 and collapse_key = ?2 and seq > (select seq from given) and seq < min(?4, ?3)
        order by seq desc limit ?6)
)
select o.seq, o.notification_id from older o
where o.expires_at > ?5 and not exists (select 1 from removed r where r.user_id = ?1 and r.seq = o.seq)
order by o.seq";

/// Forgets the devices of a user that were not used for longest.
pub(in crate::store) const FORGET_DEVICES: &str = r"
delete from cursors
where user_id = ?1 and device in (
    select device from cursors where user_id = ?1 and device <> '' order by used_at desc, device limit -1 offset ?2
)";

/// A started session that holds.
pub(in crate::store) const FIND_SESSION: &str =
    "select user_id, expires_at from sessions where session = ?1 and expires_at > ?2";

/// A user's started sessions that hold.
pub(in crate::store) const SESSIONS_OF_USER: &str =
    "select session, expires_at from sessions where user_id = ?1 and expires_at > ?2 order by expires_at, session";

/// Forgets started sessions that are over.
pub(in crate::store) const FORGET_SESSIONS: &str = "delete from sessions where expires_at <= ?1";
