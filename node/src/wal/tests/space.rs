//! Rotation, freeing, recycling and copying forward.

use super::*;

const SEGMENT_BYTES: u64 = 8192;

#[test]
fn disk_is_bounded_though_an_idle_replica_pins_the_oldest_segment() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path(), SEGMENT_BYTES);
    let (idle, busy) = (wal.group(ReplicaId(1)).unwrap(), wal.group(ReplicaId(2)).unwrap());
    let vote = VoteRecord { term: 3, voted_for: 1, committed: true };
    wait(|done| idle.save_vote(vote, done)).unwrap();
    for index in 1..=3 {
        append(&idle, index, 3, format!("idle {index}"));
    }
    for index in 1..=2000 {
        append(&busy, index, 1, vec![index as u8; 200]);
        if index % 10 == 0 {
            wait(|done| busy.purge((1, index - 5), done)).unwrap();
        }
        let stats = wal.stats();
        assert!(stats.disk_bytes <= 10 * SEGMENT_BYTES, "{stats:?} at {index}");
    }
    assert!(wal.stats().records_moved >= 3);
    let files: u64 =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(files <= 10 * SEGMENT_BYTES, "{files}");
    let expected: Vec<_> = (1..=3).map(|index| record(index, 3, format!("idle {index}"))).collect();
    assert_eq!(read_all(&idle), expected);
    let crashed = copy_dir(&wal, dir.path());
    wal.close();
    let (wal, recovered) = open(crashed.path(), SEGMENT_BYTES);
    assert_eq!(recovered.damaged, []);
    let idle = wal.group(ReplicaId(1)).unwrap();
    assert_eq!(idle.state().vote, Some(vote));
    assert_eq!(read_all(&idle), expected);
    assert_eq!(wal.group(ReplicaId(2)).unwrap().last(), Some((1, 2000)));
    wal.close();
}

#[test]
fn disk_is_bounded_by_live_data_when_it_is_most_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path(), SEGMENT_BYTES);
    let (slow, busy) = (wal.group(ReplicaId(1)).unwrap(), wal.group(ReplicaId(2)).unwrap());
    for index in 1..=100 {
        append(&slow, index, 1, vec![1; 400]);
    }
    let live = slow.live_bytes();
    for index in 1..=1000 {
        append(&busy, index, 1, vec![2; 400]);
        wait(|done| busy.purge((1, index), done)).unwrap();
        assert!(wal.disk_bytes() <= 3 * live + 10 * SEGMENT_BYTES, "{:?}", wal.stats());
    }
    assert_eq!(read_all(&slow).len(), 100);
    wait(|done| slow.purge((1, 100), done)).unwrap();
    for index in 1001..=1200 {
        append(&busy, index, 1, vec![2; 400]);
        wait(|done| busy.purge((1, index), done)).unwrap();
    }
    assert!(wal.disk_bytes() <= 8 * SEGMENT_BYTES, "{:?}", wal.stats());
    wal.close();
}

/// A copy that was not taken in the middle of a batch: those of the writer's own chores, which nobody waits for, are under way
/// at any time. What stale frames cut would be cut in every copy.
fn copy_without_torn_tail(wal: &Wal, dir: &Path) -> (Wal, tempfile::TempDir) {
    let mut cut = None;
    for _ in 0..100 {
        let crashed = copy_dir(wal, dir);
        let (copy, recovered) = open(crashed.path(), SEGMENT_BYTES);
        match recovered.truncated_tail {
            None => return (copy, crashed),
            tail => cut = tail,
        }
        copy.close();
    }
    panic!("the tail is cut in every copy: {cut:?}");
}

#[test]
fn a_recycled_segment_brings_nothing_back() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path(), SEGMENT_BYTES);
    let old = wal.group(ReplicaId(1)).unwrap();
    for index in 1..=200 {
        append(&old, index, 1, "a record that is to be forgotten");
    }
    wait(|done| wal.remove_group(ReplicaId(1), done)).unwrap();
    let new = wal.group(ReplicaId(2)).unwrap();
    // Same frame sizes, so stale frames would stand exactly where new ones end.
    for index in 1..=300 {
        append(&new, index, 1, "a record that is to be forgotten");
        if index % 50 == 0 {
            wait(|done| new.purge((1, index), done)).unwrap();
        }
        if index % 7 == 0 {
            let (copy, _crashed) = copy_without_torn_tail(&wal, dir.path());
            assert_eq!(copy.groups(), [ReplicaId(2)], "at {index}");
            let records = read_all(&copy.group(ReplicaId(2)).unwrap());
            assert_eq!(records.len() as u64, index % 50, "at {index}");
            copy.close();
        }
    }
    wal.close();
}

#[test]
fn a_log_of_nothing_keeps_no_files_for_more() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path(), SEGMENT_BYTES);
    let files = || std::fs::read_dir(dir.path()).unwrap().count() as u64;
    for round in 1..=2 {
        let group = wal.group(ReplicaId(round)).unwrap();
        for index in 1..=200 {
            append(&group, index, 1, vec![1; 200]);
            wait(|done| group.purge((1, index), done)).unwrap();
        }
        assert!(wal.stats().disk_bytes >= 3 * SEGMENT_BYTES, "nothing is kept for reuse: {:?}", wal.stats());
        wait(|done| wal.remove_group(ReplicaId(round), done)).unwrap();
        // The chores that follow free what is left; what was ordered may come later still.
        let begin = std::time::Instant::now();
        while wal.stats().disk_bytes > 2 * SEGMENT_BYTES || files() > 2 {
            assert!(begin.elapsed() < Duration::from_secs(30), "{:?}, {} files", wal.stats(), files());
            std::thread::yield_now();
        }
    }
    wal.close();
}

