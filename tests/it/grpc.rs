//! The gRPC port and gRPC-Web as other people's clients see them.

use std::{net::SocketAddr, time::Duration};

use notifier::proto::AcknowledgeRequest;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Code;

use crate::harness::{
    Event, Feed, Node,
    carrier::{Ask, Carrier, open},
    certs::Certs,
    command::{CLIENT_DEADLINE, browser, gotool, json_lines, notifications, python},
    grpc::Caller,
    http,
    http2::{PREFACE, boundless_connect},
    process::{Finished, Process},
    wait::{eventually, eventually_within, within},
};

async fn grpcurl(target: SocketAddr, arguments: &[&str]) -> Finished {
    let mut command = gotool("grpcurl");
    command.args(["-plaintext", "-max-time", "20"]);
    let target = target.to_string();
    let (options, method) = arguments.split_at(arguments.len() - 1);
    command.args(options).arg(target).args(method);
    Process::run("grpcurl", command, CLIENT_DEADLINE).await
}

fn texts(lines: &[Value]) -> Vec<&str> {
    lines.iter().filter_map(|line| line["type"].as_str()).collect()
}

#[tokio::test]
async fn pythons_grpcio_connects_by_reflection_acknowledges_and_resumes() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    feed.send_all(&(0..20).map(|n| Event::numbered("101", n)).collect::<Vec<_>>()).await;
    node.settled(20).await;
    let run = async |more: &[&str]| {
        let mut command = python("stream.py");
        command.arg(node.grpc_addr().to_string()).arg(node.token("101")).args(more);
        Process::run("stream.py", command, CLIENT_DEADLINE).await.ok()
    };
    let output = run(&["20", "--ack"]).await;
    let hello = json_lines(&output)[0].clone();
    assert_eq!(hello["type"], "$hello");
    let numbers: Vec<_> = notifications(&output).iter().filter_map(|line| line["payload"]["n"].as_u64()).collect();
    assert_eq!(numbers, (0..20).collect::<Vec<_>>());
    assert_eq!(node.connect("101").await.hello().cursor, 20);
    feed.send(&Event::new("101", "more")).await;
    let since = format!("{}-20", hello["payload"]["epoch"].as_str().expect("an epoch"));
    assert_eq!(texts(&notifications(&run(&["1", "--since", &since]).await)), ["more"]);
}

#[tokio::test]
async fn grpcurl_lists_describes_checks_and_calls() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let listed = grpcurl(node.grpc_addr(), &["list"]).await.ok();
    for service in ["atlas.notifier.v1.Notifier", "atlas.notifier.v1.CommandHandler", "grpc.health.v1.Health"] {
        assert!(listed.lines().any(|line| line == service), "{service} in {listed}");
    }
    let described = Process::run(
        "grpcurl",
        {
            let mut command = gotool("grpcurl");
            command.args(["-plaintext", &node.grpc_addr().to_string(), "describe", "atlas.notifier.v1.Notifier"]);
            command
        },
        CLIENT_DEADLINE,
    )
    .await
    .ok();
    assert!(described.contains("rpc Connect"), "{described}");
    for service in ["", "atlas.notifier.v1.Notifier"] {
        let data = json!({ "service": service }).to_string();
        let health = grpcurl(node.grpc_addr(), &["-d", &data, "grpc.health.v1.Health/Check"]).await.ok();
        assert!(health.contains("SERVING"), "{health}");
    }
    let authorization = format!("authorization: Bearer {}", node.token("101"));
    let started =
        grpcurl(node.grpc_addr(), &["-H", &authorization, "atlas.notifier.v1.CommandHandler/StartUserSession"]).await;
    assert!(started.ok().contains("sessionId"));
    let refused = grpcurl(node.grpc_addr(), &["atlas.notifier.v1.CommandHandler/StartUserSession"]).await;
    assert!(refused.stderr.contains("Unauthenticated"), "{refused:?}");
    let unknown = grpcurl(node.grpc_addr(), &["atlas.notifier.v1.Notifier/Nothing"]).await;
    assert_ne!(unknown.code(), 0, "{unknown:?}");
}

