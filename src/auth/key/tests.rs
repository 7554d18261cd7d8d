//! What PEM files and JWKs give, and what they are refused for.

use serde_json::json;

use super::*;
use crate::auth::tests::keys::{EC, EC_OTHER, ED25519, RSA, RSA_CERTIFICATE, pem_bytes};

/// What `openssl x509 -in rsa-certificate.pem -noout -enddate` says.
const RSA_CERTIFICATE_ENDS: i64 = 4_948_846_212;

fn algorithms(pem: &str) -> Result<Vec<Algorithm>, InvalidKey> {
    Key::from_pem(pem.as_bytes()).map(|keys| keys.iter().map(|key| key.algorithm).collect())
}

fn jwk(value: serde_json::Value) -> Result<Key, InvalidKey> {
    Key::from_jwk(&serde_json::from_value(value).unwrap())
}

#[test]
fn pem_files_hold_keys_of_every_kind_and_certificates() {
    assert_eq!(algorithms(RSA), Ok(vec![Algorithm::Rs256]));
    assert_eq!(algorithms(EC), Ok(vec![Algorithm::Es256]));
    assert_eq!(algorithms(ED25519), Ok(vec![Algorithm::EdDsa]));
    let both = format!("a comment\n{EC}\nand another one\n{EC_OTHER}{RSA_CERTIFICATE}");
    assert_eq!(algorithms(&both), Ok(vec![Algorithm::Es256, Algorithm::Es256, Algorithm::Rs256]));
    let keys = Key::from_pem(both.as_bytes()).unwrap();
    assert_eq!((keys[0].expires_at, keys[2].expires_at), (None, Some(RSA_CERTIFICATE_ENDS)));
}

#[test]
fn pem_files_without_a_key_for_us_are_refused_with_the_reason() {
    let broken = |pem: &str| pem.replacen("MII", "AAA", 1).replacen("MCo", "AAA", 1);
    for (pem, expected) in [
        ("", InvalidKey::Nothing),
        ("no PEM at all", InvalidKey::Nothing),
        ("-----BEGIN PUBLIC KEY-----\n!!!\n-----END PUBLIC KEY-----\n", InvalidKey::Pem),
        (&RSA[..RSA.len() / 2], InvalidKey::Pem),
        (include_str!("../testdata/ec-private.pem"), InvalidKey::Private),
        (include_str!("../testdata/rsa-private.pem"), InvalidKey::Private),
        ("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", InvalidKey::Block),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", InvalidKey::Broken),
        (&broken(ED25519), InvalidKey::Broken),
        (&broken(RSA_CERTIFICATE), InvalidKey::Broken),
        (include_str!("../testdata/p384.pem"), InvalidKey::Unsupported),
        (include_str!("../testdata/rsa-1024.pem"), InvalidKey::RsaBits(1024)),
        (include_str!("../testdata/rsa-8192.pem"), InvalidKey::RsaBits(8192)),
    ] {
        assert_eq!(algorithms(pem), Err(expected), "{pem}");
        let beside = format!("{EC}{pem}");
        if expected != InvalidKey::Nothing {
            assert_eq!(algorithms(&beside), Err(expected), "a good key does not hide a bad one: {pem}");
        }
    }
}

#[test]
fn cut_and_changed_pem_files_never_panic() {
    for pem in [RSA, EC, ED25519, RSA_CERTIFICATE] {
        let der = pem_bytes(pem);
        for at in 0..der.len() {
            let _ = SubjectPublicKeyInfo::from_der(&der[..at]).map(|(_, info)| Key::public(&info).is_ok());
            let mut changed = der.clone();
            changed[at] ^= 0x55;
            let _ = SubjectPublicKeyInfo::from_der(&changed).map(|(_, info)| Key::public(&info).is_ok());
            let certificate = X509Certificate::from_der(&changed);
            let _ = certificate.map(|(_, certificate)| Key::public(certificate.public_key()).is_ok());
        }
    }
}

