//! The default engine: one sled database for each space, in a directory that goes away with it.
//!
//! sled 0.34 is contained here; nothing else may name it.
//! * Its flush does not fsync, so [`Space::flush`] syncs the files itself (I2), and leaves a checkpoint
//!   number beside them: sled takes damage in the middle of its log for the log's end and would come up older.
//! * It panics on damage: every call is run where a panic becomes [`StoreError::Damaged`] (I10).
//! * Pages above 128 KiB become files that it never syncs, and a page holds up to 17 values: larger values are
//!   cut into chunks, under keys that scans do not show.
//! * Its threads can wait for one another for ever when writes outrun the disk: `parts` makes writers wait in time,
//!   and sled's own writer in the background, which nothing can make wait, is off. What that does beside writing, to
//!   clean segments, writers do as well.
//! * Inside a database space is reused, never given back: measured, the file stays at five to eight times the
//!   live bytes however often they are overwritten or replaced, and at its peak after removals. So no rewriting.

mod parts;

use std::fmt;
use std::fs::OpenOptions;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use sled::{IVec, Mode, Tree};

use self::parts::{BATCH_WEIGHT_MAX, Op, Unsettled};
use super::checkpoint::Checkpoint;
use super::damage::contain;
use super::files::{
    allocated_bytes, create_dir, empty_trash, failed, list_spaces, remove_dir, sync_dir, sync_file_if_any,
};
use super::slots::Slots;
use super::value::{self, CHUNKED, Manifest, WHOLE};
use super::{Batch, Engine, KeyRange, Scan, Space, SpaceId, StoreError, is_empty_range, unsynced};

/// Largest value that is stored in one piece, and the size of a chunk. 17 of them stay below 128 KiB.
const CHUNK_BYTES: usize = 6 << 10;
/// The lock of a closed database is released by sled's background threads.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const HALFWAY: &str = "a long batch failed in its middle; it is ended when the space is opened again";

/// First byte of a key in the tree: what it is.
const VALUE: u8 = 0;
const CHUNK: u8 = 1;
const CHECKPOINT: u8 = 2;
const STAGED: u8 = 3;
const STAGED_WHOLE: u8 = 4;

/// sled databases side by side in a directory.
#[derive(Debug)]
pub struct SledEngine {
    dir: PathBuf,
    cache_bytes_per_space: u64,
    slots: Slots<SledSpace>,
}

impl SledEngine {
    /// Opens the engine in `dir`; spaces are opened one by one. `cache_bytes_per_space` bounds each one's page cache.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the directory cannot be used.
    pub fn open(dir: &Path, cache_bytes_per_space: u64) -> Result<Self, StoreError> {
        create_dir(dir)?;
        empty_trash(dir)?;
        Ok(Self { dir: dir.to_owned(), cache_bytes_per_space, slots: Slots::default() })
    }
}

impl Engine for SledEngine {
    fn open_space(&self, id: SpaceId) -> Result<Arc<dyn Space>, StoreError> {
        let mut slot = self.slots.enter(id);
        if let Some(space) = slot.open() {
            return Ok(space);
        }
        let opened = SledSpace::open(id, self.dir.join(id.to_string()), self.cache_bytes_per_space);
        let space = Arc::new(unsynced::noted(&self.dir, opened)?);
        slot.set(Arc::clone(&space));
        Ok(space)
    }

    fn spaces(&self) -> Result<Vec<SpaceId>, StoreError> {
        list_spaces(&self.dir)
    }

    fn drop_space(&self, id: SpaceId) -> Result<(), StoreError> {
        let mut slot = self.slots.enter(id);
        if let Some(space) = slot.take() {
            space.close();
        }
        remove_dir(&self.dir, &id.to_string())
    }

    fn disk_bytes(&self) -> Result<u64, StoreError> {
        allocated_bytes(&self.dir)
    }
}

struct SledSpace {
    id: SpaceId,
    dir: PathBuf,
    /// `None` once the space was dropped.
    db: RwLock<Option<sled::Db>>,
    /// Set by a panic inside sled, whose state is then unknown.
    damaged: AtomicBool,
    /// Whether any value may lie in chunks; while none does, writes need no look at what they replace.
    chunked: AtomicBool,
    writes: AtomicU64,
    applying: Mutex<Unsettled>,
    /// Held for writing while a long batch takes effect in parts. True when that failed in its middle.
    in_parts: RwLock<bool>,
    checkpoint: Mutex<Checkpoint>,
}

impl fmt::Debug for SledSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SledSpace").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Why work on a tree failed.
#[derive(Debug)]
enum Fault {
    Sled(sled::Error),
    Damaged(String),
    /// A long batch failed in its middle.
    Halfway,
}

impl From<sled::Error> for Fault {
    fn from(error: sled::Error) -> Self {
        Self::Sled(error)
    }
}

