//! Writes to files and changes of their size.

use std::ffi::{c_int, c_uint, c_void};

use libc::{iovec, off64_t, size_t, ssize_t};

use crate::journal::Open;
use crate::layout::{Record, Word};
use crate::state::{Shim, shim};
use crate::{files, real, space};

/// Where a write goes.
#[derive(Clone, Copy)]
enum At {
    /// Where the descriptor stands, or the file's end.
    Cursor,
    Offset(off64_t),
}

fn offset_of(fd: c_int, at: At, size: u64) -> u64 {
    let offset = match at {
        At::Offset(offset) => offset,
        At::Cursor => {
            // SAFETY: asks for flags, and where the descriptor stands.
            let flags = unsafe { real::fcntl(fd, libc::F_GETFL, 0) };
            if flags >= 0 && flags & libc::O_APPEND != 0 {
                return size;
            }
            // SAFETY: as above.
            unsafe { libc::lseek64(fd, 0, libc::SEEK_CUR) }
        }
    };
    u64::try_from(offset).unwrap_or(0)
}

/// A write of `len` bytes, under a full disk and with a record of what it overwrites.
fn guarded(fd: c_int, at: At, len: size_t, write: impl FnOnce() -> ssize_t) -> ssize_t {
    let Some((shim, inode)) = shim().zip(files::inode(fd)).filter(|_| len > 0) else { return write() };
    let (full, journal) = (shim.on(Word::DiskFull), shim.on(Word::Journal));
    if !full && !journal {
        return write();
    }
    let mut open = shim.journal.hold();
    let Some(stat) = files::stat_of(fd) else { return write() };
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let offset = offset_of(fd, at, size);
    let end = offset + len as u64;
    if full && space::takes_room(&stat, end) {
        shim.count(Word::Refused);
        return real::fail(libc::ENOSPC) as ssize_t;
    }
    if journal {
        let old = old(shim, fd, offset, end.min(size));
        open.keep(shim, &Record::Write { inode, offset, len: len as u64, size, old });
    }
    write()
}

/// What is in the file between these offsets, without the zeros at its end.
fn old(shim: &Shim, fd: c_int, from: u64, to: u64) -> Vec<u8> {
    let len = usize::try_from(to.saturating_sub(from)).unwrap_or(0);
    let mut bytes = vec![0; len];
    let mut done = 0;
    // One that is open for writing alone is opened once more.
    let mut reader = fd;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = off64_t::try_from(from + done as u64).unwrap_or(off64_t::MAX);
        // SAFETY: `rest` has room for its length.
        let got = unsafe { libc::pread64(reader, rest.as_mut_ptr().cast(), rest.len(), at) };
        match usize::try_from(got) {
            Ok(0) => break,
            Ok(got) => done += got,
            Err(_) if reader == fd => match again(fd) {
                Some(opened) => reader = opened,
                None => break,
            },
            Err(_) => break,
        }
    }
    if reader != fd {
        // SAFETY: opened above, and used by nobody else.
        unsafe { real::close(reader) };
    }
    if done < len {
        shim.count(Word::JournalErrors);
    }
    let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(used);
    bytes
}

fn again(fd: c_int) -> Option<c_int> {
    let path = files::c_path(std::path::Path::new(&format!("/proc/self/fd/{fd}")))?;
    // SAFETY: the path ends with a zero.
    let opened = unsafe { real::open64(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC, 0) };
    (opened >= 0).then_some(opened)
}

/// Records that the file behind `fd` is about to be `new` bytes long.
pub fn keep_size(shim: &Shim, open: &mut Open, fd: c_int, inode: u64, size: u64, new: u64) {
    if size != new {
        let old = old(shim, fd, new.min(size), size);
        open.keep(shim, &Record::Resize { inode, size, new, old });
    }
}

fn resized(fd: c_int, new: off64_t, change: impl FnOnce() -> c_int) -> c_int {
    let Some((shim, inode)) = shim().zip(files::inode(fd)) else { return change() };
    if !shim.on(Word::Journal) {
        return change();
    }
    let mut open = shim.journal.hold();
    if let (Some(stat), Ok(new)) = (files::stat_of(fd), u64::try_from(new)) {
        keep_size(shim, &mut open, fd, inode, u64::try_from(stat.st_size).unwrap_or(0), new);
    }
    change()
}

