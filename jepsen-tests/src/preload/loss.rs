//! What a journal says is not durable yet.
//!
//! The model is POSIX's, without what single file systems add: a file's bytes and size are durable when the file was synced,
//! a name when its directory was. The writes that an fsync failed to make durable count as clean: a later fsync does not help
//! them, unless their pages are written again.

use std::collections::HashMap;

use super::layout::Record;
use super::records::Records;

/// Granularity of what counts as clean after a failed fsync.
const PAGE: u64 = 4096;

/// A change of a file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    position: u64,
    /// Size of the file before it.
    pub size: u64,
    /// Bytes of the file that are restored by `old` and zeros behind it.
    pub restored: std::ops::Range<u64>,
    pub old: Vec<u8>,
    /// Bytes that were written.
    pub written: std::ops::Range<u64>,
    /// A later fsync has made the file's size durable, though not these bytes.
    pub sized: bool,
}

/// Changes of one file, oldest first.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Content {
    pub pending: Vec<Change>,
    /// An fsync of these failed.
    pub doomed: Vec<Change>,
}

/// Change of a name.
#[derive(Debug, PartialEq, Eq)]
pub struct Name {
    position: u64,
    dir: u64,
    pub record: Record,
}

/// All that a loss of power may take.
#[derive(Debug, Default)]
pub struct Unsynced {
    /// By inode.
    pub files: HashMap<u64, Content>,
    /// Oldest first.
    pub names: Vec<Name>,
    /// In the whole journal, durable or not.
    pub records: u64,
}

impl Unsynced {
    /// Reads a journal.
    pub fn of(journal: &[u8]) -> Self {
        let mut unsynced = Self::default();
        for (position, record) in Records::new(journal) {
            unsynced.records += 1;
            unsynced.take(position, record);
        }
        unsynced.files.retain(|_, content| *content != Content::default());
        unsynced
    }

    fn take(&mut self, position: u64, record: Record) {
        match record {
            Record::Write { inode, offset, len, size, old } => {
                let written = offset..offset.saturating_add(len);
                let restored = offset.min(size)..written.end.min(size);
                self.change(inode, Change { position, size, restored, old, written, sized: false });
            }
            Record::Resize { inode, size, new, old } => {
                let restored = new.min(size)..size;
                self.change(inode, Change { position, size, restored, old, written: 0..0, sized: false });
            }
            Record::Sync { inode, upto } => self.synced(inode, upto),
            Record::SyncFailed { inode, upto } => {
                let content = self.files.entry(inode).or_default();
                let failed = content.pending.extract_if(.., |change| change.position < upto);
                content.doomed.extend(failed);
            }
            Record::Create { dir, inode, is_dir, .. } => {
                // What was recorded under this number is of a file that is gone.
                if !is_dir {
                    self.files.remove(&inode);
                }
                self.names.push(Name { position, dir, record });
            }
            Record::Remove { dir, .. } | Record::Rename { dir, .. } => {
                self.names.push(Name { position, dir, record });
            }
        }
    }

    fn change(&mut self, inode: u64, change: Change) {
        self.files.entry(inode).or_default().pending.push(change);
    }

    fn synced(&mut self, inode: u64, upto: u64) {
        if let Some(content) = self.files.get_mut(&inode) {
            content.doomed =
                std::mem::take(&mut content.doomed).into_iter().filter_map(Change::sized).collect();
            let durable: Vec<Change> =
                content.pending.extract_if(.., |change| change.position < upto).collect();
            for written in durable.into_iter().map(|change| change.written) {
                content.doomed = std::mem::take(&mut content.doomed)
                    .into_iter()
                    .flat_map(|change| change.without(&written))
                    .collect();
            }
        }
        self.synced_dir(inode, upto);
    }

    fn synced_dir(&mut self, dir: u64, upto: u64) {
        let durable = self.names.extract_if(.., |name| name.dir == dir && name.position < upto);
        let gone: Vec<u64> = durable
            .filter_map(|name| match name.record {
                Record::Remove { inode, grave: 0, .. } => Some(inode),
                _ => None,
            })
            .collect();
        // With a directory goes what was in it.
        for dir in gone {
            self.synced_dir(dir, upto);
        }
    }
}

impl Change {
    /// What is left of it when the file's size has become durable: where it was written behind the end, there is nothing.
    fn sized(self) -> Option<Self> {
        if self.sized {
            return Some(self);
        }
        if self.written.is_empty() {
            return None;
        }
        let restored = self.restored.start.min(self.written.start)..self.written.end;
        Some(Self { restored, sized: true, ..self })
    }

    /// What is left of it when these bytes, with the pages they are in, have become durable.
    fn without(self, written: &std::ops::Range<u64>) -> Vec<Self> {
        let pages = written.start / PAGE * PAGE..written.end.next_multiple_of(PAGE);
        if written.is_empty() || pages.end <= self.restored.start || self.restored.end <= pages.start {
            return vec![self];
        }
        let parts = [self.restored.start..pages.start.max(self.restored.start), pages.end..self.restored.end];
        let of_part = |part: std::ops::Range<u64>| {
            let from = usize::try_from(part.start - self.restored.start).unwrap_or(usize::MAX);
            let len = usize::try_from(part.end - part.start).unwrap_or(0);
            let old = self.old.get(from..).unwrap_or_default();
            let old = old.get(..len.min(old.len())).unwrap_or_default().to_vec();
            Self { restored: part, old, written: 0..0, ..self.clone() }
        };
        parts.into_iter().filter(|part| part.start < part.end).map(of_part).collect()
    }
}
