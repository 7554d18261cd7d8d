//! Connections whose session is at rest.

use super::*;

/// A connection that is served, by somebody who only listens.
async fn served() -> (Pair, Heard<session::Msg>) {
    let pair = Pair::new(PLAIN).await;
    let (session, heard) = Collector::<session::Msg>::spawn().await;
    assert!(pair.relay.attached(1, session.into(), 0));
    (pair, heard)
}

#[tokio::test]
async fn a_session_lets_go_only_when_nothing_waits_and_it_has_heard_all() {
    let (mut pair, _heard) = served().await;
    assert_eq!(pair.relay.rest(2, 0), None, "another attachment's");
    assert_eq!(pair.push(1, Some(1), 10), Pushed::Taken);
    assert_eq!(pair.relay.rest(1, 0), None, "it is not written yet");
    pair.relay.flush();
    assert!(pair.relay.acknowledge(1));
    assert_eq!(pair.relay.rest(1, 0), None, "an acknowledgement is on its way");
    assert_eq!(pair.relay.rest(1, 1), Some(2));
    assert!(pair.relay.rests(2) && !pair.relay.rests(1));
    assert_eq!(pair.push(1, Some(2), 10), Pushed::Gone);
    let (successor, _) = Collector::<session::Msg>::spawn().await;
    assert!(pair.relay.attached(2, successor.into(), 1));
    assert!(!pair.relay.rests(2));
    assert_eq!(pair.push(2, Some(2), 10), Pushed::Taken);
}

#[tokio::test]
async fn a_session_that_was_told_to_say_goodbye_does_not_let_go() {
    let (pair, heard) = served().await;
    pair.relay.close_in_order(Close::new(CloseCode::GoingAway, "draining"));
    assert_eq!(pair.relay.rest(1, 0), None);
    while heard.lock().len() < 2 {
        tokio::task::yield_now().await;
    }
    assert!(matches!(heard.lock()[1], session::Msg::Close(_)));
    let (pair, _heard) = served().await;
    assert_eq!(pair.relay.rest(1, 0), Some(2));
    pair.relay.close_in_order(Close::new(CloseCode::GoingAway, "draining"));
    assert!(pair.relay.close_reason().is_some(), "one at rest has nobody to tell");
    assert!(pair.relay.ended_at_rest());
    assert!(!pair.relay.ended_at_rest(), "once");
}

#[tokio::test]
async fn news_for_a_session_at_rest_is_told_until_somebody_serves_it() {
    let (mut pair, _heard) = served().await;
    assert_eq!(pair.push(1, Some(1), 10), Pushed::Taken);
    pair.relay.flush();
    assert_eq!(pair.relay.rest(1, 0), Some(2));
    assert!(!pair.relay.todo().unwrap().wake);
    assert!(pair.relay.acknowledge(1));
    within(pair.relay.ready()).await.unwrap();
    assert!(pair.relay.todo().unwrap().wake);
    let (successor, heard) = Collector::<session::Msg>::spawn().await;
    assert!(pair.relay.attached(2, successor.into(), 1));
    while heard.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(matches!(heard.lock()[0], session::Msg::Acknowledged(1)));
    assert!(!pair.relay.todo().unwrap().wake);
}

#[tokio::test]
async fn who_is_lost_at_rest_is_attached_again_and_who_has_ended_is_not() {
    let (pair, _heard) = served().await;
    assert_eq!(pair.relay.rest(1, 0), Some(2));
    pair.relay.lost(2);
    assert!(!pair.relay.rests(2) && pair.relay.todo().unwrap().lost.is_some());
    let (pair, _heard) = served().await;
    assert_eq!(pair.relay.rest(1, 0), Some(2));
    pair.relay.end();
    assert!(!pair.relay.rests(2));
    pair.relay.lost(2);
    let todo = pair.relay.todo().unwrap();
    assert!(todo.lost.is_none() && todo.ended && pair.relay.ended_at_rest());
}
