//! The HTTP API for services: events in, the document, the headers of every answer.

use std::time::{Duration, Instant};

use notifier::proto::ConnectionRequest;
use serde_json::{Value, json};

use crate::harness::{
    Feed, Node,
    broker::Broker,
    command::{CLIENT_DEADLINE, client},
    eventually,
    grpc::Caller,
    http::Response,
    node::Builder,
    process::{Process, command, required},
};

/// A key that may publish.
pub const KEY: &str = "a key of the service billing";

/// A node that knows [`KEY`], and some other keys.
pub fn builder(feed: &Feed) -> Builder {
    Node::builder(feed).api_key("billing", KEY, &["publish"]).api_key("shipping", "another key", &["publish"]).api_key(
        "support",
        "a reader's key",
        &["read", "sessions"],
    )
}

/// Sends events with [`KEY`] and more headers.
pub async fn publish_with(node: &Node, headers: &[(&str, &str)], body: &str) -> Response {
    let own = [("Content-Type", "application/json"), ("X-API-Key", KEY)];
    node.request("POST", "/v1/events", &[&own[..], headers].concat(), body).await
}

/// Sends events with [`KEY`].
pub async fn publish(node: &Node, body: &str) -> Response {
    publish_with(node, &[], body).await
}

/// The ids of events that were accepted.
#[track_caller]
fn ids(answer: &Response) -> Vec<String> {
    assert_eq!(answer.status(), 202, "{answer:?}");
    serde_json::from_value(answer.json()["ids"].clone()).expect("ids")
}

/// The answer to a CORS preflight.
async fn preflight(node: &Node, origin: &str, wanted: &str) -> Response {
    let headers =
        [("Origin", origin), ("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", wanted)];
    node.request("OPTIONS", "/v1/events", &headers, "").await
}

