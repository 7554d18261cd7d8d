//! The WebSocket edge against Autobahn's cases, with an echo in the session's place.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::harness::{
    Feed, Node,
    process::{Process, required},
    proxy::Proxy,
};

/// Compression, which is never negotiated.
const EXCLUDED: [&str; 2] = ["12.*", "13.*"];

/// What is not plainly `OK`, and why. Anything else fails.
const EXPECTED: [(&str, &str); 5] = [
    // Fragments that are not UTF-8: the connection fails at the message's end, not in the middle of a frame.
    ("6.4.3", "NON-STRICT"),
    ("6.4.4", "NON-STRICT"),
    // The cases only record what a server does: after a close behind a large message, and for odd close codes.
    ("7.1.6", "INFORMATIONAL"),
    ("7.13.1", "INFORMATIONAL"),
    ("7.13.2", "INFORMATIONAL"),
];
/// So many cases the version in `tests/clients/requirements.txt` has besides the excluded ones.
const CASES: usize = 301;

#[tokio::test]
async fn autobahns_cases_pass_on_the_websocket_edge() {
    let feed = Feed::new(1).await;
    let builder = Node::builder(&feed).set("limits.frame_bytes_max", "32MiB").set("sessions.heartbeat", "10m");
    let node = builder.start().await;
    // The device has no session: what it sends comes back. See `Relay::is_echo`.
    let path = format!("/v1/connect?device=fault.echo&access_token={}", node.token("101"));
    let proxy = Proxy::to_path(node.addr(), &path).await;

    let reports = tempfile::tempdir().expect("a temporary directory");
    let kosoku = std::path::Path::new(&required("NOTIFIER_TEST_PYTHON")).with_file_name("kosoku");
    let mut command = crate::harness::process::command(kosoku);
    command.args(EXCLUDED.iter().flat_map(|case| ["--exclude", case]));
    command.arg("--outdir").arg(reports.path()).arg(proxy.addr().to_string());
    let finished = Process::run("kosoku", command, std::time::Duration::from_secs(300)).await;

    let index = std::fs::read_to_string(reports.path().join("index.json"));
    let index: Value = match index.map(|text| serde_json::from_str(&text)) {
        Ok(Ok(index)) => index,
        other => panic!("no report ({other:?}): {finished:?}"),
    };
    let agents = index.as_object().expect("agents by name");
    assert_eq!(agents.len(), 1, "{agents:?}");
    let cases = agents.values().next().and_then(Value::as_object).expect("cases by number");
    let expected: BTreeMap<&str, &str> = EXPECTED.into();
    let mut wrong = Vec::new();
    for (case, result) in cases {
        let wanted = expected.get(case.as_str()).copied().unwrap_or("OK");
        if result["behavior"] != wanted {
            wrong.push(format!("{case}: {result}, expected {wanted}"));
        }
        // How the closing handshake went is judged by itself.
        if !["OK", "INFORMATIONAL"].iter().any(|good| result["behaviorClose"] == *good) {
            wrong.push(format!("{case}: {result}, closing"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(cases.len(), CASES, "{finished:?}");
    assert_eq!(finished.code(), 0, "{finished:?}");
}
