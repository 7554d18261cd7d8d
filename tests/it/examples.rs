//! The examples do what their users copy them for: nothing is lost or doubled, whatever happens to the connection.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{
    Feed, Node, eventually,
    example::{Client, DEVICE, ORIGIN, Producer, Running, Tokens, USER},
    proxy::Proxy,
    script::Script,
};

const HOUR: Duration = Duration::from_secs(3600);
/// What a client prints when it must load everything from the application's own API.
const EVERYTHING: Option<u64> = None;

/// Writes greetings with those numbers, and checks that each has its delivery report.
async fn produce(producer: Producer, feed: &Feed, numbers: std::ops::Range<u64>) {
    let payloads: Vec<_> = numbers.clone().map(|n| json!({ "n": n }).to_string()).collect();
    let output = producer.run(&feed.kafka.bootstrap, &feed.topic, &payloads).await.ok();
    assert_eq!(output.matches("offset ").count(), payloads.len(), "{output}");
}

fn numbers(range: std::ops::Range<u64>) -> impl Iterator<Item = Option<u64>> {
    range.map(Some)
}

/// A real node behind a connection that breaks, tokens that expire, and a restart.
async fn loses_and_repeats_nothing(client: Client) {
    let feed = Feed::new(1).await;
    let mut node = Node::builder(&feed).set("client.allowed_origins", vec![ORIGIN]).start().await;
    let proxy = Proxy::to(client.port(&node)).await;
    let tokens = Tokens::start(HOUR).await;
    let running = client.start(proxy.addr(), &tokens).await;
    let mut expected = vec![EVERYTHING];
    running.has_printed(&expected).await;

    produce(Producer::Python, &feed, 0..10).await;
    expected.extend(numbers(0..10));
    running.has_printed(&expected).await;
    // All is acknowledged, by that device.
    eventually("the device's cursor at 10", async || {
        let client = node.ws(USER).query("device", DEVICE).open().await;
        let cursor = client.hello().cursor;
        client.leave().await;
        (cursor == 10).then_some(())
    })
    .await;
    assert_eq!(node.connect(USER).await.hello().cursor, 0, "the shared cursor is another");

    // Cut while more is being written; the token is still good, so none is asked for.
    let connects = proxy.accepted();
    let cutting = async {
        let mut before = 0;
        for _ in 0..5 {
            // Never in a handshake: to the client that could be a refusal, and it asks for another token.
            eventually("the client is back", async || {
                let connections = node.metrics().await.sum("notifier_connections");
                (proxy.accepted() > before && connections == 1.0).then_some(())
            })
            .await;
            before = proxy.accepted();
            tokio::time::sleep(Duration::from_millis(300)).await;
            proxy.cut();
        }
    };
    tokio::join!(produce(Producer::Java, &feed, 10..60), cutting);
    produce(Producer::Python, &feed, 60..61).await;
    expected.extend(numbers(10..61));
    running.has_printed(&expected).await;
    assert!(proxy.accepted() > connects, "nothing was cut");
    assert_eq!(tokens.asked(), 1, "a token is kept");

    // Another life of the log: what the client has does not count any more.
    tokens.good_for(Duration::from_secs(2));
    node.restart().await;
    expected.push(EVERYTHING);
    running.has_printed(&expected).await;
    produce(Producer::Python, &feed, 61..66).await;
    expected.extend(numbers(61..66));
    running.has_printed(&expected).await;
}

#[tokio::test]
async fn the_python_client_loses_and_repeats_nothing() {
    loses_and_repeats_nothing(Client::Python).await;
}

#[tokio::test]
async fn the_typescript_client_loses_and_repeats_nothing_in_node() {
    loses_and_repeats_nothing(Client::Node).await;
}

#[tokio::test]
async fn the_typescript_client_loses_and_repeats_nothing_in_a_browser() {
    loses_and_repeats_nothing(Client::Browser).await;
}

#[tokio::test]
async fn the_go_client_loses_and_repeats_nothing() {
    loses_and_repeats_nothing(Client::Go).await;
}

#[tokio::test]
async fn the_python_grpc_client_loses_and_repeats_nothing() {
    loses_and_repeats_nothing(Client::Grpc).await;
}

/// A session of a real node that ends with its token goes on with another one.
async fn outlives_its_token(client: Client) -> (Node, Running) {
    let feed = Feed::new(1).await;
    let builder = Node::builder(&feed).set("client.allowed_origins", vec![ORIGIN]).set("auth.jwt.leeway", "0s");
    let node = builder.start().await;
    let tokens = Tokens::start(Duration::from_secs(3)).await;
    let running = client.start(client.port(&node), &tokens).await;
    running.has_printed(&[EVERYTHING]).await;
    tokens.good_for(HOUR);
    eventually("another token", async || (tokens.asked() > 1).then_some(())).await;
    produce(Producer::Python, &feed, 0..3).await;
    running.has_printed(&[EVERYTHING, Some(0), Some(1), Some(2)]).await;
    (node, running)
}

