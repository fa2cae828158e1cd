//! The suite that every engine must pass, and tests of what only one has.

mod buffer;
mod damage;
mod point_in_time;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use borough_proto::ReplicaId;
use bytes::Bytes;
use tempfile::TempDir;

use super::{Batch, BufferedEngine, Engine, KeyRange, MemoryEngine, Space, SpaceId, StoreError, open_engine};
use crate::config::EngineKind;

const CACHE_BYTES: u64 = 64 << 20;
/// So little that layers are sealed and written all the time.
const BUFFER_BYTES: u64 = 16 << 10;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Memory,
    Disk(EngineKind),
    BufferedMemory,
    BufferedDisk(EngineKind),
}

/// An engine in a directory of its own, which can be closed and opened again.
pub(super) struct Fixture {
    kind: Kind,
    memory: Arc<MemoryEngine>,
    engine: Option<Arc<dyn Engine>>,
    dir: TempDir,
}

impl Fixture {
    pub(super) fn new(kind: Kind) -> Self {
        let mut fixture =
            Self { kind, memory: Arc::default(), engine: None, dir: tempfile::tempdir().unwrap() };
        fixture.open();
        fixture
    }

    fn open(&mut self) {
        let buffered = |engine| Arc::new(BufferedEngine::new(engine, BUFFER_BYTES)) as Arc<dyn Engine>;
        let memory = Arc::clone(&self.memory) as Arc<dyn Engine>;
        self.engine = Some(match self.kind {
            Kind::Memory => memory,
            Kind::Disk(kind) => open(kind, self.dir.path()).unwrap(),
            Kind::BufferedMemory => buffered(memory),
            Kind::BufferedDisk(kind) => buffered(open(kind, self.dir.path()).unwrap()),
        });
    }

    fn reopen(&mut self) {
        self.crash(0);
    }

    /// Opens it again without what a buffer held, and, in memory, with so many of the batches since the last flush.
    fn crash(&mut self, kept: usize) {
        self.engine = None;
        self.memory.crash(kept);
        self.open();
    }

    fn engine(&self) -> &dyn Engine {
        self.engine.as_deref().unwrap()
    }

    pub(super) fn space(&self) -> Arc<dyn Space> {
        self.engine().open_space(id(1, 0)).unwrap()
    }
}

/// Tells threads to end when it goes, also by a failure: a scope waits for its threads, and would without end.
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn open(kind: EngineKind, dir: &Path) -> Result<Arc<dyn Engine>, StoreError> {
    open_engine(kind, dir, CACHE_BYTES, 4)
}

pub(super) fn id(replica: u64, generation: u64) -> SpaceId {
    SpaceId { replica: ReplicaId(replica), generation }
}

pub(super) fn bytes(text: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(text.as_ref())
}

pub(super) fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> (Bytes, Option<Bytes>) {
    (bytes(key), Some(bytes(value)))
}

pub(super) fn removal(key: impl AsRef<[u8]>) -> (Bytes, Option<Bytes>) {
    (bytes(key), None)
}

pub(super) fn batch(changes: impl IntoIterator<Item = (Bytes, Option<Bytes>)>) -> Batch {
    Batch { changes: changes.into_iter().collect() }
}

const ALL: KeyRange = (Bound::Unbounded, Bound::Unbounded);

pub(super) fn content(space: &dyn Space) -> Result<BTreeMap<Bytes, Bytes>, StoreError> {
    space.scan(ALL, false).collect()
}

/// Incompressible, and different for each seed.
pub(super) fn noise(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let words: Vec<[u8; 8]> = std::iter::repeat_with(next).take(length.div_ceil(8)).collect();
    Bytes::from(words.concat()).slice(..length)
}

