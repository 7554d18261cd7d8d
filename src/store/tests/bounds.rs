//! What durable engines look at for one call, however much there is; what they keep in one row; and that one piece that
//! cannot be tidied does not keep the others.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};

use super::{
    contract::{append, event, events, shape, user},
    databases::Place,
    states::{account, cancel, ended_all, hold, step, superseding},
};
use crate::{
    event::{Event, Options, unix_millis_now},
    ids::SessionId,
    state::State,
    store::{
        Appended, Config, PageLimit, Try,
        postgres::{self, PostgresStore},
        row::signed,
        sessions::Started,
        sqlite,
    },
};

const DAY: i64 = 86_400_000;

async fn execute(place: &Place, sql: &str) {
    let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
    match place {
        Place::File(_) => _ = sql.execute(&mut place.sqlite().await).await.unwrap(),
        _ => _ = sql.execute(&mut place.postgres().await).await.unwrap(),
    }
}

/// So many rows of all tables a statement looks at; what it writes is taken back.
async fn rows_looked_at(place: &Place, statement: &str, arguments: &str) -> i64 {
    let mut connection = place.postgres().await;
    let begin = format!("set plan_cache_mode = force_generic_plan; prepare q as {statement}; begin");
    sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut connection).await.unwrap();
    let read = "select sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint from pg_stat_xact_user_tables";
    let before: i64 = sqlx::query_scalar(read).fetch_one(&mut connection).await.unwrap();
    let execute = format!("execute q({arguments})");
    sqlx::raw_sql(AssertSqlSafe(execute)).execute(&mut connection).await.unwrap();
    let after: i64 = sqlx::query_scalar(read).fetch_one(&mut connection).await.unwrap();
    after - before
}

/// So many pages of tables and indexes a query looks at.
async fn pages_looked_at(place: &Place, query: &str, arguments: &str) -> u64 {
    let mut connection = place.postgres().await;
    let prepare = format!("set plan_cache_mode = force_generic_plan; prepare q as {query}");
    sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut connection).await.unwrap();
    let explain = format!("explain (analyze, buffers, timing off, format json) execute q({arguments})");
    let plan = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_one(&mut connection).await.unwrap();
    // JSON, which is text on the wire.
    let plan: serde_json::Value = serde_json::from_str(&plan.get_unchecked::<String, _>(0)).unwrap();
    let of_all = &plan[0]["Plan"];
    ["Shared Hit Blocks", "Shared Read Blocks"].iter().map(|blocks| of_all[blocks].as_u64().unwrap()).sum()
}

/// So many steps of its machine SQLite makes from here on.
async fn count_steps(connection: &mut SqliteConnection) -> Arc<AtomicU64> {
    let steps = Arc::new(AtomicU64::new(0));
    let counted = steps.clone();
    connection.lock_handle().await.unwrap().set_progress_handler(1, move || {
        counted.fetch_add(1, Ordering::Relaxed);
        true
    });
    steps
}

/// A user is away while one key's notifications come and come: each group looks at itself, not at all that came before.
#[tokio::test]
async fn superseding_looks_at_a_group_and_a_few_more() {
    const GROUP: u64 = 512;
    const GROUPS: u64 = 40;
    for place in Place::durable().await {
        let name = place.name();
        let engine = place.open_with(&Config { per_user_max: 100_000, ..place.config() }).await;
        let options = Options { collapse_key: Some("k".into()), ..Options::default() };
        let (mut first, mut last) = (0, 0);
        for group in 0..GROUPS {
            (first, last) = (group * GROUP + 1, (group + 1) * GROUP);
            let keyed = |n: u64| Arc::new(Event { options: options.clone(), ..event("u", &n.to_string()) });
            engine.log.append(&(first..=last).map(keyed).collect::<Vec<_>>()).await.unwrap();
            if group + 1 < GROUPS {
                engine.log.supersede(&[superseding(last, first)]).await.unwrap();
            }
        }
        let now = unix_millis_now();
        match &place {
            Place::File(_) => {
                let mut file = place.sqlite().await;
                let steps = count_steps(&mut file).await;
                let find = sqlx::query_as::<_, (i64, String)>(sqlite::queries::SUPERSEDED).bind("u").bind("k");
                let find = find.bind(signed(last)).bind(signed(first)).bind(now).bind(16);
                assert_eq!(find.fetch_all(&mut file).await.unwrap().len(), 512, "{name}");
                let steps = steps.load(Ordering::Relaxed);
                assert!(steps < 100 * GROUP, "{steps} steps for {GROUP} rows");
            }
            _ => {
                let arguments = format!("array[1], array['u'], array['k'], array[{last}], array[{first}], {now}, 16");
                let rows = rows_looked_at(&place, postgres::queries::SUPERSEDE, &arguments).await;
                assert!((512..700).contains(&rows), "{rows} rows");
            }
        }
        engine.log.supersede(&[superseding(last, first)]).await.unwrap();
        let all = PageLimit { items: 100_000, bytes: 1 << 30 };
        assert_eq!(shape(&engine, "u", 0, all).await, [last.to_string()], "{name}");
    }
}

