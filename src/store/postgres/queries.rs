//! The statements of the hot paths, each with the index it needs; a test looks at their plans.

/// The claims' rows are locked in the order of shards until the transaction ends: raising an epoch, which locks them
/// `for update`, waits for it, or makes it find nothing. Every statement that writes reads it to its end, so that every
/// row of it is locked, and a shard that it lacks was lost.
macro_rules! fence_rows {
    ($lock:literal) => {
        concat!(
            "
    select c.shard
    from shard_claims c
    join unnest($1::integer[], $2::bigint[]) as held (shard, epoch) on c.shard = held.shard and c.epoch = held.epoch
    where c.owner = $3 and c.shard = any($1::integer[])
    order by c.shard
    for ",
            $lock,
            " of c"
        )
    };
}

macro_rules! fence {
    () => {
        concat!("with fence as materialized (", fence_rows!("no key update"), ")")
    };
}

/// For what stands beside the statements that give numbers, and does not wait for them.
macro_rules! fence_beside {
    () => {
        concat!("with fence as materialized (", fence_rows!("key share"), ")")
    };
}

/// A group of events with the number that stands in the log for their id. Partitions are told apart by class first: only
/// with its number can the server leave out those of other days. It does so once, before it begins: the days are the
/// group's, not the row's.
macro_rules! incoming {
    () => {
        "
    select i.*, coalesce(
        (select l.seq from log l where l.class = 0 and l.day between $10 and $20
            and l.user_id = i.user_id and l.notification_id = i.notification_id
            and l.recorded_at >= i.known_since limit 1),
        (select l.seq from log l where l.class = 1 and l.day between $10 and $20
            and l.user_id = i.user_id and l.notification_id = i.notification_id
            and l.recorded_at >= i.known_since limit 1),
        (select l.seq from log l where l.class = 2 and l.day between $10 and $20
            and l.user_id = i.user_id and l.notification_id = i.notification_id
            and l.recorded_at >= i.known_since limit 1),
        (select l.seq from log l where l.class = 3 and l.day between $10 and $20
            and l.user_id = i.user_id and l.notification_id = i.notification_id
            and l.recorded_at >= i.known_since limit 1)) as known
    from unnest($4::integer[], $5::text[], $6::text[], $7::smallint[], $8::integer[], $9::bigint[],
                $11::text[], $12::bytea[], $13::smallint[], $14::smallint[], $15::text[], $16::bigint[],
                $17::bigint[], $18::bigint[], $19::bigint[], $22::text[])
        with ordinality as i (shard, user_id, notification_id, class, day, known_since, notification_type,
                              payload, durability, priority, collapse_key, ttl_ms, created_at, recorded_at,
                              expires_at, digest, nth)"
    };
}

/// Rows of an id that is known get their old number; one that has waited waits no more: its row there goes, unless it
/// has ended, and then it gets no number. The rest get the next numbers of their user. What another statement has ended
/// while this one waited for the fence is not among the released.
pub(in crate::store) const APPEND: &str = concat!(
    fence!(),
    ", waited as materialized (
    select i.*, (select case when w.ended is null then w.place else 0 end from waiting w
                 where w.user_id = i.user_id and w.notification_id = i.notification_id) as held
    from (",
    incoming!(),
    ") i
), released as (
    delete from waiting w
    where w.place = any(array(select i.held from waited i join fence f on f.shard = i.shard
                              where i.held > 0 and i.known is null)) and w.ended is null
    returning w.place
), fresh as materialized (
    select i.*, row_number() over (partition by i.user_id order by i.nth) as rank,
           count(*) over (partition by i.user_id) as of_user
    from waited i
    join fence f on f.shard = i.shard
    where i.known is null and (i.held is null or i.held in (select place from released))
), grown as (
    insert into heads as h (user_id, head, floor)
    select user_id, max(of_user), greatest(max(of_user) - $23, 0) from fresh group by user_id order by user_id
    on conflict (user_id) do update
        set head = h.head + excluded.head, floor = greatest(h.floor, h.head + excluded.head - $23)
    returning user_id, head
), numbered as materialized (
    select f.*, g.head - f.of_user + f.rank as seq from fresh f join grown g on g.user_id = f.user_id
), written as (
    insert into log (user_id, seq, notification_id, class, day, notification_type, payload, durability, priority,
                     collapse_key, ttl_ms, created_at, recorded_at, stored_at, expires_at)
    select user_id, seq, notification_id, class, day, notification_type, payload, durability, priority,
           collapse_key, ttl_ms, created_at, recorded_at, $21, expires_at
    from numbered
)
select 0 as kind, nth, known as seq from waited where known is not null
union all select 1, nth, seq from numbered
union all select 3, i.nth, 0 from waited i join fence f on f.shard = i.shard
    where i.known is null and i.held is not null and i.held not in (select place from released)
union all select 2, shard, 0 from fence"
);

