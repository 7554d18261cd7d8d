//! Tokens and API keys, in memory: no files, no issuer.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use sha2::Digest as _;

use super::*;
use crate::event::unix_millis_now;

/// Keys that openssl made, for tests only.
pub(super) mod keys {
    use jsonwebtoken::EncodingKey;
    use x509_parser::pem::Pem;

    use crate::auth::Algorithm;

    pub(in crate::auth) const RSA: &str = include_str!("testdata/rsa.pem");
    pub(in crate::auth) const RSA_CERTIFICATE: &str = include_str!("testdata/rsa-certificate.pem");
    pub(in crate::auth) const EC: &str = include_str!("testdata/ec.pem");
    pub(in crate::auth) const EC_OTHER: &str = include_str!("testdata/ec-other.pem");
    pub(in crate::auth) const ED25519: &str = include_str!("testdata/ed25519.pem");

    pub(in crate::auth) fn pem_bytes(pem: &str) -> Vec<u8> {
        Pem::iter_from_buffer(pem.as_bytes()).next().unwrap().unwrap().contents
    }

    /// What signs for the public key of each algorithm above, and the secret's own for HS256.
    pub(in crate::auth) fn signing(algorithm: Algorithm) -> EncodingKey {
        let rsa = include_str!("testdata/rsa-private.pem");
        let ec = include_str!("testdata/ec-private.pem");
        let ed25519 = include_str!("testdata/ed25519-private.pem");
        match algorithm {
            Algorithm::Hs256 => EncodingKey::from_secret(super::SECRET),
            Algorithm::Rs256 => EncodingKey::from_rsa_der(&pem_bytes(rsa)),
            Algorithm::Es256 => EncodingKey::from_ec_der(&pem_bytes(ec)),
            Algorithm::EdDsa => EncodingKey::from_ed_der(&pem_bytes(ed25519)),
        }
    }

    pub(in crate::auth) fn ec_other() -> EncodingKey {
        EncodingKey::from_ec_der(&pem_bytes(include_str!("testdata/ec-other-private.pem")))
    }
}

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

fn config() -> Config {
    Config { hs256_secret: Some(SECRET.into()), leeway: Duration::from_secs(5), ..Config::default() }
}

fn now() -> u64 {
    u64::try_from(unix_millis_now()).unwrap() / 1000
}

/// `claims` under a header with a `kid`, if any.
pub(super) fn token(key: &EncodingKey, algorithm: Algorithm, kid: Option<&str>, claims: &Value) -> String {
    let header = Header { kid: kid.map(str::to_owned), ..Header::new(algorithm.library()) };
    encode(&header, claims, key).unwrap()
}

fn signed(algorithm: Algorithm, claims: &Value) -> String {
    token(&keys::signing(algorithm), algorithm, None, claims)
}

fn good() -> Value {
    json!({ "sub": "u", "exp": now() + 60 })
}

/// Checks against these keys beside what `config` holds.
fn authenticator(config: &Config, pem_files: &[&str]) -> Authenticator {
    let public = pem_files.iter().flat_map(|pem| Key::from_pem(pem.as_bytes()).unwrap());
    let secret = config.hs256_secret.as_deref().map(Key::secret);
    Authenticator::with(config, Arc::new(LocalKeys::new(secret.into_iter().chain(public))))
}

/// What all four algorithms say of the same claims: the same.
fn check(config: &Config, claims: &Value) -> Result<Identity, Denied> {
    let authenticator = authenticator(config, &[keys::RSA, keys::EC, keys::ED25519]);
    let [first, others @ ..] = Algorithm::ALL.map(|algorithm| authenticator.check(&signed(algorithm, claims)));
    others.into_iter().for_each(|other| assert_eq!(other, first, "{claims}"));
    first
}

#[test]
fn what_is_issued_is_accepted_and_names_user_and_expiry() {
    let config = Config { issuer: Some("i".into()), audience: Some("a".into()), ..config() };
    let user = UserId::new("101").unwrap();
    let (token, expires_at) = issue(&user, Duration::from_secs(60), &config, SECRET).unwrap();
    let identity = Authenticator::new(&config).check(&token).unwrap();
    assert_eq!(identity, Identity { user, expires_at: expires_at + 5000 });
}