/// Of what is older than the group only the last few are looked at: they are what came since the last time.
#[tokio::test]
async fn of_what_came_before_the_last_sixteen_are_superseded() {
    for place in Place::durable().await {
        let engine = place.open().await;
        let options = Options { collapse_key: Some("k".into()), ..Options::default() };
        let keyed = |n: u64| Arc::new(Event { options: options.clone(), ..event("u", &n.to_string()) });
        engine.log.append(&(1..=25).map(keyed).collect::<Vec<_>>()).await.unwrap();
        engine.log.supersede(&[superseding(25, 23)]).await.unwrap();
        let all = PageLimit { items: 100, bytes: 1 << 20 };
        let left = [1, 2, 3, 4, 5, 6, 25].map(|n| n.to_string());
        assert_eq!(shape(&engine, "u", 0, all).await, left, "{}", place.name());
    }
}

#[tokio::test]
async fn the_history_of_an_old_number_does_not_read_all_that_came_after_it() {
    const NUMBERS: u64 = 20_000;
    for place in Place::durable().await {
        let name = place.name();
        let engine = place.open().await;
        append(&engine, event("u", "1")).await;
        let notes: Vec<_> = (1..=NUMBERS).map(|n| step("u", (n, n), &[], State::Active)).collect();
        for group in notes.chunks(2000) {
            engine.log.acknowledge(&[], group, Try::First).await.unwrap();
        }
        match &place {
            Place::File(_) => {
                let mut file = place.sqlite().await;
                let steps = count_steps(&mut file).await;
                let find = sqlx::query(sqlite::queries::STEPS).bind("u").bind(1).bind("1").bind(100);
                assert_eq!(find.fetch_all(&mut file).await.unwrap().len(), 1, "{name}");
                let steps = steps.load(Ordering::Relaxed);
                assert!(steps < 20_000, "{steps} steps");
            }
            _ => {
                let pages = pages_looked_at(&place, postgres::queries::STEPS, "'u', 1, '1', 100").await;
                assert!(pages < 80, "{pages} pages");
            }
        }
        assert_eq!(account(&engine, "1").await.unwrap().steps.len(), 1, "{name}");
    }
}

#[tokio::test]
async fn a_long_stretch_is_found_by_each_of_its_numbers() {
    for place in Place::durable().await {
        let engine = place.open_with(&Config { per_user_max: 5000, ..place.config() }).await;
        for group in [1..=1250, 1251..=2500] {
            engine.log.append(&events("u", group)).await.unwrap();
        }
        let handed = step("u", (1, 2500), &[], State::Active);
        for attempt in [Try::First, Try::Again] {
            engine.log.acknowledge(&[], std::slice::from_ref(&handed), attempt).await.unwrap();
        }
        for text in ["1", "2", "1000", "1001", "2499", "2500"] {
            let steps = account(&engine, text).await.unwrap().steps;
            assert_eq!(steps.len(), 1, "{text} {}", place.name());
        }
    }
}