macro_rules! suite {
    ($($test:ident),* $(,)?) => {
        mod memory { $(#[test] fn $test() { super::$test(super::Fixture::new(super::Kind::Memory)); })* }
        mod sled {
            use crate::config::EngineKind::Sled;
            $(#[test] fn $test() { super::$test(super::Fixture::new(super::Kind::Disk(Sled))); })*
        }
        mod fjall {
            use crate::config::EngineKind::Fjall;
            $(#[test] fn $test() { super::$test(super::Fixture::new(super::Kind::Disk(Fjall))); })*
        }
        mod buffered_memory {
            $(#[test] fn $test() { super::$test(super::Fixture::new(super::Kind::BufferedMemory)); })*
        }
        mod buffered_sled {
            use crate::config::EngineKind::Sled;
            $(#[test] fn $test() { super::$test(super::Fixture::new(super::Kind::BufferedDisk(Sled))); })*
        }
        mod buffered_fjall {
            use crate::config::EngineKind::Fjall;
            $(#[test] fn $test() { super::$test(super::Fixture::new(super::Kind::BufferedDisk(Fjall))); })*
        }
    };
}

suite![
    batch_is_readable_when_apply_returns,
    later_change_in_a_batch_wins,
    scan_honours_bounds_and_direction,
    large_values_survive_overwriting_and_reopening,
    large_value_and_small_one_in_a_batch_leave_one,
    flushed_batches_survive_reopening,
    dropped_space_gives_its_bytes_back,
    dropped_space_is_new_when_opened_again,
    opening_twice_gives_one_handle,
    spaces_do_not_see_each_other,
    readers_see_whole_values_while_a_writer_overwrites,
    long_batches_take_effect_at_once_and_whole,
    scan_meets_every_untouched_key_while_others_change,
];

fn batch_is_readable_when_apply_returns(fixture: Fixture) {
    let space = fixture.space();
    assert_eq!(space.get(b"a").unwrap(), None);
    space.apply(batch([put("a", "1"), put("b", "2"), put("", "empty key")])).unwrap();
    space.apply(batch([removal("a"), put("c", "3"), removal("never there")])).unwrap();
    space.apply(batch([put("d", "")])).unwrap();
    space.apply(batch([])).unwrap();
    let expected = BTreeMap::from(
        [("", "empty key"), ("b", "2"), ("c", "3"), ("d", "")].map(|(k, v)| (bytes(k), bytes(v))),
    );
    assert_eq!(content(&*space).unwrap(), expected);
    for (key, value) in expected {
        assert_eq!(space.get(&key).unwrap(), Some(value));
    }
    assert_eq!(space.get(b"a").unwrap(), None);
    space.apply(batch([removal("d")])).unwrap();
    assert_eq!(space.get(b"d").unwrap(), None);
}

fn later_change_in_a_batch_wins(fixture: Fixture) {
    let space = fixture.space();
    space
        .apply(batch([
            put("a", "1"),
            put("a", "2"),
            put("b", "1"),
            removal("b"),
            removal("c"),
            put("c", "3"),
        ]))
        .unwrap();
    assert_eq!(space.get(b"a").unwrap(), Some(bytes("2")));
    assert_eq!(space.get(b"b").unwrap(), None);
    assert_eq!(space.get(b"c").unwrap(), Some(bytes("3")));
}

fn scan_honours_bounds_and_direction(fixture: Fixture) {
    let space = fixture.space();
    // 0xff and prefixes of one another are where key encodings go wrong.
    let keys: Vec<Bytes> =
        [&b""[..], b"\0", b"\0\0", b"a", b"a\0", b"ab", b"b", b"\xfe", b"\xff", b"\xff\xff"]
            .map(bytes)
            .to_vec();
    space.apply(batch(keys.iter().map(|key| put(key, key)))).unwrap();
    let kinds: [fn(Bytes) -> Bound<Bytes>; 3] = [Bound::Included, Bound::Excluded, |_| Bound::Unbounded];
    let probes: Vec<Bytes> = keys.iter().cloned().chain([bytes("aa"), bytes("z")]).collect();
    for (low, high) in probes.iter().flat_map(|low| probes.iter().map(move |high| (low, high))) {
        for (from, to) in kinds.iter().flat_map(|from| kinds.iter().map(move |to| (from, to))) {
            let range = (from(low.clone()), to(high.clone()));
            let above = |key: &Bytes| match &range.0 {
                Bound::Included(low) => key >= low,
                Bound::Excluded(low) => key > low,
                Bound::Unbounded => true,
            };
            let below = |key: &Bytes| match &range.1 {
                Bound::Included(high) => key <= high,
                Bound::Excluded(high) => key < high,
                Bound::Unbounded => true,
            };
            let mut expected: Vec<Bytes> =
                keys.iter().filter(|key| above(key) && below(key)).cloned().collect();
            for reverse in [false, true] {
                let found: Vec<Bytes> =
                    space.scan(range.clone(), reverse).map(|item| item.unwrap().0).collect();
                assert_eq!(found, expected, "{range:?} reverse {reverse}");
                expected.reverse();
            }
        }
    }
}

fn large_values_survive_overwriting_and_reopening(mut fixture: Fixture) {
    let lengths = [0, 1, 6 << 10, (6 << 10) + 1, 64 << 10, 1 << 20, 1_258_291];
    let mut space = fixture.space();
    for (step, length) in [1 << 20, 1, 1_258_291, 0, 64 << 10, 12 << 10].into_iter().enumerate() {
        let value = noise(step as u64, length);
        space.apply(batch([put("same", &value)])).unwrap();
        assert_eq!(space.get(b"same").unwrap(), Some(value), "{length} bytes over another length");
    }
    space
        .apply(batch(
            lengths.iter().map(|&length| put(format!("k{length:08}"), noise(length as u64, length))),
        ))
        .unwrap();
    space.flush().unwrap();
    for reopened in [false, true] {
        let found = content(&*space).unwrap();
        assert_eq!(found.len(), lengths.len() + 1, "chunks are not shown");
        for &length in &lengths {
            let expected = noise(length as u64, length);
            assert_eq!(found.get(format!("k{length:08}").as_bytes()), Some(&expected), "reopened {reopened}");
        }
        if !reopened {
            drop(space);
            fixture.reopen();
            space = fixture.space();
        }
    }
    // After reopening, overwriting and removing must still find the chunks.
    space
        .apply(batch(lengths.iter().map(|length| removal(format!("k{length:08}"))).chain([put("same", "x")])))
        .unwrap();
    assert_eq!(content(&*space).unwrap(), BTreeMap::from([(bytes("same"), bytes("x"))]));
}

fn large_value_and_small_one_in_a_batch_leave_one(fixture: Fixture) {
    let space = fixture.space();
    let large = noise(1, 100_000);
    space.apply(batch([put("a", &large), put("a", "small"), put("b", "small"), put("b", &large)])).unwrap();
    assert_eq!(space.get(b"a").unwrap(), Some(bytes("small")));
    assert_eq!(space.get(b"b").unwrap(), Some(large));
}

fn flushed_batches_survive_reopening(mut fixture: Fixture) {
    let mut expected = BTreeMap::new();
    for round in 0..3_u64 {
        let space = fixture.space();
        assert_eq!(content(&*space).unwrap(), expected, "round {round}");
        for step in 0..500_u64 {
            let key = format!("{:04}", (step * 7 + round * 131) % 700);
            let value = noise(round * 1_000 + step, 300);
            space.apply(batch([put(&key, &value), put("applied", step.to_be_bytes())])).unwrap();
            expected.insert(bytes(&key), value);
            expected.insert(bytes("applied"), bytes(step.to_be_bytes()));
        }
        space.flush().unwrap();
        space.flush().unwrap();
        drop(space);
        fixture.reopen();
    }
    assert_eq!(content(&*fixture.space()).unwrap(), expected);
    assert_eq!(fixture.engine().spaces().unwrap(), [id(1, 0)]);
}

fn dropped_space_gives_its_bytes_back(fixture: Fixture) {
    let engine = fixture.engine();
    let (kept, dropped) = (engine.open_space(id(1, 0)).unwrap(), engine.open_space(id(2, 0)).unwrap());
    kept.apply(batch([put("k", "kept")])).unwrap();
    let empty = engine.disk_bytes().unwrap();
    for round in 0..40 {
        dropped.apply(batch((0..200).map(|n| put(format!("{round}-{n}"), noise(n, 2_000))))).unwrap();
    }
    dropped.flush().unwrap();
    let full = engine.disk_bytes().unwrap();
    assert!(full > empty + (15 << 20), "{empty} → {full}");
    engine.drop_space(id(2, 0)).unwrap();
    engine.drop_space(id(2, 0)).unwrap();
    let after = engine.disk_bytes().unwrap();
    let allowed = match fixture.kind {
        // Journals stay until their bound.
        Kind::Disk(EngineKind::Fjall) | Kind::BufferedDisk(EngineKind::Fjall) => full * 3 / 4 + (64 << 20),
        Kind::Memory
        | Kind::BufferedMemory
        | Kind::Disk(EngineKind::Sled)
        | Kind::BufferedDisk(EngineKind::Sled) => empty + (1 << 20),
    };
    assert!(after <= allowed, "{empty} → {full} → {after}");
    assert_eq!(engine.spaces().unwrap(), [id(1, 0)]);
    assert!(dropped.get(b"0-0").is_err(), "a handle of a dropped space is dead");
    assert!(dropped.apply(batch([put("a", "b")])).is_err());
    assert_eq!(kept.get(b"k").unwrap(), Some(bytes("kept")));
}

fn dropped_space_is_new_when_opened_again(mut fixture: Fixture) {
    fixture.space().apply(batch([put("a", "old")])).unwrap();
    fixture.engine().drop_space(id(1, 0)).unwrap();
    assert_eq!(content(&*fixture.space()).unwrap(), BTreeMap::new());
    fixture.space().apply(batch([put("b", "new")])).unwrap();
    fixture.space().flush().unwrap();
    fixture.reopen();
    assert_eq!(content(&*fixture.space()).unwrap(), BTreeMap::from([(bytes("b"), bytes("new"))]));
}

fn opening_twice_gives_one_handle(fixture: Fixture) {
    let opened: Vec<Arc<dyn Space>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| fixture.space())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for other in &opened {
        assert!(std::ptr::addr_eq(Arc::as_ptr(&opened[0]), Arc::as_ptr(other)));
    }
}

fn spaces_do_not_see_each_other(mut fixture: Fixture) {
    let ids = [id(1, 0), id(1, 1), id(2, 0), id(u64::MAX, u64::MAX), id(0, 0)];
    for id in ids {
        let space = fixture.engine().open_space(id).unwrap();
        space.apply(batch([put("", id.to_string()), put("k", id.to_string()), put("\u{ff}", "x")])).unwrap();
        space.flush().unwrap();
    }
    fixture.reopen();
    assert_eq!(fixture.engine().spaces().unwrap().len(), ids.len());
    for id in ids {
        let found = content(&*fixture.engine().open_space(id).unwrap()).unwrap();
        assert_eq!(found.len(), 3, "{id}");
        assert_eq!(found[&b"k"[..]], bytes(id.to_string()));
    }
    fixture.engine().drop_space(id(1, 0)).unwrap();
    assert_eq!(content(&*fixture.engine().open_space(id(1, 1)).unwrap()).unwrap().len(), 3);
}

/// Each value is one byte repeated, so that a mix of two shows.
fn readers_see_whole_values_while_a_writer_overwrites(fixture: Fixture) {
    let space = fixture.space();
    let lengths = [10, 5_000, 70_000, 300];
    let value = |round: usize| vec![u8::try_from(round % 250).unwrap(); lengths[round % lengths.len()]];
    space.apply(batch([put("a", value(0)), put("b", value(0))])).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let read = space.get(b"a").unwrap().unwrap();
                    assert!(read.iter().all(|byte| *byte == read[0]), "a value is a mix of two");
                    for item in space.scan(ALL, false) {
                        let (_, read) = item.unwrap();
                        assert!(read.iter().all(|byte| *byte == read[0]), "a scanned value is a mix of two");
                    }
                }
            });
        }
        for round in 0..300 {
            space.apply(batch([put("a", value(round)), put("b", value(round))])).unwrap();
        }
    });
}

