//! Applies log entries to an overlay: sessions first, then each unit, all of it or nothing.
//!
//! Upholds I4 (one batch for everything an entry does), I5 (time comes from the stamp and never runs
//! backwards) and I9 (an outcome is known, or is told to be stale).

use borough_proto::limits;
use borough_proto::wire::{self, OpStatus, op::Action};
use bytes::Bytes;

use super::expire::Swept;
use super::overlay::Overlay;
use super::record::Record;
use super::sessions::{Seen, Sessions};
use super::{Header, View, keys, merge};
use crate::defect::{self, Defect};
use crate::store::{Batch, StoreError};
use prost::Message;

/// The low bits of a version that number the operations of a command.
const POSITION_BITS: u32 = 16;

/// A batch in the making: any number of log entries, in log order.
#[derive(Debug)]
pub struct Apply<'v, V: View + ?Sized> {
    pub(super) overlay: Overlay<'v, V>,
    pub(super) header: Header,
    pub(super) sessions: Sessions,
    pub(super) swept: Swept,
}

/// What several log entries do, for one atomic batch (I4).
#[derive(Debug)]
pub struct Applied {
    /// Sorted by key; each key once.
    pub batch: Batch,
    /// The shard's header after the batch (which contains it).
    pub header: Header,
    /// Keys of documents that were written or removed, with the record as it now stands: for the cache (I7).
    pub touched: Vec<(Bytes, Option<Bytes>)>,
    /// What sweeps removed.
    pub swept: Swept,
    /// For [`resume`], once the batch is in the view.
    pub sessions: Sessions,
}

/// Starts a batch on top of `view`, whose header is `header`.
pub fn begin<V: View + ?Sized>(view: &V, header: Header) -> Apply<'_, V> {
    resume(view, header, Sessions::default())
}

/// The same, with the sessions that the batch before it has left, and which must have gone into that same `view`.
pub fn resume<V: View + ?Sized>(view: &V, header: Header, sessions: Sessions) -> Apply<'_, V> {
    Apply { overlay: Overlay::new(view), header, sessions, swept: Swept::default() }
}

