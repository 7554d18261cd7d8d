//! Who is found, and what stays of those who have left.

use super::*;
use crate::{
    edge::fakes::{shared, stream},
    fakes::user,
};

fn sessions(registry: &Registry, user: &UserId) -> Vec<SessionId> {
    registry.of_user(user).iter().map(|relay| relay.client.session).collect()
}

#[test]
fn a_users_connections_are_found_until_they_end_and_nothing_of_them_stays() {
    let (shared, other) = (shared(), UserId::new("other").unwrap());
    let registry = &shared.registry;
    let ids = [SessionId::random(), SessionId::random()];
    let [first, second] = ids.map(|id| stream(&shared, &user(), id));
    let (one, two) = (registry.register(&first), registry.register(&second));
    let others = registry.register(&stream(&shared, &other, SessionId::random()));
    assert_eq!(sessions(registry, &user()), ids, "the oldest first");
    drop(one);
    assert_eq!(sessions(registry, &user()), ids[1..]);
    assert!(registry.find(ids[0]).is_none() && registry.find(ids[1]).is_some());
    drop((two, others));
    let known = registry.known.lock();
    assert!(known.by_session.is_empty() && known.by_user.is_empty());
}

#[test]
fn the_newest_connection_of_a_session_has_its_place_whatever_becomes_of_the_one_before() {
    let (shared, id) = (shared(), SessionId::random());
    let registry = &shared.registry;
    let [former, newest] = [(); 2].map(|()| stream(&shared, &user(), id));
    let first = registry.register(&former);
    let second = registry.register(&newest);
    assert_eq!(former.close_reason().map(|close| close.code), Some(CloseCode::Replaced));
    assert_eq!(newest.close_reason(), None);
    assert_eq!(sessions(registry, &user()), [id], "it is one session");
    drop(first);
    assert!(registry.find(id).is_some_and(|found| Arc::ptr_eq(&found, &newest)));
    assert_eq!(sessions(registry, &user()), [id]);
    drop(second);
    assert!(registry.find(id).is_none() && registry.known.lock().by_user.is_empty());
}

#[tokio::test]
async fn goodbyes_are_over_at_the_deadline_whoever_stays() {
    let shared = shared();
    let stays = stream(&shared, &user(), SessionId::random());
    let _registered = shared.registry.register(&stays);
    let (spread, deadline) = (Duration::from_secs(1), Instant::now() + Duration::from_millis(300));
    let goodbyes = shared.registry.goodbye(1000, spread, deadline);
    assert!(tokio::time::timeout(Duration::from_secs(10), goodbyes).await.is_ok());
    assert_eq!(stays.close_reason().map(|close| close.code), Some(CloseCode::GoingAway));
}
