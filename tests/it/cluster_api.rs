//! Several nodes seen from outside: any of them tells of the cluster, and of a user's sessions on all of them, ends
//! them and takes acknowledgements for them; and a user's limit of sessions holds over all of them.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::{
    Event, Feed, Node, Store,
    carrier::{self, Ask, Carrier},
    cluster::{Cluster, SHARDS},
    command,
    http::Response,
    node::{Builder, NOTIFIER, free_ports},
    process::Process,
    sse::SseClient,
    traffic::Traffic,
    wait::{DEADLINE, eventually},
    ws::WsClient,
};

const KEY: &str = "operator-key";

fn with_key(builder: Builder) -> Builder {
    builder.api_key("operator", KEY, &["read", "sessions"]).set("node.zone", "cellar")
}

async fn asked(node: &Node, method: &str, path: &str, body: &str) -> Response {
    node.request(method, path, &[("X-API-Key", KEY)], body).await
}

async fn told(node: &Node) -> Value {
    let answer = asked(node, "GET", "/v1/cluster", "").await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer.json()
}

fn member<'a>(cluster: &'a Value, id: &str) -> &'a Value {
    let members = cluster["members"].as_array().expect("members");
    members.iter().find(|member| member["id"] == id).unwrap_or_else(|| panic!("{id} is not in {cluster}"))
}

fn sum(cluster: &Value, of: &str) -> i64 {
    let members = cluster["members"].as_array().expect("members");
    members.iter().filter_map(|member| member[of].as_i64()).sum()
}

#[tokio::test]
async fn a_node_without_others_is_a_cluster_of_one() {
    let feed = Feed::new(2).await;
    let node = with_key(Node::builder(&feed)).start().await;
    let _client = node.connect("101").await;
    eventually("both partitions and the client", async || {
        let cluster = told(&node).await;
        assert_eq!(
            (&cluster["enabled"], &cluster["node"], &cluster["moves"]),
            (&json!(false), &json!("test"), &json!([]))
        );
        let one = member(&cluster, "test");
        assert_eq!((&one["state"], &one["zone"]), (&json!("active"), &json!("cellar")));
        assert_eq!(one["shards"], cluster["shards"]);
        (one["partitions"] == json!([0, 1]) && one["sessions"] == 1).then_some(())
    })
    .await;
    node.request("GET", "/v1/cluster", &[], "").await.problem(401);
    let token = format!("Bearer {}", node.token("101"));
    node.request("GET", "/v1/cluster", &[("Authorization", &token)], "").await.problem(401);
    let printed = command::finish(node.command(&["cluster", "--api-key", KEY])).await.ok();
    assert!(printed.starts_with("one node, test: cluster.enabled is false\nNODE"), "{printed}");
}

#[tokio::test]
async fn every_node_tells_of_all_and_who_does_not_answer_is_not_made_up() {
    let mut cluster = Cluster::start_each(3, 6, with_key).await;
    let mut clients = Vec::new();
    for (node, count) in [(0, 2), (1, 1)] {
        for n in 0..count {
            clients.push(cluster.nodes[node].connect(&format!("user-{n}")).await);
        }
    }
    for node in &cluster.nodes {
        eventually("the whole cluster", async || {
            let cluster = told(node).await;
            let members = cluster["members"].as_array().expect("members");
            let partitions =
                members.iter().flat_map(|member| member["partitions"].as_array().cloned().unwrap_or_default());
            let partitions: Vec<i64> = partitions.filter_map(|partition| partition.as_i64()).collect();
            assert!(members.iter().all(|member| member["zone"] == "cellar"), "{cluster}");
            let is_shared = members.iter().all(|member| member["partitions"].as_array().map_or(0, Vec::len) <= 3);
            let is_whole = is_shared && partitions.len() == 6 && partitions.iter().collect::<BTreeSet<_>>().len() == 6;
            let sessions = ["n0", "n1", "n2"].map(|id| member(&cluster, id)["sessions"].clone());
            let is_done = is_whole && cluster["moves"] == json!([]) && cluster["unowned"] == 0;
            (is_done && sum(&cluster, "shards") == SHARDS && sessions == [json!(2), json!(1), json!(0)]).then_some(())
        })
        .await;
    }
    let printed = command::finish(cluster.nodes[1].command(&["cluster", "--api-key", KEY])).await.ok();
    assert!(printed.starts_with("3 nodes, version "), "{printed}");
    assert!(printed.contains(&format!("{SHARDS} of {SHARDS} shards are served\n")), "{printed}");

    cluster.nodes[2].process().stop().await;
    let asked = Instant::now();
    let now = told(&cluster.nodes[0]).await;
    assert!(asked.elapsed() < Duration::from_secs(4), "it waits for no one: {:?}", asked.elapsed());
    let frozen = member(&now, "n2");
    assert_eq!((frozen.get("sessions"), frozen.get("partitions")), (None, None), "{now}");
    assert_eq!(member(&now, "n1")["sessions"], 1, "{now}");
    cluster.nodes[2].process().kill();
    eventually("its shards are the others'", async || {
        let now = told(&cluster.nodes[0]).await;
        let gone = now["members"]
            .as_array()
            .expect("members")
            .iter()
            .all(|member| member["id"] != "n2" || (member["state"] == "dead" && member["shards"] == 0));
        (gone && now["unowned"] == 0 && now["moves"] == json!([]) && sum(&now, "shards") == SHARDS).then_some(())
    })
    .await;
}

