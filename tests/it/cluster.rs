//! Several nodes: whoever a client is connected to, and whoever reads its user's events, it gets all of them, in order
//! and once; and it goes on over the connection it has when another node dies, leaves or comes.

use std::time::{Duration, Instant};

use crate::harness::{
    Event, Node, Store,
    carrier::{self, Ask, Carrier},
    certs::Certs,
    cluster::Cluster,
    eventually,
    node::Builder,
    ws::WsClient,
};

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
    // 2 s are promised; the rest is for a machine that does something else, and for what is sent meanwhile.
    assert!(killed.elapsed() < Duration::from_secs(8));
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

/// What nobody stores reaches the connections that are there, while their users move from node to node.
#[tokio::test]
async fn a_node_that_joins_and_leaves_costs_no_transient_event() {
    let mut cluster = Cluster::start(2, 6).await;
    let mut clients = Clients::connect(&cluster, &[0, 1]).await;
    let feed = cluster.feed.clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let producer = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(25));
        let mut n = 0;
        while !stop.is_closed() {
            ticks.tick().await;
            let events: Vec<Event> = (0..USERS).map(|u| Event::numbered(&user(u), n).transient()).collect();
            feed.send_all(&events).await;
            n += 1;
        }
        n
    });
    cluster.add().await;
    cluster.settled().await;
    cluster.nodes[2].process().signal("TERM");
    cluster.nodes[2].take().finish(Duration::from_secs(40)).await.ok();
    cluster.settled().await;
    drop(stopped);
    let count = producer.await.unwrap();
    for client in &mut clients.0 {
        for n in 0..count {
            assert_eq!(client.socket.one().await.n(), n, "{}: lost, repeated or out of order", client.user);
        }
    }
    for node in &cluster.nodes[..2] {
        assert_eq!(node.metrics().await.sum("notifier_shards_unmarked_total"), 0.0, "all have said what they have");
    }
}

async fn sum_of(nodes: &[Node], metric: &str, state: &str) -> f64 {
    let mut sum = 0.0;
    for node in nodes {
        sum += node.metrics().await.sum_where(metric, "state", state);
    }
    sum
}

/// Waits until so many sessions rest, wherever their users are, and none is awake.
async fn asleep(cluster: &Cluster, count: usize) {
    eventually("all sessions at rest", async || {
        let active = sum_of(&cluster.nodes, "notifier_sessions", "active").await;
        let dormant = sum_of(&cluster.nodes, "notifier_sessions", "dormant").await;
        (active == 0.0 && dormant == count as f64).then_some(())
    })
    .await;
}

#[tokio::test]
async fn on_every_protocol_a_client_of_another_node_sleeps_and_wakes_by_event_acknowledgement_and_failover() {
    let cluster = {
        let configure = |_, builder: Builder| builder.set("sessions.idle_after", "1s");
        Cluster::start_with(3, 6, Store::postgres().await, configure).await
    };
    let mut clients = Vec::new();
    // Several of each, so that some are of users of each of the other nodes.
    for (n, carrier) in Carrier::ALL.into_iter().cycle().take(4 * Carrier::ALL.len()).enumerate() {
        let (node, user) = (&cluster.nodes[n % 2], format!("{carrier:?}-{n}"));
        let client = carrier::open(node, carrier, &Ask::token(&node.token(&user))).await.expect("accepted");
        clients.push((carrier, user, client));
    }
    asleep(&cluster, clients.len()).await;
    for (carrier, user, client) in &mut clients {
        cluster.feed.send(&Event::new(user, "transient").transient()).await;
        assert_eq!(client.expect(1).await[0].kind, "transient", "{carrier:?}");
        cluster.feed.send(&Event::new(user, "durable")).await;
        assert_eq!(client.expect(1).await[0].number(), 1, "{carrier:?}");
        client.ack(1).await.expect("sent");
    }
    asleep(&cluster, clients.len()).await;
    let mut cluster = cluster;
    cluster.nodes[2].process().kill();
    for (carrier, user, client) in &mut clients {
        cluster.feed.send(&Event::new(user, "after")).await;
        assert_eq!(client.expect(1).await[0].number(), 2, "{carrier:?}: nothing lost, nothing twice");
        client.ack(2).await.expect("sent");
    }
    for (carrier, user, _) in &clients {
        let node = &cluster.nodes[0];
        eventually("the cursor", async || {
            let other = carrier::open(node, *carrier, &Ask::token(&node.token(user))).await.expect("accepted");
            (other.hello().cursor == 2).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn nodes_show_each_other_certificates_when_they_have_some() {
    let certs = Certs::new().await;
    let text = |path: std::path::PathBuf| path.to_str().expect("UTF-8").to_owned();
    let configure = |_, builder: Builder| {
        let builder = builder.set("cluster.tls_cert_file", text(certs.cert()));
        builder.set("cluster.tls_key_file", text(certs.key())).set("cluster.tls_ca_file", text(certs.authority()))
    };
    let cluster = Cluster::start_with(2, 4, Store::postgres().await, configure).await;
    let mut clients = Clients::connect(&cluster, &[0, 1]).await;
    send(&cluster, 0..5).await;
    clients.expect_all(5).await;
    let expiry = cluster.nodes[0].metrics().await;
    assert!(expiry.sum_where("notifier_certificate_expiry_timestamp_seconds", "listener", "cluster") > 1e9);
}

#[tokio::test]
async fn a_node_that_does_not_know_the_secret_does_not_join() {
    let cluster = Cluster::start(1, 2).await;
    let stranger = cluster.builder().set("node.id", "stranger").set("cluster.secret", "guessed").fails().await;
    assert_eq!(stranger.code(), 2, "{stranger:?}");
    assert!(stranger.stderr.contains("cluster.secret: node n0 knows another one"), "{stranger:?}");
    let mut client = cluster.nodes[0].connect("user-0").await;
    cluster.feed.send(&Event::numbered("user-0", 0)).await;
    assert_eq!(client.one().await.n(), 0);
}
