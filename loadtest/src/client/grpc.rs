//! A gRPC client: one stream of notifications on an HTTP/2 connection (RFC 9113) of its own, and a short call
//! on it for each acknowledgement.
//!
//! As little of HTTP/2 as that needs. It asks for no table of headers, so that each block of them stands alone
//! and a connection keeps none.

use fluke_hpack::{Decoder, Encoder};

use super::codec::{FRAME_BYTES_MAX, Message, On};
use super::endpoint::Endpoint;
use crate::event;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

const HEADER_TABLE_SIZE: u16 = 1;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// The stream of notifications: a client's first.
const STREAM: u32 = 1;
/// What the server may send before it hears of the window, in bytes: more than it keeps for a client, so that
/// the socket is what holds it back.
const WINDOW: u32 = 1 << 30;
const WINDOW_DEFAULT: u32 = 65_535;
const ACKNOWLEDGE: &str = "/atlas.notifier.v1.Notifier/Acknowledge";

/// One connection's state.
#[derive(Default)]
pub struct Client {
    host: String,
    session: String,
    /// The last acknowledgement's stream; 0 before the first.
    last_call: u32,
    /// Bytes of the stream since the window was last opened.
    consumed: u32,
    /// The start of a message whose rest is in a later frame.
    message: Vec<u8>,
}

/// One complete frame.
struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
}

impl Client {
    /// `host`: what acknowledgements are addressed to.
    pub fn new(host: &str) -> Self {
        Self { host: host.to_owned(), ..Self::default() }
    }

    pub fn request(&self, endpoint: &Endpoint, token: &str, since: Option<&str>) -> Vec<u8> {
        let mut out = PREFACE.to_vec();
        let mut settings = Vec::with_capacity(12);
        for (setting, value) in [(HEADER_TABLE_SIZE, 0), (INITIAL_WINDOW_SIZE, WINDOW)] {
            settings.extend_from_slice(&setting.to_be_bytes());
            settings.extend_from_slice(&value.to_be_bytes());
        }
        frame(&mut out, SETTINGS, 0, 0, &settings);
        frame(&mut out, WINDOW_UPDATE, 0, 0, &(WINDOW - WINDOW_DEFAULT).to_be_bytes());
        let token = format!("Bearer {token}");
        call(&mut out, STREAM, &endpoint.host, &endpoint.path, Some(&token), &event::encode_connection_request(since));
        out
    }

    pub fn read(&mut self, bytes: &[u8], out: &mut Vec<u8>, on: &mut On<'_>) -> Result<usize, String> {
        let mut at = 0;
        while let Some((frame, used)) = parse(&bytes[at..])? {
            at += used;
            self.frame(&frame, out, on)?;
        }
        Ok(at)
    }

    pub fn acknowledge(&mut self, sequence: u64, out: &mut Vec<u8>) {
        self.last_call = self.last_call.max(STREAM) + 2;
        let mut body = Vec::with_capacity(48);
        event::encode_acknowledgement(&mut body, &self.session, sequence);
        call(out, self.last_call, &self.host, ACKNOWLEDGE, None, &body);
    }

    fn frame(&mut self, received: &Frame<'_>, out: &mut Vec<u8>, on: &mut On<'_>) -> Result<(), String> {
        match received.kind {
            DATA => {
                self.window(received.payload.len() as u32, out);
                if received.stream == STREAM {
                    self.data(unpadded(received)?, on)?;
                }
            }
            HEADERS => return status(received),
            SETTINGS if received.flags & ACK == 0 => frame(out, SETTINGS, ACK, 0, &[]),
            PING if received.flags & ACK == 0 => frame(out, PING, ACK, 0, received.payload),
            RST_STREAM => {
                let code = received.payload.last().copied().unwrap_or_default();
                return Err(format!("stream {} was reset by the server: code {code}", received.stream));
            }
            GOAWAY => return Err("the server ended the connection (GOAWAY)".to_owned()),
            PUSH_PROMISE | CONTINUATION => {
                return Err(format!("a frame of type {} that this client does not know", received.kind));
            }
            _ => {}
        }
        Ok(())
    }

