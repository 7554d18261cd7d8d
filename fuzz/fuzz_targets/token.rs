//! A token: never a panic, and never a user without the key.

#![no_main]

use std::{sync::LazyLock, time::Duration};

use libfuzzer_sys::fuzz_target;
use notifier::auth::{Authenticator, Config, Scope};

static AUTHENTICATOR: LazyLock<Authenticator> = LazyLock::new(|| {
    let secret: Box<[u8]> = b"0123456789abcdef0123456789abcdef".as_slice().into();
    Authenticator::new(&Config { hs256_secret: Some(secret), leeway: Duration::from_secs(5), ..Config::default() })
});

fuzz_target!(|text: &str| {
    assert!(AUTHENTICATOR.check(text).is_err(), "nobody guesses the secret");
    assert!(AUTHENTICATOR.principal(text, Scope::Publish).is_err(), "there is no API key");
});