/// A newcomer cannot take anything yet: what it should have is told of as on its way, by whoever is asked.
#[tokio::test]
async fn what_moves_to_another_node_is_told() {
    let mut cluster = Cluster::start_each(1, 2, with_key).await;
    let locked = cluster.store.lock("shard_claims").await;
    let newcomer = cluster.builder().start_unready();
    cluster.nodes.push(newcomer);
    let moves = eventually("moves", async || {
        let moves = told(&cluster.nodes[0]).await["moves"].as_array()?.clone();
        (!moves.is_empty()).then_some(moves)
    })
    .await;
    assert!(
        moves.iter().all(|one| one["to"] == "n1" && (one["from"] == "n0" || one.get("from").is_none())),
        "{moves:?}"
    );
    let shards: i64 = moves.iter().filter_map(|one| one["shards"].as_i64()).sum();
    assert!((1..SHARDS).contains(&shards), "{moves:?}");
    let printed = command::finish(cluster.nodes[0].command(&["cluster", "--api-key", KEY])).await.ok();
    assert!(printed.contains(" to n1"), "{printed}");
    drop(locked);
    cluster.settled().await;
    eventually("none", async || (told(&cluster.nodes[0]).await["moves"] == json!([])).then_some(())).await;
}

#[tokio::test]
async fn the_command_follows_the_cluster_until_it_is_told_to_stop() {
    let mut cluster = Cluster::start_each(1, 2, with_key).await;
    let watch = cluster.nodes[0].command(&["cluster", "--watch", "--json", "--api-key", KEY]);
    let mut watching = Process::spawn("notifier cluster --watch", watch);
    let lines = |watching: &Process| command::json_lines(&watching.stdout());
    eventually("a first line", async || (!lines(&watching).is_empty()).then_some(())).await;
    cluster.add().await;
    cluster.settled().await;
    let last = eventually("both nodes have a share", async || {
        let last = lines(&watching).pop()?;
        let both = last["members"].as_array()?.iter().all(|member| member["shards"].as_i64() > Some(0));
        (last["members"].as_array()?.len() == 2 && both && last["moves"] == json!([])).then_some(last)
    })
    .await;
    assert_eq!(sum(&last, "shards"), SHARDS, "{last}");
    // Only what has changed is told.
    let all = lines(&watching);
    assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "{all:?}");

    cluster.nodes[0].process().stop().await;
    eventually("it says that it waits", async || watching.stderr().contains("asking again").then_some(())).await;
    assert!(watching.running());
    cluster.nodes[0].process().kill();
    watching.signal("TERM");
    assert_eq!(watching.finish(DEADLINE).await.code(), 0);

    let refused = command::finish(cluster.nodes[1].command(&["cluster", "--watch", "--api-key", "unknown"])).await;
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert!(refused.stderr.contains("API key"), "{refused:?}");
}

async fn listed(node: &Node, user: &str) -> Value {
    let answer = asked(node, "GET", &format!("/v1/users/{user}/sessions"), "").await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer.json()
}

fn places(list: &Value) -> Vec<String> {
    let sessions = list["sessions"].as_array().expect("sessions");
    let mut places: Vec<_> = sessions.iter().filter_map(|one| one["node"].as_str().map(str::to_owned)).collect();
    places.sort();
    places
}

async fn started(node: &Node, user: &str) -> String {
    let headers = [("X-API-Key", KEY), ("Content-Type", "application/json")];
    let answer = node.request("POST", "/v1/sessions", &headers, &json!({ "user": user }).to_string()).await;
    assert_eq!(answer.status(), 201, "{answer:?}");
    answer.json()["session_id"].as_str().expect("an id").to_owned()
}

async fn of_session(node: &Node, session: &str) -> WsClient {
    crate::harness::ws::Connect::anonymous(node.addr()).query("session_id", session).open().await
}

