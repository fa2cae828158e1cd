//! Torn tails are cut, damage before them is refused or stops the one replica it hit (I10).

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::*;

const SEGMENT_BYTES: u64 = 4096;

/// A log left by a crash: two replicas, records of one byte more each, in several batches.
struct Left {
    dir: tempfile::TempDir,
    segment: PathBuf,
    bytes: Vec<u8>,
    /// Ends of the batches, in order; the first is that of the segment's first batch.
    ends: Vec<usize>,
}

const RECORDS: u64 = 6;

fn leave(sealed: bool) -> Left {
    let source = tempfile::tempdir().unwrap();
    let (wal, _) = open(source.path(), SEGMENT_BYTES);
    let logs = [wal.group(ReplicaId(1)).unwrap(), wal.group(ReplicaId(2)).unwrap()];
    for index in 1..=RECORDS {
        append(&logs[(index % 2) as usize], index.div_ceil(2), 1, vec![b'p'; index as usize]);
    }
    wal.close();
    let dir = copy_dir(&wal, source.path());
    let segment = last_segment(dir.path());
    let mut bytes = fs::read(&segment).unwrap();
    let (_, header) = segment::Segment::open(dir.path(), 1).unwrap();
    let seed = frame::seed(header.salt, 1);
    let mut ends = Vec::new();
    let mut at = segment::HEADER;
    while let Some(batch) = frame::parse_batch(&bytes[at..], seed, at as u64) {
        at += frame::BATCH_HEADER + batch.len as usize;
        ends.push(at);
    }
    assert_eq!(ends.len() as u64, RECORDS + 2, "first batch, records, seal");
    if !sealed {
        let end = ends.pop().unwrap();
        bytes[end - frame::BATCH_HEADER..end].fill(0);
        fs::write(&segment, &bytes).unwrap();
    }
    Left { dir, segment, bytes, ends }
}

