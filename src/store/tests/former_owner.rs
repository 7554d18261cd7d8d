//! What a process does that owns users no more: a device's first connection, retention; and that giving shards away in
//! good order is no loss.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use sqlx::Connection as _;
use tokio::sync::{mpsc, oneshot};

use super::{
    contract::{acknowledge, append, event, events, shape, user},
    databases::Place,
    faults::{log_name, until},
    membership::join,
    states::{ended_all, hold},
};
use crate::{
    event::unix_millis_now,
    health::Health,
    ids::{DeviceId, Incarnation, SessionId, UserId},
    placement::ShardId,
    store::{
        Appended, Config, Error, Opened, Opening, PageLimit, Store as _,
        claims::{Beginning, Claims as _},
        positions::Positions as _,
        postgres::{PostgresStore, membership::PostgresMembership, retention},
        sessions::Started,
        writer::Writer,
    },
};

const ALL: PageLimit = PageLimit { items: 1000, bytes: 1 << 20 };
const DEVICES: &str = "select count(*) from cursors where device <> ''";

fn device(n: usize) -> DeviceId {
    DeviceId::new(format!("d{n}")).unwrap()
}

async fn execute(place: &Place, sql: &'static str) {
    match place {
        Place::File(_) => _ = sqlx::raw_sql(sql).execute(&mut place.sqlite().await).await.unwrap(),
        _ => _ = sqlx::raw_sql(sql).execute(&mut place.postgres().await).await.unwrap(),
    }
}

async fn count(place: &Place, sql: &'static str) -> i64 {
    match place {
        Place::File(_) => sqlx::query_scalar(sql).fetch_one(&mut place.sqlite().await).await.unwrap(),
        _ => sqlx::query_scalar(sql).fetch_one(&mut place.postgres().await).await.unwrap(),
    }
}

/// So many statements wait for a lock.
async fn waiting_are(place: &Place, wanted: i64) {
    let waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
    until(async || count(place, waits).await == wanted).await;
}

#[tokio::test]
async fn a_former_owner_keeps_no_device_and_forgets_none() {
    for place in Place::durable().await {
        let name = place.name();
        let former = place.open().await;
        let u = user("u");
        for n in 0..64 {
            former.log.open(&u, Some(&device(n))).await.unwrap();
        }
        let owner = place.open().await;
        for new in [device(0), device(64), device(65)] {
            let opened = former.log.open(&u, Some(&new)).await;
            match &*new {
                "d0" => assert_eq!(opened.unwrap(), Opened::default(), "what is known needs no write: {name}"),
                _ => assert!(matches!(opened, Err(Error::Lost { .. })), "{opened:?} {name}"),
            }
        }
        let of_others = former.log.open(&user("v"), Some(&device(0))).await;
        assert!(matches!(of_others, Err(Error::Lost { .. })), "{of_others:?} {name}");
        assert_eq!(count(&place, DEVICES).await, 64, "{name}");
        owner.log.open(&u, Some(&device(64))).await.unwrap();
        assert_eq!(count(&place, DEVICES).await, 64, "{name}");
        assert_eq!(count(&place, "select count(*) from cursors where device = 'd64'").await, 1, "{name}");
    }
}

/// Each of the two statements of a new device has the fence: here the shards are taken between them.
#[tokio::test]
async fn an_owner_that_becomes_a_former_one_forgets_no_device() {
    let place = Place::database().await;
    let former = place.open().await;
    let u = user("u");
    for n in 0..64 {
        former.log.open(&u, Some(&device(n))).await.unwrap();
    }
    let take = "create function take() returns trigger language plpgsql as $$ begin \
                update shard_claims set owner = 'another', epoch = epoch + 1; return null; end $$; \
                create trigger take after insert on cursors for each statement execute function take()";
    execute(&place, take).await;
    let opened = former.log.open(&u, Some(&device(64))).await;
    assert!(matches!(opened, Err(Error::Lost { .. })), "{opened:?}");
    assert_eq!(count(&place, DEVICES).await, 65, "noted before, and none is forgotten after");
}

/// The process hears of it once and ends; nobody gets an answer, and nothing is tried again.
#[tokio::test]
async fn a_log_that_is_opened_for_a_new_device_tells_a_former_owner_that_it_is_one() {
    for place in Place::durable().await {
        let former = place.open().await;
        let _owner = place.open().await;
        let (lost, mut hears) = mpsc::unbounded_channel();
        let writer = Writer::start(&former.log, &Health::default(), &lost);
        let (answer, mut answered) = oneshot::channel();
        let opening = Opening { user: user("u"), device: Some(device(0)) };
        writer.open(opening, Box::new(move |opened| _ = answer.send(opened)));
        let told = tokio::time::timeout(Duration::from_secs(10), hears.recv()).await.unwrap();
        assert!(matches!(told, Some(Error::Lost { .. })), "{told:?} {}", place.name());
        assert!(
            answered.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty),
            "{}",
            place.name()
        );
        assert_eq!(count(&place, DEVICES).await, 0, "{}", place.name());
    }
}

