//! The pure state machine of a shard: (view, index, command) → (batch, reply).
//!
//! Apply reads no clock, no randomness and no map in hash order, so that replicas which apply the same log hold the
//! same bytes (I5). Everything a log entry does (documents, expiry, idempotency, sessions, counters)
//! leaves in one [`Batch`](crate::store::Batch), to which the caller adds the applied position (I4).
//! It knows no Raft, no network and no engine: only [`View`], ordered bytes to read.
//!
//! | prefix | key | value |
//! |---|---|---|
//! | `d` | collection, hash of id, length of id, id, sort | document record |
//! | `x` | deadline, document key | nothing |
//! | `i` | idempotency key, position | stamp, fingerprint, reply with its note |
//! | `j` | stamp, log index, unit | key under `i` |
//! | `s` | session | last stamp, watermark, its pages |
//! | `p` | session, page | outcomes of 64 sequences |
//! | `o` | session, sequence | an outcome too large for its page |
//! | `m` | | [`Header`] |
//! | `r` | reserved to the raft layer | |

mod apply;
mod dedup;
mod expire;
mod keys;
mod merge;
mod overlay;
mod read;
mod record;
mod sessions;
#[cfg(test)]
pub mod tests;
mod validate;

use bytes::Bytes;
use prost::Message;

use crate::store::{KeyRange, Scan, Space, StoreError};

pub use apply::{Applied, Apply, begin, resume};
pub use expire::{SweepLimits, Swept, collections_held, expires_between, sweep_at, sweep_due};
pub use keys::{document_key, is_memory_of_requests};
pub use read::{read, scan};
pub use record::{Visibility, decode_document, visibility};
pub use sessions::Sessions;
pub use validate::{OPS_MAX, UNITS_MAX, validate};

/// How far a session's sequences may reach beyond its watermark. A sender that leaves an older one unanswered
/// for longer loses the outcome of that one: it is told *stale*, never applied again (I8, I9).
pub const SESSION_SPAN_MAX: u64 = 65_536;
/// Sessions that a shard should hold at most. Apply cannot refuse, so whoever proposes does, by [`Header::sessions`] (I8).
pub const SESSIONS_MAX: u64 = 16_384;

/// Ordered bytes that apply and reads look at: an engine's space, or anything that behaves like one.
pub trait View {
    /// # Errors
    /// [`StoreError`] of the engine.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Keys and values of `range` in key order, or in reverse.
    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_>;
}

impl<S: Space + ?Sized> View for S {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Space::get(self, key)
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        Space::scan(self, range, reverse)
    }
}

/// What is known of a shard as a whole. The counters are exact.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Header {
    /// The shard's time: the largest stamp applied, milliseconds since the Unix epoch.
    #[prost(uint64, tag = "1")]
    pub time_ms: u64,
    /// Documents held, expired ones that no sweep has removed yet included.
    #[prost(uint64, tag = "2")]
    pub documents: u64,
    /// Bytes of their ids, sort keys and bodies.
    #[prost(uint64, tag = "3")]
    pub document_bytes: u64,
    #[prost(uint64, tag = "4")]
    pub idempotency_records: u64,
    /// Bytes of those records with their keys and index entries.
    #[prost(uint64, tag = "5")]
    pub idempotency_bytes: u64,
    #[prost(uint64, tag = "6")]
    pub sessions: u64,
}

/// The header of the state in `view`; an empty view has the default one.
///
/// # Errors
/// [`StoreError`] of the engine, or `Damaged` when the header cannot be read.
pub fn load_header<V: View + ?Sized>(view: &V) -> Result<Header, StoreError> {
    match view.get(&keys::HEADER)? {
        Some(bytes) => Header::decode(bytes).map_err(|error| damaged("shard header", &error)),
        None => Ok(Header::default()),
    }
}

/// Whether the shard remembers the session already.
///
/// # Errors
/// [`StoreError`] of the engine.
pub fn has_session<V: View + ?Sized>(view: &V, session: u64) -> Result<bool, StoreError> {
    Ok(view.get(&keys::session(session))?.is_some())
}

/// Bytes that this module did not write, or that were changed since (I10). The space is not known here: the caller adds it.
fn damaged(what: &str, detail: &dyn std::fmt::Display) -> StoreError {
    StoreError::Damaged { space: "of the shard".to_owned(), detail: format!("{what}: {detail}") }
}