#[tokio::test]
async fn connect_web_receives_and_acknowledges_on_a_page_of_an_allowed_origin() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("client.allowed_origins", vec!["*"]).start().await;
    feed.send_all(&(0..9).map(|n| Event::numbered("101", n)).collect::<Vec<_>>()).await;
    node.settled(9).await;
    let mut command = browser("grpcweb.mjs");
    command.arg(node.http_url()).arg(node.token("101")).args(["9", "--ack"]);
    let output = Process::run("grpcweb.mjs", command, CLIENT_DEADLINE).await.ok();
    let numbers: Vec<_> = notifications(&output).iter().filter_map(|line| line["payload"]["n"].as_u64()).collect();
    assert_eq!(numbers, (0..9).collect::<Vec<_>>());
    assert_eq!(node.connect("101").await.hello().cursor, 9);
}

#[tokio::test]
async fn a_page_of_another_origin_gets_nothing_over_grpc_web() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut command = browser("grpcweb.mjs");
    command.arg(node.http_url()).arg(node.token("101")).arg("0");
    let finished = Process::run("grpcweb.mjs", command, CLIENT_DEADLINE).await;
    assert_eq!(finished.code(), 1, "{finished:?}");
    assert_eq!(texts(&json_lines(&finished.stdout)), ["$closed"]);
    let authorization = format!("Bearer {}", node.token("101"));
    let headers = [
        ("Authorization", authorization.as_str()),
        ("Origin", "http://page.test"),
        ("Content-Type", "application/grpc-web+proto"),
    ];
    let empty = "\0\0\0\0\0";
    node.request("POST", "/atlas.notifier.v1.Notifier/Connect", &headers, empty).await.problem(403);
}

#[tokio::test]
async fn heartbeats_keep_a_quiet_stream_alive_and_a_silent_peer_is_found() {
    let feed = Feed::new(1).await;
    let builder = Node::builder(&feed).set("sessions.heartbeat", "1s").set("limits.handshake_deadline", "300s");
    let node = builder.start().await;
    let authorization = format!("Bearer {}", node.token("101"));
    for caller in [Caller::native(node.grpc_addr()), Caller::web(node.addr())] {
        let mut client = caller.connect(Default::default(), &[("authorization", &authorization)]).await.expect("open");
        client.hello().await;
        tokio::time::sleep(Duration::from_millis(3500)).await;
        feed.send(&Event::new("101", "after").transient()).await;
        assert_eq!(client.message().await.expect("a message").expect("one").kind, "after");
        assert!(client.heartbeats >= 2, "{}", client.heartbeats);
    }
    // It speaks HTTP/2 and then never answers a ping: 1 s until one is sent, 20 s to answer it. (Strangers have longer.)
    let mut silent = TcpStream::connect(node.grpc_addr()).await.expect("connects");
    silent.write_all(PREFACE).await.expect("written");
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(60), silent.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "closed");
}

#[tokio::test]
async fn requests_and_streams_of_a_connection_are_bounded() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let authorization = format!("Bearer {}", node.token("101"));
    let headers = [("authorization", authorization.as_str())];
    for caller in [Caller::native(node.grpc_addr()), Caller::web(node.addr())] {
        let long = notifier::proto::ConnectionRequest { device: "d".repeat(20_000), ..Default::default() };
        let refused = caller.connect(long, &headers).await.err().expect("refused");
        assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
        let huge = "x".repeat(100_000);
        // An answer without gRPC's own status shows with the first message.
        let headers = [headers[0], ("x-huge", &huge)];
        let refused = match caller.connect(Default::default(), &headers).await {
            Ok(mut client) => client.message().await.is_err(),
            Err(_) => true,
        };
        assert!(refused, "a huge header");
    }
    // The 257th stream of one connection waits until another has ended: `open` would not return.
    let caller = Caller::native(node.grpc_addr());
    let mut streams = Vec::new();
    for n in 0..256 {
        let authorization = format!("Bearer {}", node.token(&format!("user-{n}")));
        let headers = [("authorization", authorization.as_str())];
        streams.push(caller.connect(Default::default(), &headers).await.expect("within the limit"));
    }
    let one_more = caller.connect(Default::default(), &headers);
    let mut one_more = std::pin::pin!(one_more);
    assert!(tokio::time::timeout(Duration::from_secs(2), &mut one_more).await.is_err(), "it waits");
    streams.pop();
    within("a place that became free", one_more).await.expect("let in");
}

