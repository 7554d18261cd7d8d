//! The commands beside `serve`: what they print and do, with a running node.

use std::time::Duration;

use serde_json::Value;

use crate::harness::{
    Event, Feed, Node,
    command::{finish, json_lines, notifications, run},
    eventually,
    process::Process,
    ws::Connect,
};

async fn send(node: &Node, arguments: &[&str]) -> String {
    let mut all = vec!["send"];
    all.extend_from_slice(arguments);
    finish(node.command(&all)).await.ok()
}

#[tokio::test]
async fn send_writes_every_form_and_each_arrives() {
    let feed = Feed::new(2).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    for format in ["protobuf", "json", "confluent", "cloudevents"] {
        let arguments = ["--user", "101", "--type", "t", "--data", r#"{"a":9007199254740993}"#, "--id", format];
        let output = send(&node, &[&arguments[..], &["--format", format]].concat()).await;
        assert!(output.contains(format), "the id is not printed: {output}");
        let frame = client.one().await;
        assert_eq!((frame.id.as_deref(), frame.kind.as_str()), (Some(format), "t"));
        assert_eq!(frame.raw(), r#"{"a":9007199254740993}"#, "{format}");
    }
    let stored = feed.kafka.read_all(&feed.topic).await;
    assert!(stored.iter().all(|record| record.key.as_deref() == Some(b"101")), "keyed by user");
    let plain = || stored.iter().filter(|record| record.header("ce_type").is_none());
    let starts = |byte| plain().filter(|record| first_byte(record) == Some(byte)).count();
    assert_eq!((starts(0), starts(b'{')), (1, 1), "one Confluent, one JSON: {stored:?}");
    let cloud = stored.iter().filter(|record| record.header("ce_type").is_some()).count();
    let structured = stored.iter().filter(|record| {
        let content_type = record.header("content-type").unwrap_or_default();
        content_type.starts_with("application/cloudevents")
    });
    assert_eq!(cloud.max(structured.count()), 1, "one CloudEvent: {stored:?}");
}

fn first_byte(record: &crate::harness::kafka::Stored) -> Option<u8> {
    record.value.as_deref()?.first().copied()
}

#[tokio::test]
async fn send_passes_its_options_on() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    let common = ["--user", "101", "--type", "t", "--data", "1"];
    send(&node, &[&common[..], &["--durability", "transient", "--priority", "high"]].concat()).await;
    assert_eq!(client.one().await.seq, None);
    let session = client.hello().session.clone();
    send(&node, &[&common[..], &["--session", &session]].concat()).await;
    assert_eq!(client.one().await.seq, None);
    send(&node, &[&common[..], &["--collapse-key", "k", "--ttl", "1h"]].concat()).await;
    assert_eq!(client.one().await.seq, Some(1));
    let output = send(&node, &[&common[..], &["--count", "20", "--rate", "200", "--json"]].concat()).await;
    let written = json_lines(&output);
    assert_eq!(written.len(), 20, "{output}");
    let frames = client.expect(20).await;
    for (line, frame) in written.iter().zip(&frames) {
        assert_eq!(line["id"].as_str(), frame.id.as_deref());
        assert!(line["partition"].is_u64() && line["offset"].is_u64(), "{line}");
    }
}

#[tokio::test]
async fn send_refuses_what_no_node_would_take() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    for (arguments, named) in [
        (&["--type", "t", "--data", "1"][..], "--user"),
        (&["--user", "", "--type", "t", "--data", "1"], "user"),
        (&["--user", "1", "--type", "t", "--data", "1", "--format", "xml"], "--format"),
        (&["--user", "1", "--type", "t", "--data", "1", "--ttl", "soon"], "--ttl"),
    ] {
        let all = [&["send"][..], arguments].concat();
        let finished = finish(node.command(&all)).await;
        assert_eq!(finished.code(), 2, "{arguments:?}: {finished:?}");
        assert!(finished.stderr.contains(named), "{arguments:?}: {finished:?}");
    }
    assert!(feed.kafka.read_all(&feed.topic).await.is_empty());
}