impl From<String> for Fault {
    fn from(detail: String) -> Self {
        Self::Damaged(detail)
    }
}

impl SledSpace {
    fn open(id: SpaceId, dir: PathBuf, cache_bytes: u64) -> Result<Self, StoreError> {
        create_dir(&dir)?;
        let data = dir.join("db");
        // At opening, sled syncs an index of what it finds in the log; what it finds must be durable before.
        sync_file_if_any(&data)?;
        let (db, chunked, number) = open_db(id, &dir, cache_bytes)?;
        let data = OpenOptions::new().read(true).open(&data).map_err(failed("open", &data))?;
        let checkpoint = Checkpoint::open(id, &dir, data, number)?;
        // Now the names that sled created (I3).
        sync_file_if_any(&dir.join("conf"))?;
        sync_dir(&dir.join("blobs"))?;
        sync_dir(&dir)?;
        Ok(Self {
            id,
            dir,
            db: RwLock::new(Some(db)),
            damaged: AtomicBool::new(false),
            chunked: AtomicBool::new(chunked),
            writes: AtomicU64::new(0),
            applying: Mutex::default(),
            in_parts: RwLock::new(false),
            checkpoint: Mutex::new(checkpoint),
        })
    }

    /// Waits for calls under way, then closes the database. Later calls fail.
    fn close(&self) {
        let db = self.db.write().take();
        if self.damaged.load(Ordering::Relaxed) {
            // Closing would wait for threads that a panic may have ended; its memory is the smaller loss.
            std::mem::forget(db);
        }
    }

    fn on_tree<T>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Tree) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        let db = self.db.read();
        match db.as_ref() {
            Some(db) => self.guard(operation, || work(db)),
            None => Err(self.engine_error(operation, "it was dropped".to_owned())),
        }
    }

    fn guard<T>(
        &self,
        operation: &'static str,
        work: impl FnOnce() -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        if self.damaged.load(Ordering::Relaxed) {
            return Err(self.damaged_error("it panicked before".to_owned()));
        }
        match contain(work) {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(Fault::Damaged(detail))) => Err(self.damaged_error(detail)),
            Ok(Err(Fault::Sled(error))) => Err(convert(operation, self.id, &self.dir, error)),
            Ok(Err(Fault::Halfway)) => Err(self.engine_error(operation, HALFWAY.to_owned())),
            Err(panicked) => {
                self.damaged.store(true, Ordering::Relaxed);
                Err(self.damaged_error(format!("{operation}: {panicked}")))
            }
        }
    }

    fn engine_error(&self, operation: &'static str, detail: String) -> StoreError {
        StoreError::Engine { operation, space: self.id.to_string(), detail }
    }

    fn damaged_error(&self, detail: String) -> StoreError {
        StoreError::Damaged { space: self.id.to_string(), detail }
    }

    /// Keeps long batches from taking effect, which go in parts.
    fn between_batches(&self) -> Result<RwLockReadGuard<'_, bool>, Fault> {
        let halfway = self.in_parts.read();
        if *halfway { Err(Fault::Halfway) } else { Ok(halfway) }
    }

    /// What `batch` does in the tree.
    fn operations(&self, tree: &Tree, batch: &Batch, chunked: bool) -> Result<Vec<Op>, Fault> {
        let mut ops = Vec::with_capacity(batch.changes.len());
        if chunked {
            // Only the last change of a key counts, or chunks of an earlier one would stay behind.
            let mut seen = std::collections::HashSet::with_capacity(batch.changes.len());
            for (key, value) in batch.changes.iter().rev() {
                if seen.insert(key) {
                    self.change(tree, &mut ops, key, value.as_ref())?;
                }
            }
        } else {
            for (key, value) in &batch.changes {
                let value = value.as_ref().map(|value| value::encode(WHOLE, key, value));
                ops.push((tagged(VALUE, key), value));
            }
        }
        Ok(ops)
    }

    /// Puts `value` under `key`, in chunks when it is large, and removes chunks of the value that it replaces.
    fn change(&self, tree: &Tree, ops: &mut Vec<Op>, key: &[u8], value: Option<&Bytes>) -> Result<(), Fault> {
        let stored_key = tagged(VALUE, key);
        let stale = match tree.get(&stored_key)? {
            Some(old) => match value::decode(key, &old)? {
                (CHUNKED, manifest) => Manifest::from_payload(manifest)?.chunks(CHUNK_BYTES),
                _ => 0,
            },
            None => 0,
        };
        let mut kept = 0;
        match value {
            None => ops.push((stored_key, None)),
            Some(value) if value.len() <= CHUNK_BYTES => {
                ops.push((stored_key, Some(value::encode(WHOLE, key, value))));
            }
            Some(value) => {
                let manifest = Manifest {
                    value_bytes: value.len() as u64,
                    value_crc: crc32fast::hash(value),
                    write: self.writes.fetch_add(1, Ordering::Relaxed),
                };
                ops.push((stored_key, Some(value::encode(CHUNKED, key, &manifest.to_payload()))));
                for chunk in value.chunks(CHUNK_BYTES) {
                    ops.push((chunk_key(key, kept), Some(chunk.to_vec())));
                    kept += 1;
                }
            }
        }
        ops.extend((kept..stale).map(|chunk| (chunk_key(key, chunk), None)));
        Ok(())
    }
}

