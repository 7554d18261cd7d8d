//! The chart's alerts in a real Prometheus: each fires under its fault, and only then.
//!
//! That it is quiet below its threshold, and after how long it fires, `tests/chart/alerts_test.yaml` says; that none is
//! missing here, `tests/chart/check.py`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::Algorithm;

use crate::harness::{
    Event, Feed, Kafka, Node, Record, Store,
    certs::Certs,
    cluster::Cluster,
    http,
    jwks::{Answer, Issuer},
    keys::KeyPair,
    node::Builder,
    prometheus::Prometheus,
    ws::Connect,
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

#[tokio::test]
async fn receipts_that_cannot_be_written_fire() {
    let feed = Feed::new(1).await;
    let topic = format!("{}.receipts", feed.topic);
    let node = Node::builder(&feed).set("kafka.receipts_topic", topic.as_str()).start().await;
    let five_minutes = ("notifier_receipts_age_seconds > 300", "notifier_receipts_age_seconds > 3");
    let prometheus = Prometheus::hastened(&node, &[five_minutes]).await;
    let mut client = node.connect("101").await;
    prometheus.quiet(&["NotifierReceiptsBehind"]).await;
    feed.send(&Event::new("101", "acknowledged")).await;
    client.expect_acked(1).await;
    prometheus.fires("NotifierReceiptsBehind").await;
    feed.kafka.create_topic(&topic, 1, &[]).await;
    prometheus.ends("NotifierReceiptsBehind").await;
}

#[tokio::test]
async fn keys_that_are_not_fetched_any_more_fire() {
    let key = KeyPair::new(Algorithm::ES256).await;
    let (good, bad) = (Answer::keys(&[key.jwk("known")]), Answer::text(500, "no"));
    let issuer = Issuer::start(good.clone()).await;
    let feed = Feed::new(1).await;
    let builder = Node::builder(&feed).without("auth.jwt.hs256_secret");
    let node = builder.set("auth.jwt.jwks_url", issuer.url()).start().await;
    let prometheus = Prometheus::hastened(&node, &[("> 2 * 3600", "> 12")]).await;
    // Such a token causes a fetch, once in ten seconds.
    let unknown = key.token(Some("unknown"), "101");
    let fetches = async {
        loop {
            let refused = Connect::bearer(node.addr(), &unknown).try_open().await.err();
            assert_eq!(refused.map(|refused| refused.status), Some(401), "nobody has published its key");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let fault = async {
        // Longer than the keys may be old.
        tokio::time::sleep(Duration::from_secs(14)).await;
        prometheus.quiet(&["NotifierTokenKeysStale"]).await;
        issuer.publish(bad);
        prometheus.fires("NotifierTokenKeysStale").await;
        issuer.publish(good);
        prometheus.ends("NotifierTokenKeysStale").await;
    };
    tokio::select! {
        () = fault => {}
        () = fetches => unreachable!("they do not end"),
    }
}

#[tokio::test]
async fn shards_that_nobody_takes_and_nodes_that_come_and_go_fire() {
    const FLAPPING: &str = "NotifierMembershipFlapping";
    const UNOWNED: &str = "NotifierShardsUnowned";
    let mut cluster = Cluster::start(3, 3).await;
    let prometheus = Prometheus::of_all(&cluster.nodes).await;
    // So much of it is an update, which the alert lets pass.
    let version = async |cluster: &Cluster| cluster.nodes[0].metrics().await.sum("notifier_membership_version");
    let before = version(&cluster).await;
    cluster.nodes[2].restart().await;
    cluster.settled().await;
    assert_eq!(version(&cluster).await, before + 4.0);
    prometheus.ends(UNOWNED).await;
    prometheus.quiet(&[FLAPPING]).await;

    // Somebody's transaction is in the way of whoever takes over.
    let locked = cluster.store.lock("shard_claims").await;
    cluster.nodes[2].kill();
    let said = prometheus.fires(UNOWNED).await;
    assert!(said.contains("shards belong to nobody"), "{said}");
    drop(locked);
    prometheus.ends(UNOWNED).await;
    prometheus.quiet(&[FLAPPING]).await;

    cluster.nodes[2].start_again();
    let flapping = async {
        loop {
            for node in &mut cluster.nodes[1..] {
                node.ready().await;
                node.kill();
                node.start_again();
            }
        }
    };
    tokio::select! {
        said = prometheus.fires(FLAPPING) => assert!(said.contains("in 15 minutes"), "{said}"),
        () = flapping => unreachable!("it does not end"),
    }
}
