//! The second engine: one fjall database, its keys prefixed by replica and generation.
//!
//! One keyspace for all spaces, because idle ones pin journals. A registry keyspace says which spaces exist;
//! a removal is noted there first, so that one cut short by a crash is finished when the engine opens.
//! fjall itself cuts a damaged journal and may come up older; a space's applied position shows it (I2). Where it refuses one
//! that a loss of power has torn, `journal` cuts it.

mod journal;

use std::fmt;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use borough_proto::ReplicaId;
use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::damage::contain;
use super::files::{allocated_bytes, create_dir, failed, sync_dir};
use super::slots::Slots;
use super::value::{self, WHOLE};
use super::{Batch, Engine, KeyRange, Scan, Space, SpaceId, StoreError, is_empty_range, unsynced};

/// Journals above this force memtables to be written out.
const JOURNAL_BYTES_MAX: u64 = 64 << 20;
const MEMTABLE_BYTES: u64 = 8 << 20;
/// Keys removed in one batch when a space is dropped.
const REMOVALS_PER_BATCH: usize = 1_000;
const PREFIX_BYTES: usize = 16;

const LIVE: u8 = 1;
const DROPPING: u8 = 2;

/// One fjall database.
pub struct FjallEngine {
    dir: PathBuf,
    store: Arc<Store>,
    slots: Slots<FjallSpace>,
}

struct Store {
    dir: PathBuf,
    database: Database,
    data: Keyspace,
    registry: Keyspace,
}

impl fmt::Debug for FjallEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FjallEngine").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl FjallEngine {
    /// Opens the database in `dir`, with a block cache of `cache_bytes` for all spaces together.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when its files cannot be trusted: then all spaces are lost.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        create_dir(dir)?;
        let open = || -> fjall::Result<Store> {
            let database = Database::builder(dir)
                .cache_size(cache_bytes)
                .max_journaling_size(JOURNAL_BYTES_MAX)
                .worker_threads(2)
                .open()?;
            let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
            let data = database.keyspace("data", options)?;
            let registry = database.keyspace("spaces", KeyspaceCreateOptions::default)?;
            Ok(Store { dir: dir.to_owned(), database, data, registry })
        };
        let store = match run("open", "any", dir, || Ok(open()?)) {
            Err(StoreError::Damaged { .. })
                if journal::cut(dir).map_err(failed("cut the journal in", dir))? =>
            {
                run("open", "any", dir, || Ok(open()?))?
            }
            opened => opened?,
        };
        sync_dir(dir)?;
        let engine = Self { dir: dir.to_owned(), store: Arc::new(store), slots: Slots::default() };
        for (id, state) in engine.registered()? {
            if state == DROPPING {
                engine.remove(id)?;
            }
        }
        Ok(engine)
    }

    fn run<T>(
        &self,
        operation: &'static str,
        work: impl FnOnce() -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        run(operation, "any", &self.dir, work)
    }

    fn registered(&self) -> Result<Vec<(SpaceId, u8)>, StoreError> {
        self.run("list spaces", || {
            let mut registered = Vec::new();
            for entry in self.store.registry.iter() {
                let (key, stored) = entry.into_inner()?;
                let id = parse_prefix(&key).ok_or_else(|| "registry key has a wrong size".to_owned())?;
                let &[state] = value::decode_whole(&key, &stored)? else {
                    return Err(Fault::Damaged("registry entry has a wrong size".to_owned()));
                };
                registered.push((id, state));
            }
            Ok(registered)
        })
    }

    /// Durably.
    fn register(&self, id: SpaceId, state: u8) -> Result<(), Fault> {
        let key = prefix(id);
        self.store.registry.insert(key, value::encode(WHOLE, &key, &[state]))?;
        Ok(self.store.database.persist(PersistMode::SyncAll)?)
    }

    fn remove(&self, id: SpaceId) -> Result<(), StoreError> {
        self.run("drop", || {
            self.register(id, DROPPING)?;
            let mut batch = self.store.database.batch();
            for entry in self.store.data.prefix(prefix(id)) {
                batch.remove(&self.store.data, entry.key()?);
                if batch.len() >= REMOVALS_PER_BATCH {
                    std::mem::replace(&mut batch, self.store.database.batch()).commit()?;
                }
            }
            batch.commit()?;
            self.store.registry.remove(prefix(id))?;
            self.store.database.persist(PersistMode::SyncAll)?;
            // Tombstones alone give nothing back: write them out, so that compaction meets them.
            self.store.data.rotate_memtable_and_wait()?;
            Ok(self.store.data.major_compact()?)
        })
    }
}

