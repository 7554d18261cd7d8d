//! A node leaves under load, and has clients of its own: until it says goodbye to one, it serves it.

use std::collections::HashSet;

use tokio::task::JoinHandle;

use super::*;
use crate::harness::{
    wait::eventually,
    ws::{Step, WsClient},
};

/// Clients of the node that leaves, beside those that the traffic has there.
const OWN: usize = 12;
const GOODBYES_PER_SECOND: i64 = 4;
/// So many goodbyes take almost three seconds; the first of them may be heard late.
const PACED: Duration = Duration::from_millis(1500);
const DEADLINE: Duration = Duration::from_secs(40);
/// Whoever stays for so long after the hand-over has heard of something that was written behind it.
const STAYED: Duration = Duration::from_secs(2);

/// What a client has met.
struct Met {
    /// When each durable notification came.
    came: Vec<Instant>,
    goodbye: Instant,
    reconnect_ms: u64,
}

/// Reads and acknowledges to the end: every number comes once, and then a goodbye.
async fn to_the_end(mut socket: WsClient) -> Met {
    let (mut came, mut last, mut goodbye) = (Vec::new(), socket.hello().cursor, None);
    loop {
        match socket.step(DEADLINE).await {
            Step::Frame(frame) if frame.kind == "$bye" => goodbye = Some((Instant::now(), frame.payload())),
            Step::Frame(frame) if frame.is_control() => assert_ne!(frame.kind, "$gap", "{frame:?}"),
            Step::Frame(frame) => {
                assert!(goodbye.is_none(), "after the goodbye: {frame:?}");
                let Some(seq) = frame.seq else { continue };
                assert_eq!(seq, last + 1, "lost, repeated or out of order: {frame:?}");
                last = seq;
                came.push(Instant::now());
                socket.ack(seq).await;
            }
            Step::Closed(code) => {
                assert_eq!(code, Some(1001));
                break;
            }
            Step::Nothing => panic!("neither a notification nor the end"),
        }
    }
    let (goodbye, said) = goodbye.expect("a goodbye before the end");
    assert_eq!((&said["code"], &said["reason"]), (&1001.into(), &"draining".into()));
    Met { came, goodbye, reconnect_ms: said["reconnect_ms"].as_u64().expect("milliseconds") }
}

#[tokio::test]
async fn a_node_that_leaves_serves_its_clients_until_their_goodbyes_and_paces_these() {
    let configure = |_, builder: Builder| {
        let builder = builder.set("drain.goodbyes_per_second", GOODBYES_PER_SECOND);
        builder.set("drain.deadline", format!("{}s", DEADLINE.as_secs()))
    };
    let mut cluster = three_with(Store::postgres().await, configure).await;
    let traffic = Traffic::start_busy(&cluster, USERS).await;
    let mut own: Vec<JoinHandle<Met>> = Vec::new();
    for n in 0..OWN {
        let connect = cluster.nodes[2].ws(&format!("user-{n}")).query("device", "own");
        own.push(tokio::spawn(to_the_end(connect.open().await)));
    }
    traffic.flow(CALM).await;
    traffic.hurt(2);
    let told = Instant::now();
    cluster.nodes[2].process().signal("TERM");
    let handed = eventually("its shards are others'", async || {
        (cluster.nodes[2].metrics().await.sum("notifier_shards_owned") == 0.0).then(Instant::now)
    })
    .await;
    let left = cluster.nodes[2].take().finish(DEADLINE).await;
    assert_eq!(left.code(), 0, "{left:?}");
    println!("its shards were others' after {:?}, and it ended after {:?}", handed - told, told.elapsed());
    assert!(told.elapsed() < DEADLINE);

    let mut met = Vec::new();
    for client in own {
        met.push(client.await.expect("a client that is told goodbye"));
    }
    let stayed: Vec<&Met> = met.iter().filter(|met| met.goodbye > handed + STAYED).collect();
    assert!(stayed.len() >= OWN / 4, "goodbyes did not wait for the hand-over: {} of {OWN} did", stayed.len());
    // What came by a partition of the node itself waits until another one reads that.
    let is_served = |met: &&&Met| met.came.iter().any(|at| *at > handed);
    let served = stayed.iter().filter(is_served).count();
    println!("{served} of {} that stayed on had something from behind the hand-over", stayed.len());
    assert!(served > 0, "nothing came behind the hand-over");
    let goodbyes = || met.iter().map(|met| met.goodbye);
    let paced = goodbyes().max().expect("some") - goodbyes().min().expect("some");
    assert!(paced >= PACED, "{OWN} goodbyes within {paced:?}");
    let delays: HashSet<u64> = met.iter().map(|met| met.reconnect_ms).collect();
    assert!(delays.len() > OWN / 2, "all would come back at once: {delays:?}");

    goes_on(&traffic).await;
    cluster.settled().await;
    traffic.check(&cluster).await;
}
