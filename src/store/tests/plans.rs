//! On a table of a million rows every query finds what it wants by an index.

use sqlx::{AssertSqlSafe, Row as _};

use super::databases::Place;
use crate::{
    event::unix_millis_now,
    store::{postgres, row, sqlite},
};

const ROWS: i64 = 1_000_000;
const USERS: i64 = 50_000;
const MANY: i64 = 200_000;

#[tokio::test]
async fn every_query_of_postgres_uses_its_index() {
    let place = Place::database().await;
    drop(place.open().await);
    let now = unix_millis_now();
    let (today, later) = (row::day(now), now + 1_000_000);
    let mut connection = place.postgres().await;
    // Each on its own, and short: on a server where a transaction writes for long, no tail of a journal moves on.
    let mut fills: Vec<String> = (0..10)
        .map(|tenth| {
            format!(
                "insert into log select 'u' || n % {USERS}, n / {USERS} + 1, 'id' || n, 1, {today}, 't', '1'::bytea, 1, 2, \
                 null, null, {now}, {now}, {now}, {later} \
                 from generate_series({tenth} * {ROWS} / 10, ({tenth} + 1) * {ROWS} / 10 - 1) n"
            )
        })
        .collect();
    let of_users = |what: &str| format!("insert into {what} from generate_series(0, {USERS} - 1) n");
    let many = |what: &str| format!("insert into {what} from generate_series(0, {MANY} - 1) n");
    let (user, seq) = (format!("'u' || n % {USERS}"), format!("n / {USERS} + 1"));
    fills.extend([
        of_users(&format!("heads select 'u' || n, {ROWS} / {USERS}, 0")),
        of_users("cursors select 'u' || n, '', 1, 1"),
        of_users("cursors select 'u' || n, 'phone', 1, 1"),
        of_users(&format!("sessions select 's' || n, 'u' || n, {later}")),
        many(&format!("journal (user_id, first, last, state, at) select {user}, {seq}, {seq}, 1 + n % 3, {now}")),
        many(&format!(
            "journal (user_id, first, last, ids, state, at) select {user}, 0, 0, array['w' || n], 5, {now}"
        )),
        many(&format!(
            "waiting (user_id, notification_id, notification_type, payload, durability, priority, created_at, \
             recorded_at, expires_at, shard, held_at, ended, owed) select {user}, 'w' || n, 't', '1', 1, 2, {now}, {now}, \
             {later}, 1, {now}, case when n % 1000 > 0 then 0 end, false"
        )),
        many(&format!("removed select {user}, {seq}, 4, {now}, {later}")),
        "analyze".to_owned(),
        "set plan_cache_mode = force_generic_plan".to_owned(),
    ]);
    for fill in fills {
        sqlx::raw_sql(AssertSqlSafe(fill)).execute(&mut connection).await.unwrap();
    }
    let day = today;
    let fence = "array[1], array[1], 'o'";
    let group = format!(
        "{fence}, array[1], array['u1'], array['new'], array[1], array[{day}], array[{now}], {day}, array['t'], \
         array['1'::bytea], array[1], array[2], array[null::text], array[null::bigint], array[{now}], array[{now}], \
         array[{later}], {day}, {now}, array['d']"
    );
    let acknowledge = format!(
        "{fence}, array[1], array['u1'], array['phone'], array[1], {now}, array[1], array['u1'], array[1], array[1], \
         array['i'], array[3], array[null::smallint], array['s'], array['d'], array[null::bigint], array[{now}]"
    );
    let of_users = "array[1], array['u1'], array['w1']";
    use postgres::{queries as q, retention as r};
    let queries = [
        ("append", q::APPEND, format!("{group}, 1000")),
        ("hold", q::HOLD, group),
        ("read", q::READ, format!("'u1', 0, {now}, 64, 1000")),
        ("acknowledge", q::ACKNOWLEDGE, acknowledge.clone()),
        ("acknowledge again", q::ACKNOWLEDGE_AGAIN, acknowledge),
        ("open", q::OPEN, "array['u1'], array['phone']".to_owned()),
        ("end", q::END, format!("{fence}, {of_users}, array[1], {now}")),
        ("digested", q::DIGESTED, format!("{fence}, {of_users}")),
        ("backlog", q::BACKLOG, "'u1'".to_owned()),
        ("owed", q::OWED, "'u1'".to_owned()),
        ("users waiting", q::USERS_WAITING, String::new()),
        ("forget waiting", r::FORGET_WAITING, format!("{now}, 2000")),
        ("forget removed", r::FORGET_REMOVED, format!("{now}, 2000")),
        ("account", q::ACCOUNT, "'u1', 'id1'".to_owned()),
        ("account of one that waits", q::ACCOUNT_WAITING, "'u1', 'w1'".to_owned()),
        ("steps", q::STEPS, "'u1', 1, 'id1', 100".to_owned()),
        ("ended", q::ENDED_AFTER, "'0', 0, 100".to_owned()),
        ("ids", q::IDS, "array['u1'], array[1], array[2]".to_owned()),
        ("removed", q::REMOVED, "array['u1'], array[1], array[2]".to_owned()),
        ("cancel what waits", q::CANCEL_WAITING, format!("'u1', 'w1', 4, {now}")),
        ("standing", q::STANDING, "'u1', 'id1'".to_owned()),
        ("remove", q::REMOVE, format!("'u1', 'id1', 1, 4, {now}, 1")),
        ("supersede", q::SUPERSEDE, format!("array[1], array['u1'], array['k'], array[9], array[7], {now}, 16")),
        ("adopt", q::ADOPT, String::new()),
        ("new devices", q::NEW_DEVICES, format!("{fence}, array[1], array['u1'], array['new'], array[1], {now}, 64")),
        ("forget devices", q::FORGET_DEVICES, format!("{fence}, 'u1', 64")),
        ("find session", q::FIND_SESSION, format!("'s1', {now}")),
        ("sessions of user", q::SESSIONS_OF_USER, format!("'u1', {now}")),
        ("forget sessions", r::FORGET_SESSIONS, now.to_string()),
    ];
    let mut bad = Vec::new();
    for (index, (name, sql, arguments)) in queries.into_iter().enumerate() {
        // As the engine's connections are set that write.
        let loops = if ["append", "hold", "acknowledge", "acknowledge again"].contains(&name) { "off" } else { "on" };
        let set = format!("set enable_nestloop = {loops}");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut connection).await.unwrap();
        let prepare = format!("prepare q{index} as {sql}");
        sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut connection).await.unwrap();
        let arguments = if arguments.is_empty() { arguments } else { format!("({arguments})") };
        let explain = format!("explain execute q{index}{arguments}");
        let plan = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_all(&mut connection).await.unwrap();
        let plan: Vec<String> = plan.iter().map(|line| line.get(0)).collect();
        let filled = [
            format!("Seq Scan on log_1_{today}"),
            "Seq Scan on heads".into(),
            "Seq Scan on cursors".into(),
            "Seq Scan on sessions".into(),
            format!("Seq Scan on journal_{today}"),
            "Seq Scan on waiting".into(),
            "Seq Scan on removed".into(),
        ];
        let scans = plan.iter().any(|line| filled.iter().any(|scan| line.contains(scan)));
        if scans {
            bad.push(format!("{name} reads a whole table:\n{}", plan.join("\n")));
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n\n"));
}

