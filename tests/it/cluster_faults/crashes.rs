//! Actors crash in the middle of a burst to their users, whose clients are at all nodes: at the one that has the actors,
//! and at those that have not.

use super::*;
use crate::harness::{Event, check::Order, wait::eventually, ws::WsClient};

const VICTIMS: usize = 6;
/// Events of one user in a burst.
const BURST: u64 = 200;
/// Events that are written at a time: what comes behind a crash comes before anybody has heard of it, and after.
const PIECE: usize = 30;

fn victim(user: usize) -> String {
    format!("victim-{user}")
}

struct Client {
    user: String,
    socket: WsClient,
    order: Order,
}

impl Client {
    /// Reads until it has had so many, which come in order and each once; the event that crashes actors may come too.
    async fn take(&mut self, count: u64) {
        while self.order.count() < count {
            let frame = self.socket.one().await;
            if !frame.kind.starts_with("fault.") {
                self.order.take(&self.user, &frame);
            }
            self.socket.ack(frame.number()).await;
        }
    }
}

async fn crashes(cluster: &Cluster, actor: &str) -> f64 {
    let mut count = 0.0;
    for node in &cluster.nodes {
        count += node.metrics().await.sum_where("notifier_actor_restarts_total", "actor", actor);
    }
    count
}

#[tokio::test]
async fn actors_that_crash_in_the_middle_of_a_burst_cost_no_client_of_any_node_anything() {
    let mut cluster = three().await;
    let mut clients = Vec::new();
    for user in (0..VICTIMS).map(victim) {
        for (at, node) in cluster.nodes.iter().enumerate() {
            let socket = node.ws(&user).query("device", &format!("at-{at}")).open().await;
            clients.push(Client { user: user.clone(), socket, order: Order::default() });
        }
    }
    let mut sent = 0;
    for actor in ["session", "user", "shard"] {
        let mut events = Vec::new();
        for n in sent..sent + BURST {
            events.extend((0..VICTIMS).map(|user| Event::numbered(&victim(user), n)));
            if n % (BURST / 4) == BURST / 8 {
                let fault = format!("fault.{actor}");
                events.extend((0..VICTIMS).map(|user| Event::new(&victim(user), &fault).id(&format!("{fault}.{n}"))));
            }
        }
        sent += BURST;
        for piece in events.chunks(PIECE) {
            cluster.feed.send_all(piece).await;
        }
        for client in &mut clients {
            client.take(sent).await;
        }
        eventually("counted crashes", async || {
            let least = if actor == "shard" { 1 } else { VICTIMS };
            (crashes(&cluster, actor).await >= least as f64).then_some(())
        })
        .await;
        println!("{} crashes of actors: {actor}", crashes(&cluster, actor).await);
    }
    eventually("everything settled", async || {
        let mut unsettled = 0.0;
        for node in &cluster.nodes {
            unsettled += node.metrics().await.sum("notifier_unsettled_events");
        }
        (unsettled == 0.0).then_some(())
    })
    .await;
    // The connections live, and the next thing that comes is the next event, or what crashed actors at last.
    let last: Vec<Event> = (0..VICTIMS).map(|user| Event::numbered(&victim(user), sent)).collect();
    cluster.feed.send_all(&last).await;
    for client in &mut clients {
        client.take(sent + 1).await;
    }
    cluster.all_run("actors crash, nodes do not");
    only_owners_wrote(&cluster).await;
}
