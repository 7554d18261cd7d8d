//! A file that one process of a host holds at a time. However the process ends, the system takes the lock back.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    path::Path,
    process,
};

/// The right to what a file stands for, until it is dropped.
pub struct FileLock(#[expect(dead_code, reason = "closing it lets go of the lock")] File);

/// Why a lock was not got.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A process that lives has it.
    #[error("process {by} has it")]
    Held {
        /// Its number, as it has written it.
        by: String,
    },
    /// The file cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl FileLock {
    /// Takes a file, which is made if it is not there, for this user only.
    ///
    /// # Errors
    /// When another process has it, by number.
    pub fn take(path: &Path) -> Result<Self, Error> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut by = String::new();
                let _ = file.read_to_string(&mut by);
                return Err(Error::Held { by: by.trim().to_owned() });
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        file.set_len(0)?;
        writeln!(file, "{}", process::id())?;
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_taken_once_and_is_free_when_its_owner_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = FileLock::take(&path).unwrap();
        let Some(Error::Held { by }) = FileLock::take(&path).err() else { panic!("it was taken twice") };
        assert_eq!(by, process::id().to_string());
        drop(first);
        drop(FileLock::take(&path).unwrap());
        assert!(matches!(FileLock::take(&path.join("in a file")), Err(Error::Io(_))));
    }
}