fn long_batches_take_effect_at_once_and_whole(mut fixture: Fixture) {
    let space = fixture.space();
    // 100 values of 5 kB, then of 20 kB, with removals.
    let round = |round: u8, length: usize| {
        batch((0..100_u8).map(|n| {
            let key = format!("{n:03}");
            if (n + round).is_multiple_of(10) { removal(key) } else { put(key, vec![round; length]) }
        }))
    };
    let mut expected = BTreeMap::new();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| {
            let mut newest = 0;
            while !stop.load(Ordering::Relaxed) {
                if let Some(value) = space.get(b"055").unwrap() {
                    assert!(value.iter().all(|byte| *byte == value[0]), "a value is a mix of two");
                    assert!(value[0] >= newest, "an older value came back");
                    newest = value[0];
                }
            }
        });
        for (n, length) in (1..=12).zip([5_000, 20_000, 300].into_iter().cycle()) {
            let changes = round(n, length);
            for (key, value) in &changes.changes {
                match value {
                    Some(value) => expected.insert(key.clone(), value.clone()),
                    None => expected.remove(key),
                };
            }
            space.apply(changes).unwrap();
            assert!(content(&*space).unwrap() == expected, "round {n}");
        }
    });
    space.flush().unwrap();
    drop(space);
    fixture.reopen();
    assert!(content(&*fixture.space()).unwrap() == expected, "opened again");
}

