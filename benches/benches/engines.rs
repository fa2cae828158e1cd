//! The storage engines behind their trait, with 100,000 values of 300 bytes in one space: batches of
//! overwrites (atomic, not flushed: the log is what makes a write durable), point gets, scans of 100 values.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run has nothing to report")]

use std::ops::Bound;
use std::sync::Arc;

use borough_node::config::EngineKind;
use borough_node::store::{Batch, Space, SpaceId, open_engine};
use borough_proto::ReplicaId;
use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const VALUES: u64 = 100_000;
const VALUE_BYTES: usize = 300;
const SCANNED: usize = 100;
const CACHE_BYTES: u64 = 256 << 20;

fn main() {
    divan::main();
}

trait Kind {
    const KIND: EngineKind;
}

struct Sled;
struct Fjall;

impl Kind for Sled {
    const KIND: EngineKind = EngineKind::Sled;
}

impl Kind for Fjall {
    const KIND: EngineKind = EngineKind::Fjall;
}

struct Loaded {
    space: Arc<dyn Space>,
    rng: StdRng,
    _dir: TempDir,
}

impl Loaded {
    fn new<K: Kind>() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = open_engine(K::KIND, dir.path(), CACHE_BYTES, 1).unwrap();
        let space = engine.open_space(SpaceId { replica: ReplicaId(1), generation: 0 }).unwrap();
        let mut loaded = Self { space, rng: StdRng::seed_from_u64(1), _dir: dir };
        for first in (0..VALUES).step_by(64) {
            let changes =
                (first..VALUES.min(first + 64)).map(|key| (name(key), Some(loaded.value()))).collect();
            loaded.space.apply(Batch { changes }).unwrap();
        }
        loaded.space.flush().unwrap();
        loaded
    }

    fn key(&mut self) -> Bytes {
        name(self.rng.random_range(0..VALUES))
    }

    /// Random, so that an engine that compresses has nothing to win.
    fn value(&mut self) -> Bytes {
        let mut value = vec![0; VALUE_BYTES];
        self.rng.fill(value.as_mut_slice());
        value.into()
    }
}

/// Keys in hash order, as documents are kept.
fn name(key: u64) -> Bytes {
    let id = format!("user-{key}");
    let mut name = borough_proto::key::hash_id(&id).to_be_bytes().to_vec();
    name.extend_from_slice(id.as_bytes());
    name.into()
}

#[divan::bench(types = [Sled, Fjall], args = [1, 8, 64], min_time = 2, max_time = 3)]
fn overwrite_batch<K: Kind>(bencher: Bencher, batch: u64) {
    let loaded = std::cell::RefCell::new(Loaded::new::<K>());
    let space = Arc::clone(&loaded.borrow().space);
    bencher
        .counter(ItemsCount::new(batch))
        .with_inputs(|| {
            let mut loaded = loaded.borrow_mut();
            Batch { changes: (0..batch).map(|_| (loaded.key(), Some(loaded.value()))).collect() }
        })
        .bench_local_values(|batch| space.apply(batch).unwrap());
}

#[divan::bench(types = [Sled, Fjall], min_time = 2, max_time = 3)]
fn get<K: Kind>(bencher: Bencher) {
    let loaded = std::cell::RefCell::new(Loaded::new::<K>());
    let space = Arc::clone(&loaded.borrow().space);
    bencher
        .counter(ItemsCount::new(1_u32))
        .with_inputs(|| loaded.borrow_mut().key())
        .bench_local_refs(|key| assert!(space.get(key).unwrap().is_some()));
}

#[divan::bench(types = [Sled, Fjall], min_time = 2, max_time = 3)]
fn scan_100<K: Kind>(bencher: Bencher) {
    let loaded = std::cell::RefCell::new(Loaded::new::<K>());
    let space = Arc::clone(&loaded.borrow().space);
    bencher
        .counter(ItemsCount::new(SCANNED))
        .with_inputs(|| (Bound::Included(loaded.borrow_mut().key()), Bound::Unbounded))
        .bench_local_values(|range| space.scan(range, false).take(SCANNED).filter(Result::is_ok).count());
}
