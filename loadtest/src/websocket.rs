//! The part of RFC 6455 that both ends need: frames as bytes, and the key of the handshake.
//!
//! Pure: nothing here reads or writes a socket. Fragmented messages are not understood, since the
//! protocol under test sends one JSON object per text frame; a fragment is an error, never ignored.

use std::ops::Range;

use data_encoding::BASE64;
use sha1::{Digest, Sha1};

pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xA;

/// RFC 6455, section 1.3.
const KEY_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Where one complete frame lies in the buffer that was parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The four bits of RFC 6455, section 5.2.
    pub opcode: u8,
    /// The payload's bytes, still masked if `mask` is set.
    pub payload: Range<usize>,
    /// The masking key of a client's frame.
    pub mask: Option<[u8; 4]>,
    /// Where the next frame begins.
    pub end: usize,
}

/// Why bytes are not a frame that this tool understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("fragmented message")]
    Fragmented,
    #[error("reserved bits set")]
    ReservedBits,
    #[error("frame of {bytes} bytes is over the limit of {limit}")]
    TooLong { bytes: u64, limit: usize },
}

/// Reads the frame at the start of `buf`; `None` while it is incomplete.
///
/// # Errors
///
/// When the bytes cannot become a frame whose payload is at most `limit` bytes.
pub fn parse(buf: &[u8], limit: usize) -> Result<Option<Frame>, FrameError> {
    let &[first, second, ..] = buf else {
        return Ok(None);
    };
    if first & 0x70 != 0 {
        return Err(FrameError::ReservedBits);
    }
    let opcode = first & 0x0F;
    if first & 0x80 == 0 || opcode == 0 {
        return Err(FrameError::Fragmented);
    }
    let (length, mut at) = match second & 0x7F {
        126 => match buf.get(2..4) {
            Some(bytes) => (u64::from(u16::from_be_bytes([bytes[0], bytes[1]])), 4),
            None => return Ok(None),
        },
        127 => match buf.get(2..10).and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) => (u64::from_be_bytes(bytes), 10),
            None => return Ok(None),
        },
        short => (u64::from(short), 2),
    };
    if length > limit as u64 {
        return Err(FrameError::TooLong { bytes: length, limit });
    }
    let mask = if second & 0x80 == 0 {
        None
    } else {
        let Some(key) = buf.get(at..at + 4) else {
            return Ok(None);
        };
        at += 4;
        Some([key[0], key[1], key[2], key[3]])
    };
    let end = at + length as usize;
    if buf.len() < end {
        return Ok(None);
    }
    Ok(Some(Frame { opcode, payload: at..end, mask, end }))
}

/// Appends an unmasked frame, as servers send them.
pub fn write_server_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    write_head(out, opcode, payload.len(), 0);
    out.extend_from_slice(payload);
}

/// Appends a masked frame, as clients must send them (RFC 6455, section 5.3).
pub fn write_client_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8], key: [u8; 4]) {
    write_head(out, opcode, payload.len(), 0x80);
    out.extend_from_slice(&key);
    out.extend(payload.iter().zip(key.iter().cycle()).map(|(b, k)| b ^ k));
}

fn write_head(out: &mut Vec<u8>, opcode: u8, length: usize, mask_bit: u8) {
    out.push(0x80 | opcode);
    match length {
        0..126 => out.push(mask_bit | length as u8),
        126..0x1_0000 => {
            out.push(mask_bit | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            out.push(mask_bit | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// `Sec-WebSocket-Accept` for a client's `Sec-WebSocket-Key`.
pub fn accept_key(key: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(KEY_SUFFIX);
    BASE64.encode(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1 << 20;

    #[test]
    fn the_accept_key_is_the_one_of_the_rfc() {
        assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_frame_of_every_length_form_is_read_back_and_no_prefix_of_it_is() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let mut bytes = Vec::new();
            write_server_frame(&mut bytes, TEXT, &payload);
            let frame = parse(&bytes, LIMIT).unwrap().expect("complete");
            assert_eq!(frame.opcode, TEXT);
            assert_eq!(frame.end, bytes.len());
            assert_eq!(&bytes[frame.payload.clone()], &payload[..]);
            for cut in (0..bytes.len()).step_by(1 + bytes.len() / 300) {
                assert_eq!(parse(&bytes[..cut], LIMIT), Ok(None), "{cut} of {length}");
            }
        }
    }

    #[test]
    fn a_client_frame_unmasks_to_what_was_written() {
        let mut bytes = Vec::new();
        write_client_frame(&mut bytes, PONG, b"hello there", [1, 2, 3, 4]);
        let frame = parse(&bytes, LIMIT).unwrap().expect("complete");
        let key = frame.mask.expect("masked");
        let plain: Vec<u8> = bytes[frame.payload].iter().zip(key.iter().cycle()).map(|(b, k)| b ^ k).collect();
        assert_eq!(plain, b"hello there");
    }

    #[test]
    fn the_next_frame_begins_where_the_first_ends() {
        let mut bytes = Vec::new();
        write_server_frame(&mut bytes, TEXT, b"one");
        write_server_frame(&mut bytes, PING, b"two");
        let first = parse(&bytes, LIMIT).unwrap().expect("complete");
        let second = parse(&bytes[first.end..], LIMIT).unwrap().expect("complete");
        assert_eq!(second.opcode, PING);
        assert_eq!(&bytes[first.end..][second.payload], b"two");
    }

    #[test]
    fn fragments_reserved_bits_and_long_frames_are_refused() {
        assert_eq!(parse(&[0x01, 0], LIMIT), Err(FrameError::Fragmented));
        assert_eq!(parse(&[0x80, 0], LIMIT), Err(FrameError::Fragmented));
        assert_eq!(parse(&[0xC1, 0], LIMIT), Err(FrameError::ReservedBits));
        let mut huge = vec![0x81, 127];
        huge.extend_from_slice(&u64::MAX.to_be_bytes());
        assert_eq!(parse(&huge, LIMIT), Err(FrameError::TooLong { bytes: u64::MAX, limit: LIMIT }));
    }
}
