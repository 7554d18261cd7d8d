//! What is over a user's limit waits, survives everything, and is released or counted in a digest.

use std::time::Duration;

use crate::harness::{
    Event, Feed, Node, Record, Store,
    carrier::{Ask, Carrier, open},
    eventually,
};

/// A node that lets one normal notification go at once, and then hardly any.
async fn limiting(store: &Store, feed: &Feed) -> Node {
    store.of(Node::builder(feed)).limit("normal", 0.001, 1).api_key("support", "key", &["read"]).start().await
}

#[tokio::test]
async fn fifty_that_were_held_back_arrive_after_kill_9_behind_the_critical_one_that_was_acknowledged() {
    for store in Store::each().await {
        let feed = Feed::new(1).await;
        let mut node = limiting(&store, &feed).await;
        let mut client = node.connect("101").await;
        let events: Vec<_> = (0..51).map(|n| Event::numbered("101", n)).collect();
        feed.send_all(&events).await;
        feed.send_all(&[Event::numbered("101", 51).critical()]).await;
        let frames = client.expect(2).await;
        assert_eq!([frames[0].n(), frames[1].n()], [0, 51], "{}", store.engine());
        assert_eq!([frames[0].number(), frames[1].number()], [1, 2], "the number comes with the release");
        client.ack(2).await;
        node.settled(52).await;
        eventually("a stored cursor", async || {
            let page = node.request("GET", "/v1/users/101/notifications", &[("X-API-Key", "key")], "").await.json();
            (page["cursor"] == 2).then_some(())
        })
        .await;
        node.kill();
        drop(client);
        node.start_again();
        node.ready().await;
        let mut client = node.connect("101").await;
        let frames = client.expect(50).await;
        let seen: Vec<_> = frames.iter().map(|frame| (frame.n(), frame.number())).collect();
        assert_eq!(seen, (1..51).map(|n| (n, n + 2)).collect::<Vec<_>>(), "{}", store.engine());
        assert!(client.poll(Duration::from_millis(300)).await.is_none(), "nothing more");
    }
}

#[tokio::test]
async fn no_form_no_durability_and_no_protocol_goes_around_the_limit() {
    let feed = Feed::new(1).await;
    let store = Store::sqlite();
    let builder = store.of(Node::builder(&feed)).limit("normal", 0.001, 1).api_key("billing", "key", &["publish"]);
    let node = builder.start().await;
    let mut clients = Vec::new();
    for carrier in Carrier::ALL {
        let client = open(&node, carrier, &Ask::token(&node.token("101"))).await;
        clients.push((carrier, client.expect("accepted")));
    }
    let event = |id| Event::new("101", "news").data("{}").id(id);
    feed.send_all(&[event("first")]).await;
    let limited = [
        Record::new(event("protobuf").protobuf()),
        Record::new(event("confluent").confluent(&[0])),
        Record::new(event("json").snake().to_string()),
        Record::new(event("transient").transient().protobuf()),
    ];
    for record in &limited {
        feed.put(record).await;
    }
    let body = r#"{"target":"101","type":"news","payload":{}}"#;
    assert_eq!(node.request("POST", "/v1/events", &[("X-API-Key", "key")], body).await.status(), 202);
    node.settled(6).await;
    // Behind all of them, so whoever gets it has nothing more to come.
    feed.send_all(&[event("last").critical()]).await;
    for (carrier, client) in &mut clients {
        let ids: Vec<_> = client.expect(2).await.into_iter().filter_map(|frame| frame.id).collect();
        assert_eq!(ids, ["first", "last"], "{carrier:?}");
    }
    assert_eq!(node.metrics().await.sum_where("notifier_rate_limited_total", "mode", "enforced"), 5.0);
}

#[tokio::test]
async fn what_waits_goes_into_the_log_when_the_last_session_leaves() {
    let store = Store::sqlite();
    let feed = Feed::new(1).await;
    let node = limiting(&store, &feed).await;
    let mut client = node.connect("101").await;
    let events: Vec<_> = (0..5).map(|n| Event::numbered("101", n)).collect();
    feed.send_all(&events).await;
    node.settled(5).await;
    assert_eq!(client.one().await.n(), 0);
    let metrics = node.metrics().await;
    assert_eq!(metrics.sum_where("notifier_buffered_notifications", "priority", "normal"), 4.0);
    assert_eq!(metrics.sum_where("notifier_rate_limited_total", "mode", "enforced"), 4.0);
    drop(client);
    eventually("an empty buffer", async || {
        let waiting = node.metrics().await.sum("notifier_buffered_notifications");
        (waiting == 0.0).then_some(())
    })
    .await;
    let mut client = node.connect("101").await;
    assert_eq!(client.expect(5).await.iter().map(|frame| frame.n()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn a_burst_beyond_the_buffer_becomes_one_digest_on_every_engine_and_survives_kill_9() {
    for store in Store::each().await {
        let feed = Feed::new(1).await;
        let builder = store.of(Node::builder(&feed)).limit("normal", 0.001, 1).set("buffer.items", 3);
        let mut node = builder.api_key("support", "key", &["read"]).start().await;
        let client = node.connect("101").await;
        let events: Vec<_> = (0..10).map(|n| Event::numbered("101", n).id(&format!("id-{n}"))).collect();
        feed.send_all(&events).await;
        node.settled(10).await;
        node.kill();
        drop(client);
        node.start_again();
        node.ready().await;
        let mut client = node.connect("101").await;
        let frames = client.expect(5).await;
        let n: Vec<_> = frames[..4].iter().map(|frame| frame.n()).collect();
        assert_eq!(n, [0, 1, 2, 3], "{}", store.engine());
        let digest = &frames[4];
        assert_eq!((digest.kind.as_str(), &digest.payload()["count"]), ("notifier.digest", &6.into()));
        assert_eq!(digest.payload()["types"]["numbered"], 6, "{}", store.engine());
        let path = "/v1/users/101/notifications/id-7";
        let told = node.request("GET", path, &[("X-API-Key", "key")], "").await.json();
        assert_eq!((&told["state"], &told["reason"]), (&"deleted".into(), &"digested".into()), "{}", store.engine());
        assert_eq!(told["payload"]["n"], 7, "it stays readable");
        assert!(client.poll(Duration::from_millis(300)).await.is_none(), "nothing more");
    }
}
