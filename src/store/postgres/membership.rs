//! The table of members in PostgreSQL, and, in `claims`, who owns what. It has connections of its own, so that a renewal
//! never waits for whatever else a node asks of the store, and its calls give up early: a connection that is dead must
//! not cost a node that is alive its life.

use std::{num::NonZeroU8, time::Duration};

use sqlx::{
    Row as _,
    postgres::{PgListener, PgPool, PgPoolOptions, PgRow},
};

use super::{Config, Password, SchemaError, called, connect, establish, unavailable};
use crate::{
    cluster::{
        changes::Change,
        table::{Changed, Renewed},
        view::{Member, Node, State, Version, View, Vote},
    },
    ids::{Incarnation, NodeId},
    store::{
        Answer, Error,
        membership::Membership,
        row::{number, signed},
        schema::POSTGRES,
    },
};

/// One to renew, one to change or to read, one to take, one to listen.
const CONNECTIONS: u32 = 4;
/// How long a call may take when it has a connection, and how long it waits for one.
pub(super) const CALL: Duration = Duration::from_millis(2500);
/// A take does not wait for long for what somebody has locked, and nothing here waits longer.
const SETTINGS: &str = "set statement_timeout = '2s'; set lock_timeout = '1s'; \
                        set idle_in_transaction_session_timeout = '2s'; set client_min_messages = 'warning'; \
                        set jit = off; set plan_cache_mode = force_generic_plan";
/// Where every change is announced, with the version that it made.
const CHANNEL: &str = "notifier_membership";

const VIEW: &str = "select s.version, m.incarnation, m.node_id, m.addresses, m.zone, m.weight, m.is_alone, m.state, \
                    m.joined, m.voters, m.voted_at, coalesce(r.counter, 0) as counter, \
                    coalesce(extract(epoch from clock_timestamp() - m.died_at), 0)::float8 as dead_for \
                    from membership s left join members m on true left join renewals r using (incarnation) \
                    order by m.joined";

/// Whoever raises the version from the one it has read does the rest, in the same statement. A counter that must not
/// have moved is locked, so that a renewal comes either before this or after it.
const CHANGE: &str = "with still as materialized (
    select 1 from renewals where incarnation = $4 and counter = $5 for no key update
), raised as (
    update membership set version = version + 1
    where version = $1 and ($4::text is null or exists (select from still))
    returning version
), wanted as materialized (
    select p.* from raised
    cross join jsonb_to_recordset($2::text::jsonb) as p (
        incarnation text, node_id text, addresses text[], zone text, weight smallint, is_alone boolean,
        state smallint, joined bigint, voters text[], voted_at bigint[])
), forgotten as (
    delete from members where incarnation = any($3) and exists (select from raised)
), uncounted as (
    delete from renewals where incarnation = any($3) and exists (select from raised)
), put as (
    insert into members as m (incarnation, node_id, addresses, zone, weight, is_alone, state, joined, voters, voted_at,
                              died_at)
    select incarnation, node_id, addresses, zone, weight, is_alone, state, joined, voters, voted_at,
           case when state = 3 then clock_timestamp() end
    from wanted
    on conflict (incarnation) do update
        set state = excluded.state, voters = excluded.voters, voted_at = excluded.voted_at,
            died_at = coalesce(m.died_at, excluded.died_at)
), counted as (
    insert into renewals (incarnation, counter) select incarnation, 0 from wanted on conflict do nothing
)
select version, pg_notify($6, version::text)::text from raised";

const RENEW: &str = "with mine as (
    update renewals r set counter = r.counter + 1
    where r.incarnation = $1 and exists (select from members m where m.incarnation = $1 and m.state <> 3)
    returning r.incarnation, r.counter
)
select s.version, exists (select from mine) as is_alive, r.incarnation, coalesce(mine.counter, r.counter) as counter
from membership s
left join (members m join renewals r on r.incarnation = m.incarnation) on m.state <> 3
left join mine on mine.incarnation = m.incarnation";

/// Members and claims, for one node.
pub struct PostgresMembership {
    pub(super) pool: PgPool,
    pub(super) shards: u16,
    password: Password,
}