#[tokio::test]
async fn an_accepted_event_is_in_kafka_and_its_payload_arrives_byte_for_byte() {
    let feed = Feed::new(4).await;
    let node = builder(&feed).start().await;
    let mut client = node.connect("101").await;
    let payloads = [
        r#"{"n":9007199254740993,"big":123456789012345678901234567890}"#,
        r#"{"f":1.10,"e":1E400,"z":-0.0,"tiny":1e-999}"#,
        r#"{ "spaces" : [ 1 ,2 ] , "b":2, "a":3, "same":1, "same":2}"#,
        r#"{"escaped":"\u00e9\/\ud83d\ude00\u0000","alone":"\ud800","plain":"é😀"}"#,
        "null",
    ];
    for (n, payload) in payloads.into_iter().enumerate() {
        for id in [String::new(), format!("own-{n}")] {
            let member = if id.is_empty() { String::new() } else { format!(r#","id":"{id}""#) };
            let event = format!(r#"{{"target":101,"type":"t","payload":{payload}{member}}}"#);
            let accepted = ids(&publish(&node, &event).await);
            // The event is in the log already when the answer comes.
            let records = feed.kafka.read_all(&feed.topic).await;
            let last = records.iter().max_by_key(|record| record.offset).expect("a record");
            assert_eq!(last.key.as_deref(), Some(&b"101"[..]));
            if !id.is_empty() {
                assert_eq!((&accepted[0], last.value.as_deref()), (&id, Some(event.as_bytes())));
            }
            let frame = client.one().await;
            assert_eq!((frame.raw(), frame.id.as_ref()), (payload, Some(&accepted[0])));
        }
    }
    let metrics = node.metrics().await;
    assert_eq!(metrics.sum_where("notifier_published_events_total", "outcome", "written"), 10.0);
    assert_eq!(metrics.sum_where("notifier_http_requests_total", "route", "/v1/events"), 10.0);
    assert!(metrics.sum_where("notifier_stage_seconds_count", "stage", "publish") >= 10.0);
}

#[tokio::test]
async fn an_array_keeps_the_order_of_each_user() {
    let feed = Feed::new(4).await;
    let node = builder(&feed).start().await;
    let users = ["a", "b", "c"];
    let mut clients = Vec::new();
    for user in users {
        clients.push(node.connect(user).await);
    }
    let events: Vec<_> =
        (0..999).map(|n| json!({"target": users[n % 3], "type": "t", "payload": {"n": n / 3}})).collect();
    let accepted = ids(&publish(&node, &json!(events).to_string()).await);
    assert_eq!(accepted.len(), events.len());
    for client in &mut clients {
        let frames = client.expect_acked(333).await;
        let numbers: Vec<_> = frames.iter().map(|frame| frame.n()).collect();
        assert_eq!(numbers, (0..333).collect::<Vec<_>>());
    }
    // One user, one partition.
    let records = feed.kafka.read_all(&feed.topic).await;
    for user in users {
        let of_user = records.iter().filter(|record| record.key.as_deref() == Some(user.as_bytes()));
        let partitions: std::collections::HashSet<_> = of_user.map(|record| record.partition).collect();
        assert_eq!(partitions.len(), 1, "{user}");
    }
}

#[tokio::test]
async fn options_and_the_protobufs_mapping_pass_through() {
    let feed = Feed::new(1).await;
    let node = builder(&feed).start().await;
    let mut client = node.connect("101").await;
    let mut other = node.connect("101").await;
    let session = client.hello().session.clone();
    let events = json!([
        {"target": "101", "type": "mine", "session": session, "durability": "inbox"},
        {"userId": "101", "notification": {"notificationType": "mapped", "data": "{\"a\":1.0}"},
            "options": {"durability": "DURABILITY_TRANSIENT", "priority": 2, "collapseKey": "k", "ttl": "3600s"}},
        {"target": "101", "type": "kept", "ttl": "30d", "priority": "low", "collapse_key": "k"},
    ]);
    ids(&publish(&node, &events.to_string()).await);
    let frames = client.expect(3).await;
    let seen: Vec<_> = frames.iter().map(|frame| (frame.kind.as_str(), frame.seq.is_some())).collect();
    assert_eq!(seen, [("mine", false), ("mapped", false), ("kept", true)]);
    assert_eq!(frames[1].raw(), r#"{"a":1.0}"#);
    assert_eq!(other.one().await.kind, "mapped", "the first was for one session");
}

#[tokio::test]
async fn of_an_array_with_a_bad_event_nothing_is_written_and_each_bad_one_is_named() {
    let feed = Feed::new(1).await;
    let node = builder(&feed).set("limits.payload_bytes_max", "1KiB").start().await;
    let long = "x".repeat(1024);
    let events = json!([
        {"target": 101, "type": "good"},
        {"target": "", "type": "t"},
        {"target": 101, "type": "$bye"},
        {"target": 101, "type": "t", "payload": long},
        {"target": 101, "type": "t", "durability": "forever"},
        7,
    ]);
    let answer = publish(&node, &events.to_string()).await;
    answer.problem(400);
    let errors = answer.json()["errors"].as_array().expect("errors").clone();
    let named: Vec<_> = errors
        .iter()
        .map(|error| (error["index"].as_u64().expect("an index"), error["detail"].as_str().expect("a text")))
        .map(|(index, detail)| (index, detail.split(' ').next().unwrap_or_default()))
        .collect();
    assert!(
        errors[2]["detail"].as_str().is_some_and(|detail| detail.contains("limits.payload_bytes_max")),
        "{errors:?}"
    );
    assert_eq!(named, [(1, "target"), (2, "type"), (3, "payload"), (4, "durability"), (5, "not")]);
    assert_eq!(feed.kafka.read_all(&feed.topic).await, []);
}

#[tokio::test]
async fn a_repeated_request_with_an_idempotency_key_is_delivered_once() {
    let feed = Feed::new(2).await;
    let node = builder(&feed).start().await;
    let mut client = node.connect("101").await;
    let events = r#"[{"target":101,"type":"a"},{"target":101,"type":"b"}]"#;
    let first = ids(&publish_with(&node, &[("Idempotency-Key", "\"k-1\"")], events).await);
    // The draft's quoted form and the bare one are the same key.
    let again = ids(&publish_with(&node, &[("Idempotency-Key", "k-1")], events).await);
    assert_eq!(first, again);
    let other_key = ids(&publish_with(&node, &[("Idempotency-Key", "k-2")], events).await);
    let headers = [("Authorization", "Bearer another key"), ("Idempotency-Key", "k-1")];
    let other_caller = ids(&node.request("POST", "/v1/events", &headers, events).await);
    let frames = client.expect(6).await;
    let delivered: Vec<_> = frames.into_iter().filter_map(|frame| frame.id).collect();
    assert_eq!(delivered, [first, other_key, other_caller].concat());
    for bad in ["", "\"open", "with space", &"k".repeat(256), "é"] {
        let answer = publish_with(&node, &[("Idempotency-Key", bad)], events).await;
        answer.problem(400);
        assert!(answer.json()["detail"].as_str().is_some_and(|text| text.contains("Idempotency-Key")), "{answer:?}");
    }
}

#[tokio::test]
async fn only_a_service_that_may_publish_does() {
    let feed = Feed::new(1).await;
    let node = builder(&feed).start().await;
    let event = r#"{"target":101,"type":"t"}"#;
    let (bearer, token) = (format!("Bearer {KEY}"), format!("Bearer {}", node.token("101")));
    let cases: [(&[(&str, &str)], u16); 8] = [
        (&[("Authorization", &bearer)], 202),
        (&[("X-API-Key", KEY)], 202),
        (&[], 401),
        (&[("X-API-Key", "unknown")], 401),
        (&[("Authorization", "Basic YTpi")], 401),
        (&[("Authorization", &token)], 401),
        (&[("Authorization", "Bearer a reader's key")], 403),
        (&[("X-API-Key", "a reader's key")], 403),
    ];
    for (headers, status) in cases {
        let answer = node.request("POST", "/v1/events", headers, event).await;
        assert_eq!(answer.status(), status, "{headers:?}: {answer:?}");
        if status != 202 {
            answer.problem(status);
        }
        assert_eq!(answer.head.header("www-authenticate"), (status == 401).then_some("Bearer"), "{headers:?}");
    }
    assert_eq!(feed.kafka.read_all(&feed.topic).await.len(), 2);
    let log = node.log();
    assert!(!log.contains(KEY) && !log.contains("a reader's key"), "{log}");
}

#[tokio::test]
async fn a_trace_goes_with_the_event_into_kafka() {
    let feed = Feed::new(1).await;
    let node = builder(&feed).start().await;
    let event = r#"{"target":101,"type":"t"}"#;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    ids(&publish_with(&node, &[("traceparent", parent), ("tracestate", "a=1")], event).await);
    ids(&publish_with(&node, &[("traceparent", "nonsense"), ("tracestate", "a=1")], event).await);
    let records = feed.kafka.read_all(&feed.topic).await;
    assert_eq!(records[0].header("traceparent").as_deref(), Some(parent));
    assert_eq!(records[0].header("tracestate").as_deref(), Some("a=1"));
    assert_eq!(records[1].headers, []);
}

#[tokio::test]
async fn a_kafka_that_is_away_gives_503_in_time_and_the_request_can_be_repeated() {
    let mut broker = Broker::started().await;
    let feed = Feed::on(&broker.kafka(), 1).await;
    let node = builder(&feed).start().await;
    let events = r#"[{"target":101,"type":"a"},{"target":101,"type":"b","id":"own"}]"#;
    let key = [("Idempotency-Key", "once")];
    let before = ids(&publish_with(&node, &[], r#"{"target":101,"type":"before"}"#).await);
    broker.kill();
    let began = Instant::now();
    let answer = publish_with(&node, &key, events).await;
    let took = began.elapsed();
    answer.problem(503);
    assert!(took < Duration::from_secs(9), "answered after {took:?}");
    let wait = answer.head.header("retry-after").and_then(|value| value.parse::<u64>().ok());
    assert!(wait.is_some_and(|seconds| seconds >= 1), "{answer:?}");
    let results = answer.json()["results"].as_array().expect("results").clone();
    assert!(results.iter().all(|result| result["state"] == "unconfirmed"), "{answer:?}");
    let named: Vec<_> = results.iter().filter_map(|result| result["id"].as_str()).collect();
    assert_eq!(named[1], "own");

    broker.start().await;
    let again = eventually("an answer of 202", async || {
        let answer = publish_with(&node, &key, events).await;
        (answer.status() == 202).then(|| ids(&answer))
    })
    .await;
    assert_eq!(again, named, "the same ids as before");
    let mut client = node.connect("101").await;
    let delivered: Vec<_> = client.expect(3).await.into_iter().filter_map(|frame| frame.id).collect();
    assert_eq!(delivered, [before, again].concat());
}

#[tokio::test]
async fn what_the_topic_refuses_is_said_and_not_repeated() {
    let feed = Feed::named(&crate::harness::Kafka::shared(), 1);
    feed.kafka.create_topic(&feed.topic, 1, &[("max.message.bytes", "20000")]).await;
    feed.kafka.create_topic(&feed.dead_letter_topic, 1, &[]).await;
    let node = builder(&feed).start().await;
    let event = json!({"target": 101, "type": "t", "payload": "x".repeat(50_000)});
    let answer = publish(&node, &event.to_string()).await;
    answer.problem(413);
    assert_eq!(answer.json()["results"][0]["state"], "too_large");
}

#[tokio::test]
async fn browsers_of_listed_origins_may_publish() {
    let feed = Feed::new(1).await;
    let node = builder(&feed).set("client.allowed_origins", vec!["https://listed.example"]).start().await;
    let wanted = "authorization,content-type,idempotency-key,traceparent,x-api-key";
    let answer = preflight(&node, "https://listed.example", wanted).await;
    assert_eq!(answer.head.header("access-control-allow-origin"), Some("https://listed.example"));
    let allowed = answer.head.header("access-control-allow-headers").unwrap_or_default().to_lowercase();
    for name in wanted.split(',') {
        assert!(allowed.split(',').any(|one| one.trim() == name), "{name} is not in {allowed}");
    }
    let event = r#"{"target":101,"type":"t"}"#;
    let answer = publish_with(&node, &[("Origin", "https://listed.example")], event).await;
    ids(&answer);
    assert_eq!(answer.head.header("access-control-allow-origin"), Some("https://listed.example"));
    assert_eq!(
        answer.head.header("access-control-expose-headers"),
        Some("grpc-status,grpc-message,grpc-retry-pushback-ms,retry-after")
    );
    let foreign = publish_with(&node, &[("Origin", "https://foreign.example")], event).await;
    foreign.problem(403);
    assert_eq!(foreign.head.header("access-control-allow-origin"), None);
    let refused = preflight(&node, "https://foreign.example", wanted).await;
    assert_eq!(refused.head.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn every_answer_has_the_security_headers() {
    let feed = Feed::new(1).await;
    let node = builder(&feed).start().await;
    let origin = [("Origin", "https://foreign.example")];
    let big = "x".repeat(2 << 20);
    let none: &[(&str, &str)] = &[];
    let requests = [
        ("GET", "/", none, "", 200),
        ("GET", "/openapi.json", none, "", 200),
        ("GET", "/nothing", none, "", 404),
        ("GET", "/v1/connect", none, "", 426),
        ("GET", "/v1/stream", none, "", 401),
        ("PUT", "/v1/events", none, "", 405),
        ("POST", "/v1/events", none, "{}", 401),
        ("POST", "/v1/events", none, &big, 413),
        ("GET", "/v1/stream", &origin, "", 403),
    ];
    for (method, path, headers, body, status) in requests {
        let answer = node.request(method, path, headers, body).await;
        assert_eq!(answer.status(), status, "{method} {path}: {:?}", answer.head);
        let header = |name| answer.head.header(name);
        assert_eq!(header("x-content-type-options"), Some("nosniff"), "{method} {path}");
        assert_eq!(header("referrer-policy"), Some("no-referrer"), "{method} {path}");
        assert_eq!(header("cache-control"), Some("no-store"), "{method} {path}");
        assert!(header("content-security-policy").is_some_and(|value| value.contains("default-src 'none'")), "{path}");
        assert_eq!(header("strict-transport-security"), None, "there is no TLS");
    }
    let stream = node.stream("101", "").await;
    assert_eq!(stream.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(stream.header("cache-control"), Some("no-store, no-transform"));
}

#[tokio::test]
async fn who_shows_the_wrong_kind_of_credential_hears_which_is_wanted_and_not_which_exist() {
    let feed = Feed::new(1).await;
    let node = builder(&feed).start().await;
    let detail = async |method, path, credential: &str| {
        let bearer = format!("Bearer {credential}");
        let headers = [("Authorization", bearer.as_str())];
        let answer = node.request(method, path, if credential.is_empty() { &[] } else { &headers }, "").await;
        answer.problem(401);
        answer.json()["detail"].as_str().expect("a text").to_owned()
    };
    let event = async |credential| detail("POST", "/v1/events", credential).await;
    let token = node.token("101");
    assert!(event(&token).await.contains("an API key is wanted"));
    assert_eq!(event(&token).await, event("x.y.z").await, "good or not");
    assert!(event("").await.starts_with("an API key is required: Authorization"));
    let stream = async |credential| detail("GET", "/v1/stream", credential).await;
    assert!(stream(KEY).await.contains("a user's token (a JWT) is wanted"));
    assert_eq!(stream(KEY).await, stream("no key").await, "known or not");
    assert!(stream("").await.contains("?access_token="));
    assert!(detail("GET", "/v1/users/101/sessions", "").await.starts_with("a token or an API key is required"));
    // What is peculiar to HTTP is of no use to a caller of gRPC.
    let caller = Caller::native(node.grpc_addr());
    let refused = caller.connect(ConnectionRequest::default(), &[]).await.err().expect("no token");
    assert_eq!(refused.message(), "a token is required, as metadata: authorization, Bearer");
    let refused = caller.start("101", &[]).await.expect_err("no credential");
    assert_eq!(refused.message(), "a token or an API key is required, as metadata: authorization, Bearer");
}

/// The routes of a document, as `get /path`.
fn routes(document: &Value) -> Vec<String> {
    let paths = document["paths"].as_object().expect("paths").iter();
    let methods = |item: &Value| item.as_object().expect("an item").keys().cloned().collect::<Vec<_>>();
    paths.flat_map(|(path, item)| methods(item).into_iter().map(move |method| format!("{method} {path}"))).collect()
}

#[tokio::test]
async fn the_document_has_every_route_and_is_valid() {
    let feed = Feed::new(1).await;
    let node = builder(&feed).start().await;
    let answer = node.request("GET", "/openapi.json", &[], "").await;
    assert_eq!(answer.status(), 200);
    let document = answer.json();
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1.")), "{document}");
    let routes = routes(&document);
    for route in ["get /", "get /openapi.json", "get /v1/connect", "get /v1/stream", "post /v1/events"] {
        assert!(routes.iter().any(|one| one == route), "{route} is not among {routes:?}");
    }
    for route in &routes {
        let (method, path) = route.split_once(' ').expect("a method and a path");
        let path =
            ["{session}", "{user}", "{id}"].iter().fold(path.to_owned(), |path, part| path.replace(part, "none"));
        let answer = node.request(&method.to_uppercase(), &path, &[], "").await;
        let is_there = answer.status() != 405 && !answer.body.contains("there is nothing at this path");
        assert!(is_there, "{route} is documented and not served: {answer:?}");
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("openapi.json");
    std::fs::write(&file, answer.body).expect("a writable directory");
    let mut validator = command(required("NOTIFIER_TEST_PYTHON"));
    validator.args(["-m", "openapi_spec_validator", "--schema", "3.1"]).arg(&file);
    Process::run("openapi-spec-validator", validator, CLIENT_DEADLINE).await.ok();
}

/// The examples of the document are what they say.
#[tokio::test]
async fn the_documents_examples_are_accepted() {
    let feed = Feed::new(1).await;
    let node = builder(&feed).start().await;
    let document = node.request("GET", "/openapi.json", &[], "").await.json();
    let content = &document["paths"]["/v1/events"]["post"]["requestBody"]["content"]["application/json"];
    let examples = content["examples"].as_object().expect("examples");
    assert!(examples.len() >= 3, "{content}");
    for example in examples.values().map(|example: &Value| &example["value"]) {
        ids(&publish(&node, &example.to_string()).await);
    }
}

#[tokio::test]
async fn schemathesis_finds_nothing() {
    let feed = Feed::new(1).await;
    let node = builder(&feed).start().await;
    let python = std::path::PathBuf::from(required("NOTIFIER_TEST_PYTHON"));
    let mut command = command(python.with_file_name("schemathesis"));
    command.arg("--config-file").arg(client("schemathesis.toml"));
    command.args(["run", &format!("{}/openapi.json", node.http_url()), "--checks", "all", "--no-color"]);
    // In this header: in the other one it would stay beside the wrong credentials that schemathesis tries.
    command.args(["--header", &format!("Authorization: Bearer {KEY}")]);
    // It keeps what it has found in its directory.
    let dir = tempfile::tempdir().expect("a temporary directory");
    command.current_dir(dir.path());
    let finished = Process::run("schemathesis", command, 3 * CLIENT_DEADLINE).await;
    assert!(finished.status.success(), "{}", finished.stdout);
    // Without the document itself, which it leaves out.
    let all = routes(&node.request("GET", "/openapi.json", &[], "").await.json()).len() - 1;
    assert!(finished.stdout.contains(&format!("Tested: {all}")), "{}", finished.stdout);
    assert_eq!(node.metrics().await.sum("notifier_dead_letters_total"), 0.0);
}