#[tokio::test]
async fn strangers_are_sent_away_at_the_deadline_whatever_they_ask_and_clients_are_not() {
    let feed = Feed::new(1).await;
    let builder = Node::builder(&feed).set("limits.handshake_deadline", "2s").set("limits.connections_max", 1000);
    let node = builder.start().await;
    let mut client = open(&node, Carrier::Grpc, &Ask::token(&node.token("101"))).await.expect("open");
    let data = ["-d", "{}", "grpc.health.v1.Health/Watch"];
    let watching = tokio::time::timeout(Duration::from_secs(15), grpcurl(node.grpc_addr(), &data)).await;
    assert_ne!(watching.expect("the connection is closed").code(), 0);
    let page = http::get(node.addr(), "/").await;
    assert_eq!(page.status(), 200);
    let mut kept = TcpStream::connect(node.addr()).await.expect("connects");
    kept.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").await.expect("written");
    let mut all = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(15), kept.read_to_end(&mut all)).await;
    assert!(ended.is_ok() && all.starts_with(b"HTTP/1.1 200"), "answered, and closed");
    // Who was refused is a stranger still, whoever it said to be.
    let mut refused = TcpStream::connect(node.addr()).await.expect("connects");
    let request = "POST /v1/sessions HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer x\r\nContent-Length: 0\r\n\r\n";
    refused.write_all(request.as_bytes()).await.expect("written");
    let mut all = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(15), refused.read_to_end(&mut all)).await;
    assert!(ended.is_ok() && all.starts_with(b"HTTP/1.1 401"), "answered, and closed");
    let connections = async || {
        let used = node.metrics().await.sum_where("notifier_capacity_ratio", "resource", "connections");
        (used * 1000.0).round()
    };
    // The client's connection, and its stream.
    eventually("nobody but the client", async || (connections().await == 2.0).then_some(())).await;
    let caller = Caller::native(node.grpc_addr());
    let refused = caller.connect(Default::default(), &[("authorization", "Bearer x")]).await.err().expect("refused");
    assert_eq!((refused.code(), connections().await), (Code::Unauthenticated, 3.0));
    eventually("its end", async || (connections().await == 2.0).then_some(())).await;
    drop(caller);
    feed.send(&Event::new("101", "still-here")).await;
    assert_eq!(client.expect(1).await[0].kind, "still-here");
}

#[tokio::test]
async fn a_client_that_announces_room_and_reads_nothing_makes_the_node_hold_little() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("sessions.slow_deadline", "1s").start().await;
    let mut deaf = TcpStream::connect(node.grpc_addr()).await.expect("connects");
    deaf.write_all(&boundless_connect(&node.token("101"))).await.expect("written");
    eventually("the stream", async || (node.metrics().await.sum("notifier_connections") == 1.0).then_some(())).await;
    let large = json!("x".repeat(60_000)).to_string();
    let events: Vec<_> = (0..400).map(|_| Event::new("101", "large").data(&large).transient()).collect();
    feed.send_all(&events).await;
    // What it has not taken counts as not taken, and not as sent.
    node.metric_reaches("notifier_slow_consumers_total", 1.0).await;
}