    /// Lets the server send on, long before it would have to stop.
    fn window(&mut self, bytes: u32, out: &mut Vec<u8>) {
        self.consumed += bytes;
        if self.consumed > WINDOW / 4 {
            for stream in [0, STREAM] {
                frame(out, WINDOW_UPDATE, 0, stream, &self.consumed.to_be_bytes());
            }
            self.consumed = 0;
        }
    }

    fn data(&mut self, piece: &[u8], on: &mut On<'_>) -> Result<(), String> {
        if self.message.is_empty() {
            let rest = self.messages(piece, on)?;
            self.message.extend_from_slice(rest);
            return Ok(());
        }
        let mut whole = std::mem::take(&mut self.message);
        whole.extend_from_slice(piece);
        self.message = self.messages(&whole, on)?.to_vec();
        Ok(())
    }

    /// Reads the complete messages, each behind five bytes, and returns the rest.
    fn messages<'a>(&mut self, mut data: &'a [u8], on: &mut On<'_>) -> Result<&'a [u8], String> {
        while let [compressed, a, b, c, d, rest @ ..] = data {
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            if *compressed != 0 || length > FRAME_BYTES_MAX {
                return Err("a gRPC message that is compressed or too long".to_owned());
            }
            let Some((message, next)) = rest.split_at_checked(length) else { break };
            let message = Message::protobuf(message)?;
            if self.session.is_empty() {
                self.session = message.session().unwrap_or_default();
            }
            on(message)?;
            data = next;
        }
        Ok(data)
    }
}

/// The frame at the start; `None` while it is incomplete.
fn parse(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, String> {
    let [a, b, c, kind, flags, stream @ ..] = bytes else { return Ok(None) };
    let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
    if length > FRAME_BYTES_MAX {
        return Err("no HTTP/2: is this the gRPC port?".to_owned());
    }
    let (Some(stream), Some(payload)) = (stream.first_chunk::<4>(), bytes.get(9..9 + length)) else { return Ok(None) };
    let stream = u32::from_be_bytes(*stream) & 0x7FFF_FFFF;
    Ok(Some((Frame { kind: *kind, flags: *flags, stream, payload }, 9 + length)))
}

fn unpadded<'a>(frame: &Frame<'a>) -> Result<&'a [u8], String> {
    if frame.flags & PADDED == 0 {
        return Ok(frame.payload);
    }
    let (&padding, rest) = frame.payload.split_first().ok_or("a padded frame without its length")?;
    let content = rest.len().checked_sub(padding.into()).ok_or("a frame with more padding than bytes")?;
    Ok(&rest[..content])
}

/// The headers of an answer, or what ends it: anything but success is an error.
fn status(frame: &Frame<'_>) -> Result<(), String> {
    let mut block = unpadded(frame)?;
    if frame.flags & PRIORITY != 0 {
        block = block.get(5..).ok_or("a frame too short for its priority")?;
    }
    if frame.flags & END_HEADERS == 0 {
        return Err("headers in several frames".to_owned());
    }
    let (mut refused, mut message) = (None, String::new());
    let decoded = Decoder::new().decode_with_cb(block, |name, value| {
        let value = String::from_utf8_lossy(&value);
        match &name[..] {
            b":status" if value != "200" => refused = Some(format!("HTTP status {value}")),
            b"grpc-status" if value != "0" => refused = Some(format!("gRPC status {value}")),
            b"grpc-message" => message = value.into_owned(),
            _ => {}
        }
    });
    decoded.map_err(|error| format!("headers that cannot be read: {error:?}"))?;
    match refused {
        Some(status) if frame.stream == STREAM => {
            Err(format!("the server refused or ended the stream: {status} {message}"))
        }
        Some(status) => Err(format!("the server refused an acknowledgement: {status} {message}")),
        None if frame.stream == STREAM && frame.flags & END_STREAM != 0 => {
            Err("the server ended the stream".to_owned())
        }
        None => Ok(()),
    }
}