impl Space for SledSpace {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.on_tree("get", |tree| {
            let _whole = self.between_batches()?;
            match tree.get(tagged(VALUE, key))? {
                Some(stored) => load(tree, key, stored),
                None => Ok(None),
            }
        })
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        if is_empty_range(&range) {
            return Box::new(std::iter::empty());
        }
        let bounds = (
            match range.0 {
                Bound::Included(key) => Bound::Included(tagged(VALUE, &key)),
                Bound::Excluded(key) => Bound::Excluded(tagged(VALUE, &key)),
                Bound::Unbounded => Bound::Included(vec![VALUE]),
            },
            match range.1 {
                Bound::Included(key) => Bound::Included(tagged(VALUE, &key)),
                Bound::Excluded(key) => Bound::Excluded(tagged(VALUE, &key)),
                Bound::Unbounded => Bound::Excluded(vec![VALUE + 1]),
            },
        );
        match self.on_tree("scan", |tree| Ok((tree.clone(), tree.range(bounds)))) {
            Ok((tree, found)) => Box::new(SledScan { space: self, tree, found, reverse, ended: false }),
            Err(e) => Box::new(std::iter::once(Err(e))),
        }
    }

    fn apply(&self, batch: Batch) -> Result<(), StoreError> {
        let any_large = batch
            .changes
            .iter()
            .any(|(_, value)| value.as_ref().is_some_and(|value| value.len() > CHUNK_BYTES));
        let mut unsettled = self.applying.lock();
        if any_large {
            self.chunked.store(true, Ordering::Relaxed);
        }
        let chunked = self.chunked.load(Ordering::Relaxed);
        self.on_tree("apply", |tree| {
            drop(self.between_batches()?);
            let ops = self.operations(tree, &batch, chunked)?;
            if parts::weight(&ops) <= BATCH_WEIGHT_MAX {
                return Ok(unsettled.write(tree, ops)?);
            }
            parts::stage(tree, &mut unsettled, &ops)?;
            let mut halfway = self.in_parts.write();
            *halfway = true;
            unsettled.write_in_parts(tree, ops)?;
            *halfway = false;
            drop(halfway);
            parts::forget(tree, &mut unsettled)
        })
    }

    fn flush(&self) -> Result<(), StoreError> {
        let mut checkpoint = self.checkpoint.lock();
        let number = checkpoint.next_number();
        let flushed = self.on_tree("flush", |tree| {
            let payload = number.to_le_bytes();
            tree.insert([CHECKPOINT], value::encode(WHOLE, &[CHECKPOINT], &payload))?;
            tree.flush()?;
            Ok(())
        });
        unsynced::noted_in(&self.dir, flushed.and_then(|()| checkpoint.reach(number)))
    }
}

/// A live scan. Holds the tree, so the database closes only after it.
struct SledScan<'a> {
    space: &'a SledSpace,
    tree: Tree,
    found: sled::Iter,
    reverse: bool,
    ended: bool,
}

impl SledScan<'_> {
    fn step(&mut self) -> Result<Option<(Bytes, Bytes)>, Fault> {
        loop {
            let _whole = self.space.between_batches()?;
            let next = if self.reverse { self.found.next_back() } else { self.found.next() };
            let Some(next) = next else { return Ok(None) };
            let (stored_key, stored) = next?;
            let Some((&VALUE, key)) = stored_key.split_first() else {
                return Err(Fault::Damaged("scan met a key outside its range".to_owned()));
            };
            // A large value may have been removed since its manifest was read: the scan is live, so it is gone.
            if let Some(value) = load(&self.tree, key, stored)? {
                return Ok(Some((Bytes::copy_from_slice(key), value)));
            }
        }
    }
}

impl Iterator for SledScan<'_> {
    type Item = Result<(Bytes, Bytes), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let space = self.space;
        let item = space.guard("scan", || self.step()).transpose();
        self.ended = !matches!(item, Some(Ok(_)));
        item
    }
}

