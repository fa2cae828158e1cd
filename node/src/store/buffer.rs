//! A buffer in front of an engine: applied batches stay in memory and reach the engine merged.
//!
//! Every log entry rewrites a few keys (header, applied position, its session), which the next one replaces: an engine
//! that is given the last of hundreds of versions has hundreds of times less to do. The log is the recovery source, so a
//! crash may take the buffer; what stands in the log behind the engine's applied position is applied again.
//! * Whole batches are merged in their order into a layer, which reaches the engine as one atomic batch, the oldest layer
//!   first: so the engine always holds what some prefix of the batches gives, its applied position included (I4).
//! * A flush writes every layer before it makes the engine durable, so the log is purged behind what the engine has (I2).
//! * Layers are short and few, and all spaces of a node share one bound; whoever applies beyond it writes layers itself (I8).
//! * A layer that could not be written is never followed by another: it stays readable, and from then on batches,
//!   drains and flushes fail.
//!
//! It knows no runtime: who applies asks [`Space::drain_due`] and calls [`Space::drain`] where it may block.

mod layers;
mod merged;

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use self::layers::{Layers, Share, weight};
use self::merged::Merged;
use super::slots::Slots;
use super::{Batch, Engine, KeyRange, Scan, Space, SpaceId, StoreError, is_empty_range};

/// An engine whose spaces are buffered.
#[derive(Debug)]
pub struct BufferedEngine {
    inner: Arc<dyn Engine>,
    share: Arc<Share>,
    slots: Slots<BufferedSpace>,
}

impl BufferedEngine {
    /// Buffers `inner`, with about `bytes_max` of keys and values over all spaces.
    pub fn new(inner: Arc<dyn Engine>, bytes_max: u64) -> Self {
        Self { inner, share: Arc::new(Share::new(bytes_max)), slots: Slots::default() }
    }

    /// What all buffers hold, in bytes.
    pub fn held_bytes(&self) -> u64 {
        self.share.held()
    }
}

impl Engine for BufferedEngine {
    fn open_space(&self, id: SpaceId) -> Result<Arc<dyn Space>, StoreError> {
        let mut slot = self.slots.enter(id);
        if let Some(space) = slot.open() {
            return Ok(space);
        }
        let inner = self.inner.open_space(id)?;
        self.share.opened();
        let space = Arc::new(BufferedSpace {
            id,
            inner,
            share: Arc::clone(&self.share),
            layers: RwLock::default(),
            writing: Mutex::new(()),
        });
        slot.set(Arc::clone(&space));
        Ok(space)
    }

    fn spaces(&self) -> Result<Vec<SpaceId>, StoreError> {
        self.inner.spaces()
    }

    fn drop_space(&self, id: SpaceId) -> Result<(), StoreError> {
        let mut slot = self.slots.enter(id);
        if let Some(space) = slot.take() {
            space.close();
        }
        self.inner.drop_space(id)
    }

    fn disk_bytes(&self) -> Result<u64, StoreError> {
        self.inner.disk_bytes()
    }
}

#[derive(Debug)]
struct BufferedSpace {
    id: SpaceId,
    inner: Arc<dyn Space>,
    share: Arc<Share>,
    layers: RwLock<Layers>,
    /// Held while a layer is written, so that they reach the engine one after the other. Taken before `layers`.
    writing: Mutex<()>,
}

impl BufferedSpace {
    /// Waits for a layer that is being written and forgets the others. Later calls fail.
    fn close(&self) {
        // An engine may not notice that a batch comes after the removal, and the space would hold it when it is made anew.
        let _written = self.writing.lock();
        let forgotten = self.layers.write().close();
        self.share.release(forgotten.bytes());
        self.share.closed();
    }

    fn error(&self, operation: &'static str, detail: String) -> StoreError {
        StoreError::Engine { operation, space: self.id.to_string(), detail }
    }

    /// Writes layers until `bytes` more are within the bounds, of this space and of the node (I8); whether they are.
    fn make_room(&self, bytes: u64) -> Result<bool, StoreError> {
        let full = self.share.is_full(bytes);
        let held = self.layers.read().bytes();
        if !full && held + bytes <= self.share.space_bytes_max() {
            return Ok(true);
        }
        // Where others hold what the node may, this space gives all of its own.
        let through = if full { self.layers.write().seal() } else { self.layers.read().newest_sealed() };
        self.write_through(through)?;
        Ok(!self.share.is_full(bytes))
    }

    /// Gives a batch to the engine at once, after everything else.
    fn pass(&self, batch: Batch) -> Result<(), StoreError> {
        let _one = self.writing.lock();
        self.layers.read().usable().map_err(|detail| self.error("apply", detail))?;
        let applied = self.inner.apply(batch);
        if let Err(error) = &applied {
            self.layers.write().fail(error);
        }
        applied
    }

    /// Writes the layers up to number `through`, oldest first.
    fn write_through(&self, through: u64) -> Result<(), StoreError> {
        while self.write_oldest(through)? {}
        Ok(())
    }

    /// Whether there was one.
    fn write_oldest(&self, through: u64) -> Result<bool, StoreError> {
        let _one = self.writing.lock();
        let oldest = {
            let layers = self.layers.read();
            // A space that was dropped is whole: it has no layers.
            layers.whole().map_err(|detail| self.error("drain", detail))?;
            layers.oldest_sealed(through)
        };
        let Some(oldest) = oldest else { return Ok(false) };
        if let Err(error) = self.inner.apply(oldest.to_batch()) {
            self.layers.write().fail(&error);
            return Err(error);
        }
        // Only now: a reader that no longer finds a key here must find it in the engine.
        let written = self.layers.write().forget_oldest();
        self.share.release(oldest.bytes());
        drop((written, oldest));
        Ok(true)
    }
}

impl Space for BufferedSpace {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        // Layers go to the engine, never back: what is in none of them is in the engine, or was replaced since.
        if let Some(change) = self.layers.read().get(key) {
            return Ok(change);
        }
        self.inner.get(key)
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        if is_empty_range(&range) {
            return Box::new(std::iter::empty());
        }
        // The buffer first. The other way round, what is written to the engine between the two looks would be in neither.
        let buffered = self.layers.read().copy(&range);
        Box::new(Merged::new(buffered, self.inner.scan(range, reverse), reverse))
    }

    fn apply(&self, batch: Batch) -> Result<(), StoreError> {
        let bytes = weight(&batch);
        // Before the batch is in, so that one that is refused has not taken effect.
        if !self.make_room(bytes)? {
            return self.pass(batch);
        }
        let layer_bytes_max = self.share.layer_bytes_max();
        let mut layers = self.layers.write();
        layers.usable().map_err(|detail| self.error("apply", detail))?;
        let before = layers.bytes();
        layers.add(batch, bytes, layer_bytes_max);
        self.share.changed(before, layers.bytes());
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        let through = self.layers.write().seal();
        self.write_through(through)?;
        self.inner.flush()
    }

    fn drain_due(&self) -> bool {
        self.layers.read().any_sealed()
    }

    fn drain(&self) -> Result<(), StoreError> {
        let through = self.layers.read().newest_sealed();
        self.write_through(through)
    }
}
