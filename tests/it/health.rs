//! `notifier health`: what a supervisor learns without a shell in the image.

use std::time::{Duration, Instant};

use tokio::net::TcpListener;

use crate::harness::{Event, Feed, Kafka, Node, command::finish};

#[tokio::test]
async fn a_ready_node_is_healthy_and_one_that_is_gone_is_not() {
    let feed = Feed::new(1).await;
    let mut node = Node::start(&feed).await;
    let answer = finish(node.command(&["health"])).await.ok();
    assert!(answer.contains(r#""ready":true"#), "{answer}");
    let answer = finish(node.command(&["health", "--live"])).await.ok();
    assert!(answer.contains(r#""live":true"#), "{answer}");
    node.stop().await.ok();
    let finished = finish(node.command(&["health"])).await;
    assert_eq!(finished.code(), 1, "{finished:?}");
    assert!(finished.stderr.contains("admin.listen"), "{finished:?}");
}

#[tokio::test]
async fn a_node_that_is_not_ready_is_live_and_the_failing_part_is_named() {
    let kafka = Kafka::shared();
    // Its topic was never made.
    let feed = Feed::named(&kafka, 1);
    let node = Node::builder(&feed).start_unready();
    node.unready("kafka").await;
    let finished = finish(node.command(&["health"])).await;
    assert_eq!(finished.code(), 1, "{finished:?}");
    assert!(finished.stderr.contains("kafka"), "{finished:?}");
    finish(node.command(&["health", "--live"])).await.ok();
}

#[tokio::test]
async fn a_node_that_drains_is_not_healthy() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("drain.goodbyes_per_second", 1).start().await;
    let mut clients = Vec::new();
    for n in 0..20 {
        clients.push(node.connect(&format!("u{n}")).await);
        feed.send(&Event::new(&format!("u{n}"), "t")).await;
    }
    let (process, node) = node.into_process();
    process.signal("TERM");
    node.unready("drain").await;
    let finished = finish(node.command(&["health"])).await;
    assert_eq!(finished.code(), 1, "{finished:?}");
    assert!(finished.stderr.contains("drain"), "{finished:?}");
    process.signal("TERM");
    process.finish(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn who_accepts_and_does_not_answer_is_not_healthy_in_time() {
    let feed = Feed::new(1).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = silent.local_addr().expect("an address").to_string();
    let dir = tempfile::tempdir().expect("a directory");
    let file = Node::builder(&feed).set("admin.listen", address.as_str()).write(dir.path());
    let mut command = crate::harness::command::notifier(&["health", "--timeout", "300ms", "--config"]);
    command.arg(file);
    let started = Instant::now();
    let finished = finish(command).await;
    assert_eq!(finished.code(), 1, "{finished:?}");
    assert!(finished.stderr.contains("300ms"), "{finished:?}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let finished = crate::harness::command::run(&["health", "--timeout", "soon"]).await;
    assert_eq!(finished.code(), 2, "{finished:?}");
    assert!(finished.stderr.contains("--timeout"), "{finished:?}");
}
