//! Log recovery (I10): whatever the files hold, the log opens or names the file and the place that it cannot believe.
//!
//! | first byte, modulo 4 | the rest is |
//! |---|---|
//! | 0, 1 | a script of what a node logs (`history`), and one fault of the disk; what must be found afterwards is known |
//! | 2 | a script of frames that no node writes, under checksums that hold (`wild`) |
//! | 3 | the bytes of a segment file |

mod history;
mod image;
mod wild;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use borough_node::config::LogConfig;
use borough_node::wal::{Damage, GroupLog, Recovered, Wal, WalError};
use borough_proto::ReplicaId;
use bytes::Bytes;

use crate::input::Input;
use history::{History, Model, Replica};
use image::{CAPACITY, HEADER, Segment};

/// # Panics
/// When recovery breaks a promise.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    match input.byte() % 4 {
        0 | 1 => faulty(&mut input),
        2 => {
            let dir = directory();
            write(dir.path(), &wild::read(&mut input));
            opens_or_refuses(dir.path());
        }
        _ => {
            let dir = directory();
            let path = dir.path().join("0000000000000001.seg");
            fs::write(path, input.rest()).unwrap_or_else(|error| panic!("write a segment: {error}"));
            opens_or_refuses(dir.path());
        }
    }
}

/// In memory where there is such a place: a run makes some twenty files durable.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::tempdir_in(base).unwrap_or_else(|error| panic!("make a directory: {error}"))
}

fn write(dir: &Path, segments: &[Segment]) {
    for segment in segments {
        let written = fs::write(segment.path(dir), &segment.bytes);
        written.unwrap_or_else(|error| panic!("write a segment: {error}"));
    }
}

fn open(dir: &Path) -> Result<(Wal, Recovered), WalError> {
    let config = LogConfig { segment_bytes: CAPACITY, cache_bytes: 1 << 10, ..LogConfig::default() };
    Wal::open(dir, &config)
}

/// A replica that is served, or where it is damaged.
type Held = BTreeMap<u64, Result<Replica, Damage>>;

fn records(log: &GroupLog) -> BTreeMap<u64, (u64, Vec<u8>)> {
    let (Some(mut next), Some((_, last))) = (log.first_index(), log.last()) else { return BTreeMap::new() };
    let mut found = BTreeMap::new();
    while next <= last {
        let part =
            log.read(next..last + 1, 300).unwrap_or_else(|error| panic!("read record {next}: {error}"));
        assert!(!part.is_empty(), "no record {next}, the last is {last}");
        for record in part {
            assert_eq!(record.index, next, "records follow each other");
            next += 1;
            found.insert(record.index, (record.term, record.payload.to_vec()));
        }
    }
    found
}

fn held(wal: &Wal) -> Held {
    let one = |replica: ReplicaId| match wal.group(replica) {
        Ok(log) => Ok(Replica { state: log.state(), records: records(&log) }),
        Err(WalError::Damaged(damage)) => {
            assert_eq!(damage.replica, Some(replica), "{damage}");
            Err(damage)
        }
        Err(error) => panic!("{replica}: {error}"),
    };
    wal.groups().into_iter().map(|replica| (replica.get(), one(replica))).collect()
}

/// What is served, and what is not; how damage is told may be shortened when it is kept.
fn served(held: &Held) -> Vec<(u64, Option<&Replica>)> {
    held.iter().map(|(&replica, held)| (replica, held.as_ref().ok())).collect()
}

/// What any error must be.
fn damage_of(error: WalError, dir: &Path) -> Damage {
    let WalError::Damaged(damage) = error else { panic!("not a word about damage: {error}") };
    assert_eq!(damage.replica, None, "{damage}");
    assert!(damage.path.starts_with(dir), "{damage}");
    let bytes = fs::metadata(&damage.path).map_or(0, |file| file.len());
    assert!(damage.offset <= bytes, "{damage}, the file has {bytes} bytes");
    damage
}