fn scan_meets_every_untouched_key_while_others_change(fixture: Fixture) {
    let space = fixture.space();
    let stable: Vec<Bytes> = (0..500).map(|n| bytes(format!("{n:04}-stable"))).collect();
    space.apply(batch(stable.iter().map(|key| put(key, "s")))).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| {
            let mut round = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                let keys = (0..60).map(|n| format!("{:04}-{}", (round * 37 + n * 8) % 500, n % 3));
                let changes: Vec<_> = if round.is_multiple_of(2) {
                    keys.map(|key| put(key, "x")).collect()
                } else {
                    keys.map(removal).collect()
                };
                space.apply(batch(changes)).unwrap();
                round += 1;
            }
        });
        for reverse in [false, true].into_iter().cycle().take(30) {
            let mut found: Vec<Bytes> = space.scan(ALL, reverse).map(|item| item.unwrap().0).collect();
            if reverse {
                found.reverse();
            }
            assert!(found.is_sorted_by(|a, b| a < b), "out of order, reverse {reverse}");
            found.retain(|key| key.ends_with(b"-stable"));
            assert_eq!(found, stable, "reverse {reverse}");
        }
    });
}

/// Files shrink and grow in the midst of writes: sled's own threads once waited for one another then, for ever.
#[test]
fn writers_that_outrun_the_disk_are_held_up_and_not_stopped() {
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
    const WRITERS: u64 = 6;
    const ROUNDS: usize = 2_000;
    let fixture = Fixture::new(Kind::Disk(EngineKind::Sled));
    let (progress, rounds) = std::sync::mpsc::channel();
    for writer in 0..WRITERS {
        let space = fixture.engine().open_space(id(writer, 0)).unwrap();
        let progress = progress.clone();
        // Not in a scope, which would wait for them for ever, too.
        thread::spawn(move || {
            for length in [10, 5_000, 70_000, 300].into_iter().cycle().take(ROUNDS) {
                space.apply(batch(["a", "b"].map(|key| put(key, vec![1; length])))).unwrap();
                progress.send(()).unwrap();
            }
        });
    }
    drop(progress);
    let mut done = 0;
    loop {
        match rounds.recv_timeout(PATIENCE) {
            Ok(()) => done += 1,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("no write for {PATIENCE:?}"),
        }
    }
    assert_eq!(done, ROUNDS * usize::try_from(WRITERS).unwrap());
}

