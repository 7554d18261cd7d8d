//! One connection's requests, over a real pair of sockets.

use tokio::net::TcpSocket;

use super::*;
use crate::{
    auth,
    edge::fakes::{SECRET, auth_config, shared_with},
    fakes::{Collector, user},
    shard::{self, Shards},
    store::sessions::MemorySessions,
};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connected pair, the server's end first; both hold little.
async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpSocket::new_v4().unwrap();
    listener.set_send_buffer_size(8 * 1024).unwrap();
    listener.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = listener.listen(1).unwrap();
    let client = TcpSocket::new_v4().unwrap();
    client.set_recv_buffer_size(8 * 1024).unwrap();
    let client = client.connect(listener.local_addr().unwrap()).await.unwrap();
    (listener.accept().await.unwrap().0, client)
}

/// Writes until the sockets are full; how much that was.
async fn fill(socket: &TcpStream) -> usize {
    let mut written = 0;
    // What the kernel moves on its own makes room again.
    while tokio::time::timeout(Duration::from_millis(200), socket.writable()).await.is_ok() {
        written += socket.try_write(&[b'x'; 1024]).unwrap_or_default();
    }
    written
}

#[tokio::test]
async fn a_session_takes_the_socket_when_all_of_its_answer_is_written() {
    let (shard, _) = Collector::<shard::Msg>::spawn().await;
    let shared = shared_with(Arc::new(MemorySessions::default()), Shards::new(vec![shard], 1));
    let (token, _) = auth::issue(&user(), Duration::from_secs(60), &auth_config(), SECRET).unwrap();
    let request = format!("GET /v1/stream HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n");
    let (socket, mut client) = sockets().await;
    let filled = fill(&socket).await;
    let admitted = shared.admission.admit(socket.peer_addr().unwrap().ip(), None).ok().unwrap();
    let routes = routes::router(shared.clone());
    // No deadline is to pass here, however slow the machine.
    let accepted_at = Instant::now() + PATIENCE;
    let serving = tokio::spawn(serve(Stream::Plain(socket), shared, routes, admitted, accepted_at));
    client.write_all(request.as_bytes()).await.unwrap();
    // The server comes as far as it can.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(!serving.is_finished(), "the answer has nowhere to go yet");
    let mut read = Vec::new();
    let reading = async {
        while !read.ends_with(b"retry: 1000\n\n\r\n") {
            assert!(client.read_buf(&mut read).await.unwrap() > 0, "the server has ended it");
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the session begins");
    let text = String::from_utf8(read.split_off(filled)).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("\r\n\r\n"), "{text}");
    serving.await.unwrap();
}
