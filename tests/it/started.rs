//! Sessions that are started ahead of their connection, over HTTP and gRPC.

use serde_json::json;
use tonic::Code;

use crate::harness::{
    Event, Feed, Node,
    carrier::{Ask, Carrier, open},
    grpc::Caller,
    http::Response,
    node::Builder,
    token::now_secs,
    wait::eventually,
};

/// SHA-256 of `support-key`, `billing-key` and `reader-key`.
const SUPPORT: &str = "de1f42d15cf84e4d393062ea022c4597b925098a52e2fc3f46ae2319c789c856";
const BILLING: &str = "1360cf85a9cad115d1274ab6188bd172ec443505e7be006c723e74bcacd284a0";
const READER: &str = "ec4408df15da46b328f6f3246fa723d0aa6cb0f0a0dd9c4626080ab1b02aa3b2";

fn with_keys(builder: Builder) -> Builder {
    let key = |name: &str, sha256: &str, scope: &str| {
        toml::Value::Table(toml::toml! { name = name
        sha256 = sha256
        scopes = [scope] })
    };
    let keys = [("support", SUPPORT, "sessions"), ("billing", BILLING, "publish"), ("reader", READER, "read")];
    builder.set("auth.api_keys", keys.map(|(name, hash, scope)| key(name, hash, scope)).to_vec())
}

async fn start(node: &Node, credential: &str, body: &str) -> Response {
    let bearer = format!("Bearer {credential}");
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    node.request("POST", "/v1/sessions", &headers, body).await
}

async fn started(node: &Node, user: &str) -> String {
    let answer = start(node, &node.token(user), "").await;
    assert_eq!(answer.status(), 201, "{answer:?}");
    answer.json()["session_id"].as_str().expect("an id").to_owned()
}

async fn asked(node: &Node, method: &str, path: &str, credential: &str) -> Response {
    let bearer = format!("Bearer {credential}");
    node.request(method, path, &[("Authorization", bearer.as_str())], "").await
}

#[tokio::test]
async fn a_started_session_connects_on_every_protocol_until_it_is_ended() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    for carrier in Carrier::ALL {
        let user = format!("{carrier:?}");
        let session = started(&node, &user).await;
        let ask = Ask::session(&session);
        let mut client = open(&node, carrier, &ask).await.expect("a started session connects");
        assert_eq!((&client.hello().session, &client.hello().user), (&session, &user), "{carrier:?}");
        feed.send(&Event::new(&user, "for-all")).await;
        feed.send(&Event::new(&user, "for-it").session(&session).transient()).await;
        let kinds: Vec<_> = client.expect(2).await.into_iter().map(|frame| frame.kind).collect();
        assert_eq!(kinds, ["for-all", "for-it"], "{carrier:?}");

        let path = format!("/v1/users/{user}/sessions/{session}");
        assert_eq!(asked(&node, "DELETE", &path, &node.token(&user)).await.status(), 204);
        assert_eq!(client.bye().await, 4003, "{carrier:?}");
        assert_eq!(open(&node, carrier, &ask).await.err(), Some(401), "{carrier:?}: ended");
        eventually("nothing left to end", async || {
            (asked(&node, "DELETE", &path, &node.token(&user)).await.status() == 404).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_session_serves_the_newest_of_its_connections() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let ask = Ask::session(&started(&node, "101").await);
    let mut earlier = open(&node, Carrier::WebSocketJson, &ask).await.expect("connects");
    let mut later = open(&node, Carrier::Grpc, &ask).await.expect("connects");
    assert_eq!(earlier.bye().await, 4003);
    feed.send(&Event::new("101", "to-the-later")).await;
    assert_eq!(later.expect(1).await[0].kind, "to-the-later");
    later.ack(1).await.expect("the later one is the session's");
}

#[tokio::test]
async fn the_end_of_one_session_is_not_the_end_of_its_users_others() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let (one, other) = (started(&node, "101").await, started(&node, "101").await);
    let mut connected = open(&node, Carrier::Sse, &Ask::token(&node.token("101"))).await.expect("connects");
    let end = async |session: &str| {
        let path = format!("/v1/users/101/sessions/{session}");
        asked(&node, "DELETE", &path, &node.token("101")).await.status()
    };
    assert_eq!(end(&one).await, 204);
    assert_eq!((end(&one).await, end("x").await), (404, 404), "nothing left to end");
    feed.send(&Event::new("101", "still-here").transient()).await;
    assert_eq!(connected.expect(1).await[0].kind, "still-here");
    open(&node, Carrier::WebSocketJson, &Ask::session(&other)).await.expect("it was not ended");
}

#[tokio::test]
async fn a_started_session_expires_and_ends_its_connection_and_no_log_holds_it() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("sessions.issued_ttl", "3s").env("NOTIFIER_LOG", "debug").start().await;
    let (one, other) = (started(&node, "101").await, started(&node, "101").await);
    let mut client = open(&node, Carrier::WebSocketJson, &Ask::session(&one)).await.expect("connects");
    assert_eq!(client.bye().await, 4001);
    assert_eq!(open(&node, Carrier::Grpc, &Ask::session(&other)).await.err(), Some(401));
    let log = node.log();
    assert!(!log.contains(&one) && !log.contains(&other), "{log}");
}

