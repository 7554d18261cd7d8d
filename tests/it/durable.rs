//! What is stored outlives the process, on every engine: kill -9, at rest and under load.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::harness::{Event, Feed, Node, Store, wait::DEADLINE, ws::WsClient};

#[tokio::test]
async fn what_was_settled_survives_kill_9_and_numbers_go_on() {
    for store in Store::each().await {
        let feed = Feed::new(2).await;
        let mut node = store.of(Node::builder(&feed)).start().await;
        let mut client = node.ws("101").query("device", "phone").open().await;
        let epoch = client.hello().epoch.clone();
        let events: Vec<_> = (0..5).map(|n| Event::numbered("101", n)).collect();
        feed.send_all(&events).await;
        feed.send_all(&[0, 1, 2].map(|n| Event::numbered("away", n))).await;
        assert_eq!(client.expect(5).await[4].number(), 5);
        client.ack(3).await;
        node.settled(8).await;
        drop(client);
        let cursor = async |node: &Node| node.ws("101").query("device", "phone").open().await.hello().cursor;
        crate::harness::eventually("a stored cursor", async || (cursor(&node).await == 3).then_some(())).await;
        node.kill();
        node.start_again();
        node.ready().await;

        let mut client = node.ws("101").query("device", "phone").open().await;
        let hello = client.hello();
        assert_eq!((hello.head, hello.cursor), (5, 3), "{}", store.engine());
        assert_eq!(hello.epoch, epoch, "{}", store.engine());
        let frames = client.expect(2).await;
        assert_eq!([frames[0].number(), frames[1].number()], [4, 5], "{}", store.engine());
        let mut away = node.connect("away").await;
        assert_eq!(away.expect(3).await.iter().map(|frame| frame.n()).collect::<Vec<_>>(), [0, 1, 2]);
        feed.send_all(&[Event::numbered("101", 5), Event::numbered("away", 3)]).await;
        let frame = client.one().await;
        assert_eq!((frame.n(), frame.number()), (5, 6), "{}", store.engine());
        assert_eq!(away.one().await.number(), 4, "{}", store.engine());
        feed.all_committed().await;
    }
}

#[tokio::test]
async fn a_started_session_survives_a_restart() {
    for store in Store::each().await {
        let feed = Feed::new(1).await;
        let mut node = store.of(Node::builder(&feed)).start().await;
        let authorization = format!("Bearer {}", node.token("101"));
        let answer = node.request("POST", "/v1/sessions", &[("Authorization", &authorization)], "").await.json();
        let session = answer["session_id"].as_str().expect("a session").to_owned();
        node.kill();
        node.start_again();
        node.ready().await;
        let client = crate::harness::ws::Connect::anonymous(node.addr()).query("session_id", &session).open().await;
        assert_eq!(client.hello().user, "101", "{}", store.engine());
    }
}

/// A user whose client comes back after every kill, and what it has seen. The events of a user are numbered in the
/// order of writing, so that whatever was lost, repeated or put in another order breaks `n + 1 == seq`.
struct Seen {
    name: String,
    client: Option<WsClient>,
    /// The last number of this connection.
    last: u64,
    acknowledged: u64,
}

impl Seen {
    async fn connect(&mut self, node: &Node) {
        let client = node.connect(&self.name).await;
        let cursor = client.hello().cursor;
        assert!(cursor <= self.acknowledged, "{}: the cursor {cursor} was never acknowledged", self.name);
        self.last = cursor;
        self.client = Some(client);
    }

    /// Takes what is there; how many that were.
    async fn take(&mut self, patience: Duration) -> usize {
        let client = self.client.as_mut().expect("connected");
        let mut taken = 0;
        while let Some(frame) = client.poll(patience).await {
            let seq = frame.number();
            assert_eq!(seq, self.last + 1, "{}: a number was jumped or repeated: {frame:?}", self.name);
            assert_eq!(frame.n() + 1, seq, "{}: lost, repeated or out of order: {frame:?}", self.name);
            self.last = seq;
            if seq % 3 == 0 {
                client.ack(seq).await;
                self.acknowledged = self.acknowledged.max(seq);
            }
            taken += 1;
        }
        taken
    }
}

/// Whether users' limits hold some of the load back.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    Unlimited,
    Limited,
}

