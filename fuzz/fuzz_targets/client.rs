//! What a stranger sends to the client port: a PROXY header, WebSocket frames, and the texts of requests.

#![no_main]

use libfuzzer_sys::fuzz_target;
use notifier::{
    edge::fuzzing,
    ids::{SessionId, Since},
};

fuzz_target!(|bytes: &[u8]| {
    let Some((what, rest)) = bytes.split_first() else { return };
    match what % 4 {
        0 => fuzzing::proxy_header(rest),
        1 => fuzzing::websocket(rest, false),
        2 => fuzzing::websocket(rest, true),
        _ => {
            let Ok(text) = std::str::from_utf8(rest) else { return };
            if let Some(since) = Since::parse(text) {
                assert!(text.starts_with(&*since.epoch) && text.ends_with(char::is_numeric));
            }
            if let Some(session) = SessionId::parse(text) {
                assert_eq!(session.to_string(), text);
            }
        }
    }
});
