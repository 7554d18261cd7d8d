//! Durable engines under faults: fences, statements whose outcome is not known, poison, exchanged databases, versions.

use std::{sync::Arc, time::Duration};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::{
    contract::{append, event, events, shape, user},
    databases::Place,
};
use crate::{
    event::{Event, Options, unix_millis_now},
    store::{
        Acknowledgement, Appended, Config, Engine, Error, PageLimit, Store as _, Try,
        positions::{Known, LogName},
        postgres::PostgresStore,
        schema::SchemaError,
        sqlite::SqliteStore,
    },
};

const ALL: PageLimit = PageLimit { items: 1000, bytes: 1 << 20 };

/// Asks again and again, for ten seconds at the most.
pub(super) async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "not within ten seconds");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn execute(connection: &mut PgConnection, sql: &'static str) {
    sqlx::raw_sql(sql).execute(connection).await.unwrap();
}

pub(super) fn log_name() -> LogName {
    LogName { cluster: "c".into(), topic: "t".into() }
}

#[tokio::test]
async fn a_former_owner_writes_nothing_and_learns_that_it_is_one() {
    for place in Place::durable().await {
        let former = place.open().await;
        former.log.append(&events("u", ["a"])).await.unwrap();
        former.positions.begin(&log_name(), &[(0, 1)]).await.unwrap();
        former.log.check().await.unwrap();
        let owner = place.open().await;
        let noticed = former.log.check().await;
        assert!(matches!(noticed, Err(Error::Lost { .. })), "without a write: {noticed:?} {}", place.name());
        owner.log.check().await.unwrap();
        owner.positions.begin(&log_name(), &[(0, 1)]).await.unwrap();
        let refused = former.log.append(&events("u", ["b"])).await;
        assert!(matches!(refused, Err(Error::Lost { .. })), "{refused:?} {}", place.name());
        let refused = former.positions.write(&log_name(), &[(0, 9)]).await;
        assert!(matches!(refused, Err(Error::Lost { .. })), "{refused:?} {}", place.name());
        assert_eq!(owner.log.append(&events("u", ["c"])).await.unwrap(), [Appended::Stored(2)], "{}", place.name());
        let known = owner.positions.take(&log_name(), &[0]).await.unwrap();
        assert_eq!(known, [(0, Known::At { position: 1, ahead: None })], "{}", place.name());
    }
}

/// A row lock that is held by somebody else makes the statement hang until the server gives it up.
#[tokio::test]
async fn a_statement_that_hangs_is_given_up_and_the_next_attempt_writes_once() {
    let place = Place::database().await;
    let engine = place.open().await;
    engine.log.append(&events("u", ["a"])).await.unwrap();
    let mut other = place.postgres().await;
    let mut blocking = other.begin().await.unwrap();
    execute(&mut blocking, "select * from heads for update").await;
    let group = events("u", ["b"]);
    let failed = engine.log.append(&group).await;
    assert!(matches!(failed, Err(Error::Unavailable { .. })), "{failed:?}");
    blocking.rollback().await.unwrap();
    assert_eq!(engine.log.append(&group).await.unwrap(), [Appended::Stored(2)]);
    assert_eq!(shape(&engine, "u", 0, ALL).await, ["1", "2"]);
}

/// The client gives up, the server goes on and commits: the next attempt finds the row.
#[tokio::test]
async fn a_statement_that_is_given_up_and_commits_later_is_found() {
    let place = Place::database().await;
    let store = Arc::new(PostgresStore::open(&place.config()).await.unwrap());
    let engine = Engine::of(store.clone());
    engine.log.append(&events("u", ["a"])).await.unwrap();
    let mut other = place.postgres().await;
    let mut blocking = other.begin().await.unwrap();
    execute(&mut blocking, "select * from heads for update").await;
    let (log, group) = (engine.log.clone(), events("u", ["b"]));
    let attempt = tokio::spawn({
        let group = group.clone();
        async move { log.append(&group).await }
    });
    let mut watching = place.postgres().await;
    let waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%fence%' \
                 and datname = current_database()";
    until(async || sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut watching).await.unwrap() == 1).await;
    // As if the answer had not come in time.
    attempt.abort();
    let _ = attempt.await;
    store.doubt_all();
    let retry = tokio::spawn({
        let (log, group) = (engine.log.clone(), group.clone());
        async move { log.append(&group).await }
    });
    let raises = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' \
                  and datname = current_database()";
    until(async || sqlx::query_scalar::<_, i64>(raises).fetch_one(&mut watching).await.unwrap() == 2).await;
    blocking.commit().await.unwrap();
    assert_eq!(retry.await.unwrap().unwrap(), [Appended::Duplicate(2)], "the first attempt has committed");
    assert_eq!(engine.log.append(&events("u", ["c"])).await.unwrap(), [Appended::Stored(3)]);
    assert_eq!(shape(&engine, "u", 0, ALL).await, ["1", "2", "3"]);
}

