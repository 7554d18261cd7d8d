//! What is made of a view, a map and answers; and who may see it.

use std::{num::NonZeroU8, time::Duration};

use axum::{body::Body, http::Request};
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use super::*;
use crate::{
    api::tests::{READ_KEY, SESSIONS_KEY, start},
    ids::NodeId,
    store::tests::FaultyStore,
};

fn member(id: &str, state: view::State, joined: u64) -> view::Member {
    view::Member {
        node: view::Node {
            id: NodeId::new(id).unwrap(),
            incarnation: Incarnation::random(),
            addresses: vec![format!("{id}:8003")],
            zone: String::new(),
            weight: NonZeroU8::MIN,
            is_alone: false,
        },
        state,
        joined,
        counter: 0,
        votes: Vec::new(),
        dead_for: Duration::ZERO,
    }
}

/// Two that are active, one that drains, one that is dead; everything belongs to the one that drains.
fn seen() -> Seen {
    use view::State::{Active, Dead, Draining};
    let members = vec![member("a", Active, 1), member("b", Active, 2), member("c", Draining, 3), member("d", Dead, 4)];
    let [me, _, drains, dead] = [0, 1, 2, 3].map(|at: usize| members[at].node.incarnation);
    let mut map = Map::all(Owner::There(drains), 64);
    map.owners[..4].fill(Owner::Nobody);
    let standing = |connections, partitions: &[i32]| Standing { connections, partitions: partitions.to_vec() };
    Seen {
        me,
        is_enabled: true,
        view: Arc::new(View { version: 9, members }),
        map: Arc::new(map),
        standings: vec![(me, standing(7, &[0, 2])), (drains, standing(3, &[])), (dead, standing(0, &[]))],
    }
}

#[test]
fn members_are_told_with_what_they_serve_and_what_only_they_know() {
    let cluster = Cluster::from(seen());
    assert_eq!((cluster.node.as_str(), cluster.version, cluster.shards, cluster.unowned), ("a", 9, 64, 4));
    let told: Vec<_> =
        cluster.members.iter().map(|one| (&*one.id, one.shards, one.sessions, one.partitions.clone())).collect();
    let expected = [
        ("a", 0, Some(7), Some(vec![0, 2])),
        ("b", 0, None, None),
        ("c", 60, Some(3), Some(vec![])),
        ("d", 0, Some(0), Some(vec![])),
    ];
    assert_eq!(told, expected);
    let json = serde_json::to_value(&cluster).unwrap();
    assert_eq!(json["members"][1].get("sessions"), None, "absent, and not 0");
    assert_eq!(json["members"][2]["state"], "draining");
}

#[test]
fn what_another_node_should_serve_moves() {
    let mut seen = seen();
    let cluster = Cluster::from(Seen { view: seen.view.clone(), map: seen.map.clone(), standings: Vec::new(), ..seen });
    let total: usize = cluster.moves.iter().map(|one| one.shards).sum();
    assert_eq!(total, 64, "all of them: {:?}", cluster.moves);
    assert!(cluster.moves.iter().all(|one| ["a", "b"].contains(&&*one.to)), "{:?}", cluster.moves);
    let from: Vec<_> = cluster.moves.iter().map(|one| one.from.as_deref()).collect();
    assert!(from.contains(&Some("c")) && from.contains(&None), "{from:?}");

    // When everybody has what it should, nothing moves.
    let target = member::target(&seen.view, 64);
    let owner = |to: Incarnation| if to == seen.me { Owner::Here } else { Owner::There(to) };
    seen.map = Arc::new(Map { owners: target.into_iter().map(owner).collect() });
    let cluster = Cluster::from(seen);
    assert_eq!((cluster.moves, cluster.unowned), (Vec::new(), 0));
}

struct Fixed;

impl Observed for Fixed {
    fn look(&self) -> Pin<Box<dyn Future<Output = Seen> + Send + '_>> {
        Box::pin(async { seen() })
    }
}

#[tokio::test]
async fn services_that_may_read_look_once_there_is_something_to_see() {
    let api = start(1 << 20, &[], FaultyStore::new(10));
    let get = async |key: &str| {
        let request = Request::get("/v1/cluster").header("x-api-key", key).body(Body::empty()).unwrap();
        let response = axum::Router::from(api.routes()).oneshot(request).await.unwrap();
        let status = response.status();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    };
    assert_eq!(get(READ_KEY).await.0, StatusCode::SERVICE_UNAVAILABLE);
    api.observe(Arc::new(Fixed));
    let (status, body) = get(READ_KEY).await;
    assert_eq!(status, StatusCode::OK);
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&json["node"], json["members"].as_array().map(Vec::len)), (&"a".into(), Some(4)));
    assert_eq!(get(SESSIONS_KEY).await.0, StatusCode::FORBIDDEN);
    assert_eq!(get("").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(get("unknown").await.0, StatusCode::UNAUTHORIZED);
}