#[tokio::test]
async fn what_was_taken_back_has_ended_when_the_journal_is_gone() {
    for place in Place::all().await {
        let engine = place.open().await;
        let name = place.name();
        let options = Options { collapse_key: Some("k".into()), ..Options::default() };
        let keyed = |text: &str| Event { options: options.clone(), ..event("u", text) };
        for one in [event("u", "numbered"), keyed("older"), keyed("newer"), event("u", "there")] {
            assert!(matches!(append(&engine, one).await, Appended::Stored(_)), "{name}");
        }
        engine.log.supersede(&[superseding(3, 3)]).await.unwrap();
        cancel(&engine, "u", "numbered").await;
        for text in ["waits", "waited"] {
            hold(&engine, event("u", text), None).await;
        }
        hold(&engine, event("u", "folded"), Some("d")).await;
        cancel(&engine, "u", "waited").await;
        if !matches!(place, Place::Memory) {
            execute(&place, "delete from journal").await;
        }
        let expected = [
            ("numbered", "deleted cancelled"),
            ("older", "deleted superseded"),
            ("newer", "pending "),
            ("there", "pending "),
            ("waits", "pending "),
            ("waited", "deleted cancelled"),
            ("folded", "deleted digested"),
        ];
        for (text, expected) in expected {
            let mut account = account(&engine, text).await.unwrap();
            if matches!(place, Place::Memory) {
                account.steps.clear();
            }
            assert!(account.steps.is_empty(), "{text} {name}");
            let history = account.history(unix_millis_now(), 0);
            let (state, reason) = crate::store::journal::standing(&history);
            let stands = format!("{} {}", state.as_str(), reason.map_or("", crate::state::Reason::as_str));
            assert_eq!(stands, expected, "{text} {name}");
            assert!(history.iter().all(|happened| happened.at >= account.stored_at), "{text} {name}");
        }
    }
}

#[tokio::test]
async fn what_goes_with_its_partition_is_noted_in_pieces() {
    let place = Place::database().await;
    let engine = place.open_with(&Config { per_user_max: 5000, ..place.config() }).await;
    for group in [1..=1250, 1251..=2500] {
        engine.log.append(&events("u", group)).await.unwrap();
    }
    let store = PostgresStore::open(&place.config()).await.unwrap();
    store.keep_days(unix_millis_now() + 12 * DAY).await.unwrap();
    store.keep_days(unix_millis_now()).await.unwrap();
    let noted: Vec<(i64, i64, i32)> =
        sqlx::query_as("select first, last, cardinality(ids) from journal where state = 5 order by first")
            .fetch_all(&mut place.postgres().await)
            .await
            .unwrap();
    assert_eq!(noted, [(1, 999, 999), (1000, 1999, 1000), (2000, 2500, 501)]);
    assert_eq!(ended_all(&place.open().await).await.len(), 2500);
}

#[tokio::test]
async fn a_partition_that_cannot_go_keeps_nothing_else() {
    let place = Place::database().await;
    let engine = place.open().await;
    for (class, table) in [(0, "log_0_19000"), (1, "log_1_19000")] {
        let make = "create table {table} partition of log for values from ({class}, 19000) to ({class}, 19001)";
        execute(&place, &make.replace("{table}", table).replace("{class}", &class.to_string())).await;
    }
    execute(&place, "create view needs_it as select * from log_0_19000").await;
    hold(&engine, event("u", "waits"), None).await;
    append(&engine, event("u", "a")).await;
    cancel(&engine, "u", "a").await;
    let expires_at = unix_millis_now() + 60_000;
    let started = Started { session: SessionId::random(), user: user("u"), expires_at };
    engine.sessions.start(started).await.unwrap();
    execute(
        &place,
        "update waiting set expires_at = 5; update removed set expires_at = 5; update sessions set expires_at = 5",
    )
    .await;
    for _ in 0..2 {
        let error = engine.log.tidy().await.unwrap_err().to_string();
        assert!(error.contains("log_0_19000"), "{error}");
    }
    for what in ["waiting", "removed", "sessions", "pg_class where relname = 'log_1_19000'"] {
        let count = format!("select count(*) from {what}");
        let left: i64 = sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut place.postgres().await).await.unwrap();
        assert_eq!(left, 0, "{what}");
    }
    execute(&place, "drop view needs_it").await;
    engine.log.tidy().await.unwrap();
}
