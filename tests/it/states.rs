//! "Why did I (not) get it?": states over HTTP, and taking back.

use std::time::Duration;

use serde_json::Value;

use crate::harness::{Event, Feed, Node, Store, eventually};

const KEY: (&str, &str) = ("X-API-Key", "key");

async fn node(store: &Store, feed: &Feed) -> Node {
    store.of(Node::builder(feed)).api_key("support", "key", &["read", "sessions"]).start().await
}

async fn told(node: &Node, id: &str) -> Value {
    node.request("GET", &format!("/v1/users/101/notifications/{id}"), &[KEY], "").await.json()
}

/// Waits until the notification stands so.
async fn stands(node: &Node, id: &str, state: &str) -> Value {
    eventually(&format!("{id} {state}"), async || {
        let told = told(node, id).await;
        (told["state"] == state).then_some(told)
    })
    .await
}

async fn cancel(node: &Node, id: &str) -> u16 {
    node.request("DELETE", &format!("/v1/users/101/notifications/{id}"), &[KEY], "").await.status()
}

#[tokio::test]
async fn a_notification_tells_its_way_from_pending_to_sent_over_a_lost_session() {
    for store in Store::each().await {
        let feed = Feed::new(1).await;
        let node = node(&store, &feed).await;
        feed.send_all(&[Event::numbered("101", 0).id("a")]).await;
        node.settled(1).await;
        assert_eq!(stands(&node, "a", "pending").await["seq"], 1);
        let mut client = node.connect("101").await;
        client.one().await;
        // Whoever has the whole id could act for the session.
        let first = client.hello().session[..8].to_owned();
        stands(&node, "a", "active").await;
        drop(client);
        stands(&node, "a", "stale").await;
        let mut client = node.ws("101").query("device", "phone").open().await;
        client.one().await;
        client.ack(1).await;
        let second = client.hello().session[..8].to_owned();
        let sent = stands(&node, "a", "sent").await;
        let history: Vec<_> = sent["history"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| {
                (one["state"].as_str().unwrap(), one["session"].as_str().unwrap_or_default(), one["device"].as_str())
            })
            .collect();
        let expected = [
            ("pending", "", None),
            ("active", first.as_str(), None),
            ("stale", first.as_str(), None),
            ("active", second.as_str(), Some("phone")),
            ("sent", second.as_str(), Some("phone")),
        ];
        assert_eq!(history, expected, "{}", store.engine());
        assert_eq!(cancel(&node, "a").await, 409);
    }
}

#[tokio::test]
async fn what_was_taken_back_does_not_come_and_its_number_is_a_gap() {
    for store in Store::each().await {
        let feed = Feed::new(1).await;
        let node = node(&store, &feed).await;
        let events: Vec<_> = (0..3).map(|n| Event::numbered("101", n).id(&n.to_string())).collect();
        feed.send_all(&events).await;
        node.settled(3).await;
        assert_eq!(cancel(&node, "1").await, 204, "{}", store.engine());
        assert_eq!((cancel(&node, "1").await, cancel(&node, "none").await), (409, 404));
        assert_eq!(told(&node, "1").await["reason"], "cancelled");
        let mut client = node.connect("101").await;
        assert_eq!(client.next().await.number(), 1);
        let gap = client.control("$gap").await.payload();
        assert_eq!(gap, serde_json::json!({"from": 2, "to": 2, "reason": "cancelled"}), "{}", store.engine());
        assert_eq!(client.next().await.number(), 3);
        assert!(client.poll(Duration::from_millis(200)).await.is_none(), "nothing more");
    }
}

#[tokio::test]
async fn a_newer_one_with_the_same_key_is_all_that_somebody_gets_who_was_away() {
    for store in Store::each().await {
        let feed = Feed::new(1).await;
        let node = node(&store, &feed).await;
        let events: Vec<_> = (0..200)
            .map(|n| Event::numbered("101", n).id(&n.to_string()).collapse_key(&format!("k{}", n % 3)))
            .collect();
        feed.send_all(&events).await;
        node.settled(200).await;
        eventually("all older ones gone", async || (told(&node, "196").await["reason"] == "superseded").then_some(()))
            .await;
        let mut client = node.connect("101").await;
        let frames = client.expect(3).await;
        let seen: Vec<_> = frames.iter().map(|frame| (frame.n(), frame.number())).collect();
        assert_eq!(seen, [(197, 198), (198, 199), (199, 200)], "{}: over the bounds of pages", store.engine());
        assert!(client.poll(Duration::from_millis(200)).await.is_none(), "nothing more");
    }
}