/// Many devices, and one twice, in one call.
#[tokio::test]
async fn new_devices_that_come_together_are_kept_together() {
    for place in Place::durable().await {
        let name = place.name();
        let engine = place.open().await;
        let (u, v) = (user("u"), user("v"));
        engine.log.append(&events("u", 0..3)).await.unwrap();
        acknowledge(&*engine.log, &u, None, 2).await;
        let opening = |user: &UserId, n| Opening { user: user.clone(), device: Some(device(n)) };
        let mut together: Vec<_> = (0..70).map(|n| opening(&u, n)).collect();
        together.extend([opening(&v, 0), opening(&u, 1), opening(&v, 0)]);
        let opened = engine.log.open_all(&together).await.unwrap();
        let (of_u, of_v) = (Opened { head: 3, cursor: 2, acknowledged: 2 }, Opened::default());
        assert_eq!(opened[..70], [of_u; 70], "{name}");
        assert_eq!(opened[70..], [of_v, of_u, of_v], "{name}");
        assert_eq!(
            count(&place, "select count(*) from cursors where user_id = 'u' and device <> ''").await,
            64,
            "{name}"
        );
        assert_eq!(count(&place, "select count(*) from cursors where user_id = 'v'").await, 1, "{name}");
    }
}

/// A node of a cluster, with all shards.
async fn member(place: &Place) -> (Arc<PostgresStore>, PostgresMembership, Incarnation) {
    let table = PostgresMembership::open(&place.config()).await.unwrap();
    let me = join(&table, "a").await;
    let config = Config { incarnation: Some(me), is_shared: true, ..place.config() };
    let store = PostgresStore::open(&config).await.unwrap();
    let free: Vec<_> = (0..64).map(|shard| (ShardId(shard), 0)).collect();
    store.hold_shards(&table.take_shards(me, &free).await.unwrap());
    (Arc::new(store), table, me)
}

fn all_shards() -> Vec<ShardId> {
    (0..64).map(ShardId).collect()
}

/// What a user's actor that has crashed has asked for may come when its shard is given away.
#[tokio::test]
async fn a_log_that_is_opened_while_its_shard_is_given_away_is_no_loss() {
    let place = Place::database().await;
    let (store, table, me) = member(&place).await;
    let u = user("u");
    store.open(&u, Some(&device(0))).await.unwrap();
    let mut other = place.postgres().await;
    let mut giving = other.begin().await.unwrap();
    sqlx::raw_sql("select * from shard_claims for update").execute(&mut *giving).await.unwrap();
    let opening = tokio::spawn({
        let store = store.clone();
        async move { store.open(&user("u"), Some(&device(1))).await }
    });
    waiting_are(&place, 1).await;
    let epochs = store.let_shards_go(&all_shards());
    sqlx::raw_sql("update shard_claims set owner = null").execute(&mut *giving).await.unwrap();
    giving.commit().await.unwrap();
    let opened = opening.await.unwrap();
    assert!(matches!(opened, Err(Error::Unavailable { .. })), "{opened:?}");
    assert_eq!(store.open(&u, Some(&device(1))).await.unwrap(), Opened::default(), "and then it ends");
    assert_eq!(count(&place, DEVICES).await, 1, "nothing was written");
    let taken = table.take_shards(me, &epochs).await.unwrap();
    store.hold_shards(&taken);
    store.open(&u, Some(&device(1))).await.unwrap();
    assert_eq!(count(&place, DEVICES).await, 2);
}

/// Also what the store says it has taken, and it does not know of: an answer was lost.
#[tokio::test]
async fn a_process_keeps_the_partitions_that_it_names_and_all_others_of_its_own_are_free() {
    let place = Place::database().await;
    let (store, table, me) = member(&place).await;
    let other = join(&table, "b").await;
    let log = log_name();
    assert_eq!(store.begin(&log, &[(0, 7), (1, 8), (2, 9)]).await.unwrap().len(), 3);
    assert_eq!(table.take_partitions(me, "t", &[(1, 1)]).await.unwrap()[0].epoch, 2, "nobody hears of it");
    let of_another = Beginning { partition: 3, epoch: 0, position: 1 };
    table.begin_partitions(other, &log, &[of_another]).await.unwrap();
    assert_eq!(store.keep_only(&log, &BTreeSet::from([0])).await.unwrap(), 2);
    assert_eq!(store.owners(&log).await.unwrap(), [(0, Some(me)), (1, None), (2, None), (3, Some(other))]);
    assert_eq!(store.keep_only(&log, &BTreeSet::from([0])).await.unwrap(), 0, "there is no more");
    let taken = table.take_partitions(other, "t", &[(1, 2), (2, 1)]).await.unwrap();
    assert_eq!(taken.iter().map(|claim| claim.position).collect::<Vec<_>>(), [8, 9], "they stand where they stood");
    store.write(&log, &[(0, 8), (1, 100), (2, 100)]).await.unwrap();
    let read = table.partitions("t").await.unwrap();
    assert_eq!(
        read.iter().map(|claim| claim.position).collect::<Vec<_>>(),
        [8, 8, 9, 1],
        "a former owner moves nothing"
    );
    execute(&place, "update partition_claims set owner = 'x', epoch = 9 where partition = 0").await;
    let lost = store.write(&log, &[(0, 20)]).await.unwrap_err();
    assert!(matches!(lost, Error::Lost { .. }) && lost.to_string().contains("'x' has it under epoch 9"), "{lost}");
}