#[test]
fn a_directory_without_a_right_engine_marker_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(EngineKind::Sled, dir.path()).unwrap());
    let refused = |found: &[u8], kind| {
        std::fs::write(dir.path().join("ENGINE"), found).unwrap();
        open(kind, dir.path()).unwrap_err()
    };
    let other = refused(b"sled\n", EngineKind::Fjall);
    assert!(matches!(other, StoreError::Engine { .. }), "{other}");
    for damaged in [&b"sle\xe4\n"[..], b"sleD\n", b""] {
        let told = refused(damaged, EngineKind::Sled);
        assert!(matches!(told, StoreError::Damaged { .. }), "{told}");
        assert!(told.to_string().contains("ENGINE"), "{told}");
    }
}

#[test]
fn batches_are_split_after_so_many_bytes() {
    let changes = batch([put("a", "12345"), removal("b"), put("c", "1"), put("d", [0; 50]), put("e", "")]);
    let parts: Vec<usize> = changes.clone().split(6).map(|part| part.changes.len()).collect();
    assert_eq!(parts, [1, 3, 1]);
    assert_eq!(changes.clone().split(6).flat_map(|part| part.changes).collect::<Vec<_>>(), changes.changes);
    assert_eq!(batch([]).split(6).count(), 0);
}

#[test]
fn crash_of_memory_keeps_a_prefix_of_unflushed_batches() {
    let engine = MemoryEngine::new();
    let space = engine.open_space(id(1, 0)).unwrap();
    space.apply(batch([put("n", "flushed")])).unwrap();
    space.flush().unwrap();
    for n in ["1", "2", "3"] {
        space.apply(batch([put("n", n)])).unwrap();
    }
    engine.crash(2);
    assert!(space.get(b"n").is_err(), "handles from before are dead");
    assert_eq!(engine.open_space(id(1, 0)).unwrap().get(b"n").unwrap(), Some(bytes("2")));
    engine.crash(0);
    assert_eq!(
        engine.open_space(id(1, 0)).unwrap().get(b"n").unwrap(),
        Some(bytes("2")),
        "what survived is durable"
    );
}

#[test]
fn directory_of_another_engine_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(EngineKind::Sled, dir.path()).unwrap());
    drop(open(EngineKind::Sled, dir.path()).unwrap());
    let refused = open(EngineKind::Fjall, dir.path()).unwrap_err().to_string();
    assert!(refused.contains("\"sled\"") && refused.contains("\"fjall\""), "{refused}");

    let foreign = tempfile::tempdir().unwrap();
    std::fs::write(foreign.path().join("data"), "x").unwrap();
    assert!(open(EngineKind::Sled, foreign.path()).is_err());
}
