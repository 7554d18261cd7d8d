//! The admin port: liveness, readiness, metrics.

use std::time::Duration;

use crate::harness::{Event, Feed, Node, Record, eventually};

#[tokio::test]
async fn a_running_node_is_live_and_ready() {
    let feed = Feed::new(2).await;
    let node = Node::start(&feed).await;
    assert_eq!(node.admin("/livez").await.status(), 200);
    assert_eq!(node.admin("/readyz").await.status(), 200);
    node.admin("/nothing").await.problem(404);
    // What belongs to operators is not on the clients' port.
    node.request("GET", "/readyz", &[], "").await.problem(404);
}

#[tokio::test]
async fn the_metrics_of_the_contract_are_there_with_help() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    let mut stream = node.stream("101", "device=b").await;
    feed.send(&Event::new("101", "t")).await;
    client.one().await;
    stream.expect(1).await;
    feed.put(&Record::new("{broken")).await;
    feed.dead_letters(1).await;
    node.ws("101").header("Origin", "http://evil.example").refused().await;
    node.metric_reaches("notifier_dead_letters_total", 1.0).await;
    let metrics = node.metrics().await;
    // What has happened above, and so must be counted.
    for name in [
        "notifier_connections",
        "notifier_sessions",
        "notifier_users_active",
        "notifier_events_total",
        "notifier_deliveries_total",
        "notifier_delivery_latency_seconds_bucket",
        "notifier_dead_letters_total",
        "notifier_rejected_connections_total",
        "notifier_build_info",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_open_fds",
    ] {
        assert!(metrics.has(name) && metrics.sum(name) > 0.0, "{name}\n{}", metrics.text());
    }
    for name in [
        "notifier_ingest_lag_records",
        "notifier_ingest_lag_seconds",
        "notifier_unsettled_events",
        "notifier_slow_consumers_total",
        "notifier_actor_restarts_total",
    ] {
        let family = metrics.help(name);
        assert!(family.is_some_and(|help| help.len() > 10), "{name}: no help");
    }
    // A metric that nobody explains is a metric that nobody reads.
    let types = metrics.text().lines().filter_map(|line| line.strip_prefix("# TYPE "));
    for family in types.filter_map(|line| line.split(' ').next()) {
        assert!(metrics.help(family).is_some_and(|help| !help.is_empty()), "{family}: no help");
    }
    let protocols = ["websocket", "sse"];
    for protocol in protocols {
        let open = metrics.sum_where("notifier_connections", "protocol", protocol);
        assert_eq!(open, 1.0, "{protocol}");
    }
    let active = metrics.sum_where("notifier_sessions", "state", "active");
    assert_eq!(active, 2.0);
}

#[tokio::test]
async fn deliveries_are_counted_once_per_session() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut one = node.connect("101").await;
    let mut two = node.connect("101").await;
    let events: Vec<_> = (0..10).map(|n| Event::numbered("101", n)).collect();
    feed.send_all(&events).await;
    one.expect(10).await;
    two.expect(10).await;
    node.metric_reaches("notifier_deliveries_total", 20.0).await;
    let metrics = node.metrics().await;
    assert_eq!(metrics.sum("notifier_deliveries_total"), 20.0);
    let measured = metrics.sum("notifier_delivery_latency_seconds_count");
    assert_eq!(measured, 20.0);
    let seconds = metrics.sum("notifier_delivery_latency_seconds_sum");
    assert!((0.0..600.0).contains(&seconds), "{seconds} s for 20 deliveries");
    drop((one, two));
    eventually("no connection", async || (node.metrics().await.sum("notifier_connections") == 0.0).then_some(())).await;
}

#[tokio::test]
async fn lag_grows_while_nothing_can_be_settled_and_falls_afterwards() {
    let kafka = crate::harness::Kafka::shared();
    let feed = Feed::named(&kafka, 1);
    kafka.create_topic(&feed.topic, 1, &[]).await;
    let node = Node::builder(&feed).set("kafka.partition_refresh", "1s").start().await;
    // No dead-letter topic: this record holds the position back.
    feed.put(&Record::new("{broken")).await;
    let events: Vec<_> = (0..20).map(|n| Event::numbered("101", n)).collect();
    feed.send_all(&events).await;
    node.metric_reaches("notifier_ingest_lag_records", 21.0).await;
    // It grows by itself: the age of the oldest unsettled record.
    node.metric_reaches("notifier_ingest_lag_seconds", 2.0).await;
    kafka.create_topic(&feed.dead_letter_topic, 1, &[]).await;
    eventually("no lag", async || {
        let metrics = node.metrics().await;
        let lag = ["notifier_ingest_lag_records", "notifier_ingest_lag_seconds"];
        lag.iter().all(|name| metrics.sum(name) == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn credits_bound_what_is_in_flight() {
    let feed = Feed::new(1).await;
    let events: Vec<_> = (0..3_000).map(|n| Event::numbered("101", n)).collect();
    feed.send_all(&events).await;
    let node = Node::builder(&feed)
        .set("kafka.in_flight_events", 64)
        .set("kafka.in_flight_bytes", "64KiB")
        .set("limits.payload_bytes_max", "16KiB")
        .start()
        .await;
    let mut client = node.connect("101").await;
    let mut highest = 0.0_f64;
    for frame in client.expect_acked(3_000).await {
        if frame.n() % 250 == 0 {
            highest = highest.max(node.metrics().await.sum("notifier_unsettled_events"));
        }
    }
    assert!(highest <= 64.0, "{highest} unsettled events");
    node.settled(3_000).await;
}

#[tokio::test]
async fn logs_are_json_lines_without_tokens_and_payloads() {
    let feed = Feed::new(1).await;
    let mut node = Node::builder(&feed).env("NOTIFIER_LOG", "debug").env("RUST_LOG", "debug").start().await;
    let token = node.token("101");
    let mut client = node.ws("101").query("access_token", &token).open().await;
    feed.send(&Event::new("101", "t").data(r#"{"secret":"do-not-log-this"}"#)).await;
    client.one().await;
    feed.put(&Record::new(r#"{"target":"do-not-log-this""#)).await;
    feed.dead_letters(1).await;
    tokio::time::timeout(Duration::from_secs(10), client.leave()).await.expect("a goodbye");
    let finished = node.stop().await;
    assert_eq!(finished.code(), 0, "{finished:?}");
    assert!(!finished.stderr.is_empty());
    for line in finished.stderr.lines() {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(parsed.is_ok_and(|value| value.is_object()), "not a JSON line: {line}");
    }
    assert!(!finished.stderr.contains("do-not-log-this"), "a payload was logged");
    assert!(!finished.stderr.contains(&token), "a token was logged");
}
