//! Clients that break the protocol are told so by the right code, and harm nobody else.

use crate::harness::{
    Event, Feed, Node,
    raw::{End, RawWs, opcode},
};

/// Lets `misbehave` loose on a fresh connection and checks the end, and that others go on.
async fn ends_with(code: u16, misbehave: impl AsyncFn(&mut RawWs)) {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut good = node.connect("101").await;
    let mut hostile = RawWs::open(node.addr(), &node.token("101")).await;
    misbehave(&mut hostile).await;
    assert_eq!(hostile.end().await, End::Code(code));
    feed.send(&Event::new("101", "undisturbed")).await;
    assert_eq!(good.one().await.kind, "undisturbed");
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
async fn a_binary_frame_ends_with_4004() {
    let feed = Feed::new(1).await;
    let node = Node::start(&feed).await;
    let mut client = node.connect("101").await;
    client.binary(vec![1, 2, 3]).await;
    assert_eq!(client.close_code().await, 4004);
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
async fn a_frame_that_announces_too_much_ends_with_1009_before_it_has_come() {
    ends_with(1009, async |peer| {
        peer.header(opcode::TEXT, 10 << 20).await;
        peer.write(b"the beginning").await;
    })
    .await;
}

#[tokio::test]
async fn a_whole_frame_above_the_limit_ends_with_1009() {
    ends_with(1009, async |peer| peer.send(opcode::TEXT, &[b' '; 70_000]).await).await;
}

#[tokio::test]
async fn text_that_is_not_utf8_ends_with_1007() {
    ends_with(1007, async |peer| peer.send(opcode::TEXT, b"{\"ack\":\"\xff\xfe\"}").await).await;
}

#[tokio::test]
async fn a_reserved_opcode_ends_with_1002() {
    ends_with(1002, async |peer| peer.send(3, b"x").await).await;
}

#[tokio::test]
async fn a_frame_without_mask_ends_with_1002() {
    ends_with(1002, async |peer| peer.write(b"\x81\x09{\"ack\":1}").await).await;
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
    crate::harness::eventually("no connections", async || {
        (node.metrics().await.sum("notifier_connections") == 0.0).then_some(())
    })
    .await;
}
