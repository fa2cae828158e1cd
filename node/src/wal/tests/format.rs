//! The bytes on disk: a change of them must be meant.

use super::*;

/// A segment with every kind of frame but `Moved`, as hexadecimal lines of 32 bytes.
const GOLDEN: &str = include_str!("golden_segment.hex");

fn hex(bytes: &[u8]) -> String {
    bytes
        .chunks(32)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n")
        .collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}

fn write_history(dir: &Path) {
    let (wal, _) = open(dir, 4096);
    let log = wal.group(ReplicaId(0x0102)).unwrap();
    wait(|done| log.save_vote(VoteRecord { term: 5, voted_for: 0x0102, committed: true }, done)).unwrap();
    wait(|done| log.append(vec![record(1, 5, "one"), record(2, 5, "two"), record(3, 5, "three")], done))
        .unwrap();
    log.save_committed((5, 2));
    wait(|done| log.truncate_after(Some(2), done)).unwrap();
    wait(|done| log.purge((5, 1), done)).unwrap();
    wait(|done| log.set_generation(9, b"blob".to_vec(), None, done)).unwrap();
    append(&wal.group(ReplicaId(3)).unwrap(), 1, 1, "gone");
    wait(|done| wal.remove_group(ReplicaId(3), done)).unwrap();
    wal.close();
}

#[test]
fn golden_segment() {
    let dir = tempfile::tempdir().unwrap();
    write_history(dir.path());
    let bytes = std::fs::read(last_segment(dir.path())).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    assert_eq!(hex(&bytes[..used]), GOLDEN, "the format changed: give it a new version");

    let dir = tempfile::tempdir().unwrap();
    let mut bytes = unhex(GOLDEN);
    bytes.resize(4096, 0);
    std::fs::write(dir.path().join("0000000000000001.seg"), bytes).unwrap();
    let (wal, recovered) = open(dir.path(), 4096);
    assert_eq!((recovered.records, recovered.truncated_tail), (1, None));
    assert_eq!(wal.groups(), [ReplicaId(0x0102)]);
    let log = wal.group(ReplicaId(0x0102)).unwrap();
    let state = GroupState {
        vote: Some(VoteRecord { term: 5, voted_for: 0x0102, committed: true }),
        purged: Some((5, 1)),
        committed: Some((5, 2)),
        generation: 9,
        snapshot: b"blob".to_vec(),
    };
    assert_eq!(log.state(), state);
    assert_eq!(read_all(&log), [record(2, 5, "two")]);
    wal.close();
}
