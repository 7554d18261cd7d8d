//! A store that is away, is exchanged, went back, or has a schema of another version.

use crate::harness::{Event, Feed, Node, Store, eventually};

#[tokio::test]
async fn a_store_that_is_away_holds_up_only_what_needs_it() {
    for mut store in Store::each().await {
        let engine = store.engine();
        let feed = Feed::new(1).await;
        let node = store.of(Node::builder(&feed)).start().await;
        let mut client = node.connect("101").await;
        feed.send(&Event::new("101", "before")).await;
        assert_eq!(client.one().await.kind, "before");
        store.away().await;
        let durable: Vec<_> = (0..20).map(|n| Event::new("101", "durable").data(&format!("{{\"n\":{n}}}"))).collect();
        feed.send_all(&durable).await;
        node.unready("store").await;
        feed.send(&Event::new("101", "transient").transient()).await;
        let frame = client.one().await;
        assert_eq!(frame.kind, "transient", "sessions stay and transient ones flow: {engine} {frame:?}");
        let positions = feed.kafka.positions(&feed.topic, &feed.group, 1).await;
        assert!(positions[0].0.unwrap_or(0) <= 1, "the position waits: {engine} {positions:?}");
        store.back().await;
        for n in 0..20 {
            let frame = client.one().await;
            assert_eq!((frame.n(), frame.number()), (n, n + 2), "{engine}: {frame:?}");
        }
        node.ready().await;
        feed.all_committed().await;
    }
}

#[tokio::test]
async fn connections_to_the_store_that_are_cut_cost_nothing() {
    let store = Store::postgres().await;
    let feed = Feed::new(2).await;
    let node = store.of(Node::builder(&feed)).start().await;
    let mut crowd = crate::harness::check::Crowd::connect(&node, 4).await;
    let load = crowd.load(&feed, 150, std::time::Duration::from_millis(5));
    let mut cuts = 0;
    while !load.is_finished() {
        store.cut().await;
        cuts += 1;
        // Waiting for more than what is there would go on to the end of the load.
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        crowd.take(std::time::Duration::ZERO).await;
    }
    assert!(cuts > 3, "cut {cuts} times");
    load.await.expect("the load is written");
    crowd.complete(&feed).await;
    node.ready().await;
    feed.all_committed().await;
}

#[tokio::test]
async fn a_second_start_with_the_same_ports_takes_no_store_from_the_first() {
    for store in Store::each().await {
        let engine = store.engine();
        let feed = Feed::new(1).await;
        let mut node = store.of(Node::builder(&feed)).start().await;
        let mut client = node.connect("101").await;
        let second = node.twin().await;
        assert_eq!(second.code(), 1, "{engine}: {second:?}");
        assert!(second.stderr.contains("client.listen: cannot listen on"), "{engine}: {}", second.stderr);
        // The first one's watch over the store looks each second.
        tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
        feed.send(&Event::numbered("101", 0)).await;
        assert_eq!(client.one().await.n(), 0, "{engine}");
        feed.all_committed().await;
        node.stop().await;
    }
}

#[tokio::test]
async fn an_exchanged_database_ends_the_process_and_clients_hear_of_it() {
    for store in Store::each().await {
        let engine = store.engine();
        let feed = Feed::new(1).await;
        let mut node = store.of(Node::builder(&feed)).start().await;
        let mut client = node.connect("101").await;
        let since = format!("{}-2", client.hello().epoch);
        feed.send_all(&[Event::numbered("101", 0), Event::numbered("101", 1)]).await;
        client.expect(2).await;
        // An empty store begins at the group's offsets.
        feed.all_committed().await;
        store.wipe().await;
        let (_, code) = client.closed().await;
        assert_eq!(code, Some(1001), "{engine}");
        assert_eq!(node.ends().await, 3, "start me again: {engine}");
        node.start_again();
        node.ready().await;
        let mut client = node.ws("101").query("since", &since).open().await;
        assert_ne!(client.hello().epoch, since.split('-').next().expect("an epoch"), "{engine}");
        let gap = client.control("$gap").await;
        assert_eq!(gap.payload()["reason"], "epoch", "{engine}: {gap:?}");
        feed.send(&Event::numbered("101", 2)).await;
        assert_eq!(client.one().await.n(), 2, "{engine}");
    }
}

