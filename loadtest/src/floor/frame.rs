//! The contract's JSON frames, written into reused buffers without an allocation per frame.

use std::io::Write;

use crate::event::Event;
use crate::websocket;

/// Writes notifications; keeps the text of the last timestamp, which many records share.
#[derive(Debug, Default)]
pub struct FrameWriter {
    json: Vec<u8>,
    timestamp: (i64, Vec<u8>),
}

impl FrameWriter {
    /// Appends one text frame. `position` is the record's (partition, offset), and makes the id;
    /// `millis` its timestamp.
    pub fn notification(&mut self, out: &mut Vec<u8>, event: &Event<'_>, position: (i32, i64), millis: i64) {
        if self.timestamp.0 != millis || self.timestamp.1.is_empty() {
            self.timestamp.0 = millis;
            self.timestamp.1.clear();
            write_rfc3339(&mut self.timestamp.1, millis);
        }
        let json = &mut self.json;
        json.clear();
        json.extend_from_slice(br#"{"target":"#);
        write_string(json, event.user);
        json.extend_from_slice(br#","type":"#);
        write_string(json, event.kind);
        json.extend_from_slice(br#","payload":"#);
        json.extend_from_slice(event.data.as_bytes());
        write!(json, r#","id":"{}-{}","ts":""#, position.0, position.1).expect("writing to a Vec cannot fail");
        json.extend_from_slice(&self.timestamp.1);
        json.extend_from_slice(b"\"}");
        websocket::write_server_frame(out, websocket::TEXT, json);
    }
}

/// Appends the `$hello` frame. All figures are zero: this server has no log and no heartbeat.
pub fn write_hello(out: &mut Vec<u8>, session: usize, user: &str) {
    let mut json = Vec::with_capacity(160);
    write!(json, r#"{{"type":"$hello","payload":{{"session":"{session}","user":"#)
        .expect("writing to a Vec cannot fail");
    write_string(&mut json, user);
    json.extend_from_slice(br#","epoch":"floor","head":0,"cursor":0,"heartbeat_ms":0,"reconnect_ms":0}}"#);
    websocket::write_server_frame(out, websocket::TEXT, &json);
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string is JSON and a Vec takes it");
}

/// Days to dates after H. Hinnant, "chrono-compatible low-level date algorithms",
/// `civil_from_days`.
fn write_rfc3339(out: &mut Vec<u8>, millis: i64) {
    let (days, in_day) = (millis.div_euclid(86_400_000), millis.rem_euclid(86_400_000));
    let shifted = days + 719_468; // days from 0000-03-01 to 1970-01-01
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (seconds, milli) = (in_day / 1_000, in_day % 1_000);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
        .expect("writing to a Vec cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_is_the_contract_s_frame() {
        let event = Event { user: "a\"b", kind: "update_channel", data: r#"{"channel":999}"# };
        let mut out = Vec::new();
        FrameWriter::default().notification(&mut out, &event, (3, 41), 1_795_251_600_123);
        let frame = websocket::parse(&out, 10_000).unwrap().expect("complete");
        let json: serde_json::Value = serde_json::from_slice(&out[frame.payload]).unwrap();
        let expected = serde_json::json!({
            "target": "a\"b", "type": "update_channel", "payload": {"channel": 999},
            "id": "3-41", "ts": "2026-11-21T09:00:00.123Z",
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn the_timestamp_follows_the_record() {
        let event = Event { user: "u", kind: "t", data: "1" };
        let mut writer = FrameWriter::default();
        let mut first = Vec::new();
        writer.notification(&mut first, &event, (0, 0), 0);
        let mut second = Vec::new();
        writer.notification(&mut second, &event, (0, 0), 951_782_400_000);
        assert!(first.ends_with(br#""ts":"1970-01-01T00:00:00.000Z"}"#));
        assert!(second.ends_with(br#""ts":"2000-02-29T00:00:00.000Z"}"#));
    }

    #[test]
    fn hello_is_json_and_names_the_user() {
        let mut out = Vec::new();
        write_hello(&mut out, 7, "load-7");
        let frame = websocket::parse(&out, 10_000).unwrap().expect("complete");
        let json: serde_json::Value = serde_json::from_slice(&out[frame.payload]).unwrap();
        assert_eq!(json["type"], "$hello");
        assert_eq!(json["payload"]["user"], "load-7");
    }
}
