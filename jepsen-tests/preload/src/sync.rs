//! Fsyncs: slow ones, failing ones, and the record of what they made durable.
//!
//! `sync_file_range` is no flush of the disk and passes through: what it wrote is lost with the power all the same.

use std::ffi::c_int;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::layout::{Record, Word};
use crate::state::{Shim, shim};
use crate::{files, real};

fn synced(fd: c_int, sync: impl FnOnce() -> c_int) -> c_int {
    let Some((shim, inode)) = shim().zip(files::inode(fd)) else { return sync() };
    let delay = shim.get(Word::SyncDelayMs);
    if delay > 0 {
        shim.count(Word::Delayed);
        std::thread::sleep(Duration::from_millis(delay));
    }
    let journal = shim.on(Word::Journal);
    // What is written from here on need not be part of it.
    let upto = if journal { shim.journal.hold().position } else { 0 };
    if fails(shim, fd) {
        shim.count(Word::Failed);
        // A directory's pages are not dropped: its file system would stop instead.
        if journal && !files::stat_of(fd).is_some_and(|stat| files::is_dir(&stat)) {
            shim.journal.hold().keep(shim, &Record::SyncFailed { inode, upto });
        }
        return real::fail(libc::EIO);
    }
    let result = sync();
    if result == 0 && journal {
        shim.journal.hold().keep(shim, &Record::Sync { inode, upto });
    }
    result
}

/// Takes one of the failures that are left.
fn fails(shim: &Shim, fd: c_int) -> bool {
    if shim.on(Word::SyncFailuresOfEngine) && !is_of_engine(fd) {
        return false;
    }
    let left = shim.word(Word::SyncFailures);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

fn is_of_engine(fd: c_int) -> bool {
    let path = std::fs::read_link(format!("/proc/self/fd/{fd}"));
    path.is_ok_and(|path| path.iter().any(|part| part == "engine"))
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    // SAFETY: the caller's argument, unchanged.
    synced(fd, || unsafe { real::fsync(fd) })
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    // SAFETY: the caller's argument, unchanged.
    synced(fd, || unsafe { real::fdatasync(fd) })
}
