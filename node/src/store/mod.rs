//! The storage-engine seam: ordered key-value spaces with atomic batches.
//!
//! An engine holds one *space* for each replica and generation. The log is the recovery source, so
//! a batch need not be durable when [`Space::apply`] returns, only atomic; [`Space::flush`] makes everything
//! applied before it durable, and only then may the log behind it be purged (I2). So a node puts a buffer before
//! whichever engine it has.
//! It knows no Raft, no documents and no async runtime: callers run it on blocking threads.

mod buffer;
mod checkpoint;
mod damage;
mod files;
mod fjall;
mod memory;
mod open;
mod sled;
mod slots;
pub mod snapshot;
#[cfg(test)]
mod tests;
mod unsynced;
mod value;

use std::fmt;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;

use borough_proto::ReplicaId;
use bytes::Bytes;

pub use self::buffer::BufferedEngine;
pub use self::fjall::FjallEngine;
pub use self::memory::MemoryEngine;
pub use self::open::open_engine;
pub use self::sled::SledEngine;
pub use self::snapshot::{PointInTime, VersionedSpace};
#[cfg(test)]
pub(crate) use self::tests::StopOnDrop;

/// One replica's data. A snapshot is installed into the next generation, which then replaces the
/// current one at once, so a crash in between leaves one of them whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpaceId {
    pub replica: ReplicaId,
    pub generation: u64,
}

impl fmt::Display for SpaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-g{}", self.replica, self.generation)
    }
}

/// Changes that take effect together or not at all (I4). Later ones win over earlier ones on the same key.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// `None` removes the key.
    pub changes: Vec<(Bytes, Option<Bytes>)>,
}

impl Batch {
    /// The same changes in the same order, in batches that end with the change that reaches `bytes` of keys and values.
    pub fn split(self, bytes: usize) -> impl Iterator<Item = Self> {
        let mut changes = self.changes.into_iter();
        std::iter::from_fn(move || {
            let (mut part, mut taken) = (Vec::new(), 0);
            while taken < bytes
                && let Some((key, value)) = changes.next()
            {
                taken += key.len() + value.as_ref().map_or(0, Bytes::len);
                part.push((key, value));
            }
            (!part.is_empty()).then_some(Self { changes: part })
        })
    }
}

/// Keys and values in key order (or reverse).
pub type Scan<'a> = Box<dyn Iterator<Item = Result<(Bytes, Bytes), StoreError>> + Send + 'a>;

/// A range of keys.
pub type KeyRange = (Bound<Bytes>, Bound<Bytes>);

/// One replica's ordered keys and values.
pub trait Space: Send + Sync + fmt::Debug + 'static {
    /// # Errors
    /// [`StoreError`] when the engine fails or the value does not match its checksum (I10).
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Live view of `range`: keys that are written while it runs may or may not be seen.
    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_>;

    /// Applies all of `batch` atomically; readable on return, durable after [`Self::flush`].
    ///
    /// # Errors
    /// [`StoreError`]; the batch may then be applied after a restart or not, but never in part.
    fn apply(&self, batch: Batch) -> Result<(), StoreError>;

    /// Returns once everything applied before is durable (fsynced, its directory entries too).
    ///
    /// # Errors
    /// [`StoreError`]; then nothing may be assumed durable.
    fn flush(&self) -> Result<(), StoreError>;

    /// Whether [`Self::drain`] has something to do that should not wait for a flush.
    fn drain_due(&self) -> bool {
        false
    }

    /// Hands what a buffer holds too much of to the engine, in the order it was applied; not durable before [`Self::flush`].
    /// Reads and applies go on meanwhile. Blocks.
    ///
    /// # Errors
    /// [`StoreError`]; all later applies, drains and flushes fail then, too.
    fn drain(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// A storage engine in a directory of its own.
pub trait Engine: Send + Sync + fmt::Debug + 'static {
    /// Opens a space, creating it when it is new. Opening one twice gives the same handle.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when its files cannot be trusted: the caller quarantines it and rebuilds from peers.
    fn open_space(&self, id: SpaceId) -> Result<Arc<dyn Space>, StoreError>;

    /// Spaces that exist on disk.
    ///
    /// # Errors
    /// [`StoreError`] when the directory cannot be read.
    fn spaces(&self) -> Result<Vec<SpaceId>, StoreError>;

    /// Removes a space; its bytes go back to the file system (at once or by compaction). Absent is fine.
    ///
    /// # Errors
    /// [`StoreError`] when files cannot be removed.
    fn drop_space(&self, id: SpaceId) -> Result<(), StoreError>;

    /// Bytes on disk of all spaces.
    ///
    /// # Errors
    /// [`StoreError`] when the directory cannot be read.
    fn disk_bytes(&self) -> Result<u64, StoreError>;
}

/// Why the engine could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{operation} {}: {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{operation} in space {space}: {detail}")]
    Engine { operation: &'static str, space: String, detail: String },
    #[error("damaged data in space {space}: {detail}")]
    Damaged { space: String, detail: String },
    /// Begin the scan again.
    #[error(
        "point-in-time scan: writes meanwhile replaced more than {limit_bytes} bytes that it had yet to read"
    )]
    ScanOverrun { limit_bytes: u64 },
}

/// Whether `range` holds no key at all; engines differ in what they make of such a range.
fn is_empty_range((low, high): &KeyRange) -> bool {
    match (low, high) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => {
            low >= high
        }
    }
}