impl Engine for FjallEngine {
    fn open_space(&self, id: SpaceId) -> Result<Arc<dyn Space>, StoreError> {
        let mut slot = self.slots.enter(id);
        if let Some(space) = slot.open() {
            return Ok(space);
        }
        self.run("open space", || {
            let known = self.store.registry.contains_key(prefix(id))?;
            if known { Ok(()) } else { self.register(id, LIVE) }
        })?;
        let space = Arc::new(FjallSpace {
            id,
            prefix: prefix(id),
            store: Arc::clone(&self.store),
            dropped: AtomicBool::new(false),
        });
        slot.set(Arc::clone(&space));
        Ok(space)
    }

    fn spaces(&self) -> Result<Vec<SpaceId>, StoreError> {
        Ok(self.registered()?.into_iter().filter(|(_, state)| *state == LIVE).map(|(id, _)| id).collect())
    }

    fn drop_space(&self, id: SpaceId) -> Result<(), StoreError> {
        let mut slot = self.slots.enter(id);
        if let Some(space) = slot.take() {
            space.dropped.store(true, Ordering::Release);
        }
        let known = self.run("drop", || Ok(self.store.registry.contains_key(prefix(id))?))?;
        if known { self.remove(id) } else { Ok(()) }
    }

    fn disk_bytes(&self) -> Result<u64, StoreError> {
        allocated_bytes(&self.dir)
    }
}

struct FjallSpace {
    id: SpaceId,
    prefix: [u8; PREFIX_BYTES],
    store: Arc<Store>,
    dropped: AtomicBool,
}

impl fmt::Debug for FjallSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FjallSpace").field("id", &self.id).finish_non_exhaustive()
    }
}

impl FjallSpace {
    fn run<T>(
        &self,
        operation: &'static str,
        work: impl FnOnce() -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        let space = self.id.to_string();
        if self.dropped.load(Ordering::Acquire) {
            return Err(StoreError::Engine { operation, space, detail: "it was dropped".to_owned() });
        }
        run(operation, &space, &self.store.dir, work)
    }

    fn key(&self, key: &[u8]) -> Vec<u8> {
        let mut stored = Vec::with_capacity(PREFIX_BYTES + key.len());
        stored.extend_from_slice(&self.prefix);
        stored.extend_from_slice(key);
        stored
    }

    fn bounds(&self, range: &KeyRange) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
        let low = match &range.0 {
            Bound::Included(key) => Bound::Included(self.key(key)),
            Bound::Excluded(key) => Bound::Excluded(self.key(key)),
            Bound::Unbounded => Bound::Included(self.prefix.to_vec()),
        };
        let high = match &range.1 {
            Bound::Included(key) => Bound::Included(self.key(key)),
            Bound::Excluded(key) => Bound::Excluded(self.key(key)),
            Bound::Unbounded => match u128::from_be_bytes(self.prefix).checked_add(1) {
                Some(next) => Bound::Excluded(next.to_be_bytes().to_vec()),
                None => Bound::Unbounded,
            },
        };
        (low, high)
    }
}