/// Kills the node at `kills` random moments under load, and checks every frame that every client sees.
pub async fn kill_under_load(store: &Store, load: Load, seed: u64, kills: usize) {
    println!("{}, {load:?}: seed {seed}", store.engine());
    let mut random = StdRng::seed_from_u64(seed);
    let feed = Feed::new(3).await;
    let builder = store.of(Node::builder(&feed)).api_key("support", "key", &["read"]);
    let mut node = match load {
        Load::Unlimited => builder,
        Load::Limited => builder.limit("normal", 200.0, 20).set("buffer.items", 100_000),
    }
    .start()
    .await;
    let each = 100 * (kills as u64 + 1);
    let mut users: Vec<Seen> =
        (0..6).map(|index| Seen { name: format!("user-{index}"), client: None, last: 0, acknowledged: 0 }).collect();
    let names: Vec<String> = users.iter().map(|user| user.name.clone()).collect();
    let load = tokio::spawn({
        let feed = feed.clone();
        async move {
            for n in 0..each {
                let events: Vec<_> = names.iter().map(|name| identified(name, n)).collect();
                feed.send_all(&events).await;
            }
        }
    });
    for _ in 0..kills {
        for user in &mut users {
            user.connect(&node).await;
        }
        let enough = random.random_range(1..400);
        let mut taken = 0;
        let began = std::time::Instant::now();
        while taken < enough && users.iter().any(|user| user.last < each) {
            for user in &mut users {
                taken += user.take(Duration::from_millis(random.random_range(0..5))).await;
            }
            assert!(began.elapsed() < DEADLINE, "seed {seed}: only {taken} of {enough} frames came");
        }
        node.kill();
        users.iter_mut().for_each(|user| user.client = None);
        node.start_again();
        node.ready().await;
    }
    load.await.expect("the load is written");
    for user in &mut users {
        user.connect(&node).await;
    }
    let began = std::time::Instant::now();
    while users.iter().any(|user| user.last < each) {
        for user in &mut users {
            user.take(Duration::from_millis(5)).await;
        }
        let missing: Vec<_> =
            users.iter().filter(|user| user.last < each).map(|user| (&user.name, user.last)).collect();
        assert!(began.elapsed() < DEADLINE, "seed {seed}: of {each} each only {missing:?}");
    }
    // One more of each: whatever was stored twice would stand before it.
    let last: Vec<_> = users.iter().map(|user| Event::numbered(&user.name, each)).collect();
    feed.send_all(&last).await;
    for user in &mut users {
        let frame = user.client.as_mut().expect("connected").one().await;
        assert_eq!((frame.number(), frame.n()), (each + 1, each), "seed {seed}: {frame:?}");
    }
    feed.all_committed().await;
    every_state_is_known(&node, &users, each, seed).await;
}

fn identified(user: &str, n: u64) -> Event {
    Event::numbered(user, n).id(&n.to_string())
}

/// Each notification has ended or waits, and is not `sent` unless it was acknowledged.
async fn every_state_is_known(node: &Node, users: &[Seen], each: u64, seed: u64) {
    for Seen { name, acknowledged, .. } in users {
        crate::harness::eventually("a stored cursor", async || {
            let path = format!("/v1/users/{name}/notifications?limit=1");
            let page = node.request("GET", &path, &[("X-API-Key", "key")], "").await.json();
            (page["cursor"] == *acknowledged).then_some(())
        })
        .await;
        for n in (0..each).step_by(7) {
            let path = format!("/v1/users/{name}/notifications/{n}");
            let answer = node.request("GET", &path, &[("X-API-Key", "key")], "").await;
            assert_eq!(answer.status(), 200, "seed {seed}: {name} {n}");
            let told = answer.json();
            let state = told["state"].as_str().expect("a state");
            let fits =
                if n < *acknowledged { state == "sent" } else { ["pending", "active", "stale"].contains(&state) };
            assert!(fits, "seed {seed}: {name} {n}, acknowledged to {acknowledged}: {told}");
            assert_eq!(told["seq"], n + 1, "seed {seed}: {told}");
        }
    }
}

#[tokio::test]
async fn kill_9_under_load_loses_repeats_and_reorders_nothing_in_sqlite() {
    kill_under_load(&Store::sqlite(), Load::Unlimited, rand::random(), 3).await;
}

#[tokio::test]
async fn kill_9_under_load_loses_repeats_and_reorders_nothing_in_postgres() {
    kill_under_load(&Store::postgres().await, Load::Unlimited, rand::random(), 3).await;
}

#[tokio::test]
async fn kill_9_while_limits_hold_back_loses_repeats_and_reorders_nothing() {
    for store in Store::each().await {
        kill_under_load(&store, Load::Limited, rand::random(), 3).await;
    }
}

#[tokio::test]
#[ignore = "takes minutes: tests/run --long"]
async fn kill_9_thirty_times_under_load_loses_repeats_and_reorders_nothing() {
    for load in [Load::Unlimited, Load::Limited] {
        for store in Store::each().await {
            kill_under_load(&store, load, rand::random(), 30).await;
        }
    }
}
