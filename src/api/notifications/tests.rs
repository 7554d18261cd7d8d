//! Pages, who may read them, and what is said when they cannot be read.

use std::time::Duration;

use axum::{
    body::Body,
    http::{Request, header},
};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::{
    api::{
        Api,
        tests::{READ_KEY, SECRET, start},
    },
    auth, fakes,
    store::{
        Store,
        tests::{Call, FaultyStore},
    },
};

/// The log keeps three.
async fn log_of(events: u64) -> (Api, Arc<FaultyStore>) {
    let store = FaultyStore::new(3);
    let events: Vec<_> = (1..=events).map(|n| fakes::durable(&fakes::user(), &format!("id-{n}"))).collect();
    store.fill(&events).await;
    (start(1024, &[], store.clone()), store)
}

fn token(user: &str) -> String {
    let user = UserId::new(user).unwrap();
    auth::issue(&user, Duration::from_secs(60), &auth::Config::default(), SECRET).unwrap().0
}

async fn get(api: &Api, credential: &str, path_and_query: &str) -> (u16, Option<String>, Value) {
    let request = Request::get(format!("/v1/users/{path_and_query}"))
        .header(header::AUTHORIZATION, format!("Bearer {credential}"))
        .body(Body::empty())
        .unwrap();
    let response = axum::Router::from(api.routes()).oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let wait = response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, wait, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

fn numbers(page: &Value) -> Vec<u64> {
    page["notifications"].as_array().unwrap().iter().map(|one| one["seq"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn a_log_is_read_page_by_page_and_says_what_is_gone() {
    let (api, store) = log_of(5).await;
    let (status, _, first) = get(&api, READ_KEY, "101/notifications?limit=2").await;
    assert_eq!((status, numbers(&first)), (200, vec![3, 4]), "{first}");
    assert_eq!(first["gaps"], json!([{"from": 1, "to": 2, "reason": "evicted"}]));
    assert_eq!((&first["head"], &first["cursor"], &first["next"]), (&json!(5), &json!(0), &json!(4)));
    assert_eq!(first["epoch"], *store.epoch());
    let notification = &first["notifications"][0];
    assert_eq!((&notification["target"], &notification["payload"]), (&json!("101"), &json!({"n": 1})));
    let (_, _, last) = get(&api, READ_KEY, "101/notifications?limit=2&after=4").await;
    assert_eq!((numbers(&last), last.get("next")), (vec![5], None));
    let (_, _, beyond) = get(&api, READ_KEY, "101/notifications?after=9223372036854775807").await;
    assert_eq!((numbers(&beyond), beyond.get("next")), (vec![], None));
    assert_eq!(beyond["head"], 5, "not what was asked for");
    let (status, _, nobody) = get(&api, READ_KEY, "nobody/notifications").await;
    assert_eq!((status, &nobody["head"], numbers(&nobody)), (200, &json!(0), vec![]));
}

#[tokio::test]
async fn only_the_user_and_services_that_may_read_see_a_log() {
    let (api, _) = log_of(1).await;
    for (credential, expected) in [
        (token("101").as_str(), 200),
        (READ_KEY, 200),
        (token("102").as_str(), 403),
        ("key", 403),
        ("guessed", 401),
        ("", 401),
    ] {
        let (status, _, body) = get(&api, credential, "101/notifications").await;
        assert_eq!(status, expected, "{credential:?}: {body}");
        assert_eq!(status == 200, body.get("notifications").is_some(), "{body}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_named() {
    let (api, _) = log_of(1).await;
    for (path, named) in [
        ("101/notifications?limit=0", "limit must be 1 to 500"),
        ("101/notifications?limit=501", "limit must be 1 to 500"),
        ("101/notifications?limit=x", "limit: "),
        ("101/notifications?after=-1", "after: "),
        ("a%00b/notifications", "user holds a control character"),
    ] {
        let (status, _, problem) = get(&api, READ_KEY, path).await;
        assert_eq!(status, 400, "{path}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(named), "{path}: {problem}");
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_said_with_when_to_come_back() {
    let (api, store) = log_of(1).await;
    for call in [Call::Open, Call::Read] {
        store.fail(call, 1);
        let (status, wait, _) = get(&api, READ_KEY, "101/notifications").await;
        assert_eq!((status, wait.as_deref()), (503, Some("1")), "{call:?}");
    }
    assert_eq!(get(&api, READ_KEY, "101/notifications").await.0, 200);
}