/// What is neither in the log nor among those that wait is kept there; with a digest it ends at once. One that waits
/// already, or is counted in this very digest, is what an earlier attempt has left.
pub(in crate::store) const HOLD: &str = concat!(
    fence!(),
    ", waited as materialized (
    select i.*, (select case when w.ended is null or w.digest = i.digest then 1 else 3 end from waiting w
                 where w.user_id = i.user_id and w.notification_id = i.notification_id) as held
    from (",
    incoming!(),
    ") i
), fresh as materialized (
    select i.* from waited i join fence f on f.shard = i.shard where i.known is null and i.held is null
), kept as (
    insert into waiting (user_id, notification_id, notification_type, payload, durability, priority, collapse_key,
                         ttl_ms, created_at, recorded_at, expires_at, shard, held_at, ended, ended_at, digest, owed)
    select user_id, notification_id, notification_type, payload, durability, priority, collapse_key,
           ttl_ms, created_at, recorded_at, expires_at, shard, $21::bigint, case when digest is not null then 3 end,
           case when digest is not null then $21::bigint end, digest, digest is not null
    from fresh order by nth
), noted as (
    insert into journal (user_id, first, last, ids, state, reason, at, shard)
    select user_id, 0, 0, array[notification_id], 5, 3, $21, shard from fresh where digest is not null order by nth
)
select 0 as kind, nth, known as seq from waited where known is not null
union all select 1, nth, 0 from fresh
union all select held, nth, 0 from waited where known is null and held is not null
union all select 2, shard, 0 from fence"
);

/// The head and the rows come from one moment, so that what is missing between them is known to be gone. Bytes are
/// counted before they are fetched; the first row comes in any case.
pub(in crate::store) const READ: &str = r"
select h.head, h.floor, p.found, p.seq, p.removed, p.notification_id, p.notification_type, p.payload, p.durability,
       p.priority, p.collapse_key, p.ttl_ms, p.created_at, p.recorded_at
from heads h
left join lateral (
    select l.*, sum(octet_length(l.payload)) over (order by l.seq) - octet_length(l.payload) as before,
           count(*) over () as found
    from (
        select *, (select r.reason from removed r where r.user_id = $1 and r.seq = log.seq) as removed
        from log
        where user_id = $1 and seq > greatest($2, h.floor) and expires_at > $3
        order by seq limit $4
    ) l
) p on p.before < $5
where h.user_id = $1
order by p.seq";

macro_rules! acknowledge {
    ($unless_noted:literal) => {
        concat!(
            fence_beside!(),
            ", raised as (
    insert into cursors as c (user_id, device, cursor, used_at)
    select a.user_id, a.device,
           greatest(least(a.seq, coalesce((select head from heads where user_id = a.user_id), 0)),
                    coalesce((select cursor from cursors where user_id = a.user_id and device = a.device),
                             (select cursor from cursors where user_id = a.user_id and device = ''), 0)),
           $8
    from unnest($4::integer[], $5::text[], $6::text[], $7::bigint[]) as a (shard, user_id, device, seq)
    join fence f on f.shard = a.shard
    order by a.user_id, a.device
    on conflict (user_id, device) do update
        set cursor = greatest(c.cursor, excluded.cursor), used_at = excluded.used_at
), steps as materialized (
    select s.shard, s.user_id, s.first, s.last, string_to_array(s.ids, chr(31)) as ids, s.state, s.reason, s.session,
           s.device, s.handed_at, s.at, s.nth
    from unnest($9::integer[], $10::text[], $11::bigint[], $12::bigint[], $13::text[], $14::smallint[],
                $15::smallint[], $16::text[], $17::text[], $18::bigint[], $19::bigint[])
        with ordinality as s (shard, user_id, first, last, ids, state, reason, session, device, handed_at, at, nth)
    join fence f on f.shard = s.shard
), noted as (
    insert into journal (user_id, first, last, ids, state, reason, session, device, handed_at, at, shard)
    select s.user_id, s.first, s.last, s.ids, s.state, s.reason, s.session, s.device, s.handed_at, s.at, s.shard
    from steps s",
            $unless_noted,
            "
    order by s.nth
)
select shard from fence"
        )
    };
}

