//! `/livez` is about progress: a loop that stands still makes it fail, even while the process answers.

use std::time::Duration;

use crate::harness::{Event, Feed, Node, wait::eventually_within};

/// `/livez` allows a loop half a minute at the most; the machine is shared.
const NOTICED: Duration = Duration::from_secs(60);

/// Stalls a loop and checks that liveness names it, and that it recovers.
async fn is_missed(watched: &str, seconds: u64) {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    assert_eq!(node.admin("/livez").await.status(), 200);
    node.stall(watched, seconds).await;
    eventually_within(NOTICED, &format!("liveness that names {watched}"), async || {
        let answer = node.try_admin("/livez").await?;
        (answer.status() == 503 && answer.body.contains(watched)).then_some(())
    })
    .await;
    eventually_within(NOTICED, "liveness after the stall", async || {
        (node.try_admin("/livez").await?.status() == 200).then_some(())
    })
    .await;
    let mut client = node.connect("101").await;
    feed.send(&Event::new("101", "after")).await;
    assert_eq!(client.one().await.kind, "after");
}

#[tokio::test]
async fn a_poll_thread_that_stands_still_fails_liveness() {
    is_missed("kafka poll thread", 36).await;
}

#[tokio::test]
async fn a_runtime_that_stands_still_fails_liveness() {
    is_missed("runtime", 20).await;
}