impl Left {
    fn reopen(&self, bytes: &[u8]) -> Result<(Vec<usize>, Recovered), WalError> {
        for entry in fs::read_dir(self.dir.path()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        fs::write(&self.segment, bytes).unwrap();
        let (wal, recovered) = Wal::open_with(self.dir.path(), options(SEGMENT_BYTES))?;
        let counts = [1, 2].map(|replica| match wal.group(ReplicaId(replica)) {
            Ok(log) => read_all(&log).len(),
            Err(WalError::Damaged(damage)) => {
                assert_eq!(damage.replica, Some(ReplicaId(replica)));
                usize::MAX
            }
            Err(error) => panic!("{error}"),
        });
        wal.close();
        Ok((counts.to_vec(), recovered))
    }

    /// Every offset that is used and some behind.
    fn offsets(&self) -> impl Iterator<Item = usize> {
        let used = self.ends[self.ends.len() - 1] + 40;
        (0..used).chain((used..self.bytes.len()).step_by(97))
    }

    /// How many records of each replica the first `batches` batches of records hold.
    fn counts(batches: u64) -> Vec<usize> {
        vec![(batches / 2) as usize, batches.div_ceil(2) as usize]
    }
}

fn damage_of(error: WalError) -> Damage {
    match error {
        WalError::Damaged(damage) => damage,
        other => panic!("{other}"),
    }
}

#[test]
fn any_tear_of_the_batch_in_flight_is_cut_and_nothing_else_lost() {
    let left = leave(false);
    let (start, end) = (left.ends[left.ends.len() - 2], left.ends[left.ends.len() - 1]);
    let whole = Left::counts(RECORDS);
    assert_eq!(left.reopen(&left.bytes).unwrap().0, whole);
    let torn = Left::counts(RECORDS - 1);
    for cut in start..end {
        // What reached the disk is the part before the cut, or, reordered, the part behind it.
        let (mut before, mut behind) = (left.bytes.clone(), left.bytes.clone());
        before[cut..end].fill(0);
        behind[start..=cut].fill(0);
        for bytes in [before, behind] {
            let (counts, recovered) = left.reopen(&bytes).unwrap();
            assert_eq!(counts, torn, "cut at {cut}");
            assert_eq!(recovered.damaged, []);
            if let Some(tail) = recovered.truncated_tail {
                assert_eq!(tail, (left.segment.clone(), start as u64));
            }
        }
    }
}

#[test]
fn a_flipped_byte_is_never_silent_before_the_last_batch() {
    for sealed in [false, true] {
        let left = leave(sealed);
        let last = left.ends[left.ends.len() - 2];
        for at in left.offsets() {
            let mut bytes = left.bytes.clone();
            bytes[at] ^= 0x20;
            match left.reopen(&bytes) {
                Err(error) => {
                    let damage = damage_of(error);
                    assert!(at < last, "{damage} for a flip at {at}");
                    assert_eq!(damage.path, left.segment);
                    assert!(damage.offset <= at as u64, "{damage} for a flip at {at}");
                }
                Ok((counts, recovered)) if recovered.damaged.is_empty() => {
                    assert!(at >= last, "flip at {at} of {:?} not seen", left.ends);
                    let lost = at < left.ends[left.ends.len() - 1] && !sealed;
                    assert_eq!(counts, Left::counts(RECORDS - u64::from(lost)), "flip at {at}");
                }
                Ok((counts, recovered)) => {
                    let damage = &recovered.damaged[0];
                    assert!(at < last && recovered.damaged.len() == 1, "{damage} for a flip at {at}");
                    assert_eq!(damage.path, left.segment);
                    assert!(damage.offset < at as u64 && at as u64 - damage.offset < 60, "{damage}, {at}");
                    // The other replica is served.
                    let hit = damage.replica.unwrap().get() as usize - 1;
                    assert_eq!(counts[hit], usize::MAX);
                    assert_eq!(counts[1 - hit], Left::counts(RECORDS)[1 - hit]);
                }
            }
        }
    }
}

#[test]
fn a_file_cut_off_within_its_records_is_refused() {
    let left = leave(true);
    let end = left.ends[left.ends.len() - 1];
    for cut in left.offsets() {
        match left.reopen(&left.bytes[..cut]) {
            Err(error) => {
                assert_eq!(damage_of(error).path, left.segment);
                assert!(cut < end + frame::BATCH_HEADER, "cut at {cut}");
            }
            Ok((counts, _)) => {
                assert!(cut >= end, "cut at {cut}");
                assert_eq!(counts, Left::counts(RECORDS));
            }
        }
    }
}

#[test]
fn a_cut_tail_does_not_come_back_after_more_is_written() {
    let left = leave(false);
    let mut bytes = left.bytes.clone();
    let end = left.ends[left.ends.len() - 1];
    bytes[end - 1] ^= 1;
    let (counts, recovered) = left.reopen(&bytes).unwrap();
    assert_eq!(counts, Left::counts(RECORDS - 1));
    assert!(recovered.truncated_tail.is_some());
    // The byte heals, as if the torn batch had been whole: it stays cut.
    let file = fs::File::options().write(true).open(&left.segment).unwrap();
    file.write_all_at(&left.bytes[end - 1..end], end as u64 - 1).unwrap();
    let (wal, recovered) = open(left.dir.path(), SEGMENT_BYTES);
    assert_eq!(recovered.records, RECORDS - 1);
    wal.close();
}

/// Several segments, all with live records.
fn several_segments() -> (tempfile::TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path(), SEGMENT_BYTES);
    let log = wal.group(ReplicaId(1)).unwrap();
    for index in 1..=60 {
        append(&log, index, 1, vec![b'x'; 200]);
    }
    wal.close();
    let mut paths: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| segment::sequence_of(path).is_some())
        .collect();
    paths.sort();
    assert!(paths.len() >= 4);
    (dir, paths)
}

#[test]
fn a_missing_or_foreign_segment_is_refused_by_name() {
    for victim in 0..3 {
        let (dir, paths) = several_segments();
        fs::remove_file(&paths[victim]).unwrap();
        let error = Wal::open_with(dir.path(), options(SEGMENT_BYTES)).unwrap_err();
        assert_eq!(damage_of(error).path, paths[victim]);
    }
    let (dir, paths) = several_segments();
    fs::copy(&paths[0], &paths[1]).unwrap();
    let error = Wal::open_with(dir.path(), options(SEGMENT_BYTES)).unwrap_err();
    assert_eq!(damage_of(error).path, paths[1]);
}

