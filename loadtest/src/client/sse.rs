//! A client of server-sent events: HTTP/1.1 with chunks, and the event stream inside them.

use super::codec::{FRAME_BYTES_MAX, Message, On, http_head, query};
use super::endpoint::Endpoint;

/// One connection's state.
#[derive(Default)]
pub struct Client {
    answered: bool,
    /// The start of an event whose rest is in a later chunk.
    event: Vec<u8>,
}

impl Client {
    pub fn request(Endpoint { path, host, .. }: &Endpoint, token: &str, since: Option<&str>) -> Vec<u8> {
        let query = query(since);
        format!(
            "GET {path}{query} HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\nAuthorization: Bearer {token}\r\n\r\n"
        )
        .into_bytes()
    }

    pub fn read(&mut self, bytes: &[u8], on: &mut On<'_>) -> Result<usize, String> {
        let mut at = 0;
        if !self.answered {
            let Some((head, end)) = http_head(bytes, "200")? else { return Ok(0) };
            if !head.to_ascii_lowercase().windows(26).any(|line| line == b"transfer-encoding: chunked") {
                return Err("an event stream without chunks".to_owned());
            }
            self.answered = true;
            at = end;
        }
        while let Some((chunk, used)) = chunk(&bytes[at..])? {
            if chunk.is_empty() {
                return Err("the server ended the stream".to_owned());
            }
            at += used;
            self.stream(chunk, on)?;
        }
        Ok(at)
    }

    /// The next piece of the event stream.
    fn stream(&mut self, piece: &[u8], on: &mut On<'_>) -> Result<(), String> {
        if self.event.is_empty() {
            let rest = events(piece, on)?;
            self.event.extend_from_slice(rest);
            return Ok(());
        }
        self.event.extend_from_slice(piece);
        if self.event.len() > FRAME_BYTES_MAX {
            return Err("an event without an end".to_owned());
        }
        let whole = std::mem::take(&mut self.event);
        self.event = events(&whole, on)?.to_vec();
        Ok(())
    }
}

/// A chunk's content and where the next begins; `None` while it is incomplete.
fn chunk(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, String> {
    let Some(end) = memchr::memmem::find(bytes, b"\r\n") else { return Ok(None) };
    let size = std::str::from_utf8(&bytes[..end]).ok().and_then(|hex| usize::from_str_radix(hex, 16).ok());
    let size = size.filter(|&size| size <= FRAME_BYTES_MAX).ok_or("a chunk without a proper size")?;
    let begin = end + 2;
    Ok(bytes.get(begin..begin + size + 2).map(|chunk| (&chunk[..size], begin + size + 2)))
}

/// Reads the complete events, each up to an empty line, and returns the rest.
fn events<'a>(mut stream: &'a [u8], on: &mut On<'_>) -> Result<&'a [u8], String> {
    while let Some(end) = memchr::memmem::find(stream, b"\n\n") {
        for line in stream[..end].split(|&b| b == b'\n') {
            // The server's JSON has no line breaks, so each event has one line of data.
            if let Some(data) = line.strip_prefix(b"data:") {
                on(Message::Json(data.strip_prefix(b" ").unwrap_or(data)))?;
            }
        }
        stream = &stream[end + 2..];
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_whole_wherever_chunks_and_reads_end() {
        let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        let stream = b"retry: 10\n\nevent: $hello\ndata: {\"a\":1}\n\n: beat\n\nid: e-1\ndata:{\"b\":2}\n\n";
        for piece in stream.chunks(7) {
            bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            bytes.extend_from_slice(piece);
            bytes.extend_from_slice(b"\r\n");
        }
        for step in [1, 5, 1_000] {
            let (mut client, mut seen, mut pending) = (Client::default(), Vec::new(), Vec::new());
            for read in bytes.chunks(step) {
                pending.extend_from_slice(read);
                let used = client.read(&pending, &mut |message| {
                    if let Message::Json(text) = message {
                        seen.push(String::from_utf8_lossy(text).into_owned());
                    }
                    Ok(())
                });
                pending.drain(..used.unwrap());
            }
            assert_eq!(seen, [r#"{"a":1}"#, r#"{"b":2}"#], "{step}");
            assert!(client.read(b"0\r\n\r\n", &mut |_| Ok(())).unwrap_err().contains("ended"));
        }
    }
}
