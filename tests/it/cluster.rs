//! Several nodes: whoever a client is connected to, and whoever reads its user's events, it gets all of them, in order
//! and once; and it goes on over the connection it has when another node dies, leaves or comes.

use std::time::{Duration, Instant};

use crate::harness::{Event, cluster::Cluster, ws::WsClient};

const USERS: usize = 24;

/// Clients of many users, spread over nodes, and what each has seen.
struct Clients(Vec<Client>);

struct Client {
    user: String,
    socket: WsClient,
    seen: u64,
}

fn user(n: usize) -> String {
    format!("user-{n}")
}

impl Clients {
    /// One of each user, at these nodes in turn.
    async fn connect(cluster: &Cluster, nodes: &[usize]) -> Self {
        let mut clients = Vec::new();
        for n in 0..USERS {
            let node = &cluster.nodes[nodes[n % nodes.len()]];
            clients.push(Client { user: user(n), socket: node.connect(&user(n)).await, seen: 0 });
        }
        Self(clients)
    }

    /// Everybody gets the next ones, up to that many, in order, each once.
    async fn expect_all(&mut self, count: u64) {
        for client in &mut self.0 {
            while client.seen < count {
                let frame = client.socket.one().await;
                assert_eq!(frame.n(), client.seen, "{}: lost, repeated or out of order", client.user);
                client.seen += 1;
                client.socket.ack(frame.number()).await;
            }
        }
    }
}

async fn send(cluster: &Cluster, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let events: Vec<Event> = (0..USERS).map(|u| Event::numbered(&user(u), n)).collect();
        cluster.feed.send_all(&events).await;
    }
}

#[tokio::test]
async fn three_nodes_deliver_to_clients_of_each() {
    let cluster = Cluster::start(3, 6).await;
    let mut clients = Clients::connect(&cluster, &[0, 1, 2]).await;
    send(&cluster, 0..20).await;
    clients.expect_all(20).await;
}

#[tokio::test]
async fn a_killed_nodes_users_go_on_over_the_connections_that_they_have() {
    let mut cluster = Cluster::start(3, 6).await;
    let mut clients = Clients::connect(&cluster, &[0, 1]).await;
    send(&cluster, 0..10).await;
    clients.expect_all(10).await;
    let killed = Instant::now();
    cluster.nodes[2].process().kill();
    send(&cluster, 10..20).await;
    clients.expect_all(20).await;
    println!("all of {USERS} users had everything {:?} after the kill", killed.elapsed());
    assert!(killed.elapsed() < Duration::from_secs(15));
    cluster.settled().await;
}

#[tokio::test]
async fn a_node_that_joins_and_one_that_leaves_are_not_noticed() {
    let mut cluster = Cluster::start(2, 6).await;
    let mut clients = Clients::connect(&cluster, &[0, 1]).await;
    send(&cluster, 0..5).await;
    clients.expect_all(5).await;
    cluster.add().await;
    send(&cluster, 5..10).await;
    clients.expect_all(10).await;
    cluster.settled().await;
    send(&cluster, 10..15).await;
    clients.expect_all(15).await;
    cluster.nodes[2].process().signal("TERM");
    send(&cluster, 15..25).await;
    clients.expect_all(25).await;
    let left = cluster.nodes[2].take().finish(Duration::from_secs(40)).await;
    assert_eq!(left.code(), 0, "{left:?}");
    send(&cluster, 25..30).await;
    clients.expect_all(30).await;
    cluster.settled().await;
}