impl<V: View + ?Sized> Apply<'_, V> {
    /// Applies the entry at `index`, which must be larger than all before it.
    ///
    /// # Errors
    /// Only those of the engine below. The batch is then unusable: drop it.
    pub fn apply(&mut self, index: u64, command: &wire::Command) -> Result<wire::CommandReply, StoreError> {
        self.header.time_ms = self.header.time_ms.max(command.stamp_ms);
        if let Some(session) = &command.session {
            match self.sessions.look_up(&mut self.overlay, &mut self.header, session)? {
                Seen::Never => {}
                Seen::Answered(mut reply) => {
                    reply.units.iter_mut().for_each(|unit| unit.replayed = true);
                    return Ok(reply);
                }
                Seen::Forgotten => {
                    return Ok(wire::CommandReply { units: Vec::new(), stale_duplicate: true });
                }
            }
        }
        let mut units = Vec::with_capacity(command.units.len());
        let mut position = 0;
        for (number, unit) in command.units.iter().enumerate() {
            if defect::has(Defect::ApplyTwice) {
                self.apply_unit(index, number, position, unit)?;
            }
            units.push(self.apply_unit(index, number, position, unit)?);
            position += unit.ops.len();
        }
        if let Some(sweep) = &command.sweep {
            self.sweep(sweep)?;
        }
        let reply = wire::CommandReply { units, stale_duplicate: false };
        if let Some(session) = &command.session {
            self.sessions.record(&mut self.overlay, &mut self.header, session, &reply)?;
        }
        Ok(reply)
    }

    /// The batch of everything applied since [`begin`].
    pub fn finish(mut self) -> Applied {
        self.sessions.write_back(&mut self.overlay);
        // Always written: whether it changed depends on how entries were grouped, and the bytes must not (I5).
        self.overlay.put(Bytes::from_static(&keys::HEADER), self.header.encode_to_vec().into());
        let changes = self.overlay.into_changes();
        let touched =
            changes.iter().filter(|(key, _)| key.first() == Some(&keys::DOCUMENT)).cloned().collect();
        Applied {
            batch: Batch { changes },
            header: self.header,
            touched,
            swept: self.swept,
            sessions: self.sessions.settled(),
        }
    }

    /// The unit `number`, whose first operation is the command's `position`-th.
    fn apply_unit(
        &mut self,
        index: u64,
        number: usize,
        position: usize,
        unit: &wire::Unit,
    ) -> Result<wire::UnitReply, StoreError> {
        let Some(idempotency) = &unit.idempotency else { return self.attempt(index, position, unit) };
        if let Some(kept) = self.recall(idempotency, unit.ops.len())? {
            return Ok(kept);
        }
        let mut reply = self.attempt(index, position, unit)?;
        reply.note = idempotency.note.clone();
        self.remember(index, number, idempotency, &reply)?;
        Ok(reply)
    }

    /// All operations, or none of them.
    fn attempt(
        &mut self,
        index: u64,
        position: usize,
        unit: &wire::Unit,
    ) -> Result<wire::UnitReply, StoreError> {
        let before = self.header;
        let mut ops = Vec::with_capacity(unit.ops.len());
        self.overlay.begin_unit();
        for (op, position) in unit.ops.iter().zip(position..) {
            let reply = match version(index, position) {
                Some(version) => self.apply_op(version, op)?,
                None => status(OpStatus::Unspecified),
            };
            let failed = !succeeded(reply.status());
            ops.push(reply);
            if failed {
                self.overlay.end_unit(false);
                self.header = before;
                let failing = ops.len() - 1;
                ops.iter_mut().take(failing).for_each(|op| *op = status(OpStatus::Aborted));
                ops.resize(unit.ops.len(), status(OpStatus::Aborted));
                return Ok(wire::UnitReply { ops, replayed: false, note: None });
            }
        }
        self.overlay.end_unit(true);
        Ok(wire::UnitReply { ops, replayed: false, note: None })
    }

    fn apply_op(&mut self, version: u64, op: &wire::Op) -> Result<wire::OpReply, StoreError> {
        // No node proposes such (see `validate`), but the log is bytes too (I10): refused, in the same way everywhere.
        let malformed = op.id.len() > usize::from(u16::MAX) || op.sort.as_ref().is_some_and(String::is_empty);
        let Some(action) = op.action.as_ref().filter(|_| !malformed) else {
            return Ok(status(OpStatus::Unspecified));
        };

        let key = keys::document_key(op.collection, &op.id, op.sort.as_deref());
        let held = self.overlay.get(&key)?.as_ref().map(Record::decode).transpose()?;
        let standing = held.as_ref().filter(|record| record.is_visible(self.header.time_ms));
        if standing.is_none() && matches!(action, Action::Merge(_) | Action::Delete(_)) {
            return Ok(status(OpStatus::NotFound));
        }
        if let Some(refusal) =
            op.precondition.as_ref().and_then(|precondition| refusal(precondition, standing))
        {
            return Ok(refusal);
        }
        let deadline = op.ttl_ms.map(|ttl_ms| self.header.time_ms.saturating_add(ttl_ms));
        match (action, standing) {
            (Action::Put(put), _) => {
                if put.document.len() > limits::DOCUMENT_BYTES_MAX {
                    return Ok(status(OpStatus::TooLarge));
                }
                let done = if standing.is_some() { OpStatus::Replaced } else { OpStatus::Created };
                let record =
                    Record { flags: put.flags, version, expires_ms: deadline, body: put.document.clone() };
                let mut reply = status(done);
                (reply.version, reply.expires_ms) = (version, deadline);
                self.write(key, op, held.as_ref(), &record);
                Ok(reply)
            }
            (Action::Merge(merge), Some(standing)) => {
                let merged = match merge::document(&standing.body, &merge.patch, &op.id, op.sort.as_deref()) {
                    Ok(merged) => merged,
                    Err(refused) => return Ok(status(refused.into())),
                };
                let expires_ms = deadline.or(standing.expires_ms);
                let record = Record { flags: merged.flags, version, expires_ms, body: merged.body };
                let body = self.write(key, op, held.as_ref(), &record);
                let mut reply = status(OpStatus::Merged);
                (reply.version, reply.expires_ms, reply.document, reply.flags) =
                    (version, expires_ms, body, record.flags);
                Ok(reply)
            }
            (Action::Delete(_), Some(_)) => {
                if let Some(held) = &held {
                    self.remove_document(key, op.id.len() + op.sort.as_ref().map_or(0, String::len), held);
                }
                Ok(status(OpStatus::Deleted))
            }
            (Action::Merge(_) | Action::Delete(_), None) => Ok(status(OpStatus::NotFound)),
            (Action::Check(_), standing) => {
                let mut reply = status(OpStatus::Checked);
                if let Some(standing) = standing {
                    (reply.version, reply.expires_ms) = (standing.version, standing.expires_ms);
                }
                Ok(reply)
            }
        }
    }

    /// Writes `record` over what was `held`, with index and counters. The body, sharing the record's bytes.
    fn write(&mut self, key: Bytes, op: &wire::Op, held: Option<&Record>, record: &Record) -> Bytes {
        let key_bytes = op.id.len() + op.sort.as_ref().map_or(0, String::len);
        let expired_at = held.and_then(|held| held.expires_ms);
        if expired_at != record.expires_ms {
            if let Some(expires_ms) = expired_at {
                self.overlay.remove(keys::expiry(expires_ms, &key));
            }
            if let Some(expires_ms) = record.expires_ms {
                self.overlay.put(keys::expiry(expires_ms, &key), Bytes::new());
            }
        }
        match held {
            Some(held) => {
                self.header.document_bytes =
                    self.header.document_bytes.saturating_sub(bytes_u64(held.body.len()))
            }
            None => {
                self.header.documents += 1;
                self.header.document_bytes += bytes_u64(key_bytes);
            }
        }
        self.header.document_bytes += bytes_u64(record.body.len());
        let encoded = record.encode();
        let body = encoded.slice(encoded.len() - record.body.len()..);
        self.overlay.put(key, encoded);
        body
    }

    /// Removes the record `held` under `key`, whose id and sort key have `key_bytes`.
    pub(super) fn remove_document(&mut self, key: Bytes, key_bytes: usize, held: &Record) {
        if let Some(expires_ms) = held.expires_ms {
            self.overlay.remove(keys::expiry(expires_ms, &key));
        }
        // Saturating: a header that was damaged on disk must not panic (I10).
        self.header.documents = self.header.documents.saturating_sub(1);
        self.header.document_bytes =
            self.header.document_bytes.saturating_sub(bytes_u64(key_bytes + held.body.len()));
        self.overlay.remove(key);
    }
}

