//! What is answered when there is no room, and what a drain waits for.

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use http_body_util::BodyExt as _;
use sha2::Digest as _;
use tower::ServiceExt as _;

use super::*;
use crate::{
    auth::{self, ApiKey, Scope, Service},
    store::tests::FaultyStore,
};

const KEY: &str = "key";
/// A key that may read.
pub(super) const READ_KEY: &str = "another key";
/// A key that may act for users.
pub(super) const SESSIONS_KEY: &str = "a third key";
pub(super) const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const BODY_BYTES_MAX: usize = 1024;

/// An API whose Kafka is nowhere.
fn api(in_flight_bytes: usize) -> Api {
    api_with(in_flight_bytes, &[])
}

/// The same with properties of its producer.
fn api_with(in_flight_bytes: usize, properties: &[(&str, &str)]) -> Api {
    start(in_flight_bytes, properties, FaultyStore::new(10))
}

/// The same on a store.
pub(super) fn start(in_flight_bytes: usize, properties: &[(&str, &str)], store: Arc<dyn Store>) -> Api {
    start_with(in_flight_bytes, properties, store, Shards::new(Vec::new(), 1))
}

/// The same with users.
pub(super) fn start_with(
    in_flight_bytes: usize,
    properties: &[(&str, &str)],
    store: Arc<dyn Store>,
    shards: Shards,
) -> Api {
    let key = |key: &str, name: &str, scope| {
        let service = Arc::new(Service { name: name.into(), scopes: vec![scope] });
        ApiKey { sha256: sha2::Sha256::digest(key).into(), service }
    };
    let api_keys = vec![
        key(KEY, "billing", Scope::Publish),
        key(READ_KEY, "support", Scope::Read),
        key(SESSIONS_KEY, "gateway", Scope::Sessions),
    ];
    let config = auth::Config { hs256_secret: Some(SECRET.into()), api_keys, ..auth::Config::default() };
    let authenticator = Authenticator::new(&config);
    let mut producer = ClientConfig::new();
    producer.set("bootstrap.servers", "127.0.0.1:1");
    for (name, value) in properties {
        producer.set(*name, *value);
    }
    let config = Config {
        producer,
        topic: "events".into(),
        payload_bytes_max: 64,
        request_bytes_max: BODY_BYTES_MAX,
        body_deadline: Duration::from_secs(1),
        publish_deadline: Duration::from_millis(50),
        in_flight_bytes,
        in_flight_events: batch::EVENTS_MAX,
    };
    let (fatal, _) = tokio::sync::mpsc::unbounded_channel();
    Api::start(config, Arc::new(authenticator), (store, shards), fatal).unwrap()
}

/// Status, `Retry-After` and the problem's detail.
async fn post(api: &Api, body: impl Into<Body>) -> (StatusCode, Option<String>, String) {
    let request = Request::post("/v1/events").header("x-api-key", KEY).body(body.into()).unwrap();
    let response = axum::Router::from(api.routes()).oneshot(request).await.unwrap();
    let status = response.status();
    let wait = response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, wait, String::from_utf8(body.to_vec()).unwrap())
}

const EVENT: &str = r#"{"target":1,"type":"t"}"#;

#[tokio::test]
async fn without_room_for_a_body_nothing_is_read_and_the_caller_is_told_to_come_back() {
    let api = api(2 * BODY_BYTES_MAX);
    let held = api.0.in_flight.bytes(2 * BODY_BYTES_MAX - EVENT.len() + 1).unwrap();
    // A body that would never end.
    let endless = Body::from_stream(futures_util::stream::pending::<Result<bytes::Bytes, std::convert::Infallible>>());
    for body in [Body::from(EVENT), endless] {
        let (status, wait, detail) = post(&api, body).await;
        assert_eq!((status, wait.as_deref()), (StatusCode::SERVICE_UNAVAILABLE, Some("1")), "{detail}");
        assert!(detail.contains("too many"), "{detail}");
    }
    drop(held);
    assert_eq!(post(&api, "{}").await.0, StatusCode::BAD_REQUEST);
    // What was held is given back.
    assert!(api.0.in_flight.bytes(2 * BODY_BYTES_MAX).is_ok());
}

