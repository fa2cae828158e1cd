//! What the engine below is given, how much and when, and that no failure of it is passed over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::super::{batch, bytes, content, id, noise, put, removal};
use super::Map;
use crate::store::{Batch, BufferedEngine, Engine, KeyRange, MemoryEngine, Scan, Space, SpaceId, StoreError};

const PATIENCE: Duration = Duration::from_secs(30);
/// How long something is given to happen that must not.
const HALT: Duration = Duration::from_millis(200);
/// One space's layers are as long as they can be.
const AMPLE_BYTES: u64 = 1 << 20;
/// What a layer may hold then, and what it costs more than the bytes of its keys and values.
const LAYER_BYTES_MAX: usize = 96 << 10;
const ENTRY_BYTES: usize = 96;

/// What is asked of the engine below.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Call {
    Got,
    ScanBegins,
    ScanBegun,
    Apply,
}

type Hook = Box<dyn Fn(Call, &Batch) -> Result<(), StoreError> + Send + Sync>;

/// The engine in memory, with a hook in its calls.
#[derive(Clone, Default)]
struct Hooked {
    memory: Arc<MemoryEngine>,
    hook: Arc<Mutex<Option<Arc<Hook>>>>,
}

struct HookedSpace {
    space: Arc<dyn Space>,
    hooked: Hooked,
}

impl std::fmt::Debug for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.memory.fmt(f)
    }
}

impl std::fmt::Debug for HookedSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.space.fmt(f)
    }
}

impl Hooked {
    fn set(&self, hook: impl Fn(Call, &Batch) -> Result<(), StoreError> + Send + Sync + 'static) {
        *self.hook.lock() = Some(Arc::new(Box::new(hook)));
    }

    fn call(&self, call: Call, batch: &Batch) -> Result<(), StoreError> {
        let hook = self.hook.lock().clone();
        hook.map_or(Ok(()), |hook| hook(call, batch))
    }

    fn buffered(&self, bytes_max: u64) -> (BufferedEngine, Arc<dyn Space>) {
        let engine = BufferedEngine::new(Arc::new(self.clone()), bytes_max);
        let space = engine.open_space(id(1, 0)).unwrap();
        (engine, space)
    }

    fn below(&self) -> Map {
        content(&*self.memory.open_space(id(1, 0)).unwrap()).unwrap()
    }
}

impl Engine for Hooked {
    fn open_space(&self, id: SpaceId) -> Result<Arc<dyn Space>, StoreError> {
        Ok(Arc::new(HookedSpace { space: self.memory.open_space(id)?, hooked: self.clone() }))
    }

    fn spaces(&self) -> Result<Vec<SpaceId>, StoreError> {
        self.memory.spaces()
    }

    fn drop_space(&self, id: SpaceId) -> Result<(), StoreError> {
        self.memory.drop_space(id)
    }

    fn disk_bytes(&self) -> Result<u64, StoreError> {
        self.memory.disk_bytes()
    }
}

impl Space for HookedSpace {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let got = self.space.get(key);
        self.hooked.call(Call::Got, &Batch::default())?;
        got
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        self.hooked.call(Call::ScanBegins, &Batch::default()).unwrap();
        let scan = self.space.scan(range, reverse);
        self.hooked.call(Call::ScanBegun, &Batch::default()).unwrap();
        scan
    }

    fn apply(&self, batch: Batch) -> Result<(), StoreError> {
        self.hooked.call(Call::Apply, &batch)?;
        self.space.apply(batch)
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.space.flush()
    }
}

fn full() -> StoreError {
    StoreError::Engine { operation: "apply", space: "r1-g0".to_owned(), detail: "no space left".to_owned() }
}

#[test]
fn what_is_drained_between_two_looks_is_in_one_of_them() {
    for moment in [Call::Got, Call::ScanBegins, Call::ScanBegun] {
        let hooked = Hooked::default();
        let (_engine, space) = hooked.buffered(AMPLE_BYTES);
        space.apply(batch([put("a", "1"), put("b", "1"), put("c", "1")])).unwrap();
        space.flush().unwrap();
        space.apply(batch([put("b", "2"), removal("c"), put("d", "2")])).unwrap();
        let weak = Arc::downgrade(&space);
        let draining = AtomicBool::new(true);
        hooked.set(move |call, _| {
            if call == moment && draining.swap(false, Ordering::Relaxed) {
                weak.upgrade().unwrap().flush()?;
            }
            Ok(())
        });
        let expected = Map::from([("a", "1"), ("b", "2"), ("d", "2")].map(|(k, v)| (bytes(k), bytes(v))));
        for key in ["d", "c", "b", "a"] {
            assert_eq!(
                space.get(key.as_bytes()).unwrap().as_ref(),
                expected.get(key.as_bytes()),
                "{moment:?}"
            );
        }
        assert_eq!(content(&*space).unwrap(), expected, "{moment:?}");
        assert_eq!(hooked.below(), expected, "{moment:?}: it was drained");
    }
}

