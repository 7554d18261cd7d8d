//! The statements of the hot paths, each with the index it needs; a test looks at their plans.

/// The claims' rows are locked in the order of shards until the statement ends: raising an epoch waits for it, or
/// makes it find nothing. `fence` is read to its end by the last part, so that every row of it is locked and a shard
/// that it lacks was lost. Rows of an id that is known get their old number; the rest get the next ones of their user.
/// Partitions are told apart by class first: only with its number can the server leave out those of other days.
pub(in crate::store) const APPEND: &str = r"
with fence as materialized (
    select c.shard
    from shard_claims c
    join unnest($1::integer[], $2::bigint[]) as held (shard, epoch) on c.shard = held.shard and c.epoch = held.epoch
    where c.owner = $3
    order by c.shard
    for no key update of c
), incoming as materialized (
    select i.*, coalesce(
        (select l.seq from log l where l.class = 0 and l.day between i.known_day and $20
            and l.user_id = i.user_id and l.notification_id = i.notification_id
            and l.recorded_at >= i.known_since limit 1),
        (select l.seq from log l where l.class = 1 and l.day between i.known_day and $20
            and l.user_id = i.user_id and l.notification_id = i.notification_id
            and l.recorded_at >= i.known_since limit 1),
        (select l.seq from log l where l.class = 2 and l.day between i.known_day and $20
            and l.user_id = i.user_id and l.notification_id = i.notification_id
            and l.recorded_at >= i.known_since limit 1),
        (select l.seq from log l where l.class = 3 and l.day between i.known_day and $20
            and l.user_id = i.user_id and l.notification_id = i.notification_id
            and l.recorded_at >= i.known_since limit 1)) as known
    from unnest($4::integer[], $5::text[], $6::text[], $7::smallint[], $8::integer[], $9::bigint[], $10::integer[],
                $11::text[], $12::bytea[], $13::smallint[], $14::smallint[], $15::text[], $16::bigint[],
                $17::bigint[], $18::bigint[], $19::bigint[])
        with ordinality as i (shard, user_id, notification_id, class, day, known_since, known_day, notification_type,
                              payload, durability, priority, collapse_key, ttl_ms, created_at, recorded_at,
                              expires_at, place)
), fresh as materialized (
    select i.*, row_number() over (partition by i.user_id order by i.place) as nth,
           count(*) over (partition by i.user_id) as of_user
    from incoming i
    join fence f on f.shard = i.shard
    where i.known is null
), grown as (
    insert into heads as h (user_id, head, floor)
    select user_id, max(of_user), greatest(max(of_user) - $21, 0) from fresh group by user_id order by user_id
    on conflict (user_id) do update
        set head = h.head + excluded.head, floor = greatest(h.floor, h.head + excluded.head - $21)
    returning user_id, head
), numbered as materialized (
    select f.*, g.head - f.of_user + f.nth as seq from fresh f join grown g on g.user_id = f.user_id
), written as (
    insert into log (user_id, seq, notification_id, class, day, notification_type, payload, durability, priority,
                     collapse_key, ttl_ms, created_at, recorded_at, stored_at, expires_at)
    select user_id, seq, notification_id, class, day, notification_type, payload, durability, priority,
           collapse_key, ttl_ms, created_at, recorded_at, $22, expires_at
    from numbered
)
select 0 as kind, place, known as seq from incoming where known is not null
union all select 1, place, seq from numbered
union all select 2, shard, 0 from fence";

/// The head and the rows come from one moment, so that what is missing between them is known to be gone. Bytes are
/// counted before they are fetched; the first row comes in any case.
pub(in crate::store) const READ: &str = r"
select h.head, h.floor, p.seq, p.notification_id, p.notification_type, p.payload, p.durability, p.priority,
       p.collapse_key, p.ttl_ms, p.created_at, p.recorded_at, p.found
from heads h
left join lateral (
    select l.*, sum(octet_length(l.payload)) over (order by l.seq) - octet_length(l.payload) as before,
           count(*) over () as found
    from (
        select * from log
        where user_id = $1 and seq > greatest($2, h.floor) and expires_at > $3
        order by seq limit $4
    ) l
) p on p.before < $5
where h.user_id = $1
order by p.seq";

/// An acknowledgement never lowers a cursor, nor passes the head; a device's first one starts at the shared cursor.
pub(in crate::store) const ACKNOWLEDGE: &str = r"
insert into cursors as c (user_id, device, cursor, used_at)
select a.user_id, a.device,
       greatest(least(a.seq, coalesce((select head from heads where user_id = a.user_id), 0)),
                coalesce((select cursor from cursors where user_id = a.user_id and device = a.device),
                         (select cursor from cursors where user_id = a.user_id and device = ''), 0)),
       $4
from unnest($1::text[], $2::text[], $3::bigint[]) as a (user_id, device, seq)
order by a.user_id, a.device
on conflict (user_id, device) do update
    set cursor = greatest(c.cursor, excluded.cursor), used_at = excluded.used_at";

/// A user's head, the shared cursor, and a device's own.
pub(in crate::store) const OPEN: &str = r"
select coalesce((select head from heads where user_id = $1), 0),
       coalesce((select cursor from cursors where user_id = $1 and device = ''), 0),
       (select cursor from cursors where user_id = $1 and device = $2)";

/// Forgets the devices of a user that were not used for longest.
pub(in crate::store) const FORGET_DEVICES: &str = r"
delete from cursors
where user_id = $1 and device in (
    select device from cursors where user_id = $1 and device <> '' order by used_at desc, device offset $2
)";

/// A started session that holds.
pub(in crate::store) const FIND_SESSION: &str =
    "select user_id, expires_at from sessions where session = $1 and expires_at > $2";

/// A user's started sessions that hold.
pub(in crate::store) const SESSIONS_OF_USER: &str =
    "select session, expires_at from sessions where user_id = $1 and expires_at > $2 order by expires_at, session";

/// Forgets started sessions that are over.
pub(in crate::store) const FORGET_SESSIONS: &str = "delete from sessions where expires_at <= $1";
