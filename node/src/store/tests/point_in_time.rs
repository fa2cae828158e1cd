//! A point-in-time scan equals a copy of the state at its beginning, whatever is written meanwhile.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;
use proptest::prelude::*;

use super::{Fixture, Kind, StopOnDrop, batch, bytes, content, noise, put, removal};
use crate::config::EngineKind;
use crate::store::{Batch, PointInTime, Space, StoreError, VersionedSpace};

type Map = BTreeMap<Bytes, Bytes>;

fn read_all(scan: &mut PointInTime, chunk_bytes: usize) -> Result<Map, StoreError> {
    let mut found = Map::new();
    while let Some(chunk) = scan.next_chunk(chunk_bytes)? {
        for (key, value) in chunk {
            assert!(found.last_key_value().is_none_or(|(last, _)| *last < key), "out of order");
            found.insert(key, value);
        }
    }
    Ok(found)
}

#[derive(Debug, Clone)]
enum Step {
    Apply(Vec<(u8, Option<u16>)>),
    Begin,
    Read { scan: usize, chunk_bytes: usize },
    Acknowledge { scan: usize },
    GoBack { scan: usize, to: usize },
    Drain,
    Drop { scan: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let change = (0..40_u8, proptest::option::of(0..30_u16));
    prop_oneof![
        6 => proptest::collection::vec(change, 0..8).prop_map(Step::Apply),
        1 => Just(Step::Begin),
        4 => (0..3_usize, 1..200_usize).prop_map(|(scan, chunk_bytes)| Step::Read { scan, chunk_bytes }),
        1 => (0..3_usize).prop_map(|scan| Step::Acknowledge { scan }),
        1 => (0..3_usize, 0..40_usize).prop_map(|(scan, to)| Step::GoBack { scan, to }),
        1 => Just(Step::Drain),
        1 => (0..3_usize).prop_map(|scan| Step::Drop { scan }),
    ]
}

struct Reader {
    scan: PointInTime,
    expected: Map,
    read: Vec<(Bytes, Bytes)>,
    acknowledged: usize,
}

impl Reader {
    fn finish(mut self) {
        while let Some(chunk) = self.scan.next_chunk(64).unwrap() {
            self.read.extend(chunk);
        }
        assert_eq!(self.read, self.expected.into_iter().collect::<Vec<_>>());
    }
}

fn matches_a_copy(fixture: &Fixture, steps: Vec<Step>) {
    let space = VersionedSpace::new(fixture.space());
    let mut model = content(&space).unwrap();
    let mut readers: Vec<Reader> = Vec::new();
    for step in steps {
        match step {
            Step::Apply(changes) => {
                let mut changed = Batch::default();
                for (key, value) in changes {
                    let key = bytes(format!("{key:02}"));
                    // Now and then one that sled cuts into chunks.
                    let value =
                        value.map(|n| noise(u64::from(n), if n == 0 { 9_000 } else { usize::from(n) }));
                    match &value {
                        Some(value) => model.insert(key.clone(), value.clone()),
                        None => model.remove(&key),
                    };
                    changed.changes.push((key, value));
                }
                space.apply(changed).unwrap();
            }
            Step::Begin if readers.len() < 3 => readers.push(Reader {
                scan: space.begin_scan(1 << 20),
                expected: model.clone(),
                read: Vec::new(),
                acknowledged: 0,
            }),
            Step::Begin => {}
            Step::Read { scan, chunk_bytes } => {
                if let Some(reader) = readers.get_mut(scan) {
                    let chunk = reader.scan.next_chunk(chunk_bytes).unwrap();
                    reader.read.extend(chunk.unwrap_or_default());
                }
            }
            Step::Acknowledge { scan } => {
                if let Some(reader) = readers.get_mut(scan)
                    && let Some((last, _)) = reader.read.last()
                {
                    reader.scan.acknowledge(last.clone());
                    reader.acknowledged = reader.read.len();
                }
            }
            Step::GoBack { scan, to } => {
                if let Some(reader) = readers.get_mut(scan) {
                    let to = to.clamp(reader.acknowledged, reader.read.len().max(reader.acknowledged));
                    reader.read.truncate(to);
                    reader.scan.resume_from(reader.read.last().map(|(key, _)| key.clone())).unwrap();
                }
            }
            Step::Drain => space.drain().unwrap(),
            Step::Drop { scan } => {
                if scan < readers.len() {
                    readers.remove(scan).finish();
                }
            }
        }
    }
    readers.into_iter().for_each(Reader::finish);
    assert_eq!(content(&space).unwrap(), model);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]
    #[test]
    fn scan_of_memory_equals_a_copy(steps in proptest::collection::vec(step(), 1..80)) {
        matches_a_copy(&Fixture::new(Kind::Memory), steps);
    }