/// Opens the log twice: what was found once is found again, and nothing is cut any more.
fn open_twice(dir: &Path) -> Result<(Held, Recovered), WalError> {
    let (wal, recovered) = open(dir)?;
    let first = held(&wal);
    wal.close();
    let damaged = first.values().filter(|held| held.is_err()).count();
    assert_eq!(recovered.damaged.len(), damaged, "{recovered:?}");
    let (wal, again) = open(dir).unwrap_or_else(|error| panic!("it opened once: {error}"));
    assert_eq!((&again.truncated_tail, again.records), (&None, recovered.records));
    assert_eq!(served(&held(&wal)), served(&first), "found another state the second time");
    wal.close();
    Ok((first, recovered))
}

fn opens_or_refuses(dir: &Path) {
    if let Err(error) = open_twice(dir) {
        damage_of(error, dir);
    }
}

/// A log that a node wrote, one fault of the disk, and what must be left of it.
fn faulty(input: &mut Input<'_>) {
    let fault = input.byte() % 6;
    let (place, amount) = (input.number(), input.byte());
    let history = History::read(input);
    let dir = directory();
    write(dir.path(), &history.segments);
    // The files are as long as they were made; only a fault makes one shorter.
    for segment in &history.segments {
        resize(&segment.path(dir.path()), CAPACITY.max(segment.end() as u64));
    }
    let (Some(last), Some(now)) = (history.segments.last(), history.after.last()) else { return };
    match fault {
        0 => is_whole(dir.path(), now),
        1 | 2 => torn(dir.path(), &history, last, (place, fault == 1, amount)),
        3 | 4 => flipped(dir.path(), &history, place, amount.max(1)),
        _ => shortened(dir.path(), &history, place),
    }
}

fn resize(path: &Path, bytes: u64) {
    let done = fs::File::options().write(true).open(path).and_then(|file| file.set_len(bytes));
    done.unwrap_or_else(|error| panic!("resize {}: {error}", path.display()));
}

/// Changes a file; tells whether that made a difference.
fn change(path: &Path, change: impl FnOnce(&mut [u8])) -> bool {
    let before = fs::read(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    let mut after = before.clone();
    change(&mut after);
    fs::write(path, &after).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    before != after
}

/// Whether a replica is served as the model says.
fn is_as(found: &Held, model: &Model) -> bool {
    let served = |(replica, held): (&u64, &Result<Replica, Damage>)| held.as_ref().ok() == model.get(replica);
    found.len() == model.len() && found.iter().all(served)
}

fn is_whole(dir: &Path, model: &Model) {
    let (found, recovered) = open_twice(dir).unwrap_or_else(|error| panic!("a whole log: {error}"));
    assert!(is_as(&found, model), "found {found:?}, wrote {model:?}");
    assert_eq!((recovered.truncated_tail, recovered.damaged), (None, Vec::new()));
    goes_on(dir, model);
}

/// What a log that was recovered takes up is there the next time.
fn goes_on(dir: &Path, model: &Model) {
    let Some((&replica, before)) = model.iter().next() else { return };
    let (wal, _) = open(dir).unwrap_or_else(|error| panic!("{error}"));
    let log = wal.group(ReplicaId(replica)).unwrap_or_else(|error| panic!("{error}"));
    let next = before.state.purged.map_or(1, |(_, purged)| purged + 1);
    let index = log.last().map_or(next, |(_, last)| last + 1);
    let record = borough_node::wal::Record { index, term: 9, payload: Bytes::from_static(b"more") };
    log.append(vec![record], Box::new(|done| assert!(done.is_ok(), "{done:?}")));
    wal.close();
    drop((wal, log));
    let (wal, _) = open(dir).unwrap_or_else(|error| panic!("{error}"));
    let mut wanted = before.clone();
    wanted.records.insert(index, (9, b"more".to_vec()));
    assert_eq!(held(&wal).get(&replica), Some(&Ok(wanted)));
    wal.close();
}

/// The last batch was in flight: a part of it is on disk, before the place or behind it, or something else is.
fn torn(dir: &Path, history: &History, last: &Segment, (place, before, amount): (u64, bool, u8)) {
    let (Some(&start), [.., earlier, now]) = (last.batches.last(), history.after.as_slice()) else { return };
    if last.batches.len() < 2 {
        return;
    }
    let end = last.end();
    let at = start + usize::try_from(place).unwrap_or(usize::MAX) % (end - start);
    let changed = change(&last.path(dir), |bytes| match (before, amount) {
        (true, _) => fill(bytes, at, end),
        (false, 0) => fill(bytes, start, at + 1),
        (false, flip) => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= flip),
    });
    let model = if changed { earlier } else { now };
    let (found, recovered) = open_twice(dir).unwrap_or_else(|error| panic!("a torn tail: {error}"));
    assert!(is_as(&found, model), "found {found:?}, durable was {model:?}");
    assert_eq!(recovered.damaged, []);
    if let Some(tail) = recovered.truncated_tail {
        assert_eq!(tail, (last.path(dir), start as u64));
    }
    goes_on(dir, model);
}