#[test]
fn secrets_in_files_may_end_with_a_line_end_and_are_neither_short_nor_pem() {
    let secret = "s".repeat(32);
    for content in [secret.clone(), format!("{secret}\n"), format!("{secret}\r\n")] {
        let key = Key::from_secret_file(content.as_bytes()).unwrap();
        assert_eq!(key.decoding.try_get_as_bytes().unwrap(), secret.as_bytes());
    }
    assert_eq!(Key::from_secret_file(b"short\n").err(), Some(InvalidKey::Short));
    assert_eq!(Key::from_secret_file(RSA.as_bytes()).err(), Some(InvalidKey::NoSecret));
}

#[test]
fn jwks_that_are_not_for_verifying_or_are_no_keys_are_refused() {
    let ed = |x: &[u8]| json!({ "kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(x) });
    let with = |mut jwk: serde_json::Value, name: &str, value: serde_json::Value| {
        jwk[name] = value;
        jwk
    };
    let bytes = pem_bytes(ED25519);
    let good = ed(&bytes[bytes.len() - 32..]);
    let key = jwk(with(with(good.clone(), "kid", json!("k1")), "alg", json!("EdDSA"))).ok().unwrap();
    assert_eq!((key.algorithm, key.id.as_deref()), (Algorithm::EdDsa, Some("k1")));
    for (name, value) in [
        ("use", json!("enc")),
        ("use", json!("other")),
        ("key_ops", json!(["sign"])),
        ("alg", json!("RS256")),
        ("alg", json!("unheard of")),
        ("crv", json!("P-256")),
        ("kty", json!("EC")),
        ("kty", json!("unheard of")),
    ] {
        let result = jwk(with(good.clone(), name, value.clone()));
        assert_eq!(result.err(), Some(InvalidKey::Unsupported), "{name}: {value}");
    }
    assert!(jwk(with(good.clone(), "key_ops", json!(["verify"]))).is_ok());
    assert!(jwk(with(good, "use", json!("sig"))).is_ok());
    // A shared secret, which a public set must not hold.
    let secret = json!({ "kty": "oct", "k": URL_SAFE_NO_PAD.encode([7; 32]) });
    assert_eq!(jwk(secret).err(), Some(InvalidKey::Unsupported));
    // The library would take 32 bytes of these without looking.
    for length in [0, 31, 33] {
        assert_eq!(jwk(ed(&vec![1; length])).err(), Some(InvalidKey::Broken), "{length} bytes");
    }
    let coordinate = URL_SAFE_NO_PAD.encode([1; 32]);
    let off_curve = json!({ "kty": "EC", "crv": "P-256", "x": coordinate, "y": coordinate });
    assert_eq!(jwk(off_curve).err(), Some(InvalidKey::Broken));
    let rsa =
        |n: &[u8], e: &[u8]| json!({ "kty": "RSA", "n": URL_SAFE_NO_PAD.encode(n), "e": URL_SAFE_NO_PAD.encode(e) });
    let modulus = [0xff; 256];
    assert_eq!(jwk(rsa(&modulus, &[1, 0, 1])).map(|key| key.algorithm).ok(), Some(Algorithm::Rs256));
    assert_eq!(jwk(rsa(&modulus[..255], &[1, 0, 1])).err(), Some(InvalidKey::RsaBits(2040)));
    assert_eq!(jwk(rsa(&[0xff; 513], &[1, 0, 1])).err(), Some(InvalidKey::RsaBits(4104)));
    assert_eq!(jwk(rsa(&[], &[1, 0, 1])).err(), Some(InvalidKey::RsaBits(0)));
    for exponent in [&[][..], &[1], &[2], &[0, 0], &[1, 0, 0, 0, 1]] {
        assert_eq!(jwk(rsa(&modulus, exponent)).err(), Some(InvalidKey::Broken), "{exponent:?}");
    }
    let garbage = json!({ "kty": "RSA", "n": "!", "e": "AQAB" });
    assert_eq!(jwk(garbage).err(), Some(InvalidKey::Broken));
}