#[test]
fn claims_that_are_missing_wrong_or_out_of_time_are_refused() {
    let later = now() + 60;
    let cases = [
        (json!({ "sub": "u" }), Denied::Claims),
        (json!({ "exp": later }), Denied::Claims),
        (json!({ "sub": 7, "exp": later }), Denied::Claims),
        (json!({ "sub": "", "exp": later }), Denied::User(InvalidId::Empty)),
        (json!({ "sub": "a\u{0}", "exp": later }), Denied::User(InvalidId::ControlCharacter)),
        (json!({ "sub": "u", "exp": now() - 10 }), Denied::Expired),
        (json!({ "sub": "u", "exp": later, "nbf": now() + 30 }), Denied::NotYet),
    ];
    for (claims, expected) in cases {
        assert_eq!(check(&config(), &claims).unwrap_err(), expected, "{claims}");
    }
    assert!(check(&config(), &json!({ "sub": "u", "exp": now() - 3 })).is_ok(), "within the leeway");
}

#[test]
fn issuer_and_audience_are_checked_when_they_are_configured() {
    let claims = json!({ "sub": "u", "exp": now() + 60, "iss": "other", "aud": "other" });
    assert!(check(&config(), &claims).is_ok());
    assert_eq!(check(&Config { issuer: Some("i".into()), ..config() }, &claims).unwrap_err(), Denied::Foreign);
    let audience = Config { audience: Some("a".into()), ..config() };
    assert_eq!(check(&audience, &claims).unwrap_err(), Denied::Foreign);
    let without = json!({ "sub": "u", "exp": now() + 60 });
    let issuer = Config { issuer: Some("i".into()), ..config() };
    for config in [audience, issuer] {
        assert_eq!(check(&config, &without).unwrap_err(), Denied::Foreign);
    }
}