#[tokio::test]
async fn a_former_process_of_a_file_starts_and_ends_no_session() {
    let place = Place::file();
    let former = place.open().await;
    let expires_at = unix_millis_now() + 60_000;
    let started = || Started { session: SessionId::random(), user: user("u"), expires_at };
    let kept = started();
    former.sessions.start(kept.clone()).await.unwrap();
    let owner = place.open().await;
    let refused = former.sessions.start(started()).await;
    assert!(matches!(refused, Err(Error::Lost { .. })), "{refused:?}");
    let refused = former.sessions.end(kept.session).await;
    assert!(matches!(refused, Err(Error::Lost { .. })), "{refused:?}");
    assert_eq!(owner.sessions.of_user(&kept.user).await.unwrap(), std::slice::from_ref(&kept));
    execute(&place, "update sessions set expires_at = 5").await;
    assert!(former.log.tidy().await.is_err());
    assert_eq!(count(&place, "select count(*) from sessions").await, 1);
}

/// Two nodes tidy at the same time, of which one owns nobody.
#[tokio::test]
async fn what_is_over_goes_once_and_nothing_else_whoever_lets_it_go() {
    for place in Place::durable().await {
        let name = place.name();
        let former = place.open().await;
        let owner = place.open().await;
        append(&owner, event("u", "numbered")).await;
        owner.log.open(&user("u"), Some(&device(0))).await.unwrap();
        for over in ["over1", "over2", "over3"] {
            hold(&owner, event("u", over), None).await;
        }
        hold(&owner, event("u", "waits"), None).await;
        hold(&owner, event("u", "owed"), Some("d")).await;
        execute(&place, "update waiting set expires_at = 5 where notification_id <> 'waits'").await;
        let (of_former, of_owner) = tokio::join!(former.log.tidy(), owner.log.tidy());
        of_owner.unwrap();
        // A file has one process: its former one changes nothing at all.
        assert_eq!(of_former.is_err(), matches!(place, Place::File(_)), "{of_former:?} {name}");
        let mut told = ended_all(&owner).await;
        told.sort();
        let expected =
            ["over1 deleted expired", "over2 deleted expired", "over3 deleted expired", "owed deleted digested"];
        assert_eq!(told, expected, "{name}");
        let backlog = owner.log.backlog(&user("u")).await.unwrap();
        assert_eq!((backlog.events.len(), backlog.folded.len()), (1, 1), "{name}");
        assert_eq!(shape(&owner, "u", 0, ALL).await, ["1"], "{name}");
        assert_eq!(count(&place, DEVICES).await, 1, "{name}");
    }
}

/// Somebody lets go of what has expired while its owner gives it a number: it has ended, once.
#[tokio::test]
async fn a_release_that_waits_for_retention_gives_no_number() {
    let place = Place::database().await;
    let engine = place.open().await;
    hold(&engine, event("u", "a"), None).await;
    execute(&place, "update waiting set expires_at = 5").await;
    let mut other = place.postgres().await;
    let mut forgetting = other.begin().await.unwrap();
    let forget = sqlx::query_scalar::<_, i64>(retention::FORGET_WAITING).bind(unix_millis_now()).bind(9_i64);
    assert_eq!(forget.fetch_one(&mut *forgetting).await.unwrap(), 1);
    let releasing = tokio::spawn({
        let engine = engine.clone();
        async move { append(&engine, event("u", "a")).await }
    });
    waiting_are(&place, 1).await;
    forgetting.commit().await.unwrap();
    assert_eq!(releasing.await.unwrap(), Appended::Known);
    assert_eq!(append(&engine, event("u", "b")).await, Appended::Stored(1));
    assert_eq!(ended_all(&engine).await, ["a deleted expired"]);
}

/// And the other way round: what its owner gives a number at that moment has not expired.
#[tokio::test]
async fn retention_that_waits_for_a_release_ends_nothing() {
    let place = Place::database().await;
    let former = place.open().await;
    let engine = place.open().await;
    append(&engine, event("u", "first")).await;
    hold(&engine, event("u", "a"), None).await;
    execute(&place, "update waiting set expires_at = 5").await;
    let mut other = place.postgres().await;
    let mut blocking = other.begin().await.unwrap();
    sqlx::raw_sql("select * from heads for update").execute(&mut *blocking).await.unwrap();
    let releasing = tokio::spawn({
        let engine = engine.clone();
        async move { append(&engine, event("u", "a")).await }
    });
    waiting_are(&place, 1).await;
    let forgetting = tokio::spawn(async move { former.log.tidy().await });
    waiting_are(&place, 2).await;
    blocking.rollback().await.unwrap();
    assert_eq!(releasing.await.unwrap(), Appended::Stored(2));
    forgetting.await.unwrap().unwrap();
    assert!(ended_all(&engine).await.is_empty());
    assert_eq!(shape(&engine, "u", 0, ALL).await, ["1", "2"]);
}