#[tokio::test]
async fn sessions_are_listed_and_ended_from_any_node() {
    let mut cluster = Cluster::start_each(3, 3, with_key).await;
    let [n0, n1, n2] = &cluster.nodes[..] else { panic!("three nodes") };
    let (mut at_0, mut at_1) = (n0.connect("101").await, n1.connect("101").await);
    let session = started(n1, "101").await;
    let mut at_2 = of_session(n2, &session).await;
    for node in [n0, n1, n2] {
        let list = listed(node, "101").await;
        assert_eq!(
            (places(&list), list.get("unanswered")),
            (vec!["n0".into(), "n1".into(), "n2".into()], None),
            "{list}"
        );
    }
    let one = |session: &str| format!("/v1/users/101/sessions/{session}");
    assert_eq!(asked(n2, "DELETE", &one(&at_0.hello().session), "").await.status(), 204);
    assert_eq!(at_0.close_code().await, 4003);
    assert_eq!(asked(n0, "DELETE", &one(&session), "").await.status(), 204);
    assert_eq!(at_2.close_code().await, 4003, "a started session's connection ends wherever it is");
    let again = crate::harness::ws::Connect::anonymous(n1.addr()).query("session_id", &session).refused().await;
    assert_eq!(again.status, 401);
    eventually("nothing left to end", async || {
        (asked(n0, "DELETE", &one(&session), "").await.status() == 404).then_some(())
    })
    .await;

    let mut more = [n0.connect("101").await, n2.connect("101").await];
    assert_eq!(asked(n1, "DELETE", "/v1/users/101/sessions", "").await.status(), 204);
    assert_eq!(at_1.close_code().await, 4003);
    for client in &mut more {
        assert_eq!(client.close_code().await, 4003);
    }

    // Whoever does not answer is named.
    let _here = cluster.nodes[0].connect("102").await;
    let _there = cluster.nodes[2].connect("102").await;
    cluster.nodes[2].process().stop().await;
    // At the same time: soon it will be dead, and nobody's business any more.
    let ending = asked(&cluster.nodes[1], "DELETE", "/v1/users/102/sessions", "");
    let (list, ended) = tokio::join!(listed(&cluster.nodes[0], "102"), ending);
    assert_eq!(list["unanswered"], json!(["n2"]), "{list}");
    assert!(places(&list).iter().all(|place| place == "n0"), "{list}");
    ended.problem(503);
    assert!(ended.body.contains("n2") && ended.head.header("retry-after").is_some(), "{ended:?}");
}

#[tokio::test]
async fn a_started_session_serves_one_connection_of_all_nodes() {
    let cluster = Cluster::start_each(2, 2, with_key).await;
    let session = started(&cluster.nodes[0], "101").await;
    let mut earlier = of_session(&cluster.nodes[0], &session).await;
    let mut later = of_session(&cluster.nodes[1], &session).await;
    assert_eq!(earlier.close_code().await, 4003);
    cluster.feed.send(&Event::new("101", "for-the-later")).await;
    assert_eq!(later.one().await.kind, "for-the-later");
    assert_eq!(places(&listed(&cluster.nodes[0], "101").await), ["n1"]);
}

/// The node is where each was started, and serves some of their users.
#[tokio::test]
async fn sessions_of_a_node_that_was_killed_connect_at_another_and_get_what_waited() {
    const USERS: usize = 8;
    const BEFORE: u64 = 10;
    const AFTER: u64 = 20;
    let mut cluster = Cluster::start_each(3, 3, with_key).await;
    let mut sessions = Vec::new();
    cluster.store.watch_writers().await;
    let traffic = Traffic::start(&cluster, 3 * USERS).await;
    traffic.flows().await;
    for user in (0..USERS).map(|n| format!("started-{n}")) {
        sessions.push((started(&cluster.nodes[0], &user).await, user));
    }
    let events = |numbers: std::ops::Range<u64>| -> Vec<Event> {
        numbers.flat_map(|n| sessions.iter().map(move |(_, user)| Event::numbered(user, n))).collect()
    };
    cluster.feed.send_all(&events(0..BEFORE)).await;
    let stored = "log where user_id like 'started-%'";
    eventually("stored", async || (cluster.store.count(stored).await == (USERS as i64) * BEFORE as i64).then_some(()))
        .await;
    traffic.hurt(0);
    cluster.nodes[0].kill();
    cluster.feed.send_all(&events(BEFORE..AFTER)).await;
    let node = &cluster.nodes[1];
    let carriers = [Carrier::WebSocketJson, Carrier::Sse].into_iter().cycle();
    let mut clients = Vec::new();
    for ((session, user), carrier) in sessions.iter().zip(carriers) {
        let mut client = carrier::open(node, carrier, &Ask::session(session)).await.expect("it is known here too");
        assert_eq!((&client.hello().session, &client.hello().user), (session, user), "{carrier:?}");
        for (frame, n) in client.expect(AFTER as usize).await.into_iter().zip(0..) {
            assert_eq!((frame.n(), frame.number()), (n, n + 1), "{user}, {carrier:?}");
        }
        client.ack(AFTER).await.expect("taken");
        clients.push(client);
    }
    cluster.feed.send_all(&events(AFTER..AFTER + 1)).await;
    for client in &mut clients {
        assert_eq!(client.expect(1).await[0].n(), AFTER, "{}", client.hello().user);
    }
    traffic.check(&cluster).await;
}

