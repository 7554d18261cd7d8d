//! SIGTERM: clients are told when to come back, offsets are committed, and the exit is clean.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use crate::harness::{Event, Feed, Node, eventually};

#[tokio::test]
async fn a_drain_says_goodbye_to_everyone_commits_and_exits_with_0() {
    const CLIENTS: usize = 12;
    let feed = Feed::new(2).await;
    // Paced, so that the drain lasts long enough to be looked at.
    let node = Node::builder(&feed).set("drain.goodbyes_per_second", 3).start().await;
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        let user = format!("u{n}");
        clients.push(node.connect(&user).await);
        feed.send(&Event::new(&user, "before")).await;
    }
    let mut stream = node.stream("reader", "").await;
    for client in &mut clients {
        assert_eq!(client.one().await.kind, "before");
    }

    let (process, node) = node.into_process();
    let started = Instant::now();
    process.signal("TERM");
    node.unready("drain").await;
    let mut delays = HashSet::new();
    for mut client in clients {
        let (frames, code) = client.closed().await;
        assert_eq!(code, Some(1001));
        let bye = frames.last().expect("a goodbye before the end");
        assert_eq!(bye.kind, "$bye", "{frames:?}");
        let payload = bye.payload();
        assert_eq!((&payload["code"], &payload["reason"]), (&1001.into(), &"draining".into()));
        delays.insert(payload["reconnect_ms"].as_u64().expect("milliseconds"));
    }
    assert!(delays.len() > CLIENTS / 2, "all would come back at once: {delays:?}");
    let bye = stream.rest().await.pop().expect("a goodbye");
    assert_eq!((bye.event.as_deref(), bye.frame().kind.as_str()), (Some("$bye"), "$bye"));
    let finished = process.finish(Duration::from_secs(30)).await;
    assert_eq!(finished.code(), 0, "{finished:?}");
    assert!(started.elapsed() >= Duration::from_secs(1), "not paced: {:?}", started.elapsed());
    for (position, end) in feed.kafka.positions(&feed.topic, &feed.group, 2).await {
        assert_eq!(position.unwrap_or(0), end, "not committed");
    }
}

#[tokio::test]
async fn a_drain_under_load_loses_and_repeats_nothing() {
    let feed = Feed::new(2).await;
    let mut node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    let writer = {
        let feed = feed.clone();
        tokio::spawn(async move {
            for n in 0..250 {
                feed.send(&Event::numbered("101", n)).await;
            }
        })
    };
    let mut seen = Vec::new();
    for frame in client.expect_acked(50).await {
        seen.push(frame.n());
    }
    // The last frames before the goodbye are read after the exit.
    node.stop().await.ok();
    let (frames, _) = client.closed().await;
    seen.extend(frames.iter().filter(|frame| !frame.is_control()).map(|frame| frame.n()));
    writer.await.expect("the load is written");
    node.start_again();
    node.ready().await;
    let mut client = node.connect("101").await;
    while seen.last() != Some(&249) {
        let frame = client.one().await;
        client.ack(frame.number()).await;
        seen.push(frame.n());
    }
    assert_eq!(seen, (0..250).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("drain.goodbyes_per_second", 1).start().await;
    let mut clients = Vec::new();
    for n in 0..40 {
        clients.push(node.connect(&format!("u{n}")).await);
    }
    let (process, node) = node.into_process();
    process.signal("TERM");
    node.unready("drain").await;
    let started = Instant::now();
    process.signal("TERM");
    process.finish(Duration::from_secs(10)).await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline_whatever_clients_do() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("drain.goodbyes_per_second", 1).set("drain.deadline", "2s").start().await;
    let mut clients = Vec::new();
    for n in 0..40 {
        clients.push(node.connect(&format!("u{n}")).await);
    }
    let (process, _node) = node.into_process();
    let started = Instant::now();
    process.signal("TERM");
    let finished = process.finish(Duration::from_secs(20)).await;
    assert_eq!(finished.code(), 0, "{finished:?}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    // The deadline wins over the pace: everybody was told when to come back.
    for client in &mut clients {
        assert_eq!(client.closed().await.1, Some(1001));
    }
}

#[tokio::test]
async fn a_draining_node_takes_no_new_connections() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("drain.goodbyes_per_second", 2).start().await;
    let mut clients = Vec::new();
    for n in 0..10 {
        clients.push(node.connect(&format!("u{n}")).await);
    }
    let (process, node) = node.into_process();
    process.signal("TERM");
    node.unready("drain").await;
    eventually("connections refused", async || {
        let Ok(socket) = tokio::net::TcpStream::connect(node.addr()).await else {
            return Some(());
        };
        drop(socket);
        let request = crate::harness::http::Request {
            method: "GET",
            path: "/v1/stream",
            headers: &[("Authorization", &format!("Bearer {}", node.token("late")))],
            body: "",
        };
        match crate::harness::http::open(node.addr(), request).await {
            Ok(opened) => (opened.head.status == 503).then_some(()),
            Err(_) => Some(()),
        }
    })
    .await;
    let finished = process.finish(Duration::from_secs(30)).await;
    assert_eq!(finished.code(), 0, "{finished:?}");
}