#[tokio::test]
async fn another_users_token_acknowledges_nothing() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let (own, other) = ["101", "102"].map(|user| format!("Bearer {}", node.token(user))).into();
    let native = Caller::native(node.grpc_addr());
    let mut client = native.connect(Default::default(), &[("authorization", &own)]).await.expect("open");
    let session_id = client.hello().await.session;
    feed.send(&Event::new("101", "t")).await;
    client.message().await.expect("a message");
    let path = format!("/v1/sessions/{session_id}/ack");
    node.request("POST", &path, &[("Authorization", &other)], r#"{"ack":1}"#).await.problem(403);
    let request = AcknowledgeRequest { session_id, sequence: 1 };
    for caller in [&native, &Caller::web(node.addr())] {
        let refused = caller.acknowledge(request.clone(), &[("authorization", &other)]).await.expect_err("refused");
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
    assert_eq!(node.connect("101").await.hello().cursor, 0);
    native.acknowledge(request, &[("authorization", &own)]).await.expect("its own");
    node.acknowledged("101", 1).await;
}

#[tokio::test]
async fn sessions_on_one_connection_count_as_connections() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("limits.connections_max", 4).start().await;
    let authorization = format!("Bearer {}", node.token("101"));
    let headers = [("authorization", authorization.as_str())];
    let caller = Caller::native(node.grpc_addr());
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(caller.connect(Default::default(), &headers).await.expect("there is room"));
    }
    let refused = caller.connect(Default::default(), &headers).await.err().expect("the node is full");
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.metadata().contains_key("grpc-retry-pushback-ms"), "{refused:?}");
    assert!(node.metrics().await.sum_where("notifier_rejected_connections_total", "reason", "connections") >= 1.0);
    streams.pop();
    eventually("room", async || caller.connect(Default::default(), &headers).await.ok().map(drop)).await;
}

#[tokio::test]
async fn a_slow_reader_of_a_stream_loses_nothing_and_harms_nobody() {
    let feed = Feed::new(1).await;
    let builder = Node::builder(&feed).set("sessions.window_items", 1000).set("log.ack_deadline", "120s");
    let node = builder.start().await;
    for carrier in [Carrier::Grpc, Carrier::GrpcWeb] {
        let user = format!("{carrier:?}");
        let mut slow = open(&node, carrier, &Ask::token(&node.token(&user))).await.expect("open");
        let mut other = open(&node, carrier, &Ask::token(&node.token("other"))).await.expect("open");
        let large = json!({ "n": 0, "x": "x".repeat(20_000) }).to_string();
        let mut events: Vec<_> = (0..300u64)
            .map(|n| Event::numbered(&user, n).data(&large.replacen("\"n\":0", &format!("\"n\":{n}"), 1)))
            .collect();
        events.push(Event::new("other", "undisturbed").transient());
        feed.send_all(&events).await;
        assert_eq!(other.expect(1).await[0].kind, "undisturbed");
        tokio::time::sleep(Duration::from_secs(1)).await;
        for n in 0..300 {
            let frame = slow.expect(1).await.remove(0);
            assert_eq!(frame.n(), n, "{carrier:?}");
            if n % 50 == 49 {
                slow.ack(frame.number()).await.expect("sent");
            }
        }
    }
}

