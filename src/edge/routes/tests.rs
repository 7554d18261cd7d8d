//! Whether both ways to an answer give the same one, and what a request may cost before it is known who asks.

use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use super::*;
use crate::{
    auth,
    edge::{
        Carrier,
        fakes::{SECRET, auth_config, shared, shared_with},
        http::TakeoverSlot,
    },
    ids::UserId,
    shard::Shards,
    store::{
        Answer,
        sessions::{Started, StartedSessions, Starting},
    },
};

fn request(path: &str, headers: &[(HeaderName, &str)]) -> Request {
    let upgrade = [("host", "same.example"), ("connection", "Upgrade"), ("upgrade", "websocket")];
    let key = [("sec-websocket-version", "13"), ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")];
    let mut request = http::Request::get(path);
    for (name, value) in upgrade.into_iter().chain(key) {
        request = request.header(name, value);
    }
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    request.body(Body::empty()).unwrap()
}

async fn seen(response: Response) -> (StatusCode, Vec<(String, HeaderValue)>, Bytes) {
    let (head, body) = response.into_parts();
    // What is written of a length is hyper's decision.
    let headers = head.headers.iter().filter(|(name, _)| *name != header::CONTENT_LENGTH);
    let mut headers: Vec<_> = headers.map(|(name, value)| (name.to_string(), value.clone())).collect();
    headers.sort();
    // What becomes a session has a body that never ends.
    let body = if head.status.is_success() { Bytes::new() } else { body.collect().await.unwrap().to_bytes() };
    (head.status, headers, body)
}

#[tokio::test]
async fn the_direct_way_answers_as_the_router_does() {
    let shared = shared();
    let router = router(shared.clone());
    let user = UserId::new("u").unwrap();
    let (token, _) = auth::issue(&user, Duration::from_secs(60), &auth_config(), SECRET).unwrap();
    let bearer = format!("Bearer {token}");
    let mut sessions = 0;
    for path in ["/v1/connect", "/v1/stream", "/v1/connect?since=x", "/v1/stream?events=x", "/v1/stream?device=%FF"] {
        for authorization in [bearer.as_str(), "Bearer x", ""] {
            for origin in [None, Some("https://listed.example"), Some("https://same.example")] {
                let origin = origin.map(|origin| (header::ORIGIN, origin));
                let headers: Vec<_> = origin.into_iter().chain([(header::AUTHORIZATION, authorization)]).collect();
                let (direct_slot, routed_slot) = (TakeoverSlot::default(), TakeoverSlot::default());
                let directly =
                    direct(&shared, &request(path, &headers), &direct_slot).expect("it is the usual request");
                let mut routed = request(path, &headers);
                routed.extensions_mut().insert(routed_slot.clone());
                let routed = router.clone().oneshot(routed).await.unwrap();
                assert_eq!(seen(directly).await, seen(routed).await, "{path} {headers:?}");
                let (taken, also) = (direct_slot.lock().is_some(), routed_slot.lock().is_some());
                assert_eq!(taken, also, "{path} {headers:?}");
                sessions += usize::from(taken);
            }
        }
    }
    assert_eq!(sessions, 6, "both protocols, from each origin, with the good token only");
}

#[tokio::test]
async fn a_handshake_of_another_version_is_no_handshake() {
    for (version, status) in [("13", StatusCode::UNAUTHORIZED), ("8", StatusCode::BAD_REQUEST)] {
        let mut request = request("/v1/connect", &[]);
        request.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static(version));
        assert_eq!(answered(shared(), request).await, status, "{version}");
    }
}

#[test]
fn what_may_be_refused_does_not_go_directly() {
    let (shared, slot) = (shared(), TakeoverSlot::default());
    let foreign = request("/v1/connect", &[(header::ORIGIN, "https://foreign.example")]);
    assert!(direct(&shared, &foreign, &slot).is_none());
    assert!(direct(&shared, &request("/v1/other", &[]), &slot).is_none());
    let with_body = http::Request::get("/v1/stream").body(Body::from("x")).unwrap();
    assert!(direct(&shared, &with_body, &slot).is_none());
    let started = request("/v1/connect?session_id=x", &[]);
    assert!(direct(&shared, &started, &slot).is_none(), "who it is has to be looked up");
    let head = http::Request::head("/v1/stream").body(Body::empty()).unwrap();
    assert!(direct(&shared, &head, &slot).is_none());
}

/// What the router answers to a request of a stranger.
async fn answered(shared: Arc<Shared>, request: Request) -> StatusCode {
    let mut request = request;
    request.extensions_mut().insert(TakeoverSlot::default());
    request.extensions_mut().insert(Carrier::default());
    router(shared).oneshot(request).await.unwrap().status()
}

