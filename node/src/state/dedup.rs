//! Callers' idempotency keys: the first outcome of a unit is kept and answered again, byte for byte.
//!
//! A record is written in the batch of the unit that it remembers (I4), whatever the outcome, and goes only by a sweep.
//! Its age index is ordered by stamp, so the oldest are found without reading the others.

use borough_proto::wire::{self, OpStatus};
use bytes::Bytes;
use prost::Message;

use super::apply::{Apply, bytes_u64, status};
use super::{View, damaged, keys};
use crate::store::StoreError;

/// What is kept under an idempotency key.
#[derive(Clone, PartialEq, Message)]
struct KeyRecord {
    /// The shard's time when the key was first used, and the place in the log: the record's key in the age index.
    #[prost(uint64, tag = "1")]
    stamp_ms: u64,
    #[prost(uint64, tag = "2")]
    index: u64,
    #[prost(uint32, tag = "3")]
    unit: u32,
    #[prost(fixed64, tag = "4")]
    fingerprint: u64,
    /// With the note.
    #[prost(message, optional, tag = "5")]
    reply: Option<wire::UnitReply>,
}

impl<V: View + ?Sized> Apply<'_, V> {
    /// The answer to a unit of `ops` operations whose key was used before; `None` when the key is new.
    pub(super) fn recall(
        &self,
        idempotency: &wire::Idempotency,
        ops: usize,
    ) -> Result<Option<wire::UnitReply>, StoreError> {
        let key = keys::idempotency(&idempotency.key, idempotency.position);
        let Some(record) = self.overlay.get(&key)? else { return Ok(None) };
        let record = KeyRecord::decode(record).map_err(|error| damaged("idempotency record", &error))?;
        if record.fingerprint != idempotency.fingerprint {
            return Ok(Some(wire::UnitReply {
                ops: vec![status(OpStatus::KeyReused); ops],
                replayed: false,
                note: None,
            }));
        }
        let mut reply = record.reply.unwrap_or_default();
        reply.replayed = true;
        Ok(Some(reply))
    }

    /// Keeps the first outcome of a key.
    pub(super) fn remember(
        &mut self,
        index: u64,
        unit: usize,
        idempotency: &wire::Idempotency,
        reply: &wire::UnitReply,
    ) -> Result<(), StoreError> {
        // More units than that are not in one command: a length of its own precedes each.
        let unit = u32::try_from(unit).unwrap_or(u32::MAX);
        let stamp_ms = self.header.time_ms;
        let record = KeyRecord {
            stamp_ms,
            index,
            unit,
            fingerprint: idempotency.fingerprint,
            reply: Some(reply.clone()),
        };
        let key = keys::idempotency(&idempotency.key, idempotency.position);
        let age = keys::idempotency_age(stamp_ms, index, unit);
        let value = Bytes::from(record.encode_to_vec());
        self.header.idempotency_records += 1;
        self.header.idempotency_bytes += record_bytes(&age, &key, &value);
        self.overlay.put(age, key.clone());
        self.overlay.put(key, value);
        Ok(())
    }

    /// Drops the record that the entry `age` of the age index points to.
    pub(super) fn forget(&mut self, age: Bytes, key: Bytes) -> Result<(), StoreError> {
        let value = self.overlay.get(&key)?.unwrap_or_default();
        // Saturating: a header that was damaged on disk must not panic (I10).
        let bytes = self.header.idempotency_bytes.saturating_sub(record_bytes(&age, &key, &value));
        self.header.idempotency_bytes = bytes;
        self.header.idempotency_records = self.header.idempotency_records.saturating_sub(1);
        self.overlay.remove(age);
        self.overlay.remove(key);
        Ok(())
    }
}

/// What a record costs: its key stands in the age index too.
fn record_bytes(age: &Bytes, key: &Bytes, value: &Bytes) -> u64 {
    bytes_u64(age.len() + 2 * key.len() + value.len())
}