    #[test]
    fn scan_of_a_buffer_equals_a_copy(steps in proptest::collection::vec(step(), 1..80)) {
        matches_a_copy(&Fixture::new(Kind::BufferedMemory), steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]
    #[test]
    fn scan_of_sled_equals_a_copy(steps in proptest::collection::vec(step(), 1..80)) {
        matches_a_copy(&Fixture::new(Kind::Disk(EngineKind::Sled)), steps);
    }
}

fn equals_a_copy_beside_a_writer(kind: Kind) {
    let fixture = Fixture::new(kind);
    let space = VersionedSpace::new(fixture.space());
    let key = |n: u64| format!("{n:05}");
    space.apply(batch((0..2_000).map(|n| put(key(n * 2), noise(n, 40))))).unwrap();
    for round in 0..3_u64 {
        let expected = content(&space).unwrap();
        let mut scan = space.begin_scan(64 << 20);
        let stop = AtomicBool::new(false);
        let found = thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            scope.spawn(|| {
                let mut state = round * 7_919 + 1;
                while !stop.load(Ordering::Relaxed) {
                    let changes: Vec<_> = (0..20)
                        .map(|_| {
                            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                            let n = (state >> 33) % 4_000;
                            if state >> 63 == 0 { put(key(n), noise(state, 50)) } else { removal(key(n)) }
                        })
                        .collect();
                    space.apply(batch(changes)).unwrap();
                }
            });
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    space.drain().unwrap();
                }
            });
            read_all(&mut scan, 2_000)
        });
        assert_eq!(found.unwrap(), expected, "{kind:?} round {round}");
    }
}

#[test]
fn scan_equals_a_copy_beside_a_writer() {
    equals_a_copy_beside_a_writer(Kind::Memory);
    equals_a_copy_beside_a_writer(Kind::Disk(EngineKind::Sled));
    equals_a_copy_beside_a_writer(Kind::Disk(EngineKind::Fjall));
    equals_a_copy_beside_a_writer(Kind::BufferedMemory);
    equals_a_copy_beside_a_writer(Kind::BufferedDisk(EngineKind::Sled));
    equals_a_copy_beside_a_writer(Kind::BufferedDisk(EngineKind::Fjall));
}

fn hundred() -> VersionedSpace {
    let space = VersionedSpace::new(Fixture::new(Kind::Memory).space());
    space.apply(batch((0..100).map(|n| put(format!("{n:02}"), noise(n, 100))))).unwrap();
    space
}

#[test]
fn outgrown_scan_ends_and_writes_go_on() {
    let space = hundred();
    let (mut small, mut large) = (space.begin_scan(1_000), space.begin_scan(1 << 20));
    let expected = content(&space).unwrap();
    small.next_chunk(1).unwrap();
    space.apply(batch((0..100).map(|n| put(format!("{n:02}"), "new")))).unwrap();
    assert!(matches!(small.next_chunk(1), Err(StoreError::ScanOverrun { limit_bytes: 1_000 })));
    assert!(matches!(small.get(b"00"), Err(StoreError::ScanOverrun { .. })));
    assert_eq!(read_all(&mut large, 500).unwrap(), expected);
    assert_eq!(space.get(b"99").unwrap(), Some(bytes("new")));
}

#[test]
fn acknowledged_keys_take_no_room_and_are_not_given_again() {
    let space = hundred();
    let mut scan = space.begin_scan(2_000);
    assert_eq!(scan.next_chunk(50 * 102).unwrap().unwrap().len(), 50);
    scan.acknowledge(bytes("99"));
    // Half of the keys many times over would not fit, were they remembered.
    for _ in 0..10 {
        space.apply(batch((0..50).map(|n| put(format!("{n:02}"), "new")))).unwrap();
    }
    assert!(scan.resume_from(Some(bytes("10"))).is_err());
    assert!(scan.resume_from(None).is_err());
    assert!(scan.get(b"10").is_err());
    space.apply(batch([removal("70")])).unwrap();
    assert_eq!(scan.get(b"70").unwrap(), Some(noise(70, 100)));
    scan.resume_from(Some(bytes("49"))).unwrap();
    let rest = read_all(&mut scan, 300).unwrap();
    assert_eq!(rest.len(), 50, "acknowledging what was not read gives nothing up");
    assert_eq!(rest.get(&b"70"[..]), Some(&noise(70, 100)));
}
