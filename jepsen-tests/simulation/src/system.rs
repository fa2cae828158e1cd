//! Stands in for the five functions of the C library by which chance, time and the disk's state reach a process.
//!
//! A function of this name in the executable is found before the C library's. So whatever asks for random bytes (hash
//! maps, ids, tokio's own choices) gets a seeded sequence, every clock is the simulated one, and `fsync` says to the
//! simulated disk what has become durable, without a seam in what is tested. Until [`simulate`] is called, and in
//! the process that only starts others, each does what the C library's does.
//!
//! All of a simulation runs on one thread; the atomics are for the type system.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use libc::{c_int, c_uint, clockid_t, size_t, ssize_t, timespec};

use crate::disk;

/// The wall clock at the beginning: 2026-01-01.
const WALL_SECONDS: u64 = 1_767_225_600;
/// The monotonic clock at the beginning, so that subtractions have room.
const MONOTONIC_SECONDS: u64 = 100_000;
/// What every file system has left, in blocks of [`BLOCK_BYTES`].
const BLOCKS_FREE: u64 = 1 << 24;
const BLOCK_BYTES: u64 = 4096;

static SIMULATED: AtomicBool = AtomicBool::new(false);
static RANDOM: AtomicU64 = AtomicU64::new(0);
static NOW_NS: AtomicU64 = AtomicU64::new(0);

/// From now on nothing real is seen.
pub fn simulate() {
    SIMULATED.store(true, Ordering::Relaxed);
}

/// Begins the sequence of random bytes.
pub fn seed(seed: u64) {
    RANDOM.store(seed, Ordering::Relaxed);
}

/// Simulated time since the beginning, in nanoseconds.
pub fn now_ns() -> u64 {
    NOW_NS.load(Ordering::Relaxed)
}

/// Sets the simulated time.
pub fn set_now_ns(now: u64) {
    NOW_NS.store(now, Ordering::Relaxed);
}

/// SplitMix64 (Steele, Lea, Flood 2014).
fn next_random() -> u64 {
    const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
    let state = RANDOM.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

fn is_simulated() -> bool {
    SIMULATED.load(Ordering::Relaxed)
}

mod stand_ins {
    #![expect(unsafe_code, reason = "functions of the C library take and fill raw memory")]

    use super::*;

    #[unsafe(no_mangle)]
    unsafe extern "C" fn getrandom(buffer: *mut c_void, length: size_t, flags: c_uint) -> ssize_t {
        if !is_simulated() {
            // SAFETY: the caller's own arguments, to the system call of that name.
            let filled = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
            return filled as ssize_t;
        }
        if length > 0 {
            // SAFETY: the caller says that `buffer` has room for `length` bytes; none are read before they are written.
            let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
            for chunk in bytes.chunks_mut(8) {
                chunk.iter_mut().zip(next_random().to_le_bytes()).for_each(|(to, from)| *to = from);
            }
        }
        length as ssize_t
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
        if !is_simulated() {
            // SAFETY: the caller's own arguments, to the system call of that name.
            return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) } as c_int;
        }
        let is_wall = matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE);
        let base = if is_wall { WALL_SECONDS } else { MONOTONIC_SECONDS };
        let now = now_ns();
        let shown = timespec {
            tv_sec: (base + now / 1_000_000_000) as libc::time_t,
            tv_nsec: (now % 1_000_000_000) as libc::c_long,
        };
        // SAFETY: the caller says that `time` is its timespec.
        unsafe { time.write(shown) };
        0
    }

    #[unsafe(no_mangle)]
    extern "C" fn fdatasync(file: c_int) -> c_int {
        sync(file, true)
    }

    #[unsafe(no_mangle)]
    extern "C" fn fsync(file: c_int) -> c_int {
        sync(file, false)
    }

    fn sync(file: c_int, data_only: bool) -> c_int {
        if !is_simulated() {
            let call = if data_only { libc::SYS_fdatasync } else { libc::SYS_fsync };
            // SAFETY: a system call that takes a number.
            return unsafe { libc::syscall(call, file) } as c_int;
        }
        if disk::sync(file, data_only) {
            return 0;
        }
        // SAFETY: the thread's own error number.
        unsafe { *libc::__errno_location() = libc::EIO };
        -1
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn statvfs(_path: *const libc::c_char, about: *mut libc::statvfs) -> c_int {
        fill(about)
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn statvfs64(_path: *const libc::c_char, about: *mut libc::statvfs) -> c_int {
        fill(about)
    }

    /// The same for every file system: how much room the machine has must not be seen.
    fn fill(about: *mut libc::statvfs) -> c_int {
        // SAFETY: a struct of numbers, for which zero is a value.
        let mut shown: libc::statvfs = unsafe { std::mem::zeroed() };
        shown.f_bsize = BLOCK_BYTES;
        shown.f_frsize = BLOCK_BYTES;
        shown.f_blocks = 2 * BLOCKS_FREE;
        shown.f_bfree = BLOCKS_FREE;
        shown.f_bavail = BLOCKS_FREE;
        // SAFETY: the caller says that `about` is its struct.
        unsafe { about.write(shown) };
        0
    }
}
