//! Who gets in, and why not, without a protocol.

use std::sync::Arc;

use super::*;
use crate::{
    auth,
    edge::{
        Limits,
        admission::Admission,
        fakes::{SECRET, auth_config, shared},
    },
    event::unix_millis_now,
    fakes::user,
    store::sessions::Started,
};

fn token(user: &UserId) -> String {
    auth::issue(user, Duration::from_secs(60), &auth_config(), SECRET).unwrap().0
}

/// What becomes of the wish, by both ways in; they agree.
async fn entered(shared: &Shared, wish: Wish<'_>) -> Result<Entered, String> {
    let at_once = shared.enter_at_once(&wish).map(|entered| entered.err().map(|refused| refused.to_string()));
    let entered = shared.enter(&wish).await.map_err(|refused| refused.to_string());
    if let Some(at_once) = at_once {
        assert_eq!(at_once, entered.as_ref().err().cloned());
    }
    entered
}

#[tokio::test]
async fn a_token_lets_its_user_in_and_a_wish_that_is_none_does_not() {
    let (shared, token) = (shared(), token(&user()));
    let good = || Wish { token: Some(&token), ..Wish::default() };
    let entered_as = entered(&shared, Wish { user: Some("101"), device: Some("d"), ..good() }).await.ok().unwrap();
    assert_eq!((&*entered_as.client.user, entered_as.client.is_started), ("101", false));
    for (what, wish) in [
        ("another user", Wish { user: Some("102"), ..good() }),
        ("no UTF-8", Wish { device: Some("a\u{fffd}"), ..good() }),
        ("no device", Wish { device: Some(""), ..good() }),
        ("no position", Wish { since: Some("x"), ..good() }),
        ("no token", Wish::default()),
        ("no session", Wish { session: Some("x"), ..good() }),
        ("an unknown session", Wish { session: Some(&SessionId::random().to_string()), ..good() }),
    ] {
        assert!(entered(&shared, wish).await.is_err(), "{what}");
    }
}

#[tokio::test]
async fn a_started_session_is_its_users_alone() {
    let shared = shared();
    let started = Started { session: SessionId::random(), user: user(), expires_at: unix_millis_now() + 60_000 };
    shared.started.start(started.clone()).await.unwrap();
    let (id, other) = (started.session.to_string(), UserId::new("102").unwrap());
    let (own, others) = (token(&user()), token(&other));
    let wish = || Wish { session: Some(&id), ..Wish::default() };
    let client = entered(&shared, wish()).await.ok().unwrap().client;
    assert_eq!((client.session, &*client.user, client.is_started), (started.session, "101", true));
    assert_eq!(client.expires_at, started.expires_at);
    assert!(entered(&shared, Wish { token: Some(&own), user: Some("101"), ..wish() }).await.is_ok());
    assert!(entered(&shared, Wish { user: Some("102"), ..wish() }).await.is_err());
    assert!(entered(&shared, Wish { token: Some(&others), ..wish() }).await.is_err());
}

#[tokio::test]
async fn nobody_enters_while_the_node_drains_has_no_memory_or_too_many_connects() {
    let token = token(&user());
    let refused = async |shared: &Arc<Shared>| {
        let wish = Wish { token: Some(&token), ..Wish::default() };
        let refusal = shared.enter(&wish).await.err();
        refusal.map(|refused| (refused.to_string(), refused.retry_after().is_some()))
    };
    let said = |refused: Refused| Some((refused.to_string(), true));
    let full = shared();
    full.admission.memory_full(true);
    assert_eq!(refused(&full).await, said(Refused::TooManyConnections));
    full.admission.memory_full(false);
    assert_eq!(refused(&full).await, None);
    full.draining.send_replace(true);
    assert_eq!(refused(&full).await, said(Refused::Draining));
    assert!(matches!(full.start_session(&token, None).await, Err(Refused::Draining)), "nor begins a session for later");

    let mut busy = Arc::into_inner(shared()).unwrap();
    busy.admission = Admission::new(Limits { connects_per_second: 1, ..busy.config.limits.clone() });
    let busy = Arc::new(busy);
    assert_eq!(refused(&busy).await, None);
    assert_eq!(refused(&busy).await, said(Refused::Busy(Duration::ZERO)));
}
