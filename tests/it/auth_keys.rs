//! Tokens signed with private keys, whose public ones are in files; and every way to get in without one.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{
    Feed, Node, eventually,
    http::{Request, try_send},
    keys::KeyPair,
    node::Builder,
    sse::SseClient,
    token::{now_secs, signed},
    wait::within,
    ws::Connect,
};

struct Directory(TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, content).expect("a writable directory");
        path
    }
}

fn toml_path(path: &Path) -> toml::Value {
    path.to_str().expect("UTF-8").into()
}

fn with_files(builder: Builder, files: &[&Path]) -> Builder {
    let files: Vec<_> = files.iter().map(|path| toml_path(path)).collect();
    builder.without("auth.jwt.hs256_secret").set("auth.jwt.public_key_files", files)
}

async fn pairs() -> [KeyPair; 3] {
    let [rsa, ec, ed] = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA].map(KeyPair::new);
    [rsa.await, ec.await, ed.await]
}

async fn status(node: &Node, token: &str) -> u16 {
    match Connect::bearer(node.addr(), token).try_open().await {
        Ok(_) => 101,
        Err(refused) => refused.status,
    }
}

#[tokio::test]
async fn tokens_of_every_algorithm_get_in_and_forged_ones_do_not() {
    let directory = Directory::new();
    let [rsa, ec, ed] = pairs().await;
    let certificate = directory.write("rsa.pem", &rsa.certificate(30).await);
    let others = directory.write("others.pem", &format!("{}{}", ec.public_pem(), ed.public_pem()));
    let feed = Feed::new(1).await;
    let builder = Node::builder(&feed).set("auth.jwt.audience", "notifier");
    let node = with_files(builder, &[&certificate, &others]).start().await;
    let later = now_secs() + 3600;
    let good = json!({"sub": "101", "exp": later, "aud": ["other", "notifier"]});
    let [other_rsa, other_ec, other_ed] = pairs().await;
    for (pair, other) in [(&rsa, &other_rsa), (&ec, &other_ec), (&ed, &other_ed)] {
        let token = pair.sign(Some("any"), &good);
        let client = Connect::bearer(node.addr(), &token).open().await;
        assert_eq!(client.hello().user, "101");
        let authorization = format!("Bearer {token}");
        SseClient::open(node.addr(), "", &[("Authorization", &authorization)]).await;

        let (header, rest) = token.split_once('.').expect("a header");
        let (body, signature) = rest.split_once('.').expect("claims");
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
        let other_body = URL_SAFE_NO_PAD.encode(json!({"sub": "102", "exp": later, "aud": "notifier"}).to_string());
        let claims = |claims: Value| pair.sign(None, &claims);
        for (what, token) in [
            ("another key", other.sign(None, &good)),
            ("expired", claims(json!({"sub": "101", "exp": now_secs() - 60, "aud": "notifier"}))),
            ("not yet valid", claims(json!({"sub": "101", "exp": later, "nbf": later - 60, "aud": "notifier"}))),
            ("no sub", claims(json!({"exp": later, "aud": "notifier"}))),
            ("no exp", claims(json!({"sub": "101", "aud": "notifier"}))),
            ("another audience", claims(json!({"sub": "101", "exp": later, "aud": "other"}))),
            ("no audience", claims(json!({"sub": "101", "exp": later}))),
            ("no algorithm", format!("{none}.{body}.")),
            ("no algorithm, the old signature", format!("{none}.{body}.{signature}")),
            ("no signature", format!("{header}.{body}.")),
            ("other claims", format!("{header}.{other_body}.{signature}")),
            ("the public key as secret", signed(&good, pair.public_pem())),
            ("the public key as secret, trimmed", signed(&good, pair.public_pem().trim_end())),
        ] {
            assert_eq!(status(&node, &token).await, 401, "{what}");
            let authorization = format!("Bearer {token}");
            SseClient::refused(node.addr(), "", &[("Authorization", &authorization)]).await.problem(401);
        }
    }
    // The file's own text is what a careless check would take for the secret.
    for file in [&certificate, &others] {
        let forged = signed(&good, &fs::read_to_string(file).expect("it was written"));
        assert_eq!(status(&node, &forged).await, 401);
    }
    let expiry = node.metrics().await.sum_where(
        "notifier_token_key_expiry_timestamp_seconds",
        "key",
        certificate.to_str().expect("UTF-8"),
    );
    let days = (expiry - now_secs() as f64) / 86_400.0;
    assert!((29.0..31.0).contains(&days), "{days} days");
    let rejected = node.metrics().await.sum_where("notifier_rejected_connections_total", "reason", "unauthenticated");
    assert!(rejected >= 2.0 * 13.0 * 3.0, "counted {rejected}");
}