#[tokio::test]
async fn a_store_that_went_back_is_noticed_and_reads_again_what_it_lost() {
    for store in Store::each().await {
        let engine = store.engine();
        let feed = Feed::new(1).await;
        let mut node = store.of(Node::builder(&feed)).start().await;
        let mut client = node.connect("101").await;
        let since = format!("{}-3", client.hello().epoch);
        feed.send_all(&[0, 1, 2].map(|n| Event::numbered("101", n))).await;
        client.expect_acked(3).await;
        feed.all_committed().await;
        client.leave().await;
        node.stop().await.ok();
        // As a copy from before the last two events has it.
        let one_back = "delete from log where seq > 1; update heads set head = 1; update cursors set cursor = 1; \
                        update partition_claims set position = 1";
        store.execute(one_back).await;
        node.start_again();
        assert_eq!(node.ends().await, 3, "{engine}");
        node.start_again();
        node.ready().await;
        let mut client = node.ws("101").query("since", &since).open().await;
        let gap = client.control("$gap").await;
        assert_eq!(gap.payload()["reason"], "restored", "{engine}: {gap:?}");
        let frames = client.expect(2).await;
        assert_eq!(frames.iter().map(|frame| (frame.number(), frame.n())).collect::<Vec<_>>(), [(2, 1), (3, 2)]);
        feed.all_committed().await;
    }
}

#[tokio::test]
async fn an_event_that_the_store_refuses_becomes_a_dead_letter_and_holds_up_nothing() {
    for store in Store::each().await {
        let feed = Feed::new(1).await;
        let node = store.of(Node::builder(&feed)).start().await;
        store
            .execute(match &store {
                Store::Sqlite { .. } => {
                    "create trigger refuse before insert on log when new.notification_type = 'refused' \
                     begin select raise(abort, 'refused'); end"
                }
                Store::Postgres { .. } => {
                    "alter table log add constraint refuse check (notification_type <> 'refused')"
                }
            })
            .await;
        let mut client = node.connect("101").await;
        let mut events: Vec<_> = (0..200).map(|n| Event::numbered("101", n)).collect();
        events.insert(77, Event::new("101", "refused").id("bad"));
        feed.send_all(&events).await;
        for n in 0..200 {
            let frame = client.expect_acked(1).await.remove(0);
            assert_eq!((frame.n(), frame.number()), (n, n + 1), "{}", store.engine());
        }
        let letter = feed.dead_letters(1).await.remove(0);
        assert!(letter.header("notifier-error").is_some_and(|error| error.contains("unstorable")), "{letter:?}");
        feed.all_committed().await;
    }
}

#[tokio::test]
async fn a_schema_of_another_version_stops_the_start_with_exit_code_2() {
    for store in Store::each().await {
        let feed = Feed::new(1).await;
        let checked = || store.of(Node::builder(&feed)).set("store.migrate", "check");
        let refused = checked().fails().await;
        assert_eq!(refused.code(), 2, "{refused:?}");
        assert!(refused.stderr.contains("notifier migrate"), "{refused:?}");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = checked().write(directory.path());
        let migrate = async || {
            let mut command = crate::harness::command::notifier(&["migrate", "--config"]);
            command.arg(&path);
            crate::harness::command::finish(command).await
        };
        assert!(migrate().await.ok().contains("brought up"), "{}", store.engine());
        assert!(migrate().await.ok().contains("up to date"), "{}", store.engine());
        let node = checked().start().await;
        eventually("a client", async || Some(node.connect("101").await)).await;
        drop(node);
        store
            .execute(
                "insert into _sqlx_migrations (version, description, success, checksum, execution_time) \
                 values (99, 'later', true, '', 0)",
            )
            .await;
        for finished in [checked().fails().await, store.of(Node::builder(&feed)).fails().await, migrate().await] {
            assert_eq!(finished.code(), 2, "{finished:?}");
            assert!(finished.stderr.contains("newer"), "{finished:?}");
        }
    }
}
