//! A buffered space holds what an unbuffered one would, a crash leaves what whole batches give, and no fault of the
//! engine below is passed over.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;

use super::{ALL, Fixture, Kind, StopOnDrop, batch, bytes, content, id, noise, put, removal};
use crate::config::EngineKind;
use crate::store::{Batch, BufferedEngine, Engine, KeyRange, MemoryEngine, Scan, Space, SpaceId, StoreError};

type Map = BTreeMap<Bytes, Bytes>;

const PATIENCE: Duration = Duration::from_secs(30);
/// How long something is given to happen that must not.
const HALT: Duration = Duration::from_millis(200);
/// One space's layers are as long as they can be.
const AMPLE_BYTES: u64 = 1 << 20;
/// What a layer may hold then, and what it costs more than the bytes of its keys and values.
const LAYER_BYTES_MAX: usize = 96 << 10;
const ENTRY_BYTES: usize = 96;

#[derive(Debug, Clone)]
enum Step {
    Apply(Vec<(u8, Option<u16>)>),
    Drain,
    Flush,
    Crash { kept: usize },
    Scan { low: Option<(u8, bool)>, high: Option<(u8, bool)>, reverse: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let change = (0..30_u8, proptest::option::weighted(0.7, 0..900_u16));
    let edge = || proptest::option::of((0..31_u8, any::<bool>()));
    prop_oneof![
        12 => proptest::collection::vec(change, 0..8).prop_map(Step::Apply),
        2 => Just(Step::Drain),
        1 => Just(Step::Flush),
        1 => (0..6_usize).prop_map(|kept| Step::Crash { kept }),
        4 => (edge(), edge(), any::<bool>()).prop_map(|(low, high, reverse)| Step::Scan { low, high, reverse }),
    ]
}

fn name(key: u8) -> Bytes {
    bytes(format!("{key:02}"))
}

fn bound(edge: Option<(u8, bool)>) -> Bound<Bytes> {
    match edge {
        None => Bound::Unbounded,
        Some((key, true)) => Bound::Included(name(key)),
        Some((key, false)) => Bound::Excluded(name(key)),
    }
}

/// Whether `key` lies in the range, said without the range's own order of bounds, which may be inverted.
fn within((low, high): &KeyRange, key: &Bytes) -> bool {
    let above = match low {
        Bound::Unbounded => true,
        Bound::Included(low) => key >= low,
        Bound::Excluded(low) => key > low,
    };
    let below = match high {
        Bound::Unbounded => true,
        Bound::Included(high) => key <= high,
        Bound::Excluded(high) => key < high,
    };
    above && below
}

/// Every batch also counts itself, so that what a crash left says where in their order it stands.
const COUNT: &str = "count";

fn change(map: &mut Map, changes: &[(Bytes, Option<Bytes>)]) {
    for (key, value) in changes {
        match value {
            Some(value) => map.insert(key.clone(), value.clone()),
            None => map.remove(key),
        };
    }
}

fn matches_a_model(mut fixture: Fixture, steps: Vec<Step>) {
    let mut space = fixture.space();
    // The state after each batch; as many of them are durable at least.
    let mut states = vec![Map::new()];
    let mut flushed = 0;
    for step in steps {
        match step {
            Step::Apply(changes) => {
                let value = |n: u16| noise(u64::from(n), usize::from(n));
                let mut changes: Vec<_> =
                    changes.into_iter().map(|(key, n)| (name(key), n.map(value))).collect();
                changes.push(put(COUNT, states.len().to_string()));
                let mut next = states.last().unwrap().clone();
                change(&mut next, &changes);
                states.push(next);
                space.apply(Batch { changes }).unwrap();
            }
            Step::Drain => space.drain().unwrap(),
            Step::Flush => {
                space.flush().unwrap();
                flushed = states.len() - 1;
            }
            Step::Crash { kept } => {
                drop(space);
                fixture.crash(kept);
                space = fixture.space();
                let found = content(&*space).unwrap();
                let count = found
                    .get(COUNT.as_bytes())
                    .map_or(0, |count| std::str::from_utf8(count).unwrap().parse::<usize>().unwrap());
                assert!(count >= flushed, "I2: {flushed} batches were flushed, {count} are left");
                assert_eq!(found, states[count], "I4: not what {count} whole batches give");
                states.truncate(count + 1);
                flushed = count;
            }
            Step::Scan { low, high, reverse } => {
                let range = (bound(low), bound(high));
                let all = states.last().unwrap().iter().map(|(key, value)| (key.clone(), value.clone()));
                let mut expected: Vec<_> = all.filter(|(key, _)| within(&range, key)).collect();
                if reverse {
                    expected.reverse();
                }
                let found: Result<Vec<_>, _> = space.scan(range, reverse).collect();
                assert_eq!(found.unwrap(), expected);
            }
        }
        let now = states.last().unwrap();
        assert_eq!(&content(&*space).unwrap(), now);
        for key in (0..30).map(name) {
            assert_eq!(space.get(&key).unwrap().as_ref(), now.get(&key));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]
    #[test]
    fn buffered_memory_holds_what_its_batches_give(steps in proptest::collection::vec(step(), 1..80)) {
        matches_a_model(Fixture::new(Kind::BufferedMemory), steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(8) })]
    #[test]
    fn buffered_sled_holds_what_its_batches_give(steps in proptest::collection::vec(step(), 1..60)) {
        matches_a_model(Fixture::new(Kind::BufferedDisk(EngineKind::Sled)), steps);
    }

    #[test]
    fn buffered_fjall_holds_what_its_batches_give(steps in proptest::collection::vec(step(), 1..60)) {
        matches_a_model(Fixture::new(Kind::BufferedDisk(EngineKind::Fjall)), steps);
    }
}

/// One thread applies, one drains; what readers see never goes back, and is never a part of a batch.
fn readers_beside_drains(kind: Kind) {
    let fixture = Fixture::new(kind);
    let space = fixture.space();
    let stable: Vec<Bytes> = (0..200).map(|n| bytes(format!("k{n:04}-stable"))).collect();
    let round = |n: u64| {
        let number = n.to_be_bytes();
        let passing = (0..20).map(move |k| {
            let key = format!("k{:04}-{}", (n * 37 + k * 8) % 200, k % 3);
            if n.is_multiple_of(2) { put(key, noise(n, 30)) } else { removal(key) }
        });
        batch(passing.chain([put("a", number), put("z", number)]))
    };
    space.apply(batch(stable.iter().map(|key| put(key, "s")))).unwrap();
    space.apply(round(0)).unwrap();
    let stop = AtomicBool::new(false);
    let number = |value: Option<Bytes>| u64::from_be_bytes(value.unwrap()[..].try_into().unwrap());
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| {
            for n in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                space.apply(round(n)).unwrap();
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                space.drain().unwrap();
            }
        });
        scope.spawn(|| {
            let mut newest = 0;
            while !stop.load(Ordering::Relaxed) {
                for key in [b"z", b"a"] {
                    let read = number(space.get(key).unwrap());
                    assert!(read >= newest, "{read} after {newest}");
                    newest = read;
                }
            }
        });
        for reverse in [false, true].into_iter().cycle().take(200) {
            let begun = number(space.get(b"a").unwrap());
            let found: Result<Vec<_>, _> = space.scan(ALL, reverse).collect();
            let mut found = found.unwrap();
            if reverse {
                found.reverse();
            }
            assert!(found.is_sorted_by(|(a, _), (b, _)| a < b), "out of order, reverse {reverse}");
            for edge in [found.first(), found.last()] {
                let read = number(edge.map(|(_, value)| value.clone()));
                assert!(read >= begun, "the scan gave {read}, and began at {begun} or later");
            }
            found.retain(|(key, _)| key.ends_with(b"-stable"));
            assert!(found.iter().map(|(key, _)| key).eq(&stable), "reverse {reverse}");
        }
    });
}

#[test]
fn readers_never_go_back_while_layers_are_drained() {
    readers_beside_drains(Kind::BufferedMemory);
    readers_beside_drains(Kind::BufferedDisk(EngineKind::Sled));
    readers_beside_drains(Kind::BufferedDisk(EngineKind::Fjall));
}

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
