//! A connection's task beside a shard that only listens.

use super::*;
use crate::{
    edge::fakes::{shared_with, stream},
    event::UnixMillis,
    fakes::{Collector, settled, user},
    ids::SessionId,
    shard::{self, Shards},
    store::sessions::{MemorySessions, Started, StartedSessions as _},
};

#[tokio::test(start_paused = true)]
async fn a_session_that_is_ended_between_its_lookup_and_its_connection_is_sent_away() {
    let (shard, asked) = Collector::<shard::Msg>::spawn().await;
    let started = Arc::new(MemorySessions::default());
    let shared = shared_with(started.clone(), Shards::new(vec![shard], 1));
    let [good, ended] = [(); 2].map(|()| stream(&shared, &user(), SessionId::random()));
    let session = Started { session: good.client.session, user: user(), expires_at: UnixMillis::MAX };
    started.start(session).await.unwrap();
    for relay in [&good, &ended] {
        tokio::spawn(run(relay.clone(), shared.clone(), None, Vec::new()));
    }
    settled().await;
    assert_eq!(ended.close_reason().map(|close| close.code), Some(CloseCode::Replaced));
    assert_eq!(good.close_reason(), None);
    assert!(!asked.lock().is_empty(), "the good one asks for its session");
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_sessions_are_lost_in_a_row_asks_less_often_and_is_sent_away() {
    let (shard, asked) = Collector::<shard::Msg>::spawn().await;
    let shared = shared_with(Arc::new(MemorySessions::default()), Shards::new(vec![shard], 1));
    let user = user();
    let session = Started { session: SessionId::random(), user: user.clone(), expires_at: UnixMillis::MAX };
    shared.started.start(session.clone()).await.unwrap();
    let relay = stream(&shared, &user, session.session);
    tokio::spawn(run(relay.clone(), shared.clone(), None, Vec::new()));
    let began = tokio::time::Instant::now();
    let mut attempts = 0;
    while relay.close_reason().is_none() {
        settled().await;
        // Whoever should have served it drops the request.
        attempts += asked.lock().drain(..).count();
        assert!(began.elapsed() < SERVED, "for ever");
    }
    assert_eq!(attempts, 1 + LOST_MAX as usize);
    assert_eq!(relay.close_reason().map(|close| close.code), Some(CloseCode::TryAgainLater));
    assert!(began.elapsed() > Duration::from_millis(100), "not at once, again and again: {:?}", began.elapsed());
}