/// An acknowledgement never lowers a cursor, nor passes the head; a device's first one starts at the shared cursor.
pub(in crate::store) const ACKNOWLEDGE: &str = acknowledge!("");

/// The same once more, because it is not known whether it happened: what stands in the journal is not noted again.
pub(in crate::store) const ACKNOWLEDGE_AGAIN: &str = acknowledge!(
    "
    where case when s.last > 0
        then (select 1 from journal j where j.user_id = s.user_id and j.last = s.last and j.first = s.first
                  and j.at = s.at and j.state = s.state and j.session is not distinct from s.session
                  and j.device is not distinct from s.device limit 1)
        else (select 1 from journal j where j.user_id = s.user_id and j.last = 0 and j.ids = s.ids
                  and j.at = s.at and j.state = s.state and j.session is not distinct from s.session
                  and j.device is not distinct from s.device limit 1)
        end is null"
);

/// The fence alone: what follows in its transaction sees all that was written before it was taken, notes too.
pub(in crate::store) const FENCE: &str = fence_rows!("update");

/// Ends some of those that still wait, and notes it.
pub(in crate::store) const END: &str = concat!(
    fence!(),
    ", ended as (
    update waiting w set ended = e.reason, ended_at = $8
    from unnest($4::integer[], $5::text[], $6::text[], $7::smallint[]) as e (shard, user_id, notification_id, reason)
    join fence f on f.shard = e.shard
    where w.user_id = e.user_id and w.notification_id = e.notification_id and w.ended is null
    returning w.user_id, w.notification_id, w.ended, w.shard
), noted as (
    insert into journal (user_id, first, last, ids, state, reason, at, shard)
    select user_id, 0, 0, array[notification_id], 5, ended, $8, shard from ended
)
select shard from fence"
);

/// A digest is in its user's log.
pub(in crate::store) const DIGESTED: &str = concat!(
    fence!(),
    ", told as (
    update waiting w set owed = false
    from unnest($4::integer[], $5::text[], $6::text[]) as d (shard, user_id, digest)
    join fence f on f.shard = d.shard
    where w.user_id = d.user_id and w.digest = d.digest and w.owed
)
select shard from fence"
);

/// What waits for a user, in the order in which it was held back.
pub(in crate::store) const BACKLOG: &str = "
select notification_id, notification_type, payload, durability, priority, collapse_key, ttl_ms, created_at, recorded_at
from waiting where user_id = $1 and ended is null order by place";

/// What digests that a user is owed have to say.
pub(in crate::store) const OWED: &str = "
select digest, notification_type, count(*), min(recorded_at), max(recorded_at)
from waiting where user_id = $1 and owed and digest is not null
group by digest, notification_type order by digest, notification_type";

/// Users for whom something waits, or to whom a digest is owed.
pub(in crate::store) const USERS_WAITING: &str = "select distinct user_id from waiting where ended is null or owed";

/// One notification of the log: the newest with this id.
pub(in crate::store) const ACCOUNT: &str = "
select l.notification_id, l.notification_type, l.payload, l.durability, l.priority, l.collapse_key, l.ttl_ms,
       l.created_at, l.recorded_at, l.stored_at, l.expires_at, l.seq,
       coalesce((select floor from heads where user_id = $1), 0),
       coalesce((select max(cursor) from cursors where user_id = $1), 0),
       (select r.reason from removed r where r.user_id = $1 and r.seq = l.seq),
       (select r.at from removed r where r.user_id = $1 and r.seq = l.seq)
from (select * from log where user_id = $1 and notification_id = $2 offset 0) l
order by l.seq desc limit 1";

/// One notification that waits, or has ended while it waited.
pub(in crate::store) const ACCOUNT_WAITING: &str = "
select notification_id, notification_type, payload, durability, priority, collapse_key, ttl_ms, created_at,
       recorded_at, held_at, expires_at, null::bigint, 0::bigint, 0::bigint, ended, ended_at