#[tokio::test]
async fn a_stream_that_nobody_reads_ends_with_its_connection() {
    let feed = Feed::new(1).await;
    let node = Node::builder(&feed).set("sessions.slow_deadline", "1s").start().await;
    let authorization = format!("Bearer {}", node.token("101"));
    let headers = [("authorization", authorization.as_str())];
    // More than the windows of HTTP/2, or the kernel's buffers, and what the node queues: the stream's end has no room.
    let large = json!("x".repeat(60_000)).to_string();
    let events: Vec<_> = (0..400).map(|_| Event::new("101", "large").data(&large).transient()).collect();
    for (caller, slow) in [(Caller::native(node.grpc_addr()), 1.0), (Caller::web(node.addr()), 2.0)] {
        let mut unread = caller.connect(Default::default(), &headers).await.expect("open");
        feed.send_all(&events).await;
        node.metric_reaches("notifier_slow_consumers_total", slow).await;
        // Not only the session ends: its connection does, and the place that it takes is free, before TCP gives up (30 s).
        eventually_within(Duration::from_secs(20), "a free place", async || {
            let used = node.metrics().await.sum_where("notifier_capacity_ratio", "resource", "connections");
            (used == 0.0).then_some(())
        })
        .await;
        assert_ne!(unread.rest().await.1, Code::Ok, "it was cut off");
    }
}

#[tokio::test]
async fn health_says_not_serving_while_the_node_drains() {
    let feed = Feed::new(1).await;
    let mut node = Node::builder(&feed).set("drain.deadline", "20s").set("drain.goodbyes_per_second", 1).start().await;
    let authorization = format!("Bearer {}", node.token("101"));
    let headers = [("authorization", authorization.as_str())];
    let caller = Caller::native(node.grpc_addr());
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(caller.connect(Default::default(), &headers).await.expect("open"));
    }
    let watching = grpcurl(node.grpc_addr(), &["-d", "{}", "grpc.health.v1.Health/Watch"]);
    let mut watching = std::pin::pin!(watching);
    assert!(tokio::time::timeout(Duration::from_secs(3), &mut watching).await.is_err(), "it watches");
    let mut idle = TcpStream::connect(node.grpc_addr()).await.expect("connects");
    idle.write_all(PREFACE).await.expect("written");
    node.process().signal("TERM");
    // Who has no stream learns that no further one is taken (RFC 9113, 6.8), and goes elsewhere.
    within("GOAWAY", async {
        loop {
            let mut head = [0; 9];
            idle.read_exact(&mut head).await.expect("a frame");
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            tokio::io::copy(&mut (&mut idle).take(length.into()), &mut tokio::io::sink()).await.expect("its payload");
            if head[3] == 7 {
                return;
            }
        }
    })
    .await;
    let watched = watching.await;
    assert!(watched.stdout.contains("NOT_SERVING"), "{watched:?}");
    for client in &mut clients {
        let (frames, code) = client.rest().await;
        assert_eq!((frames.last().map(|frame| frame.kind.as_str()), code), (Some("$bye"), Code::Unavailable));
    }
}