#[tokio::test]
async fn connections_that_are_cut_harm_nothing() {
    let place = Place::database().await;
    let engine = place.open().await;
    engine.log.append(&events("u", 0..10)).await.unwrap();
    let mut other = place.postgres().await;
    execute(
        &mut other,
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()",
    )
    .await;
    let group = events("u", 5..20);
    let mut outcomes = Vec::new();
    until(async || match engine.log.append(&group).await {
        Ok(done) => {
            outcomes = done;
            true
        }
        Err(error) => {
            assert!(matches!(error, Error::Unavailable { .. }), "{error}");
            false
        }
    })
    .await;
    assert_eq!(&outcomes[..5], (6..=10).map(Appended::Duplicate).collect::<Vec<_>>());
    assert_eq!(&outcomes[5..], (11..=20).map(Appended::Stored).collect::<Vec<_>>());
}

#[tokio::test]
async fn more_calls_than_connections_all_get_one() {
    let place = Place::database().await;
    let engine = place.open().await;
    let calls = (0..40).map(|caller| {
        let engine = engine.clone();
        tokio::spawn(async move {
            for n in 1..=3 {
                let stored = append(&engine, event(&format!("u{caller}"), &n.to_string())).await;
                assert_eq!(stored, Appended::Stored(n), "one that rests is not kept from those who wait");
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
}

#[tokio::test]
async fn an_event_that_the_database_refuses_is_found_among_500() {
    for place in Place::durable().await {
        let engine = place.open().await;
        match &place {
            Place::File(_) => {
                let refuse = "create trigger refuse before insert on log when new.notification_type = 'poison' \
                              begin select raise(abort, 'poison'); end";
                sqlx::raw_sql(refuse).execute(&mut place.sqlite().await).await.unwrap();
            }
            _ => {
                let refuse = "alter table log add constraint refuse check (notification_type <> 'poison')";
                execute(&mut place.postgres().await, refuse).await;
            }
        }
        let mut group = events("u", 0..500);
        group[123] = Arc::new(Event { notification_type: "poison".into(), ..event("u", "bad") });
        let outcomes = engine.log.append(&group).await.unwrap();
        assert_eq!(outcomes[123], Appended::Refused, "{}", place.name());
        // What was written before the bad one was found keeps its place; numbers go on without a hole.
        let numbers: Vec<_> = outcomes.iter().filter(|outcome| **outcome != Appended::Refused).collect();
        let expected: Vec<_> = (1..=499).map(Appended::Stored).collect();
        assert_eq!(numbers, expected.iter().collect::<Vec<_>>(), "{}", place.name());
    }
}

#[tokio::test]
async fn a_missing_partition_is_no_poison_and_is_made() {
    let place = Place::database().await;
    let engine = place.open().await;
    let drop_all = "do $$ declare part text; begin for part in select inhrelid::regclass::text from pg_inherits \
                    where inhparent = 'log'::regclass loop execute 'drop table ' || part; end loop; end $$";
    execute(&mut place.postgres().await, drop_all).await;
    let group = events("u", ["a"]);
    let failed = engine.log.append(&group).await;
    assert!(matches!(failed, Err(Error::Unavailable { .. })), "{failed:?}");
    engine.log.check().await.unwrap();
    assert_eq!(engine.log.append(&group).await.unwrap(), [Appended::Stored(1)]);
}

#[tokio::test]
async fn partitions_that_are_over_are_dropped_whole_and_numbers_go_on() {
    let place = Place::database().await;
    let store = PostgresStore::open(&place.config()).await.unwrap();
    let engine = Engine::of(Arc::new(store));
    let hour = Options { ttl: Some(Duration::from_secs(3600)), ..Options::default() };
    let month = Options { ttl: Some(Duration::from_secs(30 * 86_400)), ..Options::default() };
    let group = [
        Event { options: hour, ..event("u", "hour") },
        event("u", "week"),
        Event { options: month, ..event("u", "month") },
    ];
    engine.log.append(&group.map(Arc::new)).await.unwrap();
    let store = PostgresStore::open(&place.config()).await.unwrap();
    let count = async || {
        let count: i64 =
            sqlx::query_scalar("select count(*) from log").fetch_one(&mut place.postgres().await).await.unwrap();
        count
    };
    for (days, left) in [(0, 3), (3, 2), (12, 1), (50, 0)] {
        store.keep_days(unix_millis_now() + days * 86_400_000).await.unwrap();
        assert_eq!(count().await, left, "after {days} days");
    }
    store.keep_days(unix_millis_now()).await.unwrap();
    let engine = Engine::of(Arc::new(store));
    assert_eq!(engine.log.append(&events("u", ["next"])).await.unwrap(), [Appended::Stored(4)]);
    assert_eq!(shape(&engine, "u", 0, ALL).await, ["1-3 Expired", "4"]);
}

#[tokio::test]
async fn a_file_without_room_takes_what_it_refused_when_there_is_some() {
    let place = Place::file();
    let store = Arc::new(SqliteStore::open(&place.config()).await.unwrap());
    let engine = Engine::of(store.clone());
    engine.log.append(&events("u", ["a"])).await.unwrap();
    store.bound(1).await;
    let group: Vec<_> =
        (0..500).map(|n| Arc::new(Event { payload: "x".repeat(1000).into(), ..event("u", &n.to_string()) })).collect();
    let failed = engine.log.append(&group).await;
    let full = |reason: &str| reason.contains("full");
    assert!(matches!(&failed, Err(Error::Unavailable { reason }) if full(reason)), "{failed:?}");
    store.bound(1_000_000).await;
    let numbers: Vec<_> = (2..=501).map(Appended::Stored).collect();
    assert_eq!(engine.log.append(&group).await.unwrap(), numbers);
    assert_eq!(shape(&engine, "u", 500, ALL).await, ["501"]);
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_is_its_users_alone_and_holds_everything_when_it_is_closed() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::file();
    let engine = place.open().await;
    engine.log.append(&events("u", ["a"])).await.unwrap();
    let Place::File(file) = &place else { unreachable!("a file") };
    let dir = file.path();
    let names = || std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()).collect::<Vec<_>>();
    for entry in names() {
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
    }
    assert!(names().len() > 1, "a write-ahead log");
    engine.log.close().await.unwrap();
    assert_eq!(names().len(), 1, "{:?}", names());
}

#[tokio::test]
async fn a_database_that_was_exchanged_or_emptied_is_noticed() {
    let place = Place::database().await;
    let engine = place.open().await;
    engine.log.check().await.unwrap();
    execute(&mut place.postgres().await, "update meta set epoch = 'another'").await;
    assert!(matches!(engine.log.check().await, Err(Error::Lost { .. })));
    execute(&mut place.postgres().await, "drop schema public cascade; create schema public").await;
    assert!(matches!(engine.log.check().await, Err(Error::Lost { .. })));
    let place = Place::file();
    let engine = place.open().await;
    sqlx::raw_sql("update meta set epoch = 'another'").execute(&mut place.sqlite().await).await.unwrap();
    assert!(matches!(engine.log.check().await, Err(Error::Lost { .. })));
    assert!(matches!(engine.log.append(&events("u", ["a"])).await, Err(Error::Lost { .. })));
}

#[tokio::test]
async fn a_store_that_went_back_begins_a_new_epoch_and_knows_the_old_one() {
    for place in Place::durable().await {
        let engine = place.open().await;
        let old = engine.log.epoch().to_string();
        engine.positions.begin(&log_name(), &[(0, 10)]).await.unwrap();
        engine.positions.write(&log_name(), &[(0, 20)]).await.unwrap();
        let back = "update partition_claims set position = 15";
        match &place {
            Place::File(_) => drop(sqlx::raw_sql(back).execute(&mut place.sqlite().await).await.unwrap()),
            _ => execute(&mut place.postgres().await, back).await,
        }
        let lost = engine.positions.write(&log_name(), &[(0, 30)]).await;
        assert!(matches!(lost, Err(Error::Lost { .. })), "{lost:?} {}", place.name());
        let engine = place.open().await;
        assert!(*engine.log.epoch() != *old && engine.log.was(&old) && !engine.log.was("other"), "{}", place.name());
        let known = engine.positions.take(&log_name(), &[0]).await.unwrap();
        assert_eq!(known, [(0, Known::At { position: 15, ahead: None })], "{}", place.name());
        // Kafka's copy says so too; it is news once.
        let lost = engine.positions.went_back(&log_name(), &[(0, 20)]).await;
        assert!(matches!(lost, Err(Error::Lost { .. })), "{}", place.name());
        let known = place.open().await.positions.take(&log_name(), &[0]).await.unwrap();
        assert_eq!(known, [(0, Known::At { position: 15, ahead: Some(20) })], "{}", place.name());
    }
}

#[tokio::test]
async fn a_store_that_went_back_is_noticed_by_looking_while_nothing_is_written() {
    for place in Place::durable().await {
        let engine = place.open().await;
        let old = engine.log.epoch().to_string();
        engine.positions.begin(&log_name(), &[(0, 10)]).await.unwrap();
        engine.positions.write(&log_name(), &[(0, 20)]).await.unwrap();
        engine.log.check().await.unwrap();
        let back = "update partition_claims set position = 15";
        match &place {
            Place::File(_) => drop(sqlx::raw_sql(back).execute(&mut place.sqlite().await).await.unwrap()),
            _ => execute(&mut place.postgres().await, back).await,
        }
        let lost = engine.log.check().await;
        assert!(matches!(lost, Err(Error::Lost { .. })), "{lost:?} {}", place.name());
        assert!(place.open().await.log.was(&old), "{}", place.name());
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_used_at_the_start_is_told_from_others_once() {
    let open =
        async |url: &str| Engine::open(&Config { url: url.into(), ..Place::file().config() }).await.err().unwrap();
    for (url, why) in [
        ("postgres://u@127.0.0.1:1/d", "127.0.0.1: error communicating with database: Connection refused"),
        ("sqlite:/nowhere/at/all.db", "unable to open database file"),
    ] {
        let error = open(url).await;
        let said = format!("{:#}", anyhow::Error::new(error));
        assert_eq!(said.matches(why).count(), 1, "{said}");
    }
}

#[tokio::test]
async fn a_schema_of_another_version_is_refused_and_says_what_to_do() {
    for place in Place::durable().await {
        let (versions, next) = if matches!(place, Place::File(_)) { (2, 3) } else { (3, 4) };
        let check = Config { may_migrate: false, ..place.config() };
        let refused = Engine::open(&check).await.err().unwrap();
        let is_older = matches!(refused, SchemaError::Older { found: 0, needed } if needed == versions);
        assert!(is_older, "{refused} {}", place.name());
        assert!(refused.is_refusal() && refused.to_string().contains("notifier migrate"));
        let applied = crate::store::migrate(&place.config()).await.unwrap();
        assert_eq!(i64::try_from(applied), Ok(versions), "{}", place.name());
        assert_eq!(crate::store::migrate(&place.config()).await.unwrap(), 0, "{}", place.name());
        Engine::open(&check).await.unwrap();
        let refused = Engine::open(&Config { shards: 63, ..place.config() }).await.err().unwrap();
        assert!(matches!(refused, SchemaError::Shards { stored: 64, configured: 63 }), "{refused}");
        let newer = format!(
            "insert into _sqlx_migrations (version, description, success, checksum, execution_time) \
             values ({next}, 'later', true, '', 0)"
        );
        match &place {
            Place::File(_) => {
                sqlx::raw_sql(AssertSqlSafe(newer)).execute(&mut place.sqlite().await).await.unwrap();
            }
            _ => {
                sqlx::raw_sql(AssertSqlSafe(newer)).execute(&mut place.postgres().await).await.unwrap();
            }
        }
        for config in [place.config(), check] {
            let refused = Engine::open(&config).await.err().unwrap();
            let is_newer = matches!(refused, SchemaError::Newer { found, known } if (found, known) == (next, versions));
            assert!(is_newer, "{refused} {}", place.name());
        }
        assert!(matches!(crate::store::migrate(&place.config()).await, Err(SchemaError::Newer { .. })));
    }
}

#[tokio::test]
async fn a_password_file_is_used_and_read_again() {
    let place = Place::database().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "first\n").unwrap();
    let engine = place.open_with(&Config { password_file: Some(file.clone()), ..place.config() }).await;
    std::fs::write(&file, "second\n").unwrap();
    engine.log.check().await.unwrap();
    assert_eq!(engine.log.append(&events("u", ["a"])).await.unwrap(), [Appended::Stored(1)]);
    assert_eq!(engine.log.open(&user("u"), None).await.unwrap().head, 1);
}

/// Notes go beside the statements that give numbers, for the same shards: either may raise epochs while the other is
/// under way, and that is no other process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn epochs_that_are_raised_beside_a_write_do_not_look_like_another_owner() {
    let place = Place::database().await;
    let store = Arc::new(PostgresStore::open(&place.config()).await.unwrap());
    append(&Engine::of(store.clone()), event("u", "first")).await;
    let writing = (0..6).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut again = 0;
            for n in 0..40 {
                if n % 3 == 0 {
                    store.doubt_all();
                }
                let one = [Acknowledgement { user: user("u"), device: None, seq: 1 }];
                let group = [Arc::new(event("u", &format!("{writer}-{n}")))];
                loop {
                    let done = match writer {
                        0 => store.append(&group).await.map(drop),
                        _ => store.acknowledge(&one, &[], Try::First).await,
                    };
                    assert!(again < 10_000, "it never ends");
                    match done {
                        Ok(()) => break,
                        Err(Error::Unavailable { .. }) => again += 1,
                        Err(lost) => panic!("{lost}"),
                    }
                }
            }
            again
        })
    });
    let mut again = 0;
    for writer in writing.collect::<Vec<_>>() {
        again += writer.await.unwrap();
    }
    assert!(again > 0, "no write was overtaken");
    assert_eq!(store.open(&user("u"), None).await.unwrap().head, 41);
}
