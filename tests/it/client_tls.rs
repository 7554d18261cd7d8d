//! TLS on the client port: every kind of client, everything a session promises, and certificates that change.

use std::{os::unix::fs::symlink, path::Path, process::Command, time::Duration};

use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_rustls::TlsConnector;

use crate::harness::{
    Event, Feed, Node,
    certs::Certs,
    check::Order,
    command::{CLIENT_DEADLINE, COMMAND_DEADLINE, json_lines, node as nodejs, notifications, python},
    dial::Dial,
    eventually,
    frame::Frame,
    process::{Process, command},
    raw::{End, RawWs, opcode},
    sse::SseClient,
    wait::DEADLINE,
    ws::{Connect, WsClient},
};

const EXPIRY: &str = "notifier_certificate_expiry_timestamp_seconds";

fn dial(node: &Node, certs: &Certs) -> Dial {
    Dial::new(node.addr()).tls(certs.client())
}

fn ws(node: &Node, dial: &Dial, user: &str) -> Connect {
    Connect::bearer(node.addr(), &node.token(user)).over(dial)
}

async fn stream(node: &Node, dial: &Dial, user: &str, query: &str) -> SseClient {
    let authorization = format!("Bearer {}", node.token(user));
    SseClient::open_over(dial, query, &[("Authorization", &authorization)]).await
}

async fn pending(feed: &Feed, node: &Node, count: u64) {
    let events: Vec<_> = (0..count).map(|n| Event::numbered("101", n)).collect();
    feed.send_all(&events).await;
    node.settled(events.len()).await;
}

fn curl(node: &Node, certs: &Certs, path: &str) -> Command {
    let mut command = command("curl");
    command.args(["--silent", "--show-error", "--no-buffer", "--http1.1", "--cacert"]).arg(certs.authority());
    command.arg(format!("https://localhost:{}{path}", node.addr().port()));
    command.args(["--resolve", &format!("localhost:{}:127.0.0.1", node.addr().port())]);
    command
}