/// Unique for ever: an index is applied once, a position in it is one operation. `None` past the last position.
fn version(index: u64, position: usize) -> Option<u64> {
    let position = u64::try_from(position).ok().filter(|position| position >> POSITION_BITS == 0)?;
    Some((index << POSITION_BITS) | position)
}

/// Why the precondition does not hold for what stands; `None` when it holds.
fn refusal(precondition: &wire::Precondition, standing: Option<&Record>) -> Option<wire::OpReply> {
    let version = standing.map(|record| record.version);
    let among = |versions: &[u64]| version.is_some_and(|version| versions.contains(&version));
    let failed = if precondition.if_absent && standing.is_some() {
        OpStatus::Exists
    } else if (precondition.if_present && standing.is_none())
        || (!precondition.if_match.is_empty() && !among(&precondition.if_match))
        || among(&precondition.if_none_match)
    {
        OpStatus::PreconditionFailed
    } else {
        return None;
    };
    let mut reply = status(failed);
    reply.version = version.unwrap_or_default();
    Some(reply)
}

fn succeeded(status: OpStatus) -> bool {
    match status {
        OpStatus::Created | OpStatus::Replaced | OpStatus::Merged | OpStatus::Deleted | OpStatus::Checked => {
            true
        }
        OpStatus::Unspecified
        | OpStatus::NotFound
        | OpStatus::Exists
        | OpStatus::PreconditionFailed
        | OpStatus::Aborted
        | OpStatus::KeyReused
        | OpStatus::TooLarge
        | OpStatus::InvalidMerge => false,
    }
}

/// A reply that says nothing but its status.
pub(super) fn status(status: OpStatus) -> wire::OpReply {
    wire::OpReply { status: status.into(), version: 0, expires_ms: None, document: Bytes::new(), flags: 0 }
}

/// Lengths in memory always fit.
pub(super) fn bytes_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
