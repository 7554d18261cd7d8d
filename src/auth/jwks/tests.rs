//! When the issuer is asked, how often, and what stays when it does not answer. The time in here is made.

use std::sync::atomic::{AtomicUsize, Ordering};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;

use super::*;
use crate::auth::{
    Algorithm, Authenticator, Config, Denied, Principal, Scope,
    tests::{keys, token},
};

const HOUR: Duration = Duration::from_secs(3600);

fn set(names: &[&str]) -> KeySet {
    let bytes = keys::pem_bytes(keys::ED25519);
    let x = URL_SAFE_NO_PAD.encode(&bytes[bytes.len() - 32..]);
    let keys: Vec<_> =
        names.iter().map(|name| json!({ "kty": "OKP", "crv": "Ed25519", "x": x, "kid": name })).collect();
    KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
}

fn names(issuer: &Issuer) -> Option<Vec<String>> {
    let keys = issuer.keys()?;
    Some(keys.iter().map(|key| key.id.clone().unwrap_or_default()).collect())
}

/// An issuer whose answers a test makes up, and the number of times that it was asked.
fn issuer<F>(answer: impl Fn(usize) -> F + Send + Sync + 'static) -> (Arc<Issuer>, Arc<AtomicUsize>)
where
    F: Future<Output = Result<Fetched, FetchError>> + Send + 'static,
{
    let (issuer, asked) = (Arc::new(Issuer::default()), Arc::new(AtomicUsize::new(0)));
    let (running, count) = (issuer.clone(), asked.clone());
    tokio::spawn(async move {
        running.keep_fresh_with(|| answer(count.fetch_add(1, Ordering::Relaxed))).await;
    });
    (issuer, asked)
}

fn fresh(set: KeySet, fresh_for: Duration) -> Result<Fetched, FetchError> {
    Ok(Fetched { set, fresh_for })
}

#[tokio::test(start_paused = true)]
async fn unknown_keys_cause_one_fetch_in_a_floors_time_however_many_they_are() {
    let (issuer, asked) = issuer(async |_| {
        sleep(Duration::from_millis(100)).await;
        fresh(set(&["a"]), HOUR)
    });
    assert!(issuer.fetched_again().await, "the first fetch is waited for");
    let began = Instant::now();
    let mut granted = 0;
    for _ in 0..30_000 {
        let waited = tokio::spawn({
            let issuer = issuer.clone();
            async move { issuer.fetched_again().await }
        });
        sleep(Duration::from_millis(1)).await;
        granted += usize::from(waited.is_finished() && waited.await.unwrap());
    }
    // 30 seconds are three floors, and the first fetch was before.
    assert!(began.elapsed() >= FLOOR * 3);
    let asked = asked.load(Ordering::Relaxed);
    assert!((3..=4).contains(&asked), "{asked} fetches");
    assert_eq!(granted, 0, "nobody was granted without waiting");
}

#[tokio::test(start_paused = true)]
async fn who_asks_first_waits_for_the_answer_and_so_do_a_few_who_come_meanwhile() {
    let (issuer, asked) = issuer(async |n| {
        sleep(Duration::from_secs(1)).await;
        fresh(if n == 0 { set(&["old"]) } else { set(&["old", "new"]) }, HOUR)
    });
    assert!(issuer.fetched_again().await);
    assert_eq!(names(&issuer).unwrap(), ["old"]);
    assert!(!issuer.fetched_again().await, "it was fetched a moment ago");
    sleep(FLOOR).await;
    let requests: Vec<_> = (0..1000)
        .map(|_| {
            let issuer = issuer.clone();
            tokio::spawn(async move { (issuer.fetched_again().await, names(&issuer).unwrap().len()) })
        })
        .collect();
    let began = Instant::now();
    let answers = futures_util::future::join_all(requests).await;
    let of = |wanted: (bool, usize)| answers.iter().filter(|answer| *answer.as_ref().unwrap() == wanted).count();
    assert_eq!(of((true, 2)), WAITING_MAX, "they see the new key");
    assert_eq!(of((false, 1)), 1000 - WAITING_MAX, "the others are answered at once");
    assert_eq!(began.elapsed().as_secs(), 1);
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_with_a_new_key_is_accepted_after_the_fetch_that_it_caused() {
    let (issuer, asked) = issuer(async |n| fresh(if n == 0 { set(&["old"]) } else { set(&["new"]) }, HOUR));
    assert!(issuer.fetched_again().await);
    sleep(FLOOR).await;
    let authenticator = Authenticator { issuer: Some(issuer), ..Authenticator::new(&Config::default()) };
    let claims = json!({ "sub": "u", "exp": 4_000_000_000_u64 });
    let token = |kid| token(&keys::signing(Algorithm::EdDsa), Algorithm::EdDsa, Some(kid), &claims);
    let (old, new) = (token("old"), token("new"));
    assert!(authenticator.check_fresh(&old).await.is_ok());
    assert_eq!(asked.load(Ordering::Relaxed), 1, "a known key is no reason to ask");
    assert_eq!(authenticator.check(&new), Err(Denied::UnknownKid));
    assert!(matches!(authenticator.principal_fresh(&new, Scope::Read).await, Ok(Principal::User(_))));
    assert_eq!(authenticator.check_fresh(&old).await, Err(Denied::UnknownKid), "a removed key");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_ever() {
    let (issuer, _) = issuer(async |_| std::future::pending().await);
    let began = Instant::now();
    assert!(!issuer.fetched_again().await);
    assert_eq!(began.elapsed().as_secs(), WAIT_MAX.as_secs());
}

#[tokio::test(start_paused = true)]
async fn keys_stay_while_the_issuer_fails_and_go_when_it_removes_them() {
    let (issuer, asked) = issuer(async |n| match n {
        0 | 1 => Err(FetchError::Invalid),
        2 => fresh(set(&["a", "b"]), Duration::from_secs(60)),
        3..6 => Err(FetchError::TooLarge),
        6 => fresh(set(&["b"]), Duration::from_secs(60)),
        _ => fresh(set(&[]), HOUR),
    });
    let asked = || asked.load(Ordering::Relaxed);
    let until = async |count| {
        let began = Instant::now();
        while asked() < count {
            sleep(Duration::from_millis(50)).await;
        }
        sleep(Duration::from_millis(1)).await;
        began.elapsed()
    };
    assert!(until(3).await <= RETRY_FIRST * 4, "who has no keys tries again soon");
    assert_eq!(names(&issuer).unwrap(), ["a", "b"]);
    assert!(until(4).await >= Duration::from_secs(59), "it is not asked while the keys are fresh");
    let retries = until(6).await;
    assert!((FLOOR..RETRY_MAX * 2).contains(&retries), "{retries:?}");
    assert_eq!(names(&issuer).unwrap(), ["a", "b"], "the last good ones");
    until(7).await;
    assert_eq!(names(&issuer).unwrap(), ["b"]);
    until(8).await;
    assert_eq!(names(&issuer).unwrap(), [""; 0], "an empty set is an answer too");
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_fails_at_the_start_is_not_asked_without_pause() {
    let (_issuer, asked) = issuer(async |n| {
        assert!(n < 1000, "again and again");
        Err(FetchError::Invalid)
    });
    sleep(HOUR).await;
    let asked = asked.load(Ordering::Relaxed);
    assert!((60..300).contains(&asked), "{asked} times in an hour");
}

/// The keys are due for a fetch, and somebody wants one, at the same moment.
#[tokio::test(start_paused = true)]
async fn a_fetch_that_was_wanted_when_one_began_anyway_is_not_made_twice() {
    const FRESH: Duration = Duration::from_secs(2 * FLOOR.as_secs());
    let (issuer, asked) = issuer(async |_| fresh(set(&["a"]), FRESH));
    for round in 1..50 {
        sleep(FRESH).await;
        issuer.fetched_again().await;
        sleep(Duration::from_millis(1)).await;
        let asked = asked.load(Ordering::Relaxed);
        assert!(asked <= round + 1, "{asked} fetches in {round} rounds");
    }
}

#[test]
fn one_bad_key_does_not_cost_the_others() {
    let good = |kid: &str| {
        let bytes = keys::pem_bytes(keys::ED25519);
        let x = URL_SAFE_NO_PAD.encode(&bytes[bytes.len() - 32..]);
        json!({ "kty": "OKP", "crv": "Ed25519", "x": x, "kid": kid, "unheard of": [1] })
    };
    let mut encryption = good("2");
    encryption["use"] = json!("enc");
    let keys = [good("1"), encryption, json!({}), json!(7), json!({ "kty": "RSA" }), json!({ "kid": 1 }), good("3")];
    let set = KeySet::parse(json!({ "keys": keys, "more": true }).to_string().as_bytes()).unwrap();
    let names: Vec<_> = set.keys.iter().filter_map(|key| key.id.as_deref()).collect();
    assert_eq!((names, set.ignored), (vec!["1", "3"], 5));
}

#[test]
fn what_is_no_key_set_is_refused() {
    let deep = format!("{{\"keys\":{}", "[".repeat(500_000));
    for body in ["", "<html>", "[]", "{}", "{\"keys\":{}}", "{\"keys\":[}", &deep] {
        assert!(KeySet::parse(body.as_bytes()).is_none(), "{body:.40}");
    }
}
