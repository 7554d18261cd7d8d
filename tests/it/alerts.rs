//! The chart's alerts in a real Prometheus: each fires under its fault, and only then.
//!
//! That it is quiet below its threshold, and after how long it fires, `tests/chart/alerts_test.yaml` says.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::harness::{
    Event, Feed, Kafka, Node, Record, Store, certs::Certs, http, node::Builder, prometheus::Prometheus,
};

fn ago(time: Duration) -> Option<i64> {
    let then = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970") - time;
    Some(i64::try_from(then.as_millis()).expect("milliseconds"))
}

#[tokio::test]
async fn lag_and_events_that_are_stuck_fire_until_they_are_settled() {
    let kafka = Kafka::shared();
    let feed = Feed::named(&kafka, 1);
    kafka.create_topic(&feed.topic, 1, &[]).await;
    let node = Node::builder(&feed).set("kafka.partition_refresh", "1s").start().await;
    let prometheus = Prometheus::of(&node).await;
    prometheus.quiet(&["NotifierLag", "NotifierUnsettledEventsStuck", "NotifierDown"]).await;
    // Nobody takes its dead letter.
    feed.put(&Record { timestamp: ago(Duration::from_secs(400)), ..Record::new("{broken") }).await;
    prometheus.fires("NotifierLag").await;
    let said = prometheus.fires("NotifierUnsettledEventsStuck").await;
    assert!(said.contains("holds 1 events"), "{said}");
    kafka.create_topic(&feed.dead_letter_topic, 1, &[]).await;
    prometheus.fires("NotifierDeadLetters").await;
    prometheus.ends("NotifierLag").await;
    prometheus.ends("NotifierUnsettledEventsStuck").await;
}

#[tokio::test]
async fn a_store_that_is_away_fires() {
    let mut store = Store::postgres().await;
    let feed = Feed::new(1).await;
    let node = store.of(Node::builder(&feed)).start().await;
    let prometheus = Prometheus::of(&node).await;
    prometheus.quiet(&["NotifierStoreErrors"]).await;
    store.away().await;
    feed.send(&Event::new("101", "waits")).await;
    prometheus.fires("NotifierStoreErrors").await;
    store.back().await;
    prometheus.ends("NotifierStoreErrors").await;
}

#[tokio::test]
async fn a_store_that_writes_slowly_fires() {
    let store = Store::postgres().await;
    let feed = Feed::new(1).await;
    let node = store.of(Node::builder(&feed)).start().await;
    feed.send(&Event::new("101", "first")).await;
    node.settled(1).await;
    let prometheus = Prometheus::of(&node).await;
    prometheus.quiet(&["NotifierStoreSlow"]).await;
    let lock = store.lock("heads").await;
    feed.send(&Event::new("101", "waits")).await;
    store.hangs().await;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    drop(lock);
    prometheus.fires("NotifierStoreSlow").await;
}

#[tokio::test]
async fn clients_that_do_not_keep_up_fire() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("sessions.window_items", 5).set("sessions.slow_deadline", "1s").start().await;
    let prometheus = Prometheus::of(&node).await;
    let mut clients = Vec::new();
    let mut events = Vec::new();
    for user in 0..12 {
        let user = format!("u{user}");
        clients.push(node.connect(&user).await);
        events.extend((0..20).map(|n| Event::numbered(&user, n)));
    }
    prometheus.quiet(&["NotifierSlowConsumers"]).await;
    feed.send_all(&events).await;
    for client in &mut clients {
        assert_eq!(client.closed().await.1, Some(4002));
    }
    prometheus.fires("NotifierSlowConsumers").await;
}

