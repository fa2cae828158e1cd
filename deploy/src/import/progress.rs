//! How far an import has come: which part of the file is acknowledged without a gap, kept beside the
//! file so that a later run goes on there.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::lines::Position;
use crate::local_cluster::replace_json;

/// Bytes at the start of the file that tell it from another one.
const HEAD_BYTES: u64 = 64 << 10;

/// What is kept between runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Of the file, the collection, the cluster and the options: another one starts anew.
    pub fingerprint: String,
    /// All bytes before it are acknowledged, or reported as bad.
    pub offset: u64,
    /// Lines before it.
    pub lines: u64,
    /// Documents acknowledged.
    pub written: u64,
    /// Lines that could not be imported.
    pub bad: u64,
}

impl Progress {
    pub fn position(&self) -> Position {
        Position { offset: self.offset, line: self.lines }
    }
}

/// Where the progress of `file` is kept.
pub fn path_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".borough-import");
    PathBuf::from(name)
}

/// Tells this import from others: the same text only for the same file content (as far as length, time
/// and beginning tell), in the same cluster, under the same options.
///
/// # Errors
/// When the file cannot be read.
pub fn fingerprint(file: &File, options: &[&str]) -> Result<String> {
    let metadata = file.metadata().context("look at the file")?;
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let mut head = Vec::new();
    file.take(HEAD_BYTES).read_to_end(&mut head).context("read the file's beginning")?;
    let mut hasher = DefaultHasher::new();
    (metadata.len(), modified, head, options).hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

/// What an earlier run of the same import left; `None` to start anew.
pub fn load(path: &Path, fingerprint: &str) -> Option<Progress> {
    let progress: Progress = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    (progress.fingerprint == fingerprint).then_some(progress)
}

/// Batches are acknowledged in any order; the ledger knows up to where there is no gap.
#[derive(Debug)]
pub struct Ledger {
    progress: Progress,
    /// `None`: not resumable, for stdin.
    path: Option<PathBuf>,
    next: u64,
    /// Acknowledged ahead of the first gap, by the batches' sequence.
    ahead: BTreeMap<u64, Acknowledged>,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    pub end: Position,
    pub written: u64,
    pub bad: u64,
}

impl Ledger {
    pub fn new(progress: Progress, path: Option<PathBuf>) -> Self {
        Self { progress, path, next: 0, ahead: BTreeMap::new() }
    }

    /// Batch number `sequence` (from 0, in file order) is done.
    pub fn acknowledge(&mut self, sequence: u64, done: Acknowledged) {
        self.ahead.insert(sequence, done);
        while let Some(done) = self.ahead.remove(&self.next) {
            self.next += 1;
            self.progress.offset = done.end.offset;
            self.progress.lines = done.end.line;
            self.progress.written += done.written;
            self.progress.bad += done.bad;
        }
    }

    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Keeps it for a later run.
    ///
    /// # Errors
    /// When the file cannot be replaced.
    pub fn save(&self) -> Result<()> {
        match &self.path {
            Some(path) => replace_json(path, &self.progress),
            None => Ok(()),
        }
    }

    /// The import is complete: nothing to go on with.
    ///
    /// # Errors
    /// When the file is there and cannot be removed.
    pub fn remove(&self) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}
