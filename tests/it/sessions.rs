//! Heartbeats, session limits, and consumers that do not keep up.

use std::time::Duration;

use crate::harness::{
    Event, Feed, Node,
    check::Order,
    eventually,
    raw::{End, RawWs},
    wait::DEADLINE,
};

#[tokio::test]
async fn heartbeat_pings_are_sent_and_an_answering_client_stays() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("sessions.heartbeat", "1s").start().await;
    let mut client = node.connect("101").await;
    eventually("four pings", async || (client.pings() >= 4).then_some(())).await;
    feed.send(&Event::new("101", "still-here")).await;
    assert_eq!(client.one().await.kind, "still-here");
}

#[tokio::test]
async fn a_peer_that_never_answers_pings_is_closed() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("sessions.heartbeat", "1s").start().await;
    let mut dead = RawWs::open(node.addr(), &node.token("101")).await;
    let mut alive = node.connect("102").await;
    dead.end().await;
    eventually("one connection", async || (node.metrics().await.sum("notifier_connections") == 1.0).then_some(()))
        .await;
    feed.send(&Event::new("102", "undisturbed")).await;
    assert_eq!(alive.one().await.kind, "undisturbed");
}

#[tokio::test]
async fn above_the_session_limit_the_oldest_is_closed_with_4003() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("sessions.per_user_max", 2).start().await;
    let mut first = node.connect("101").await;
    let mut second = node.connect("101").await;
    let mut other = node.connect("102").await;
    let mut third = node.connect("101").await;
    assert_eq!(first.close_code().await, 4003);
    feed.send_all(&[Event::new("101", "a"), Event::new("102", "a")]).await;
    for client in [&mut second, &mut third, &mut other] {
        assert_eq!(client.one().await.kind, "a");
    }
    let _fourth = node.connect("101").await;
    assert_eq!(second.close_code().await, 4003);
}

#[tokio::test]
async fn a_client_that_never_acknowledges_is_closed_with_4002_and_loses_nothing() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("sessions.window_items", 10).set("sessions.slow_deadline", "2s").start().await;
    let mut client = node.connect("101").await;
    let events: Vec<_> = (0..50).map(|n| Event::numbered("101", n)).collect();
    feed.send_all(&events).await;
    let (frames, code) = client.closed().await;
    assert_eq!(code, Some(4002));
    let notifications: Vec<_> = frames.iter().filter(|frame| !frame.is_control()).collect();
    assert_eq!(notifications.len(), 10, "the window's size");
    assert_eq!(node.metrics().await.sum("notifier_slow_consumers_total"), 1.0);

    let mut client = node.connect("101").await;
    let mut order = Order::default();
    for frame in client.expect_acked(50).await {
        order.take("101", &frame);
    }
}

#[tokio::test]
async fn a_window_that_is_full_goes_on_with_the_acknowledgement() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("sessions.window_items", 10).start().await;
    let mut client = node.connect("101").await;
    let events: Vec<_> = (0..30).map(|n| Event::numbered("101", n)).collect();
    feed.send_all(&events).await;
    node.settled(30).await;
    for round in 1..=3 {
        let frames = client.expect(10).await;
        assert_eq!(frames[9].number(), round * 10);
        assert!(client.poll(Duration::from_millis(200)).await.is_none(), "beyond the window");
        client.ack(round * 10).await;
    }
}

#[tokio::test]
async fn a_client_that_never_reads_is_closed_and_disturbs_nobody() {
    const EVENTS: u64 = 200;
    let feed = Feed::new(2).await;
    let node = Node::builder(&feed)
        .set("sessions.slow_deadline", "2s")
        // The sockets' buffers have to be full before anything shows.
        .set("sessions.window_items", 4096)
        .start()
        .await;
    let mut stalled = RawWs::open(node.addr(), &node.token("stalled")).await;
    let mut good = node.connect("good").await;
    let large = format!("{{\"text\":\"{}\"}}", "x".repeat(100 * 1024));
    let mut order = Order::default();
    for n in 0..EVENTS {
        feed.send_all(&[
            Event::new("stalled", "large").data(&large).transient(),
            Event::new("stalled", "large").data(&large),
            Event::numbered("good", n),
        ])
        .await;
        order.take("good", &good.one().await);
        good.ack(order.last_seq()).await;
    }
    node.metric_reaches("notifier_slow_consumers_total", 1.0).await;
    eventually("only the good client connected", async || {
        (node.metrics().await.sum("notifier_connections") == 1.0).then_some(())
    })
    .await;
    // The close frame arrives when the client at last empties its socket, unless it was cut off.
    let end = stalled.end().await;
    assert!(matches!(end, End::Code(4002) | End::Cut), "{end:?}");
    feed.send(&Event::numbered("good", EVENTS)).await;
    order.take("good", &good.one().await);
}

#[tokio::test]
async fn an_idle_user_costs_no_actor_and_still_gets_the_next_event() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("sessions.idle_after", "1s").start().await;
    let mut client = node.connect("101").await;
    feed.send(&Event::numbered("101", 0)).await;
    let first = client.one().await;
    client.ack(first.number()).await;
    // A user without sessions who was active once.
    feed.send(&Event::new("away", "t").transient()).await;
    eventually("the absent user's actor gone", async || {
        (node.metrics().await.sum("notifier_users_active") <= 1.0).then_some(())
    })
    .await;
    feed.send(&Event::numbered("101", 1)).await;
    assert_eq!(client.one().await.number(), 2);
    feed.send(&Event::new("away", "t")).await;
    node.settled(4).await;
    assert_eq!(node.connect("away").await.one().await.number(), 1);
}

#[tokio::test]
async fn an_acknowledged_window_survives_a_pause_longer_than_the_slow_deadline() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("sessions.window_items", 4).set("sessions.slow_deadline", "1s").start().await;
    let mut client = node.connect("101").await;
    for round in 0..2 {
        let events: Vec<_> = (0..4).map(|n| Event::numbered("101", round * 4 + n)).collect();
        feed.send_all(&events).await;
        client.expect(4).await;
        client.ack(round * 4 + 4).await;
        // Time in which nothing is owed: the deadline must not run.
        assert!(client.poll(Duration::from_secs(2)).await.is_none());
    }
    assert_eq!(node.metrics().await.sum("notifier_slow_consumers_total"), 0.0);
    tokio::time::timeout(DEADLINE, client.leave()).await.expect("a clean goodbye");
}
