//! One `notifier dev` per data directory: a second one would take the store away from the first.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process,
};

use anyhow::Context as _;

use crate::cli::Usage;

const FILE: &str = "lock";

/// The right to a data directory, until it is dropped. However the process ends, the system takes it back.
pub(super) struct Lock(#[expect(dead_code, reason = "closing it lets go of the lock")] File);

impl Lock {
    /// Takes the directory, which exists.
    ///
    /// # Errors
    /// When another process has it, by number.
    pub(super) fn take(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join(FILE);
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = opened.with_context(|| format!("--data-dir: cannot write {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                let _ = file.read_to_string(&mut owner);
                let (owner, directory) = (owner.trim(), directory.display());
                let wrong = format!(
                    "--data-dir: `notifier dev` runs in {directory} already (process {owner}); \
                     stop it, or give this one another directory and another --port"
                );
                return Err(Usage(wrong).into());
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("--data-dir: cannot lock {}", path.display()));
            }
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", process::id()))
            .with_context(|| format!("--data-dir: cannot write {}", path.display()))?;
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_taken_once_and_is_free_when_its_owner_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let first = Lock::take(directory.path()).unwrap();
        let refused = Lock::take(directory.path()).err().unwrap();
        assert!(refused.is::<Usage>());
        let text = refused.to_string();
        assert!(
            text.contains(&process::id().to_string()) && text.contains(directory.path().to_str().unwrap()),
            "{text}"
        );
        drop(first);
        drop(Lock::take(directory.path()).unwrap());
    }
}
