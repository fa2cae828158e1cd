//! Sweeps: expired documents, old idempotency records and silent sessions.
//!
//! The leader decides when ([`sweep_due`], which only reads); all replicas then apply the same sweep, measured by the shard's
//! time and never by a clock (I5). One sweep does a bounded amount of work (I8); what is left is due again.

use std::ops::Bound;
use std::time::Duration;

use borough_proto::{limits, wire};

use super::apply::{Apply, bytes_u64};
use super::record::Record;
use super::sessions::decode_session;
use super::{Header, View, damaged, keys};
use crate::store::StoreError;

/// Most idempotency records that one sweep drops. All replicas must agree on it: part of the log's meaning.
const KEYS_MAX: usize = 10_000;
/// Idempotency records looked at in one go.
const KEYS_READ: usize = 100;
/// Most sessions that one sweep drops; likewise.
const SESSIONS_MAX: usize = 256;

/// When the leader proposes a sweep, and how large a one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SweepLimits {
    /// Expired documents removed by one sweep.
    pub expire_max: u32,
    /// Bound on idempotency records, in bytes.
    pub keys_bytes_max: u64,
    /// Idempotency records older than this go.
    pub keys_retention: Duration,
    /// Sessions silent for longer than this go.
    pub sessions_retention: Duration,
}

impl SweepLimits {
    /// The contract's retentions, with a bound of `keys_bytes_max` on a shard's idempotency records.
    pub fn new(keys_bytes_max: u64) -> Self {
        Self {
            expire_max: 1000,
            keys_bytes_max,
            keys_retention: limits::IDEMPOTENCY_RETENTION,
            sessions_retention: limits::SESSION_RETENTION,
        }
    }

    /// The same, leaving sessions and idempotency records alone however old they are.
    pub fn documents_only(self) -> Self {
        Self { keys_retention: Duration::MAX, sessions_retention: Duration::MAX, ..self }
    }
}

/// What sweeps removed: for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    pub documents: u64,
    /// Idempotency records past their retention.
    pub keys_aged: u64,
    /// Younger ones, removed to stay within the bound on bytes.
    pub keys_evicted: u64,
    pub sessions: u64,
}

/// The sweep that the leader should propose at `now_ms`, if there is anything to remove. Three short
/// reads, of which the last goes over the shard's sessions.
///
/// # Errors
/// [`StoreError`] of the engine, or `Damaged` when an entry cannot be read.
pub fn sweep_due<V: View + ?Sized>(
    view: &V,
    header: &Header,
    now_ms: u64,
    limits: SweepLimits,
) -> Result<Option<wire::Sweep>, StoreError> {
    let now_ms = now_ms.max(header.time_ms);
    let sweep = sweep_at(now_ms, limits);
    let due = header.idempotency_bytes > sweep.keys_bytes_max
        || (sweep.expire_max > 0
            && view.scan(keys::numbered_until(keys::EXPIRY, now_ms), false).next().transpose()?.is_some())
        || oldest_key_ms(view)?.is_some_and(|stamp_ms| stamp_ms < sweep.keys_before_ms)
        || has_silent_session(view, sweep.sessions_before_ms)?;
    Ok(due.then_some(sweep))
}

/// The sweep of `now_ms`, whether there is anything to remove or not.
pub fn sweep_at(now_ms: u64, limits: SweepLimits) -> wire::Sweep {
    wire::Sweep {
        expire_max: limits.expire_max,
        keys_before_ms: before(now_ms, limits.keys_retention),
        keys_bytes_max: limits.keys_bytes_max,
        sessions_before_ms: before(now_ms, limits.sessions_retention),
        collections: Vec::new(),
    }
}

/// Whether a document's deadline lies after `after_ms` and not after `until_ms`.
///
/// # Errors
/// [`StoreError`] of the engine, or `Damaged` when an entry cannot be read.
pub fn expires_between<V: View + ?Sized>(view: &V, after_ms: u64, until_ms: u64) -> Result<bool, StoreError> {
    if after_ms >= until_ms {
        return Ok(false);
    }
    let (_, until) = keys::numbered_until(keys::EXPIRY, until_ms);
    let (_, from) = keys::numbered_until(keys::EXPIRY, after_ms);
    let from = match from {
        Bound::Excluded(next) => Bound::Included(next),
        bound @ (Bound::Included(_) | Bound::Unbounded) => bound,
    };
    Ok(view.scan((from, until), false).next().transpose()?.is_some())
}

/// Collections that have documents here, in order: one short read each.
///
/// # Errors
/// [`StoreError`] of the engine, or `Damaged` when a key cannot be read.
pub fn collections_held<V: View + ?Sized>(view: &V) -> Result<Vec<u32>, StoreError> {
    let (mut from, to) = keys::prefixed(&[keys::DOCUMENT]);
    let mut held = Vec::new();
    while let Some(entry) = view.scan((from, to.clone()), false).next() {
        let id = keys::parse_collection(&entry?.0)
            .ok_or_else(|| damaged("document key", &"it has no collection"))?;
        held.push(id);
        from = match keys::after_prefix(&keys::collection(id)) {
            Bound::Excluded(next) => Bound::Included(next),
            Bound::Included(_) | Bound::Unbounded => break,
        };
    }
    Ok(held)
}

