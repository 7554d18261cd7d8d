//! The journal and what waits in durable engines: under concurrent writers, former owners, unknown outcomes and
//! restarts; what is noted when rows go; and how a store of the first schema comes to this one.

use std::{collections::BTreeMap, slice::from_ref, sync::Arc};

use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};
use tokio::task::JoinHandle;

use super::{
    contract::{acknowledge, append, event, events, shape, user},
    databases::Place,
    faults::until,
    states::{account, cancel, end, ended, ended_all, ended_since, hold, id, step, superseding},
};
use crate::{
    event::unix_millis_now,
    ids::DeviceId,
    state::{Reason, State},
    store::{
        Acknowledgement, Appended, Engine, Error, Opened, PageLimit, Try,
        journal::{Cancelled, Mark},
        postgres::PostgresStore,
        row::day,
        schema::{POSTGRES, SQLITE, Schema},
        waiting::{Ending, Held, Holding},
    },
};

const ALL: PageLimit = PageLimit { items: 1000, bytes: 1 << 20 };
const DAY: i64 = 86_400_000;

async fn execute(place: &Place, sql: &str) {
    let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
    match place {
        Place::File(_) => _ = sql.execute(&mut place.sqlite().await).await.unwrap(),
        _ => _ = sql.execute(&mut place.postgres().await).await.unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tail_sees_every_end_once_while_many_write() {
    const LANES: usize = 4;
    const STEPS: usize = 150;
    for place in Place::durable().await {
        let engine = place.open().await;
        let writers = (0..LANES).map(|lane| {
            let engine = engine.clone();
            tokio::spawn(async move {
                for n in 0..STEPS {
                    let user_name = format!("u{lane}-{}", n % 7);
                    hold(&engine, event(&user_name, &format!("{lane}-{n}")), Some("d")).await;
                    let active = step(&user_name, (0, 0), &["not an end"], State::Active);
                    engine.log.acknowledge(&[], &[active], Try::First).await.unwrap();
                }
            })
        });
        let writers: Vec<_> = writers.collect();
        let (mut seen, mut mark) = (BTreeMap::<String, usize>::new(), Mark::default());
        until(async || {
            let (told, next) = ended(&engine, &mark, 7).await;
            told.into_iter().for_each(|one| *seen.entry(one).or_default() += 1);
            mark = next;
            seen.len() == LANES * STEPS
        })
        .await;
        for writer in writers {
            writer.await.unwrap();
        }
        assert!(ended(&engine, &mark, 7).await.0.is_empty(), "{}", place.name());
        assert!(seen.values().all(|times| *times == 1), "{}", place.name());
    }
}

#[tokio::test]
async fn a_slow_transaction_holds_the_tail_back_and_nothing_of_it_is_skipped() {
    let place = Place::database().await;
    let engine = place.open().await;
    hold(&engine, event("u", "before"), Some("d")).await;
    assert_eq!(ended_all(&engine).await, ["before deleted digested"]);
    let (_, mark) = ended(&engine, &Mark::default(), 10).await;
    let mut other = place.postgres().await;
    let mut slow = other.begin().await.unwrap();
    let write = "insert into journal (user_id, first, last, ids, state, at) values ('u', 0, 0, array['slow'], 4, $1)";
    sqlx::query(write).bind(unix_millis_now()).execute(&mut *slow).await.unwrap();
    hold(&engine, event("u", "after"), Some("d")).await;
    for _ in 0..5 {
        assert!(ended(&engine, &mark, 10).await.0.is_empty(), "what began later must not be read first");
    }
    slow.commit().await.unwrap();
    assert_eq!(ended_since(&engine, &mark).await, ["slow failed ", "after deleted digested"]);
}

#[tokio::test]
async fn a_former_owner_changes_nothing_that_waits_or_was_given() {
    for place in Place::durable().await {
        let former = place.open().await;
        former.log.append(&events("u", ["a"])).await.unwrap();
        hold(&former, event("u", "waits"), Some("d")).await;
        hold(&former, event("u", "w"), None).await;
        let engine = place.open().await;
        let name = place.name();
        let log = &former.log;
        let (u, now) = (user("u"), step("u", (1, 1), &[], State::Sent));
        let acknowledgement = Acknowledgement { user: u.clone(), device: None, seq: 1 };
        let holding = Holding { event: Arc::new(event("u", "h")), digest: None };
        let ending = Ending { user: u.clone(), id: id("w"), reason: Reason::Expired };
        let phone = DeviceId::new("phone").unwrap();
        let refused = [
            ("open for a new device", log.open(&u, Some(&phone)).await.err()),
            ("hold", log.hold(&[holding]).await.err()),
            ("end", log.end(&[ending]).await.err()),
            ("digested", log.digested(&[(u.clone(), id("d"))]).await.err()),
            ("cancel", log.cancel(&u, &id("a")).await.err()),
            ("cancel what waits", log.cancel(&u, &id("w")).await.err()),
            ("supersede", log.supersede(&[superseding(1, 1)]).await.err()),
            ("acknowledge", log.acknowledge(&[acknowledgement], from_ref(&now), Try::First).await.err()),
            ("note", log.acknowledge(&[], &[now], Try::First).await.err()),
            ("receipts", log.set_receipted(&Mark("7".into())).await.err()),
        ];
        for (call, error) in refused {
            assert!(matches!(error, Some(Error::Lost { .. })), "{call}: {error:?} {name}");
        }
        assert_eq!(engine.log.open(&u, None).await.unwrap(), Opened { head: 1, ..Opened::default() }, "{name}");
        let backlog = engine.log.backlog(&u).await.unwrap();
        assert_eq!((backlog.events.len(), backlog.folded.len()), (1, 1), "{name}");
        assert_eq!(ended_all(&engine).await, ["waits deleted digested"], "{name}");
        assert_eq!(engine.log.receipted().await.unwrap(), Mark::default(), "{name}");
        assert_eq!(shape(&engine, "u", 0, ALL).await, ["1"], "{name}");
    }
}

#[tokio::test]
async fn a_cursor_that_passes_a_cancelled_number_does_not_send_it() {
    for place in Place::all().await {
        let engine = place.open().await;
        engine.log.append(&events("u", ["a", "b"])).await.unwrap();
        assert_eq!(cancel(&engine, "u", "a").await, Cancelled::Done(Some(1)), "{}", place.name());
        let one = Acknowledgement { user: user("u"), device: None, seq: 2 };
        let sent = step("u", (1, 2), &["a", "b"], State::Sent);
        engine.log.acknowledge(&[one], &[sent], Try::First).await.unwrap();
        assert_eq!(cancel(&engine, "u", "a").await, Cancelled::Ended(State::Deleted), "{}", place.name());
        assert_eq!(cancel(&engine, "u", "b").await, Cancelled::Ended(State::Sent), "{}", place.name());
        assert_eq!(ended_all(&engine).await, ["a deleted cancelled", "b sent "], "{}", place.name());
    }
}

/// How many statements wait for a lock.
async fn waiters(place: &Place) -> i64 {
    let waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
    sqlx::query_scalar(waits).fetch_one(&mut place.postgres().await).await.unwrap()
}

/// An acknowledgement that is under way is either before a cancellation, or does not count.
#[tokio::test]
async fn a_cancellation_waits_for_an_acknowledgement_and_sees_it() {
    let place = Place::database().await;
    let engine = place.open().await;
    engine.log.append(&events("u", ["a"])).await.unwrap();
    acknowledge(&*engine.log, &user("u"), None, 0).await;
    let mut other = place.postgres().await;
    let mut blocking = other.begin().await.unwrap();
    sqlx::raw_sql("select * from cursors for update").execute(&mut *blocking).await.unwrap();
    let acknowledging = tokio::spawn({
        let log = engine.log.clone();
        async move {
            let one = Acknowledgement { user: user("u"), device: None, seq: 1 };
            log.acknowledge(&[one], &[step("u", (1, 1), &["a"], State::Sent)], Try::First).await
        }
    });
    until(async || waiters(&place).await == 1).await;
    let cancelling = tokio::spawn({
        let engine = engine.clone();
        async move { cancel(&engine, "u", "a").await }
    });
    until(async || waiters(&place).await == 2).await;
    blocking.rollback().await.unwrap();
    acknowledging.await.unwrap().unwrap();
    assert_eq!(cancelling.await.unwrap(), Cancelled::Ended(State::Sent));
    assert_eq!(ended_all(&engine).await, ["a sent "]);
}

/// A release that is under way when its notification is cancelled gives it no number.
#[tokio::test]
async fn a_release_that_waits_for_a_cancellation_gives_no_number() {
    let place = Place::database().await;
    let engine = place.open().await;
    hold(&engine, event("u", "a"), None).await;
    let mut other = place.postgres().await;
    let mut cancelling = other.begin().await.unwrap();
    let take = "select * from shard_claims for no key update; update waiting set ended = 4, ended_at = 1";
    sqlx::raw_sql(take).execute(&mut *cancelling).await.unwrap();
    let releasing = tokio::spawn({
        let engine = engine.clone();
        async move { append(&engine, event("u", "a")).await }
    });
    until(async || waiters(&place).await == 1).await;
    cancelling.commit().await.unwrap();
    assert_eq!(releasing.await.unwrap(), Appended::Known);
    assert_eq!(append(&engine, event("u", "b")).await, Appended::Stored(1));
}

/// A call whose client gives up while something blocks it, and which commits later; the answer of the next attempt.
async fn given_up_and_tried_again<T: Send + 'static>(
    (place, store, blocking): (&Place, &PostgresStore, &'static str),
    call: impl Fn(Try) -> JoinHandle<Result<T, Error>>,
) -> T {
    let mut other = place.postgres().await;
    let mut blocker = other.begin().await.unwrap();
    sqlx::raw_sql(blocking).execute(&mut *blocker).await.unwrap();
    let first = call(Try::First);
    until(async || waiters(place).await == 1).await;
    // As if the answer had not come in time.
    first.abort();
    store.doubt_all();
    let next = call(Try::Again);
    until(async || waiters(place).await == 2).await;
    blocker.rollback().await.unwrap();
    next.await.unwrap().unwrap()
}

#[tokio::test]
async fn writes_that_are_given_up_and_commit_later_are_found() {
    let place = Place::database().await;
    let store = Arc::new(PostgresStore::open(&place.config()).await.unwrap());
    let engine = Engine::of(store.clone());
    append(&engine, event("u", "a")).await;
    acknowledge(&*engine.log, &user("u"), None, 0).await;
    let group =
        [("b", None), ("c", Some(id("d")))].map(|(text, digest)| Holding { event: Arc::new(event("u", text)), digest });
    let insert = "insert into waiting (user_id, notification_id, notification_type, payload, durability, priority, \
                  created_at, recorded_at, expires_at, shard, held_at, owed) \
                  values ('u', 'b', 't', '1', 1, 2, 1, 1, 1, 1, 1, false)";
    let held = given_up_and_tried_again((&place, &store, insert), |_| {
        let (log, group) = (engine.log.clone(), group.clone());
        tokio::spawn(async move { log.hold(&group).await })
    });
    assert_eq!(held.await, [Held::Waiting; 2]);
    let sent = step("u", (1, 1), &["a"], State::Sent);
    let noted = given_up_and_tried_again((&place, &store, "select * from cursors for update"), |attempt| {
        let (log, sent) = (engine.log.clone(), [sent.clone()]);
        let one = [Acknowledgement { user: user("u"), device: None, seq: 1 }];
        tokio::spawn(async move { log.acknowledge(&one, &sent, attempt).await })
    });
    noted.await;
    assert_eq!(ended_all(&engine).await, ["c deleted digested", "a sent "]);
    let backlog = engine.log.backlog(&user("u")).await.unwrap();
    assert_eq!((backlog.events.len(), backlog.folded.len()), (1, 1));
}

#[tokio::test]
async fn what_waits_and_what_was_told_survive_a_restart() {
    for place in Place::durable().await {
        let name = place.name();
        let mark = {
            let engine = place.open().await;
            engine.log.append(&events("u", ["1", "2", "3"])).await.unwrap();
            hold(&engine, event("u", "waits"), None).await;
            hold(&engine, event("u", "folded"), Some("d")).await;
            cancel(&engine, "u", "2").await;
            assert_eq!(engine.log.receipted().await.unwrap(), Mark::default(), "{name}");
            assert_eq!(ended_all(&engine).await.len(), 2, "{name}");
            let (_, mark) = ended(&engine, &Mark::default(), 10).await;
            engine.log.set_receipted(&mark).await.unwrap();
            engine.log.close().await.unwrap();
            mark
        };
        let engine = place.open().await;
        assert_eq!(engine.log.receipted().await.unwrap(), mark, "{name}");
        assert!(ended(&engine, &mark, 10).await.0.is_empty(), "{name}");
        assert_eq!(engine.log.users_waiting().await.unwrap(), [user("u")], "{name}");
        let backlog = engine.log.backlog(&user("u")).await.unwrap();
        assert_eq!((backlog.events.len(), backlog.folded.len()), (1, 1), "{name}");
        assert_eq!(shape(&engine, "u", 0, ALL).await, ["1", "2-2 Cancelled", "3"], "{name}");
        assert_eq!(append(&engine, event("u", "waits")).await, Appended::Stored(4), "{name}");
        end(&engine, "u", "waits", Reason::Expired).await;
        assert!(ended(&engine, &mark, 10).await.0.is_empty(), "it waited no more: {name}");
    }
}

/// A dump that was restored into another cluster brings entries and a mark of transactions that are still to come.
#[tokio::test]
async fn entries_of_another_cluster_are_told_of_anew() {
    let place = Place::database().await;
    let engine = place.open().await;
    hold(&engine, event("u", "a"), Some("d")).await;
    engine.log.set_receipted(&Mark("99999999999:9".into())).await.unwrap();
    execute(&place, "update journal set xid = '99999999999'").await;
    let engine = place.open().await;
    assert_eq!(engine.log.receipted().await.unwrap(), Mark::default());
    assert_eq!(ended_all(&engine).await, ["a deleted digested"]);
}

#[tokio::test]
async fn rows_that_go_are_noted_once_unless_they_had_ended() {
    for place in Place::durable().await {
        let name = place.name();
        let config = crate::store::Config { per_user_max: 5, ..place.config() };
        let engine = place.open_with(&config).await;
        engine.log.append(&events("u", 1..=6)).await.unwrap();
        engine.log.append(&events("v", ["v1"])).await.unwrap();
        // 1 is evicted, 4 cancelled.
        cancel(&engine, "u", "4").await;
        hold(&engine, event("u", "waits"), None).await;
        hold(&engine, event("u", "folded"), Some("d")).await;
        assert_eq!(ended_all(&engine).await.len(), 2, "{name}");
        let (_, mark) = ended(&engine, &Mark::default(), 10).await;
        assert!(account(&engine, "1").await.unwrap().evicted, "{name}");
        engine.log.digested(&[(user("u"), id("d"))]).await.unwrap();
        execute(&place, "update waiting set expires_at = 5").await;
        let now = unix_millis_now();
        match &place {
            Place::File(_) => {
                execute(&place, "update log set expires_at = 5; update removed set expires_at = 5").await;
                for _ in 0..2 {
                    engine.log.tidy().await.unwrap();
                }
            }
            _ => {
                let store = PostgresStore::open(&config).await.unwrap();
                store.keep_days(now + 12 * DAY).await.unwrap();
                store.keep_days(now + 12 * DAY).await.unwrap();
                store.keep_days(now).await.unwrap();
            }
        }
        let engine = place.open_with(&config).await;
        for _ in 0..2 {
            engine.log.tidy().await.unwrap();
        }
        let mut told = ended_since(&engine, &mark).await;
        told.sort();
        let expected = [
            "1 deleted evicted",
            "2 deleted expired",
            "3 deleted expired",
            "5 deleted expired",
            "6 deleted expired",
            "v1 deleted expired",
            "waits deleted expired",
        ];
        assert_eq!(told, expected, "{name}");
        assert!(account(&engine, "waits").await.is_none() && account(&engine, "folded").await.is_none(), "{name}");
        assert_eq!(shape(&engine, "u", 0, ALL).await.last().unwrap(), "2-6 Expired", "{name}");
    }
}

#[tokio::test]
async fn what_somebody_has_acknowledged_goes_without_a_word() {
    for place in Place::durable().await {
        let engine = place.open().await;
        engine.log.append(&events("u", ["1", "2"])).await.unwrap();
        let device = DeviceId::new("phone").unwrap();
        acknowledge(&*engine.log, &user("u"), Some(&device), 1).await;
        match &place {
            Place::File(_) => execute(&place, "update log set expires_at = 5").await,
            _ => {
                let store = PostgresStore::open(&place.config()).await.unwrap();
                store.keep_days(unix_millis_now() + 12 * DAY).await.unwrap();
                store.keep_days(unix_millis_now()).await.unwrap();
            }
        }
        let engine = place.open().await;
        engine.log.tidy().await.unwrap();
        assert_eq!(ended_all(&engine).await, ["2 deleted expired"], "{}", place.name());
    }
}

/// A partition that was detached when its process died is noted and dropped by the next one.
#[tokio::test]
async fn a_partition_that_was_only_detached_is_noted_too() {
    let place = Place::database().await;
    let engine = place.open().await;
    engine.log.append(&events("u", ["a"])).await.unwrap();
    let detach = "do $$ declare part text; begin for part in select tableoid::regclass::text from log loop \
                  execute 'alter table log detach partition ' || part; end loop; end $$";
    let store = PostgresStore::open(&place.config()).await.unwrap();
    execute(&place, detach).await;
    for days in [12, 0] {
        store.keep_days(unix_millis_now() + days * DAY).await.unwrap();
    }
    assert_eq!(ended_all(&Engine::of(Arc::new(store))).await, ["a deleted expired"]);
}

/// What the first version of this program has left.
async fn first_schema(place: &Place) {
    let now = unix_millis_now();
    let today = day(now);
    match place {
        Place::File(_) => {
            let url = format!("{}?mode=rwc", place.config().url);
            let mut file = SqliteConnection::connect(&url).await.unwrap();
            assert_eq!(Schema(&SQLITE.0[..1]).establish(&mut file, true).await.unwrap(), 1);
        }
        _ => {
            let mut database = place.postgres().await;
            assert_eq!(Schema(&POSTGRES.0[..1]).establish(&mut database, true).await.unwrap(), 1);
            let part = "create table log_1_{today} partition of log for values from (1, {today}) to (1, {end})";
            execute(place, &part.replace("{today}", &today.to_string()).replace("{end}", &(today + 1).to_string()))
                .await;
        }
    }
    let (days, of_day) = match place {
        Place::File(_) => (String::new(), ""),
        _ => (format!("1, {today}, "), "class, day, "),
    };
    let row = |seq: i64| {
        format!("('u', {seq}, 'old{seq}', {days}'t', '1', 1, 2, 'k', null, {now}, {now}, {now}, {})", now + DAY)
    };
    let fill = format!(
        "insert into log (user_id, seq, notification_id, {of_day}notification_type, payload, durability, priority, \
         collapse_key, ttl_ms, created_at, recorded_at, stored_at, expires_at) values {}, {}; \
         insert into heads values ('u', 2, 0); insert into cursors values ('u', '', 1, 1); \
         insert into meta (epoch, shards{}",
        row(1),
        row(2),
        match place {
            Place::File(_) => ", claim) values ('first', 64, 1)",
            _ => ") values ('first', 64)",
        }
    );
    execute(place, &fill).await;
}

#[tokio::test]
async fn a_store_of_the_first_schema_comes_to_this_one_with_its_rows() {
    for place in Place::durable().await {
        let name = place.name();
        first_schema(&place).await;
        let engine = place.open().await;
        assert_eq!(shape(&engine, "u", 0, ALL).await, ["1", "2"], "{name}");
        let opened = engine.log.open(&user("u"), None).await.unwrap();
        assert_eq!(opened, Opened { head: 2, cursor: 1, acknowledged: 1 }, "{name}");
        assert_eq!(*engine.log.epoch(), *"first", "{name}");
        assert_eq!(append(&engine, event("u", "new")).await, Appended::Stored(3), "{name}");
        engine.log.supersede(&[superseding(3, 3)]).await.unwrap();
        assert_eq!(shape(&engine, "u", 0, ALL).await, ["1", "3"], "{name}");
        assert_eq!(cancel(&engine, "u", "old1").await, Cancelled::Ended(State::Sent), "{name}");
        assert_eq!(ended_all(&engine).await, ["old2 deleted superseded"], "{name}");
    }
}