/// One after the other, as a body whose length nobody has announced.
fn pieces(bytes: usize) -> Body {
    let pieces = vec![Ok::<_, std::convert::Infallible>(Bytes::from_static(&[b' '; 1024])); bytes / 1024];
    Body::from_stream(futures_util::stream::iter(pieces))
}

#[tokio::test]
async fn a_body_that_is_longer_than_its_route_needs_is_refused_announced_or_not() {
    let web = "/atlas.notifier.v1.Notifier/Acknowledge";
    for (path, bytes, refused) in [
        ("/v1/sessions", 4 * 1024, false),
        ("/v1/sessions", 5 * 1024, true),
        ("/v1/sessions/x/ack", 5 * 1024, true),
        (web, 64 * 1024, false),
        (web, 65 * 1024, true),
    ] {
        let post = || http::Request::post(path).header(header::CONTENT_TYPE, "application/grpc-web+proto");
        let announced = post().header(header::CONTENT_LENGTH, bytes).body(pieces(bytes)).unwrap();
        let status = answered(shared(), announced).await;
        assert_eq!(status == StatusCode::PAYLOAD_TOO_LARGE, refused, "{path} {bytes}: {status}");
        if path != web {
            let status = answered(shared(), post().body(pieces(bytes)).unwrap()).await;
            assert_eq!(status == StatusCode::PAYLOAD_TOO_LARGE, refused, "{path} {bytes}, unannounced: {status}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stops_coming_is_waited_for_as_long_as_a_handshake() {
    let shared = shared();
    let deadline = shared.admission.limits.handshake_deadline;
    let begun = tokio::time::Instant::now();
    let silent = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::convert::Infallible>>());
    let status = answered(shared, http::Request::post("/v1/sessions").body(silent).unwrap()).await;
    assert!(status.is_client_error(), "{status}");
    assert_eq!(begun.elapsed().as_secs(), deadline.as_secs());
}

/// A store of started sessions that never answers.
struct Silent;

impl StartedSessions for Silent {
    fn start(&self, _: Started) -> Answer<'_, Starting> {
        Box::pin(std::future::pending())
    }
    fn find(&self, _: SessionId) -> Answer<'_, Option<Started>> {
        Box::pin(std::future::pending())
    }
    fn of_user<'a>(&'a self, _: &'a UserId) -> Answer<'a, Vec<Started>> {
        Box::pin(std::future::pending())
    }
    fn end(&self, _: SessionId) -> Answer<'_, bool> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test(start_paused = true)]
async fn no_request_waits_for_ever_for_what_does_not_answer() {
    let shared = shared_with(Arc::new(Silent), Shards::new(Vec::new(), 1));
    let path = format!("/v1/connect?session_id={}", SessionId::random());
    let status = tokio::time::timeout(Duration::from_secs(60), answered(shared, request(&path, &[]))).await;
    assert_eq!(status.expect("an answer"), StatusCode::REQUEST_TIMEOUT);
}

#[tokio::test]
async fn a_foreign_origin_may_ask_for_nothing_that_is_for_clients() {
    let foreign = "https://foreign.example";
    for origin in [foreign, "null", "https://same.example.foreign.example", "https://listed.example.foreign.example"] {
        for (method, path, is_for_clients) in [
            ("GET", "/v1/connect", true),
            ("GET", "/v1/stream", true),
            ("POST", "/v1/sessions", true),
            ("POST", "/v1/sessions/x/ack", true),
            ("GET", "/v1/users/u/sessions", true),
            ("DELETE", "/v1/users/u/sessions", true),
            ("POST", "/atlas.notifier.v1.Notifier/Connect", true),
            ("POST", "/atlas.notifier.v1.CommandHandler/EndUserSession", true),
            ("GET", "/", false),
        ] {
            let request = http::Request::builder().method(method).uri(path).header(header::HOST, "same.example");
            let request = request.header(header::ORIGIN, origin).body(Body::empty()).unwrap();
            let status = answered(shared(), request).await;
            assert_eq!(status == StatusCode::FORBIDDEN, is_for_clients, "{origin}: {method} {path}: {status}");
        }
    }
}

#[tokio::test]
async fn only_a_listed_origin_may_read_an_answer() {
    for (origin, may) in [("https://listed.example", true), ("https://same.example", false), ("null", false)] {
        let preflight = http::Request::options("/v1/sessions").header(header::HOST, "same.example");
        let preflight = preflight.header(header::ORIGIN, origin).header("access-control-request-method", "POST");
        let answer = router(shared()).oneshot(preflight.body(Body::empty()).unwrap()).await.unwrap();
        let allowed = answer.headers().get(header::ACCESS_CONTROL_ALLOW_ORIGIN);
        assert_eq!(allowed.map(HeaderValue::as_bytes), may.then_some(origin.as_bytes()), "{origin}");
    }
}
