//! What each event and each delivery goes through without waiting: reading an event, encoding its frame, limiter,
//! window, ledger, placement.
//!
//! `cargo bench --bench hot` measures; `cargo test --release --bench hot` only looks that everything works.

use std::hint::black_box;
use std::num::NonZeroU8;
use std::sync::Arc;

use divan::{Bencher, counter::ItemsCount};
use notifier::event::{Event, Notification, Options, Priority};
use notifier::ids::NotificationId;
use notifier::ingest::decode::{CLOUDEVENTS_EVENT_TYPE, Decoder, Record};
use notifier::ingest::ledger::{Credits, Ledger};
use notifier::session::window::{self, Window};
use notifier::user::limiter::{Limit, Limiter, Limits};
use notifier::{
    placement::{self, assignment},
    proto, wire,
};
use prost::Message as _;
use tokio::time::Instant;

fn main() {
    divan::main();
}

type Headers = &'static [(&'static str, Option<&'static [u8]>)];

/// The contract's forms of one event, with 512 bytes of data.
const FORMS: [&str; 6] =
    ["protobuf", "confluent", "json", "json_short", "cloudevents_binary", "cloudevents_structured"];

fn data() -> String {
    format!(r#"{{"text":"{}"}}"#, "x".repeat(501))
}

fn record(form: &str) -> (Vec<u8>, Headers) {
    let data = data();
    let message = proto::NotificationDeliveryRequested {
        user_id: "user-4711".to_owned(),
        notification: Some(proto::Notification {
            notification_type: "update_channel".to_owned(),
            data: data.clone(),
            ..Default::default()
        }),
        notification_id: "01990000-0000-7000-8000-000000000000".to_owned(),
        ..Default::default()
    };
    let text = serde_json::to_string(&data).expect("a text is JSON");
    match form {
        "protobuf" => (message.encode_to_vec(), &[]),
        // Magic byte, schema id, and one zero for the first message of the schema.
        "confluent" => ([&[0, 0, 0, 0, 7, 0][..], &message.encode_to_vec()].concat(), &[]),
        "json" => {
            let notification = format!(r#"{{"notificationType":"update_channel","data":{text}}}"#);
            (
                format!(r#"{{"userId":"user-4711","notificationId":"a","notification":{notification}}}"#).into_bytes(),
                &[],
            )
        }
        "json_short" => {
            (format!(r#"{{"target":"user-4711","type":"update_channel","id":"a","payload":{data}}}"#).into_bytes(), &[])
        }
        "cloudevents_binary" => {
            const HEADERS: Headers = &[
                ("ce_specversion", Some(b"1.0")),
                ("ce_type", Some(CLOUDEVENTS_EVENT_TYPE.as_bytes())),
                ("ce_source", Some(b"/bench")),
                ("ce_id", Some(b"a")),
            ];
            (message.encode_to_vec(), HEADERS)
        }
        "cloudevents_structured" => {
            const HEADERS: Headers = &[("content-type", Some(b"application/cloudevents+json"))];
            let event = format!(
                r#"{{"specversion":"1.0","type":"update_channel","source":"/bench","id":"a","subject":"user-4711","data":{data}}}"#
            );
            (event.into_bytes(), HEADERS)
        }
        other => panic!("no form {other}"),
    }
}

fn event() -> Arc<Event> {
    let (value, headers) = record("protobuf");
    let record = Record { value: Some(&value), headers, timestamp: Some(0), partition: 3, offset: 4 };
    Arc::new(decoder().decode(&record).expect("an event"))
}

fn decoder() -> Decoder {
    Decoder::new("cluster", "topic", 256 * 1024, Arc::new(|_: &str| Options::default()))
}

#[divan::bench(args = FORMS)]
fn decode(bencher: Bencher<'_, '_>, form: &str) {
    let (decoder, (value, headers)) = (decoder(), record(form));
    let record = Record { value: Some(&value), headers, timestamp: Some(1_763_700_000_000), partition: 3, offset: 4 };
    let event = decoder.decode(&record).expect("each form is one event");
    assert_eq!((&*event.user, event.payload.len()), ("user-4711", 512));
    bencher.counter(ItemsCount::new(1u32)).bench(|| decoder.decode(black_box(&record)));
}

#[divan::bench]
fn encode_json_frame(bencher: Bencher<'_, '_>) {
    let notification = Notification { seq: Some(12), event: event() };
    bencher.bench(|| wire::Frame::notification(black_box(&notification)));
}

#[divan::bench]
fn encode_protobuf_frame(bencher: Bencher<'_, '_>) {
    let event = event();
    bencher.bench(|| wire::websocket_binary(&wire::protobuf(Some(12), black_box(&event))));
}

#[divan::bench]
fn limiter_take(bencher: Bencher<'_, '_>) {
    let limits = Limits::default().with(Priority::Normal, Limit { per_second: 20.0, burst: 100, dry_run: false });
    let (mut limiter, now) = (Limiter::default(), Instant::now());
    bencher.bench_local(|| limiter.try_take(black_box(&limits), Priority::Normal, now));
}

/// A frame goes out and its acknowledgement comes back, behind a hundred others.
#[divan::bench]
fn window_send_and_acknowledge(bencher: Bencher<'_, '_>) {
    let mut window = Window::new(window::Limits { items: 256, bytes: 1 << 20 }, true);
    let (id, now): (NotificationId, _) = (event().id.clone(), Instant::now());
    let mut next = 0;
    let mut send = |window: &mut Window| {
        next += 1;
        window.on_sent(next, &id, 600, now);
        next
    };
    (0..100).for_each(|_| {
        send(&mut window);
    });
    bencher.bench_local(|| {
        let last = send(&mut window);
        assert!(window.has_room());
        window.on_acknowledged(last - 100)
    });
}

/// A record is read and the oldest is settled, with a thousand under way.
#[divan::bench]
fn ledger_read_and_settle(bencher: Bencher<'_, '_>) {
    let many = usize::MAX;
    let credits = Credits { events: many, bytes: many, partition_events: many, partition_bytes: many, span: many };
    let (mut ledger, event) = (Ledger::new(credits), event());
    ledger.assign(0, 1, 0);
    let mut offset = 0;
    let mut read = |ledger: &mut Ledger| {
        offset += 1;
        ledger.read(0, offset, 0, 600, Some(event.clone())).expect("a new record").0
    };
    let mut oldest = read(&mut ledger);
    (0..1_000).for_each(|_| {
        read(&mut ledger);
    });
    bencher.bench_local(|| {
        read(&mut ledger);
        ledger.settle(oldest);
        oldest.offset += 1;
        ledger.position(0)
    });
}

#[divan::bench]
fn placement_of_a_user(bencher: Bencher<'_, '_>) {
    bencher.bench(|| placement::shard(black_box("user-4711"), 1024));
}

/// Who should own each of the 1,024 shards: what every node computes whenever the members change.
#[divan::bench(args = [3, 20])]
fn placement_of_all_shards(bencher: Bencher<'_, '_>, nodes: usize) {
    let names: Vec<String> = (0..nodes).map(|number| format!("node-{number}")).collect();
    let candidate = |id| assignment::Candidate { id, weight: NonZeroU8::MIN };
    let candidates: Vec<_> = names.iter().map(|name| candidate(name.as_str())).collect();
    assert_eq!(assignment::shards(&candidates, 1024).len(), 1024);
    bencher.bench(|| assignment::shards(black_box(&candidates), 1024));
}
