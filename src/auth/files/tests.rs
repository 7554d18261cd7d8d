//! Key files that change while they are in use.

use std::{fs, os::unix::fs::symlink};

use tempfile::TempDir;

use super::*;
use crate::auth::{Algorithm, tests::keys};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

struct Directory(TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }
}

fn public(paths: &[&Path]) -> Config {
    Config { public_key_files: paths.iter().map(|path| path.to_path_buf()).collect(), ..Config::default() }
}

fn algorithms(files: &Files) -> Vec<Algorithm> {
    files.keys().get().iter().map(|key| key.algorithm).collect()
}

#[test]
fn the_given_secret_and_all_files_are_keys_and_a_secrets_file_stands_for_the_secret() {
    let directory = Directory::new();
    let both = directory.write("both.pem", &format!("{}{}", keys::EC, keys::RSA_CERTIFICATE));
    let given = Config { hs256_secret: Some(SECRET.as_bytes().into()), ..public(&[&both]) };
    let expected = [Algorithm::Hs256, Algorithm::Es256, Algorithm::Rs256];
    assert_eq!(algorithms(&Files::read(&given).unwrap()), expected);
    let secret = directory.write("secret", &format!("{SECRET}\n"));
    let from_file = Config { hs256_secret_file: Some(secret), ..given };
    assert_eq!(algorithms(&Files::read(&from_file).unwrap()), expected);
}

#[test]
fn a_bad_file_is_refused_with_its_key_and_path() {
    let directory = Directory::new();
    let good = directory.write("good.pem", keys::EC);
    let bad = directory.write("bad.pem", "nothing");
    let long = directory.write("long.pem", &"x".repeat(2 << 20));
    let missing = directory.path("missing.pem");
    for (path, says) in [
        (&bad, "holds no PEM block"),
        (&long, "is longer than"),
        (&missing, "cannot be read: No such file"),
        (&directory.0.path().to_owned(), "cannot be read: Is a directory"),
    ] {
        let error = Files::read(&public(&[&good, path])).err().unwrap().to_string();
        assert!(error.starts_with(&format!("auth.jwt.public_key_files: {} {says}", path.display())), "{error}");
    }
    let short = Config { hs256_secret_file: Some(bad), ..Config::default() };
    let error = Files::read(&short).err().unwrap().to_string();
    assert!(error.starts_with("auth.jwt.hs256_secret_file: ") && error.contains("too short"), "{error}");
}

#[test]
fn a_changed_file_is_read_again_and_a_bad_one_leaves_its_keys_as_they_were() {
    let directory = Directory::new();
    let (one, two) = (directory.write("one.pem", keys::EC), directory.write("two.pem", keys::RSA));
    let mut files = Files::read(&public(&[&one, &two])).unwrap();
    let keys = files.keys();
    let looked = |files: &mut Files| {
        files.look();
        let problems = files.files.iter().filter(|file| file.problem.is_some()).count();
        (keys.get().iter().map(|key| key.algorithm).collect::<Vec<_>>(), problems)
    };
    assert_eq!(looked(&mut files), (vec![Algorithm::Es256, Algorithm::Rs256], 0));
    fs::write(&one, keys::ED25519).unwrap();
    assert_eq!(looked(&mut files), (vec![Algorithm::EdDsa, Algorithm::Rs256], 0));
    // One is bad, the other changes all the same.
    fs::write(&one, &keys::ED25519[..40]).unwrap();
    fs::write(&two, keys::EC).unwrap();
    assert_eq!(looked(&mut files), (vec![Algorithm::EdDsa, Algorithm::Es256], 1));
    fs::remove_file(&one).unwrap();
    assert_eq!(looked(&mut files), (vec![Algorithm::EdDsa, Algorithm::Es256], 1));
    fs::write(&one, keys::ED25519).unwrap();
    assert_eq!(looked(&mut files), (vec![Algorithm::EdDsa, Algorithm::Es256], 0), "it is as it was");
    fs::write(&one, keys::RSA).unwrap();
    assert_eq!(looked(&mut files), (vec![Algorithm::Rs256, Algorithm::Es256], 0));
}

#[test]
fn a_link_that_leads_elsewhere_is_a_change() {
    // As Kubernetes does it: key.pem -> ..data/key.pem, ..data -> a directory, swapped by a rename.
    let directory = Directory::new();
    for (name, pem) in [("v1", keys::EC), ("v2", keys::EC_OTHER)] {
        fs::create_dir(directory.path(name)).unwrap();
        fs::write(directory.path(name).join("key.pem"), pem).unwrap();
    }
    symlink("v1", directory.path("..data")).unwrap();
    symlink("..data/key.pem", directory.path("key.pem")).unwrap();
    let mut files = Files::read(&public(&[&directory.path("key.pem")])).unwrap();
    let bytes = |files: &Files| files.keys().get()[0].decoding.try_get_as_bytes().unwrap().to_vec();
    let before = bytes(&files);
    symlink("v2", directory.path("..new")).unwrap();
    fs::rename(directory.path("..new"), directory.path("..data")).unwrap();
    files.look();
    assert_ne!(bytes(&files), before);
}

#[test]
fn certificates_of_a_file_are_named_after_it() {
    let directory = Directory::new();
    let path = directory.write("keys.pem", &format!("{}{}{}", keys::RSA_CERTIFICATE, keys::EC, keys::RSA_CERTIFICATE));
    let files = Files::read(&public(&[&path])).unwrap();
    let names: Vec<String> = files.files[0].expiries().map(|(name, _)| name).collect();
    assert_eq!(names, [path.display().to_string(), format!("{}#3", path.display())]);
}
