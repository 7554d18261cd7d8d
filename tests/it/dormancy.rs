//! Clients that stay connected while nothing happens: no actor runs for them, and they notice nothing.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{
    Event, Feed, Node,
    carrier::{Ask, Carrier, Client, open},
    eventually,
    token::{SECRET, now_secs, signed},
};

async fn soon_asleep(feed: &Feed) -> Node {
    Node::builder(feed).set("sessions.idle_after", "1s").start().await
}

async fn sessions(node: &Node, state: &str) -> f64 {
    node.metrics().await.sum_where("notifier_sessions", "state", state)
}

/// Waits until so many sessions rest, and no user has an actor.
async fn asleep(node: &Node, count: usize) {
    eventually(&format!("{count} sessions at rest"), async || {
        let metrics = node.metrics().await;
        let of = |state| metrics.sum_where("notifier_sessions", "state", state);
        let is_quiet = of("active") == 0.0 && metrics.sum("notifier_users_active") == 0.0;
        (of("dormant") == count as f64 && is_quiet).then_some(())
    })
    .await;
}

async fn connected(node: &Node, carrier: Carrier, user: &str) -> Client {
    open(node, carrier, &Ask::token(&node.token(user))).await.expect("accepted")
}

#[tokio::test]
async fn on_every_protocol_a_quiet_client_sleeps_and_wakes_by_event_acknowledgement_and_another_client() {
    let feed = Feed::new(1).await;
    let node = soon_asleep(&feed).await;
    let mut clients = Vec::new();
    for carrier in Carrier::ALL {
        let user = format!("{carrier:?}");
        let mut client = connected(&node, carrier, &user).await;
        feed.send(&Event::new(&user, "before")).await;
        assert_eq!(client.expect(1).await[0].number(), 1, "{carrier:?}");
        client.ack(1).await.expect("sent");
        clients.push((carrier, user, client));
    }
    asleep(&node, clients.len()).await;
    // An event that is not stored would be gone if nobody was there.
    for (carrier, user, client) in &mut clients {
        feed.send(&Event::new(user, "transient").transient()).await;
        assert_eq!(client.expect(1).await[0].kind, "transient", "{carrier:?}");
    }
    asleep(&node, clients.len()).await;
    for (carrier, user, client) in &mut clients {
        feed.send_all(&[Event::new(user, "live"), Event::new(user, "next")]).await;
        let frames = client.expect(2).await;
        assert_eq!([frames[0].number(), frames[1].number()], [2, 3], "{carrier:?}");
        // One that reads a stream need not say so: it sleeps with this open.
        if *carrier != Carrier::Sse {
            client.ack(3).await.expect("sent");
        }
    }
    asleep(&node, clients.len()).await;
    for (carrier, user, client) in &mut clients {
        client.ack(3).await.expect("sent");
        eventually("the cursor", async || (connected(&node, *carrier, user).await.hello().cursor == 3).then_some(()))
            .await;
    }
    asleep(&node, clients.len()).await;
    for (carrier, user, client) in &mut clients {
        let mut other = connected(&node, *carrier, user).await;
        feed.send(&Event::new(user, "both").transient()).await;
        assert_eq!(client.expect(1).await[0].kind, "both", "{carrier:?}: no second greeting, nothing twice");
        assert_eq!(other.expect(1).await[0].kind, "both", "{carrier:?}");
    }
    assert!(node.metrics().await.sum("notifier_user_wakeups_total") >= 4.0 * clients.len() as f64);
    assert_eq!(node.metrics().await.sum("notifier_actor_restarts_total"), 0.0);
}