#[test]
fn what_is_replaced_before_a_flush_is_never_written() {
    let hooked = Hooked::default();
    let (engine, space) = hooked.buffered(AMPLE_BYTES);
    let writes = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&writes);
    hooked.set(move |call, batch| {
        if call == Call::Apply {
            noted.lock().push(batch.changes.clone());
        }
        Ok(())
    });
    for n in 0..2_000_u32 {
        space
            .apply(batch([put("a", n.to_be_bytes()), put("b", noise(u64::from(n), 40)), removal("c")]))
            .unwrap();
        assert!(!space.drain_due());
    }
    space.drain().unwrap();
    assert!(writes.lock().is_empty(), "nothing is due");
    assert!(engine.held_bytes() > 0);
    space.flush().unwrap();
    let last = vec![put("a", 1_999_u32.to_be_bytes()), put("b", noise(1_999, 40)), removal("c")];
    assert_eq!(*writes.lock(), [last]);
    assert_eq!(engine.held_bytes(), 0);
}

#[test]
fn reads_and_batches_do_not_wait_for_a_layer_that_is_written() {
    let hooked = Hooked::default();
    let (engine, space) = hooked.buffered(AMPLE_BYTES);
    let (reached, reaching) = mpsc::channel();
    let (release, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    hooked.set(move |call, _| {
        if call == Call::Apply {
            reached.send(()).unwrap();
            let _ = held.lock().recv();
        }
        Ok(())
    });
    space.apply(batch([put("a", "1"), put("b", "1")])).unwrap();
    let flushing = thread::spawn({
        let space = Arc::clone(&space);
        move || space.flush()
    });
    reaching.recv_timeout(PATIENCE).unwrap();
    let (done, doing) = mpsc::channel();
    thread::spawn({
        let space = Arc::clone(&space);
        move || {
            space.apply(batch([put("b", "2"), removal("a")])).unwrap();
            let found = (content(&*space).unwrap(), space.get(b"a").unwrap(), space.get(b"b").unwrap());
            done.send(found).unwrap();
        }
    });
    let (all, a, b) = doing.recv_timeout(PATIENCE).expect("held up by the engine");
    assert_eq!((all, a, b), (Map::from([(bytes("b"), bytes("2"))]), None, Some(bytes("2"))));

    // Whoever drops the space waits, or it would be written to when it is made anew.
    let (dropped, dropping) = mpsc::channel();
    thread::spawn(move || {
        engine.drop_space(id(1, 0)).unwrap();
        dropped.send(engine.held_bytes()).unwrap();
    });
    assert!(dropping.recv_timeout(HALT).is_err(), "dropped while a layer was written");
    release.send(()).unwrap();
    drop(release);
    assert_eq!(dropping.recv_timeout(PATIENCE).unwrap(), 0);
    let _ = flushing.join().unwrap();
    assert!(space.apply(batch([put("a", "3")])).is_err());
    assert!(space.get(b"b").is_err(), "what was buffered went with the space");
    assert!(space.flush().is_err());
    space.drain().unwrap();
    assert!(hooked.below().is_empty());
}

#[test]
fn a_layer_that_fails_is_followed_by_none() {
    let hooked = Hooked::default();
    let (_engine, space) = hooked.buffered(AMPLE_BYTES);
    let long = || noise(1, LAYER_BYTES_MAX);
    space.apply(batch([put("n", "1"), put("long", long())])).unwrap();
    space.drain().unwrap();
    let failing = Arc::new(AtomicBool::new(true));
    let once = Arc::clone(&failing);
    hooked.set(move |call, _| match call {
        Call::Apply if once.swap(false, Ordering::Relaxed) => Err(full()),
        Call::Apply | Call::Got | Call::ScanBegins | Call::ScanBegun => Ok(()),
    });
    space.apply(batch([put("n", "2"), put("long", long())])).unwrap();
    space.apply(batch([put("n", "3")])).unwrap();
    assert!(space.drain_due());
    assert_eq!(space.drain().unwrap_err().to_string(), full().to_string());
    assert!(!failing.load(Ordering::Relaxed), "from here on the engine would take it");
    for later in [
        space.apply(batch([put("n", "4")])),
        space.drain(),
        space.flush(),
        space.apply(batch([put("n", "5"), put("long", long())])),
    ] {
        let told = later.unwrap_err().to_string();
        assert!(told.contains("no space left"), "{told}");
    }
    assert_eq!(space.get(b"n").unwrap(), Some(bytes("3")), "what was applied is read");
    assert_eq!(content(&*space).unwrap()[&b"n"[..]], bytes("3"));
    assert_eq!(hooked.below()[&b"n"[..]], bytes("1"), "nothing follows what failed");
}

#[test]
fn a_batch_that_finds_no_room_because_the_engine_fails_has_not_taken_effect() {
    let hooked = Hooked::default();
    let (_engine, space) = hooked.buffered(AMPLE_BYTES);
    hooked.set(|call, _| if call == Call::Apply { Err(full()) } else { Ok(()) });
    let refused = (1..100_u32).find(|n| {
        let changes = [put("n", n.to_be_bytes()), put("long", noise(1, LAYER_BYTES_MAX - 1_000))];
        space.apply(batch(changes)).is_err()
    });
    assert_eq!(refused, Some(5), "after as many layers as a space may have");
    assert_eq!(space.get(b"n").unwrap(), Some(bytes(4_u32.to_be_bytes())));
    assert!(hooked.below().is_empty());
}

#[test]
fn a_batch_past_a_full_buffer_goes_to_the_engine_and_its_failure_is_kept_in_mind() {
    let hooked = Hooked::default();
    let (engine, space) = hooked.buffered(1 << 16);
    let other = engine.open_space(id(2, 0)).unwrap();
    let longer_than_all = || noise(1, 1 << 17);
    space.apply(batch([put("n", "1")])).unwrap();
    space.apply(batch([put("n", "2"), put("long", longer_than_all())])).unwrap();
    assert_eq!(hooked.below()[&b"n"[..]], bytes("2"));
    assert_eq!(engine.held_bytes(), 0);
    let failing = AtomicBool::new(true);
    hooked.set(move |call, _| match call {
        Call::Apply if failing.swap(false, Ordering::Relaxed) => Err(full()),
        Call::Apply | Call::Got | Call::ScanBegins | Call::ScanBegun => Ok(()),
    });
    space.apply(batch([put("n", "3"), put("long", longer_than_all())])).unwrap_err();
    space.apply(batch([put("n", "4")])).unwrap_err();
    space.drain().unwrap_err();
    space.flush().unwrap_err();
    assert_eq!(space.get(b"n").unwrap(), Some(bytes("2")));
    other.apply(batch([put("n", "1")])).unwrap();
    other.flush().unwrap();
}

#[test]
fn buffers_stay_within_the_bound_of_the_node_and_layers_within_theirs() {
    for (bytes_max, spaces) in [(1_u64 << 20, 1), (1 << 20, 40), (1 << 16, 40), (64 << 20, 3)] {
        let hooked = Hooked::default();
        let longest = Arc::new(Mutex::new((0, 0)));
        let noted = Arc::clone(&longest);
        hooked.set(move |call, batch| {
            if call == Call::Apply {
                let bytes = |(key, value): &(Bytes, Option<Bytes>)| {
                    key.len() + value.as_ref().map_or(0, Bytes::len) + ENTRY_BYTES
                };
                let weight: usize = batch.changes.iter().map(bytes).sum();
                let mut longest = noted.lock();
                *longest = (longest.0.max(weight), longest.1 + 1);
            }
            Ok(())
        });
        let engine = BufferedEngine::new(Arc::new(hooked), bytes_max);
        // Spaces come one after the other: the first ones fill a larger part than is theirs in the end.
        let mut opened: Vec<Arc<dyn Space>> = Vec::new();
        for n in 0..spaces * 300_u64 {
            if n % 300 == 0 {
                opened.push(engine.open_space(id(n / 300, 0)).unwrap());
            }
            let length = [100, 900, 30, 12_000][usize::try_from(n % 4).unwrap()];
            let key = format!("{n:08}");
            let space = &opened[usize::try_from(n * 7).unwrap() % opened.len()];
            space.apply(batch([put(key, noise(n, length))])).unwrap();
            let held = engine.held_bytes();
            assert!(held <= bytes_max, "{held} of {bytes_max} in {spaces} spaces");
        }
        for space in &opened {
            space.flush().unwrap();
        }
        assert_eq!(engine.held_bytes(), 0, "{bytes_max} for {spaces}");
        let (weight, batches) = *longest.lock();
        assert!(batches > 0 && weight <= LAYER_BYTES_MAX, "{weight} in one of {batches}");
        // What is open no longer takes no part.
        for n in 0..spaces {
            engine.drop_space(id(n, 0)).unwrap();
        }
        let last = engine.open_space(id(1, 1)).unwrap();
        for n in 0..5 {
            last.apply(batch([put(n.to_string(), noise(n, 4_000))])).unwrap();
        }
        assert_eq!(last.drain_due(), bytes_max == 1 << 16, "{bytes_max} for one");
    }
}
