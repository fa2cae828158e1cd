//! What the harness and the preloaded library agree on: the words of the control page and the records of the journal.
//!
//! The harness compiles this file too. Numbers are those of the machine: both run on the same one.

/// Directory with the files below, of one process; unset, the library does nothing.
pub const DIR_VARIABLE: &str = "JEPSEN_PRELOAD_DIR";
/// The only directory whose files are touched.
pub const ROOT_VARIABLE: &str = "JEPSEN_PRELOAD_ROOT";
/// The control page, in the directory.
pub const CONTROL: &str = "control";
/// What would be undone by a power loss, in the directory.
pub const JOURNAL: &str = "journal";
/// Files that were removed and whose removal is not durable yet, named by number.
pub const GRAVE: &str = "grave";
/// Size of the control page in bytes.
pub const CONTROL_BYTES: u64 = 4096;

/// A word of 64 bits of the control page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Word {
    /// Set by the library: id of the process that it is loaded into.
    Loaded = 0,
    /// Not 0: nothing may grow.
    DiskFull = 1,
    /// Milliseconds that each fsync takes longer.
    SyncDelayMs = 2,
    /// Fsyncs that will fail.
    SyncFailures = 3,
    /// Not 0: what a power loss would undo is kept.
    Journal = 4,
    /// Nanoseconds, signed, that the wall clock is ahead.
    WallOffsetNs = 5,
    /// Speed of all clocks in millionths; 0 is normal.
    ClockRatePpm = 6,
    /// Not 0: only fsyncs of files in a directory `engine` fail.
    SyncFailuresOfEngine = 7,
    // From here on counted by the library.
    /// Calls refused, or told of no space, by `DiskFull`.
    Refused = 16,
    /// Fsyncs that took longer.
    Delayed = 17,
    /// Fsyncs that failed.
    Failed = 18,
    /// Times told wrongly.
    WrongTimes = 19,
    /// Records in the journal.
    Records = 20,
    /// Records that could not be kept: the journal is of no use then.
    JournalErrors = 21,
}

/// A record of the journal. Files and directories are named by inode, as their names change; paths are below the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// `len` bytes at `offset` are about to be written to a file of `size` bytes. `old` is what is there, without the zeros at
    /// its end.
    Write { inode: u64, offset: u64, len: u64, size: u64, old: Vec<u8> },
    /// The size is about to change; `old` is what will be cut off, without the zeros at its end.
    Resize { inode: u64, size: u64, new: u64, old: Vec<u8> },
    /// Whatever was recorded of it below position `upto` of the journal is durable.
    Sync { inode: u64, upto: u64 },
    /// An fsync failed: what was recorded of the file below `upto` counts as clean, and is on no disk.
    SyncFailed { inode: u64, upto: u64 },
    /// A name was made in directory `dir`.
    Create { dir: u64, inode: u64, is_dir: bool, path: Vec<u8> },
    /// A name was removed; the file is in the grave under this number, 0 for a directory.
    Remove { dir: u64, inode: u64, grave: u64, path: Vec<u8> },
    /// A name was changed; what it replaced is in the grave under this number, 0 for nothing.
    Rename { dir: u64, grave: u64, from: Vec<u8>, to: Vec<u8> },
}

pub const HEADER: usize = 8;

impl Record {
    /// The record in the journal: its length after these eight bytes, its numbers, its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, numbers, first, second): (u64, [u64; 4], &[u8], &[u8]) = match self {
            Self::Write { inode, offset, len, size, old } => (1, [*inode, *offset, *len, *size], old, &[]),
            Self::Resize { inode, size, new, old } => (2, [*inode, *size, *new, 0], old, &[]),
            Self::Sync { inode, upto } => (3, [*inode, *upto, 0, 0], &[], &[]),
            Self::SyncFailed { inode, upto } => (4, [*inode, *upto, 0, 0], &[], &[]),
            Self::Create { dir, inode, is_dir, path } => {
                (5, [*dir, *inode, u64::from(*is_dir), 0], path, &[])
            }
            Self::Remove { dir, inode, grave, path } => (6, [*dir, *inode, *grave, 0], path, &[]),
            Self::Rename { dir, grave, from, to } => (7, [*dir, *grave, from.len() as u64, 0], from, to),
        };
        let len = 8 + 32 + first.len() + second.len();
        let mut out = Vec::with_capacity(HEADER + len);
        for number in [len as u64, kind].iter().chain(&numbers) {
            out.extend_from_slice(&number.to_ne_bytes());
        }
        out.extend_from_slice(first);
        out.extend_from_slice(second);
        out
    }
}
