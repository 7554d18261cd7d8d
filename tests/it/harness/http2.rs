//! HTTP/2 as bytes, for clients that no library would be.

/// What a client says first (RFC 9113, 3.4), with an empty SETTINGS frame.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// `Connect` on a connection of its own, by a client that has room for everything, as it says (RFC 9113, 6.5.2 and 6.9;
/// RFC 7541 for the headers).
pub fn boundless_connect(token: &str) -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    let text = |text: &str| {
        let mut bytes = match u8::try_from(text.len()) {
            Ok(length @ 0..127) => vec![length],
            // A length of two bytes, seven bits each, the lower ones first.
            _ => {
                let more = text.len() - 127;
                assert!(more < 1 << 14, "a short text");
                vec![127, 0x80 | (more & 0x7f) as u8, (more >> 7) as u8]
            }
        };
        bytes.extend_from_slice(text.as_bytes());
        bytes
    };
    // Of the static table: POST, http, and the names `:path`, `authorization` and `content-type`.
    let mut headers = vec![0x83, 0x86, 0x04];
    headers.extend(text("/atlas.notifier.v1.Notifier/Connect"));
    headers.extend([0x0f, 0x08]);
    headers.extend(text(&format!("Bearer {token}")));
    headers.extend([0x0f, 0x10]);
    headers.extend(text("application/grpc"));
    headers.push(0);
    headers.extend([text("te"), text("trailers")].concat());
    let max = 0x7fff_ffff_u32;
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[&[0, 4], &max.to_be_bytes()[..]].concat()),
        frame(8, 0, 0, &(max - 65_535).to_be_bytes()),
        frame(1, 4, 1, &headers),
        frame(0, 1, 1, &[0; 5]),
    ]
    .concat()
}
