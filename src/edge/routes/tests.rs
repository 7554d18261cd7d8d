//! Whether both ways to an answer give the same one.

use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use super::*;
use crate::{
    auth::{self, Authenticator},
    edge::{
        Config, Limits, Port, TrustedProxies, admission::Admission, flush::Flusher, http::TakeoverSlot,
        registry::Registry,
    },
    ids::{LogEpoch, UserId},
    shard::Shards,
};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

fn auth_config() -> auth::Config {
    auth::Config { hs256_secret: Some(SECRET.into()), leeway: Duration::from_secs(1), ..auth::Config::default() }
}

fn shared() -> Arc<Shared> {
    let second = Duration::from_secs(1);
    let limits = Limits {
        connects_per_second: 0,
        connections_max: 100,
        handshakes_max: 0,
        handshakes_per_address: 0,
        connections_per_address: 0,
        handshake_deadline: second,
    };
    let port = Port { listen: ([127, 0, 0, 1], 0).into(), tls: None, proxy_protocol: false };
    let config = Config {
        client: port.clone(),
        grpc: port,
        allowed_origins: vec!["https://listed.example".into()],
        limits,
        frame_bytes_max: 1024,
        request_bytes_max: 1024,
        queue_items_max: 8,
        queue_bytes_max: 1024,
        heartbeat: second,
        reconnect: second,
        issued_ttl: second,
        epoch: LogEpoch::random(),
        others: OpenApiRouter::new(),
        trusted_proxies: TrustedProxies::default(),
        memory_bytes_max: 0,
    };
    Arc::new(Shared {
        authenticator: Arc::new(Authenticator::new(&auth_config())),
        admission: Admission::new(config.limits.clone()),
        registry: Arc::new(Registry::new(second)),
        flusher: Arc::new(Flusher::default()),
        draining: tokio::sync::watch::Sender::new(false),
        started: Arc::new(crate::store::sessions::MemorySessions::default()),
        shards: Shards::new(Vec::new(), 1),
        config,
    })
}

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
