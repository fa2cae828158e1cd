//! What fuzzing reaches into (`jepsen-tests/fuzz`): decoders of peers' bytes that are private otherwise.

use borough_proto::wire;
use bytes::Bytes;

use crate::raft::snapshot::{decode_pairs, encode_pairs, snapshot_meta};
use crate::raft::types::SnapshotMeta;

/// The pairs of a snapshot's chunk, and the chunk that is made of them again; `None` for bytes that are no chunk.
pub fn snapshot_chunk(data: Bytes) -> Option<(Vec<(Bytes, Bytes)>, Bytes)> {
    let batch = decode_pairs(data)?;
    let pairs: Vec<_> =
        batch.changes.into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect();
    let again = encode_pairs(&pairs);
    Some((pairs, again))
}

/// What a receiver takes from a snapshot's header.
///
/// # Errors
/// A text for the sender.
pub fn snapshot_header(header: &wire::SnapshotHeader) -> Result<SnapshotMeta, String> {
    snapshot_meta(header)
}