/// Room that is asked for ahead; an error number.
fn allocated(fd: c_int, mode: c_int, at: off64_t, len: off64_t, change: impl FnOnce() -> c_int) -> c_int {
    let Some(shim) = shim().filter(|_| files::inode(fd).is_some()) else { return change() };
    if shim.on(Word::DiskFull) {
        shim.count(Word::Refused);
        return libc::ENOSPC;
    }
    let grows = mode & libc::FALLOC_FL_KEEP_SIZE == 0;
    let size = files::stat_of(fd).map_or(0, |stat| stat.st_size);
    resized(fd, if grows { size.max(at.saturating_add(len)) } else { size }, change)
}

/// # Safety
/// `parts` are `count` parts.
unsafe fn sum(parts: *const iovec, count: c_int) -> size_t {
    let count = usize::try_from(count).unwrap_or(0);
    if parts.is_null() || count == 0 {
        return 0;
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(parts, count) }.iter().map(|part| part.iov_len).sum()
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, len: size_t) -> ssize_t {
    // SAFETY: the caller's arguments, unchanged.
    guarded(fd, At::Cursor, len, || unsafe { real::write(fd, bytes, len) })
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: the caller's arguments, unchanged.
    guarded(fd, At::Cursor, unsafe { sum(parts, count) }, || unsafe { real::writev(fd, parts, count) })
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(fd: c_int, bytes: *const c_void, len: size_t, at: off64_t) -> ssize_t {
    // SAFETY: the caller's arguments, unchanged.
    guarded(fd, At::Offset(at), len, || unsafe { real::pwrite(fd, bytes, len, at) })
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(fd: c_int, bytes: *const c_void, len: size_t, at: off64_t) -> ssize_t {
    // SAFETY: the caller's arguments, unchanged.
    guarded(fd, At::Offset(at), len, || unsafe { real::pwrite64(fd, bytes, len, at) })
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwritev(fd: c_int, parts: *const iovec, count: c_int, at: off64_t) -> ssize_t {
    // SAFETY: the caller's arguments, unchanged.
    let len = unsafe { sum(parts, count) };
    // SAFETY: the same.
    guarded(fd, At::Offset(at), len, || unsafe { real::pwritev(fd, parts, count, at) })
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwritev64(fd: c_int, parts: *const iovec, count: c_int, at: off64_t) -> ssize_t {
    // SAFETY: the caller's arguments, unchanged.
    let len = unsafe { sum(parts, count) };
    // SAFETY: the same.
    guarded(fd, At::Offset(at), len, || unsafe { real::pwritev64(fd, parts, count, at) })
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate(fd: c_int, len: off64_t) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    resized(fd, len, || unsafe { real::ftruncate(fd, len) })
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate64(fd: c_int, len: off64_t) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    resized(fd, len, || unsafe { real::ftruncate64(fd, len) })
}

fn from_errno(errno: c_int) -> c_int {
    if errno > 0 { real::fail(errno) } else { errno }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fallocate(fd: c_int, mode: c_int, at: off64_t, len: off64_t) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    from_errno(allocated(fd, mode, at, len, || unsafe { real::fallocate(fd, mode, at, len) }))
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fallocate64(fd: c_int, mode: c_int, at: off64_t, len: off64_t) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    from_errno(allocated(fd, mode, at, len, || unsafe { real::fallocate64(fd, mode, at, len) }))
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_fallocate(fd: c_int, at: off64_t, len: off64_t) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    allocated(fd, 0, at, len, || unsafe { real::posix_fallocate(fd, at, len) })
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_fallocate64(fd: c_int, at: off64_t, len: off64_t) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    allocated(fd, 0, at, len, || unsafe { real::posix_fallocate64(fd, at, len) })
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn copy_file_range(
    from: c_int,
    at: *mut off64_t,
    to: c_int,
    to_at: *mut off64_t,
    len: size_t,
    flags: c_uint,
) -> ssize_t {
    if files::inode(to).is_some() {
        // Callers copy by reading and writing then, which is seen.
        return real::fail(libc::EXDEV) as ssize_t;
    }
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real::copy_file_range(from, at, to, to_at, len, flags) }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile(to: c_int, from: c_int, at: *mut off64_t, len: size_t) -> ssize_t {
    if files::inode(to).is_some() {
        return real::fail(libc::EINVAL) as ssize_t;
    }
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real::sendfile(to, from, at, len) }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile64(to: c_int, from: c_int, at: *mut off64_t, len: size_t) -> ssize_t {
    if files::inode(to).is_some() {
        return real::fail(libc::EINVAL) as ssize_t;
    }
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real::sendfile64(to, from, at, len) }
}
