//! A store that fails as servers and disks fail: restarts, no room, statements that hang, an older copy, TLS.

use std::time::Duration;

use rand::RngExt as _;

use crate::harness::{
    Event, Feed, Node, Store,
    certs::Certs,
    check::Crowd,
    command::{finish, notifier},
    eventually,
    node::Builder,
    postgres::{PASSWORD, PrivatePostgres, Stop, execute},
    proxy::Proxy,
};

#[tokio::test]
async fn a_server_that_is_restarted_under_load_costs_nothing() {
    /// Of each user in a round.
    const EACH: u64 = 300;
    let mut server = PrivatePostgres::started().await;
    let store = Store::on(server.url()).await;
    let feed = Feed::new(2).await;
    let node = store.of(Node::builder(&feed)).start().await;
    let mut crowd = Crowd::connect(&node, 4).await;
    for (round, stop) in (0..).zip([Stop::Fast, Stop::Immediate, Stop::Immediate]) {
        let load = crowd.load(&feed, EACH, Duration::from_millis(5));
        while !crowd.all_have(round * EACH + 20) {
            crowd.take(Duration::from_millis(1)).await;
        }
        // What is under way then has no answer.
        let _lock = store.lock("heads").await;
        store.hangs().await;
        server.stop(stop).await;
        node.unready("store").await;
        server.start().await;
        node.ready().await;
        load.await.expect("the load is written");
    }
    crowd.complete(&feed).await;
    node.ready().await;
    feed.all_committed().await;
}

/// More than there is room for, and nothing that could be made smaller.
fn large(n: u64) -> Event {
    let mut random = rand::rng();
    let noise: String = (0..40_000).map(|_| char::from(random.random_range(b'0'..=b'z'))).collect();
    let noise = noise.replace('\\', "-");
    Event::new("101", "large").data(&format!("{{\"n\":{n},\"noise\":\"{noise}\"}}"))
}

/// Sends more than there is room for; what is durable waits for room, and nothing else does.
async fn without_room(feed: &Feed, node: &mut Node, room: impl AsyncFnOnce(&mut Node)) {
    const COUNT: u64 = 120;
    let mut client = node.ws("101").open().await;
    feed.send_all(&(1..=COUNT).map(large).collect::<Vec<_>>()).await;
    node.unready("store").await;
    feed.send(&Event::new("102", "durable")).await;
    let mut other = node.connect("102").await;
    feed.send(&Event::new("102", "transient").transient()).await;
    loop {
        let frame = other.one().await;
        if frame.kind == "transient" {
            break;
        }
    }
    let position = feed.kafka.positions(&feed.topic, &feed.group, 1).await[0].0.unwrap_or(0);
    assert!(position <= i64::try_from(COUNT).unwrap(), "the position waits: {position}");
    room(node).await;
    for n in 1..=COUNT {
        let frame = client.expect_acked(1).await.remove(0);
        assert_eq!((frame.n(), frame.number()), (n, n + 1), "{}", frame.kind);
    }
    node.ready().await;
    feed.all_committed().await;
}

#[tokio::test]
async fn a_server_without_room_holds_up_what_is_durable_until_there_is_some() {
    let server = PrivatePostgres::started().await;
    let store = Store::on(server.url()).await;
    let feed = Feed::new(1).await;
    let mut node = store.of(Node::builder(&feed)).start().await;
    feed.send(&Event::new("101", "first")).await;
    node.connect("101").await.expect_acked(1).await;
    node.acknowledged("101", 1).await;
    let mut connection = server.connect().await;
    server.files_max(Some(2 << 20), &mut connection).await;
    without_room(&feed, &mut node, async |_| server.files_max(None, &mut connection).await).await;
}

#[tokio::test]
async fn a_file_without_room_holds_up_what_is_durable_until_there_is_some() {
    let store = Store::sqlite();
    let feed = Feed::new(1).await;
    // Of a file that is too large a process hears by a signal, unless it is ignored, and else by an error.
    let wrapper = ["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"];
    let mut node = store.of(Node::builder(&feed)).wrapped(&wrapper).start().await;
    feed.send(&Event::new("101", "first")).await;
    node.connect("101").await.expect_acked(1).await;
    node.acknowledged("101", 1).await;
    node.process().files_max(Some(1 << 20));
    without_room(&feed, &mut node, async |node| node.process().files_max(None)).await;
}

