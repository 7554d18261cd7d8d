//! What a session means, said once for every protocol: they are codecs over the same connection.

use std::time::Duration;

use serde_json::json;
use tonic::Code;

use crate::harness::{
    Event, Feed, Node,
    carrier::{Ask, Carrier, Client, open},
    frame::Frame,
    token::{SECRET, now_secs, signed},
    wait::eventually,
};

async fn connected(node: &Node, carrier: Carrier, user: &str) -> Client {
    asked(node, carrier, &Ask::token(&node.token(user))).await
}

async fn asked(node: &Node, carrier: Carrier, ask: &Ask) -> Client {
    match open(node, carrier, ask).await {
        Ok(client) => client,
        Err(status) => panic!("{carrier:?}: refused with {status}"),
    }
}

async fn pending(feed: &Feed, node: &Node, user: &str, count: u64) {
    let before = node.metrics().await.sum("notifier_events_total");
    let events: Vec<_> = (0..count).map(|n| Event::numbered(user, n)).collect();
    feed.send_all(&events).await;
    node.settled(before as usize + events.len()).await;
}

fn numbers(frames: &[Frame]) -> Vec<u64> {
    frames.iter().map(Frame::number).collect()
}

/// The cursor, once the acknowledgement on its way has come to it.
async fn cursor(node: &Node, carrier: Carrier, user: &str, expected: u64) {
    eventually(&format!("{carrier:?}: cursor {expected}"), async || {
        (connected(node, carrier, user).await.hello().cursor == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_waits_comes_first_then_what_arrives_and_acknowledged_is_not_repeated() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    for carrier in Carrier::ALL {
        let user = format!("{carrier:?}");
        pending(&feed, &node, &user, 5).await;
        let mut client = connected(&node, carrier, &user).await;
        assert_eq!((client.hello().user.as_str(), client.hello().head), (user.as_str(), 5), "{carrier:?}");
        feed.send(&Event::new(&user, "transient").transient()).await;
        feed.send(&Event::new(&user, "live").data(r#"{"n":12345678901234567890123}"#)).await;
        let frames = client.expect(7).await;
        assert_eq!(numbers(&frames[..5]), [1, 2, 3, 4, 5], "{carrier:?}");
        assert_eq!((frames[5].kind.as_str(), frames[5].seq), ("transient", None), "{carrier:?}");
        assert_eq!((frames[6].kind.as_str(), frames[6].seq), ("live", Some(6)), "{carrier:?}");
        assert_eq!(frames[6].raw(), r#"{"n":12345678901234567890123}"#, "{carrier:?}: byte for byte");
        assert!(frames[6].id.is_some() && frames[6].ts.is_some(), "{carrier:?}: {:?}", frames[6]);
        client.ack(4).await.expect("what was sent can be acknowledged");
        drop(client);
        cursor(&node, carrier, &user, 4).await;
        let mut again = connected(&node, carrier, &user).await;
        assert_eq!(numbers(&again.expect(2).await), [5, 6], "{carrier:?}");
    }
}

#[tokio::test]
async fn since_resumes_and_acknowledges_and_another_epoch_is_a_gap() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    for carrier in Carrier::ALL {
        let user = format!("{carrier:?}");
        pending(&feed, &node, &user, 5).await;
        let ask = Ask::token(&node.token(&user));
        let since = connected(&node, carrier, &user).await.hello().since(3);
        let mut client = asked(&node, carrier, &Ask { since: Some(since), ..ask.clone() }).await;
        assert_eq!(numbers(&client.expect(2).await), [4, 5], "{carrier:?}");
        drop(client);
        cursor(&node, carrier, &user, 3).await;
        let mut client = asked(&node, carrier, &Ask { since: Some("another-4".into()), ..ask }).await;
        let gap = client.next().await;
        assert_eq!((gap.kind.as_str(), &gap.payload()), ("$gap", &json!({"from":1,"to":3,"reason":"epoch"})));
        assert_eq!(numbers(&client.expect(2).await), [4, 5], "{carrier:?}");
    }
}

#[tokio::test]
async fn a_device_has_a_cursor_of_its_own() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    for carrier in Carrier::ALL {
        let user = format!("{carrier:?}");
        pending(&feed, &node, &user, 3).await;
        let phone = Ask { device: Some("phone".into()), ..Ask::token(&node.token(&user)) };
        let mut client = asked(&node, carrier, &phone).await;
        client.expect(3).await;
        client.ack(3).await.expect("sent");
        drop(client);
        eventually("the phone's cursor", async || {
            (asked(&node, carrier, &phone).await.hello().cursor == 3).then_some(())
        })
        .await;
        assert_eq!(connected(&node, carrier, &user).await.hello().cursor, 0, "{carrier:?}");
    }
}

#[tokio::test]
async fn who_shows_nothing_good_or_asks_for_nonsense_is_refused_alike() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let good = Ask::token(&node.token("101"));
    let cases = [
        ("nothing", Ask::default(), 401),
        ("garbage", Ask::token("a.b.c"), 401),
        ("expired", Ask::token(&signed(&json!({"sub": "101", "exp": now_secs() - 60}), SECRET)), 401),
        ("a guessed session", Ask::session("00000000000040008000000000000000"), 401),
        ("no session id at all", Ask::session("x"), 401),
        ("another user", Ask { user: Some("102".into()), ..good.clone() }, 403),
        ("a bad since", Ask { since: Some("x".into()), ..good.clone() }, 400),
        ("a bad device", Ask { device: Some("d".repeat(257)), ..good.clone() }, 400),
    ];
    for carrier in Carrier::ALL {
        for (what, ask, status) in &cases {
            assert_eq!(open(&node, carrier, ask).await.err(), Some(*status), "{carrier:?}: {what}");
        }
        assert_eq!(asked(&node, carrier, &Ask { user: Some("101".into()), ..good.clone() }).await.hello().user, "101");
    }
}

#[tokio::test]
async fn who_does_not_acknowledge_is_closed_and_loses_nothing() {
    let feed = Feed::new(1).await;
    let builder = Node::builder(&feed).set("sessions.window_items", 10).set("sessions.slow_deadline", "2s");
    let node = builder.start().await;
    // Nobody can acknowledge on a browser's event stream: there it counts what the socket took.
    for carrier in Carrier::ALL.into_iter().filter(|carrier| *carrier != Carrier::Sse) {
        let user = format!("{carrier:?}");
        pending(&feed, &node, &user, 25).await;
        let mut client = connected(&node, carrier, &user).await;
        assert_eq!(client.expect(10).await.len(), 10);
        assert_eq!(client.bye().await, 4002, "{carrier:?}");
        assert!(matches!(client.status().await, None | Some(Code::ResourceExhausted)), "{carrier:?}");
        let mut client = connected(&node, carrier, &user).await;
        for n in 0..25 {
            let frame = client.expect(1).await.remove(0);
            assert_eq!(frame.n(), n, "{carrier:?}");
            client.ack(frame.number()).await.expect("sent");
        }
    }
}

#[tokio::test]
async fn acknowledging_what_was_never_sent_ends_the_session() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    for carrier in Carrier::ALL {
        let user = format!("{carrier:?}");
        pending(&feed, &node, &user, 1).await;
        let mut client = connected(&node, carrier, &user).await;
        client.expect(1).await;
        let answer = client.ack(2).await;
        let separate = !matches!(carrier, Carrier::WebSocketJson | Carrier::WebSocketProtobuf);
        assert_eq!(answer, if separate { Err(400) } else { Ok(()) }, "{carrier:?}");
        assert_eq!(client.bye().await, 4004, "{carrier:?}");
        assert!(matches!(client.status().await, None | Some(Code::InvalidArgument)), "{carrier:?}");
    }
}

#[tokio::test]
async fn a_session_ends_with_its_token() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("auth.jwt.leeway", "0s").start().await;
    for carrier in Carrier::ALL {
        let token = signed(&json!({"sub": "101", "exp": now_secs() + 3}), SECRET);
        let mut client = asked(&node, carrier, &Ask::token(&token)).await;
        assert_eq!(client.bye().await, 4001, "{carrier:?}");
        assert!(matches!(client.status().await, None | Some(Code::Unauthenticated)), "{carrier:?}");
    }
}

#[tokio::test]
async fn one_session_too_many_takes_the_place_of_the_oldest_whatever_they_speak() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("sessions.per_user_max", 4).start().await;
    let mut oldest = connected(&node, Carrier::Grpc, "101").await;
    let mut others = Vec::new();
    for carrier in Carrier::ALL.into_iter().filter(|carrier| *carrier != Carrier::Grpc) {
        others.push(connected(&node, carrier, "101").await);
    }
    assert_eq!(oldest.bye().await, 4003);
    assert_eq!(oldest.status().await, Some(Code::Aborted));
    feed.send(&Event::new("101", "for-all")).await;
    for client in &mut others {
        assert_eq!(client.expect(1).await[0].kind, "for-all");
    }
}

