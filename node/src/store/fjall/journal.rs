//! Cuts the end off fjall's journal that a loss of power has torn.
//!
//! fjall flushes its journal when asked to, at each checkpoint and before it begins another. What it has written since
//! may be on the disk in part, in any order of sectors. It cuts off a batch that lacks its end, but takes one that has an
//! end and holes before it for damage, and refuses the directory. All before the last checkpoint is durable, and the
//! replicas' log has what came after: so the journal ends where its first bad batch begins. Were that damage of what had
//! been durable, the spaces come up older than their log reaches back, which is noticed as such (I2, I10).
//!
//! Format of version 3, from the crate's source: a batch is `1, items: u32 LE, sequence number: u64 LE`, its items, and
//! `3, xxh3_64 of the items: u64 LE, "FJL", 3`. An item is `2, kind: u8, compression: u8, keyspace: u64 LE, key bytes:
//! u16 LE, value bytes: u32 LE, bytes here: u32 LE`, key and value, or `4, keyspace: u64 LE`.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const MAGIC: &[u8] = b"FJL\x03";

/// Cuts the newest journal in `dir` after its last good batch; whether there was anything but zeros behind it.
///
/// # Errors
/// Of the file system.
pub(super) fn cut(dir: &Path) -> io::Result<bool> {
    let Some(path) = newest(dir)? else { return Ok(false) };
    let bytes = fs::read(&path)?;
    let good = good_bytes(&bytes);
    if bytes.iter().skip(good).all(|byte| *byte == 0) {
        return Ok(false);
    }
    tracing::warn!(
        journal = %path.display(),
        bytes = good,
        "what the journal has behind its last good batch is torn: cut off, to come from the replicas' log"
    );
    let file = OpenOptions::new().write(true).open(&path)?;
    file.set_len(good as u64)?;
    file.sync_all()?;
    Ok(true)
}

fn newest(dir: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let is_journal = path.extension().is_some_and(|extension| extension == "jnl");
        let number =
            path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
        if let Some(number) = number.filter(|_| is_journal) {
            newest = newest.max(Some((number, path)));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

/// Where the last batch ends before which all are good.
fn good_bytes(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let Some(after) = batch(rest) {
        rest = after;
    }
    bytes.len() - rest.len()
}

/// What follows the batch at the beginning of `bytes`, if it is good.
fn batch(bytes: &[u8]) -> Option<&[u8]> {
    let (&[START, a, b, c, d], rest) = bytes.split_first_chunk()? else { return None };
    let items = rest.get(8..)?;
    let mut rest = items;
    for _ in 0..u32::from_le_bytes([a, b, c, d]) {
        rest = item(rest)?;
    }
    let content = items.get(..items.len() - rest.len())?;
    let rest = rest.strip_prefix(&[END])?.strip_prefix(&xxh3_64(content).to_le_bytes())?;
    rest.strip_prefix(MAGIC)
}

/// What follows the item at the beginning of `bytes`.
fn item(bytes: &[u8]) -> Option<&[u8]> {
    let (tag, rest) = bytes.split_first()?;
    match *tag {
        CLEAR => rest.get(8..),
        ITEM => {
            let (lengths, rest) = rest.get(2 + 8..)?.split_first_chunk::<10>()?;
            let [k0, k1, _, _, _, _, v0, v1, v2, v3] = *lengths;
            let value = usize::try_from(u32::from_le_bytes([v0, v1, v2, v3])).ok()?;
            rest.get(usize::from(u16::from_le_bytes([k0, k1])).checked_add(value)?..)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use fjall::{Database, KeyspaceCreateOptions, PersistMode};

    use super::*;

    /// A journal of fjall's own with so many batches of three, and where each of them ends.
    fn journal(batches: u8) -> (tempfile::TempDir, PathBuf, Vec<usize>) {
        let dir = tempfile::tempdir().unwrap();
        let mut ends = Vec::new();
        {
            let database = Database::builder(dir.path()).open().unwrap();
            let data = database.keyspace("data", KeyspaceCreateOptions::default).unwrap();
            for n in 0..batches {
                let mut batch = database.batch();
                for key in 0..3 {
                    // The last is long enough to be compressed.
                    batch.insert(&data, [n, key], vec![n; 20 + usize::from(key) * 4_000]);
                }
                batch.remove(&data, [n, 9]);
                batch.commit().unwrap();
                database.persist(PersistMode::SyncAll).unwrap();
                ends.push(good_bytes(&fs::read(newest(dir.path()).unwrap().unwrap()).unwrap()));
            }
        }
        let path = newest(dir.path()).unwrap().unwrap();
        (dir, path, ends)
    }

    fn read(dir: &Path) -> Vec<u8> {
        let database = Database::builder(dir).open().unwrap();
        let data = database.keyspace("data", KeyspaceCreateOptions::default).unwrap();
        let mut found: Vec<u8> = data.iter().map(|entry| entry.key().unwrap()[0]).collect();
        found.dedup();
        found
    }

    #[test]
    fn a_whole_journal_of_fjalls_own_is_left_alone() {
        let (dir, path, ends) = journal(5);
        assert!(ends.is_sorted_by(|a, b| a < b), "each batch is understood: {ends:?}");
        let before = fs::read(&path).unwrap();
        assert!(!cut(dir.path()).unwrap());
        assert!(fs::read(&path).unwrap() == before);
        assert_eq!(read(dir.path()), [0, 1, 2, 3, 4]);
        assert!(!cut(&dir.path().join("keyspaces")).unwrap(), "no journal");
    }

    #[test]
    fn it_is_cut_where_its_first_bad_batch_begins() {
        let (dir, path, ends) = journal(5);
        let bytes = fs::read(&path).unwrap();
        let (start, end) = (ends[2], ends[3]);
        for at in (start..end).step_by(97).chain([end - 1]) {
            let mut torn = bytes.clone();
            // A hole of zeros, or other bytes, with whole batches behind it.
            torn[at] ^= 0x5a;
            fs::write(&path, &torn).unwrap();
            assert!(cut(dir.path()).unwrap());
            assert_eq!(fs::metadata(&path).unwrap().len(), start as u64, "at {at}");
        }
        assert_eq!(read(dir.path()), [0, 1, 2]);
    }

    #[test]
    fn whatever_is_there_it_is_read_to_its_end() {
        let (_dir, path, ends) = journal(2);
        let bytes = fs::read(&path).unwrap();
        for length in 0..ends[1] {
            let good = good_bytes(&bytes[..length]);
            assert_eq!(good, if length < ends[0] { 0 } else { ends[0] }, "cut at {length}");
        }
        assert_eq!(good_bytes(&[]), 0);
        assert_eq!(good_bytes(&[START, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0]), 0);
    }
}
