-- The first schema: users' logs, cursors, claims, positions and started sessions.
-- Times are milliseconds since 1970. The same meaning as in migrations/postgres, for one node.

-- What this store is, and whose. Exactly one row.
create table meta (
    one    integer not null unique default 1 check (one = 1),
    epoch  text    not null,    -- names this life of the log: numbers of different epochs cannot be compared
    shards integer not null,    -- fixed when the store is created
    owner  text,                -- the one process that may write logs: a write transaction compares it first
    claim  integer not null     -- rises with every take
);

-- Lives of the log that are over, because the store went back (was restored from a copy): who resumes from one of
-- them is told so.
create table former_epochs (
    epoch    text    primary key,
    ended_at integer not null
) without rowid;

-- How far each Kafka partition is settled. The truth: what is committed to Kafka is a copy.
create table partition_claims (
    topic     text    not null,
    partition integer not null,
    cluster   text    not null, -- Kafka's own name for the cluster: a position means nothing in another one
    owner     text    not null,
    epoch     integer not null,
    position  integer not null, -- everything before this offset is settled
    ahead     integer,          -- Kafka's copy when it was found ahead of the position, so that it is noticed once
    primary key (topic, partition)
) without rowid;

-- The highest number each user's log has given. It outlives the rows, so that numbers never start again.
create table heads (
    user_id text    primary key,
    head    integer not null,
    floor   integer not null    -- rows up to this number do not count: the cap per user took them
) without rowid;

-- What devices have acknowledged. The device '' is the user's shared cursor.
create table cursors (
    user_id text    not null,
    device  text    not null,
    cursor  integer not null,
    used_at integer not null,   -- the device that was not used for longest goes first
    primary key (user_id, device)
) without rowid;

-- Users' logs. A row never changes. One table: SQLite has no partitions, and tables by day would need a union of all
-- of them in every query. What has expired goes in bulk along log_expired, a bounded piece at a time between writes.
create table log (
    user_id           text    not null,
    seq               integer not null,
    notification_id   text    not null,
    notification_type text    not null,
    payload           blob    not null,
    durability        integer not null,     -- 1 durable, 2 inbox
    priority          integer not null,     -- 0 critical, 1 high, 2 normal, 3 low
    collapse_key      text,
    ttl_ms            integer,
    created_at        integer not null,     -- what the producer says
    recorded_at       integer not null,     -- the record's timestamp
    stored_at         integer not null,
    expires_at        integer not null      -- not delivered from here on
);
create unique index log_numbers on log (user_id, seq);
create index log_ids on log (user_id, notification_id);
create index log_expired on log (expires_at);

-- Sessions that were started ahead of their connection. Whoever knows the id may connect as the user.
create table sessions (
    session    text    primary key,
    user_id    text    not null,
    expires_at integer not null
) without rowid;
create index sessions_of_user on sessions (user_id, expires_at);
create index sessions_expired on sessions (expires_at);