#[tokio::test]
async fn without_room_for_events_nothing_is_written() {
    let api = api(BODY_BYTES_MAX);
    let held = api.0.in_flight.events(batch::EVENTS_MAX).unwrap();
    let (status, wait, detail) = post(&api, EVENT).await;
    assert_eq!((status, wait.as_deref()), (StatusCode::SERVICE_UNAVAILABLE, Some("1")), "{detail}");
    assert!(!detail.contains("results"), "{detail}");
    drop(held);
}

#[tokio::test]
async fn a_kafka_that_is_nowhere_is_an_answer_with_the_events_ids() {
    let api = api(BODY_BYTES_MAX);
    let (status, wait, detail) = post(&api, r#"{"target":1,"type":"t","id":"mine"}"#).await;
    assert_eq!((status, wait.as_deref()), (StatusCode::SERVICE_UNAVAILABLE, Some("5")), "{detail}");
    assert!(detail.contains(r#""results":[{"id":"mine","state":"unconfirmed"}]"#), "{detail}");
    // The answer did not wait for librdkafka, which looks once a second; until then the event is under way.
    assert_eq!(api.0.in_flight.events(batch::EVENTS_MAX).err(), Some(publish::NoRoom::Full));
    tokio::time::timeout(Duration::from_secs(30), api.settled()).await.unwrap();
}

#[tokio::test]
async fn behind_an_event_that_is_not_handed_over_none_is() {
    use publish::Outcome::{NotWritten, Unconfirmed};
    // Room for small events only.
    let api = api_with(BODY_BYTES_MAX, &[("queue.buffering.max.kbytes", "1")]);
    let item = |bytes| batch::Item {
        user: crate::fakes::user(),
        id: crate::ids::NotificationId::time_ordered(),
        value: "x".repeat(bytes),
    };
    let items = [10, 900, 900, 10].map(item).into();
    let (results, _) = api.0.publisher.write(items, &trace_context::TraceContext::default()).await;
    let states: Vec<_> = results.iter().map(publish::ItemResult::state).collect();
    assert_eq!(states, [Unconfirmed, Unconfirmed, NotWritten, NotWritten]);
}

#[tokio::test]
async fn a_drain_refuses_requests_and_waits_for_what_is_under_way() {
    let api = api(BODY_BYTES_MAX);
    let held = api.0.in_flight.events(1).unwrap();
    api.refuse();
    let (status, wait, detail) = post(&api, EVENT).await;
    assert_eq!((status, wait.as_deref()), (StatusCode::SERVICE_UNAVAILABLE, Some("1")), "{detail}");
    assert!(detail.contains("going away"), "{detail}");
    let mut settled = std::pin::pin!(api.settled());
    assert!(futures_util::poll!(&mut settled).is_pending());
    drop(held);
    settled.await;
    assert_eq!(api.0.in_flight.events(1).err(), Some(publish::NoRoom::Closed));
}

#[tokio::test]
async fn a_body_above_the_limit_is_not_read_to_its_end() {
    let api = api(BODY_BYTES_MAX);
    let pieces = std::iter::repeat_n(Ok::<_, std::convert::Infallible>(bytes::Bytes::from("[1,")), BODY_BYTES_MAX);
    let body = Body::from_stream(futures_util::stream::iter(pieces));
    assert_eq!(post(&api, body).await.0, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let api = api(BODY_BYTES_MAX);
    tokio::time::pause();
    let endless = Body::from_stream(futures_util::stream::pending::<Result<bytes::Bytes, std::convert::Infallible>>());
    assert_eq!(post(&api, endless).await.0, StatusCode::REQUEST_TIMEOUT);
}