#[tokio::test]
async fn clients_that_others_wrote_connect_and_receive() {
    let (feed, certs) = (Feed::new(1).await, Certs::new().await);
    let node = certs.on(Node::builder(&feed)).start().await;
    pending(&feed, &node, 20).await;
    let url = format!("wss://localhost:{}/v1/connect", node.addr().port());

    let mut websockets = python("ws.py");
    websockets.env("SSL_CERT_FILE", certs.authority()).arg(&url).arg(node.token("101")).arg("20");
    let output = Process::run("ws.py", websockets, CLIENT_DEADLINE).await.ok();
    assert_eq!(json_lines(&output)[0]["type"], "$hello");
    assert_eq!(notifications(&output).len(), 20, "{output}");

    let mut ws = nodejs("ws.mjs");
    ws.env("NODE_EXTRA_CA_CERTS", certs.authority()).arg(&url).arg(node.token("101")).args(["20", "--ack"]);
    let output = Process::run("ws.mjs", ws, CLIENT_DEADLINE).await.ok();
    assert_eq!(notifications(&output).len(), 20, "{output}");

    let page = Process::run("curl", curl(&node, &certs, "/"), COMMAND_DEADLINE).await.ok();
    assert!(page.contains("<html"), "{page}");

    let mut events = curl(&node, &certs, "/v1/stream?device=curl");
    events.args(["--header", &format!("Authorization: Bearer {}", node.token("102"))]);
    let curl = Process::spawn("curl", events);
    eventually("a greeting", async || curl.stdout().contains("event: $hello").then_some(())).await;
    feed.send(&Event::new("102", "news").data("[1,2]")).await;
    eventually("the event", async || curl.stdout().contains(r#""payload":[1,2]"#).then_some(())).await;
}

#[tokio::test]
async fn tail_receives_over_both_protocols_and_trusts_only_whom_it_should() {
    let (feed, certs) = (Feed::new(1).await, Certs::new().await);
    let node = certs.on(Node::builder(&feed)).start().await;
    let authority = certs.authority();
    let tail = |protocol: &str, more: &[&str]| {
        let url = format!("https://localhost:{}", node.addr().port());
        let mut command = node.command(&["tail", "--user", "101", "--json", "--protocol", protocol, "--url", &url]);
        command.args(more);
        Process::spawn("notifier tail", command)
    };
    let trusting = ["--ca-file", authority.to_str().expect("UTF-8")];
    let tails = [tail("websocket", &trusting), tail("sse", &trusting)];
    for tail in &tails {
        eventually("a greeting", async || tail.stdout().contains("$hello").then_some(())).await;
    }
    feed.send(&Event::new("101", "news")).await;
    for tail in &tails {
        eventually("the event", async || tail.stdout().contains("news").then_some(())).await;
    }
    // Without it the authority is nobody whom this system knows.
    let stranger = tail("websocket", &[]);
    eventually("the reason", async || stranger.stderr().contains("certificate").then_some(())).await;
    assert!(!stranger.stdout().contains("$hello"));
}

/// Bursts, large payloads between small ones, over both versions and both protocols.
#[tokio::test]
async fn bursts_and_large_payloads_arrive_whole_and_in_order() {
    const BURSTS: u64 = 20;
    const EACH: u64 = 50;
    let (feed, certs) = (Feed::new(1).await, Certs::new().await);
    let node = certs.on(Node::builder(&feed)).start().await;
    let mut clients = Vec::new();
    for config in [certs.client(), certs.client_of_1_2()] {
        clients.push(ws(&node, &Dial::new(node.addr()).tls(config), "101").query("device", "a").open().await);
    }
    let mut events = stream(&node, &dial(&node, &certs), "101", "device=b").await;
    let filler = "x".repeat(200_000);
    let (mut orders, mut streamed) = ([Order::default(), Order::default()], 0);
    for burst in 0..BURSTS {
        let mut sent: Vec<_> = (burst * EACH..(burst + 1) * EACH).map(|n| Event::numbered("101", n)).collect();
        sent[7] = sent[7].clone().data(&json!({"n": burst * EACH + 7, "filler": filler}).to_string());
        feed.send_all(&sent).await;
        for (client, order) in clients.iter_mut().zip(&mut orders) {
            let frames: Vec<Frame> = client.expect_acked(usize::try_from(EACH).expect("small")).await;
            frames.iter().for_each(|frame| order.take("101", frame));
            assert!(frames[7].raw().contains(&filler));
        }
        for block in events.expect(usize::try_from(EACH).expect("small")).await {
            assert_eq!(block.frame().n(), streamed, "the stream's order");
            streamed += 1;
        }
    }
    assert!(orders.iter().all(|order| order.count() == BURSTS * EACH) && streamed == BURSTS * EACH);
}

#[tokio::test]
async fn a_reader_that_stops_holds_the_sender_back_and_loses_nothing() {
    const COUNT: u64 = 120;
    let (feed, certs) = (Feed::new(1).await, Certs::new().await);
    let node = certs
        .on(Node::builder(&feed))
        .set("sessions.window_items", 1000)
        .set("sessions.window_bytes", "32MiB")
        // No heartbeat may push what is left over.
        .set("sessions.heartbeat", "2m")
        .start()
        .await;
    let dial = dial(&node, &certs).small();
    let mut slow = RawWs::open_over(&dial, &node.token("101")).await;
    assert_eq!(slow.frame().await.0, opcode::TEXT);
    let filler = "y".repeat(60_000);
    let events: Vec<_> =
        (0..COUNT).map(|n| Event::new("101", "t").data(&json!({"n": n, "filler": filler}).to_string())).collect();
    feed.send_all(&events).await;
    node.settled(events.len()).await;
    // What the sockets and rustls hold is little; the rest waits.
    let sent = node.metrics().await.sum("notifier_deliveries_total");
    assert!(sent < 60.0, "{sent} of {COUNT} went into sockets that nobody reads");
    let mut order = Order::default();
    while order.count() < COUNT {
        let (kind, payload) = slow.frame().await;
        if kind == opcode::TEXT {
            let frame = Frame::parse(std::str::from_utf8(&payload).expect("UTF-8"));
            assert!(frame.raw().contains(&filler));
            order.take("101", &frame);
        }
        // Slower than the node writes, at first.
        if order.count() < 10 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    // The connection works in the other direction too.
    slow.send(opcode::TEXT, format!("{{\"ack\":{}}}", order.last_seq()).as_bytes()).await;
    slow.send(opcode::CLOSE, &1000_u16.to_be_bytes()).await;
    assert_eq!(slow.end().await, End::Code(1000));
    eventually("a stored cursor", async || {
        let cursor = ws(&node, &dial, "101").open().await.hello().cursor;
        (cursor == COUNT).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_session_resumes_and_hears_goodbye_when_the_node_drains() {
    let (feed, certs) = (Feed::new(1).await, Certs::new().await);
    let mut node = certs.on(Node::builder(&feed)).start().await;
    let dial = dial(&node, &certs);
    pending(&feed, &node, 10).await;
    let mut first = ws(&node, &dial, "101").open().await;
    first.expect(6).await;
    let epoch = first.hello().epoch.clone();
    drop(first);
    let mut second = ws(&node, &dial, "101").query("since", &format!("{epoch}-6")).open().await;
    assert_eq!(second.expect(4).await[0].n(), 6);
    let mut events = stream(&node, &dial, "101", "device=b").await;
    events.expect(4).await;

    feed.send(&Event::numbered("101", 10)).await;
    node.settled(11).await;
    node.process().signal("TERM");
    let (frames, code) = second.closed().await;
    let kinds: Vec<_> = frames.iter().map(|frame| frame.kind.as_str()).collect();
    assert_eq!((kinds.as_slice(), code), (&["numbered", "$bye"][..], Some(1001)));
    let rest = events.rest().await;
    let kinds: Vec<_> = rest.iter().map(|block| block.frame().kind).collect();
    assert_eq!(kinds, ["numbered", "$bye"]);
    let (process, _node) = node.into_process();
    assert_eq!(process.finish(DEADLINE).await.code(), 0);
}

#[tokio::test]
async fn heartbeats_come_and_a_peer_that_answers_none_is_closed() {
    let (feed, certs) = (Feed::new(1).await, Certs::new().await);
    let node = certs.on(Node::builder(&feed)).set("sessions.heartbeat", "500ms").start().await;
    let dial = dial(&node, &certs);
    let good = ws(&node, &dial, "101").open().await;
    let mut events = stream(&node, &dial, "101", "").await;
    let mut silent = RawWs::open_over(&dial, &node.token("102")).await;
    eventually("pings", async || (good.pings() >= 5).then_some(())).await;
    events.idle(Duration::from_millis(1500)).await;
    assert!(events.comments >= 1, "a stream has comments");
    assert_eq!(silent.end().await, End::Cut);
}

/// The first certificate that the node shows now.
async fn shown(node: &Node, certs: &Certs) -> Option<Vec<u8>> {
    let tcp = TcpStream::connect(node.addr()).await.ok()?;
    let name = ServerName::try_from("localhost").expect("a name");
    let tls = TlsConnector::from(certs.client()).connect(name, tcp).await.ok()?;
    Some(tls.get_ref().1.peer_certificates()?.first()?.to_vec())
}

/// Puts the certificate where the node looks for it as Kubernetes does: a directory behind a symbolic link.
fn publish(certs: &Certs, mount: &Path, version: &str) {
    let data = mount.join(version);
    std::fs::create_dir(&data).expect("a new directory");
    std::fs::copy(certs.cert(), data.join("tls.crt")).expect("a certificate");
    std::fs::copy(certs.key(), data.join("tls.key")).expect("a key");
    symlink(version, mount.join("..new")).expect("a link");
    std::fs::rename(mount.join("..new"), mount.join("..data")).expect("a link in place");
}

#[tokio::test]
async fn a_renewed_certificate_is_used_by_new_connections_and_a_bad_one_by_none() {
    let (feed, certs) = (Feed::new(1).await, Certs::new().await);
    let mount = tempfile::tempdir().expect("a temporary directory");
    publish(&certs, mount.path(), "v1");
    for name in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{name}"), mount.path().join(name)).expect("a link");
    }
    let path = |name: &str| mount.path().join(name).to_str().expect("UTF-8").to_owned();
    let node = Node::builder(&feed)
        .set("client.tls_cert_file", path("tls.crt"))
        .set("client.tls_key_file", path("tls.key"))
        .start()
        .await;
    let first = shown(&node, &certs).await.expect("a certificate");
    let expiry = async || node.metrics().await.sum_where(EXPIRY, "listener", "client");
    let (was, day) = (expiry().await, 86_400.0);
    let mut old = ws(&node, &dial(&node, &certs), "101").open().await;

    certs.renew(9).await;
    publish(&certs, mount.path(), "v2");
    eventually("the new certificate", async || {
        shown(&node, &certs).await.is_some_and(|shown| shown != first).then_some(())
    })
    .await;
    let later = expiry().await - was;
    assert!((6.9 * day..7.1 * day).contains(&later), "{later}");
    let mut new = ws(&node, &dial(&node, &certs), "101").open().await;
    feed.send(&Event::numbered("101", 0)).await;
    assert_eq!((old.one().await.n(), new.one().await.n()), (0, 0));

    // A key that is not the certificate's, and then no key at all.
    let second = shown(&node, &certs).await.expect("a certificate");
    certs.renew(5).await;
    std::fs::copy(certs.key(), mount.path().join("v2/tls.key")).expect("another key");
    eventually("the wrong key named", async || {
        let log = node.log();
        (log.contains(&path("tls.key")) && log.contains("is not the key of the certificate")).then_some(())
    })
    .await;
    std::fs::remove_file(mount.path().join("v2/tls.key")).expect("a file");
    eventually("the missing key named", async || node.log().contains("cannot be read").then_some(())).await;
    assert_eq!(shown(&node, &certs).await, Some(second));
    feed.send(&Event::numbered("101", 1)).await;
    assert_eq!((old.one().await.n(), new.one().await.n()), (1, 1));
}

async fn s_client(node: &Node, certs: &Certs, arguments: &[&str]) -> (bool, String) {
    let mut command = command("openssl");
    command.args(["s_client", "-verify_return_error", "-servername", "localhost", "-connect"]);
    command.arg(node.addr().to_string()).arg("-CAfile").arg(certs.authority()).args(arguments);
    let finished = Process::run("openssl", command, COMMAND_DEADLINE).await;
    (finished.status.success(), finished.stdout + &finished.stderr)
}

#[tokio::test]
async fn tls_1_2_and_1_3_are_spoken_and_nothing_older() {
    let (feed, certs) = (Feed::new(1).await, Certs::new().await);
    let node = certs.on(Node::builder(&feed)).start().await;
    for (version, spoken) in [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")] {
        let (ok, said) = s_client(&node, &certs, &[version]).await;
        assert!(ok && said.contains(spoken), "{version}: {said}");
    }
    for version in ["-tls1_1", "-tls1"] {
        // openssl itself speaks it at the lowest security level only.
        let (ok, said) = s_client(&node, &certs, &[version, "-cipher", "ALL:@SECLEVEL=0"]).await;
        assert!(!ok && said.contains("SSL alert number"), "{version}: {said}");
    }
    let (_, said) = s_client(&node, &certs, &["-alpn", "h2,http/1.1"]).await;
    assert!(said.contains("ALPN protocol: http/1.1"), "{said}");
    let (ok, said) = s_client(&node, &certs, &["-alpn", "h2"]).await;
    assert!(!ok, "{said}");
}

/// Whether this client is served.
async fn works(client: &mut WsClient, feed: &Feed, user: &str) {
    feed.send(&Event::new(user, "still there")).await;
    assert_eq!(client.one().await.kind, "still there");
}

#[tokio::test]
async fn what_is_no_tls_is_closed_and_counted_and_disturbs_nobody() {
    let (feed, certs) = (Feed::new(1).await, Certs::new().await);
    let node = certs.on(Node::builder(&feed)).start().await;
    let mut good = ws(&node, &dial(&node, &certs), "101").open().await;
    let garbage = [0x5a; 4096];
    let attempts: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &garbage,
        // A record that announces more than records have, and an empty handshake message.
        &[0x16, 3, 1, 0xff, 0xff, 1, 0, 0, 0],
        &[0x16, 3, 1, 0, 4, 1, 0, 0, 0],
    ];
    for bytes in attempts {
        let mut socket = Dial::new(node.addr()).before(bytes).open().await.expect("the port accepts");
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), socket.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "left open after {bytes:?}");
        assert!(!answer.starts_with(b"HTTP"), "answered in plain text");
    }
    eventually("each counted", async || {
        let metrics = node.metrics().await;
        (metrics.sum_where("notifier_rejected_connections_total", "reason", "tls_handshake") == 4.0).then_some(())
    })
    .await;
    works(&mut good, &feed, "101").await;
    assert!(!node.log().contains("panicked"), "{}", node.log());
}

/// What rustls keeps for a connection must not outweigh the connection.
#[tokio::test]
async fn an_idle_connection_over_tls_costs_little_more_memory() {
    const EACH: usize = 400;
    const MORE_MAX: f64 = 20e3;
    let (feed, certs) = (Feed::new(1).await, Certs::new().await);
    let (plain, secure) = (Node::start(&feed).await, certs.on(Node::builder(&Feed::new(1).await)).start().await);
    let mut clients = Vec::new();
    let mut costs = Vec::new();
    for (node, dial) in [(&plain, Dial::new(plain.addr())), (&secure, dial(&secure, &certs))] {
        let mut connect = async |range: std::ops::Range<usize>| {
            for n in range {
                clients.push(ws(node, &dial, &format!("u{n}")).open().await);
            }
        };
        // The first ones pay for what all share.
        connect(0..100).await;
        let memory = async || node.metrics().await.sum("process_resident_memory_bytes");
        let before = memory().await;
        connect(100..100 + EACH).await;
        costs.push((memory().await - before) / EACH as f64);
    }
    assert!(costs[1] < costs[0] + MORE_MAX, "bytes a connection, plain and over TLS: {costs:?}");
    println!("bytes a connection, plain and over TLS: {costs:?}");
}