#[tokio::test]
async fn a_full_node_fires_before_and_when_it_turns_clients_away() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("limits.connections_max", 20).start().await;
    let prometheus = Prometheus::of(&node).await;
    let watched = ["NotifierCapacityForecast", "NotifierCapacityHigh", "NotifierConnectionsRejected"];
    prometheus.quiet(&watched).await;
    let mut clients = Vec::new();
    for n in 0..14 {
        clients.push(node.connect(&format!("u{n}")).await);
    }
    let said = prometheus.fires("NotifierCapacityForecast").await;
    assert!(said.contains("no connections left"), "{said}");
    prometheus.quiet(&watched[1..]).await;
    for n in 14..20 {
        clients.push(node.connect(&format!("u{n}")).await);
    }
    let said = prometheus.fires("NotifierCapacityHigh").await;
    assert!(said.contains("100% of its connections"), "{said}");
    for _ in 0..20 {
        // Whether the refusal is read before the end of the connection is not the question here.
        http::try_send(node.addr(), http::Request { method: "GET", path: "/", headers: &[], body: "" }).await;
    }
    prometheus.fires("NotifierConnectionsRejected").await;
}

#[tokio::test]
async fn tokens_that_are_refused_fire() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let prometheus = Prometheus::of(&node).await;
    let _client = node.connect("101").await;
    prometheus.quiet(&["NotifierAuthenticationFailing"]).await;
    let authorization = format!("Bearer {}x", node.token("101"));
    for _ in 0..60 {
        let answer = node.request("GET", "/v1/stream", &[("Authorization", &authorization)], "").await;
        assert_eq!(answer.status(), 401);
    }
    prometheus.fires("NotifierAuthenticationFailing").await;
}

#[tokio::test]
async fn notifications_that_arrive_late_burn_both_budgets() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    feed.send(&Event::new("101", "in-time")).await;
    client.one().await;
    let prometheus = Prometheus::of(&node).await;
    prometheus.quiet(&["NotifierDeliverySlowFast", "NotifierDeliverySlowLong"]).await;
    for n in 0..20 {
        let event = Event::numbered("101", n);
        feed.put(&Record { timestamp: ago(Duration::from_secs(5)), ..Record::new(event.protobuf()).key("101") }).await;
    }
    client.expect(20).await;
    prometheus.fires("NotifierDeliverySlowFast").await;
    prometheus.fires("NotifierDeliverySlowLong").await;
}

#[tokio::test]
async fn an_actor_that_crashes_fires() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    let prometheus = Prometheus::of(&node).await;
    prometheus.quiet(&["NotifierActorRestarts"]).await;
    feed.send(&Event::new("101", "fault.session")).await;
    let said = prometheus.fires("NotifierActorRestarts").await;
    assert!(said.contains("session actor"), "{said}");
    feed.send(&Event::new("101", "after")).await;
    while client.one().await.kind != "after" {}
}

#[tokio::test]
async fn a_node_that_restarts_and_one_that_is_gone_fire() {
    let feed = Feed::new(1).await;
    let mut node = Node::start(&feed).await;
    let prometheus = Prometheus::of(&node).await;
    prometheus.quiet(&["NotifierRestarting", "NotifierDown"]).await;
    for _ in 0..3 {
        node.restart().await;
        // Each life is scraped.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
    }
    prometheus.fires("NotifierRestarting").await;
    node.kill();
    prometheus.fires("NotifierDown").await;
}

#[tokio::test]
async fn what_expires_soon_fires() {
    let certs = Certs::new().await;
    let feed = Feed::new(1).await;
    let node = expiring(certs.on(Node::builder(&feed)), &certs).start().await;
    let prometheus = Prometheus::of(&node).await;
    let said = prometheus.fires("NotifierCertificateExpires").await;
    assert!(said.contains("port client"), "{said}");
    prometheus.fires("NotifierTokenKeyExpires").await;
    certs.renew(30).await;
    prometheus.ends("NotifierCertificateExpires").await;
}

/// Tokens checked with the key of a certificate that ends in two days.
fn expiring(builder: Builder, certs: &Certs) -> Builder {
    let file = certs.cert().display().to_string();
    builder.set("auth.jwt.public_key_files", toml::Value::Array(vec![file.into()]))
}
