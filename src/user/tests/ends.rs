//! How notifications end, and what the journal says of it.

use super::{
    limits::{event, ids, running},
    *,
};
use crate::{
    ids::SessionTag,
    state::State as Became,
    store::journal::{Cancelled, Journal as _, Mark},
};

#[tokio::test(start_paused = true)]
async fn what_waits_can_be_taken_back_and_what_has_a_number_too_until_somebody_has_acknowledged_it() {
    let user = running(|_| ()).await;
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    user.send(&["1", "2", "3", "4"]);
    settled().await;
    outlet.session().cast(session::Msg::Acknowledged(1)).unwrap();
    settled().await;
    assert_eq!(user.cancel("3").await.unwrap(), Cancelled::Done(None));
    assert_eq!(user.cancel("2").await.unwrap(), Cancelled::Done(Some(2)));
    assert_eq!(user.cancel("1").await.unwrap(), Cancelled::Ended(Became::Sent));
    assert_eq!(user.cancel("nobody").await.unwrap(), Cancelled::Unknown);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(ids(&outlet), ["1", "2", "4"]);
    // The client has 2 already, and acknowledges it: it was taken back all the same.
    outlet.session().cast(session::Msg::Acknowledged(3)).unwrap();
    settled().await;
    let (steps, _) = user.store.ended_after(&Mark::default(), 100).await.unwrap();
    let ended: Vec<_> =
        steps.iter().flat_map(|step| step.ids.iter().map(|id| (id.to_string(), step.state, step.reason))).collect();
    let cancelled = Some(Reason::Cancelled);
    let expected = [
        ("1", Became::Sent, None),
        ("3", Became::Deleted, cancelled),
        ("2", Became::Deleted, cancelled),
        ("4", Became::Sent, None),
    ];
    assert_eq!(ended, expected.map(|(id, state, reason)| (id.to_owned(), state, reason)), "each ends once");
}

#[tokio::test(start_paused = true)]
async fn the_journal_tells_who_had_what_and_who_acknowledged_first() {
    let user = running(|_| ()).await;
    let (first, first_id) = user.attach(Origin::Cursor);
    let (second, second_id) = user.attach(Origin::Cursor);
    settled().await;
    user.send(&["1", "2"]);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    first.session().cast(session::Msg::Acknowledged(1)).unwrap();
    settled().await;
    second.session().cast(session::Msg::Acknowledged(2)).unwrap();
    settled().await;
    first.session().stop(None);
    settled().await;
    let account = |id: &str| {
        let (store, id) = (user.store.clone(), NotificationId::new(id).unwrap());
        async move { store.account(&fakes::user(), &id).await.unwrap().unwrap() }
    };
    let told = |steps: &[crate::store::journal::Step]| {
        let [first, second] = [first_id, second_id].map(|id| Some(SessionTag::from(id)));
        let of = |session: Option<SessionTag>| if session == first { 1 } else { 2 };
        assert!(steps.iter().all(|step| [first, second].contains(&step.session)));
        steps.iter().map(|step| (step.state, of(step.session))).collect::<Vec<_>>()
    };
    let mut of_1 = told(&account("1").await.steps);
    of_1.sort_by_key(|(state, session)| (*state as u8, *session));
    assert_eq!(of_1, [(Became::Active, 1), (Became::Active, 2), (Became::Sent, 1)]);
    let mut of_2 = told(&account("2").await.steps);
    of_2.sort_by_key(|(state, session)| (*state as u8, *session));
    assert_eq!(of_2, [(Became::Active, 1), (Became::Active, 2), (Became::Stale, 1), (Became::Sent, 2)]);
    assert_eq!(user.stands("2").await.0, Became::Sent, "an end is not left");
}

#[tokio::test(start_paused = true)]
async fn what_had_expired_when_the_client_came_ends_as_that_and_not_as_sent() {
    let user = running(|_| ()).await;
    let short = event("1", |options| options.ttl = Some(Duration::from_millis(200)));
    user.event(short);
    user.send(&["2"]);
    settled().await;
    std::thread::sleep(Duration::from_millis(250));
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    assert_eq!(outlet.seen()[1..], [Seen::Gap(1, 1, "expired".into()), Seen::Numbered(2)]);
    outlet.session().cast(session::Msg::Acknowledged(2)).unwrap();
    settled().await;
    assert_eq!(user.stands("1").await, (Became::Deleted, Some(Reason::Expired)));
    assert_eq!(user.stands("2").await, (Became::Sent, None));
    let (steps, _) = user.store.ended_after(&Mark::default(), 100).await.unwrap();
    let ended: Vec<_> = steps.iter().flat_map(|step| step.ids.iter().map(|id| (id.to_string(), step.state))).collect();
    assert_eq!(ended, [("2".to_owned(), Became::Sent), ("1".to_owned(), Became::Deleted)], "each once");
}

#[tokio::test(start_paused = true)]
async fn an_expired_copy_of_what_was_delivered_is_no_second_end() {
    let user = running(|_| ()).await;
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    user.event(event("1", |options| options.ttl = Some(Duration::from_millis(200))));
    settled().await;
    outlet.session().cast(session::Msg::Acknowledged(1)).unwrap();
    settled().await;
    let mut copy = (*event("1", |options| options.ttl = Some(Duration::from_millis(1)))).clone();
    copy.recorded_at -= 1000;
    user.event(Arc::new(copy.clone()));
    copy.id = NotificationId::new("never").unwrap();
    user.event(Arc::new(copy));
    settled().await;
    assert_eq!(user.settled_now(), 3);
    let (steps, _) = user.store.ended_after(&Mark::default(), 100).await.unwrap();
    let ended: Vec<_> = steps.iter().flat_map(|step| step.ids.iter().map(|id| (id.to_string(), step.state))).collect();
    assert_eq!(ended, [("1".to_owned(), Became::Sent), ("never".to_owned(), Became::Deleted)]);
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_of_what_is_not_known_yet_changes_nothing_for_it() {
    let user = running(|_| ()).await;
    let (outlet, _) = user.attach(Origin::Cursor);
    settled().await;
    assert_eq!(user.cancel("1").await.unwrap(), Cancelled::Unknown);
    user.send(&["1"]);
    settled().await;
    outlet.session().cast(session::Msg::Acknowledged(1)).unwrap();
    settled().await;
    let (steps, _) = user.store.ended_after(&Mark::default(), 100).await.unwrap();
    assert_eq!(steps[0].ids, [NotificationId::new("1").unwrap()]);
}
