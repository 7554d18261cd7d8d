//! The client port as an HTTP server: the page, and problem details on every error.

use crate::harness::{Feed, Node};

async fn node() -> Node {
    Node::start(&Feed::new(1).await).await
}

#[tokio::test]
async fn the_page_is_served_without_external_resources() {
    let node = node().await;
    let page = node.request("GET", "/", &[], "").await;
    assert_eq!(page.status(), 200);
    assert!(page.head.header("content-type").is_some_and(|value| value.starts_with("text/html")));
    assert!(page.head.header("content-security-policy").is_some(), "{:?}", page.head);
    assert!(page.body.contains("id=\"status\""), "{}", page.body);
    assert!(!page.body.contains("{{"), "a placeholder was left");
}

#[tokio::test]
async fn unknown_paths_are_problems_with_404() {
    let node = node().await;
    for path in ["/nothing", "/v1", "/v1/nothing", "/v2/connect", "/metrics", "/%00", "/..%2f"] {
        node.request("GET", path, &[], "").await.problem(404);
    }
}

#[tokio::test]
async fn what_only_dev_offers_is_absent() {
    let node = node().await;
    node.request("GET", "/dev/token?user=101", &[], "").await.problem(404);
}

#[tokio::test]
async fn wrong_methods_are_problems_with_405_that_say_what_is_allowed() {
    let node = node().await;
    for (method, path, allowed) in [
        ("POST", "/v1/connect", "GET"),
        ("DELETE", "/v1/stream", "GET"),
        ("GET", "/v1/sessions/some/ack", "POST"),
        ("POST", "/", "GET"),
    ] {
        let answer = node.request(method, path, &[], "").await;
        answer.problem(405);
        let allow = answer.head.header("allow").unwrap_or_default();
        assert!(allow.split(',').any(|name| name.trim() == allowed), "{path}: Allow: {allow}");
    }
}

#[tokio::test]
async fn bad_parameters_are_problems_with_400() {
    let node = node().await;
    let authorization = format!("Bearer {}", node.token("101"));
    let headers = [("Authorization", authorization.as_str())];
    let long = "d".repeat(257);
    for device in [long.as_str(), "a%00b", "a%E2%80%AEb", "%FF", ""] {
        let path = format!("/v1/stream?device={device}");
        node.request("GET", &path, &headers, "").await.problem(400);
    }
}

#[tokio::test]
async fn a_websocket_path_without_a_websocket_is_a_problem() {
    let node = node().await;
    let authorization = format!("Bearer {}", node.token("101"));
    let answer = node.request("GET", "/v1/connect", &[("Authorization", &authorization)], "").await;
    answer.problem(426);
    assert_eq!(answer.head.header("upgrade"), Some("websocket"), "{answer:?}");
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused() {
    let node = node().await;
    let body = format!("{{\"ack\":{}}}", "1".repeat(2 << 20));
    let json = [("Content-Type", "application/json")];
    node.request("POST", "/v1/sessions/some/ack", &json, &body).await.problem(413);
}