/// Asks on a connection of the pool, for a short while.
macro_rules! ask_shortly {
    ($pool:expr, |$connection:ident| $call:expr) => {
        $crate::store::postgres::fence::call!($pool, $crate::store::postgres::membership::CALL, |$connection| $call)
    };
}
pub(super) use ask_shortly;

impl PostgresMembership {
    /// Connects, brings the schema up if that is wanted, and makes a row for every shard that has none. Nothing is
    /// taken from anybody.
    ///
    /// # Errors
    /// When the database does not answer, its schema is of another version, or it has another number of shards.
    pub async fn open(config: &Config) -> Result<Self, SchemaError> {
        let password = Password::of(config)?;
        let options = password.options();
        POSTGRES.establish(&mut connect(&options).await?, config.may_migrate).await?;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(CALL)
            .max_lifetime(Duration::from_secs(1800))
            .after_connect(|connection, _| {
                Box::pin(async move { sqlx::raw_sql(SETTINGS).execute(connection).await.map(drop) })
            })
            .connect_lazy_with(options);
        let stored = establish(&pool, config.shards).await?;
        if stored != i64::from(config.shards) {
            return Err(SchemaError::Shards { stored, configured: config.shards.into() });
        }
        let make = "insert into shard_claims (shard, owner, epoch) select shard, null, 0 \
                    from generate_series(0, $1 - 1) as shard on conflict (shard) do nothing";
        sqlx::query(make).bind(i32::from(config.shards)).execute(&pool).await?;
        Ok(Self { pool, shards: config.shards, password })
    }

    /// Hears of changes as they happen, for as long as its connection lasts. Some may be missed: what a node relies on
    /// is [`Renewed::version`].
    ///
    /// # Errors
    /// When there is no connection.
    pub async fn listen(&self) -> Result<Announcements, Error> {
        let mut listener = PgListener::connect_with(&self.pool).await.map_err(unavailable)?;
        listener.listen(CHANNEL).await.map_err(unavailable)?;
        Ok(Announcements(listener))
    }

    /// Whether the server has a connection of that node.
    pub(in crate::store) async fn is_connected(&self, node: Incarnation) -> Result<bool, Error> {
        let find =
            "select exists (select from pg_stat_activity where datname = current_database() and application_name = $1)";
        ask_shortly!(self.pool, |connection| sqlx::query_scalar(find).bind(called(Some(node))).fetch_one(connection))
            .map_err(unavailable)
    }

    async fn read_view(&self) -> Result<View, Error> {
        let rows =
            ask_shortly!(self.pool, |connection| sqlx::query(VIEW).fetch_all(connection)).map_err(unavailable)?;
        view(&rows).map_err(unavailable)
    }

    async fn make_change(&self, change: &Change) -> Result<Changed, Error> {
        let put = serde_json::Value::Array(change.put.iter().map(row).collect()).to_string();
        let forgotten: Vec<String> = change.forgotten.iter().map(Incarnation::to_string).collect();
        let raised: Option<(i64, String)> = ask_shortly!(self.pool, |connection| {
            sqlx::query_as(CHANGE)
                .bind(signed(change.base))
                .bind(put)
                .bind(forgotten)
                .bind(change.unmoved.map(|(one, _)| one.to_string()))
                .bind(change.unmoved.map(|(_, counter)| signed(counter)))
                .bind(CHANNEL)
                .fetch_optional(connection)
        })
        .map_err(unavailable)?;
        Ok(raised.map_or(Changed::Overtaken, |(version, _)| Changed::Done(number(version))))
    }

    async fn renew_row(&self, me: Incarnation) -> Result<Renewed, Error> {
        if let Some(options) = self.password.changed() {
            self.pool.set_connect_options(options);
        }
        let rows: Vec<(i64, bool, Option<String>, Option<i64>)> =
            ask_shortly!(self.pool, |connection| { sqlx::query_as(RENEW).bind(me.to_string()).fetch_all(connection) })
                .map_err(unavailable)?;
        let (version, is_alive) = rows.first().map_or((0, false), |row| (number(row.0), row.1));
        let counter = |(_, _, one, counter): (i64, bool, Option<String>, Option<i64>)| {
            Some((Incarnation::parse(&one?)?, number(counter?)))
        };
        Ok(Renewed { version, is_alive, counters: rows.into_iter().filter_map(counter).collect() })
    }
}

