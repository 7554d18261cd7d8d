-- What happened to notifications, what waits for a rate limit, and numbers that must not be delivered.
-- Times are milliseconds since 1970. Numbers of states and reasons: src/store/row.rs.

-- The order of journal entries, and of what waits. Partitions share them.
create sequence journal_places;
create sequence waiting_places;

-- What happened: one row for a whole stretch of a user's numbers. A row never changes. Partitions by day are made ahead
-- and dropped whole, as the log's are. Numbers of transactions let a reader stop before the first one that still runs,
-- so that nothing can ever appear before what was read.
create table journal (
    place     bigint   not null default nextval('journal_places'),
    xid       xid8     not null default pg_current_xact_id(),
    user_id   text     collate "C" not null,
    first     bigint   not null,    -- 0: no number
    last      bigint   not null,
    ids       text[]   collate "C", -- of first..last, in order; null: not noted. One where there is no number
    state     smallint not null,    -- 0 pending, 1 active, 2 stale; ends: 3 sent, 4 failed, 5 deleted
    reason    smallint,             -- 0 expired, 1 evicted, 2 superseded, 3 digested, 4 cancelled, 5 no session, 6 away,
                                    -- 7 rate limited, 8 not storable
    session   text,
    device    text,
    handed_at bigint,
    at        bigint   not null,
    shard     integer               -- null: noted when a partition of the log went, over all shards
) partition by range (at);

-- An account asks which entries cover a number, or name an id that has none.
create index journal_numbers on journal (user_id, last, first);
create index journal_ids on journal (user_id, ids) where last = 0;
-- The highest number that a session was given.
create index journal_given on journal (user_id, last) where state in (1, 2, 3);
-- Receipts follow what has ended.
create index journal_ended on journal (xid, place) where state >= 3;

-- Stored, and so settled, but without a number: it waits for its user's rate limit, or has ended while it waited.
create table waiting (
    user_id           text     collate "C" not null,
    notification_id   text     collate "C" not null,
    notification_type text     not null,
    payload           bytea    not null,
    durability        smallint not null,
    priority          smallint not null,
    collapse_key      text,
    ttl_ms            bigint,
    created_at        bigint   not null,
    recorded_at       bigint   not null,
    expires_at        bigint   not null,    -- what has ended stays readable until here
    shard             integer  not null,
    place             bigint   not null default nextval('waiting_places'),
    held_at           bigint   not null,
    ended             smallint,             -- the reason; null: it waits
    ended_at          bigint,
    digest            text     collate "C", -- the id of the digest in which it was counted
    owed              boolean  not null,    -- that digest is not in the log yet
    primary key (user_id, notification_id)
) with (fillfactor = 70);
create unique index waiting_places_once on waiting (place);
create index waiting_users on waiting (user_id, place) where ended is null or owed;
create index waiting_expired on waiting (expires_at) where not owed;

-- Numbers that were given and must not be delivered any more.
create table removed (
    user_id    text     collate "C" not null,
    seq        bigint   not null,
    reason     smallint not null,
    at         bigint   not null,
    expires_at bigint   not null,   -- from here on the row of the log is gone with its partition
    primary key (user_id, seq)
);
create index removed_expired on removed (expires_at);

-- Finds what a newer notification takes the place of, the newest first.
create index log_keys on log (user_id, collapse_key, seq) where collapse_key is not null;

-- Up to where in the journal receipts have been written.
alter table meta add column receipted text;
