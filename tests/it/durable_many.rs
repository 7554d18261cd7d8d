//! Much for one user, many sessions of one user, and clients and records that make no sense, on every durable engine.

use std::time::Duration;

use crate::harness::{
    Event, Feed, Kafka, Node, Record, Store,
    frame::Frame,
    wait::{eventually, eventually_within},
};

const COUNT: u64 = 100_000;
/// Of each payload.
const BYTES: usize = 2_000;
/// How long so much may take on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(300);

async fn resident(node: &Node) -> f64 {
    node.metrics().await.sum("process_resident_memory_bytes")
}

fn padded(n: u64) -> Event {
    Event::new("101", "many").data(&format!("{{\"n\":{n},\"pad\":\"{}\"}}", "x".repeat(BYTES)))
}

async fn send_many(feed: &Feed, count: u64) {
    for start in (0..count).step_by(5_000) {
        feed.send_all(&(start..count.min(start + 5_000)).map(padded).collect::<Vec<_>>()).await;
    }
}

async fn stored(node: &Node, count: u64) {
    eventually_within(PATIENCE, "all of it stored", async || {
        let metrics = node.metrics().await;
        (metrics.sum_where("notifier_events_total", "outcome", "stored") >= count as f64).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_hundred_thousand_for_one_user_who_is_away_wait_outside_of_memory() {
    // Much less than one copy of the payloads.
    const GROWTH_MAX: f64 = (COUNT as usize * BYTES / 4) as f64;
    let store = Store::postgres().await;
    let feed = Feed::new(1).await;
    let node = store.of(Node::builder(&feed)).set("log.per_user_max", COUNT as i64).start().await;
    feed.send(&Event::new("other", "warm")).await;
    node.connect("other").await.one().await;
    let before = resident(&node).await;
    send_many(&feed, COUNT).await;
    stored(&node, COUNT + 1).await;
    let grown = resident(&node).await - before;
    assert!(grown < GROWTH_MAX, "{grown} bytes more while nobody reads");
    let mut client = node.connect("101").await;
    assert_eq!(client.hello().head, COUNT);
    for n in 0..COUNT {
        let frame = client.one().await;
        assert_eq!((frame.n(), frame.number()), (n, n + 1));
        if n % 32 == 31 {
            client.ack(n + 1).await;
        }
    }
    let grown = resident(&node).await - before;
    assert!(grown < GROWTH_MAX, "{grown} bytes more when all was read");
    feed.send(&Event::numbered("101", COUNT)).await;
    assert_eq!(client.one().await.number(), COUNT + 1);
    node.acknowledged("101", COUNT).await;
    feed.all_committed().await;
}

#[tokio::test]
async fn beyond_ten_thousand_the_oldest_are_announced_as_evicted() {
    const MAX: u64 = 10_000;
    const BEYOND: u64 = 321;
    for store in Store::each().await {
        let feed = Feed::new(1).await;
        let node = store.of(Node::builder(&feed)).start().await;
        for start in (0..MAX + BEYOND).step_by(1_000) {
            let end = (MAX + BEYOND).min(start + 1_000);
            feed.send_all(&(start..end).map(|n| Event::numbered("101", n)).collect::<Vec<_>>()).await;
        }
        stored(&node, MAX + BEYOND).await;
        let mut client = node.connect("101").await;
        let gap = client.control("$gap").await.payload();
        let expected = serde_json::json!({"from": 1, "to": BEYOND, "reason": "evicted"});
        assert_eq!(gap, expected, "{}", store.engine());
        for n in BEYOND..MAX + BEYOND {
            let frame = client.one().await;
            assert_eq!((frame.n(), frame.number()), (n, n + 1), "{}", store.engine());
            if n % 32 == 0 {
                client.ack(n + 1).await;
            }
        }
    }
}

#[tokio::test]
async fn each_of_fifty_sessions_of_one_user_gets_everything() {
    const SESSIONS: usize = 50;
    for store in Store::each().await {
        let feed = Feed::new(1).await;
        let node = store.of(Node::builder(&feed)).set("sessions.per_user_max", 64).start().await;
        feed.send_all(&(0..20).map(|n| Event::numbered("101", n)).collect::<Vec<_>>()).await;
        node.settled(20).await;
        let mut clients = Vec::new();
        for n in 0..SESSIONS {
            // Some share a cursor, others have their own.
            let connect = node.ws("101");
            let connect = if n % 2 == 0 { connect } else { connect.query("device", &format!("d{n}")) };
            clients.push(connect.open().await);
        }
        feed.send_all(&(20..60).map(|n| Event::numbered("101", n)).collect::<Vec<_>>()).await;
        node.settled(60).await;
        feed.send(&Event::numbered("101", 60).transient()).await;
        for client in &mut clients {
            let frames = client.expect(61).await;
            let n: Vec<_> = frames.iter().map(Frame::n).collect();
            assert_eq!(n, (0..61).collect::<Vec<_>>(), "{}", store.engine());
            let numbers: Vec<_> = frames.iter().map(|frame| frame.seq).collect();
            assert_eq!(numbers, (1..=60).map(Some).chain([None]).collect::<Vec<_>>(), "{}", store.engine());
            assert!(client.poll(Duration::ZERO).await.is_none(), "nothing more");
        }
        clients[1].ack(60).await;
        let cursor = async || node.ws("101").query("device", "d1").open().await.hello().cursor;
        eventually("a cursor", async || (cursor().await == 60).then_some(())).await;
        assert_eq!(node.connect("101").await.hello().cursor, 0, "the others have acknowledged nothing");
    }
}

#[tokio::test]
async fn what_clients_claim_to_have_moves_nothing_that_it_should_not() {
    for store in Store::each().await {
        let engine = store.engine();
        let feed = Feed::new(1).await;
        let node = store.of(Node::builder(&feed)).set("log.per_user_max", 5).start().await;
        feed.send_all(&(0..8).map(|n| Event::numbered("101", n)).collect::<Vec<_>>()).await;
        node.settled(8).await;
        let mut client = node.connect("101").await;
        let (old, future) = (client.hello().since(1), client.hello().since(99));
        assert_eq!(client.control("$gap").await.payload()["to"], 3, "{engine}");
        assert_eq!(client.expect(5).await[4].number(), 8, "{engine}");
        client.ack(9).await;
        assert_eq!(client.close_code().await, 4004, "never sent: {engine}");
        let mut client = node.connect("101").await;
        assert_eq!(client.hello().cursor, 0, "{engine}");
        client.control("$gap").await;
        client.expect(5).await;
        client.ack(7).await;
        client.ack(5).await;
        client.leave().await;
        node.acknowledged("101", 7).await;
        for since in ["zzzzzz-4", &future] {
            let mut client = node.ws("101").query("since", since).open().await;
            let gap = client.control("$gap").await;
            assert_eq!(gap.payload()["reason"], "epoch", "{engine} {since}: {gap:?}");
            assert_eq!(client.one().await.number(), 8, "from the cursor: {engine} {since}");
        }
        let mut client = node.ws("101").query("since", &old).open().await;
        let gap = client.control("$gap").await.payload();
        assert_eq!(gap, serde_json::json!({"from": 2, "to": 3, "reason": "evicted"}), "{engine}");
        assert_eq!(client.one().await.number(), 4, "from what was named: {engine}");
        client.leave().await;
        node.acknowledged("101", 7).await;
    }
}

#[tokio::test]
async fn a_record_of_any_time_is_delivered_once() {
    const YEAR_2099: i64 = 4_070_908_800_000;
    let kafka = Kafka::shared();
    let now = i64::try_from(crate::harness::token::now_secs()).expect("a time") * 1000;
    for store in Store::each().await {
        let feed = Feed::named(&kafka, 1);
        let any = [("message.timestamp.after.max.ms", "9223372036854775807"), ("retention.ms", "-1")];
        kafka.create_topic(&feed.topic, 1, &any).await;
        kafka.create_topic(&feed.dead_letter_topic, 1, &[]).await;
        let mut node = store.of(Node::builder(&feed)).start().await;
        let times = [-1, 1, YEAR_2099, now - 30 * 86_400_000, now];
        for (n, at) in (0..).zip(times) {
            let event = Event::numbered("101", n).id(&n.to_string()).protobuf();
            for _ in 0..2 {
                feed.put(&Record { timestamp: Some(at), ..Record::new(event.clone()) }).await;
            }
        }
        let written = feed.kafka.read_all(&feed.topic).await;
        assert!(
            written.iter().map(|record| record.timestamp).eq(times.iter().flat_map(|&at| [at.max(0); 2])),
            "{written:?}"
        );
        let check = async |node: &Node| {
            let frames = node.connect("101").await.expect(times.len()).await;
            let seen: Vec<_> = frames.iter().map(|frame| (frame.n(), frame.number())).collect();
            assert_eq!(seen, (0..5).map(|n| (n, n + 1)).collect::<Vec<_>>(), "{}", store.engine());
        };
        node.settled(2 * times.len()).await;
        let clamped = node.metrics().await.sum("notifier_clamped_timestamps_total");
        // Of two copies each; a record without a timestamp has none to clamp.
        assert_eq!(clamped, 6.0, "1970, 2099, a month ago: {}", store.engine());
        check(&node).await;
        node.restart().await;
        check(&node).await;
        assert_eq!(feed.kafka.read_all(&feed.dead_letter_topic).await, [], "{}", store.engine());
    }
}