impl Membership for PostgresMembership {
    fn view(&self) -> Answer<'_, View> {
        Box::pin(self.read_view())
    }

    fn change<'a>(&'a self, change: &'a Change) -> Answer<'a, Changed> {
        Box::pin(self.make_change(change))
    }

    fn renew(&self, me: Incarnation) -> Answer<'_, Renewed> {
        Box::pin(self.renew_row(me))
    }
}

/// Changes of the view, as they are announced.
pub struct Announcements(PgListener);

impl Announcements {
    /// Waits for the next one: the version that a change has made. Cancel safe.
    ///
    /// # Errors
    /// When the connection is gone; what was announced since is not known.
    pub async fn next(&mut self) -> Result<Version, Error> {
        let announced = self.0.try_recv().await.map_err(unavailable)?;
        let lost = || Error::Unavailable { reason: "announcements have ended".into() };
        Ok(announced.ok_or_else(lost)?.payload().parse().unwrap_or_default())
    }
}

const STATES: [State; 4] = [State::Joining, State::Active, State::Draining, State::Dead];

/// A member as a row of [`CHANGE`].
fn row(member: &Member) -> serde_json::Value {
    let state = STATES.iter().position(|state| *state == member.state);
    serde_json::json!({
        "incarnation": member.node.incarnation.to_string(),
        "node_id": &*member.node.id,
        "addresses": member.node.addresses,
        "zone": member.node.zone,
        "weight": member.node.weight,
        "is_alone": member.node.is_alone,
        "state": state,
        "joined": member.joined,
        "voters": member.votes.iter().map(|vote| vote.by.to_string()).collect::<Vec<_>>(),
        "voted_at": member.votes.iter().map(|vote| vote.at).collect::<Vec<_>>(),
    })
}

fn view(rows: &[PgRow]) -> sqlx::Result<View> {
    let mut view = View::default();
    for row in rows {
        view.version = number(row.try_get("version")?);
        if row.try_get::<Option<String>, _>("incarnation")?.is_some() {
            view.members.push(member(row)?);
        }
    }
    Ok(view)
}

fn member(row: &PgRow) -> sqlx::Result<Member> {
    let unreadable = |column: &str| sqlx::Error::Decode(format!("members.{column} cannot be read").into());
    let incarnation = |text: &str| Incarnation::parse(text).ok_or_else(|| unreadable("incarnation"));
    let voters: Vec<String> = row.try_get("voters")?;
    let voted_at: Vec<i64> = row.try_get("voted_at")?;
    let votes = voters.iter().zip(voted_at).map(|(by, at)| Ok(Vote { by: incarnation(by)?, at: number(at) }));
    let state = usize::try_from(row.try_get::<i16, _>("state")?).ok().and_then(|state| STATES.get(state));
    let weight = u8::try_from(row.try_get::<i16, _>("weight")?).ok().and_then(NonZeroU8::new);
    Ok(Member {
        node: Node {
            id: NodeId::new(row.try_get::<String, _>("node_id")?).map_err(|_| unreadable("node_id"))?,
            incarnation: incarnation(row.try_get("incarnation")?)?,
            addresses: row.try_get("addresses")?,
            zone: row.try_get("zone")?,
            weight: weight.ok_or_else(|| unreadable("weight"))?,
            is_alone: row.try_get("is_alone")?,
        },
        state: *state.ok_or_else(|| unreadable("state"))?,
        joined: number(row.try_get("joined")?),
        counter: number(row.try_get("counter")?),
        votes: votes.collect::<sqlx::Result<_>>()?,
        dead_for: Duration::try_from_secs_f64(row.try_get("dead_for")?).unwrap_or_default(),
    })
}
