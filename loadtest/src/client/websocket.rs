//! A WebSocket client, in JSON or protobuf.

use super::codec::{FRAME_BYTES_MAX, Message, On, http_head, query};
use super::endpoint::Endpoint;
use crate::event;
use crate::websocket::{self, BINARY, CLOSE, PING, PONG, TEXT};

/// The key of RFC 6455's example, the same for every connection: the right answer is known.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// The masking key only has to be there: nothing between here and a loopback server caches.
const MASK: [u8; 4] = [0x5A, 0xC3, 0x96, 0x3C];

/// One connection's state.
pub struct Client {
    protobuf: bool,
    upgraded: bool,
}

impl Client {
    pub fn new(protobuf: bool) -> Self {
        Self { protobuf, upgraded: false }
    }

    pub fn request(&self, Endpoint { path, host, .. }: &Endpoint, token: &str, since: Option<&str>) -> Vec<u8> {
        let query = query(since);
        let protocol = if self.protobuf { "Sec-WebSocket-Protocol: notifier.v1.proto\r\n" } else { "" };
        format!(
            "GET {path}{query} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{protocol}\
             Authorization: Bearer {token}\r\n\r\n",
        )
        .into_bytes()
    }

    pub fn read(&mut self, bytes: &[u8], out: &mut Vec<u8>, on: &mut On<'_>) -> Result<usize, String> {
        let mut at = 0;
        if !self.upgraded {
            let Some((head, end)) = http_head(bytes, "101")? else { return Ok(0) };
            check_accept(head)?;
            self.upgraded = true;
            at = end;
        }
        while let Some(frame) = websocket::parse(&bytes[at..], FRAME_BYTES_MAX).map_err(|e| e.to_string())? {
            let payload = &bytes[at..][frame.payload];
            at += frame.end;
            match frame.opcode {
                TEXT if !self.protobuf => on(Message::Json(payload))?,
                BINARY if self.protobuf => on(Message::protobuf(payload)?)?,
                TEXT | BINARY => return Err("a frame of the other subprotocol".to_owned()),
                PING => websocket::write_client_frame(out, PONG, payload, MASK),
                PONG => {}
                CLOSE => return Err(close_reason(payload)),
                other => return Err(format!("unknown opcode {other}")),
            }
        }
        Ok(at)
    }

    pub fn acknowledge(&self, sequence: u64, out: &mut Vec<u8>) {
        if self.protobuf {
            let mut bytes = Vec::with_capacity(12);
            event::encode_acknowledgement(&mut bytes, "", sequence);
            websocket::write_client_frame(out, BINARY, &bytes, MASK);
        } else {
            let text = format!(r#"{{"ack":{sequence}}}"#);
            websocket::write_client_frame(out, TEXT, text.as_bytes(), MASK);
        }
    }
}

fn check_accept(head: &[u8]) -> Result<(), String> {
    let head = String::from_utf8_lossy(head);
    let accepted = head.lines().any(|line| {
        line.split_once(':')
            .is_some_and(|(name, value)| name.eq_ignore_ascii_case("sec-websocket-accept") && value.trim() == ACCEPT)
    });
    if accepted { Ok(()) } else { Err("wrong Sec-WebSocket-Accept".to_owned()) }
}

fn close_reason(payload: &[u8]) -> String {
    match payload {
        [high, low, reason @ ..] => {
            format!("closed by the server: {} {}", u16::from_be_bytes([*high, *low]), String::from_utf8_lossy(reason))
        }
        _ => "closed by the server".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(accept: &str) -> Vec<u8> {
        format!("HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: {accept}\r\n\r\n").into_bytes()
    }

    #[test]
    fn only_101_with_the_right_key_is_an_upgrade() {
        let read = |bytes: &[u8]| Client::new(false).read(bytes, &mut Vec::new(), &mut |_| Ok(()));
        let good = answer(ACCEPT);
        assert_eq!(read(&good), Ok(good.len()));
        assert!(read(&answer("no")).is_err());
        assert!(read(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").unwrap_err().contains("503"));
    }

    #[test]
    fn the_known_answer_belongs_to_the_key() {
        assert_eq!(websocket::accept_key(KEY.as_bytes()), ACCEPT);
    }

    #[test]
    fn a_close_frame_names_its_code() {
        assert_eq!(close_reason(b"\x0f\xa1gone"), "closed by the server: 4001 gone");
    }

    #[test]
    fn frames_are_read_up_to_the_first_incomplete_one_and_pings_are_answered() {
        let mut bytes = answer(ACCEPT);
        websocket::write_server_frame(&mut bytes, TEXT, b"one");
        websocket::write_server_frame(&mut bytes, PING, b"p");
        let complete = bytes.len();
        websocket::write_server_frame(&mut bytes, TEXT, b"two");
        let (mut out, mut seen) = (Vec::new(), Vec::new());
        let used = Client::new(false).read(&bytes[..bytes.len() - 1], &mut out, &mut |message| {
            if let Message::Json(text) = message {
                seen.push(text.to_vec());
            }
            Ok(())
        });
        assert_eq!(used, Ok(complete));
        assert_eq!(seen, [b"one"]);
        assert_eq!(websocket::parse(&out, 100).unwrap().map(|frame| frame.opcode), Some(PONG));
        let text = Client::new(true).read(&bytes, &mut out, &mut |_| Ok(()));
        assert!(text.unwrap_err().contains("subprotocol"));
    }
}