#[tokio::test]
async fn what_is_not_listed_is_refused() {
    let directory = Directory::new();
    let [rsa, ec, _] = pairs().await;
    let files = [directory.write("rsa.pem", rsa.public_pem()), directory.write("ec.pem", ec.public_pem())];
    let feed = Feed::new(1).await;
    let builder = with_files(Node::builder(&feed), &[&files[0], &files[1]]);
    let node = builder.set("auth.jwt.algorithms", vec![toml::Value::from("ES256")]).start().await;
    assert_eq!(status(&node, &ec.token(None, "101")).await, 101);
    assert_eq!(status(&node, &rsa.token(None, "101")).await, 401);
}

#[tokio::test]
async fn a_token_of_a_megabyte_is_refused_wherever_it_stands() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let padded = |bytes: usize| json!({"sub": "101", "exp": now_secs() + 3600, "padding": "p".repeat(bytes)});
    let before = node.metrics().await.sum("process_resident_memory_bytes");
    let long = signed(&padded(1 << 20), crate::harness::token::SECRET);
    for _ in 0..20 {
        let (bearer, path) = (format!("Bearer {long}"), format!("/v1/stream?access_token={long}"));
        for (path, headers) in [("/v1/stream", &[("Authorization", bearer.as_str())][..]), (path.as_str(), &[])] {
            let request = Request { method: "GET", path, headers, body: "" };
            // It may be closed before it was written to its end.
            let answer = within("an answer or an end", try_send(node.addr(), request)).await;
            assert!(answer.is_none_or(|answer| (400..500).contains(&answer.status())), "a megabyte got in");
        }
    }
    let growth = node.metrics().await.sum("process_resident_memory_bytes") - before;
    assert!(growth < 20e6, "memory grew by {growth} bytes");
    // Short enough for a head, too long for a token, and otherwise good.
    assert_eq!(status(&node, &signed(&padded(9_000), crate::harness::token::SECRET)).await, 401);
    assert_eq!(status(&node, &signed(&padded(2_000), crate::harness::token::SECRET)).await, 101);
}