#[tokio::test]
async fn a_drain_says_goodbye_on_every_protocol() {
    let feed = Feed::new(1).await;
    let mut node = Node::builder(&feed).set("drain.deadline", "20s").start().await;
    let mut clients = Vec::new();
    for carrier in Carrier::ALL {
        clients.push((carrier, connected(&node, carrier, &format!("{carrier:?}")).await));
    }
    node.process().signal("TERM");
    for (carrier, client) in &mut clients {
        assert_eq!(client.bye().await, 1001, "{carrier:?}");
        assert!(matches!(client.status().await, None | Some(Code::Unavailable)), "{carrier:?}");
    }
    let (process, _node) = node.into_process();
    assert_eq!(process.finish(Duration::from_secs(30)).await.code(), 0);
}

#[tokio::test]
async fn every_protocol_is_counted_by_its_name() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut clients = Vec::new();
    for carrier in Carrier::ALL {
        clients.push(connected(&node, carrier, "101").await);
    }
    feed.send(&Event::new("101", "counted")).await;
    for client in &mut clients {
        client.expect(1).await;
    }
    for (protocol, count) in [("websocket", 2.0), ("sse", 1.0), ("grpc", 1.0), ("grpc-web", 1.0)] {
        let metrics = node.metrics().await;
        let of = |name| metrics.sum_where(name, "protocol", protocol);
        assert_eq!(of("notifier_connections"), count, "{protocol}");
        assert_eq!(of("notifier_deliveries_total"), count, "{protocol}");
    }
    drop(clients);
    eventually("no connection", async || (node.metrics().await.sum("notifier_connections") == 0.0).then_some(())).await;
}
