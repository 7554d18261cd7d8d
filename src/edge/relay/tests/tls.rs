//! The relay over TLS, where the last bytes can be neither in the queue nor in the kernel.

use super::*;
use crate::edge::socket::tests::{Client as TlsClient, pair};

fn relay(socket: Socket) -> Arc<Relay> {
    let relay = Arc::new(Relay::new(who(), PLAIN, Sink::Socket(socket), LIMITS, LogEpoch::random(), Arc::default()));
    relay.next_attachment();
    relay
}

/// The connection's task, as far as writing goes.
async fn serve(relay: Arc<Relay>) {
    loop {
        relay.ready().await.unwrap();
        relay.todo().unwrap();
        let _ = relay.try_read(&mut [0; 64]);
        // Readiness that no read has taken back yet would keep this one running.
        tokio::task::yield_now().await;
    }
}

async fn read(client: &mut TlsClient, bytes: usize) -> usize {
    let (mut read, mut part) = (0, [0; 4096]);
    while read < bytes {
        read += within(client.read(&mut part)).await.unwrap();
    }
    read
}

/// Writes until the queue is empty and something is left all the same; how much was written.
async fn fill(relay: &Arc<Relay>, write: impl Fn() -> usize) -> usize {
    let mut written = 0;
    while !(relay.state.lock().queue.is_empty() && unsent(relay)) {
        written += write();
        // The task waits for the client to say something by now.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        assert!(written < LIMITS.bytes, "the socket takes everything");
    }
    written
}

#[tokio::test]
async fn what_is_left_of_a_flush_is_written_as_soon_as_the_client_reads() {
    let (socket, mut client) = pair().await;
    let relay = relay(socket);
    let task = tokio::spawn(serve(relay.clone()));
    let written = fill(&relay, || {
        let event = transient(&user(), "t");
        let notification = Notification { seq: None, event };
        let frame = Frame::notification(&notification);
        let outgoing = Outgoing { frame: &frame, kind: Kind::Notification(None, &notification.event) };
        let mut bytes = 0;
        for _ in 0..10 {
            assert_eq!(relay.push(1, &outgoing), Pushed::Taken);
            bytes += PLAIN.encode(&relay.epoch, &outgoing).len();
        }
        relay.flush();
        bytes
    })
    .await;
    assert!(!relay.is_flushed());
    assert_eq!(read(&mut client, written).await, written);
    assert!(relay.is_flushed());
    task.abort();
}

#[tokio::test]
async fn what_is_left_of_a_control_frame_is_too() {
    let (socket, mut client) = pair().await;
    let relay = relay(socket);
    let task = tokio::spawn(serve(relay.clone()));
    let written = fill(&relay, || relay.write_control(&[b'x'; 3000]).unwrap()).await;
    assert_eq!(read(&mut client, written).await, written);
    assert!(relay.is_flushed());
    task.abort();
}

fn unsent(relay: &Relay) -> bool {
    matches!(&relay.sink, Sink::Socket(socket) if socket.has_unsent())
}
