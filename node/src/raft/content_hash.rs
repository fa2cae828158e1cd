//! A hash of all that a replica holds, at one point in time: what tells replicas apart that should be equal.
//!
//! Raft's own part of the space is left out; everything else follows from the log alone (I5). It reads the whole replica,
//! so whoever calls bounds how often. Writes go on meanwhile: the scan is the one that snapshots use.

use borough_proto::replicas::ContentHash;
use xxhash_rust::xxh3::Xxh3;

use super::state_machine::{RAFT_PREFIX, ReplicaState};
use super::types::parts;
use crate::store::StoreError;

/// Bytes read between two looks at whether the hash is still wanted.
const CHUNK_BYTES: usize = 1 << 20;

/// Why there is no hash.
#[derive(Debug, thiserror::Error)]
pub enum ContentHashError {
    /// Whoever asked has gone, or the node ends.
    #[error("hash of a replica: no longer wanted")]
    Cancelled,
    #[error("hash of a replica: {0}")]
    Store(#[from] StoreError),
}

impl ReplicaState {
    /// Hashes all records. Blocks, for as long as reading them takes; `wanted` is asked after each chunk.
    ///
    /// # Errors
    /// [`ContentHashError`]; with [`StoreError::ScanOverrun`] writes replaced more than could be remembered meanwhile, and a
    /// quieter moment may do.
    pub fn content_hash(&self, wanted: impl Fn() -> bool) -> Result<ContentHash, ContentHashError> {
        let (mut scan, meta) = self.begin_scan();
        let (applied_term, applied_index) = meta.last_log_id.as_ref().map(parts).unwrap_or_default();
        let mut hasher = Xxh3::new();
        let (mut records, mut bytes) = (0, 0);
        while let Some(chunk) = scan.next_chunk(CHUNK_BYTES)? {
            for (key, value) in &chunk {
                if key.starts_with(RAFT_PREFIX) {
                    continue;
                }
                // With their lengths, or a byte could pass from one to the next unnoticed.
                for part in [key, value] {
                    hasher.update(&(part.len() as u64).to_le_bytes());
                    hasher.update(part);
                    bytes += part.len() as u64;
                }
                records += 1;
            }
            if let Some((last, _)) = chunk.last() {
                scan.acknowledge(last.clone());
            }
            if !wanted() {
                return Err(ContentHashError::Cancelled);
            }
        }
        let hash = format!("{:032x}", hasher.digest128());
        Ok(ContentHash { hash, applied_index, applied_term, records, bytes })
    }
}
