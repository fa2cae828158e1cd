//! What a space's buffer holds: a layer that batches are merged into, and sealed ones that wait to be written.
//!
//! A sealed layer never changes. Layers are numbered in their order, and only the oldest is ever taken away. It knows
//! no engine.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::store::{Batch, KeyRange, StoreError};

/// Bytes of a layer, above which the next batch begins another. Below what sled takes as one batch (128 KiB, with what it adds to
/// values that it cuts into chunks): longer ones it writes twice.
pub(super) const LAYER_BYTES_MAX: u64 = 96 << 10;
/// Layers of a space, the one that grows among them, before whoever applies must write some.
const LAYERS_MAX: u64 = 4;
/// What an entry costs beside its key and value, about: here in memory, and no less in sled's batches.
pub(super) const ENTRY_BYTES: u64 = 96;

/// Each key's last change, for scans: in key order.
pub(super) type Changes = Vec<(Bytes, Option<Bytes>)>;

/// What `batch` takes in a layer at most.
pub(super) fn weight(batch: &Batch) -> u64 {
    batch.changes.iter().map(|(key, value)| entry_bytes(key, value.as_ref())).sum()
}

fn entry_bytes(key: &Bytes, value: Option<&Bytes>) -> u64 {
    ENTRY_BYTES + key.len() as u64 + value.map_or(0, |value| value.len() as u64)
}

/// Merged batches.
#[derive(Debug, Default)]
pub(super) struct Layer {
    /// `None` removes the key, whatever the engine holds.
    changes: BTreeMap<Bytes, Option<Bytes>>,
    bytes: u64,
}

impl Layer {
    fn add(&mut self, batch: Batch) {
        for (key, value) in batch.changes {
            self.bytes += entry_bytes(&key, value.as_ref());
            let key_bytes = key.len() as u64;
            if let Some(replaced) = self.changes.insert(key, value) {
                self.bytes -= ENTRY_BYTES + key_bytes + replaced.map_or(0, |value| value.len() as u64);
            }
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Shares keys and values.
    pub(super) fn to_batch(&self) -> Batch {
        Batch { changes: self.changes.iter().map(|(key, value)| (key.clone(), value.clone())).collect() }
    }
}

/// A space's buffer.
#[derive(Debug, Default)]
pub(super) struct Layers {
    active: Layer,
    /// Oldest first.
    sealed: VecDeque<Arc<Layer>>,
    /// How many layers were ever sealed: the number of the newest of them.
    sealed_ever: u64,
    /// Of all layers.
    bytes: u64,
    ended: Option<Ended>,
}

/// Why nothing goes on.
#[derive(Debug)]
enum Ended {
    Dropped,
    Failed(String),
}

impl Layers {
    /// # Errors
    /// Why nothing may be added any more.
    pub(super) fn usable(&self) -> Result<(), String> {
        match &self.ended {
            Some(Ended::Dropped) => Err("it was dropped".to_owned()),
            Some(Ended::Failed(_)) | None => self.whole(),
        }
    }

    /// # Errors
    /// Which failure of the engine may have lost something.
    pub(super) fn whole(&self) -> Result<(), String> {
        match &self.ended {
            Some(Ended::Failed(why)) => Err(format!("what was applied before could not be written: {why}")),
            Some(Ended::Dropped) | None => Ok(()),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn any_sealed(&self) -> bool {
        !self.sealed.is_empty()
    }

    /// Merges `batch`, of the weight `bytes`, into the newest layer, or begins one where that would pass `layer_bytes_max`.
    pub(super) fn add(&mut self, batch: Batch, bytes: u64, layer_bytes_max: u64) {
        if self.active.bytes + bytes > layer_bytes_max {
            self.seal();
        }
        let before = self.active.bytes;
        self.active.add(batch);
        self.bytes = self.bytes - before + self.active.bytes;
        if self.active.bytes >= layer_bytes_max {
            self.seal();
        }
    }

    /// Ends the layer that grows, if it holds anything; the number of the newest sealed one.
    pub(super) fn seal(&mut self) -> u64 {
        if !self.active.changes.is_empty() {
            self.sealed.push_back(Arc::new(std::mem::take(&mut self.active)));
            self.sealed_ever += 1;
        }
        self.sealed_ever
    }

    pub(super) fn newest_sealed(&self) -> u64 {
        self.sealed_ever
    }

    /// The layer to be written next, if its number is not above `through`.
    pub(super) fn oldest_sealed(&self, through: u64) -> Option<Arc<Layer>> {
        let oldest = self.sealed_ever + 1 - self.sealed.len() as u64;
        self.sealed.front().filter(|_| oldest <= through).cloned()
    }

    /// The engine has it.
    pub(super) fn forget_oldest(&mut self) -> Option<Arc<Layer>> {
        let oldest = self.sealed.pop_front()?;
        self.bytes -= oldest.bytes;
        Some(oldest)
    }

    /// The engine may have what it was given last, or not: nothing may follow it.
    pub(super) fn fail(&mut self, error: &StoreError) {
        self.ended = Some(Ended::Failed(error.to_string()));
    }

    /// Forgets everything, which is handed back.
    pub(super) fn close(&mut self) -> Self {
        std::mem::replace(self, Self { ended: Some(Ended::Dropped), ..Self::default() })
    }

    /// What the layers know of `key`: `Some(None)` is removed.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        let mut newest_first = std::iter::once(&self.active).chain(self.sealed.iter().rev().map(Arc::as_ref));
        newest_first.find_map(|layer| layer.changes.get(key)).cloned()
    }

    /// What the layers know of `range`, which must not be empty.
    pub(super) fn copy(&self, range: &KeyRange) -> Changes {
        let within = |layer: &'_ Layer| -> Changes {
            let found = layer.changes.range::<Bytes, _>((range.0.as_ref(), range.1.as_ref()));
            found.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        if self.sealed.is_empty() {
            return within(&self.active);
        }
        let oldest_first = self.sealed.iter().map(Arc::as_ref).chain([&self.active]);
        let newest: BTreeMap<_, _> = oldest_first.flat_map(within).collect();
        newest.into_iter().collect()
    }
}

/// How a node's bound is shared among its spaces.
#[derive(Debug)]
pub(super) struct Share {
    bytes_max: u64,
    /// Of all spaces.
    held: AtomicU64,
    spaces: AtomicU64,
}

impl Share {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, held: AtomicU64::new(0), spaces: AtomicU64::new(0) }
    }

    pub(super) fn opened(&self) {
        self.spaces.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self) {
        self.spaces.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether `bytes` more would be too many for the node, however they are shared: spaces that were filled when there were
    /// fewer hold more than their part.
    pub(super) fn is_full(&self, bytes: u64) -> bool {
        self.held() + bytes > self.bytes_max
    }

    /// What a layer may hold.
    pub(super) fn layer_bytes_max(&self) -> u64 {
        let spaces = self.spaces.load(Ordering::Relaxed).max(1);
        (self.bytes_max / spaces / LAYERS_MAX).min(LAYER_BYTES_MAX)
    }

    /// What a space may hold.
    pub(super) fn space_bytes_max(&self) -> u64 {
        self.layer_bytes_max() * LAYERS_MAX
    }

    /// A space that held `before` holds `after`.
    pub(super) fn changed(&self, before: u64, after: u64) {
        if after >= before {
            self.held.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.release(before - after);
        }
    }

    pub(super) fn release(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}
