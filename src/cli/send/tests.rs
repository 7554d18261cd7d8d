use std::{cell::Cell, pin::pin, sync::Arc};

use clap::Parser;

use super::*;
use crate::{
    event::{self, Event, Options},
    ingest::decode::{Decoder, Record},
};

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: Args,
}

const USUAL: &[&str] = &["--user", "101", "--type", "greeting", "--data", r#" {"z": 9007199254740993} "#];

fn parse(more: &[&str]) -> Args {
    let line = [&["send"], USUAL, more].concat();
    Command::try_parse_from(line).unwrap_or_else(|error| panic!("{error}")).args
}

fn decode(args: &Args, format: Format) -> Event {
    let encoded = encode::encode(format, &event(args, id(args, 1)));
    let headers: Vec<_> = encoded.headers.iter().map(|(key, value)| (*key, Some(value.as_bytes()))).collect();
    let decoder = Decoder::new("c", "t", 1000, Arc::new(|_| Options::default()));
    let record = Record { value: Some(&encoded.value), headers: &headers, timestamp: Some(1), partition: 0, offset: 0 };
    decoder.decode(&record).unwrap_or_else(|rejected| panic!("{format:?}: {rejected}"))
}

#[test]
fn every_format_is_decoded_to_what_was_asked_for() {
    let plain = parse(&["--id", "n1"]);
    let all = parse(&[
        "--id",
        "n2",
        "--durability",
        "inbox",
        "--priority",
        "critical",
        "--collapse-key",
        "k",
        "--ttl",
        "1h 500ms",
    ]);
    let session = parse(&["--id", "n3", "--session", "s"]);
    for format in Format::value_variants() {
        let event = decode(&plain, *format);
        assert_eq!((&*event.user, &*event.id, &*event.notification_type), ("101", "n1", "greeting"));
        assert_eq!(&*event.payload, r#"{"z": 9007199254740993}"#, "{format:?}");
        assert_eq!((event.session, event.options), (None, Options::default()), "{format:?}");
        let created = if *format == Format::Json { 1 } else { unix_millis_now() };
        assert!((created - 60_000..=created).contains(&event.created_at), "{format:?}: {}", event.created_at);

        let options = Options {
            durability: event::Durability::Inbox,
            priority: event::Priority::Critical,
            collapse_key: Some("k".into()),
            ttl: Some(Duration::from_millis(3_600_500)),
        };
        assert_eq!(decode(&all, *format).options, options, "{format:?}");
        assert_eq!(decode(&session, *format).session.as_deref(), Some("s"), "{format:?}");
    }
}

#[test]
fn ids_are_given_numbered_or_new() {
    assert_eq!(id(&parse(&["--id", "a"]), 1), "a");
    assert_eq!(id(&parse(&["--id", "a", "--count", "3"]), 2), "a-2");
    let new = parse(&["--count", "2"]);
    let (first, second) = (id(&new, 1), id(&new, 2));
    assert_ne!(first, second);
    assert_eq!(uuid::Uuid::parse_str(&first).unwrap().get_version_num(), 7);
}

#[test]
fn what_would_be_a_dead_letter_is_bad_usage_and_names_its_flag() {
    let long = "x".repeat(257);
    let nearly = "x".repeat(255);
    for (args, message) in [
        (&["--user", ""][..], "--user is empty"),
        (&["--user", &long], "--user is longer than 256 bytes"),
        (&["--type", "a\u{202e}"], "--type holds a control character"),
        (&["--type", "$bye"], "--type starts with $"),
        (&["--id", "\n"], "--id holds a control character"),
        (&["--id", &nearly, "--count", "9"], "--id is longer than 256 bytes"),
        (&["--collapse-key", &long], "--collapse-key is longer"),
        (&["--session", ""], "--session is empty"),
        (&["--ttl", "0s"], "--ttl is zero"),
        (&["--data", "hello"], "--data is no JSON text"),
        (&["--data", ""], "--data is no JSON text"),
        (&["--data", "{} {}"], "--data is no JSON text"),
    ] {
        let line = [&["send"], USUAL, args].concat();
        let parsed = Overriding::try_parse_from(line).unwrap_or_else(|error| panic!("{error}")).args;
        let error = check(&parsed).expect_err(message);
        assert!(error.0.contains(message), "{}", error.0);
    }
    for bad in [&["--count", "0"][..], &["--rate", "0"], &["--rate", "inf"], &["--ttl", "soon"], &["--format", "xml"]] {
        assert!(Command::try_parse_from([&["send"], USUAL, bad].concat()).is_err(), "{bad:?}");
    }
}

/// As [`Command`], but a flag may come again.
#[derive(Parser)]
#[command(args_override_self = true)]
struct Overriding {
    #[command(flatten)]
    args: Args,
}

#[test]
fn data_comes_from_the_command_line_a_file_or_standard_input() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[1]").unwrap();
    let path = format!("@{}", file.path().display());
    assert_eq!(read_data("{}", &b"no"[..]).unwrap(), "{}");
    assert_eq!(read_data("-", &b"[2]"[..]).unwrap(), "[2]");
    assert_eq!(read_data(&path, &b"no"[..]).unwrap(), "[1]");
    for (data, stdin) in [("@/nonexistent/file", &b""[..]), ("-", b"\xff")] {
        let error = read_data(data, stdin).unwrap_err();
        assert!(error.downcast_ref::<Usage>().is_some_and(|usage| usage.0.starts_with("--data: cannot read")));
    }
}

#[test]
fn output_is_one_line_an_event_and_people_get_a_summary() {
    let shown = |args: &Args| {
        let mut output = Vec::new();
        report(args, &Written { id: "n1".into(), partition: 3, offset: 7 }, &mut output).unwrap();
        if !args.json {
            summary(args.count, Duration::from_millis(500), &mut output).unwrap();
        }
        String::from_utf8(output).unwrap()
    };
    assert_eq!(shown(&parse(&["--count", "20"])), "n1  partition 3  offset 7\n20 events in 0.50 s, 40 a second\n");
    let json = "{\"id\":\"n1\",\"partition\":3,\"offset\":7}\n";
    assert_eq!(shown(&parse(&["--count", "20", "--json"])), json);
}

#[tokio::test]
async fn a_payload_that_no_node_takes_is_bad_usage() {
    let config = Config::default();
    let long = format!("\"{}\"", "x".repeat(config.limits.payload_bytes_max));
    let refused = run(Args { data: long, ..parse(&[]) }, &config).await.unwrap_err();
    assert!(refused.is::<Usage>() && refused.to_string().contains("limits.payload_bytes_max"), "{refused}");
}

#[tokio::test]
async fn so_many_events_are_under_way_and_the_next_waits_for_the_first() {
    let args = parse(&["--count", &(IN_FLIGHT_MAX + 2).to_string()]);
    let acknowledged = Arc::new(tokio::sync::Semaphore::new(0));
    let (started, reported) = (Cell::new(0), Cell::new(0));
    let write = async |_| {
        started.set(started.get() + 1);
        let acknowledged = acknowledged.clone();
        Ok(Box::pin(async move {
            acknowledged.acquire().await?.forget();
            Ok(Written { id: String::new(), partition: 0, offset: 0 })
        }) as Delivery)
    };
    let written = |_| {
        reported.set(reported.get() + 1);
        Ok(())
    };
    let mut sending = pin!(send_all(&args, write, written));
    // All that can be done without Kafka is done at once.
    for (more, expected) in [(0, (IN_FLIGHT_MAX, 0)), (1, (IN_FLIGHT_MAX + 1, 1)), (1, (IN_FLIGHT_MAX + 2, 2))] {
        acknowledged.add_permits(more);
        for _ in 0..100 {
            assert!(futures_util::poll!(sending.as_mut()).is_pending());
        }
        assert_eq!((started.get(), reported.get()), expected);
    }
    acknowledged.add_permits(IN_FLIGHT_MAX);
    sending.await.unwrap();
    assert_eq!(reported.get(), IN_FLIGHT_MAX + 2);
}
