-- Who takes part in the cluster, and who of them is alive. What the columns mean: src/cluster/view.rs.

-- Every change of members raises the version, from the one that its author has read: so there is one sequence of them.
create table membership (
    one     boolean primary key default true check (one),
    version bigint  not null
) with (fillfactor = 10);
insert into membership (version) values (0);

create table members (
    incarnation text     primary key,       -- as claims name their owners
    node_id     text     collate "C" not null,
    addresses   text[]   not null,
    zone        text     not null,
    weight      smallint not null,
    is_alone    boolean  not null,
    state       smallint not null,          -- 0 joining, 1 active, 2 draining, 3 dead: for ever
    joined      bigint   not null unique,   -- the version
    voters      text[]   not null,          -- who says that it is silent,
    voted_at    bigint[] not null,          -- and the voters' own counters when they said so
    died_at     timestamptz                 -- by this server's clock: no node's is asked
) with (fillfactor = 50);

-- Beside the members: a renewal never waits for a change or a take, which lock their rows.
create table renewals (
    incarnation text   primary key,
    counter     bigint not null
) with (fillfactor = 10);

-- A partition that was released, as a shard that was, is nobody's.
alter table partition_claims alter column owner drop not null;