fn before(now_ms: u64, retention: Duration) -> u64 {
    now_ms.saturating_sub(u64::try_from(retention.as_millis()).unwrap_or(u64::MAX))
}

fn oldest_key_ms<V: View + ?Sized>(view: &V) -> Result<Option<u64>, StoreError> {
    let Some(oldest) = view.scan(keys::prefixed(&[keys::IDEMPOTENCY_AGE]), false).next() else {
        return Ok(None);
    };
    age_of(&oldest?.0).map(Some)
}

fn age_of(key: &[u8]) -> Result<u64, StoreError> {
    keys::parse_idempotency_age(key).ok_or_else(|| damaged("idempotency age index", &"an entry has no stamp"))
}

fn has_silent_session<V: View + ?Sized>(view: &V, before_ms: u64) -> Result<bool, StoreError> {
    for entry in view.scan(keys::prefixed(&[keys::SESSION]), false) {
        if decode_session(entry?.1)?.last_ms < before_ms {
            return Ok(true);
        }
    }
    Ok(false)
}

impl<V: View + ?Sized> Apply<'_, V> {
    pub(super) fn sweep(&mut self, sweep: &wire::Sweep) -> Result<(), StoreError> {
        self.sweep_documents(sweep.expire_max)?;
        for &collection in &sweep.collections {
            self.sweep_collection(collection, sweep.expire_max)?;
        }
        self.sweep_keys(sweep.keys_before_ms, sweep.keys_bytes_max)?;
        self.sweep_sessions(sweep.sessions_before_ms)
    }

    fn sweep_documents(&mut self, expire_max: u32) -> Result<(), StoreError> {
        let most = usize::try_from(expire_max).unwrap_or(usize::MAX);
        let due = self.overlay.first(keys::numbered_until(keys::EXPIRY, self.header.time_ms), most)?;
        for (entry, _) in due {
            let (expires_ms, key) = keys::parse_expiry(&entry)
                .ok_or_else(|| damaged("expiry index", &"an entry has no deadline"))?;
            let held = self.overlay.get(&key)?.as_ref().map(Record::decode).transpose()?;
            // Writes keep the index exact; an entry that points elsewhere nevertheless must not take a live document along.
            if let Some(held) = held.filter(|held| held.expires_ms == Some(expires_ms)) {
                let (id, sort) = keys::parse_document_key(&key)
                    .ok_or_else(|| damaged("expiry index", &"an entry names no document"))?;
                let key_bytes = id.len() + sort.map_or(0, str::len);
                self.remove_document(key, key_bytes, &held);
                self.swept.documents += 1;
            } else {
                self.overlay.remove(entry);
            }
        }
        Ok(())
    }

    /// Documents of a deleted collection, some at a time.
    fn sweep_collection(&mut self, collection: u32, most: u32) -> Result<(), StoreError> {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        for (key, record) in self.overlay.first(keys::prefixed(&keys::collection(collection)), most)? {
            let held = Record::decode(&record)?;
            let (id, sort) = keys::parse_document_key(&key)
                .ok_or_else(|| damaged("document key", &"it names no document"))?;
            let key_bytes = id.len() + sort.map_or(0, str::len);
            self.remove_document(key.clone(), key_bytes, &held);
            self.swept.documents += 1;
        }
        Ok(())
    }

    fn sweep_keys(&mut self, before_ms: u64, bytes_max: u64) -> Result<(), StoreError> {
        // A few at a time, since most sweeps drop few; each time behind the last, not over what was dropped.
        let (mut from, to) = keys::prefixed(&[keys::IDEMPOTENCY_AGE]);
        for _ in 0..KEYS_MAX / KEYS_READ {
            let oldest = self.overlay.first((from, to.clone()), KEYS_READ)?;
            let Some((last, _)) = oldest.last() else { return Ok(()) };
            from = Bound::Excluded(last.clone());
            for (age, key) in oldest {
                if age_of(&age)? < before_ms {
                    self.swept.keys_aged += 1;
                } else if self.header.idempotency_bytes > bytes_max {
                    self.swept.keys_evicted += 1;
                } else {
                    return Ok(());
                }
                self.forget(age, key)?;
            }
        }
        Ok(())
    }

    fn sweep_sessions(&mut self, before_ms: u64) -> Result<(), StoreError> {
        self.sessions.write_back(&mut self.overlay);
        let mut dropped = 0;
        for (key, value) in self.overlay.first(keys::prefixed(&[keys::SESSION]), usize::MAX)? {
            let record = decode_session(value)?;
            if record.last_ms >= before_ms {
                continue;
            }
            let id = keys::parse_session(&key).ok_or_else(|| damaged("session key", &"it has no id"))?;
            self.sessions.drop_session(&mut self.overlay, id, record)?;
            dropped += 1;
            if dropped == SESSIONS_MAX {
                break;
            }
        }
        self.header.sessions = self.header.sessions.saturating_sub(bytes_u64(dropped));
        self.swept.sessions += bytes_u64(dropped);
        Ok(())
    }
}