#[test]
fn truncated_records_stay_truncated_after_their_segment_is_freed() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path(), SEGMENT_BYTES);
    let (log, busy) = (wal.group(ReplicaId(1)).unwrap(), wal.group(ReplicaId(2)).unwrap());
    for index in 1..=6 {
        append(&log, index, 1, "first");
    }
    wait(|done| log.truncate_after(Some(3), done)).unwrap();
    append(&log, 4, 2, "second");
    for index in 1..=400 {
        append(&busy, index, 1, vec![0; 200]);
        wait(|done| busy.purge((1, index), done)).unwrap();
        if index % 20 == 0 {
            let crashed = copy_dir(&wal, dir.path());
            let (copy, _) = open(crashed.path(), SEGMENT_BYTES);
            let found: Vec<_> = read_all(&copy.group(ReplicaId(1)).unwrap())
                .iter()
                .map(|record| (record.index, record.term))
                .collect();
            assert_eq!(found, [(1, 1), (2, 1), (3, 1), (4, 2)], "at {index}");
            copy.close();
        }
    }
    assert!(wal.stats().records_moved >= 4);
    wal.close();
}

#[test]
fn a_record_larger_than_a_segment_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = Wal::open_with(dir.path(), Options { cache_bytes: 0, ..options(SEGMENT_BYTES) }).unwrap();
    let log = wal.group(ReplicaId(1)).unwrap();
    for index in 1..=4 {
        append(&log, index, 1, vec![index as u8; 50_000]);
    }
    assert_eq!(read_all(&log).iter().map(|record| record.payload.len()).sum::<usize>(), 200_000);
    wal.close();
    let (wal, recovered) = open(dir.path(), SEGMENT_BYTES);
    assert_eq!((recovered.records, recovered.damaged.len()), (4, 0));
    let log = wal.group(ReplicaId(1)).unwrap();
    wait(|done| log.purge((1, 4), done)).unwrap();
    append(&log, 5, 1, "small");
    wal.close();
    let (wal, _) = open(dir.path(), SEGMENT_BYTES);
    assert!(wal.disk_bytes() <= 8 * SEGMENT_BYTES, "{:?}", wal.stats());
    wal.close();
}

#[test]
fn readers_see_right_records_while_segments_are_freed_under_them() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = Wal::open_with(dir.path(), Options { cache_bytes: 0, ..options(SEGMENT_BYTES) }).unwrap();
    let log = wal.group(ReplicaId(1)).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop_anyhow = crate::store::StopOnDrop(&stop);
        let reader = scope.spawn(|| {
            let mut seen = 0u64;
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                for record in log.read(0..u64::MAX, 4096).unwrap() {
                    assert_eq!(record.payload, format!("{:0100}", record.index).into_bytes());
                    seen += 1;
                }
            }
            seen
        });
        for index in 1..=3000u64 {
            append(&log, index, 1, format!("{index:0100}"));
            if index > 20 {
                log.purge((1, index - 20), Box::new(|result| result.unwrap()));
            }
        }
        drop(stop_anyhow);
        assert!(reader.join().unwrap() > 0);
    });
    wal.close();
}

#[test]
fn the_cache_keeps_within_its_bound_and_prefers_the_recent() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = Wal::open_with(dir.path(), Options { cache_bytes: 10_000, ..options(1 << 20) }).unwrap();
    let log = wal.group(ReplicaId(1)).unwrap();
    for index in 1..=500 {
        append(&log, index, 1, vec![1; 136]);
    }
    // The answer comes before the eviction; the answer to something later comes after it.
    wait(|done| log.truncate_after(Some(500), done)).unwrap();
    let segment = last_segment(dir.path());
    std::fs::write(&segment, vec![0; 1 << 20]).unwrap();
    assert_eq!(log.read(451..501, u64::MAX).unwrap().len(), 50, "the last 10,000 bytes are in memory");
    assert!(matches!(log.read(450..501, u64::MAX), Err(WalError::Damaged(_))), "the rest is not");
    wal.close();
}

#[test]
fn what_an_earlier_use_of_the_file_left_at_the_end_is_no_torn_batch() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path(), SEGMENT_BYTES);
    let log = wal.group(ReplicaId(1)).unwrap();
    for index in 1..=200 {
        append(&log, index, 1, "a record");
    }
    wal.close();
    let last = last_segment(dir.path());
    let sequence = segment::sequence_of(&last).unwrap();
    assert!(sequence > 2, "{sequence}");
    let (salt, bytes) = (options(SEGMENT_BYTES).salt.unwrap(), std::fs::read(&last).unwrap());
    let mut end = segment::HEADER;
    while let Some(batch) = frame::parse_batch(&bytes[end..], frame::seed(salt, sequence), end as u64) {
        end += frame::BATCH_HEADER + batch.len as usize;
    }
    for (seed, torn) in [(frame::seed(salt, sequence - 1), false), (frame::seed(salt + 1, sequence), true)] {
        let copy = copy_files(dir.path()).unwrap();
        let mut header = Vec::new();
        frame::begin_batch(&mut header);
        frame::finish_batch(&mut header, 0, seed, 0, end as u64, 1);
        let mut bytes = bytes.clone();
        bytes[end..end + header.len()].copy_from_slice(&header);
        std::fs::write(copy.path().join(last.file_name().unwrap()), bytes).unwrap();
        let (wal, recovered) = open(copy.path(), SEGMENT_BYTES);
        assert_eq!(recovered.truncated_tail.is_some(), torn, "{recovered:?}");
        assert_eq!(read_all(&wal.group(ReplicaId(1)).unwrap()).len(), 200);
        wal.close();
    }
}
