//! On a table of a million rows every query finds what it wants by an index.

use sqlx::{AssertSqlSafe, Row as _};

use super::databases::Place;
use crate::{
    event::unix_millis_now,
    store::{postgres, row, sqlite},
};

const ROWS: i64 = 1_000_000;
const USERS: i64 = 50_000;

#[tokio::test]
async fn every_query_of_postgres_uses_its_index() {
    let place = Place::database().await;
    drop(place.open().await);
    let now = unix_millis_now();
    let (today, later) = (row::day(now), now + 1_000_000);
    let mut connection = place.postgres().await;
    let fill = format!(
        "insert into log select 'u' || n % {USERS}, n / {USERS} + 1, 'id' || n, 1, {today}, 't', '1'::bytea, 1, 2, null, \
         null, {now}, {now}, {now}, {later} from generate_series(0, {ROWS} - 1) n; \
         insert into heads select 'u' || n, {ROWS} / {USERS}, 0 from generate_series(0, {USERS} - 1) n; \
         insert into cursors select 'u' || n, '', 1, 1 from generate_series(0, {USERS} - 1) n; \
         insert into cursors select 'u' || n, 'phone', 1, 1 from generate_series(0, {USERS} - 1) n; \
         insert into sessions select 's' || n, 'u' || n, {later} from generate_series(0, {USERS} - 1) n; \
         analyze; set plan_cache_mode = force_generic_plan"
    );
    sqlx::raw_sql(AssertSqlSafe(fill)).execute(&mut connection).await.unwrap();
    let day = today;
    let append = format!(
        "array[1], array[1], 'o', array[1], array['u1'], array['new'], array[1], array[{day}], array[{now}], \
         array[{day}], array['t'], array['1'::bytea], array[1], array[2], array[null::text], array[null::bigint], \
         array[{now}], array[{now}], array[{later}], {day}, 1000, {now}"
    );
    let queries = [
        ("append", postgres::queries::APPEND, append),
        ("read", postgres::queries::READ, format!("'u1', 0, {now}, 64, 1000")),
        ("acknowledge", postgres::queries::ACKNOWLEDGE, format!("array['u1'], array['phone'], array[1], {now}")),
        ("open", postgres::queries::OPEN, "'u1', 'phone'".to_owned()),
        ("forget devices", postgres::queries::FORGET_DEVICES, "'u1', 64".to_owned()),
        ("find session", postgres::queries::FIND_SESSION, format!("'s1', {now}")),
        ("sessions of user", postgres::queries::SESSIONS_OF_USER, format!("'u1', {now}")),
        ("forget sessions", postgres::queries::FORGET_SESSIONS, now.to_string()),
    ];
    for (index, (name, sql, arguments)) in queries.into_iter().enumerate() {
        // As the engine's connections are set that write.
        let loops = if ["append", "acknowledge"].contains(&name) { "off" } else { "on" };
        let set = format!("set enable_nestloop = {loops}");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut connection).await.unwrap();
        let prepare = format!("prepare q{index} as {sql}");
        sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut connection).await.unwrap();
        let explain = format!("explain execute q{index}({arguments})");
        let plan = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_all(&mut connection).await.unwrap();
        let plan: Vec<String> = plan.iter().map(|line| line.get(0)).collect();
        let filled = [
            format!("Seq Scan on log_1_{today}"),
            "Seq Scan on heads".into(),
            "Seq Scan on cursors".into(),
            "Seq Scan on sessions".into(),
        ];
        let scans = plan.iter().any(|line| filled.iter().any(|scan| line.contains(scan)));
        assert!(!scans, "{name} reads a whole table:\n{}", plan.join("\n"));
    }
}

#[tokio::test]
async fn every_query_of_sqlite_uses_its_index() {
    let place = Place::file();
    drop(place.open().await);
    let mut connection = place.sqlite().await;
    let known = format!("{} values (1, 'u', 'i', 1)) {}", sqlite::queries::INCOMING, sqlite::queries::KNOWN);
    let queries = [
        (&*known, "log_ids"),
        (sqlite::queries::READ, "log_numbers"),
        (sqlite::queries::ACKNOWLEDGE, "SEARCH heads USING PRIMARY KEY"),
        (sqlite::queries::OPEN, "SEARCH cursors USING PRIMARY KEY"),
        (sqlite::queries::FORGET_EXPIRED, "log_expired"),
        (sqlite::queries::FORGET_DEVICES, "SEARCH cursors USING PRIMARY KEY"),
        (sqlite::queries::FIND_SESSION, "SEARCH sessions USING PRIMARY KEY"),
        (sqlite::queries::SESSIONS_OF_USER, "sessions_of_user"),
        (sqlite::queries::FORGET_SESSIONS, "sessions_expired"),
    ];
    for (sql, index) in queries {
        let plan = sqlx::raw_sql(AssertSqlSafe(format!("explain query plan {sql}")));
        let plan: Vec<String> = plan.fetch_all(&mut connection).await.unwrap().iter().map(|line| line.get(3)).collect();
        // SQLite has no statistics here: it would choose the same plan for a million rows.
        let reads_all = |line: &String| {
            ["log", "heads", "cursors", "sessions"].iter().any(|table| line.starts_with(&format!("SCAN {table}")))
        };
        let plan_text = plan.join("\n");
        assert!(!plan.iter().any(reads_all) && plan_text.contains(index), "{sql}\n{plan_text}");
    }
}
