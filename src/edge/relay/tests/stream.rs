//! A relay whose messages somebody else writes: gRPC's streams.

use std::task::{Context, Poll};

use futures_util::task::noop_waker_ref;

use super::*;
use crate::edge::protocol::Grpc;

fn relay() -> Arc<Relay> {
    let (protocol, sink) = (Protocol::Grpc(Grpc::Native), Sink::Stream(AtomicWaker::new()));
    let relay = Arc::new(Relay::new(who(), protocol, sink, LIMITS, LogEpoch::random(), Arc::default()));
    relay.next_attachment();
    relay
}

fn push(relay: &Arc<Relay>, seq: Sequence, bytes: usize) -> Pushed {
    let mut event = durable(&user(), &seq.to_string());
    Arc::make_mut(&mut event).payload = format!("\"{}\"", "x".repeat(bytes)).into();
    let notification = Notification { seq: Some(seq), event };
    let frame = Frame::notification(&notification);
    relay.push(1, &Outgoing { frame: &frame, kind: Kind::Notification(Some(seq), &notification.event) })
}

fn next(relay: &Relay) -> Poll<Option<Sequence>> {
    let message = relay.poll_message(&Context::from_waker(noop_waker_ref()));
    message.map(|message| {
        let message = message?;
        Some(<crate::proto::Notification as prost::Message>::decode(message).unwrap().sequence)
    })
}

#[tokio::test]
async fn messages_come_in_order_and_wait_for_nobody_but_their_reader() {
    let relay = relay();
    assert_eq!(next(&relay), Poll::Pending);
    for seq in 1..=3 {
        assert_eq!(push(&relay, seq, 10), Pushed::Taken);
    }
    assert!(!relay.is_flushed());
    relay.flush();
    assert_eq!([1, 2, 3].map(|seq| next(&relay) == Poll::Ready(Some(seq))), [true; 3]);
    assert!(next(&relay).is_pending() && relay.is_flushed());
}

#[tokio::test]
async fn a_stream_that_nobody_reads_is_full_and_says_once_that_it_has_drained() {
    let relay = relay();
    let (actor, heard) = session().await;
    relay.attached(1, actor.into(), 0);
    let full = (1..).find(|seq| push(&relay, *seq, 10_000) == Pushed::Full).unwrap();
    assert!(full > 2, "some are taken");
    let mut read = 0;
    while drained(&heard).await == 0 {
        read += 1;
        assert_eq!(next(&relay), Poll::Ready(Some(read)));
    }
    assert!(read > 1, "half of the queue is free");
    while next(&relay).is_ready() {}
    assert_eq!(drained(&heard).await, 1);
}

#[tokio::test]
async fn what_ends_a_stream_wakes_its_reader_and_its_task() {
    let relay = relay();
    push(&relay, 1, 10);
    Relay::close(&relay, Close::new(CloseCode::Replaced, "ended by the API"));
    within(relay.ready()).await.unwrap();
    relay.write_goodbye(&relay.todo().unwrap().close.unwrap());
    assert_eq!(next(&relay), Poll::Ready(Some(1)));
    assert_eq!(next(&relay), Poll::Ready(Some(0)), "the goodbye");
    within(relay.ready()).await.unwrap();
    assert!(relay.is_flushed() && next(&relay).is_pending());

    let reader = tokio::spawn({
        let relay = relay.clone();
        std::future::poll_fn(move |cx| relay.poll_message(cx))
    });
    tokio::task::yield_now().await;
    relay.end();
    assert_eq!(within(reader).await.unwrap(), None);
    let reason = relay.close_reason().expect("it was closed");
    assert_eq!(reason.code, CloseCode::Replaced);
    relay.write_goodbye(&reason);
    assert!(relay.is_flushed(), "nothing is kept for nobody");
}

#[tokio::test]
async fn a_burst_that_comes_before_the_writers_turn_finds_room() {
    let relay = relay();
    const { assert!(LIMITS.items < BURST_ITEMS, "or this would show nothing") };
    let taken = (1..).take_while(|seq| push(&relay, *seq, 1) == Pushed::Taken).count();
    assert_eq!(taken, BURST_ITEMS);
}