#[tokio::test]
async fn every_query_of_sqlite_uses_its_index() {
    let place = Place::file();
    drop(place.open().await);
    let mut connection = place.sqlite().await;
    use sqlite::queries as q;
    let of_group = |query: &str| format!("{} values (1, 'u', 'i', 1)) {query}", q::INCOMING);
    let (known, waiting) = (of_group(q::KNOWN), of_group(q::STANDING_WAITING));
    let acknowledge = format!("{} values ('u', '', 1, 1)) {}", q::ACKNOWLEDGED, q::ACKNOWLEDGE);
    let release = format!("{}1, 2)", q::RELEASE);
    let queries = [
        (&*known, "log_ids"),
        (&*waiting, "waiting_ids"),
        (&*release, "SEARCH waiting USING INTEGER PRIMARY KEY"),
        (q::READ, "log_numbers"),
        (&*acknowledge, "SEARCH heads USING PRIMARY KEY"),
        (q::OPEN, "SEARCH cursors USING PRIMARY KEY"),
        (q::NOTE_AGAIN, "journal_numbers"),
        (q::NOTE_UNNUMBERED_AGAIN, "journal_ids"),
        (q::END, "waiting_ids"),
        (q::DIGESTED, "waiting_users"),
        (q::BACKLOG, "waiting_users"),
        (q::OWED, "waiting_users"),
        (q::USERS_WAITING, "waiting_users"),
        (q::NOTE_EXPIRED, "log_expired"),
        (q::FORGET_EXPIRED, "log_expired"),
        (q::NOTE_EXPIRED_WAITING, "waiting_expired"),
        (q::FORGET_WAITING, "waiting_expired"),
        (q::FORGET_REMOVED, "removed_expired"),
        (q::FORGET_JOURNAL, "journal_at"),
        (q::ACCOUNT, "log_ids"),
        (q::ACCOUNT_WAITING, "waiting_ids"),
        (q::STEPS, "journal_ids"),
        (q::STEPS, "journal_numbers"),
        (q::ENDED_AFTER, "journal_ended"),
        (q::IDS, "log_numbers"),
        (q::REMOVED, "SEARCH r USING PRIMARY KEY"),
        (q::STANDING, "log_ids"),
        (q::REMOVE, "log_numbers"),
        (q::SUPERSEDED, "log_keys"),
        (q::SUPERSEDED, "journal_given"),
        (q::FORGET_DEVICES, "SEARCH cursors USING PRIMARY KEY"),
        (q::FIND_SESSION, "SEARCH sessions USING PRIMARY KEY"),
        (q::SESSIONS_OF_USER, "sessions_of_user"),
        (q::FORGET_SESSIONS, "sessions_expired"),
    ];
    for (sql, index) in queries {
        let plan = sqlx::raw_sql(AssertSqlSafe(format!("explain query plan {sql}")));
        let plan: Vec<String> = plan.fetch_all(&mut connection).await.unwrap().iter().map(|line| line.get(3)).collect();
        // SQLite has no statistics here: it would choose the same plan for a million rows.
        // What is waited for has an index of its own, which is read whole.
        let reads_all = |line: &String| {
            let tables = ["log", "l ", "heads", "cursors", "sessions", "journal", "waiting", "removed", "r "];
            let scans = tables.iter().any(|table| line.starts_with(&format!("SCAN {table}")));
            scans && !line.contains("INDEX waiting_users")
        };
        let plan_text = plan.join("\n");
        assert!(!plan.iter().any(reads_all) && plan_text.contains(index), "{sql}\n{plan_text}");
    }
}
