//! Tail against a server that is played by hand, over real sockets.

use std::time::{Duration, Instant};

use self::server::{Server, Tail, args, config, hello, notification, soon};
use super::*;

mod server;

fn usage_of(flags: &[&str], config: &Config) -> String {
    let printer = Printer::new(Vec::new(), Format::Json);
    follower(args(flags), config, printer).err().expect("it is refused").0
}

#[test]
fn bad_arguments_are_refused_by_name() {
    assert!(usage_of(&["--user", ""], &config()).contains("--user"));
    assert!(usage_of(&["--device", "a\nb"], &config()).contains("--device"));
    assert!(usage_of(&["--since", "12"], &config()).contains("--since"));
    assert!(usage_of(&["--url", "ftp://a"], &config()).contains("--url"));
    assert!(usage_of(&["--url", "wss://a", "--ca-file", "/nowhere/ca"], &config()).contains("--ca-file /nowhere/ca"));
    assert!(usage_of(&["--url", "ws://a", "--ca-file", "ca.pem"], &config()).contains("--ca-file"));
    assert!(usage_of(&[], &Config::default()).contains("auth.jwt.hs256_secret"));
}

#[tokio::test]
async fn a_websocket_is_acknowledged_and_resumes_after_what_was_printed() {
    let server = Server::start().await;
    let mut tail = Tail::start(&server, &["--device", "my phone"]);
    let mut first = server.websocket().await;
    assert_eq!(first.target, "/v1/connect?device=my%20phone");
    assert!(first.authorization.starts_with("Bearer ey"), "{}", first.authorization);
    first.say(&hello("k3f9", 25_000)).await;
    for seq in [1, 2] {
        first.say(&notification(seq)).await;
    }
    first.say(r#"{"target":"101","type":"typing","payload":0}"#).await;
    assert!(tail.timeless().await.starts_with("-  $hello  {"));
    assert_eq!(tail.timeless().await, "#1  t  {\"n\":1}");
    assert_eq!(tail.timeless().await, "#2  t  {\"n\":2}");
    assert_eq!(tail.timeless().await, "-  typing  0");
    while first.hear().await != r#"{"ack":2}"# {}
    first.cut();

    let mut second = server.websocket().await;
    assert_eq!(second.target, "/v1/connect?device=my%20phone&since=k3f9-2");
    second.say(&hello("k3f9", 25_000)).await;
    second.say(r#"{"type":"$gap","payload":{"from":3,"to":4,"reason":"expired"}}"#).await;
    second.say(&notification(5)).await;
    assert!(tail.timeless().await.starts_with("-  $hello"));
    assert_eq!(tail.timeless().await, "-  $gap  {\"from\":3,\"to\":4,\"reason\":\"expired\"}");
    assert_eq!(tail.timeless().await, "#5  t  {\"n\":5}");
    // Sooner than the next acknowledgement is due.
    let stopped = tail.stop();
    assert_eq!(second.hear().await, r#"{"ack":5}"#);
    second.ended().await;
    soon(stopped).await.unwrap().unwrap();
}

#[tokio::test]
async fn server_sent_events_are_acknowledged_by_requests_and_resume() {
    let server = Server::start().await;
    let mut tail = Tail::start(&server, &["--protocol", "sse", "--json", "--since", "k3f9-3"]);
    let mut first = server.stream().await;
    assert!(first.head.starts_with("get /v1/stream?since=k3f9-3 http/1.1\r\n"), "{}", first.head);
    assert!(first.head.contains("authorization: bearer ey"), "{}", first.head);
    first.write(&format!("event: $hello\ndata: {}\n\n:\n\n", hello("k3f9", 25_000))).await;
    // A payload with a line break is two lines of data; the rest arrives in pieces.
    first.write("id: k3f9-4\ndata: {\"type\":\"t\",\"payload\":[1.0,\ndata: 2],\"seq\"").await;
    first.write(":4}\n\n").await;
    assert_eq!(tail.line().await, hello("k3f9", 25_000));
    assert_eq!(tail.line().await, r#"{"type":"t","payload":[1.0, 2],"seq":4}"#);
    let acknowledgement = server.request().await;
    assert!(acknowledgement.head.starts_with("post /v1/sessions/s1/ack http/1.1\r\n"), "{}", acknowledgement.head);
    assert_eq!(acknowledgement.body, r#"{"ack":4}"#);
    acknowledgement.answer("204 No Content", "", "").await;
    drop(first);

    let mut second = server.stream().await;
    assert!(second.head.starts_with("get /v1/stream?since=k3f9-4 http/1.1\r\n"), "{}", second.head);
    second.write(&format!("data: {}\n\ndata: {}\n\n", hello("k3f9", 25_000), notification(7))).await;
    assert_eq!(tail.line().await, hello("k3f9", 25_000));
    assert_eq!(tail.line().await, notification(7));
    let stopped = tail.stop();
    let acknowledgement = server.request().await;
    assert_eq!(acknowledgement.body, r#"{"ack":7}"#);
    acknowledgement.answer("204 No Content", "", "").await;
    soon(stopped).await.unwrap().unwrap();
}

#[tokio::test]
async fn without_acknowledging_nothing_is_said_and_nothing_printed_twice() {
    let server = Server::start().await;
    let mut tail = Tail::start(&server, &["--no-ack", "--json"]);
    for first in [true, false] {
        let mut socket = server.websocket().await;
        assert_eq!(socket.target, "/v1/connect", "since would acknowledge");
        socket.say(&hello("k3f9", 25_000)).await;
        socket.say(&notification(1)).await;
        if first {
            tail.line().await;
            assert_eq!(tail.line().await, notification(1));
            socket.cut();
        } else {
            socket.say(&notification(2)).await;
            tail.line().await;
            assert_eq!(tail.line().await, notification(2));
            let stopped = tail.stop();
            socket.ended().await;
            return soon(stopped).await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn the_wait_that_bye_names_is_kept_on_both_protocols() {
    const WAIT: Duration = Duration::from_millis(400);
    const BYE: &str = r#"{"type":"$bye","payload":{"code":1001,"reason":"draining","reconnect_ms":400}}"#;
    let server = Server::start().await;
    let tail = Tail::start(&server, &[]);
    let mut socket = server.websocket().await;
    socket.say(&hello("k3f9", 25_000)).await;
    socket.say(BYE).await;
    let began = Instant::now();
    socket.close(1001, "draining").await;
    server.websocket().await;
    assert!(began.elapsed() >= WAIT, "{:?}", began.elapsed());
    drop(tail);

    let server = Server::start().await;
    let _tail = Tail::start(&server, &["--protocol", "sse"]);
    let mut stream = server.stream().await;
    let began = Instant::now();
    stream.write(&format!("data: {}\n\ndata: {BYE}\n\n", hello("k3f9", 25_000))).await;
    drop(stream);
    server.stream().await;
    assert!(began.elapsed() >= WAIT, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_replaced_session_ends_with_the_reason() {
    let server = Server::start().await;
    let tail = Tail::start(&server, &[]);
    let mut socket = server.websocket().await;
    socket.say(&hello("k3f9", 25_000)).await;
    socket.close(4003, "replaced by a newer session").await;
    let error = tail.end().await.unwrap_err().to_string();
    assert!(error.contains("4003") && error.contains("replaced by a newer session"), "{error}");
}

#[tokio::test]
async fn an_expired_token_is_renewed_only_where_it_was_made_here() {
    let server = Server::start().await;
    let tail = Tail::start(&server, &[]);
    let mut socket = server.websocket().await;
    socket.say(&hello("k3f9", 25_000)).await;
    socket.close(4001, "expired").await;
    assert!(server.websocket().await.authorization.starts_with("Bearer ey"));
    drop(tail);

    let server = Server::start().await;
    let tail = Tail::start(&server, &["--token", "a.b.c"]);
    let mut socket = server.websocket().await;
    assert_eq!(socket.authorization, "Bearer a.b.c");
    socket.say(&hello("k3f9", 25_000)).await;
    socket.close(4001, "expired").await;
    assert!(tail.end().await.unwrap_err().to_string().contains("4001"));
}

#[tokio::test]
async fn a_refused_token_is_final_and_an_overload_is_waited_for() {
    for protocol in ["websocket", "sse"] {
        let server = Server::start().await;
        let tail = Tail::start(&server, &["--protocol", protocol]);
        let busy = server.request().await;
        let began = Instant::now();
        busy.answer("503 Service Unavailable", "retry-after: 1\r\n", "").await;
        let unauthorized = server.request().await;
        assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
        unauthorized
            .answer("401 Unauthorized", "", r#"{"title":"Unauthorized","detail":"the token has expired"}"#)
            .await;
        let error = tail.end().await.unwrap_err().to_string();
        assert_eq!(error, "the server refused: the token has expired (401)");
    }
}

#[tokio::test]
async fn only_so_much_of_an_error_is_read_and_printed() {
    for (length, told) in [(60_000, true), (70_000, false)] {
        let server = Server::start().await;
        let tail = Tail::start(&server, &[]);
        let detail = "x".repeat(length);
        server.request().await.answer("400 Bad Request", "", &format!(r#"{{"detail":"{detail}"}}"#)).await;
        let error = tail.end().await.unwrap_err().to_string();
        let expected = if told { &*detail } else { "Bad Request" };
        assert!(error == format!("the server refused: {expected} (400)"), "{length}: {} bytes", error.len());
    }
}

#[tokio::test]
async fn what_is_no_notifier_server_is_named_and_not_tried_again() {
    for protocol in ["websocket", "sse"] {
        let server = Server::start().await;
        let tail = Tail::start(&server, &["--protocol", protocol]);
        server.request().await.answer("200 OK", "content-type: text/html\r\n", "<html>").await;
        let error = tail.end().await.unwrap_err().to_string();
        assert!(error.starts_with("this is no notifier server"), "{error}");
    }
}

#[tokio::test]
async fn a_silent_server_is_left_for_a_new_connection() {
    for protocol in ["websocket", "sse"] {
        let server = Server::start().await;
        let _tail = Tail::start(&server, &["--protocol", protocol]);
        let began = Instant::now();
        if protocol == "sse" {
            let mut silent = server.stream().await;
            silent.write(&format!("data: {}\n\n", hello("k3f9", 100))).await;
            server.stream().await;
        } else {
            let mut silent = server.websocket().await;
            silent.say(&hello("k3f9", 100)).await;
            server.websocket().await;
        }
        assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_comment_is_a_sign_of_life() {
    let server = Server::start().await;
    let endpoint = Endpoint::parse(&server.url()).unwrap();
    let client = Arc::new(http::Server { endpoint, credentials: Credentials::given("a.b.c").unwrap(), tls: None });
    let wanted = connection::Wanted { device: None, since: None };
    let (stream, opened) = tokio::join!(server.stream(), sse::Sse::open(&client, &wanted));
    let (mut stream, mut opened) = (stream, opened.unwrap());
    // `retry:`, which comes with the head.
    assert!(matches!(soon(opened.next()).await, Ok(connection::Received::SignOfLife)));
    stream.write(":\n\n").await;
    assert!(matches!(soon(opened.next()).await, Ok(connection::Received::SignOfLife)));
}

#[tokio::test]
async fn a_token_of_another_user_is_not_followed() {
    let server = Server::start().await;
    let tail = Tail::start(&server, &["--user", "102", "--token", "a.b.c"]);
    let mut socket = server.websocket().await;
    socket.say(&hello("k3f9", 25_000)).await;
    let error = tail.end().await.unwrap_err().to_string();
    assert_eq!(error, "--user is 102, but the token is for 101");
}

#[tokio::test]
async fn it_ends_quietly_when_nobody_reads_its_output_any_more() {
    let server = Server::start().await;
    let tail = Tail::start(&server, &[]);
    let mut socket = server.websocket().await;
    let ended = tail.stop_reading();
    socket.say(&hello("k3f9", 25_000)).await;
    socket.ended().await;
    soon(ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_connect_that_is_cut_before_its_answer_is_tried_again() {
    for protocol in ["websocket", "sse"] {
        let server = Server::start().await;
        let tail = Tail::start(&server, &["--protocol", protocol]);
        drop(server.request().await);
        drop(server.request().await);
        soon(tail.stop()).await.unwrap().unwrap();
    }
}
