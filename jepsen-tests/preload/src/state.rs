//! What the library was told at its start: the directory to touch, the control page, the journal.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::journal::Journal;
use crate::layout::{CONTROL, CONTROL_BYTES, DIR_VARIABLE, GRAVE, JOURNAL, ROOT_VARIABLE, Word};
use crate::real;

/// All that there is while the process lives.
pub struct Shim {
    /// Without a slash at its end.
    pub root: Vec<u8>,
    pub journal: Journal,
    words: &'static [AtomicU64],
}

static SHIM: OnceLock<Option<Shim>> = OnceLock::new();

/// The library's state; nothing before its start, and in processes that it has no orders for.
pub fn shim() -> Option<&'static Shim> {
    // A look, no initialisation: what comes before the start passes through.
    SHIM.get()?.as_ref()
}

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

/// Runs before the program does.
extern "C" fn start() {
    let made = make();
    if let Some(shim) = SHIM.get_or_init(|| made) {
        shim.word(Word::Loaded).store(u64::from(std::process::id()), Ordering::SeqCst);
    }
}

fn variable(name: &str) -> Option<Vec<u8>> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name ends with a zero, and nobody changes the environment before the program runs.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: values of the environment end with a zero.
    Some(unsafe { CStr::from_ptr(value) }.to_bytes().to_vec())
}

fn in_dir(dir: &[u8], name: &str) -> Option<CString> {
    CString::new([dir, b"/", name.as_bytes()].concat()).ok()
}

fn make() -> Option<Shim> {
    let dir = variable(DIR_VARIABLE)?;
    let mut root = variable(ROOT_VARIABLE)?;
    while root.last() == Some(&b'/') {
        root.pop();
    }
    if root.is_empty() {
        return None;
    }
    let words = map(&in_dir(&dir, CONTROL)?)?;
    let journal = in_dir(&dir, JOURNAL)?;
    let grave = OsStr::from_bytes(&dir).to_owned();
    let journal = Journal::open(&journal, std::path::Path::new(&grave).join(GRAVE))?;
    Some(Shim { root, journal, words })
}

/// Maps the control page.
fn map(path: &CStr) -> Option<&'static [AtomicU64]> {
    let bytes = usize::try_from(CONTROL_BYTES).ok()?;
    // SAFETY: the path ends with a zero.
    let fd = unsafe { real::open64(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC, 0) };
    if fd < 0 {
        return None;
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping of a file that the harness has made as long as this.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd, 0) };
    // SAFETY: opened above, and used by nobody else.
    unsafe { real::close(fd) };
    if at == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the mapping is aligned to a page, as long as asked, never unmapped, and all zeros or numbers.
    Some(unsafe { std::slice::from_raw_parts(at.cast::<AtomicU64>(), bytes / size_of::<AtomicU64>()) })
}

impl Shim {
    pub fn word(&self, word: Word) -> &AtomicU64 {
        static NOTHING: AtomicU64 = AtomicU64::new(0);
        self.words.get(word as usize).unwrap_or(&NOTHING)
    }

    pub fn get(&self, word: Word) -> u64 {
        self.word(word).load(Ordering::Relaxed)
    }

    pub fn on(&self, word: Word) -> bool {
        self.get(word) != 0
    }

    pub fn count(&self, word: Word) {
        self.word(word).fetch_add(1, Ordering::Relaxed);
    }
}
