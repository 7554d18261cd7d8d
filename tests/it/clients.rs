//! Clients and producers that others wrote: what works with them works.

use serde_json::{Value, json};

use crate::harness::{
    Event, Feed, Node,
    command::{CLIENT_DEADLINE, browser, json_lines, kcat, node as nodejs, notifications, python},
    process::Process,
};

const BIG: &str = r#"{"n":9007199254740993}"#;

async fn feed_with_pending(node_feed: &Feed, node: &Node, count: u64) {
    let mut events: Vec<_> = (0..count).map(|n| Event::numbered("101", n)).collect();
    events.push(Event::new("101", "big").data(BIG));
    node_feed.send_all(&events).await;
    node.settled(events.len()).await;
}

fn assert_numbered(lines: &[Value], count: u64) {
    let numbers: Vec<_> = lines.iter().filter_map(|line| line["payload"]["n"].as_u64()).collect();
    let mut expected: Vec<_> = (0..count).collect();
    expected.push(9_007_199_254_740_993);
    assert_eq!(numbers, expected);
    let seqs: Vec<_> = lines.iter().filter_map(|line| line["seq"].as_u64()).collect();
    assert_eq!(seqs, (1..=count + 1).collect::<Vec<_>>());
}

#[tokio::test]
async fn pythons_websockets_receives_and_acknowledges() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    feed_with_pending(&feed, &node, 20).await;
    let mut command = python("ws.py");
    command.arg(node.ws_url()).arg(node.token("101")).args(["21", "--ack"]);
    let output = Process::run("ws.py", command, CLIENT_DEADLINE).await.ok();
    assert!(output.contains(BIG), "{output}");
    assert_eq!(json_lines(&output)[0]["type"], "$hello");
    assert_numbered(&notifications(&output), 20);
    assert_eq!(node.connect("101").await.hello().head, 21);
}

#[tokio::test]
async fn nodes_ws_receives_and_acknowledges() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    feed_with_pending(&feed, &node, 20).await;
    let mut command = nodejs("ws.mjs");
    command.arg(node.ws_url()).arg(node.token("101")).args(["21", "--ack"]);
    let output = Process::run("ws.mjs", command, CLIENT_DEADLINE).await.ok();
    assert!(output.contains(BIG), "{output}");
    assert_numbered(&notifications(&output), 20);
}

#[tokio::test]
async fn a_browsers_event_source_receives_and_resumes() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    feed_with_pending(&feed, &node, 9).await;
    let mut command = browser("eventsource.mjs");
    command.arg(node.http_url()).arg(node.token("101")).args(["10", "--drop"]);
    let output = Process::run("eventsource.mjs", command, CLIENT_DEADLINE).await.ok();
    let lines = json_lines(&output);
    let messages: Vec<_> = lines.iter().filter(|line| line["event"] == "message").collect();
    let frames: Vec<_> = messages.iter().map(|line| line["frame"].clone()).collect();
    assert_numbered(&frames, 9);
    let epoch = lines.iter().find(|line| line["event"] == "$hello").expect("a hello");
    let epoch = epoch["frame"]["payload"]["epoch"].as_str().expect("an epoch");
    for (line, frame) in messages.iter().zip(&frames) {
        assert_eq!(line["lastEventId"], json!(format!("{epoch}-{}", frame["seq"])));
    }
    let hellos = lines.iter().filter(|line| line["event"] == "$hello").count();
    assert_eq!(hellos, 2, "opened again once: {output}");
}

#[tokio::test]
async fn kcat_produces_with_headers_and_compression() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    let base = ["-P", "-b", &feed.kafka.bootstrap, "-t", &feed.topic, "-k", "101"];
    let event = format!(r#"{{"target":101,"type":"short","payload":{BIG}}}"#);
    Process::run("kcat", kcat(&base, &event), CLIENT_DEADLINE).await.ok();
    assert_eq!(client.one().await.raw(), BIG);
    let headers = [
        "-z",
        "zstd",
        "-H",
        "ce_type=cloud",
        "-H",
        "ce_subject=101",
        "-H",
        "ce_id=k1",
        "-H",
        "ce_source=/kcat",
        "-H",
        "ce_specversion=1.0",
    ];
    let cloud = kcat(&[&base[..], &headers[..]].concat(), BIG);
    Process::run("kcat", cloud, CLIENT_DEADLINE).await.ok();
    let frame = client.one().await;
    assert_eq!((frame.kind.as_str(), frame.id.as_deref(), frame.raw()), ("cloud", Some("k1"), BIG));
}

#[tokio::test]
async fn confluents_python_producer_is_understood() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    let lines = [
        json!({"key": "101", "value": Event::new("101", "camel").camel().to_string()}),
        json!({"key": "101", "value": BIG, "headers": {
            "ce_specversion": "1.0", "ce_type": "cloud", "ce_subject": "101", "ce_id": "1",
            "ce_source": "/python",
        }}),
        json!({"key": "bad", "value": "{broken", "headers": {"kept": "yes"}}),
        json!({"key": "101", "value": r#"{"target":101,"type":"last","payload":[]}"#}),
    ];
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("records.jsonl");
    std::fs::write(&file, lines.each_ref().map(Value::to_string).join("\n")).expect("a writable file");
    let mut command = python("produce.py");
    command.args([&feed.kafka.bootstrap, &feed.topic]).arg(&file);
    let output = Process::run("produce.py", command, CLIENT_DEADLINE).await.ok();
    assert_eq!(json_lines(&output).len(), lines.len(), "{output}");
    let kinds: Vec<_> = client.expect(3).await.into_iter().map(|frame| frame.kind).collect();
    assert_eq!(kinds, ["camel", "cloud", "last"]);
    let letter = feed.dead_letters(1).await.remove(0);
    assert_eq!((letter.key.as_deref(), letter.header("kept")), (Some(&b"bad"[..]), Some("yes".into())));
}
