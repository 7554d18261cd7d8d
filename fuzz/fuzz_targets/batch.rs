//! The body of `POST /v1/events`: what is accepted, ingest reads as an event.

#![no_main]

use libfuzzer_sys::fuzz_target;
use notifier::api::fuzzing;

fuzz_target!(|body: &[u8]| fuzzing::batch(body));