#[tokio::test]
async fn a_token_that_the_command_prints_opens_a_connection() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let token = finish(node.command(&["token", "--user", "101", "--ttl", "1h"])).await.ok();
    let client = Connect::bearer(node.addr(), token.trim()).open().await;
    assert_eq!(client.hello().user, "101");
    let answer = finish(node.command(&["token", "--user", "101", "--json"])).await.ok();
    let line = json_lines(&answer).remove(0);
    Connect::bearer(node.addr(), line["token"].as_str().expect("a token")).open().await;
}

/// Waits until `tail` has printed `count` notifications; those.
async fn printed(tail: &Process, count: usize) -> Vec<Value> {
    eventually(&format!("{count} lines of tail"), async || {
        let output = tail.stdout();
        // The last line may not be whole yet.
        let (whole, _) = output.rsplit_once('\n')?;
        let lines = notifications(whole);
        (lines.len() >= count).then_some(lines)
    })
    .await
}

#[tokio::test]
async fn tail_prints_reconnects_and_resumes_over_a_restart() {
    for protocol in ["websocket", "sse", "grpc"] {
        let feed = Feed::new(1).await;
        let mut node = Node::start(&feed).await;
        let arguments = ["tail", "--user", "101", "--json", "--protocol", protocol];
        let mut tail = Process::spawn("notifier tail", node.command(&arguments));
        feed.send_all(&[Event::numbered("101", 0), Event::numbered("101", 1)]).await;
        printed(&tail, 2).await;
        feed.all_committed().await;
        node.restart().await;
        feed.send_all(&[Event::numbered("101", 2), Event::numbered("101", 3)]).await;
        let lines = printed(&tail, 4).await;
        let seen: Vec<_> = lines.iter().map(|line| line["payload"]["n"].as_u64()).collect();
        assert_eq!(seen, [Some(0), Some(1), Some(2), Some(3)], "{protocol}");
        assert!(tail.running());
        // A user's interrupt is a good end.
        tail.signal("INT");
        tail.finish(Duration::from_secs(10)).await;
    }
}

#[tokio::test]
async fn tail_acknowledges_unless_told_not_to() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    feed.send_all(&[Event::numbered("101", 0), Event::numbered("101", 1)]).await;
    let silent = Process::spawn("tail", node.command(&["tail", "--user", "101", "--json", "--no-ack"]));
    printed(&silent, 2).await;
    let epoch = node.connect("101").await.hello().epoch.clone();
    assert_eq!(node.connect("101").await.hello().cursor, 0);
    let since = format!("{epoch}-1");
    let arguments = ["tail", "--user", "101", "--json", "--since", &since, "--device", "laptop"];
    let resumed = Process::spawn("tail", node.command(&arguments));
    assert_eq!(printed(&resumed, 1).await[0]["seq"], 2);
    let acking = Process::spawn("tail", node.command(&["tail", "--user", "101", "--json"]));
    printed(&acking, 2).await;
    eventually("the cursor at 2", async || (node.connect("101").await.hello().cursor == 2).then_some(())).await;
}

#[tokio::test]
async fn completions_are_printed_for_the_usual_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).await.ok();
        for word in ["notifier", "check-config", "tail"] {
            assert!(script.contains(word), "{shell}: {word} is missing");
        }
    }
}

#[tokio::test]
async fn every_command_has_help_with_an_example() {
    for command in ["dev", "serve", "send", "tail", "cluster", "token", "migrate", "health", "check-config"] {
        let help = run(&[command, "--help"]).await.ok();
        let example = format!("notifier {command}");
        let uses = help.matches(&example).count();
        // One is the usage line.
        assert!(uses >= 2, "{command}: no example in {help}");
    }
}

#[tokio::test]
async fn bad_usage_ends_with_status_2_and_names_the_flag() {
    let finished = run(&["serve", "--no-such-flag"]).await;
    assert_eq!(finished.code(), 2, "{finished:?}");
    assert!(finished.stderr.contains("--no-such-flag"), "{finished:?}");
    let finished = run(&["no-such-command"]).await;
    assert_eq!(finished.code(), 2, "{finished:?}");
    assert!(finished.stderr.contains("no-such-command"), "{finished:?}");
}
