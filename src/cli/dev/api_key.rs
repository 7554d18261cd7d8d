//! The key that `notifier dev` gives to whoever wants to use its HTTP API: made once, and kept in the data directory.

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::config::{ApiKey, Config, KeyHash, Scope};

const FILE: &str = "api-key";
/// What the service behind it is called.
const NAME: &str = "dev";

/// The key of the last run in `directory`, or a new one; `config` knows it from here on.
pub(super) fn establish(config: &mut Config, directory: &Path) -> anyhow::Result<String> {
    let file = directory.join(FILE);
    let earlier = fs::read_to_string(&file).map(|text| text.trim().to_owned()).ok().filter(|key| !key.is_empty());
    let key = match earlier {
        Some(key) => key,
        None => create(directory, &file).with_context(|| format!("--data-dir: cannot write {}", file.display()))?,
    };
    let sha256 = KeyHash::try_from(hex::encode(Sha256::digest(&key))).expect("a hash in hexadecimal digits");
    let keys = &mut config.auth.api_keys;
    if keys.iter().all(|known| known.sha256 != sha256) {
        keys.push(ApiKey { name: NAME.into(), sha256, scopes: vec![Scope::Publish, Scope::Sessions, Scope::Read] });
    }
    Ok(key)
}

fn create(directory: &Path, file: &Path) -> std::io::Result<String> {
    let key = format!("dev-{}", Uuid::new_v4().simple());
    fs::create_dir_all(directory)?;
    let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)?;
    writeln!(out, "{key}")?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stays_what_it_is_and_is_known_once() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        let mut config = Config::default();
        let key = establish(&mut config, &data).unwrap();
        assert_eq!(establish(&mut config, &data).unwrap(), key);
        let [known] = &config.auth.api_keys[..] else { panic!("{:?}", config.auth.api_keys) };
        assert_eq!(known.sha256.bytes()[..], Sha256::digest(&key)[..]);
        assert_ne!(establish(&mut Config::default(), &directory.path().join("other")).unwrap(), key);
    }
}
