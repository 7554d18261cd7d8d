//! The keys of this node: the given secret, and those in files, which are read again when they change.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::RwLock;
use sha2::{Digest as _, Sha256};

use super::{
    Config,
    key::{InvalidKey, Key},
    metric,
};

/// How often files are looked at. By content, not by time or inode: that sees every way in which files are replaced,
/// also that of Kubernetes (a link to a link to a directory), and the files are small.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// A longer file holds no keys.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {} {problem}", path.display())]
pub struct FileError {
    key: &'static str,
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("is longer than {FILE_BYTES_MAX} bytes")]
    TooLong,
    #[error(transparent)]
    Key(#[from] InvalidKey),
}

/// The keys of this node, as they are now.
#[derive(Default)]
pub(super) struct LocalKeys(RwLock<Arc<[Key]>>);

impl LocalKeys {
    pub(super) fn new(keys: impl IntoIterator<Item = Key>) -> Self {
        Self(RwLock::new(keys.into_iter().collect()))
    }

    pub(super) fn get(&self) -> Arc<[Key]> {
        self.0.read().clone()
    }
}

/// The files, and what was read from them last.
pub(super) struct Files {
    keys: Arc<LocalKeys>,
    /// The secret that is in no file.
    given: Option<Key>,
    files: Vec<Watched>,
    expiries: BTreeMap<String, i64>,
}

#[derive(Clone, Copy)]
enum Kind {
    Secret,
    PublicKeys,
}

/// A file with its last good content.
struct Watched {
    kind: Kind,
    path: PathBuf,
    /// Hash of the last good content.
    seen: Option<[u8; 32]>,
    keys: Vec<Key>,
    /// What is wrong with it now, as it was logged.
    problem: Option<String>,
}

impl Files {
    /// Reads all of them.
    ///
    /// # Errors
    /// Names the first that is not as it should be, with its key.
    pub(super) fn read(config: &Config) -> Result<Self, FileError> {
        let secret = config.hs256_secret_file.iter().map(|path| (Kind::Secret, path));
        let public = config.public_key_files.iter().map(|path| (Kind::PublicKeys, path));
        let mut files: Vec<Watched> = secret.chain(public).map(|(kind, path)| Watched::new(kind, path)).collect();
        for file in &mut files {
            file.look().map_err(|problem| file.error(problem))?;
        }
        let given = config.hs256_secret.as_deref().filter(|_| config.hs256_secret_file.is_none()).map(Key::secret);
        let mut read = Self { keys: Arc::default(), given, files, expiries: BTreeMap::new() };
        read.publish();
        Ok(read)
    }

    /// What the keys are at any time.
    pub(super) fn keys(&self) -> Arc<LocalKeys> {
        self.keys.clone()
    }

    /// Whether there is anything to look at again.
    pub(super) fn any(&self) -> bool {
        !self.files.is_empty()
    }

    /// Looks at the files for ever. A file that has become bad leaves its keys as they were.
    pub(super) async fn watch(mut self) {
        metric::describe();
        self.show_expiries();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            // A file system that does not answer must not hold a worker of the runtime.
            let looked = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            match looked.await {
                Ok(files) => self = files,
                Err(_) => return,
            }
        }
    }

    fn look(&mut self) {
        let mut changed = false;
        for file in &mut self.files {
            match file.look() {
                Ok(new) => {
                    if new || file.problem.take().is_some() {
                        tracing::info!(file = %file.path.display(), keys = file.keys.len(), "key file read again");
                    }
                    changed |= new;
                }
                Err(problem) => {
                    let error = file.error(problem).to_string();
                    if file.problem.as_ref() != Some(&error) {
                        tracing::error!(%error, "the keys of this file stay as they were");
                        file.problem = Some(error);
                    }
                }
            }
        }
        if changed {
            self.publish();
            self.show_expiries();
        }
    }

    fn publish(&mut self) {
        let files = self.files.iter().flat_map(|file| &file.keys);
        *self.keys.0.write() = self.given.iter().chain(files).cloned().collect();
    }

    fn show_expiries(&mut self) {
        let now: BTreeMap<String, i64> = self.files.iter().flat_map(Watched::expiries).collect();
        metric::key_expiries(&self.expiries, &now);
        let second = jiff::Timestamp::now().as_second();
        for (key, _) in now.iter().filter(|(_, expires_at)| **expires_at <= second) {
            tracing::warn!(%key, "the certificate has expired; tokens that its key has signed are accepted all the same");
        }
        self.expiries = now;
    }
}

impl Watched {
    fn new(kind: Kind, path: &Path) -> Self {
        Self { kind, path: path.to_owned(), seen: None, keys: Vec::new(), problem: None }
    }

    /// Reads the file; `true`: its keys are others than before.
    fn look(&mut self) -> Result<bool, Problem> {
        let content = read(&self.path)?;
        let hash: [u8; 32] = Sha256::digest(&content).into();
        if self.seen == Some(hash) {
            return Ok(false);
        }
        let keys = match self.kind {
            Kind::Secret => vec![Key::from_secret_file(&content)?],
            Kind::PublicKeys => Key::from_pem(&content)?,
        };
        self.seen = Some(hash);
        self.keys = keys;
        Ok(true)
    }

    fn error(&self, problem: Problem) -> FileError {
        let key = match self.kind {
            Kind::Secret => "auth.jwt.hs256_secret_file",
            Kind::PublicKeys => "auth.jwt.public_key_files",
        };
        FileError { key, path: self.path.clone(), problem }
    }

    /// When its certificates end. The second and further ones of a file have their number behind its name.
    fn expiries(&self) -> impl Iterator<Item = (String, i64)> {
        let name = self.path.display();
        self.keys.iter().enumerate().filter_map(move |(index, key)| {
            let label = if index == 0 { name.to_string() } else { format!("{name}#{}", index + 1) };
            Some((label, key.expires_at?))
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Problem> {
    let mut content = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > FILE_BYTES_MAX { Err(Problem::TooLong) } else { Ok(content) }
}

#[cfg(test)]
mod tests;