#[test]
fn another_key_another_algorithm_none_and_garbage_are_refused() {
    let other_key = token(&EncodingKey::from_secret(&[7; 40]), Algorithm::Hs256, None, &good());
    let other_ec = token(&keys::ec_other(), Algorithm::Es256, None, &good());
    let hs512 =
        encode(&Header::new(jsonwebtoken::Algorithm::HS512), &good(), &keys::signing(Algorithm::Hs256)).unwrap();
    let signed = signed(Algorithm::Hs256, &good());
    let (unsigned, signature) = signed.rsplit_once('.').unwrap();
    let (_, body) = unsigned.split_once('.').unwrap();
    let none = |header: &str| format!("{}.{body}.", URL_SAFE_NO_PAD.encode(header));
    let tokens = [
        other_key.as_str(),
        &other_ec,
        &hs512,
        &none(r#"{"alg":"none"}"#),
        &none(r#"{"alg":"None"}"#),
        &none(r#"{"alg":""}"#),
        &none("{}"),
        &format!("{unsigned}."),
        "x.y.z",
        "..",
        &format!("{}..", "a".repeat(1 << 20)),
    ];
    let authenticator = authenticator(&config(), &[keys::RSA, keys::EC, keys::ED25519]);
    for token in tokens {
        assert_eq!(authenticator.check(token).unwrap_err(), Denied::Invalid, "{token:.100}");
    }
    let no_tokens = [
        &format!("{signed}.{signature}"),
        unsigned,
        "k1",
        "\u{0}",
        &"a".repeat(1 << 20),
        &format!("{}.", "a".repeat(99)),
    ];
    for text in no_tokens {
        assert_eq!(authenticator.check(text).unwrap_err(), Denied::NotAToken, "{text:.100}");
    }
    assert_eq!(authenticator.check("").unwrap_err(), Denied::Missing(Wanted::Token));
    let closed = Authenticator::new(&Config { hs256_secret: None, ..config() });
    assert_eq!(closed.check(&signed).unwrap_err(), Denied::Invalid, "without a key nobody gets in");
}

#[test]
fn a_long_token_is_refused_even_if_it_is_signed() {
    let claims = |padding: usize| json!({ "sub": "u", "exp": now() + 60, "padding": "p".repeat(padding) });
    assert!(check(&config(), &claims(4000)).is_ok());
    assert_eq!(check(&config(), &claims(1 << 20)).unwrap_err(), Denied::Invalid);
}

#[test]
fn a_public_key_is_no_secret_and_good_for_its_own_algorithm_only() {
    let config = Config { hs256_secret: None, ..config() };
    for pem in [keys::RSA, keys::EC, keys::ED25519] {
        let authenticator = authenticator(&config, &[pem]);
        let der = keys::pem_bytes(pem);
        let tails = [32, 65, 256].into_iter().filter_map(|length| Some(&der[der.len().checked_sub(length)?..]));
        for secret in [pem.as_bytes(), pem.trim_end().as_bytes(), &der].into_iter().chain(tails) {
            let forged = token(&EncodingKey::from_secret(secret), Algorithm::Hs256, None, &good());
            assert_eq!(authenticator.check(&forged).unwrap_err(), Denied::Invalid, "{pem}");
        }
        let accepted = Algorithm::ALL.map(|algorithm| authenticator.check(&signed(algorithm, &good())).is_ok());
        assert_eq!(accepted.iter().filter(|accepted| **accepted).count(), 1, "{pem}");
    }
}

#[test]
fn what_is_not_listed_is_refused_although_there_is_a_key() {
    let config = Config { algorithms: Some(vec![Algorithm::Es256]), ..config() };
    let authenticator = authenticator(&config, &[keys::RSA, keys::EC, keys::ED25519]);
    for algorithm in Algorithm::ALL {
        let accepted = authenticator.check(&signed(algorithm, &good())).is_ok();
        assert_eq!(accepted, algorithm == Algorithm::Es256, "{algorithm:?}");
    }
}

#[test]
fn each_key_of_the_algorithm_is_tried_whatever_name_the_token_gives_it() {
    let authenticator = authenticator(&config(), &[keys::EC_OTHER, keys::RSA_CERTIFICATE, keys::EC]);
    for kid in [None, Some("any")] {
        for (key, algorithm) in [
            (keys::ec_other(), Algorithm::Es256),
            (keys::signing(Algorithm::Es256), Algorithm::Es256),
            (keys::signing(Algorithm::Rs256), Algorithm::Rs256),
            (keys::signing(Algorithm::Hs256), Algorithm::Hs256),
        ] {
            assert!(authenticator.check(&token(&key, algorithm, kid, &good())).is_ok(), "{algorithm:?} {kid:?}");
        }
    }
}

#[test]
fn headers_bring_no_keys_and_no_extensions() {
    let authenticator = authenticator(&config(), &[keys::EC]);
    let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&keys::ec_other(), jsonwebtoken::Algorithm::ES256).unwrap();
    let header = Header {
        jwk: Some(jwk),
        jku: Some("https://evil.example/jwks".into()),
        ..Header::new(jsonwebtoken::Algorithm::ES256)
    };
    let token = encode(&header, &good(), &keys::ec_other()).unwrap();
    assert_eq!(authenticator.check(&token).unwrap_err(), Denied::Invalid, "its own key");
    let critical = Header { crit: Some(vec!["exp".into()]), ..Header::new(jsonwebtoken::Algorithm::ES256) };
    let token = encode(&critical, &good(), &keys::signing(Algorithm::Es256)).unwrap();
    assert_eq!(authenticator.check(&token).unwrap_err(), Denied::Invalid, "an extension that has to be understood");
}

/// Checks against what an issuer published, and nothing else.
fn issued(keys: Option<Vec<Key>>) -> Authenticator {
    let issuer = Some(Arc::new(Issuer::with_keys(keys)));
    Authenticator { issuer, ..authenticator(&Config { hs256_secret: None, ..config() }, &[]) }
}

fn named(pem: &str, id: Option<&str>) -> Key {
    Key { id: id.map(str::to_owned), ..Key::from_pem(pem.as_bytes()).unwrap().remove(0) }
}

#[test]
fn the_issuers_keys_are_found_by_name_and_an_unknown_one_is_said_to_be() {
    let authenticator = issued(Some(vec![named(keys::EC, Some("1")), named(keys::EC_OTHER, Some("2"))]));
    let check = |key: &EncodingKey, kid| authenticator.check(&token(key, Algorithm::Es256, kid, &good()));
    let (one, two) = (keys::signing(Algorithm::Es256), keys::ec_other());
    for (key, kid) in [(&one, Some("1")), (&two, Some("2")), (&one, None), (&two, None)] {
        assert!(check(key, kid).is_ok(), "{kid:?}");
    }
    assert_eq!(check(&one, Some("2")).unwrap_err(), Denied::Invalid, "the name of another key");
    assert_eq!(check(&one, Some("3")).unwrap_err(), Denied::UnknownKid);
    let rsa = signed(Algorithm::Rs256, &good());
    assert_eq!(authenticator.check(&rsa).unwrap_err(), Denied::UnknownKid, "no key of that algorithm");
    let hs256 = signed(Algorithm::Hs256, &good());
    assert_eq!(authenticator.check(&hs256).unwrap_err(), Denied::Invalid, "no issuer publishes secrets");
    assert_eq!(issued(None).check(&rsa).unwrap_err(), Denied::NoKeys);
    assert_eq!(issued(None).check(&hs256).unwrap_err(), Denied::Invalid);
}

#[test]
fn a_token_that_names_no_key_costs_a_bounded_number_of_tries() {
    let mut keys: Vec<Key> = (0..TRIES_MAX).map(|_| named(keys::EC_OTHER, Some("x"))).collect();
    keys.push(named(keys::EC, Some("last")));
    let authenticator = issued(Some(keys));
    let token = |kid| token(&keys::signing(Algorithm::Es256), Algorithm::Es256, kid, &good());
    assert_eq!(authenticator.check(&token(None)).unwrap_err(), Denied::Invalid);
    assert!(authenticator.check(&token(Some("last"))).is_ok());
}

#[test]
fn an_algorithm_without_a_key_and_a_bad_url_are_refused_by_name() {
    let listed = |algorithms: &[Algorithm]| Config { algorithms: Some(algorithms.to_vec()), ..config() };
    let says = |config: &Config| validate(config).map_err(|error| error.to_string());
    assert_eq!(says(&listed(&[Algorithm::Hs256])), Ok(()));
    let error = says(&listed(&[Algorithm::Hs256, Algorithm::Rs256])).unwrap_err();
    assert_eq!(error, "auth.jwt.algorithms: there is no key for RS256");
    let url = |url: &str| Config { jwks_url: Some(url.into()), ..listed(&Algorithm::ALL) };
    assert_eq!(says(&url("http://127.0.0.1/jwks")), Ok(()));
    let no_secret = Config { hs256_secret: None, ..url("http://127.0.0.1/jwks") };
    assert_eq!(says(&no_secret).unwrap_err(), "auth.jwt.algorithms: there is no key for HS256");
    assert!(says(&url("127.0.0.1")).unwrap_err().starts_with("auth.jwt.jwks_url: is no URL"));
}

#[test]
fn a_service_is_known_by_its_key_and_may_do_what_its_scopes_say() {
    let key = |key: &str, name: &str, scopes: &[Scope]| ApiKey {
        sha256: sha2::Sha256::digest(key).into(),
        service: Arc::new(Service { name: name.into(), scopes: scopes.into() }),
    };
    let api_keys = vec![key("k1", "billing", &[Scope::Publish]), key("k2", "support", &[Scope::Read])];
    let authenticator = Authenticator::new(&Config { api_keys, ..config() });
    assert_eq!(authenticator.service("k1", Scope::Publish).unwrap().name, "billing");
    assert_eq!(authenticator.service("k1", Scope::Sessions).unwrap_err(), Denied::Scope(Scope::Sessions));
    assert_eq!(authenticator.service("k3", Scope::Publish).unwrap_err(), Denied::UnknownKey);
    assert_eq!(authenticator.service("", Scope::Publish).unwrap_err(), Denied::Missing(Wanted::Key));
    assert_eq!(authenticator.principal("", Scope::Read).unwrap_err(), Denied::Missing(Wanted::Either));
    let token = signed(Algorithm::Hs256, &good());
    // What is wanted is said by the form of what is shown: whether there is such a key, nobody learns.
    assert_eq!(authenticator.service(&token, Scope::Publish).unwrap_err(), Denied::NotAKey);
    assert_eq!(authenticator.service("x.y.z", Scope::Publish).unwrap_err(), Denied::NotAKey);
    for key in ["k1", "k3"] {
        assert_eq!(authenticator.check(key).unwrap_err(), Denied::NotAToken);
    }
    assert!(matches!(authenticator.principal(&token, Scope::Read), Ok(Principal::User(user)) if &*user.user == "u"));
    assert!(matches!(authenticator.principal("k2", Scope::Read), Ok(Principal::Service(_))));
}
