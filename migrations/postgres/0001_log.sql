-- The first schema: users' logs, cursors, claims, positions and started sessions.
-- Times are milliseconds since 1970, days are days since 1970 (UTC). Names of users, devices and ids are compared
-- byte by byte (collate "C"): it is quicker, and an index never depends on the system's locale.

-- What this store is. Exactly one row.
create table meta (
    one    boolean primary key default true check (one),
    epoch  text    not null,    -- names this life of the log: numbers of different epochs cannot be compared
    shards integer not null     -- fixed when the store is created: the same user must always be in the same shard
);

-- Lives of the log that are over, because the store went back (was restored from a copy): who resumes from one of
-- them is told so.
create table former_epochs (
    epoch    text   primary key,
    ended_at bigint not null
);

-- Who may write the logs of a shard's users. Every append locks the rows it needs and compares their epoch, so that
-- a former owner, or a statement that was given up, writes nothing after the epoch was raised.
create table shard_claims (
    shard integer primary key,
    owner text,                 -- one incarnation of a node
    epoch bigint  not null      -- rises with every take
) with (fillfactor = 50);

-- Who reads a Kafka partition, and how far all is settled. The truth: what is committed to Kafka is a copy.
create table partition_claims (
    topic     text    not null,
    partition integer not null,
    cluster   text    not null, -- Kafka's own name for the cluster: a position means nothing in another one
    owner     text    not null,
    epoch     bigint  not null,
    position  bigint  not null, -- everything before this offset is settled
    ahead     bigint,           -- Kafka's copy when it was found ahead of the position, so that it is noticed once
    primary key (topic, partition)
) with (fillfactor = 50);

-- The highest number each user's log has given. It outlives the rows, so that numbers never start again.
create table heads (
    user_id text   collate "C" primary key,
    head    bigint not null,
    floor   bigint not null     -- rows up to this number do not count: the cap per user took them
) with (fillfactor = 70);

-- What devices have acknowledged. The device '' is the user's shared cursor.
create table cursors (
    user_id text   collate "C" not null,
    device  text   collate "C" not null,
    cursor  bigint not null,
    used_at bigint not null,    -- the device that was not used for longest goes first
    primary key (user_id, device)
) with (fillfactor = 70);

-- Users' logs. A row never changes. Partitions are made ahead and dropped whole (src/store/postgres/days.rs):
-- nothing deletes rows one by one. There is no default partition, because one would make every detach wait.
create table log (
    user_id           text     collate "C" not null,
    seq               bigint   not null,
    notification_id   text     collate "C" not null,
    class             smallint not null,    -- how long rows of its kind are kept (src/store/row.rs)
    day               integer  not null,    -- of the record's timestamp, so that a record that is read again meets its row
    notification_type text     not null,
    payload           bytea    not null,    -- bytes, because text cannot hold every JSON text's characters
    durability        smallint not null,    -- 1 durable, 2 inbox
    priority          smallint not null,    -- 0 critical, 1 high, 2 normal, 3 low
    collapse_key      text,
    ttl_ms            bigint,
    created_at        bigint   not null,    -- what the producer says
    recorded_at       bigint   not null,    -- the record's timestamp
    stored_at         bigint   not null,
    expires_at        bigint   not null,    -- not delivered from here on
    primary key (user_id, seq, class, day)
) partition by range (class, day);

-- Finds an id again inside the deduplication window. Not unique: after the window an id may come again.
create index log_ids on log (user_id, notification_id);

-- Sessions that were started ahead of their connection. Whoever knows the id may connect as the user.
create table sessions (
    session    text   primary key,
    user_id    text   collate "C" not null,
    expires_at bigint not null
);
create index sessions_of_user on sessions (user_id, expires_at);
create index sessions_expired on sessions (expires_at);
