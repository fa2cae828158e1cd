//! What callers put into the log and get back: records, a replica's durable state, completions.

use bincode::{Decode, Encode};
use bytes::Bytes;

use super::WalError;

/// Largest [`GroupState::snapshot`], in bytes.
pub const SNAPSHOT_BYTES_MAX: usize = 64 << 10;

/// A place in a replica's log: `(term, index)`.
pub type Position = (u64, u64);

/// Called once, from the writer thread after the `fdatasync` that covers the submission, or on the caller's
/// thread when it is refused at once. It must be quick, must not panic (that is fatal to the log) and must not
/// submit to the log: with a full queue the writer would wait for itself.
pub type Done = Box<dyn FnOnce(Result<(), WalError>) + Send>;

/// One entry of a replica's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub index: u64,
    pub term: u64,
    pub payload: Bytes,
}

/// A replica's vote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub struct VoteRecord {
    pub term: u64,
    /// The replica voted for.
    pub voted_for: u64,
    pub committed: bool,
}

/// What a replica must remember beside its entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct GroupState {
    pub vote: Option<VoteRecord>,
    /// Entries up to and including this one are gone.
    pub purged: Option<Position>,
    /// A lower bound: it is written along with other records, not flushed for itself.
    pub committed: Option<Position>,
    /// Generation of the engine space that holds the replica's data.
    pub generation: u64,
    /// The Raft layer's own; at most [`SNAPSHOT_BYTES_MAX`].
    pub snapshot: Vec<u8>,
}
