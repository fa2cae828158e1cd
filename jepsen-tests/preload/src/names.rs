//! Descriptors and names: files that are opened, made, renamed and removed.

use std::ffi::{c_char, c_int, c_long, c_uint};

use libc::{AT_FDCWD, mode_t};

use crate::files::{self, Below, below, stat_at, stat_of};
use crate::layout::{Record, Word};
use crate::state::{Shim, shim};
use crate::{content, real};

/// # Safety
/// `path` is null or ends with a zero.
unsafe fn opened(dir: c_int, path: *const c_char, flags: c_int, open: impl FnOnce() -> c_int) -> c_int {
    // SAFETY: the caller's promise.
    let found = shim().and_then(|shim| Some((shim, unsafe { below(shim, dir, path) }?)));
    let Some((shim, below)) = found else {
        let fd = open();
        if fd >= 0 {
            files::track(fd, 0);
        }
        return fd;
    };
    let journal = shim.on(Word::Journal);
    let changes = journal && flags & (libc::O_CREAT | libc::O_TRUNC) != 0;
    let mut held = changes.then(|| shim.journal.hold());
    let before = if changes { stat_at(&below.absolute) } else { None };
    if let (Some(held), Some(before)) = (held.as_mut(), before.filter(|_| flags & libc::O_TRUNC != 0)) {
        // SAFETY: the path ends with a zero.
        let reader = unsafe { real::open64(below.absolute.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC, 0) };
        if reader >= 0 {
            let size = u64::try_from(before.st_size).unwrap_or(0);
            content::keep_size(shim, held, reader, before.st_ino, size, 0);
            // SAFETY: opened above, and used by nobody else.
            unsafe { real::close(reader) };
        }
    }
    let fd = open();
    // Of a call that failed the error number must be left alone: here and below nothing is asked then.
    if fd >= 0
        && let Some(stat) = stat_of(fd)
    {
        files::track(fd, stat.st_ino);
        if let (Some(held), true) = (held.as_mut(), before.is_none()) {
            let dir = below.parent().unwrap_or(0);
            let record = Record::Create { dir, inode: stat.st_ino, is_dir: false, path: below.relative };
            held.keep(shim, &record);
        }
    }
    fd
}

/// # Safety
/// As the C library's. Without `O_CREAT` there is no third argument, and what is read in its place is not used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    unsafe { opened(AT_FDCWD, path, flags, || real::open(path, flags, mode)) }
}

/// # Safety
/// As [`open`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    unsafe { opened(AT_FDCWD, path, flags, || real::open64(path, flags, mode)) }
}

/// # Safety
/// As [`open`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    unsafe { opened(dir, path, flags, || real::openat(dir, path, flags, mode)) }
}

/// # Safety
/// As [`open`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat64(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    unsafe { opened(dir, path, flags, || real::openat64(dir, path, flags, mode)) }
}

/// # Safety
/// As [`open`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn creat(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: this is what it is defined as.
    unsafe { open64(path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode) }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    // Before: the number may be given out again at once.
    files::track(fd, 0);
    // SAFETY: the caller's argument, unchanged.
    unsafe { real::close(fd) }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup(fd: c_int) -> c_int {
    // SAFETY: the caller's argument, unchanged.
    let made = unsafe { real::dup(fd) };
    files::same(fd, made);
    made
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup2(fd: c_int, to: c_int) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    let made = unsafe { real::dup2(fd, to) };
    files::same(fd, made);
    made
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup3(fd: c_int, to: c_int, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    let made = unsafe { real::dup3(fd, to, flags) };
    files::same(fd, made);
    made
}

fn duplicated(fd: c_int, command: c_int, result: c_int) -> c_int {
    if matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) {
        files::same(fd, result);
    }
    result
}

/// # Safety
/// As the C library's. Commands without an argument ignore what is read in its place.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fcntl(fd: c_int, command: c_int, argument: c_long) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    duplicated(fd, command, unsafe { real::fcntl(fd, command, argument) })
}

/// # Safety
/// As [`fcntl`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fcntl64(fd: c_int, command: c_int, argument: c_long) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    duplicated(fd, command, unsafe { real::fcntl64(fd, command, argument) })
}

/// The state, when names below the root are to be kept.
fn keeping() -> Option<&'static Shim> {
    shim().filter(|shim| shim.on(Word::Journal))
}

