//! Whose data a directory holds: a lock for the running process and the identity it was given.
//!
//! A directory belongs to one node id of one cluster for ever; anything else is refused with a
//! sentence that says what to do.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use borough_proto::NodeId;
use serde::{Deserialize, Serialize};

const LOCK: &str = "LOCK";
const IDENTITY: &str = "identity.json";
const INCARNATION: &str = "incarnation";
const RUNTIME: &str = "runtime.json";

/// What the directory was given when it joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    pub cluster_id: String,
    pub node: NodeId,
}

/// Where the running node listens, for tools on the same machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    pub pid: u32,
    pub addr: String,
    pub admin: String,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("data directory {}: {detail}", path.display())]
pub struct DataDirError {
    pub path: PathBuf,
    pub detail: String,
}

/// A locked data directory. The lock ends with the process.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
    /// Random, made once: a join that is resent gets the same node id.
    pub incarnation: String,
}

impl DataDir {
    /// Creates the directory if need be and locks it.
    ///
    /// # Errors
    /// [`DataDirError`] when another process has it or it cannot be written.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let fail = |detail: String| DataDirError { path: path.to_owned(), detail };
        fs::create_dir_all(path).map_err(|error| fail(format!("create it: {error}")))?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path.join(LOCK));
        let lock = lock.map_err(|error| fail(format!("open its lock file: {error}")))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(fail(
                    "another process uses it; stop that one, or give this node a directory of its own"
                        .to_owned(),
                ));
            }
            Err(fs::TryLockError::Error(error)) => return Err(fail(format!("lock it: {error}"))),
        }
        let mut dir = Self { path: path.to_owned(), _lock: lock, incarnation: String::new() };
        dir.incarnation = match fs::read_to_string(path.join(INCARNATION)) {
            Ok(text) => text.trim().to_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let made = uuid::Uuid::new_v4().to_string();
                dir.write(INCARNATION, made.as_bytes())?;
                made
            }
            Err(error) => return Err(fail(format!("read {INCARNATION}: {error}"))),
        };
        Ok(dir)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The identity it was given, if it ever joined.
    ///
    /// # Errors
    /// [`DataDirError`] when the file is there and cannot be read.
    pub fn identity(&self) -> Result<Option<Identity>, DataDirError> {
        let text = match fs::read(self.path.join(IDENTITY)) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.error(format!("read {IDENTITY}: {error}"))),
        };
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            self.error(format!(
                "{IDENTITY} is damaged ({error}); restore it from the status document, or empty the directory to join anew"
            ))
        })
    }

    /// Keeps the identity, durably.
    ///
    /// # Errors
    /// [`DataDirError`] when it cannot be written.
    pub fn keep_identity(&self, identity: &Identity) -> Result<(), DataDirError> {
        let text = serde_json::to_vec(identity).map_err(|error| self.error(error.to_string()))?;
        self.write(IDENTITY, &text)
    }

    /// Says where the node listens.
    ///
    /// # Errors
    /// [`DataDirError`] when it cannot be written.
    pub fn keep_runtime(&self, runtime: &Runtime) -> Result<(), DataDirError> {
        let text = serde_json::to_vec(runtime).map_err(|error| self.error(error.to_string()))?;
        self.write(RUNTIME, &text)
    }

    /// Takes back what [`Self::keep_runtime`] said: the node has ended gracefully.
    pub fn forget_runtime(&self) {
        if let Err(error) = fs::remove_file(self.path.join(RUNTIME)) {
            tracing::debug!(%error, "runtime.json was not removed");
        }
    }

    /// A file's content, `None` when there is none.
    ///
    /// # Errors
    /// [`DataDirError`] when it cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, DataDirError> {
        match fs::read(self.path.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error(format!("read {name}: {error}"))),
        }
    }

    /// Replaces a file at once: a crash leaves the old content or the new one, whole.
    ///
    /// # Errors
    /// [`DataDirError`] when it cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), DataDirError> {
        let new = self.path.join(format!("{name}.new"));
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, self.path.join(name))?;
            // Sync the directory too, or a crash loses the new name (I3).
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|error| self.error(format!("write {name}: {error}")))
    }

    fn error(&self, detail: String) -> DataDirError {
        DataDirError { path: self.path.clone(), detail }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_in_use_is_refused_and_keeps_its_incarnation() {
        let temp = tempfile::tempdir().unwrap();
        let first = DataDir::open(temp.path()).unwrap();
        let error = DataDir::open(temp.path()).unwrap_err();
        assert!(error.to_string().contains("another process"), "{error}");
        let incarnation = first.incarnation.clone();
        drop(first);
        assert_eq!(DataDir::open(temp.path()).unwrap().incarnation, incarnation);
    }

    #[test]
    fn the_identity_is_kept_and_damage_is_told() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        assert_eq!(dir.identity().unwrap(), None);
        let identity = Identity { cluster_id: "c".to_owned(), node: NodeId(7) };
        dir.keep_identity(&identity).unwrap();
        assert_eq!(dir.identity().unwrap(), Some(identity));
        fs::write(temp.path().join(IDENTITY), b"{").unwrap();
        assert!(dir.identity().unwrap_err().to_string().contains("damaged"));
    }
}
