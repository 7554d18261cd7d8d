//! A record of any form: it becomes an event that can be delivered, or is rejected; nothing else.

#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use notifier::{
    event::Options,
    ids,
    ingest::decode::{CLOUDEVENTS_EVENT_TYPE, Decoder, Headers, Record},
};
use serde_json::value::RawValue;

const PAYLOAD_BYTES_MAX: usize = 4096;

static DECODER: LazyLock<Decoder> =
    LazyLock::new(|| Decoder::new("cluster", "topic", PAYLOAD_BYTES_MAX, Arc::new(|_| Options::default())));

fuzz_target!(|bytes: &[u8]| {
    let Some((form, value)) = bytes.split_first() else { return };
    let structured: &Headers<'_> = &[("content-type", Some(b"application/cloudevents+json"))];
    let binary: &Headers<'_> = &[("ce_type", Some(b"t")), ("ce_subject", Some(b"u")), ("ce_id", Some(b"i"))];
    let event: &Headers<'_> = &[("ce_type", Some(CLOUDEVENTS_EVENT_TYPE.as_bytes()))];
    let any: &Headers<'_> = &[("ce_type", Some(value)), ("ce_subject", Some(value)), ("ce_id", Some(value))];
    let headers = [&[], structured, binary, event, any][usize::from(form % 5)];
    let record = Record { value: Some(value), headers, timestamp: Some(0), partition: 0, offset: 0 };
    let Ok(event) = DECODER.decode(&record) else { return };
    assert!(event.payload.len() <= 6 * PAYLOAD_BYTES_MAX + 2, "text becomes a JSON string at the most");
    serde_json::from_str::<&RawValue>(&event.payload).expect("a payload is JSON");
    ids::check(&event.user).expect("a user is an identifier");
    ids::check(&event.id).expect("an id is one");
    ids::check(&event.notification_type).expect("a type is one");
    assert!(!event.notification_type.starts_with('$'), "only the server says $");
});