#[test]
fn the_end_of_an_earlier_segment_is_no_tail() {
    let (dir, paths) = several_segments();
    let mut bytes = fs::read(&paths[1]).unwrap();
    // The last batch vanishes without a trace; only the next segment knows that it was there.
    let (_, header) = segment::Segment::open(dir.path(), segment::sequence_of(&paths[2]).unwrap()).unwrap();
    let end = header.previous_end as usize;
    bytes[end - 272..].fill(0);
    fs::write(&paths[1], &bytes).unwrap();
    let damage = damage_of(Wal::open_with(dir.path(), options(SEGMENT_BYTES)).unwrap_err());
    assert_eq!((damage.path, damage.offset), (paths[1].clone(), end as u64 - 272));
}

#[test]
fn damage_of_one_replica_is_remembered_until_it_is_removed() {
    let left = leave(true);
    let mut bytes = left.bytes.clone();
    // The last payload byte of the first batch of records: replica 2.
    bytes[left.ends[1] - 1] ^= 1;
    let (counts, _) = left.reopen(&bytes).unwrap();
    assert_eq!(counts, [3, usize::MAX]);
    // Much is written and freed: the damaged segment is long gone, the refusal stays.
    let (wal, recovered) = open(left.dir.path(), SEGMENT_BYTES);
    assert_eq!(recovered.damaged.len(), 1);
    let log = wal.group(ReplicaId(1)).unwrap();
    for index in 4..=100 {
        append(&log, index, 1, vec![0; 200]);
        wait(|done| log.purge((1, index), done)).unwrap();
    }
    wal.close();
    assert!(!left.segment.exists());
    let (wal, recovered) = open(left.dir.path(), SEGMENT_BYTES);
    assert_eq!(recovered.damaged[0].path, left.segment);
    assert_eq!(wal.groups(), [ReplicaId(1), ReplicaId(2)]);
    wait(|done| wal.remove_group(ReplicaId(2), done)).unwrap();
    wal.close();
    let (wal, recovered) = open(left.dir.path(), SEGMENT_BYTES);
    assert_eq!(recovered.damaged, []);
    assert_eq!(wal.groups(), [ReplicaId(1)]);
    wal.close();
}

#[test]
fn damage_found_while_running_stops_the_replica_and_frees_its_space() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = Wal::open_with(dir.path(), Options { cache_bytes: 0, ..options(SEGMENT_BYTES) }).unwrap();
    let (hit, busy) = (wal.group(ReplicaId(1)).unwrap(), wal.group(ReplicaId(2)).unwrap());
    append(&hit, 1, 1, "to be damaged");
    let path = last_segment(dir.path());
    let bytes = fs::read(&path).unwrap();
    let at = bytes.windows(5).position(|window| window == b"to be").unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"X", at as u64).unwrap();
    // Until the writer has let go of what it has just written, that is read.
    let give_up = Instant::now() + Duration::from_secs(30);
    while hit.read(1..2, 100).is_ok() {
        assert!(Instant::now() < give_up, "what is on the disk is not read");
        std::thread::yield_now();
    }
    assert!(matches!(hit.read(1..2, 100), Err(WalError::Damaged(_))));
    for index in 1..=200 {
        append(&busy, index, 1, vec![0; 200]);
        wait(|done| busy.purge((1, index), done)).unwrap();
    }
    assert!(!path.exists(), "still pinned");
    let refused = wait(|done| hit.append(vec![record(2, 1, "more")], done));
    assert!(matches!(refused, Err(WalError::Damaged(_))));
    wal.close();
    let (wal, recovered) = open(dir.path(), SEGMENT_BYTES);
    assert_eq!((recovered.damaged[0].replica, &recovered.damaged[0].path), (Some(ReplicaId(1)), &path));
    wal.close();
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 64, ..Default::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600),
        at in 0usize..900,
    ) {
        let left = leave(true);
        let mut damaged = left.bytes.clone();
        damaged[at..at + bytes.len()].copy_from_slice(&bytes);
        if let Err(error) = left.reopen(&damaged) {
            assert_eq!(damage_of(error).path, left.segment);
        }
    }
}