/// A token that is not let in is not shown again.
async fn asks_again_when_it_is_refused(client: Client) {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("client.allowed_origins", vec![ORIGIN]).start().await;
    let tokens = Tokens::start(HOUR).await;
    tokens.good_for_nothing();
    let running = client.start(client.port(&node), &tokens).await;
    eventually("another token", async || (tokens.asked() > 1).then_some(())).await;
    assert_eq!(running.printed(), [], "let in with a token that has expired");
    tokens.good_for(HOUR);
    running.has_printed(&[EVERYTHING]).await;
}

/// What a client does about each thing that a server can say, and how long it waits.
async fn does_as_it_is_told(client: Client, last: u16) {
    let script = Script::start(client).await;
    let tokens = Tokens::start(HOUR).await;
    let running = client.start(script.addr(), &tokens).await;
    let hello = |epoch: &str, cursor: u64| {
        json!({"type": "$hello", "payload": {"session": "s", "user": USER, "epoch": epoch, "head": cursor + 10,
            "cursor": cursor, "heartbeat_ms": 25000, "reconnect_ms": 400}})
        .to_string()
    };
    let greeting = |seq: Option<u64>, n: u64| {
        let mut frame = json!({"target": USER, "type": "greeting", "payload": {"n": n}, "id": "i", "ts": "t"});
        if let Some(seq) = seq {
            frame["seq"] = seq.into();
        }
        frame.to_string()
    };
    let gap = |from: u64, to: u64, reason: &str| {
        json!({"type": "$gap", "payload": {"from": from, "to": to, "reason": reason}}).to_string()
    };
    let device = format!("device={DEVICE}");

    // Sent away before there is a session.
    let mut scene = script.next().await;
    scene.say(r#"{"type":"$bye","payload":{"code":1013,"reason":"not now","reconnect_ms":100}}"#).await;
    scene.close(1013).await;

    let mut scene = script.next().await;
    assert_eq!(scene.query, std::slice::from_ref(&device), "nothing is known yet");
    // One, or two where a client cannot tell whether it was refused.
    let asked = tokens.asked();
    scene.say(&hello("a", 3)).await;
    scene.say(&greeting(None, 1)).await;
    scene.say(&greeting(Some(4), 2)).await;
    scene.hear(&json!({"ack": 4})).await;
    scene.say(r#"{"type":"$bye","payload":{"code":1001,"reason":"draining","reconnect_ms":1500}}"#).await;
    scene.close(1001).await;
    let closed = Instant::now();

    let mut scene = script.next().await;
    assert!(closed.elapsed() > Duration::from_millis(1400), "came back after {:?}", closed.elapsed());
    assert_eq!(scene.query, [device.clone(), "since=a-4".into()]);
    scene.say(&hello("a", 4)).await;
    running.has_printed(&[EVERYTHING, Some(1), Some(2)]).await;
    // Without a word.
    drop(scene);
    let closed = Instant::now();

    let mut scene = script.next().await;
    assert!(closed.elapsed() < Duration::from_millis(1400), "came back after {:?}", closed.elapsed());
    assert_eq!(tokens.asked(), asked, "the token is good");
    scene.say(&hello("a", 4)).await;
    scene.close(4001).await;

    let mut scene = script.next().await;
    assert_eq!(tokens.asked(), asked + 1, "the token had expired");
    assert_eq!(scene.query, [device.clone(), "since=a-4".into()]);
    scene.say(&hello("b", 9)).await;
    scene.say(&gap(1, 9, "epoch")).await;
    scene.say(&greeting(Some(10), 3)).await;
    scene.hear(&json!({"ack": 10})).await;
    scene.say(&gap(11, 12, "expired")).await;
    let mut expected = vec![EVERYTHING, Some(1), Some(2), EVERYTHING, Some(3), EVERYTHING];
    running.has_printed(&expected).await;
    scene.close(1013).await;

    let mut scene = script.next().await;
    assert_eq!(scene.query, [device.clone(), "since=b-12".into()], "a gap is behind it too");
    // Another log, and cut before the gap says so: what was known is not known to be of that log.
    scene.say(&hello("c", 30)).await;
    scene.close(1013).await;

    let mut scene = script.next().await;
    assert_eq!(scene.query, [device.clone(), "since=b-12".into()]);
    scene.say(&hello("c", 30)).await;
    scene.say(&gap(1, 30, "restored")).await;
    scene.say(&greeting(Some(31), 4)).await;
    scene.hear(&json!({"ack": 31})).await;
    expected.extend([EVERYTHING, Some(4)]);
    running.has_printed(&expected).await;
    scene.close(1013).await;

    // The same log, which has forgotten what it gave.
    let mut scene = script.next().await;
    assert_eq!(scene.query, [device.clone(), "since=c-31".into()]);
    scene.say(&hello("c", 5)).await;
    scene.say(&gap(1, 5, "epoch")).await;
    scene.say(&greeting(Some(6), 5)).await;
    scene.hear(&json!({"ack": 6})).await;
    expected.extend([EVERYTHING, Some(5)]);
    running.has_printed(&expected).await;
    scene.close(1013).await;

    let mut scene = script.next().await;
    assert_eq!(scene.query, [device, "since=c-6".into()]);
    scene.say(&hello("c", 6)).await;
    scene.close(last).await;
    assert!(!script.is_called_within(Duration::from_millis(1500)).await, "called again after {last}");
    assert_eq!(running.printed(), expected, "nothing was fetched twice");
    let finished = running.ended().await;
    assert_ne!(finished.code(), 0, "{finished:?}");
    assert!(finished.stderr.contains(&last.to_string()), "{finished:?}");
}

#[tokio::test]
async fn the_python_client_does_as_it_is_told() {
    does_as_it_is_told(Client::Python, 4003).await;
    does_as_it_is_told(Client::Python, 4004).await;
    outlives_its_token(Client::Python).await;
    asks_again_when_it_is_refused(Client::Python).await;
}

#[tokio::test]
async fn the_typescript_client_does_as_it_is_told_in_node() {
    does_as_it_is_told(Client::Node, 4003).await;
    does_as_it_is_told(Client::Node, 4004).await;
    outlives_its_token(Client::Node).await;
    asks_again_when_it_is_refused(Client::Node).await;
}

#[tokio::test]
async fn the_typescript_client_does_as_it_is_told_in_a_browser() {
    does_as_it_is_told(Client::Browser, 4003).await;
    does_as_it_is_told(Client::Browser, 4004).await;
    outlives_its_token(Client::Browser).await;
    asks_again_when_it_is_refused(Client::Browser).await;
}

#[tokio::test]
async fn the_go_client_does_as_it_is_told() {
    does_as_it_is_told(Client::Go, 4003).await;
    does_as_it_is_told(Client::Go, 4004).await;
    outlives_its_token(Client::Go).await;
    asks_again_when_it_is_refused(Client::Go).await;
}

#[tokio::test]
async fn the_python_grpc_client_asks_for_another_token_and_stays_away_when_it_was_ended() {
    asks_again_when_it_is_refused(Client::Grpc).await;
    let (node, running) = outlives_its_token(Client::Grpc).await;
    let bearer = format!("Bearer {}", node.token(USER));
    let path = format!("/v1/users/{USER}/sessions");
    let ended = node.request("DELETE", &path, &[("Authorization", bearer.as_str())], "").await;
    assert_eq!(ended.status(), 204, "{ended:?}");
    let finished = running.ended().await;
    assert_ne!(finished.code(), 0, "{finished:?}");
    assert!(finished.stderr.contains("closed for good: ABORTED"), "{finished:?}");
}

#[tokio::test]
async fn producers_say_what_was_not_written() {
    let feed = Feed::new(1).await;
    let payloads = [json!({"n": 1}).to_string()];
    for producer in [Producer::Python, Producer::Java] {
        let finished = producer.run(&feed.kafka.bootstrap, "no-such-topic", &payloads).await;
        assert_eq!(finished.code(), 1, "{finished:?}");
        assert!(finished.stderr.contains("not written: "), "{finished:?}");
        assert!(!finished.stdout.contains("offset"), "{finished:?}");
    }
}

#[test]
fn every_example_is_under_fifty_lines() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut programs = 0;
    for directory in std::fs::read_dir(root).expect("examples/").flatten().filter(|entry| entry.path().is_dir()) {
        for file in std::fs::read_dir(directory.path()).expect("a directory").flatten() {
            let path = file.path();
            let is_program = path.extension().is_some_and(|kind| ["py", "ts", "go", "java"].iter().any(|k| kind == *k));
            if is_program {
                let lines = std::fs::read_to_string(&path).expect("text").lines().count();
                assert!(lines < 50, "{} has {lines} lines", path.display());
                programs += 1;
            }
        }
    }
    assert_eq!(programs, 8, "programs in examples/");
}
