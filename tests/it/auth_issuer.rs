//! Keys that an issuer publishes at a URL: rotation, and an issuer that is away, slow, or out of its mind.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use jsonwebtoken::Algorithm;
use serde_json::json;

use crate::harness::{
    Event, Feed, Node, eventually,
    jwks::{Answer, Issuer},
    keys::KeyPair,
    node::{Builder, free_ports},
    process::{Process, command},
    token::now_secs,
    wait::eventually_within,
    ws::Connect,
};

/// Tokens with unknown keys may cause one fetch in this time.
const FLOOR: Duration = Duration::from_secs(10);
const FETCHES: &str = "notifier_jwks_fetches_total";

fn with_url(feed: &Feed, url: &str) -> Builder {
    Node::builder(feed).without("auth.jwt.hs256_secret").set("auth.jwt.jwks_url", url)
}

async fn status(node: &Node, token: &str) -> u16 {
    match Connect::bearer(node.addr(), token).try_open().await {
        Ok(_) => 101,
        Err(refused) => refused.status,
    }
}

async fn fetched(node: &Node) {
    eventually("a fetched set", async || {
        (node.metrics().await.sum_where(FETCHES, "outcome", "ok") >= 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn keys_come_and_go_with_the_issuers_set() {
    let [old, new] = [Algorithm::RS256, Algorithm::ES256].map(KeyPair::new);
    let (old, new) = (old.await, new.await);
    let mut encryption = new.jwk("enc");
    encryption["use"] = "enc".into();
    let issuer = Issuer::start(Answer::keys(&[old.jwk("old"), encryption, json!({"kty": "AKP"})])).await;
    let feed = Feed::new(1).await;
    let node = with_url(&feed, &issuer.url()).start().await;
    fetched(&node).await;
    assert_eq!(status(&node, &old.token(Some("old"), "101")).await, 101);
    assert_eq!(status(&node, &old.token(None, "101")).await, 101, "the only key of its kind");
    assert_eq!(status(&node, &new.token(Some("enc"), "101")).await, 401, "a key for encryption");
    assert_eq!(issuer.asked().len(), 1);

    issuer.publish(Answer::keys(&[new.jwk("new")]));
    // Known keys cause no fetch, whatever time has passed.
    tokio::time::sleep(FLOOR).await;
    assert_eq!(status(&node, &old.token(Some("old"), "101")).await, 101);
    assert_eq!(issuer.asked().len(), 1);
    // The request that brings the new key waits for it, and gets in.
    assert_eq!(status(&node, &new.token(Some("new"), "101")).await, 101);
    assert_eq!(issuer.asked().len(), 2);
    assert_eq!(status(&node, &old.token(Some("old"), "101")).await, 401, "a removed key");

    // What the issuer says does not go beyond its keys.
    let forged = KeyPair::new(Algorithm::ES256).await;
    assert_eq!(status(&node, &forged.token(Some("new"), "101")).await, 401);
    let expired = new.sign(Some("new"), &json!({"sub": "101", "exp": now_secs() - 60}));
    assert_eq!(status(&node, &expired).await, 401);
    let metrics = node.metrics().await;
    let age = now_secs() as f64 - metrics.sum("notifier_jwks_last_success_timestamp_seconds");
    assert!((-1.0..30.0).contains(&age), "fetched {age} seconds ago");
}

#[tokio::test]
async fn a_thousand_unknown_keys_a_second_cause_one_fetch_in_ten_seconds_and_harm_nobody() {
    const STORM: Duration = Duration::from_secs(13);
    const TICK: Duration = Duration::from_millis(20);
    let (good, forged) = (KeyPair::new(Algorithm::EdDSA).await, KeyPair::new(Algorithm::EdDSA).await);
    let issuer = Issuer::start(Answer::keys(&[good.jwk("good")])).await;
    let feed = Feed::new(1).await;
    let node = with_url(&feed, &issuer.url()).set("limits.connects_per_second", 0).start().await;
    fetched(&node).await;
    let mut client = Connect::bearer(node.addr(), &good.token(Some("good"), "101")).open().await;
    let claims = json!({"sub": "101", "exp": now_secs() + 3600});
    let tokens: Vec<String> = (0..500).map(|n| forged.sign(Some(&format!("unknown-{n}")), &claims)).collect();
    let (started, mut sent, mut n) = (Instant::now(), 0_usize, 0);
    let mut attacks = tokio::task::JoinSet::new();
    while started.elapsed() < STORM {
        // What is behind is made up for: a thousand a second on the average.
        while (sent as u128) < started.elapsed().as_millis() {
            let authorization = format!("Bearer {}", tokens[sent % tokens.len()]);
            let addr = node.addr();
            attacks.spawn(async move { attack(addr, &authorization).await });
            sent += 1;
        }
        if n % 10 == 0 {
            let sent = Instant::now();
            feed.send(&Event::numbered("101", n)).await;
            assert_eq!(client.one().await.n(), n);
            assert!(sent.elapsed() < Duration::from_secs(1), "an event took {:?}", sent.elapsed());
        }
        n += 1;
        tokio::time::sleep(TICK).await;
        while attacks.try_join_next().is_some() {}
    }
    let answers = attacks.join_all().await;
    assert!(answers.iter().all(|status| matches!(status, None | Some(401 | 503))), "{answers:?}");
    assert!(sent > 5_000, "no storm: {sent}");
    let asked = issuer.asked();
    let gaps: Vec<Duration> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(!gaps.is_empty(), "an unknown key caused no fetch");
    // A little less than the floor: the clocks of two processes.
    assert!(gaps.iter().all(|gap| *gap >= FLOOR - Duration::from_millis(500)), "{gaps:?}");
    assert_eq!(status(&node, &good.token(Some("good"), "101")).await, 101);
}

async fn attack(addr: SocketAddr, authorization: &str) -> Option<u16> {
    let headers = [("Authorization", authorization)];
    let request = crate::harness::http::Request { method: "GET", path: "/v1/stream", headers: &headers, body: "" };
    Some(crate::harness::http::try_send(addr, request).await?.status())
}

#[tokio::test]
async fn an_issuer_that_is_away_at_the_start_is_asked_again_and_meanwhile_the_reason_is_said() {
    let [port] = free_ports();
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    let pair = KeyPair::new(Algorithm::ES256).await;
    let token = pair.token(Some("1"), "101");
    let feed = Feed::new(1).await;
    let secret = crate::harness::token::SECRET;
    let builder = with_url(&feed, &format!("http://{addr}/keys"));
    // Ready: who has another token is served.
    let node = builder.set("auth.jwt.hs256_secret", secret).start().await;
    node.connect("101").await;
    let authorization = format!("Bearer {token}");
    let answer = node.request("GET", "/v1/stream", &[("Authorization", &authorization)], "").await;
    answer.problem(503);
    assert!(answer.body.contains("issuer's keys"), "{answer:?}");
    assert!(answer.head.header("retry-after").is_some(), "{answer:?}");
    assert_eq!(node.metrics().await.sum("notifier_jwks_last_success_timestamp_seconds"), 0.0);
    eventually("the reason in the log", async || node.log().contains("Connection refused").then_some(())).await;
    assert!(!node.log().contains(&token), "a token was logged");

    let _issuer = Issuer::start_at(addr, Answer::keys(&[pair.jwk("1")])).await;
    eventually_within(Duration::from_secs(70), "the issuer's key", async || {
        (status(&node, &token).await == 101).then_some(())
    })
    .await;
}

#[tokio::test]
async fn bad_answers_are_counted_and_the_last_good_keys_stay() {
    let pair = KeyPair::new(Algorithm::EdDSA).await;
    let keys = Answer::keys(&[pair.jwk("1")]);
    let slow = Answer { delay: Duration::from_secs(120), ..keys.clone() };
    let huge = Answer::keys(&[pair.jwk("1"), json!({"kty": "x", "padding": "p".repeat(3 << 20)})]);
    let issuer = Issuer::start(slow).await;
    let circle = Answer { headers: format!("Location: {}\r\n", issuer.url()), ..Answer::text(302, "") };
    let feed = Feed::new(1).await;
    let secret = crate::harness::token::SECRET;
    let node = with_url(&feed, &issuer.url()).set("auth.jwt.hs256_secret", secret).start().await;
    let token = pair.token(Some("1"), "101");

    // A request waits for a slow issuer, not for ever, and nobody else does.
    let started = Instant::now();
    let waiting = status(&node, &token);
    let others = async {
        node.connect("102").await;
        started.elapsed()
    };
    let (waiting, others) = tokio::join!(waiting, others);
    assert_eq!(waiting, 503);
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
    assert!(others < Duration::from_secs(2), "another token waited {others:?}");

    // Before the first success it is asked again soon, so that each of these has its turn.
    let mut expected = vec![("unreachable", circle), ("too_large", huge)];
    expected.extend([("status", Answer::text(500, "")), ("invalid", Answer::text(200, "<html>")), ("ok", keys)]);
    for (outcome, answer) in expected {
        let count = async || node.metrics().await.sum_where(FETCHES, "outcome", outcome);
        let before = count().await;
        issuer.publish(answer);
        eventually_within(Duration::from_secs(70), outcome, async || (count().await > before).then_some(())).await;
    }
    assert_eq!(status(&node, &token).await, 101);

    // Now a fetch that an unknown key causes fails, and the good key is good still.
    issuer.publish(Answer::text(500, ""));
    tokio::time::sleep(FLOOR).await;
    let asked = issuer.asked().len();
    assert_eq!(status(&node, &pair.token(Some("2"), "101")).await, 401);
    assert_eq!(issuer.asked().len(), asked + 1);
    assert_eq!(status(&node, &token).await, 101);
}

#[tokio::test]
async fn over_https_the_issuers_certificate_is_verified() {
    let (server, pair) = (KeyPair::new(Algorithm::RS256).await, KeyPair::new(Algorithm::ES256).await);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let certificate = directory.path().join("certificate.pem");
    std::fs::write(&certificate, server.certificate(2).await).expect("a writable directory");
    let body = json!({ "keys": [pair.jwk("1")] }).to_string();
    // `-HTTP`: the file is the whole answer.
    let answer = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    std::fs::write(directory.path().join("keys"), answer).expect("a writable directory");
    let plain = Issuer::start(Answer::keys(&[pair.jwk("1")])).await;
    let elsewhere = format!("HTTP/1.1 302 Found\r\nConnection: close\r\nLocation: {}\r\n\r\n", plain.url());
    std::fs::write(directory.path().join("elsewhere"), elsewhere).expect("a writable directory");
    let [port] = free_ports();
    let mut openssl = command("openssl");
    openssl.args(["s_server", "-HTTP", "-quiet", "-accept", &format!("127.0.0.1:{port}"), "-cert"]);
    openssl.arg(&certificate).arg("-key").arg(server.private_file()).current_dir(directory.path());
    let _serving = Process::spawn("openssl s_server", openssl);
    let feed = Feed::new(1).await;
    let secret = crate::harness::token::SECRET;
    let at = |path: &str| with_url(&feed, &format!("https://127.0.0.1:{port}/{path}"));
    let builder = |path| at(path).set("auth.jwt.hs256_secret", secret);

    let node = builder("keys").start().await;
    eventually("the failure named", async || node.log().contains("invalid peer certificate").then_some(())).await;
    assert_eq!(status(&node, &pair.token(Some("1"), "101")).await, 503);

    let trusted = certificate.to_str().expect("UTF-8");
    let node = builder("keys").env("SSL_CERT_FILE", trusted).start().await;
    fetched(&node).await;
    assert_eq!(status(&node, &pair.token(Some("1"), "101")).await, 101);

    // No redirect leads out of HTTPS.
    let node = builder("elsewhere").env("SSL_CERT_FILE", trusted).start().await;
    let failures = async || node.metrics().await.sum_where(FETCHES, "outcome", "unreachable");
    eventually("a refused redirect", async || (failures().await >= 1.0).then_some(())).await;
    assert_eq!(status(&node, &pair.token(Some("1"), "101")).await, 503);
    assert_eq!(plain.asked().len(), 0);
}
