//! Clients that break the protocol are told so by the right code, and harm nobody else.

use std::time::Duration;

use crate::harness::{
    Event, Feed, Node, eventually,
    raw::{End, FIN, RawWs, frame, header, opcode},
};

/// What breaks the protocol, by name, and the code that it ends with.
pub fn violations() -> Vec<(&'static str, u16, Vec<u8>)> {
    use opcode::{BINARY, CLOSE, CONTINUATION, PING, TEXT};
    const RSV1: u8 = 0x40;
    const RSV2: u8 = 0x20;
    const RSV3: u8 = 0x10;
    let ack = br#"{"ack":0}"#;
    let control = |first: u8| frame(first, b"x");
    let both = |first: Vec<u8>, second: Vec<u8>| [first, second].concat();
    let mut unmasked = vec![FIN | TEXT, 9];
    unmasked.extend_from_slice(ack);
    vec![
        ("a frame without mask", 1002, unmasked),
        ("a reserved opcode", 1002, control(FIN | 3)),
        ("the last reserved opcode", 1002, control(FIN | 7)),
        ("a reserved control opcode", 1002, control(FIN | 0xb)),
        ("a compressed message, which was not negotiated", 1002, frame(FIN | RSV1 | TEXT, ack)),
        ("a reserved bit", 1002, frame(FIN | RSV2 | TEXT, ack)),
        ("another reserved bit", 1002, frame(FIN | RSV3 | TEXT, ack)),
        ("a ping in fragments", 1002, control(PING)),
        ("a ping of 126 bytes", 1002, frame(FIN | PING, &[b'x'; 126])),
        ("the end of a message that never began", 1002, control(FIN | CONTINUATION)),
        ("a message in the middle of another", 1002, both(frame(TEXT, b"{"), frame(FIN | TEXT, ack))),
        ("a close of one byte", 1002, frame(FIN | CLOSE, b"x")),
        ("a close with a code that must not be sent", 1002, frame(FIN | CLOSE, &1005_u16.to_be_bytes())),
        ("too much announced", 1009, both(header(FIN | TEXT, 10 << 20), b"the beginning".to_vec())),
        ("all there is announced", 1009, header(FIN | TEXT, u64::MAX >> 1)),
        ("a message above the limit", 1009, frame(FIN | TEXT, &[b' '; 70_000])),
        (
            "fragments that are too much together",
            1009,
            both(frame(TEXT, &[b' '; 40_000]), frame(CONTINUATION, &[b' '; 40_000])),
        ),
        ("text that is not UTF-8", 1007, frame(FIN | TEXT, b"{\"ack\":\"\xff\xfe\"}")),
        (
            "text that is not UTF-8 over two fragments",
            1007,
            both(frame(TEXT, b"{\"ack\":\"\xf0\x9f"), frame(FIN | CONTINUATION, b"\x28\x8d\"}")),
        ),
        ("text that ends within a character", 1007, frame(FIN | TEXT, b"\xf0\x9f")),
        ("text that is no acknowledgement", 4004, frame(FIN | TEXT, b"hello")),
        ("an acknowledgement of what was never sent", 4004, frame(FIN | TEXT, br#"{"ack":999}"#)),
        ("a binary message", 4004, frame(FIN | BINARY, ack)),
    ]
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_with_its_code_and_disturbs_nobody() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut good = node.connect("101").await;
    for (what, code, bytes) in violations() {
        let mut hostile = RawWs::open(node.addr(), &node.token("101")).await;
        hostile.write(&bytes).await;
        assert_eq!(hostile.end().await, End::Code(code), "{what}");
        feed.send(&Event::new("101", "undisturbed").transient()).await;
        assert_eq!(good.one().await.kind, "undisturbed", "beside {what}");
    }
}

#[tokio::test]
async fn an_acknowledgement_in_fragments_with_pings_between_them_counts() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    feed.send_all(&[Event::numbered("101", 0), Event::numbered("101", 1)]).await;
    assert_eq!(client.expect(2).await[1].number(), 2);
    let mut raw = RawWs::open(node.addr(), &node.token("101")).await;
    // `$hello` and both notifications: nothing that was not sent can be acknowledged.
    for _ in 0..3 {
        raw.frame().await;
    }
    let text = br#"{"ack":2}"#;
    for (at, byte) in text.iter().enumerate() {
        let opcode = if at == 0 { opcode::TEXT } else { opcode::CONTINUATION };
        let last = if at + 1 == text.len() { FIN } else { 0 };
        raw.write(&frame(last | opcode, &[*byte])).await;
        raw.send(opcode::PING, b"").await;
    }
    eventually("the cursor at 2", async || (node.connect("101").await.hello().cursor == 2).then_some(())).await;
}

#[tokio::test]
async fn text_that_is_no_acknowledgement_ends_with_4004() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    feed.send(&Event::new("101", "t")).await;
    node.settled(1).await;
    let texts = [
        "hello",
        "",
        "{}",
        "[]",
        "null",
        "{\"ack\":\"1\"}",
        "{\"ack\":-1}",
        "{\"ack\":1.5}",
        "{\"ack\":1,\"more\":2}",
        "{\"ack\":1",
        "{\"ack\":99999999999999999999}",
    ];
    for text in texts {
        let mut client = node.connect("101").await;
        client.one().await;
        client.text(text).await;
        assert_eq!(client.close_code().await, 4004, "after {text:?}");
    }
    assert_eq!(node.connect("101").await.hello().cursor, 0, "nothing was acknowledged");
}

#[tokio::test]
async fn an_acknowledgement_above_what_was_sent_ends_with_4004() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    feed.send(&Event::new("101", "t")).await;
    let seq = client.one().await.number();
    client.ack(seq + 1).await;
    assert_eq!(client.close_code().await, 4004);
    assert_eq!(node.connect("101").await.hello().cursor, 0);
}

#[tokio::test]
async fn who_goes_on_sending_after_its_goodbye_is_cut_off() {
    /// Less than a goodbye may take.
    const CUT_WITHIN: Duration = Duration::from_secs(3);
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    for (what, _, bytes) in violations() {
        let mut peer = RawWs::open(node.addr(), &node.token("101")).await;
        peer.write(&bytes).await;
        let goes_on = async { while peer.is_taken(&[0xff; 16 << 10]).await {} };
        assert!(tokio::time::timeout(CUT_WITHIN, goes_on).await.is_ok(), "still listened to after {what}");
    }
}

#[tokio::test]
async fn peers_that_vanish_leave_no_connection_behind() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    for n in 0..20 {
        let mut peer = RawWs::open(node.addr(), &node.token(&format!("u{n}"))).await;
        // Half a frame, then gone.
        peer.write(b"\x81\x89abcd").await;
    }
    eventually("no connections", async || (node.metrics().await.sum("notifier_connections") == 0.0).then_some(()))
        .await;
}