impl Space for FjallSpace {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.run("get", || match self.store.data.get(self.key(key))? {
            Some(stored) => Ok(Some(Bytes::copy_from_slice(value::decode_whole(key, &stored)?))),
            None => Ok(None),
        })
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        if is_empty_range(&range) {
            return Box::new(std::iter::empty());
        }
        match self.run("scan", || Ok(self.store.data.range(self.bounds(&range)))) {
            Ok(found) => Box::new(FjallScan { space: self, found, reverse, ended: false }),
            Err(e) => Box::new(std::iter::once(Err(e))),
        }
    }

    fn apply(&self, batch: Batch) -> Result<(), StoreError> {
        let applied = self.run("apply", || {
            let mut changes = self.store.database.batch();
            for (key, value) in &batch.changes {
                match value {
                    Some(value) => {
                        changes.insert(&self.store.data, self.key(key), value::encode(WHOLE, key, value));
                    }
                    None => changes.remove(&self.store.data, self.key(key)),
                }
            }
            Ok(changes.commit()?)
        });
        // What fails in its background is told here.
        unsynced::noted_in(&self.store.dir, applied)
    }

    fn flush(&self) -> Result<(), StoreError> {
        let flushed = self.run("flush", || Ok(self.store.database.persist(PersistMode::SyncAll)?));
        unsynced::noted_in(&self.store.dir, flushed)
    }
}

struct FjallScan<'a> {
    space: &'a FjallSpace,
    found: fjall::Iter,
    reverse: bool,
    ended: bool,
}

impl FjallScan<'_> {
    fn step(&mut self) -> Result<Option<(Bytes, Bytes)>, Fault> {
        let next = if self.reverse { self.found.next_back() } else { self.found.next() };
        let Some(next) = next else { return Ok(None) };
        let (stored_key, stored) = next.into_inner()?;
        let key = stored_key.get(PREFIX_BYTES..).ok_or_else(|| "key has no prefix".to_owned())?;
        let value = value::decode_whole(key, &stored)?;
        Ok(Some((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))))
    }
}

impl Iterator for FjallScan<'_> {
    type Item = Result<(Bytes, Bytes), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let space = self.space;
        let item = space.run("scan", || self.step()).transpose();
        self.ended = !matches!(item, Some(Ok(_)));
        item
    }
}

fn prefix(id: SpaceId) -> [u8; PREFIX_BYTES] {
    (u128::from(id.replica.0) << 64 | u128::from(id.generation)).to_be_bytes()
}

fn parse_prefix(key: &[u8]) -> Option<SpaceId> {
    let (replica, generation) = key.split_first_chunk::<8>()?;
    let generation = u64::from_be_bytes(<[u8; 8]>::try_from(generation).ok()?);
    Some(SpaceId { replica: ReplicaId(u64::from_be_bytes(*replica)), generation })
}

enum Fault {
    Fjall(fjall::Error),
    Damaged(String),
}

impl From<fjall::Error> for Fault {
    fn from(error: fjall::Error) -> Self {
        Self::Fjall(error)
    }
}

impl From<String> for Fault {
    fn from(detail: String) -> Self {
        Self::Damaged(detail)
    }
}

fn run<T>(
    operation: &'static str,
    space: &str,
    dir: &Path,
    work: impl FnOnce() -> Result<T, Fault>,
) -> Result<T, StoreError> {
    let damaged = |detail| StoreError::Damaged { space: space.to_owned(), detail };
    match contain(work) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(Fault::Fjall(fjall::Error::Io(source)))) => {
            Err(StoreError::Io { operation, path: dir.to_owned(), source })
        }
        Ok(Err(Fault::Fjall(fjall::Error::Storage(fjall::LsmError::Io(source))))) => {
            Err(StoreError::Io { operation, path: dir.to_owned(), source })
        }
        Ok(Err(Fault::Fjall(
            error @ (fjall::Error::Poisoned | fjall::Error::Locked | fjall::Error::KeyspaceDeleted),
        ))) => Err(StoreError::Engine { operation, space: space.to_owned(), detail: error.to_string() }),
        Ok(Err(Fault::Fjall(error))) => Err(damaged(format!("{operation}: {error}"))),
        Ok(Err(Fault::Damaged(detail))) => Err(damaged(detail)),
        Err(panicked) => Err(damaged(format!("{operation}: {panicked}"))),
    }
}
