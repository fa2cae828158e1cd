//! Carries a loss of power out on a directory: torn writes, lost names.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rand::RngExt as _;
use rand::rngs::StdRng;
use serde::Serialize;

use super::layout::Record;
use super::loss::{Change, Content, Unsynced};

/// What a disk writes whole or not at all, in bytes.
const SECTOR: u64 = 512;
/// Zeros written at once.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// What a loss of power has taken.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Loss {
    /// Files with content that was not synced.
    pub files: usize,
    /// Written sectors that were lost.
    pub sectors_lost: usize,
    pub sectors_kept: usize,
    /// Names made, changed or removed that went back.
    pub names_lost: usize,
    pub names_kept: usize,
}

/// Undoes of `unsynced` what `rng` says.
pub fn apply(unsynced: Unsynced, root: &Path, grave: &Path, rng: &mut StdRng) -> io::Result<Loss> {
    let mut loss = Loss::default();
    let mut paths = HashMap::new();
    find(root, &mut paths)?;
    find(grave, &mut paths)?;
    // In an order that the seed decides, not the map.
    for (inode, content) in unsynced.files.into_iter().collect::<BTreeMap<_, _>>() {
        // One that is found nowhere had lost its last name for good.
        if let Some(path) = paths.get(&inode) {
            loss.files += 1;
            undo_content(path, &content, rng, &mut loss)?;
        }
    }
    // A journal of the file system keeps names in their order: what is lost is the end of it.
    let count = unsynced.names.len();
    let kept = match rng.random_range(0..4) {
        0 => count,
        1 | 2 => rng.random_range(0..=count),
        _ => 0,
    };
    loss.names_kept = kept;
    let mut made = HashMap::new();
    for name in unsynced.names.into_iter().skip(kept).rev() {
        loss.names_lost += 1;
        undo_name(&name.record, root, grave, &mut made)?;
    }
    Ok(loss)
}

/// Paths of all files below `dir` by inode.
fn find(dir: &Path, paths: &mut HashMap<u64, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            find(&path, paths)?;
        } else {
            paths.insert(metadata.ino(), path);
        }
    }
    Ok(())
}

fn undo_content(path: &Path, content: &Content, rng: &mut StdRng, loss: &mut Loss) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let now = file.metadata()?.len();
    let keeps = kept(&content.pending, rng);
    let mut written = BTreeMap::new();
    for sector in content.pending.iter().flat_map(sectors) {
        written.entry(sector).or_insert_with(|| keeps(sector));
    }
    let mut held = Vec::new();
    for (&sector, _) in written.iter().filter(|(_, kept)| **kept) {
        held.push((sector * SECTOR, read(&file, sector * SECTOR, now)?));
    }
    loss.sectors_kept += held.len();
    loss.sectors_lost += written.len() - held.len();
    for change in content.pending.iter().rev().chain(content.doomed.iter().rev()) {
        undo_change(&file, change)?;
    }
    for (offset, bytes) in held {
        file.write_all_at(&bytes, offset)?;
    }
    // A size may arrive without the bytes: then there are zeros.
    if !content.pending.is_empty() && rng.random_bool(0.25) {
        file.set_len(now)?;
    }
    Ok(())
}

fn sectors(change: &Change) -> std::ops::Range<u64> {
    change.written.start / SECTOR..change.written.end.div_ceil(SECTOR)
}

/// Which sectors reached the disk: none, some at random, or those of the first writes and a part of one more.
fn kept(pending: &[Change], rng: &mut StdRng) -> Box<dyn Fn(u64) -> bool> {
    match rng.random_range(0..3) {
        0 => Box::new(|_| false),
        1 => {
            let part = *[26_u64, 128, 230].get(rng.random_range(0..3)).unwrap_or(&128);
            let salt: u64 = rng.random();
            // Spreads well enough: Knuth's multiplicative hashing.
            Box::new(move |sector| (sector ^ salt).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56 < part)
        }
        _ => {
            let whole = rng.random_range(0..=pending.len());
            let mut ranges: Vec<_> = pending.iter().take(whole).map(sectors).collect();
            if let Some(torn) = pending.get(whole).map(sectors) {
                ranges.push(torn.start..rng.random_range(torn.start..=torn.end));
            }
            Box::new(move |sector| ranges.iter().any(|range| range.contains(&sector)))
        }
    }
}

/// A sector, or what the file has of it.
fn read(file: &File, offset: u64, size: u64) -> io::Result<Vec<u8>> {
    let len = size.saturating_sub(offset).min(SECTOR);
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn undo_change(file: &File, change: &Change) -> io::Result<()> {
    let end = if change.sized {
        change.restored.end.min(file.metadata()?.len())
    } else {
        file.set_len(change.size)?;
        change.restored.end
    };
    let from = change.restored.start;
    let there = usize::try_from(end.saturating_sub(from)).unwrap_or(usize::MAX).min(change.old.len());
    let old = change.old.get(..there).unwrap_or_default();
    file.write_all_at(old, from)?;
    let mut at = from + old.len() as u64;
    while at < end {
        let left = usize::try_from(end - at).unwrap_or(usize::MAX);
        let zeros = ZEROS.get(..left.min(ZEROS.len())).unwrap_or(&ZEROS);
        file.write_all_at(zeros, at)?;
        at += zeros.len() as u64;
    }
    Ok(())
}

/// Whether a step of undoing was possible; what another step has taken away already need not be undone.
fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// `made` tells the numbers of directories that were made again by those that they had.
fn undo_name(record: &Record, root: &Path, grave: &Path, made: &mut HashMap<u64, u64>) -> io::Result<()> {
    let below = |path: &[u8]| root.join(OsStr::from_bytes(path));
    let buried = |number: u64| grave.join(number.to_string());
    match record {
        Record::Create { inode, is_dir, path, .. } => {
            let path = below(path);
            let inode = made.get(inode).unwrap_or(inode);
            let same = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.ino() == *inode);
            match (same, is_dir) {
                (false, _) => Ok(()),
                (true, true) => fs::remove_dir_all(&path),
                (true, false) => fs::remove_file(&path),
            }
        }
        Record::Remove { grave: 0, inode, path, .. } => {
            let path = below(path);
            match fs::create_dir(&path) {
                Ok(()) => {
                    made.insert(*inode, fs::symlink_metadata(&path)?.ino());
                    Ok(())
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                result => unless_gone(result),
            }
        }
        Record::Remove { grave, path, .. } => unless_gone(fs::rename(buried(*grave), below(path))),
        Record::Rename { grave, from, to, .. } => {
            unless_gone(fs::rename(below(to), below(from)))?;
            if *grave == 0 { Ok(()) } else { unless_gone(fs::rename(buried(*grave), below(to))) }
        }
        Record::Write { .. } | Record::Resize { .. } | Record::Sync { .. } | Record::SyncFailed { .. } => {
            Ok(())
        }
    }
}
