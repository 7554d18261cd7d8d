//! Attacks by those who are not let in, or not yet, and over gRPC: more rows of the table in `attacks.rs`.

use std::time::Duration;

use futures_util::future::join_all;
use jsonwebtoken::Algorithm;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::harness::{
    Event,
    attack::{Attack, Attacker},
    certs::Certs,
    grpc::Caller,
    http::{self, Request, Response},
    http2::PREFACE,
    jwks::{Answer, Issuer},
    keys::KeyPair,
    token::{self, now_secs},
};

/// Between two pieces of one attacker.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two of many connections of one attacker: at once they would be work of the kernel's, whoever asked for it.
const APART: Duration = Duration::from_millis(2);

/// What makes a request a WebSocket's handshake, besides the two headers that say so.
const VERSION: (&str, &str) = ("Sec-WebSocket-Version", "13");
const KEY: (&str, &str) = ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");

/// The answer to a request without a body, on a connection of its own.
async fn ask(attacker: &Attacker, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
    let request = Request { method, path, headers, body: "" };
    http::try_send(attacker.addr, request).await.expect("an answer")
}

/// Writes that, and reads until the other end closes.
async fn converse(mut socket: TcpStream, bytes: &[u8]) {
    let _ = socket.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer).await;
}

#[tokio::test]
async fn a_thousand_half_open_connections() {
    let turn = async |attacker: &mut Attacker| {
        attacker.strike().await;
        let addr = attacker.addr;
        let silent = async |n| {
            tokio::time::sleep(APART * n).await;
            if let Ok(socket) = TcpStream::connect(addr).await {
                converse(socket, b"").await;
            }
        };
        join_all((0..250).map(silent)).await;
    };
    let attack = Attack::by(4).set("limits.handshake_deadline", "1s").set("limits.handshakes_max", 4000);
    attack.set("limits.handshakes_per_address", 1000).harms_nobody(turn).await;
}