#[tokio::test]
async fn a_lock_that_is_held_longer_than_anyone_waits_costs_nothing() {
    let store = Store::postgres().await;
    let feed = Feed::new(1).await;
    let node = store.of(Node::builder(&feed)).start().await;
    let mut client = node.connect("101").await;
    feed.send(&Event::numbered("101", 0)).await;
    client.expect(1).await;
    for (locked, next) in [("heads", 1), ("shard_claims", 4)] {
        let failed = async || node.metrics().await.sum_where("notifier_store_errors_total", "operation", "write");
        let before = failed().await;
        let lock = store.lock(locked).await;
        feed.send_all(&[next, next + 1, next + 2].map(|n| Event::numbered("101", n))).await;
        node.unready("store").await;
        // Longer than a statement may take, on either side.
        eventually("three attempts that failed", async || (failed().await >= before + 3.0).then_some(())).await;
        drop(lock);
        for n in next..next + 3 {
            let frame = client.one().await;
            assert_eq!((frame.n(), frame.number()), (n, n + 1), "behind {locked}");
        }
        node.ready().await;
    }
    feed.send(&Event::numbered("101", 7)).await;
    assert_eq!(client.one().await.number(), 8, "nothing was stored twice");
    feed.all_committed().await;
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_has_happened_once() {
    let store = Store::postgres().await;
    let feed = Feed::new(1).await;
    let (address, rest) = parts(&store.url());
    let proxy = Proxy::to(address.parse().expect("an address")).await;
    let url = format!("postgres://notifier@{}{rest}", proxy.addr());
    let node = Node::builder(&feed).set("store.url", url).start().await;
    let mut client = node.connect("101").await;
    feed.send(&Event::numbered("101", 0)).await;
    client.expect(1).await;
    let lock = store.lock("heads").await;
    feed.send(&Event::numbered("101", 1)).await;
    store.hangs().await;
    proxy.mute(true);
    drop(lock);
    eventually("a row", async || (store.count("log").await == 2).then_some(())).await;
    let failed = async || node.metrics().await.sum_where("notifier_store_errors_total", "operation", "write");
    eventually("an attempt that failed", async || (failed().await >= 1.0).then_some(())).await;
    proxy.mute(false);
    feed.send(&Event::numbered("101", 2)).await;
    let frames = client.expect(2).await;
    let seen: Vec<_> = frames.iter().map(|frame| (frame.n(), frame.number())).collect();
    assert_eq!(seen, [(1, 2), (2, 3)]);
    node.ready().await;
    feed.all_committed().await;
}

/// The address in a URL of a server, and what follows it.
fn parts(url: &str) -> (String, String) {
    let rest = url.rsplit_once('@').expect("a user").1;
    let (address, database) = rest.split_once('/').expect("a database");
    (address.into(), format!("/{database}"))
}

#[tokio::test]
async fn a_server_that_comes_back_with_an_older_copy_gives_no_number_that_a_client_has_seen() {
    let mut server = PrivatePostgres::started().await;
    let store = Store::on(server.url()).await;
    let feed = Feed::new(1).await;
    let mut node = store.of(Node::builder(&feed)).start().await;
    let mut client = node.connect("101").await;
    let epoch = client.hello().epoch.clone();
    feed.send_all(&[0, 1, 2].map(|n| Event::numbered("101", n))).await;
    client.expect_acked(3).await;
    feed.all_committed().await;
    server.stop(Stop::Fast).await;
    let copy = server.copy();
    server.start().await;
    node.ready().await;
    feed.send_all(&[3, 4, 5].map(|n| Event::numbered("101", n))).await;
    assert_eq!(client.expect_acked(3).await[2].number(), 6);
    feed.all_committed().await;
    server.stop(Stop::Immediate).await;
    server.restore(&copy);
    server.start().await;
    feed.send(&Event::numbered("101", 6)).await;
    let (frames, code) = client.closed().await;
    assert_eq!(code, Some(1001));
    assert!(frames.iter().all(|frame| frame.seq.is_none()), "under a number that was given: {frames:?}");
    begins_anew(&mut node).await;
    let mut client = node.ws("101").query("since", &format!("{epoch}-6")).open().await;
    assert_ne!(client.hello().epoch, epoch);
    let gap = client.control("$gap").await;
    assert_eq!(gap.payload()["reason"], "restored", "{gap:?}");
    let frames = client.expect_acked(4).await;
    let mut seen: Vec<_> = frames.iter().map(|frame| frame.n()).collect();
    seen.sort_unstable();
    assert_eq!(seen, [3, 4, 5, 6], "what the copy lacks is read again: {frames:?}");
    feed.send(&Event::numbered("101", 7)).await;
    let frame = client.one().await;
    assert_eq!((frame.n(), frame.number()), (7, 8), "nothing twice");
    feed.all_committed().await;
}

/// Starts a node again as a supervisor does, each time that it asks for it.
async fn begins_anew(node: &mut Node) {
    for _ in 0..3 {
        assert_eq!(node.ends().await, 3, "start me again");
        node.start_again();
        let is_ready = eventually("readiness, or another end", async || {
            let is_ready = node.try_admin("/readyz").await.is_some_and(|answer| answer.status() == 200);
            (is_ready || !node.process().running()).then_some(is_ready)
        });
        if is_ready.await {
            return;
        }
    }
    panic!("it begins anew again and again");
}

#[tokio::test]
async fn a_server_with_tls_is_known_by_its_certificate() {
    let certs = Certs::new().await;
    let server = PrivatePostgres::with_tls(&certs).await;
    let feed = Feed::new(1).await;
    let url = |host: &str, mode: &str, authority: &Certs| {
        let authority = authority.authority();
        let (port, root) = (server.port(), authority.display());
        format!("postgres://notifier:{PASSWORD}@{host}:{port}/postgres?sslmode={mode}&sslrootcert={root}")
    };
    let of = |url: String| Node::builder(&feed).set("store.url", url);
    let node = of(url("127.0.0.1", "verify-full", &certs)).start().await;
    feed.send(&Event::new("101", "hello")).await;
    assert_eq!(node.connect("101").await.one().await.kind, "hello");
    let encrypted = "select bool_and(ssl) and count(*) > 0 from pg_stat_ssl join pg_stat_activity using (pid) \
                     where application_name like 'notifier%'";
    let encrypted: bool =
        sqlx::query_scalar(encrypted).fetch_one(&mut server.connect().await).await.expect("an answer");
    assert!(encrypted);
    drop(node);
    let refused = async |builder: Builder| {
        let finished = builder.fails().await;
        assert!([1, 2].contains(&finished.code()), "{finished:?}");
        assert!(finished.stderr.contains("store") && finished.stderr.contains("certificate"), "{finished:?}");
        assert!(!finished.stderr.contains(PASSWORD), "{finished:?}");
    };
    refused(of(url("127.0.0.1", "verify-full", &Certs::new().await))).await;
    refused(of(url("127.0.0.2", "verify-full", &certs))).await;
    // Only the name was wrong.
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut migrate = notifier(&["migrate", "--config"]);
    migrate.arg(of(url("127.0.0.2", "verify-ca", &certs)).write(directory.path()));
    finish(migrate).await.ok();
}

#[tokio::test]
async fn a_password_that_changes_is_read_again() {
    let server = PrivatePostgres::started().await;
    let store = Store::on(server.url()).await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).expect("a writable directory");
    let feed = Feed::new(1).await;
    let url = store.url().replace(&format!(":{PASSWORD}@"), "@");
    let builder = Node::builder(&feed).set("store.url", url);
    let node = builder.set("store.password_file", file.to_str().expect("UTF-8")).start().await;
    let mut client = node.connect("101").await;
    feed.send(&Event::numbered("101", 0)).await;
    client.expect_acked(1).await;
    let mut connection = server.connect().await;
    execute(&mut connection, "alter role notifier password 'second'").await;
    let cut = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'notifier%'";
    execute(&mut connection, cut).await;
    node.unready("store").await;
    feed.send(&Event::numbered("101", 1)).await;
    std::fs::write(&file, "second\n").expect("a writable directory");
    let frame = client.one().await;
    assert_eq!((frame.n(), frame.number()), (1, 2));
    node.ready().await;
    feed.all_committed().await;
}
