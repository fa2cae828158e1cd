//! An engine in memory, for tests: ordered maps, with a crash that forgets what was not flushed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Batch, Engine, KeyRange, Scan, Space, SpaceId, StoreError, is_empty_range};

type Map = BTreeMap<Bytes, Bytes>;

/// Keeps everything in memory. Unflushed batches are kept apart, so that [`Self::crash`] can lose them.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    spaces: Mutex<BTreeMap<SpaceId, Arc<MemorySpace>>>,
}

impl MemoryEngine {
    /// An engine without spaces.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a power loss would do: every space goes back to its last flush plus, of the batches applied later,
    /// the first `kept`. Handles from before are dead; open again.
    pub fn crash(&self, kept: usize) {
        for space in self.spaces.lock().values_mut() {
            let mut state = space.state.lock();
            let mut durable = std::mem::take(&mut state.durable);
            for batch in state.unflushed.drain(..).take(kept) {
                change(&mut durable, batch);
            }
            state.live.clear();
            state.gone = Some("crashed");
            let survivor = State { live: durable.clone(), durable, ..State::default() };
            drop(state);
            *space = Arc::new(MemorySpace { id: space.id, state: Mutex::new(survivor) });
        }
    }
}

impl Engine for MemoryEngine {
    fn open_space(&self, id: SpaceId) -> Result<Arc<dyn Space>, StoreError> {
        let mut spaces = self.spaces.lock();
        let space = spaces.entry(id).or_insert_with(|| Arc::new(MemorySpace { id, state: Mutex::default() }));
        Ok(Arc::clone(space) as Arc<dyn Space>)
    }

    fn spaces(&self) -> Result<Vec<SpaceId>, StoreError> {
        Ok(self.spaces.lock().keys().copied().collect())
    }

    fn drop_space(&self, id: SpaceId) -> Result<(), StoreError> {
        if let Some(space) = self.spaces.lock().remove(&id) {
            *space.state.lock() = State { gone: Some("dropped"), ..State::default() };
        }
        Ok(())
    }

    fn disk_bytes(&self) -> Result<u64, StoreError> {
        let bytes = |space: &Arc<MemorySpace>| -> u64 {
            space.state.lock().live.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
        };
        Ok(self.spaces.lock().values().map(bytes).sum())
    }
}

#[derive(Default)]
struct State {
    live: Map,
    durable: Map,
    unflushed: Vec<Batch>,
    /// Why this handle no longer works.
    gone: Option<&'static str>,
}

struct MemorySpace {
    id: SpaceId,
    state: Mutex<State>,
}

impl fmt::Debug for MemorySpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySpace").field("id", &self.id).finish_non_exhaustive()
    }
}

impl MemorySpace {
    fn with<T>(&self, operation: &'static str, work: impl FnOnce(&mut State) -> T) -> Result<T, StoreError> {
        let mut state = self.state.lock();
        match state.gone {
            Some(detail) => {
                Err(StoreError::Engine { operation, space: self.id.to_string(), detail: detail.to_owned() })
            }
            None => Ok(work(&mut state)),
        }
    }
}

impl Space for MemorySpace {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.with("get", |state| state.live.get(key).cloned())
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        let copied = self.with("scan", |state| -> Vec<(Bytes, Bytes)> {
            if is_empty_range(&range) {
                return Vec::new();
            }
            let found = state.live.range(range).map(|(key, value)| (key.clone(), value.clone()));
            if reverse { found.rev().collect() } else { found.collect() }
        });
        match copied {
            Ok(found) => Box::new(found.into_iter().map(Ok)),
            Err(e) => Box::new(std::iter::once(Err(e))),
        }
    }

    fn apply(&self, batch: Batch) -> Result<(), StoreError> {
        self.with("apply", |state| {
            change(&mut state.live, batch.clone());
            state.unflushed.push(batch);
        })
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.with("flush", |state| {
            for batch in state.unflushed.drain(..) {
                change(&mut state.durable, batch);
            }
        })
    }
}

fn change(map: &mut Map, batch: Batch) {
    for (key, value) in batch.changes {
        match value {
            Some(value) => map.insert(key, value),
            None => map.remove(&key),
        };
    }
}