/// A whole request: its headers and one message.
fn call(out: &mut Vec<u8>, stream: u32, host: &str, path: &str, token: Option<&str>, body: &[u8]) {
    let mut headers: Vec<(&[u8], &[u8])> = vec![
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.as_bytes()),
        (b":authority", host.as_bytes()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ];
    headers.extend(token.map(|token| (b"authorization".as_slice(), token.as_bytes())));
    // A new encoder's literals enter the server's table, which this client never refers to.
    let block = Encoder::new().encode(headers);
    frame(out, HEADERS, END_HEADERS, stream, &block);
    let mut data = vec![0];
    data.extend_from_slice(&(body.len() as u32).to_be_bytes());
    data.extend_from_slice(body);
    frame(out, DATA, END_STREAM, stream, &data);
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(data: &str) -> Vec<u8> {
        let mut bytes = vec![0x12, data.len() as u8];
        bytes.extend_from_slice(data.as_bytes());
        let mut framed = vec![0, 0, 0, 0, bytes.len() as u8];
        framed.extend(bytes);
        framed
    }

    fn headers(list: &[(&[u8], &[u8])], flags: u8) -> Vec<u8> {
        let mut out = Vec::new();
        let block = Encoder::new().encode(list.iter().copied());
        frame(&mut out, HEADERS, END_HEADERS | flags, STREAM, &block);
        out
    }

    #[test]
    fn messages_are_whole_wherever_frames_and_reads_end() {
        let stream = [message(r#"{"session":"abc"}"#), message("two"), message("three")].concat();
        let mut bytes = headers(&[(b":status", b"200")], 0);
        for piece in stream.chunks(6) {
            frame(&mut bytes, DATA, 0, STREAM, piece);
        }
        for step in [1, 10, 1_000] {
            let (mut client, mut seen, mut pending) = (Client::default(), Vec::new(), Vec::new());
            for read in bytes.chunks(step) {
                pending.extend_from_slice(read);
                let used = client.read(&pending, &mut Vec::new(), &mut |message| {
                    if let Message::Protobuf(notification) = message {
                        seen.push(notification.data.to_owned());
                    }
                    Ok(())
                });
                pending.drain(..used.unwrap());
            }
            assert_eq!(seen[1..], ["two", "three"], "{step}");
            assert_eq!(client.session, "abc");
        }
    }

    #[test]
    fn a_refusal_names_its_status() {
        let bytes =
            headers(&[(b":status", b"200"), (b"grpc-status", b"16"), (b"grpc-message", b"no token")], END_STREAM);
        let refused = Client::default().read(&bytes, &mut Vec::new(), &mut |_| Ok(())).unwrap_err();
        assert!(refused.contains("gRPC status 16 no token"), "{refused}");
        let other = Client::default().read(b"HTTP/1.1 400 Bad Request", &mut Vec::new(), &mut |_| Ok(()));
        assert!(other.unwrap_err().contains("gRPC port"));
    }

    #[test]
    fn pings_and_settings_are_answered_and_the_window_is_opened_again() {
        let mut bytes = Vec::new();
        frame(&mut bytes, SETTINGS, 0, 0, &[]);
        frame(&mut bytes, PING, 0, 0, b"12345678");
        let (mut client, mut out) = (Client::default(), Vec::new());
        client.read(&bytes, &mut out, &mut |_| Ok(())).unwrap();
        client.window(WINDOW / 4, &mut out);
        client.window(1, &mut out);
        let (mut kinds, mut at) = (Vec::new(), 0);
        while let Some((frame, used)) = parse(&out[at..]).unwrap() {
            kinds.push((frame.kind, frame.flags, frame.stream));
            at += used;
        }
        assert_eq!(kinds, [(SETTINGS, ACK, 0), (PING, ACK, 0), (WINDOW_UPDATE, 0, 0), (WINDOW_UPDATE, 0, STREAM)]);
    }

    #[test]
    fn each_acknowledgement_is_a_call_of_its_own() {
        let (mut client, mut out) = (Client::default(), Vec::new());
        client.acknowledge(1, &mut out);
        client.acknowledge(2, &mut out);
        let mut streams = Vec::new();
        let mut at = 0;
        while let Some((frame, used)) = parse(&out[at..]).unwrap() {
            streams.push(frame.stream);
            at += used;
        }
        assert_eq!(streams, [3, 3, 5, 5]);
    }
}