/// # Safety
/// Both paths are null or end with a zero.
unsafe fn renamed(
    from_dir: c_int,
    from: *const c_char,
    to_dir: c_int,
    to: *const c_char,
    change: impl FnOnce() -> c_int,
) -> c_int {
    let paths = keeping().and_then(|shim| {
        // SAFETY: the caller's promise.
        Some((shim, unsafe { below(shim, from_dir, from) }?, unsafe { below(shim, to_dir, to) }?))
    });
    let Some((shim, from, to)) = paths else { return change() };
    let mut held = shim.journal.hold();
    let replaced = stat_at(&to.absolute).filter(|stat| !files::is_dir(stat));
    let mut grave = 0;
    if replaced.is_some()
        && let Some((number, place)) = shim.journal.place()
    {
        // SAFETY: both paths end with a zero.
        if unsafe { real::link(to.absolute.as_ptr(), place.as_ptr()) } == 0 {
            grave = number;
        } else {
            shim.count(Word::JournalErrors);
        }
    }
    let result = change();
    if result == 0 {
        let dir = to.parent().unwrap_or(0);
        held.keep(shim, &Record::Rename { dir, grave, from: from.relative, to: to.relative });
    }
    result
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    unsafe { renamed(AT_FDCWD, from, AT_FDCWD, to, || real::rename(from, to)) }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn renameat(
    from_dir: c_int,
    from: *const c_char,
    to_dir: c_int,
    to: *const c_char,
) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    unsafe { renamed(from_dir, from, to_dir, to, || real::renameat(from_dir, from, to_dir, to)) }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn renameat2(
    from_dir: c_int,
    from: *const c_char,
    to_dir: c_int,
    to: *const c_char,
    flags: c_uint,
) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    unsafe { renamed(from_dir, from, to_dir, to, || real::renameat2(from_dir, from, to_dir, to, flags)) }
}

/// # Safety
/// `path` is null or ends with a zero.
unsafe fn made(dir: c_int, path: *const c_char, is_dir: bool, change: impl FnOnce() -> c_int) -> c_int {
    // SAFETY: the caller's promise.
    let found = shim().and_then(|shim| Some((shim, unsafe { below(shim, dir, path) }?)));
    let Some((shim, below)) = found else { return change() };
    if shim.on(Word::DiskFull) && is_dir && stat_at(&below.absolute).is_none() {
        shim.count(Word::Refused);
        return real::fail(libc::ENOSPC);
    }
    if !shim.on(Word::Journal) || below.relative.is_empty() {
        return change();
    }
    let mut held = shim.journal.hold();
    let result = change();
    if result == 0
        && let Some(stat) = stat_at(&below.absolute)
    {
        let dir = below.parent().unwrap_or(0);
        held.keep(shim, &Record::Create { dir, inode: stat.st_ino, is_dir, path: below.relative });
    }
    result
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    unsafe { made(AT_FDCWD, path, true, || real::mkdir(path, mode)) }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdirat(dir: c_int, path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    unsafe { made(dir, path, true, || real::mkdirat(dir, path, mode)) }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn link(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    unsafe { made(AT_FDCWD, to, false, || real::link(from, to)) }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn linkat(
    from_dir: c_int,
    from: *const c_char,
    to_dir: c_int,
    to: *const c_char,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    unsafe { made(to_dir, to, false, || real::linkat(from_dir, from, to_dir, to, flags)) }
}

/// # Safety
/// `path` is null or ends with a zero.
unsafe fn removed(dir: c_int, path: *const c_char, is_dir: bool, change: impl FnOnce() -> c_int) -> c_int {
    // SAFETY: the caller's promise.
    let found = keeping().and_then(|shim| Some((shim, unsafe { below(shim, dir, path) }?)));
    let Some((shim, below)) = found else { return change() };
    let mut held = shim.journal.hold();
    let Some(stat) = stat_at(&below.absolute).filter(|stat| files::is_dir(stat) == is_dir) else {
        return change();
    };
    let (result, grave) = if is_dir { (change(), 0) } else { bury(shim, &below, change) };
    if result == 0 {
        let dir = below.parent().unwrap_or(0);
        held.keep(shim, &Record::Remove { dir, inode: stat.st_ino, grave, path: below.relative });
    }
    result
}

/// Moves a file into the grave in place of removing it.
fn bury(shim: &Shim, below: &Below, change: impl FnOnce() -> c_int) -> (c_int, u64) {
    if let Some((number, place)) = shim.journal.place() {
        // SAFETY: both paths end with a zero.
        if unsafe { real::rename(below.absolute.as_ptr(), place.as_ptr()) } == 0 {
            return (0, number);
        }
    }
    shim.count(Word::JournalErrors);
    (change(), 0)
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller's argument, unchanged.
    unsafe { removed(AT_FDCWD, path, false, || real::unlink(path)) }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlinkat(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
    let is_dir = flags & libc::AT_REMOVEDIR != 0;
    // SAFETY: the caller's arguments, unchanged.
    unsafe { removed(dir, path, is_dir, || real::unlinkat(dir, path, flags)) }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rmdir(path: *const c_char) -> c_int {
    // SAFETY: the caller's argument, unchanged.
    unsafe { removed(AT_FDCWD, path, true, || real::rmdir(path)) }
}
