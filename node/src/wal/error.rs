//! What can go wrong in the log, and what the caller may do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use borough_proto::ReplicaId;

/// Bytes on disk that are not what was written, and could not be a torn tail (I10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The one replica it concerns; `None` when it cannot be attributed and the whole log is in doubt.
    pub replica: Option<ReplicaId>,
    pub path: PathBuf,
    /// Offset in the file, in bytes.
    pub offset: u64,
    pub detail: String,
}

impl Damage {
    pub(super) fn new(path: &Path, offset: u64, detail: impl Into<String>) -> Self {
        Self { replica: None, path: path.to_owned(), offset, detail: detail.into() }
    }

    pub(super) fn of(mut self, replica: ReplicaId) -> Self {
        self.replica = Some(replica);
        self
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}: {}", self.path.display(), self.offset, self.detail)?;
        match self.replica {
            Some(replica) => write!(f, " (replica {replica})"),
            None => Ok(()),
        }
    }
}

/// Errors of the log. Cloneable, because one failed flush answers many submitters.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WalError {
    #[error("{operation} {}: {source}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    /// Damage before the tail. With a replica: that one must be removed and rebuilt from its peers under a
    /// new id. Without: all replicas of this log must be.
    #[error("log damaged before its tail: {0}")]
    Damaged(Damage),
    /// The replica was removed from this log.
    #[error("replica {0} was removed from the log")]
    Removed(ReplicaId),
    /// Nothing is written any more.
    #[error("the log is closed")]
    Closed,
    /// A flush failed or hung; whether what was queued is durable is unknown. Never retried.
    #[error("the log failed: {0}")]
    Failed(Arc<str>),
}

impl WalError {
    pub(super) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source: Arc::new(source) }
    }
}
