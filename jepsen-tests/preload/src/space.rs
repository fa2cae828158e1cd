//! A full disk: nothing grows, and nothing is said to be free. Names can still be made, as there are inodes left.

use std::ffi::{c_char, c_int};

use libc::stat64;

use crate::layout::Word;
use crate::state::shim;
use crate::{files, real};

const BLOCK_BYTES: i64 = 512;

/// Whether a write up to `end` needs blocks that the file does not have. One with holes has too few for its size.
pub fn takes_room(stat: &stat64, end: u64) -> bool {
    let size = stat.st_size;
    end > u64::try_from(size).unwrap_or(0) || stat.st_blocks.saturating_mul(BLOCK_BYTES) < size
}

/// # Safety
/// `answer` is what a call that succeeded has filled.
unsafe fn told(result: c_int, of_root: bool, answer: *mut libc::statvfs) -> c_int {
    if let Some(shim) = shim().filter(|shim| result == 0 && of_root && shim.on(Word::DiskFull)) {
        shim.count(Word::Refused);
        // SAFETY: the caller's promise.
        if let Some(answer) = unsafe { answer.as_mut() } {
            (answer.f_bfree, answer.f_bavail) = (0, 0);
        }
    }
    result
}

/// # Safety
/// `path` ends with a zero.
unsafe fn is_below(path: *const c_char) -> bool {
    // SAFETY: the caller's promise.
    shim().is_some_and(|shim| unsafe { files::below(shim, libc::AT_FDCWD, path) }.is_some())
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statvfs(path: *const c_char, answer: *mut libc::statvfs) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    let of_root = unsafe { is_below(path) };
    // SAFETY: the same.
    unsafe { told(real::statvfs(path, answer), of_root, answer) }
}

/// # Safety
/// As the C library's. Both have one form on 64 bits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statvfs64(path: *const c_char, answer: *mut libc::statvfs) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    let of_root = unsafe { is_below(path) };
    // SAFETY: the same.
    unsafe { told(real::statvfs64(path, answer), of_root, answer) }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fstatvfs(fd: c_int, answer: *mut libc::statvfs) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    unsafe { told(real::fstatvfs(fd, answer), files::inode(fd).is_some(), answer) }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fstatvfs64(fd: c_int, answer: *mut libc::statvfs) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    unsafe { told(real::fstatvfs64(fd, answer), files::inode(fd).is_some(), answer) }
}