from waiting where user_id = $1 and notification_id = $2";

/// The last entries that cover a number, or name an id that has none. None covers more than a thousand numbers
/// (src/store/steps.rs), so none that ends far behind this one is looked at.
pub(in crate::store) const STEPS: &str = "
select user_id, first, last, array_to_string(ids, chr(31)), state, reason, session, device, handed_at, at
from (
    select * from journal where user_id = $1 and $2 > 0 and last between $2 and $2 + 999 and first <= $2
    union all
    select * from journal where user_id = $1 and last = 0 and ids = array[$3::text]
) j
order by at desc, place desc limit $4";

/// Entries that say that something has ended. An entry of a transaction that still runs, or begins later, stands above
/// those of all transactions that are over: so nothing can come before what was read.
pub(in crate::store) const ENDED_AFTER: &str = "
select xid::text, place, user_id, first, last, array_to_string(ids, chr(31)), state, reason, session, device,
       handed_at, at
from journal
where state >= 3 and (xid, place) > ($1::text::xid8, $2) and xid < pg_snapshot_xmin(pg_current_snapshot())
order by xid, place limit $3";

/// The ids of these stretches of numbers, without what was taken back, or superseded.
pub(in crate::store) const IDS: &str = "
select a.nth, l.notification_id
from unnest($1::text[], $2::bigint[], $3::bigint[]) with ordinality as a (user_id, first, last, nth)
cross join lateral (
    select seq, notification_id from log
    where user_id = a.user_id and seq between a.first and a.last
        and (select 1 from removed r where r.user_id = a.user_id and r.seq = log.seq) is null
    offset 0
) l
order by a.nth, l.seq";

/// The ids of what was taken back, or superseded, in these stretches of numbers.
pub(in crate::store) const REMOVED: &str = "
select a.nth, l.notification_id
from unnest($1::text[], $2::bigint[], $3::bigint[]) with ordinality as a (user_id, first, last, nth)
cross join lateral (
    select (select notification_id from log where user_id = a.user_id and seq = removed.seq) as notification_id
    from removed where user_id = a.user_id and seq between a.first and a.last
    offset 0
) l
where l.notification_id is not null";

/// One that waits ends.
pub(in crate::store) const CANCEL_WAITING: &str = "
with ended as (
    update waiting set ended = $3, ended_at = $4
    where user_id = $1 and notification_id = $2 and ended is null
    returning user_id, notification_id, ended, shard
)
insert into journal (user_id, first, last, ids, state, reason, at, shard)
select user_id, 0, 0, array[notification_id], 5, ended, $4, shard from ended";

/// How a numbered notification stands.
pub(in crate::store) const STANDING: &str = "
select l.seq, l.expires_at, coalesce((select floor from heads where user_id = $1), 0),
       coalesce((select max(cursor) from cursors where user_id = $1), 0),
       (select r.reason from removed r where r.user_id = $1 and r.seq = l.seq)
from (select * from log where user_id = $1 and notification_id = $2 offset 0) l
order by l.seq desc limit 1";

/// A row of the log is certain to be gone with its partition (src/store/postgres/days.rs) so many days after its own,
/// by its class.
#[cfg(test)]
pub(in crate::store) const GONE_AFTER_DAYS: [i64; 4] = [4, 11, 41, 433];

macro_rules! gone_at {
    () => {
        "(l.day + (array[4, 11, 41, 433])[l.class + 1])::bigint * 86400000"
    };
}

/// Sees that a number is not delivered, and notes it.
pub(in crate::store) const REMOVE: &str = concat!(
    "
with taken as (
    insert into removed (user_id, seq, reason, at, expires_at)
    select l.user_id, l.seq, $4, $5, ",
    gone_at!(),
    "
    from log l where l.user_id = $1 and l.seq = $3
    returning seq
)
insert into journal (user_id, first, last, ids, state, reason, at, shard)
select $1, seq, seq, array[$2::text], 5, $4, $5, $6 from taken"
);

