//! One `notifier dev` per data directory: a second one would change the first one's files.

use std::path::Path;

use anyhow::Context as _;

use crate::{
    cli::Usage,
    lock::{Error, FileLock},
};

const FILE: &str = "lock";

/// Takes a data directory, which exists, until the answer is dropped.
///
/// # Errors
/// When another process has it, by number.
pub(super) fn take(directory: &Path) -> anyhow::Result<FileLock> {
    let path = directory.join(FILE);
    match FileLock::take(&path) {
        Err(Error::Held { by }) => {
            let directory = directory.display();
            let wrong = format!(
                "--data-dir: `notifier dev` runs in {directory} already (process {by}); \
                 stop it, or give this one another directory and another --port"
            );
            Err(Usage(wrong).into())
        }
        taken => taken.with_context(|| format!("--data-dir: cannot write {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_taken_once_and_the_refusal_names_it_and_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let first = take(directory.path()).unwrap();
        let refused = take(directory.path()).err().unwrap();
        assert!(refused.is::<Usage>());
        let text = refused.to_string();
        assert!(
            text.contains(&std::process::id().to_string()) && text.contains(directory.path().to_str().unwrap()),
            "{text}"
        );
        drop(first);
        drop(take(directory.path()).unwrap());
    }
}
