//! The statements of the hot paths, each with the index it needs; a test looks at their plans.

/// The head and the rows come from one moment, so that what is missing between them is known to be gone. The first row
/// comes in any case.
pub(in crate::store) const READ: &str = r"
select h.head, h.floor, p.seq, p.notification_id, p.notification_type, p.payload, p.durability, p.priority,
       p.collapse_key, p.ttl_ms, p.created_at, p.recorded_at, p.found
from heads h
left join (
    select l.*, sum(length(l.payload)) over (order by l.seq) - length(l.payload) as before, count(*) over () as found
    from (
        select * from log
        where user_id = ?1 and seq > max(?2, coalesce((select floor from heads where user_id = ?1), 0))
            and expires_at > ?3
        order by seq limit ?4
    ) l
) p on p.before < ?5
where h.user_id = ?1
order by p.seq";

/// An acknowledgement never lowers a cursor, nor passes the head; a device's first one starts at the shared cursor.
pub(in crate::store) const ACKNOWLEDGE: &str = r"
insert into cursors as c (user_id, device, cursor, used_at)
values (?1, ?2,
        max(min(?3, coalesce((select head from heads where user_id = ?1), 0)),
            coalesce((select cursor from cursors where user_id = ?1 and device = ?2),
                     (select cursor from cursors where user_id = ?1 and device = ''), 0)),
        ?4)
on conflict (user_id, device) do update
    set cursor = max(c.cursor, excluded.cursor), used_at = excluded.used_at";

/// A user's head, the shared cursor, and a device's own.
pub(in crate::store) const OPEN: &str = r"
select coalesce((select head from heads where user_id = ?1), 0),
       coalesce((select cursor from cursors where user_id = ?1 and device = ''), 0),
       (select cursor from cursors where user_id = ?1 and device = ?2)";

/// The rows to come, as many as there are.
pub(in crate::store) const INCOMING: &str = "with incoming (place, user_id, id, known_since) as (";

/// The numbers of those whose id is known. The join's order is fixed: the few rows look into the large table.
pub(in crate::store) const KNOWN: &str = r"
select i.place, max(l.seq)
from incoming i
cross join log l on l.user_id = i.user_id and l.notification_id = i.id and l.recorded_at >= i.known_since
group by i.place";

/// Lets a piece of what has expired go.
pub(in crate::store) const FORGET_EXPIRED: &str =
    "delete from log where rowid in (select rowid from log where expires_at <= ?1 order by expires_at limit ?2)";

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