/// Sees that what is older, has the same key, and was given to nobody is not delivered, and notes it. Of what did not
/// come together with the newer one, the last few are looked at: all that was older was superseded when these came.
pub(in crate::store) const SUPERSEDE: &str = concat!(
    "
with gone as materialized (
    select distinct on (l.user_id, l.seq) l.*, s.shard
    from unnest($1::integer[], $2::text[], $3::text[], $4::bigint[], $5::bigint[])
        as s (shard, user_id, collapse_key, seq, together_from)
    cross join lateral (
        select greatest(
            coalesce((select floor from heads where user_id = s.user_id), 0),
            coalesce((select max(cursor) from cursors where user_id = s.user_id), 0),
            coalesce((select last from journal where user_id = s.user_id and state in (1, 2, 3)
                      order by last desc limit 1), 0)) as seq
        offset 0
    ) given
    cross join lateral (
        (select user_id, seq, notification_id, class, day, expires_at from log
         where user_id = s.user_id and collapse_key = s.collapse_key
             and seq >= greatest(s.together_from, given.seq + 1) and seq < s.seq
         order by seq desc)
        union all
        (select user_id, seq, notification_id, class, day, expires_at from log
         where user_id = s.user_id and collapse_key = s.collapse_key
             and seq > given.seq and seq < least(s.together_from, s.seq)
         order by seq desc limit $7)
    ) l
    where l.expires_at > $6 and (select 1 from removed r where r.user_id = l.user_id and r.seq = l.seq) is null
    order by l.user_id, l.seq
), taken as (
    insert into removed (user_id, seq, reason, at, expires_at)
    select l.user_id, l.seq, 2, $6, ",
    gone_at!(),
    " from gone l
)
insert into journal (user_id, first, last, ids, state, reason, at, shard)
select user_id, seq, seq, array[notification_id], 5, 2, $6, shard from gone"
);

/// Entries that another cluster's transactions have written (a dump that was restored): they are told of anew. Any node
/// may do this as it starts: of its own cluster's entries none is of a transaction that is still to come.
pub(in crate::store) const ADOPT: &str = "
update journal set xid = pg_current_xact_id()
where state >= 3 and xid >= pg_snapshot_xmax(pg_current_snapshot())";

/// Up to where receipts were written, unless that was in another cluster.
pub(in crate::store) const RECEIPTED: &str = "
select case when split_part(receipted, ':', 1)::xid8 <= pg_snapshot_xmax(pg_current_snapshot()) then receipted end
from meta";

/// Users' heads, the shared cursors, a device's own, and the highest.
pub(in crate::store) const OPEN: &str = r"
select coalesce((select head from heads where user_id = o.user_id), 0),
       coalesce((select cursor from cursors where user_id = o.user_id and device = ''), 0),
       (select cursor from cursors where user_id = o.user_id and device = o.device),
       coalesce((select max(cursor) from cursors where user_id = o.user_id), 0)
from unnest($1::text[], $2::text[]) with ordinality as o (user_id, device, nth)
order by o.nth";

/// Devices that were not seen before keep the cursors that they start with. Says which those are, and whether their users
/// have more than so many now.
pub(in crate::store) const NEW_DEVICES: &str = concat!(
    fence_beside!(),
    ", seen as (
    insert into cursors as c (user_id, device, cursor, used_at)
    select n.user_id, n.device, n.shared, $8
    from unnest($4::integer[], $5::text[], $6::text[], $7::bigint[]) as n (shard, user_id, device, shared)
    join fence f on f.shard = n.shard
    order by n.user_id, n.device
    on conflict (user_id, device) do update set used_at = excluded.used_at
    returning user_id, device, cursor
)
select null::integer, user_id, device, cursor,
       count(*) over (partition by user_id)
           + (select count(*) from cursors where user_id = s.user_id and device <> '') > $9
from seen s
union all select shard, null, null, null, null from fence"
);

/// Forgets the devices of a user that were not used for longest.
pub(in crate::store) const FORGET_DEVICES: &str = concat!(
    fence_beside!(),
    ", gone as (
    delete from cursors
    where user_id = (select $4::text from fence) and device in (
        select device from cursors where user_id = $4 and device <> '' order by used_at desc, device offset $5)
)
select shard from fence"
);

/// A started session that holds.
pub(in crate::store) const FIND_SESSION: &str =
    "select user_id, expires_at from sessions where session = $1 and expires_at > $2";

/// A user's started sessions that hold.
pub(in crate::store) const SESSIONS_OF_USER: &str =
    "select session, expires_at from sessions where user_id = $1 and expires_at > $2 order by expires_at, session";