#[tokio::test]
async fn key_files_are_read_again_while_the_node_runs() {
    let directory = Directory::new();
    let path = |name: &str| directory.0.path().join(name);
    let [rsa, ec, ed] = pairs().await;
    // As Kubernetes mounts a secret: key.pem -> ..data/key.pem, ..data -> the version of the day.
    for (version, pem) in [("v1", ec.public_pem()), ("v2", ed.public_pem())] {
        fs::create_dir(path(version)).expect("a writable directory");
        directory.write(&format!("{version}/key.pem"), pem);
    }
    symlink("v1", path("..data")).expect("links");
    symlink("..data/key.pem", path("key.pem")).expect("links");
    let plain = directory.write("plain.pem", rsa.public_pem());
    let (first, second) = ("first-secret-of-more-than-32-bytes", "second-secret-of-more-than-32-bytes");
    let secret = directory.write("secret", &format!("{first}\n"));
    let feed = Feed::new(1).await;
    let builder = with_files(Node::builder(&feed), &[&path("key.pem"), &plain]);
    let node = builder.set("auth.jwt.hs256_secret_file", toml_path(&secret)).start().await;
    let by_secret = |secret: &str| signed(&json!({"sub": "101", "exp": now_secs() + 3600}), secret);
    let mut open = Connect::bearer(node.addr(), &ec.token(None, "101")).open().await;
    assert_eq!(status(&node, &by_secret(first)).await, 101);
    assert_eq!(status(&node, &ed.token(None, "101")).await, 401);

    symlink("v2", path("..new")).expect("links");
    fs::rename(path("..new"), path("..data")).expect("a rename");
    directory.write("secret", second);
    for (old, new) in [(ec.token(None, "101"), ed.token(None, "101")), (by_secret(first), by_secret(second))] {
        eventually("the new key", async || (status(&node, &new).await == 101).then_some(())).await;
        assert_eq!(status(&node, &old).await, 401);
    }

    // A bad file is named, and costs nobody anything.
    directory.write("plain.pem", "half a fi");
    directory.write("secret", "short");
    eventually("both files named", async || {
        let log = node.log();
        let names = |path: &Path| log.contains(&format!("{} holds", path.display()));
        (names(&plain) && names(&secret)).then_some(())
    })
    .await;
    assert!(node.log().contains("ERROR"));
    assert_eq!(status(&node, &rsa.token(None, "101")).await, 101);
    assert_eq!(status(&node, &by_secret(second)).await, 101);
    assert!(!node.log().contains(second) && !node.log().contains(first), "a secret was logged");
    // Who is in stays in.
    feed.send(&crate::harness::Event::new("101", "still")).await;
    assert_eq!(open.one().await.kind, "still");
}

#[tokio::test]
async fn keys_that_cannot_be_used_stop_the_start_and_are_named() {
    let directory = Directory::new();
    let pair = KeyPair::new(Algorithm::ES256).await;
    let good = directory.write("good.pem", pair.public_pem());
    let garbage = directory.write("garbage.pem", "no key");
    let feed = Feed::new(1).await;
    let with = |files: &[&Path]| with_files(Node::builder(&feed), files);
    let listed = |algorithm: &str| vec![toml::Value::from(algorithm)];
    let url = |url: &str| with(&[&good]).set("auth.jwt.jwks_url", url);
    for (builder, named) in [
        (with(&[&good, &garbage]), vec!["auth.jwt.public_key_files", garbage.to_str().expect("UTF-8"), "PEM block"]),
        (with(&[&pair.private_file()]), vec!["auth.jwt.public_key_files", "private key"]),
        (with(&[&good]).set("auth.jwt.algorithms", listed("RS256")), vec!["auth.jwt.algorithms", "no key for RS256"]),
        (with(&[&good]).set("auth.jwt.algorithms", listed("HS256")), vec!["auth.jwt.algorithms", "no key for HS256"]),
        (with(&[]), vec!["auth.jwt.hs256_secret", "jwks_url", "nobody could connect"]),
        (url("login.example/keys"), vec!["auth.jwt.jwks_url", "is no URL"]),
        (url("https://me:word@login.example/keys"), vec!["auth.jwt.jwks_url", "password"]),
    ] {
        let finished = builder.fails().await;
        assert_eq!(finished.code(), 2, "{finished:?}");
        assert!(named.iter().all(|part| finished.stderr.contains(part)), "{named:?}: {finished:?}");
        assert!(!finished.stderr.contains("me:word"), "a password was shown");
    }
    // The same without a start.
    let config = with(&[&garbage]).write(directory.0.path());
    let arguments = ["check-config", "--config", config.to_str().expect("UTF-8")];
    let command = crate::harness::command::notifier(&arguments);
    let finished = crate::harness::command::finish(command).await;
    assert_eq!(finished.code(), 2, "{finished:?}");
    assert!(finished.stderr.contains("auth.jwt.public_key_files"), "{finished:?}");
}