#[tokio::test]
async fn requests_of_a_byte_a_second() {
    let turn = async |attacker: &mut Attacker| {
        let addr = attacker.addr;
        attacker.strike().await;
        let slow = async || {
            let Ok(mut socket) = TcpStream::connect(addr).await else { return };
            for byte in b"GET /v1/connect HTTP/1.1\r\nHost: here\r\n" {
                if socket.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        join_all((0..15).map(|_| slow())).await;
    };
    Attack::by(4).set("limits.handshake_deadline", "2s").harms_nobody(turn).await;
}

#[tokio::test]
async fn heads_that_are_too_long_and_pipelined_garbage() {
    let turn = async |attacker: &mut Attacker| {
        let long = format!("GET / HTTP/1.1\r\nHost: here\r\nX-Long: {}\r\n\r\n", "x".repeat(64 << 10));
        let garbage = format!("{}\0\x01\u{fffd} not HTTP\r\n\r\n", "GET / HTTP/1.1\r\nHost: here\r\n\r\n".repeat(8));
        for bytes in [long, garbage] {
            attacker.strike().await;
            if let Ok(socket) = TcpStream::connect(attacker.addr).await {
                converse(socket, bytes.as_bytes()).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    Attack::by(4).harms_nobody(turn).await;
}

#[tokio::test]
async fn tokens_that_are_none_of_ours() {
    let turn = async |attacker: &mut Attacker| {
        let claims = serde_json::json!({"sub": "good", "exp": now_secs() + 3600});
        let forged = token::signed(&claims, "another-secret-0123456789abcdef0123456789");
        for token in [forged, "a.b.c".into(), "x".repeat(10_000)] {
            attacker.strike().await;
            let authorization = format!("Bearer {token}");
            let headers = [("Authorization", authorization.as_str())];
            let request = Request { method: "GET", path: "/v1/stream", headers: &headers, body: "" };
            let answer = http::try_send(attacker.addr, request).await.expect("an answer");
            assert_eq!(answer.status(), 401, "{answer:?}");
            tokio::time::sleep(PAUSE).await;
        }
    };
    Attack::by(4).harms_nobody(turn).await;
}

#[tokio::test]
async fn tokens_whose_key_nobody_knows() {
    let (published, forged) = (KeyPair::new(Algorithm::EdDSA).await, KeyPair::new(Algorithm::EdDSA).await);
    let issuer = Issuer::start(Answer::keys(&[published.jwk("known")])).await;
    let claims = serde_json::json!({"sub": "good", "exp": now_secs() + 3600});
    let tokens: Vec<_> = (0..100).map(|n| forged.sign(Some(&format!("unknown-{n}")), &claims)).collect();
    let turn = async move |attacker: &mut Attacker| {
        for token in &tokens {
            attacker.strike().await;
            let authorization = format!("Bearer {token}");
            let answer = ask(attacker, "GET", "/v1/stream", &[("Authorization", &authorization)]).await;
            assert!(matches!(answer.status(), 401 | 503), "{answer:?}");
            tokio::time::sleep(PAUSE).await;
        }
    };
    Attack::by(4).at_least(100).set("auth.jwt.jwks_url", issuer.url()).harms_nobody(turn).await;
    // At the start, and at most once for each ten seconds since.
    let asked = issuer.asked();
    let gaps: Vec<_> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| *gap >= Duration::from_millis(9_500)), "{gaps:?}");
}

#[tokio::test]
async fn sessions_whose_ids_are_guessed() {
    let turn = async |attacker: &mut Attacker| {
        let guess = format!("{:032x}", rand::random::<u128>());
        let (connect, stream) = (format!("/v1/connect?session_id={guess}"), format!("/v1/stream?session_id={guess}"));
        let (upgrade, acknowledge) = ([("Connection", "Upgrade")], format!("/v1/sessions/{guess}/ack"));
        for (method, path, headers, status) in [
            ("GET", &connect, &[upgrade[0], ("Upgrade", "websocket"), VERSION, KEY][..], 401),
            ("GET", &stream, &[], 401),
            ("POST", &acknowledge, &[], 404),
        ] {
            attacker.strike().await;
            let answer = ask(attacker, method, path, headers).await;
            assert_eq!(answer.status(), status, "{answer:?}");
            tokio::time::sleep(PAUSE).await;
        }
        attacker.strike().await;
        let wish = notifier::proto::ConnectionRequest { session_id: guess, ..Default::default() };
        let refused = Caller::native(attacker.grpc).connect(wish, &[]).await.err().expect("a guess opens nothing");
        assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    };
    Attack::by(4).at_least(100).harms_nobody(turn).await;
}

#[tokio::test]
async fn pages_of_foreign_origins() {
    let turn = async |attacker: &mut Attacker| {
        let authorization = format!("Bearer {}", attacker.token());
        let headers = [("Authorization", authorization.as_str()), ("Origin", "https://foreign.example")];
        for (method, path) in
            [("GET", "/v1/connect"), ("GET", "/v1/stream"), ("POST", "/v1/sessions"), ("POST", "/v1/events")]
        {
            attacker.strike().await;
            let answer = ask(attacker, method, path, &headers).await;
            assert_eq!(answer.status(), 403, "{answer:?}");
            tokio::time::sleep(PAUSE).await;
        }
    };
    Attack::by(4).at_least(100).harms_nobody(turn).await;
}

#[tokio::test]
async fn tls_that_never_finishes() {
    let certs = Certs::new().await;
    let hello = certs.client_hello();
    let turn = async move |attacker: &mut Attacker| {
        attacker.strike().await;
        let addr = attacker.addr;
        // Nothing, a part of the first message, all of it and then nothing: the node has signed its answer.
        let begin = async |bytes: &[u8]| {
            if let Ok(socket) = TcpStream::connect(addr).await {
                converse(socket, bytes).await;
            }
        };
        let beginnings = [&[][..], &hello[..hello.len() / 2], &hello[..]];
        join_all((0..30).map(|n| begin(beginnings[n % beginnings.len()]))).await;
    };
    let attack = Attack::by(4).over_tls(&certs).set("limits.handshake_deadline", "1s");
    attack.set("limits.handshakes_per_address", 1000).harms_nobody(turn).await;
}

#[tokio::test]
async fn json_that_is_deep_twice_and_huge() {
    let turn = async |attacker: &mut Attacker| {
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        let twice = r#"{"user":"a","user":"b"}"#.to_owned();
        let huge = format!(r#"{{"user":{}}}"#, "9".repeat(100_000));
        let lone = r#"{"user":"\ud800"}"#.to_owned();
        for body in [deep, twice, huge, lone] {
            attacker.strike().await;
            let authorization = format!("Bearer {}", attacker.token());
            let headers = [("Authorization", authorization.as_str()), ("Content-Type", "application/json")];
            let request = Request { method: "POST", path: "/v1/sessions", headers: &headers, body: &body };
            let answer = http::try_send(attacker.addr, request).await.expect("an answer");
            assert!(matches!(answer.status(), 400 | 413), "{answer:?}");
            tokio::time::sleep(PAUSE).await;
        }
    };
    Attack::by(4).harms_nobody(turn).await;
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_at_once() {
    let mut chunk = Vec::new();
    let turn = {
        chunk.extend_from_slice(PREFACE);
        for n in 0..500u32 {
            let stream = (2 * n + 1).to_be_bytes();
            // HEADERS with END_HEADERS, and RST_STREAM with CANCEL.
            chunk.extend_from_slice(&[0, 0, 3, 1, 4]);
            chunk.extend_from_slice(&stream);
            chunk.extend_from_slice(&[0x83, 0x86, 0x84, 0, 0, 4, 3, 0]);
            chunk.extend_from_slice(&stream);
            chunk.extend_from_slice(&8u32.to_be_bytes());
        }
        async move |attacker: &mut Attacker| {
            attacker.strike().await;
            if let Ok(socket) = TcpStream::connect(attacker.grpc).await {
                converse(socket, &chunk).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    Attack::by(4).harms_nobody(turn).await;
}

#[tokio::test]
async fn grpc_streams_that_nobody_reads() {
    let large = Event::new("", "large").data(&format!("\"{}\"", "x".repeat(8 << 10)));
    let turn = async |attacker: &mut Attacker| {
        attacker.strike().await;
        let authorization = format!("Bearer {}", attacker.token());
        let caller = Caller::native(attacker.grpc);
        let stream = caller.connect(Default::default(), &[("authorization", &authorization)]).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        drop(stream);
    };
    Attack::by(3).set("sessions.slow_deadline", "2s").with_events(large).harms_nobody(turn).await;
}
