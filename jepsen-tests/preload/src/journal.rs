//! The undo journal, and the grave of what was removed.

use std::ffi::{CStr, CString, c_int};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::layout::{Record, Word};
use crate::real;
use crate::state::Shim;

/// The journal. Whoever changes a file holds it from the record to the change: what is recorded as old must be.
pub struct Journal {
    fd: c_int,
    grave: PathBuf,
    next_grave: AtomicU64,
    open: Mutex<Open>,
}

/// The journal's end.
pub struct Open {
    /// Bytes so far: the position of the next record.
    pub position: u64,
    /// Removed files whose removal is not durable: directory, position, number.
    buried: Vec<(u64, u64, u64)>,
}

impl Journal {
    /// Opens it at its end: an earlier process may have begun it.
    pub fn open(path: &CStr, grave: PathBuf) -> Option<Self> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_CLOEXEC;
        // SAFETY: the path ends with a zero.
        let fd = unsafe { real::open64(path.as_ptr(), flags, 0o644) };
        if fd < 0 {
            return None;
        }
        // SAFETY: the descriptor was opened above.
        let end = unsafe { libc::lseek64(fd, 0, libc::SEEK_END) };
        let position = u64::try_from(end).ok()?;
        // Numbers of an earlier process are below: each of its burials left a record.
        let next_grave = AtomicU64::new(position + 1);
        let open = Mutex::new(Open { position, buried: Vec::new() });
        Some(Self { fd, grave, next_grave, open })
    }

    pub fn hold(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number and its path in the grave.
    pub fn place(&self) -> Option<(u64, CString)> {
        let number = self.next_grave.fetch_add(1, Ordering::Relaxed);
        Some((number, self.grave_path(number)?))
    }

    fn grave_path(&self, number: u64) -> Option<CString> {
        CString::new(self.grave.join(number.to_string()).as_os_str().as_bytes()).ok()
    }
}

impl Open {
    /// Appends a record.
    pub fn keep(&mut self, shim: &Shim, record: &Record) {
        let bytes = record.encode();
        let mut left = bytes.as_slice();
        while !left.is_empty() {
            // SAFETY: `left` is valid for its length.
            let written = unsafe { real::write(shim.journal.fd, left.as_ptr().cast(), left.len()) };
            match usize::try_from(written) {
                Ok(written) if written > 0 => left = left.get(written..).unwrap_or_default(),
                Ok(_) | Err(_) => {
                    shim.count(Word::JournalErrors);
                    return;
                }
            }
        }
        match record {
            Record::Remove { dir, grave, .. } | Record::Rename { dir, grave, .. } if *grave != 0 => {
                self.buried.push((*dir, self.position, *grave));
            }
            Record::Sync { inode, upto } => self.forget(shim, *inode, *upto),
            _ => {}
        }
        self.position += bytes.len() as u64;
        shim.count(Word::Records);
    }

    /// Gives back the space of what is gone for good.
    fn forget(&mut self, shim: &Shim, dir: u64, upto: u64) {
        self.buried.retain(|&(of, position, number)| {
            let gone = of == dir && position < upto;
            if gone && let Some(path) = shim.journal.grave_path(number) {
                // SAFETY: the path ends with a zero. Should it fail, space is lost until the run ends.
                unsafe { real::unlink(path.as_ptr()) };
            }
            !gone
        });
    }
}
