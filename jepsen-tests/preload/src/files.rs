//! Which descriptors and paths lie below the root.

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::state::Shim;

/// Descriptors above are not looked at; a node has a few hundred.
const DESCRIPTORS_MAX: usize = 1 << 16;

/// Inode of each open descriptor below the root, 0 for all others.
static INODES: [AtomicU64; DESCRIPTORS_MAX] = [const { AtomicU64::new(0) }; DESCRIPTORS_MAX];

fn slot(fd: c_int) -> Option<&'static AtomicU64> {
    INODES.get(usize::try_from(fd).ok()?)
}

/// The inode behind a descriptor, if it is below the root.
pub fn inode(fd: c_int) -> Option<u64> {
    match slot(fd)?.load(Ordering::Relaxed) {
        0 => None,
        inode => Some(inode),
    }
}

pub fn track(fd: c_int, inode: u64) {
    if let Some(slot) = slot(fd) {
        slot.store(inode, Ordering::Relaxed);
    }
}

/// `to` is another descriptor of what `from` is one of.
pub fn same(from: c_int, to: c_int) {
    if to >= 0 {
        track(to, inode(from).unwrap_or(0));
    }
}

/// What `stat` says of an open descriptor.
pub fn stat_of(fd: c_int) -> Option<libc::stat64> {
    let mut stat = std::mem::MaybeUninit::<libc::stat64>::uninit();
    // SAFETY: `stat` has room for the answer.
    if unsafe { libc::fstat64(fd, stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: filled by the call, which succeeded.
    Some(unsafe { stat.assume_init() })
}

/// What `lstat` says of a path.
pub fn stat_at(path: &CStr) -> Option<libc::stat64> {
    let mut stat = std::mem::MaybeUninit::<libc::stat64>::uninit();
    // SAFETY: the path ends with a zero and `stat` has room for the answer.
    if unsafe { libc::lstat64(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: filled by the call, which succeeded.
    Some(unsafe { stat.assume_init() })
}

pub fn is_dir(stat: &libc::stat64) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

/// A path below the root.
pub struct Below {
    /// From the root on, without a slash in front; empty for the root itself.
    pub relative: Vec<u8>,
    pub absolute: CString,
}

impl Below {
    /// Inode of the directory that it is in.
    pub fn parent(&self) -> Option<u64> {
        let path = self.absolute.to_bytes();
        let slash = path.iter().rposition(|&byte| byte == b'/')?;
        stat_at(&CString::new(path.get(..slash)?).ok()?).map(|stat| stat.st_ino)
    }
}

/// The path as one below the root, if it is.
///
/// # Safety
/// `path` is null or ends with a zero.
pub unsafe fn below(shim: &Shim, dir: c_int, path: *const c_char) -> Option<Below> {
    if path.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes();
    let whole = if path.first() == Some(&b'/') {
        if !path.starts_with(&shim.root) {
            return None;
        }
        plain(&[], path)
    } else {
        let base = if dir == libc::AT_FDCWD {
            std::env::current_dir().ok()?.into_os_string().into_vec()
        } else {
            std::fs::read_link(format!("/proc/self/fd/{dir}")).ok()?.into_os_string().into_vec()
        };
        plain(&base, path)
    };
    let rest = whole.strip_prefix(shim.root.as_slice())?;
    let relative = match rest.split_first() {
        None => Vec::new(),
        Some((b'/', relative)) => relative.to_vec(),
        Some(_) => return None,
    };
    Some(Below { relative, absolute: CString::new(whole).ok()? })
}

/// `path` from `base`, without `.`, `..` and doubled slashes.
fn plain(base: &[u8], path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in base.split(|&byte| byte == b'/').chain(path.split(|&byte| byte == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let mut out = Vec::new();
    for part in parts {
        out.push(b'/');
        out.extend_from_slice(part);
    }
    out
}

/// For paths of our own.
pub fn c_path(path: &std::path::Path) -> Option<CString> {
    CString::new(path.as_os_str().as_bytes()).ok()
}