#[tokio::test]
async fn the_port_speaks_tls_and_nothing_else_when_it_has_a_certificate() {
    let (feed, certs) = (Feed::new(1).await, Certs::new().await);
    let node = certs.on_port("grpc", Node::builder(&feed)).start().await;
    let authority = certs.authority().to_str().expect("UTF-8").to_owned();
    let secure = async |authority: &str| {
        let mut command = gotool("grpcurl");
        command.args(["-cacert", authority, "-max-time", "20"]);
        command.arg(format!("localhost:{}", node.grpc_addr().port())).arg("list");
        Process::run("grpcurl", command, CLIENT_DEADLINE).await
    };
    assert!(secure(&authority).await.ok().contains("atlas.notifier.v1.Notifier"));
    let others = Certs::new().await;
    let distrusted = secure(others.authority().to_str().expect("UTF-8")).await;
    assert!(distrusted.stderr.contains("unknown authority"), "{distrusted:?}");
    assert_ne!(grpcurl(node.grpc_addr(), &["list"]).await.code(), 0, "plain text on a port with TLS");
    eventually("the handshakes counted", async || {
        let metrics = node.metrics().await;
        (metrics.sum_where("notifier_rejected_connections_total", "reason", "tls_handshake") >= 2.0).then_some(())
    })
    .await;
    assert!(node.metrics().await.sum_where("notifier_certificate_expiry_timestamp_seconds", "listener", "grpc") > 0.0);

    feed.send(&Event::new("101", "over-tls")).await;
    let url = format!("https://localhost:{}", node.grpc_addr().port());
    let arguments = ["tail", "--user", "101", "--json", "--protocol", "grpc", "--url", &url, "--ca-file", &authority];
    let tail = Process::spawn("notifier tail", node.command(&arguments));
    eventually("the notification", async || tail.stdout().contains("over-tls").then_some(())).await;
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_at_once_end_the_connection_and_harm_nobody() {
    let feed = Feed::new(1).await;
    // Not what ends it.
    let node = Node::builder(&feed).set("limits.handshake_deadline", "60s").start().await;
    let mut good = open(&node, Carrier::Grpc, &Ask::token(&node.token("101"))).await.expect("open");
    let socket = TcpStream::connect(node.grpc_addr()).await.expect("connects");
    let (mut reading, mut writing) = socket.into_split();
    let drain = tokio::spawn(async move { tokio::io::copy(&mut reading, &mut tokio::io::sink()).await });
    let mut bytes = PREFACE.to_vec();
    for n in 0..20_000u32 {
        let stream = (2 * n + 1).to_be_bytes();
        // HEADERS with END_HEADERS, `:method: POST`, `:scheme: http` and `:path: /` of HPACK's static table.
        bytes.extend_from_slice(&[0, 0, 3, 1, 4]);
        bytes.extend_from_slice(&stream);
        bytes.extend_from_slice(&[0x83, 0x86, 0x84]);
        // RST_STREAM, CANCEL.
        bytes.extend_from_slice(&[0, 0, 4, 3, 0]);
        bytes.extend_from_slice(&stream);
        bytes.extend_from_slice(&8u32.to_be_bytes());
    }
    let _ = writing.write_all(&bytes).await;
    within("the end of the connection", drain).await.expect("no panic").ok();
    feed.send(&Event::new("101", "undisturbed")).await;
    assert_eq!(good.expect(1).await[0].kind, "undisturbed");
}

#[tokio::test]
async fn h2spec_finds_only_what_the_library_is_known_for() {
    // The first two want a DATA frame in the answer, and a refusal of gRPC has no body. hyper closes after a bad preface
    // without a GOAWAY.
    const KNOWN: [&str; 3] = [
        "Sends a PRIORITY frame on half-closed (remote) stream",
        "Sends a WINDOW_UPDATE frame on half-closed (remote) stream",
        "Sends invalid connection preface",
    ];
    // Calls are often answered sooner than the streams of one connection become too many.
    const RACE: &str = "Sends HEADERS frames that causes their advertised concurrent stream limit to be exceeded";
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let report = tempfile::NamedTempFile::new().expect("a file");
    let mut command = gotool("h2spec");
    let (host, port) = (node.grpc_addr().ip().to_string(), node.grpc_addr().port().to_string());
    command.args(["-h", &host, "-p", &port, "-o", "2", "-P", "/atlas.notifier.v1.Notifier/Connect"]);
    command.arg("-j").arg(report.path());
    Process::run("h2spec", command, CLIENT_DEADLINE).await;
    let text = std::fs::read_to_string(report.path()).expect("a report");
    let mut failed = Vec::new();
    let (mut case, mut tests) = (String::new(), 0);
    for line in text.lines().map(str::trim) {
        let attribute = |name: &str| {
            let rest = &line[line.find(&format!("{name}=\""))? + name.len() + 2..];
            Some(rest[..rest.find('"')?].to_owned())
        };
        if line.starts_with("<testcase") {
            tests += 1;
            case = attribute("classname").unwrap_or_default();
        }
        if line.contains("<failure") || line.contains("<error") {
            failed.push(case.clone());
        }
    }
    assert!(tests > 100, "{tests} cases: {text}");
    failed.retain(|case| case != RACE);
    failed.sort();
    assert_eq!(failed, KNOWN, "{text}");
}
