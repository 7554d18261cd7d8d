//! TLS under a connection, against a rustls client over the loopback interface.

use std::{sync::Arc, time::Duration};

use rustls::{ClientConfig, RootCertStore, pki_types::ServerName, version::TLS13};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket},
};
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::edge::tls::{Acceptor, Files, Listener};

/// The other end.
pub(in crate::edge) type Client = client::TlsStream<TcpStream>;

/// A connection whose sockets hold little, so that they are full soon.
pub(in crate::edge) async fn pair() -> (Socket, Client) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let files = Files { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
    std::fs::write(&files.cert, certified.cert.pem()).unwrap();
    std::fs::write(&files.key, certified.signing_key.serialize_pem()).unwrap();
    let acceptor = Acceptor::load(Listener::Client, files, &[]).unwrap();

    let mut roots = RootCertStore::empty();
    roots.add(certified.cert.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();

    let listener = TcpSocket::new_v4().unwrap();
    listener.set_send_buffer_size(8 * 1024).unwrap();
    listener.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener: TcpListener = listener.listen(1).unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    let connecting = async {
        let tcp = socket.connect(listener.local_addr().unwrap()).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    };
    let accepting = async { acceptor.accept(listener.accept().await.unwrap().0).await.unwrap() };
    let (client, stream) = tokio::join!(connecting, accepting);
    (stream.into(), client)
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what).await.expect("in time")
}

/// Reads so many bytes as a connection's task does.
async fn read(socket: &Socket, count: usize, at_once: usize) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = vec![0; at_once];
    while all.len() < count {
        soon(socket.ready(Interest::READABLE)).await.unwrap();
        match socket.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => all.extend_from_slice(&buffer[..read]),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
    all
}

/// Bytes that show where one is missing.
fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[tokio::test]
async fn what_rustls_holds_already_counts_as_readable() {
    let (socket, mut client) = pair().await;
    let sent = pattern(12_000);
    client.write_all(&sent).await.unwrap();
    client.flush().await.unwrap();
    // One record, read from the kernel with the first read; nothing comes after it.
    assert_eq!(read(&socket, sent.len(), 100).await, sent);
    let nothing = tokio::time::timeout(Duration::from_millis(200), async {
        loop {
            socket.ready(Interest::READABLE).await.unwrap();
            assert_eq!(socket.try_read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    });
    assert!(nothing.await.is_err());
}

#[tokio::test]
async fn what_was_decrypted_before_the_takeover_is_not_lost() {
    let (socket, mut client) = pair().await;
    client.write_all(b"early").await.unwrap();
    let Socket::Tls(tls) = &socket else { unreachable!() };
    // As a stream's read would: the kernel is empty afterwards, and knows it.
    while !tls.session.lock().rustls.process_new_packets().is_ok_and(|state| state.plaintext_bytes_to_read() == 5) {
        tls.tcp.readable().await.unwrap();
        let _ = tls.session.lock().rustls.read_tls(&mut Tcp(&tls.tcp));
    }
    assert_eq!(tls.tcp.try_read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(read(&socket, 5, 100).await, b"early");
}

#[tokio::test]
async fn a_full_socket_holds_one_record_and_gives_all_in_order_when_it_is_read() {
    let (socket, mut client) = pair().await;
    let bytes = pattern(400_000);
    let mut written = 0;
    loop {
        match socket.try_write(&bytes[written..]) {
            Ok(0) => panic!("neither taken nor refused"),
            Ok(count) => written += count,
            Err(error) => break assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
    assert!(socket.has_unsent(), "the kernel has taken {written} bytes");
    assert!(written < bytes.len(), "nothing pushed back");
    let Socket::Tls(tls) = &socket else { unreachable!() };
    // What is held is bounded: nothing more goes in, however often it is tried.
    assert!((0..100).all(|_| socket.try_write(b"more").is_err()) && tls.session.lock().rustls.wants_write());

    let writing = async {
        while written < bytes.len() || socket.has_unsent() {
            soon(socket.ready(Interest::WRITABLE)).await.unwrap();
            let (first, second) = bytes[written..].split_at((bytes.len() - written) / 2);
            let pieces = [io::IoSlice::new(first), io::IoSlice::new(second)];
            let result =
                if written < bytes.len() { socket.try_write_vectored(&pieces) } else { socket.try_flush().map(|()| 0) };
            match result {
                Ok(count) => written += count,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        socket.close();
    };
    let mut received = Vec::new();
    let (_, read) = tokio::join!(writing, soon(client.read_to_end(&mut received)));
    // With the goodbye of TLS, or this would be an error.
    read.unwrap();
    assert!(received == bytes, "{} of {} bytes", received.len(), bytes.len());
}

#[tokio::test]
async fn new_keys_are_answered_and_change_nothing() {
    let (socket, mut client) = pair().await;
    for round in 0..100_u8 {
        client.get_mut().1.refresh_traffic_keys().unwrap();
        client.write_all(&[round]).await.unwrap();
        assert_eq!(read(&socket, 1, 8).await, [round]);
        assert_eq!(socket.try_write(&[round]).unwrap(), 1);
        let mut answer = [0];
        soon(client.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer, [round]);
    }
}

#[tokio::test]
async fn the_end_is_seen_with_and_without_goodbye_and_garbage_is_an_error() {
    let (socket, mut client) = pair().await;
    client.shutdown().await.unwrap();
    assert_eq!(read(&socket, 1, 8).await, b"");

    let (socket, client) = pair().await;
    client.into_inner().0.shutdown().await.unwrap();
    assert_eq!(read(&socket, 1, 8).await, b"");

    let (socket, client) = pair().await;
    let (mut tcp, _) = client.into_inner();
    tcp.write_all(&[0; 64]).await.unwrap();
    let error = loop {
        soon(socket.ready(Interest::READABLE)).await.unwrap();
        match socket.try_read(&mut [0; 8]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => break other.unwrap_err(),
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn others_have_their_turn_before_what_may_be_left_is_read() {
    let (socket, _client) = pair().await;
    let mut ready = std::pin::pin!(socket.ready(Interest::READABLE));
    // Nobody has read yet: something may be there, and the kernel does not say so.
    assert!(futures_util::poll!(ready.as_mut()).is_pending());
    soon(ready).await.unwrap();
}

#[test]
fn reads_that_yield_nothing_are_bounded_and_the_first_that_does_ends_them() {
    let mut reads = 0;
    let empty = within_a_turn(|| {
        reads += 1;
        assert!(reads < 1000, "without bound");
        Ok(None)
    });
    assert_eq!((empty.unwrap_err().kind(), reads), (io::ErrorKind::WouldBlock, EMPTY_READS_MAX));
    let mut results = [Ok(None), Ok(Some(7)), Ok(Some(8))].into_iter();
    assert_eq!(within_a_turn(|| results.next().unwrap()).unwrap(), 7);
    let gone = within_a_turn(|| Err(io::ErrorKind::ConnectionReset.into()));
    assert_eq!(gone.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}