#[tokio::test]
async fn a_sleeping_client_is_listed_gets_heartbeats_and_ends_by_operator_token_and_its_own_wish() {
    let feed = Feed::new(1).await;
    let builder = Node::builder(&feed).set("sessions.idle_after", "1s").set("sessions.heartbeat", "1s");
    let node = builder.set("auth.jwt.leeway", "0s").start().await;
    let mut client = node.connect("101").await;
    let expiring = signed(&json!({"sub": "expiring", "exp": now_secs() + 8}), SECRET);
    let mut expiring = crate::harness::ws::Connect::bearer(node.addr(), &expiring).open().await;
    let leaving = node.connect("leaving").await;
    asleep(&node, 3).await;
    leaving.leave().await;
    asleep(&node, 2).await;
    let pings = client.pings();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(client.pings() >= pings + 2, "{} pings", client.pings());
    assert_eq!(expiring.close_code().await, 4001);
    asleep(&node, 1).await;
    let authorization = format!("Bearer {}", node.token("101"));
    let headers = [("Authorization", authorization.as_str())];
    let listed = node.request("GET", "/v1/users/101/sessions", &headers, "").await.json();
    assert_eq!(listed["sessions"].as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(node.request("DELETE", "/v1/users/101/sessions", &headers, "").await.status(), 204);
    assert_eq!(client.close_code().await, 4003);
    asleep(&node, 0).await;
    assert_eq!(node.metrics().await.sum("notifier_user_wakeups_total"), 0.0, "nobody was woken for that");
}

#[tokio::test]
async fn a_drain_says_goodbye_to_who_sleeps() {
    let feed = Feed::new(1).await;
    let node = soon_asleep(&feed).await;
    let mut clients = Vec::new();
    for carrier in Carrier::ALL {
        clients.push(connected(&node, carrier, &format!("{carrier:?}")).await);
    }
    asleep(&node, clients.len()).await;
    let (process, _node) = node.into_process();
    process.signal("TERM");
    for client in &mut clients {
        assert_eq!(client.bye().await, 1001);
    }
    drop(clients);
    assert_eq!(process.finish(Duration::from_secs(30)).await.code(), 0);
}

#[tokio::test]
async fn one_session_too_many_closes_the_oldest_that_sleeps() {
    let feed = Feed::new(1).await;
    let builder = Node::builder(&feed).set("sessions.idle_after", "1s").set("sessions.per_user_max", 2);
    let node = builder.start().await;
    let (mut first, mut second) = (node.connect("101").await, node.connect("101").await);
    asleep(&node, 2).await;
    let mut third = node.connect("101").await;
    assert_eq!(first.close_code().await, 4003);
    feed.send(&Event::new("101", "t").transient()).await;
    assert_eq!([second.one().await.kind, third.one().await.kind], ["t", "t"]);
}

#[tokio::test]
async fn crashes_while_asleep_and_while_waking_are_noticed_by_no_client() {
    let feed = Feed::new(1).await;
    let node = soon_asleep(&feed).await;
    for (fault, counted) in [("fault.session", "session"), ("fault.user", "user"), ("fault.shard", "shard")] {
        let mut client = node.connect(fault).await;
        feed.send(&Event::new(fault, "before")).await;
        let before = client.one().await.number();
        client.ack(before).await;
        asleep(&node, 1).await;
        // Durable: an event that crashes again and again is a dead letter in the end.
        feed.send(&Event::new(fault, fault)).await;
        eventually("a counted crash", async || {
            let restarts = node.metrics().await.sum_where("notifier_actor_restarts_total", "actor", counted);
            (restarts >= 1.0).then_some(())
        })
        .await;
        feed.send(&Event::new(fault, "after")).await;
        let mut last = client.one().await;
        if last.kind == fault {
            last = client.one().await;
        }
        assert_eq!(last.kind, "after", "{fault}");
        client.ack(last.number()).await;
        client.leave().await;
    }
}

#[tokio::test]
async fn it_can_be_switched_off() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("sessions.idle_after", "0s").start().await;
    let _client = node.connect("101").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!([sessions(&node, "active").await, sessions(&node, "dormant").await], [1.0, 0.0]);
}

/// How long a transient event takes to clients that sleep, and then to the same ones awake.
#[tokio::test]
#[ignore = "a measurement: cargo test --release --test it -- --ignored --nocapture wake_up_latency"]
async fn wake_up_latency() {
    const CLIENTS: usize = 300;
    let feed = Feed::new(1).await;
    let node = soon_asleep(&feed).await;
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        clients.push((format!("u{n}"), node.connect(&format!("u{n}")).await));
    }
    asleep(&node, CLIENTS).await;
    let mut took = [Vec::new(), Vec::new()];
    for (user, client) in &mut clients {
        for of in &mut took {
            let sent = Instant::now();
            feed.send(&Event::new(user, "t").transient()).await;
            client.one().await;
            of.push(sent.elapsed());
        }
    }
    let woken = node.metrics().await.sum("notifier_user_wakeups_total");
    assert!(woken >= CLIENTS as f64, "{woken} woken");
    let [asleep, awake] = took.map(|mut of| {
        of.sort();
        of[CLIENTS / 2]
    });
    let ratio = asleep.as_secs_f64() / awake.as_secs_f64();
    println!("produced to received, medians of {CLIENTS}: asleep {asleep:?}, awake {awake:?}, ratio {ratio:.2}");
}
