//! Point-in-time scans over any engine, while writes go on.
//!
//! sled has no snapshots. So as long as a scan is active, apply first notes what the keys that it changes held,
//! in an overlay of that scan, unless the scan's reader has acknowledged those keys. The reader reads the live
//! space first and the overlay afterwards: what it read too new is in the overlay by then. The overlay
//! is bounded (I8); a scan that outgrows it ends with an error, and writes are never held up.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Batch, KeyRange, Scan, Space, StoreError};

/// Keys with their values, in key order.
type Items = Vec<(Bytes, Bytes)>;

/// What an overlay entry costs beyond its bytes, about.
const ENTRY_BYTES: u64 = 96;

/// A space that can be read as it was at one moment. All writes must go through it.
#[derive(Debug)]
pub struct VersionedSpace {
    shared: Arc<Shared>,
}

/// One opening of a space: what is known of its contents is not true of any other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Instance(u64);

impl Instance {
    /// One that this process has not had.
    pub fn next() -> Self {
        static OPENED: AtomicU64 = AtomicU64::new(0);
        Self(OPENED.fetch_add(1, Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct Shared {
    space: Arc<dyn Space>,
    instance: Instance,
    /// As many as `scans` holds; apply looks no further while it is 0.
    active: AtomicUsize,
    scans: Mutex<Vec<Arc<Mutex<Overlay>>>>,
}

#[derive(Debug)]
struct Overlay {
    /// What changed keys held when the scan began.
    before: BTreeMap<Bytes, Option<Bytes>>,
    /// The reader never asks again for keys up to this one.
    acknowledged: Option<Bytes>,
    bytes: u64,
    limit_bytes: u64,
    overrun: bool,
}

impl VersionedSpace {
    /// Wraps `space`.
    pub fn new(space: Arc<dyn Space>) -> Self {
        let shared = Shared {
            space,
            instance: Instance::next(),
            active: AtomicUsize::new(0),
            scans: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Tells this space from every other that this process has opened.
    pub fn instance(&self) -> Instance {
        self.shared.instance
    }

    /// The space itself, for reads and flushes. Writes that bypass this wrapper would show in its scans.
    pub fn space(&self) -> &Arc<dyn Space> {
        &self.shared.space
    }

    /// A scan of the state after every [`Space::apply`] so far and none to come. Call it on the thread that
    /// applies. What writes replace meanwhile is kept in memory up to `overlay_bytes_max`.
    pub fn begin_scan(&self, overlay_bytes_max: u64) -> PointInTime {
        let overlay = Arc::new(Mutex::new(Overlay {
            before: BTreeMap::new(),
            acknowledged: None,
            bytes: 0,
            limit_bytes: overlay_bytes_max,
            overrun: false,
        }));
        let mut scans = self.shared.scans.lock();
        scans.push(Arc::clone(&overlay));
        self.shared.active.store(scans.len(), Ordering::Release);
        drop(scans);
        PointInTime { shared: Arc::clone(&self.shared), overlay, position: None, ended: false }
    }
}

impl Space for VersionedSpace {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.shared.space.get(key)
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        self.shared.space.scan(range, reverse)
    }

    fn apply(&self, batch: Batch) -> Result<(), StoreError> {
        if self.shared.active.load(Ordering::Acquire) > 0 {
            self.shared.note_before(&batch)?;
        }
        self.shared.space.apply(batch)
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.shared.space.flush()
    }

    fn drain_due(&self) -> bool {
        self.shared.space.drain_due()
    }

    fn drain(&self) -> Result<(), StoreError> {
        self.shared.space.drain()
    }
}

impl Shared {
    fn note_before(&self, batch: &Batch) -> Result<(), StoreError> {
        let scans = self.scans.lock();
        for (key, _) in &batch.changes {
            let mut before = None;
            for overlay in scans.iter() {
                if !overlay.lock().wants(key) {
                    continue;
                }
                let value: &Option<Bytes> = match &mut before {
                    Some(value) => value,
                    none => none.insert(self.space.get(key)?),
                };
                overlay.lock().note(key, value);
            }
        }
        Ok(())
    }
}

impl Overlay {
    fn wants(&self, key: &Bytes) -> bool {
        !self.overrun
            && self.acknowledged.as_ref().is_none_or(|until| key > until)
            && !self.before.contains_key(key)
    }

    fn note(&mut self, key: &Bytes, value: &Option<Bytes>) {
        if !self.wants(key) {
            return;
        }
        if let Entry::Vacant(entry) = self.before.entry(key.clone()) {
            self.bytes += entry_bytes(key, value.as_ref());
            entry.insert(value.clone());
        }
        if self.bytes > self.limit_bytes {
            self.overrun = true;
            self.before.clear();
            self.bytes = 0;
        }
    }

    fn acknowledge(&mut self, until: Bytes) {
        if self.acknowledged.as_ref().is_some_and(|before| *before >= until) {
            return;
        }
        while let Some(first) = self.before.first_entry() {
            if *first.key() > until {
                break;
            }
            let (key, value) = first.remove_entry();
            self.bytes -= entry_bytes(&key, value.as_ref());
        }
        self.acknowledged = Some(until);
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.overrun { Err(StoreError::ScanOverrun { limit_bytes: self.limit_bytes }) } else { Ok(()) }
    }
}

fn entry_bytes(key: &Bytes, value: Option<&Bytes>) -> u64 {
    ENTRY_BYTES + key.len() as u64 + value.map_or(0, |value| value.len() as u64)
}

/// A space as it was when the scan began, in key order. Ends when it is dropped.
#[derive(Debug)]
pub struct PointInTime {
    shared: Arc<Shared>,
    overlay: Arc<Mutex<Overlay>>,
    /// The last key that was looked at.
    position: Option<Bytes>,
    ended: bool,
}

impl PointInTime {
    /// The next keys and values, at least one and about `max_bytes` of them; `None` at the end. Blocks.
    ///
    /// # Errors
    /// [`StoreError::ScanOverrun`] when the overlay was too small, otherwise as the space fails.
    pub fn next_chunk(&mut self, max_bytes: usize) -> Result<Option<Vec<(Bytes, Bytes)>>, StoreError> {
        while !self.ended {
            let low = self.position.clone().map_or(Bound::Unbounded, Bound::Excluded);
            let (live, high) = self.read_live(low.clone(), max_bytes)?;
            let chunk = self.as_it_was(live, (low, high.clone()), max_bytes)?;
            match (chunk.cut, high) {
                (true, _) => self.position = chunk.items.last().map(|(key, _)| key.clone()),
                (false, Bound::Included(last) | Bound::Excluded(last)) => self.position = Some(last),
                (false, Bound::Unbounded) => self.ended = true,
            }
            if !chunk.items.is_empty() {
                return Ok(Some(chunk.items));
            }
        }
        self.overlay.lock().check()?;
        Ok(None)
    }

    /// What `key` held when the scan began.
    ///
    /// # Errors
    /// [`StoreError::Engine`] when `key` was acknowledged, [`StoreError::ScanOverrun`], or as the space fails.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let live = self.shared.space.get(key)?;
        let overlay = self.overlay.lock();
        overlay.check()?;
        if overlay.acknowledged.as_ref().is_some_and(|until| key <= until.as_ref()) {
            return Err(acknowledged("get"));
        }
        Ok(overlay.before.get(key).cloned().unwrap_or(live))
    }

    /// Goes on after `after_key` (from the start if `None`), for a reader that lost what it was given.
    ///
    /// # Errors
    /// [`StoreError::Engine`] when that lies before what was acknowledged.
    pub fn resume_from(&mut self, after_key: Option<Bytes>) -> Result<(), StoreError> {
        let overlay = self.overlay.lock();
        overlay.check()?;
        // `None` sorts before every key.
        if after_key < overlay.acknowledged {
            return Err(acknowledged("resume"));
        }
        drop(overlay);
        self.position = after_key;
        self.ended = false;
        Ok(())
    }

    /// Promises not to go back before `up_to_key`, so that less must be remembered. Keys that were not read yet
    /// are not given up.
    pub fn acknowledge(&mut self, up_to_key: Bytes) {
        let until = if self.ended { Some(up_to_key) } else { self.position.clone().min(Some(up_to_key)) };
        if let Some(until) = until {
            self.overlay.lock().acknowledge(until);
        }
    }

    /// Live items after `low`, and up to where they are complete.
    fn read_live(&self, low: Bound<Bytes>, max_bytes: usize) -> Result<(Items, Bound<Bytes>), StoreError> {
        let (mut items, mut bytes) = (Vec::new(), 0);
        for item in self.shared.space.scan((low, Bound::Unbounded), false) {
            let (key, value) = item?;
            bytes += key.len() + value.len();
            items.push((key, value));
            if bytes >= max_bytes {
                break;
            }
        }
        let high = match items.last() {
            Some((last, _)) if bytes >= max_bytes => Bound::Included(last.clone()),
            _ => Bound::Unbounded,
        };
        Ok((items, high))
    }

    /// `live`, with what the overlay knows of `range` in its place.
    fn as_it_was(&self, live: Items, range: KeyRange, max_bytes: usize) -> Result<Chunk, StoreError> {
        let overlay = self.overlay.lock();
        overlay.check()?;
        let mut chunk = Chunk { items: Vec::with_capacity(live.len()), bytes: 0, cut: false };
        let mut before = overlay.before.range(range).peekable();
        for (key, value) in live {
            while let Some((earlier, old)) = before.next_if(|(noted, _)| **noted < key) {
                chunk.push(earlier.clone(), old.clone(), max_bytes);
            }
            match before.next_if(|(noted, _)| **noted == key) {
                Some((_, old)) => chunk.push(key, old.clone(), max_bytes),
                None => chunk.push(key, Some(value), max_bytes),
            }
        }
        for (key, old) in before {
            chunk.push(key.clone(), old.clone(), max_bytes);
        }
        Ok(chunk)
    }
}

struct Chunk {
    items: Items,
    bytes: usize,
    /// Items were left out because it was full.
    cut: bool,
}

impl Chunk {
    fn push(&mut self, key: Bytes, value: Option<Bytes>, max_bytes: usize) {
        let Some(value) = value else { return };
        if self.bytes >= max_bytes && !self.items.is_empty() {
            self.cut = true;
            return;
        }
        self.bytes += key.len() + value.len();
        self.items.push((key, value));
    }
}

fn acknowledged(operation: &'static str) -> StoreError {
    StoreError::Engine {
        operation,
        space: "point-in-time scan".to_owned(),
        detail: "the key was acknowledged, what it held is forgotten".to_owned(),
    }
}

impl Drop for PointInTime {
    fn drop(&mut self) {
        let mut scans = self.shared.scans.lock();
        scans.retain(|other| !Arc::ptr_eq(other, &self.overlay));
        self.shared.active.store(scans.len(), Ordering::Release);
    }
}