/// The value that `stored` stands for; `None` when it was removed meanwhile.
fn load(tree: &Tree, key: &[u8], mut stored: IVec) -> Result<Option<Bytes>, Fault> {
    loop {
        let manifest = match value::decode(key, &stored)? {
            (WHOLE, payload) => return Ok(Some(Bytes::copy_from_slice(payload))),
            (CHUNKED, payload) => Manifest::from_payload(payload)?,
            (other, _) => return Err(Fault::Damaged(format!("value format {other} is unknown"))),
        };
        if let Some(value) = gather(tree, key, &manifest)? {
            return Ok(Some(value));
        }
        // Chunks and manifest change in one batch, so an unchanged manifest says that the chunks are wrong.
        match tree.get(tagged(VALUE, key))? {
            Some(now) if now == stored => {
                return Err(Fault::Damaged("chunks do not match their manifest".to_owned()));
            }
            Some(now) => stored = now,
            None => return Ok(None),
        }
    }
}

/// All chunks, if they are those that the manifest was written with.
fn gather(tree: &Tree, key: &[u8], manifest: &Manifest) -> Result<Option<Bytes>, Fault> {
    let chunks = manifest.chunks(CHUNK_BYTES);
    let mut value = Vec::new();
    for chunk in 0..chunks {
        let Some(chunk) = tree.get(chunk_key(key, chunk))? else { return Ok(None) };
        value.extend_from_slice(&chunk);
    }
    let whole = value.len() as u64 == manifest.value_bytes && crc32fast::hash(&value) == manifest.value_crc;
    Ok(whole.then(|| Bytes::from(value)))
}

fn tagged(tag: u8, key: &[u8]) -> Vec<u8> {
    let mut tagged = Vec::with_capacity(1 + key.len());
    tagged.push(tag);
    tagged.extend_from_slice(key);
    tagged
}

/// Unambiguous because the number's width is fixed.
fn chunk_key(key: &[u8], chunk: u32) -> Vec<u8> {
    let mut chunk_key = Vec::with_capacity(5 + key.len());
    chunk_key.push(CHUNK);
    chunk_key.extend_from_slice(key);
    chunk_key.extend_from_slice(&chunk.to_be_bytes());
    chunk_key
}

/// The database, whether it holds chunks, and the number of its last checkpoint.
fn open_db(id: SpaceId, dir: &Path, cache_bytes: u64) -> Result<(sled::Db, bool, u64), StoreError> {
    let damaged = |detail| StoreError::Damaged { space: id.to_string(), detail };
    let give_up = Instant::now() + LOCK_PATIENCE;
    loop {
        let opened = contain(|| -> Result<_, Fault> {
            let db = sled::Config::new()
                .path(dir)
                .cache_capacity(cache_bytes)
                .mode(Mode::HighThroughput)
                .flush_every_ms(None)
                .open()?;
            parts::finish(&db)?;
            // Reads of both ends walk the tree's edges, where damage shows early.
            db.first()?;
            db.last()?;
            let chunked = db.scan_prefix([CHUNK]).next().transpose()?.is_some();
            let number = match db.get([CHECKPOINT])? {
                Some(stored) => <[u8; 8]>::try_from(value::decode_whole(&[CHECKPOINT], &stored)?)
                    .map(u64::from_le_bytes)
                    .map_err(|_| "checkpoint number has a wrong size".to_owned())?,
                None => 0,
            };
            Ok((db, chunked, number))
        });
        match opened {
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(Fault::Sled(sled::Error::Io(e)))) if is_locked(&e) && Instant::now() < give_up => {
                thread::sleep(Duration::from_millis(10));
            }
            // Our settings never change, so a difference is damage of the file that holds them.
            Ok(Err(Fault::Sled(sled::Error::Unsupported(detail)))) => return Err(damaged(detail)),
            Ok(Err(Fault::Sled(error))) => return Err(convert("open", id, dir, error)),
            Ok(Err(Fault::Damaged(detail))) | Err(detail) => return Err(damaged(detail)),
            Ok(Err(Fault::Halfway)) => return Err(damaged(HALFWAY.to_owned())),
        }
    }
}

fn is_locked(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::Other && error.to_string().contains("could not acquire lock")
}

fn convert(operation: &'static str, id: SpaceId, dir: &Path, error: sled::Error) -> StoreError {
    use std::io::ErrorKind;
    let space = id.to_string();
    match error {
        // Files that end early or are missing are damage; a full or failing disk is not.
        sled::Error::Io(e)
            if matches!(
                e.kind(),
                ErrorKind::UnexpectedEof | ErrorKind::NotFound | ErrorKind::InvalidData
            ) =>
        {
            StoreError::Damaged { space, detail: format!("{operation}: {e}") }
        }
        sled::Error::Io(source) => StoreError::Io { operation, path: dir.to_owned(), source },
        error @ (sled::Error::Corruption { .. } | sled::Error::ReportableBug(_)) => {
            StoreError::Damaged { space, detail: format!("{operation}: {error}") }
        }
        error @ (sled::Error::Unsupported(_) | sled::Error::CollectionNotFound(_)) => {
            StoreError::Engine { operation, space, detail: error.to_string() }
        }
    }
}
