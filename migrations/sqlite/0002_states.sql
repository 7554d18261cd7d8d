-- What happened to notifications, what waits for a rate limit, and numbers that must not be delivered.
-- Times are milliseconds since 1970. The same meaning as in migrations/postgres, for one node.

-- What happened: one row for a whole stretch of a user's numbers. A row never changes; what is older than the log's
-- retention goes in bounded pieces. One connection writes, so places are in the order of commits; they are never used
-- a second time, because a mark must not stand above what is still to come.
create table journal (
    place     integer primary key autoincrement,
    user_id   text    not null,
    first     integer not null,     -- 0: no number
    last      integer not null,
    ids       text,                 -- of first..last, in order, with a U+001F between; null: not noted
    state     integer not null,     -- 0 pending, 1 active, 2 stale; ends: 3 sent, 4 failed, 5 deleted
    reason    integer,              -- 0 expired, 1 evicted, 2 superseded, 3 digested, 4 cancelled, 5 no session, 6 away,
                                    -- 7 rate limited, 8 not storable
    session   text,
    device    text,
    handed_at integer,
    at        integer not null,
    shard     integer               -- null: noted when rows of the log went, over all shards
);
create index journal_numbers on journal (user_id, last, first);
create index journal_ids on journal (user_id, ids) where last = 0;
-- The highest number that a session was given.
create index journal_given on journal (user_id, last) where state in (1, 2, 3);
create index journal_ended on journal (place) where state >= 3;
create index journal_at on journal (at);

-- Stored, and so settled, but without a number: it waits for its user's rate limit, or has ended while it waited.
create table waiting (
    place             integer primary key,
    user_id           text    not null,
    notification_id   text    not null,
    notification_type text    not null,
    payload           blob    not null,
    durability        integer not null,
    priority          integer not null,
    collapse_key      text,
    ttl_ms            integer,
    created_at        integer not null,
    recorded_at       integer not null,
    expires_at        integer not null,     -- what has ended stays readable until here
    shard             integer not null,
    held_at           integer not null,
    ended             integer,              -- the reason; null: it waits
    ended_at          integer,
    digest            text,                 -- the id of the digest in which it was counted
    owed              integer not null      -- 1: that digest is not in the log yet
);
create unique index waiting_ids on waiting (user_id, notification_id);
create index waiting_users on waiting (user_id, place) where ended is null or owed;
create index waiting_expired on waiting (expires_at) where not owed;

-- Numbers that were given and must not be delivered any more.
create table removed (
    user_id    text    not null,
    seq        integer not null,
    reason     integer not null,
    at         integer not null,
    expires_at integer not null,    -- the log row's
    primary key (user_id, seq)
) without rowid;
create index removed_expired on removed (expires_at);

-- Finds what a newer notification takes the place of, the newest first.
create index log_keys on log (user_id, collapse_key, seq) where collapse_key is not null;

-- Up to where in the journal receipts have been written.
alter table meta add column receipted text;