#[tokio::test]
async fn a_service_starts_lists_and_ends_sessions_of_any_user_within_its_scope() {
    let feed = Feed::new(1).await;
    let node = with_keys(Node::builder(&feed)).start().await;
    let answer = start(&node, "support-key", r#"{"user":"101"}"#).await;
    assert_eq!(answer.status(), 201, "{answer:?}");
    let session = answer.json()["session_id"].as_str().expect("an id").to_owned();
    let expires = answer.json()["expires_at_ms"].as_u64().expect("a time") / 1000;
    assert!((now_secs() + 86_000..now_secs() + 86_500).contains(&expires), "a day: {expires}");
    let phone = Ask { device: Some("phone".into()), ..Ask::token(&node.token("101")) };
    let mut direct = open(&node, Carrier::Sse, &phone).await.expect("connects");

    let path = "/v1/users/101/sessions";
    let list = asked(&node, "GET", path, "support-key").await.json();
    assert_eq!(asked(&node, "GET", path, "reader-key").await.json(), list, "who may read may look");
    asked(&node, "DELETE", path, "reader-key").await.problem(403);
    let mut list = list["sessions"].as_array().expect("sessions").clone();
    list.iter_mut().for_each(|one| drop(one.as_object_mut().expect("an object").remove("expires_at_ms")));
    let expected = [
        json!({"session": direct.hello().session, "connected": true, "protocol": "sse", "device": "phone"}),
        json!({"session": session, "connected": false}),
    ];
    assert_eq!(list, expected);

    assert_eq!(asked(&node, "DELETE", path, "support-key").await.status(), 204);
    assert_eq!(direct.bye().await, 4003);
    assert_eq!(open(&node, Carrier::WebSocketJson, &Ask::session(&session)).await.err(), Some(401));
    eventually("no session left", async || {
        let list = asked(&node, "GET", path, "support-key").await.json();
        (list == json!({"sessions": []})).then_some(())
    })
    .await;

    start(&node, "billing-key", r#"{"user":"101"}"#).await.problem(403);
    start(&node, "support-key", "").await.problem(400);
    start(&node, "another-key", r#"{"user":"101"}"#).await.problem(401);
    start(&node, "support-key", r#"{"user":""}"#).await.problem(400);
    start(&node, "support-key", r#"{"user":"101","ttl":"1h"}"#).await.problem(400);
    start(&node, "support-key", "{").await.problem(400);
    asked(&node, "GET", path, "billing-key").await.problem(403);
    asked(&node, "DELETE", path, &node.token("102")).await.problem(403);
}

#[tokio::test]
async fn a_user_starts_lists_and_ends_its_own_sessions_only() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let session = started(&node, "101").await;
    start(&node, &node.token("101"), r#"{"user":"102"}"#).await.problem(403);
    for (method, path) in [
        ("GET", "/v1/users/101/sessions".to_owned()),
        ("DELETE", "/v1/users/101/sessions".to_owned()),
        ("DELETE", format!("/v1/users/101/sessions/{session}")),
    ] {
        asked(&node, method, &path, &node.token("102")).await.problem(403);
        asked(&node, method, &path, "").await.problem(401);
    }
    for carrier in Carrier::ALL {
        let theirs = Ask { user: Some("102".into()), ..Ask::session(&session) };
        assert_eq!(open(&node, carrier, &theirs).await.err(), Some(403), "{carrier:?}");
        let other_token = Ask { token: Some(node.token("102")), ..Ask::session(&session) };
        assert_eq!(open(&node, carrier, &other_token).await.err(), Some(403), "{carrier:?}");
        let own = Ask { user: Some("101".into()), token: Some(node.token("101")), ..Ask::session(&session) };
        assert!(open(&node, carrier, &own).await.is_ok(), "{carrier:?}");
    }
}

#[tokio::test]
async fn grpc_starts_and_ends_sessions_as_http_does() {
    let feed = Feed::new(1).await;
    let node = with_keys(Node::builder(&feed)).start().await;
    let own = format!("Bearer {}", node.token("101"));
    let other = format!("Bearer {}", node.token("102"));
    for caller in [Caller::native(node.grpc_addr()), Caller::web(node.addr())] {
        let session = caller.start("", &[("authorization", &own)]).await.expect("for itself").session_id;
        let mut client = open(&node, Carrier::WebSocketJson, &Ask::session(&session)).await.expect("connects");
        let code = |answer: Result<(), tonic::Status>| answer.expect_err("refused").code();
        assert_eq!(code(caller.end(&session, "101", &[("authorization", &other)]).await), Code::PermissionDenied);
        assert_eq!(code(caller.end(&session, "", &[("authorization", &other)]).await), Code::PermissionDenied);
        assert_eq!(code(caller.end(&session, "101", &[]).await), Code::Unauthenticated);
        caller.end(&session, "", &[("authorization", &own)]).await.expect("its own");
        assert_eq!(client.bye().await, 4003);

        let by_key = [("x-api-key", "support-key")];
        let answer = caller.start("103", &by_key).await.expect("a service may");
        assert!(answer.expires_at.expect("a time").seconds > now_secs() as i64);
        caller.end(&answer.session_id, "", &by_key).await.expect("a service may");
        assert_eq!(code(caller.end(&answer.session_id, "", &by_key).await), Code::NotFound);
        let refused = caller.start("103", &[("x-api-key", "billing-key")]).await.expect_err("another scope");
        assert_eq!(refused.code(), Code::PermissionDenied);
        let refused = caller.start("102", &[("authorization", &own)]).await.expect_err("another user");
        assert_eq!(refused.code(), Code::PermissionDenied);
        let refused = caller.start("", &by_key).await.expect_err("for nobody");
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_user_cannot_start_sessions_without_end() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    for _ in 0..100 {
        started(&node, "101").await;
    }
    start(&node, &node.token("101"), "").await.problem(429);
    started(&node, "102").await;
    assert_eq!(asked(&node, "DELETE", "/v1/users/101/sessions", &node.token("101")).await.status(), 204);
    started(&node, "101").await;
}