fn fill(bytes: &mut [u8], from: usize, to: usize) {
    bytes.iter_mut().take(to).skip(from).for_each(|byte| *byte = 0);
}

/// A byte changed that was durable: nobody is served anything but what was written, whoever is served at all.
fn flipped(dir: &Path, history: &History, place: u64, flip: u8) {
    let (Some(last), Some(model)) = (history.segments.last(), history.after.last()) else { return };
    let in_flight = last.batches.last().filter(|_| last.batches.len() > 1);
    let durable = |segment: &Segment| {
        if segment.sequence == last.sequence {
            in_flight.copied().unwrap_or(last.end())
        } else {
            segment.end()
        }
    };
    let all: usize = history.segments.iter().map(durable).sum();
    let mut at = usize::try_from(place).unwrap_or(usize::MAX) % all;
    for segment in &history.segments {
        if at >= durable(segment) {
            at -= durable(segment);
            continue;
        }
        let path = segment.path(dir);
        change(&path, |bytes| bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= flip));
        match open_twice(dir) {
            Err(error) => {
                let damage = damage_of(error, dir);
                assert!(damage.path == path && damage.offset <= at as u64, "{damage}, flipped {at}");
            }
            Ok((found, recovered)) => {
                let damaged = |replica: &u64| matches!(found.get(replica), Some(Err(_)));
                for (replica, held) in &found {
                    let good = damaged(replica) || held.as_ref().ok() == model.get(replica);
                    assert!(good, "{replica} is {held:?}, was {:?}", model.get(replica));
                }
                let missing = model.keys().find(|replica| !found.contains_key(replica));
                assert_eq!(missing, None, "gone without a word: {recovered:?}");
                for damage in &recovered.damaged {
                    assert!(damage.path == path && damage.offset <= at as u64, "{damage}, flipped {at}");
                }
            }
        }
        return;
    }
}

/// A file is shorter than it was.
fn shortened(dir: &Path, history: &History, place: u64) {
    let (count, Some(model)) = (history.segments.len() as u64, history.after.last()) else { return };
    let Some(segment) = history.segments.get(usize::try_from(place % count).unwrap_or(0)) else {
        return;
    };
    let bytes = place / count % CAPACITY;
    let path = segment.path(dir);
    resize(&path, bytes);
    match open_twice(dir) {
        Err(error) => assert_eq!(damage_of(error, dir).path, path),
        Ok((found, recovered)) => {
            assert!(bytes >= segment.end() as u64, "{bytes} of {} bytes: {recovered:?}", segment.end());
            assert!(is_as(&found, model), "found {found:?}, wrote {model:?}");
        }
    }
    const { assert!(HEADER as u64 <= CAPACITY) };
}
