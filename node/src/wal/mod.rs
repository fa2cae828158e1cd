//! The node's one write-ahead log: every Raft replica of a node appends to the same stream.
//!
//! One writer thread drains a bounded queue into one write and one `fdatasync` (group commit across
//! replicas, I1). Votes, entries, truncations and purges of a replica keep their order in the stream (I3).
//! It knows no openraft, no tonic, no axum: replicas are [`ReplicaId`]s, payloads are bytes.
//!
//! # What is on disk
//! Segment files `<sequence>.seg`, filled with zeros or recycled before use. A segment starts with a header
//! (`segment`) and a batch that holds every live replica's state, so no older segment is needed for state.
//! Then come batches, each made durable by one `fdatasync` before the next is written (`frame`).
//! Checksums are seeded with the log's salt and the segment's sequence number, so that what a recycled
//! file still holds never comes back to life.
//!
//! # How a torn tail is told from damage (I10)
//! - A batch is written only after the one before it is durable. So a valid batch header at offset `p`
//!   proves that everything below `p` was durable: a fault below it is damage. A faulty batch with no valid
//!   batch header behind it was the one in flight: nothing in it was acknowledged, it is cut.
//! - A new segment gets its name only after its header and first batch are durable; both must be whole.
//!   Its header tells where the segment before it ends, so earlier segments must be whole up to there.
//! - Each batch header names the oldest segment still needed; a segment is reused only after a batch that no
//!   longer needs it is durable. So a missing file is told from a freed one.
//! - While idle, an empty batch is written behind the last one (not synced, overwritten by the next), and
//!   one is synced at close: they close the window in which damage to the last batch looks like a torn tail.
//! - Frame headers and payloads have checksums of their own: a fault in a payload stops that replica
//!   ([`Recovered::damaged`]); a fault in the structure cannot be attributed and refuses the log ([`WalError::Damaged`]).
//!
//! # How space comes back
//! Segments are freed oldest first, once no live record lies in them as far as *durable* frames say (I2): a
//! truncation or purge that is only in memory frees nothing. When there are more segments than about twice
//! the live data, the live records of the oldest are copied forward as `Moved` frames, a bounded amount per
//! rotation. A `Moved` frame is written only for a record that is live at that point of the stream, so in
//! replay it just places the record; truncations before it are past, later ones apply to it.

mod clean;
mod codec;
mod error;
mod frame;
mod index;
mod ledger;
mod log;
mod queue;
mod record;
mod recover;
mod replay;
mod segment;
mod spare;
mod watchdog;
mod writer;

#[cfg(test)]
mod tests;

pub use error::{Damage, WalError};
pub use log::{Driver, GroupLog, OnFatal, Options, Stats, Wal, WriterPause};
pub use record::{Done, GroupState, Position, Record, SNAPSHOT_BYTES_MAX, VoteRecord};
pub use recover::Recovered;

use borough_proto::ReplicaId;