#[tokio::test]
async fn a_stream_is_acknowledged_for_at_any_node() {
    let cluster = Cluster::start_each(2, 2, with_key).await;
    let [n0, n1] = &cluster.nodes[..] else { panic!("two nodes") };
    let mut stream: SseClient = n0.stream("101", "").await;
    let session = stream.hello().session;
    cluster.feed.send(&Event::new("101", "first")).await;
    let seq = stream.expect(1).await[0].frame().number();
    let path = format!("/v1/sessions/{session}/ack");
    let acknowledge = async |ack: u64, token: Option<&str>| {
        let bearer = format!("Bearer {}", token.unwrap_or_default());
        let headers = [("Content-Type", "application/json"), ("Authorization", &*bearer)];
        let headers = if token.is_some() { &headers[..] } else { &headers[..1] };
        n1.request("POST", &path, headers, &json!({ "ack": ack }).to_string()).await
    };
    acknowledge(seq, Some(&n1.token("other"))).await.problem(403);
    assert_eq!(acknowledge(seq, None).await.status(), 204);
    assert_eq!(acknowledge(seq, Some(&n1.token("101"))).await.status(), 204);
    n1.acknowledged("101", seq).await;
    acknowledge(seq + 1, None).await.problem(400);
    let rest = stream.rest().await;
    assert!(rest.iter().any(|block| block.frame().raw().contains("4004")), "it has ended the session");
    eventually("the session is gone", async || (acknowledge(seq, None).await.status() == 404).then_some(())).await;
}

/// The owner of a third of the users is frozen, so that their new clients wait for a session as long as the others have
/// theirs; then it is killed, and all ask the next owner for one, in any order.
#[tokio::test]
async fn the_limit_of_sessions_holds_when_the_owner_dies_and_one_more_comes() {
    const USERS: usize = 24;
    const AGE: Duration = Duration::from_secs(1);
    let limited: fn(Builder) -> Builder = |builder| with_key(builder).set("sessions.per_user_max", 2);
    let mut cluster = Cluster::start_each(3, 3, limited).await;
    let users: Vec<String> = (0..USERS).map(|n| format!("user-{n}")).collect();
    let oldest = join_all(users.iter().map(|user| cluster.nodes[0].connect(user))).await;
    // Ages cross the link: as exact as that is quick.
    tokio::time::sleep(AGE).await;
    let second = join_all(users.iter().map(|user| cluster.nodes[1].connect(user))).await;
    let mut clients: Vec<_> = oldest.into_iter().zip(second).collect();
    tokio::time::sleep(AGE).await;
    cluster.nodes[2].process().stop().await;
    let mut killed = cluster.nodes[2].take();
    let coming =
        join_all(users.iter().zip([0, 1].into_iter().cycle()).map(|(user, at)| cluster.nodes[at].connect(user)));
    let dying = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        killed.kill();
    };
    let (newest, ()) = tokio::join!(coming, dying);
    for ((user, (oldest, second)), newest) in users.iter().zip(&mut clients).zip(newest) {
        assert_eq!(oldest.close_code().await, 4003, "{user}: the oldest");
        cluster.feed.send(&Event::new(user, "to-two")).await;
        let mut newest = newest;
        for client in [second, &mut newest] {
            assert_eq!(client.one().await.kind, "to-two", "{user}");
        }
        let sessions = eventually("exactly two stay", async || {
            let list = listed(&cluster.nodes[0], user).await;
            let count = list["sessions"].as_array().expect("sessions").len();
            (list.get("unanswered").is_none() && count == 2).then_some(count)
        })
        .await;
        assert_eq!(sessions, 2, "{user}");
    }
}

#[tokio::test]
async fn the_example_with_three_nodes_loses_nothing() {
    let feed = Feed::new(6).await;
    let store = Store::postgres().await;
    let ports: [u16; 12] = free_ports();
    let mut example = crate::harness::process::command(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/cluster/run"));
    example.env("NOTIFIER", NOTIFIER).env("PORT", ports[0].to_string()).env("STORE", store.url());
    example.env("KAFKA", &feed.kafka.bootstrap).env("TOPIC", &feed.topic);
    let output = Process::run("examples/cluster/run", example, Duration::from_secs(120)).await.ok();
    assert_eq!(output.matches("1 to 60, in order, each once; connections lost: 0").count(), 4, "{output}");
    assert!(output.contains("n0 is killed") && output.contains("3 nodes, version"), "{output}");
}
