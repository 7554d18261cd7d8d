//! What the engines do a second, beside a bare multi-row insert of the same rows by the same library.

use std::{sync::Arc, time::Instant};

use sqlx::{QueryBuilder, Sqlite, postgres::PgPoolOptions, sqlite::SqlitePoolOptions};

use super::{contract::event, databases::Place};
use crate::{
    event::Event,
    placement::{self, ShardId},
};

const LANES: u16 = 4;
const GROUP: usize = 512;
const GROUPS: usize = 60;
const USERS: usize = 10_000;

/// The rows of each lane, in groups; a lane's shards are its own, as the writer's are.
fn lanes(round: &str) -> Vec<Vec<Vec<Arc<Event>>>> {
    let payload: Box<str> = format!("\"{}\"", "x".repeat(510)).into();
    let of_lane = |lane: u16| {
        (0..USERS).map(|n| format!("u{n}")).filter(move |user| placement::shard(user, LANES) == ShardId(lane))
    };
    let users: Vec<Vec<String>> = (0..LANES).map(|lane| of_lane(lane).collect()).collect();
    let one = |lane: usize, n: usize| {
        let user = &users[lane][n * 7919 % users[lane].len()];
        Arc::new(Event { payload: payload.clone(), ..event(user, &format!("{round}-{lane}-{n}")) })
    };
    let group = |lane: usize, group: usize| (0..GROUP).map(|n| one(lane, group * GROUP + n)).collect();
    (0..usize::from(LANES)).map(|lane| (0..GROUPS).map(|number| group(lane, number)).collect()).collect()
}

fn report(engine: &str, what: &str, began: Instant) {
    let rows = (usize::from(LANES) * GROUPS * GROUP) as f64;
    let seconds = began.elapsed().as_secs_f64();
    let group_ms = seconds / GROUPS as f64 * 1000.0;
    println!("{engine}: {what}: {:.0} rows/s, {group_ms:.1} ms a group of {GROUP}, {LANES} lanes", rows / seconds);
}

async fn through_the_engine(place: &Place, round: &str) {
    let log = place.open().await.log;
    let began = Instant::now();
    let tasks = lanes(round).into_iter().map(|groups| {
        let log = log.clone();
        tokio::spawn(async move {
            for group in groups {
                log.append(&group).await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    report(place.name(), "append", began);
}

async fn bare_postgres(place: &Place, round: &str) {
    let pool = PgPoolOptions::new().max_connections(4).connect(&place.config().url).await.unwrap();
    let create = "create table if not exists bare (user_id text, seq bigint, id text, type text, payload bytea, created \
                  bigint, recorded bigint, primary key (user_id, seq))";
    sqlx::raw_sql(create).execute(&pool).await.unwrap();
    sqlx::raw_sql("truncate bare").execute(&pool).await.unwrap();
    let began = Instant::now();
    let tasks = lanes(round).into_iter().map(|groups| {
        let pool = pool.clone();
        tokio::spawn(async move {
            let mut seq = 0;
            for group in groups {
                let users: Vec<&str> = group.iter().map(|event| &*event.user).collect();
                let ids: Vec<&str> = group.iter().map(|event| &*event.id).collect();
                let types: Vec<&str> = group.iter().map(|event| &*event.notification_type).collect();
                let payloads: Vec<&[u8]> = group.iter().map(|event| event.payload.as_bytes()).collect();
                let times: Vec<i64> = group.iter().map(|event| event.recorded_at).collect();
                let numbers: Vec<i64> = (seq..seq + group.len() as i64).collect();
                seq += group.len() as i64;
                let insert = "insert into bare select * from unnest($1::text[], $2::bigint[], $3::text[], $4::text[], \
                              $5::bytea[], $6::bigint[], $7::bigint[])";
                let insert = sqlx::query(insert).bind(users).bind(numbers).bind(ids).bind(types).bind(payloads);
                insert.bind(&times).bind(&times).execute(&pool).await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    report(place.name(), "bare insert", began);
}

async fn bare_sqlite(place: &Place, round: &str) {
    let pool = SqlitePoolOptions::new().max_connections(1).connect(&place.config().url).await.unwrap();
    let create = "pragma synchronous = full; create table if not exists bare (user_id text, seq integer, id text, type \
                  text, payload blob, created integer, recorded integer); \
                  create unique index if not exists bare_numbers on bare (user_id, seq); delete from bare";
    sqlx::raw_sql(create).execute(&pool).await.unwrap();
    let began = Instant::now();
    let mut seq = 0i64;
    for group in lanes(round).into_iter().flatten() {
        let mut insert = QueryBuilder::<Sqlite>::new("insert into bare ");
        insert.push_values(&group, |mut row, event| {
            seq += 1;
            row.push_bind(&*event.user).push_bind(seq).push_bind(&*event.id).push_bind(&*event.notification_type);
            row.push_bind(event.payload.as_bytes()).push_bind(event.created_at).push_bind(event.recorded_at);
        });
        insert.build().persistent(false).execute(&pool).await.unwrap();
    }
    report(place.name(), "bare insert", began);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: cargo test --release --lib store::tests::measure -- --ignored --nocapture"]
async fn appends_beside_bare_inserts() {
    for place in Place::durable().await {
        for round in ["first", "second", "third"] {
            through_the_engine(&place, round).await;
            match place {
                Place::File(_) => bare_sqlite(&place, round).await,
                _ => bare_postgres(&place, round).await,
            }
        }
    }
}
