//! A buffered space holds what an unbuffered one would, and a crash leaves what whole batches give.

mod below;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;
use proptest::prelude::*;

use super::{ALL, Fixture, Kind, StopOnDrop, batch, bytes, content, noise, put, removal};
use crate::config::EngineKind;
use crate::store::{Batch, KeyRange};

type Map = BTreeMap<Bytes, Bytes>;

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
