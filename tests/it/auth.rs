//! Who gets in, how the token travels, and what happens when it expires.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Event, Feed, Node,
    sse::SseClient,
    token::{self, SECRET, now_secs, signed},
    ws::Connect,
};

/// How long after its expiry a session may still be open: the contract's second, and a busy machine.
const EXPIRY_SLACK: Duration = Duration::from_millis(2_500);

/// Checks that a token opens nothing, on both protocols.
async fn assert_refused(node: &Node, what: &str, token: Option<&str>) {
    let connect = match token {
        Some(token) => Connect::bearer(node.addr(), token),
        None => Connect::anonymous(node.addr()),
    };
    let refused = connect.refused().await;
    assert_eq!(refused.status, 401, "{what}");
    assert_eq!(refused.content_type, "application/problem+json", "{what}");
    let authorization = format!("Bearer {}", token.unwrap_or_default());
    let headers = [("Authorization", authorization.as_str())];
    let headers = if token.is_some() { &headers[..] } else { &[] };
    SseClient::refused(node.addr(), "", headers).await.problem(401);
}

#[tokio::test]
async fn bad_tokens_are_refused_with_401() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let later = now_secs() + 3600;
    let claims = |claims: Value| signed(&claims, SECRET);
    let good = node.token("101");
    let (unsigned, _) = good.rsplit_once('.').expect("three parts");
    // {"alg":"none","typ":"JWT"}
    let none = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{}.", good.split('.').nth(1).expect("claims"));
    let tokens = [
        ("garbage", "not.a.token".to_owned()),
        ("empty", String::new()),
        ("another secret", signed(&json!({"sub": "101", "exp": later}), &"x".repeat(40))),
        ("expired", claims(json!({"sub": "101", "exp": now_secs() - 60}))),
        ("not yet valid", claims(json!({"sub": "101", "exp": later, "nbf": later - 60}))),
        ("no exp", claims(json!({"sub": "101"}))),
        ("no sub", claims(json!({"exp": later}))),
        ("empty sub", claims(json!({"sub": "", "exp": later}))),
        ("exp is text", claims(json!({"sub": "101", "exp": "tomorrow"}))),
        ("sub breaks the rules", claims(json!({"sub": "a\u{202E}b", "exp": later}))),
        ("no signature", format!("{unsigned}.")),
        ("algorithm none", none),
        ("another algorithm", token::signed_hs512("101")),
    ];
    assert_refused(&node, "no token", None).await;
    for (what, token) in &tokens {
        assert_refused(&node, what, Some(token)).await;
    }
    let rejected = node.metrics().await.sum("notifier_rejected_connections_total");
    assert!(rejected >= 2.0 * tokens.len() as f64, "counted {rejected}");
    node.connect("101").await;
}

#[tokio::test]
async fn issuer_and_audience_are_checked_when_they_are_configured() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed)
        .set("auth.jwt.issuer", "https://id.example")
        .set("auth.jwt.audience", "notifier")
        .start()
        .await;
    let with = |issuer: &str, audience: &str| {
        let claims = json!({"sub": "101", "exp": now_secs() + 60, "iss": issuer, "aud": audience});
        signed(&claims, SECRET)
    };
    Connect::bearer(node.addr(), &with("https://id.example", "notifier")).open().await;
    assert_refused(&node, "issuer", Some(&with("https://other.example", "notifier"))).await;
    assert_refused(&node, "audience", Some(&with("https://id.example", "other"))).await;
    assert_refused(&node, "neither", Some(&node.token("101"))).await;
}

#[tokio::test]
async fn a_token_that_expires_ends_its_session_with_4001() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("auth.jwt.leeway", "0s").start().await;
    let expiry = now_secs() + 4;
    let token = signed(&json!({"sub": "101", "exp": expiry}), SECRET);
    let left = Duration::from_secs(4); // at most: the clock's fraction of a second is cut off
    let started = Instant::now();
    let mut client = Connect::bearer(node.addr(), &token).open().await;
    let authorization = format!("Bearer {token}");
    let mut stream = SseClient::open(node.addr(), "device=b", &[("Authorization", &authorization)]).await;
    let mut lasting = node.connect("101").await;
    feed.send(&Event::new("101", "before")).await;
    assert_eq!(client.one().await.kind, "before");

    assert_eq!(client.close_code().await, 4001);
    let open = started.elapsed();
    assert!(open >= left - Duration::from_millis(1_200), "closed {open:?} after the start");
    assert!(open <= left + EXPIRY_SLACK, "still open {open:?} after the start");
    let bye = stream.rest().await.pop().expect("a last event").frame();
    assert_eq!((bye.kind.as_str(), &bye.payload()["code"]), ("$bye", &4001.into()));

    assert_eq!(lasting.one().await.kind, "before");
    feed.send(&Event::new("101", "after")).await;
    assert_eq!(lasting.one().await.kind, "after");
}

#[tokio::test]
async fn leeway_is_granted_to_an_expired_token_at_connect() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("auth.jwt.leeway", "1h").start().await;
    let token = signed(&json!({"sub": "101", "exp": now_secs() - 60}), SECRET);
    Connect::bearer(node.addr(), &token).open().await;
}

#[tokio::test]
async fn a_token_may_travel_in_the_query() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let token = node.token("101");
    let client = Connect::anonymous(node.addr()).query("access_token", &token).open().await;
    assert_eq!(client.hello().user, "101");
    assert!(!node.log().contains(&token), "a token was logged");
}

#[tokio::test]
async fn a_token_may_travel_as_a_subprotocol_and_is_never_sent_back() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let token = node.token("101");
    let offer = format!("notifier.v1.json, notifier.token.{token}");
    let client = Connect::anonymous(node.addr()).header("Sec-WebSocket-Protocol", &offer).open().await;
    assert_eq!(client.header("sec-websocket-protocol"), Some("notifier.v1.json"));
    assert_eq!(client.hello().user, "101");
    assert!(!node.log().contains(&token), "a token was logged");
}

#[tokio::test]
async fn foreign_origins_are_refused_and_the_own_one_is_not() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let refused = ["http://evil.example", "null", &format!("http://{}.evil.example", node.addr())];
    for origin in refused {
        let answer = node.ws("101").header("Origin", origin).refused().await;
        assert_eq!((answer.status, answer.content_type.as_str()), (403, "application/problem+json"));
    }
    node.ws("101").header("Origin", &node.http_url()).open().await;
    node.ws("101").open().await;
}

#[tokio::test]
async fn allowed_origins_are_let_in() {
    let feed = Feed::new(1).await;
    let allowed = vec![toml::Value::from("https://app.example")];
    let node = Node::builder(&feed).set("client.allowed_origins", allowed).start().await;
    node.ws("101").header("Origin", "https://app.example").open().await;
    let answer = node.ws("101").header("Origin", "https://app.example.evil").refused().await;
    assert_eq!(answer.status, 403);
}
